"""The command line of the scripts in ``experiments/``: their options, and how they start and end.

A script parses its options (``parse``), sets up JAX (``prepare``), composes a trainer, hands it to
``run``, and prints the result (``report``). It is started by ``launch``.
"""

from jaxrl._startup import prepare
from jaxrl.cli.datasets import load_dataset, with_extras
from jaxrl.cli.launching import launch, report
from jaxrl.cli.options import (
    AnnealOptions,
    EpsilonOptions,
    FineTuningOptions,
    OfflineOptions,
    OffPolicyOptions,
    OnPolicyOptions,
    Options,
    TrainingOptions,
)
from jaxrl.cli.parsing import parse
from jaxrl.cli.sweep_report import describe_sweep

__all__ = [
    "AnnealOptions",
    "EpsilonOptions",
    "FineTuningOptions",
    "OffPolicyOptions",
    "OfflineOptions",
    "OnPolicyOptions",
    "Options",
    "TrainingOptions",
    "describe_sweep",
    "launch",
    "load_dataset",
    "parse",
    "prepare",
    "report",
    "with_extras",
]
