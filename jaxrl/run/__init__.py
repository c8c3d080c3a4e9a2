"""The host shell: runs with a record, checkpoints, logs, placement."""

from jaxrl.run.policy import Policy, load_policy
from jaxrl.run.runner import Run, run

__all__ = ["Policy", "Run", "load_policy", "run"]
