"""The record of a run: its folder, checkpoints, metrics file, policies, and datasets."""

from jaxrl.record.policy import Policy, load_policy
from jaxrl.record.recorder import from_replay, record
from jaxrl.record.writers import write_d4rl, write_minari

__all__ = ["Policy", "from_replay", "load_policy", "record", "write_d4rl", "write_minari"]
