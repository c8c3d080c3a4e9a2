"""Runs and sweeps: training with checkpoints, logs, signals, and placement on devices."""

from jaxrl.run.halving import Halving
from jaxrl.run.legs import Variant
from jaxrl.run.pbt import PBT
from jaxrl.run.phases import Phase
from jaxrl.run.runner import Run, run
from jaxrl.run.spaces import Range, Values
from jaxrl.run.sweep import Sweep, sweep

__all__ = [
    "PBT",
    "Halving",
    "Phase",
    "Range",
    "Run",
    "Sweep",
    "Values",
    "Variant",
    "run",
    "sweep",
]
