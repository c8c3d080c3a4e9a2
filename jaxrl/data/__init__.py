"""Data to learn from: the replay ring."""

from jaxrl.data.replay import Replay

__all__ = ["Replay"]
