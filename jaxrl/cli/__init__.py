"""The command line of the scripts in ``experiments/``: their options, and how they start and end.

A script parses its options (``parse``), sets up JAX (``prepare``), composes a trainer, passes it to
``run``, and prints the result (``report``). ``launch`` starts it.
"""

from jaxrl.cli.datasets import load_dataset, with_extras
from jaxrl.cli.launching import launch, prepare, report
from jaxrl.cli.options import (
    AnnealOptions,
    EpsilonOptions,
    FineTuningOptions,
    OfflineOptions,
    OffPolicyOptions,
    OnPolicyOptions,
    Options,
    ReplayOptions,
    TrainingOptions,
)
from jaxrl.cli.parsing import parse, refuse
from jaxrl.cli.sweep_report import report_sweep

__all__ = [
    "AnnealOptions",
    "EpsilonOptions",
    "FineTuningOptions",
    "OffPolicyOptions",
    "OfflineOptions",
    "OnPolicyOptions",
    "Options",
    "ReplayOptions",
    "TrainingOptions",
    "launch",
    "load_dataset",
    "parse",
    "prepare",
    "refuse",
    "report",
    "report_sweep",
    "with_extras",
]
