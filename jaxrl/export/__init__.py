"""Policies as files that work without jaxrl: for numpy, ``jax.export`` and ONNX.

The command is ``python -m jaxrl.analysis export RUN``.
"""

from jaxrl.export.files import FORMATS, Checked, Export, export_policy, export_run
from jaxrl.export.jax_policy import JaxPolicy
from jaxrl.export.numpy_policy import NumpyPolicy

__all__ = [
    "FORMATS",
    "Checked",
    "Export",
    "JaxPolicy",
    "NumpyPolicy",
    "export_policy",
    "export_run",
]
