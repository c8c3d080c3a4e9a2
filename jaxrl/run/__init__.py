"""Runs: training with checkpoints, logs, signals, and placement on devices."""

from jaxrl.run.phases import Phase
from jaxrl.run.runner import Run, run

__all__ = ["Phase", "Run", "run"]
