"""The record of a run: its folder, checkpoints, metrics file, and the policies in it."""

from jaxrl.record.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]
