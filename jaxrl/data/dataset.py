"""Datasets: recorded transitions, one copy on the device for all seeds."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import jax
import numpy as np

from jaxrl.errors import UsageError
from jaxrl.types import Array, PyTree


class Dataset(NamedTuple):
    """``D`` transitions; every field has a leading ``[D]``.

    ``action`` is in the agent's units: [-1, 1], or an index. ``next_obs`` is the true next
    observation. A dataset is an argument of the compiled programs: never part of a run's state, and
    never a constant in a program.
    """

    obs: PyTree
    action: Array
    reward: Array
    next_obs: PyTree
    terminated: Array
    truncated: Array

    @property
    def size(self) -> int:
        """The number of transitions ``D``."""
        return int(self.reward.shape[0])

    def check(self) -> None:
        """Raise UsageError unless there are transitions, as many in every field."""
        if self.size < 1:
            raise UsageError("the dataset has no transitions; give at least one")
        for path, leaf in jax.tree.leaves_with_path(self):
            if leaf.shape[:1] != (self.size,):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise UsageError(
                    f"the dataset's {name} has shape {leaf.shape}, and its reward "
                    f"{self.reward.shape}; both must begin with the number of transitions"
                )


def checksum(data: PyTree) -> str | None:
    """Return the CRC-32 of a dataset's arrays, their shapes and dtypes; None without arrays."""
    leaves = jax.tree.leaves(data)
    total = 0
    for leaf in leaves:
        array = np.ascontiguousarray(np.asarray(leaf))
        total = zlib.crc32(f"{array.dtype.name}{array.shape}".encode(), total)
        total = zlib.crc32(array.reshape(-1).view(np.uint8).data, total)
    return f"{total:08x}" if leaves else None
