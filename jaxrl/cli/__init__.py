"""The command line of the scripts in ``experiments/``: their options, and how they start and end.

A script parses its options (``parse``), sets up JAX (``prepare``), trains (``train``), and is
started by ``launch``.
"""

from jaxrl._startup import prepare
from jaxrl.cli.launching import launch, train
from jaxrl.cli.options import OffPolicyOptions, OnPolicyOptions, Options, TrainingOptions
from jaxrl.cli.parsing import parse

__all__ = [
    "OffPolicyOptions",
    "OnPolicyOptions",
    "Options",
    "TrainingOptions",
    "launch",
    "parse",
    "prepare",
    "train",
]
