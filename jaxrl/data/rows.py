"""Rows of arrays on the host, processed in blocks: checks of large data need little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

BLOCK_BYTES = 8 << 20


def blocks(array: Any) -> Iterator[slice]:
    """Yield slices of rows, each of about 8 MiB, that cover ``array[D, ...]``."""
    rows = int(array.shape[0])
    one = max(int(np.prod(array.shape[1:])) * array.dtype.itemsize, 1)
    step = max(BLOCK_BYTES // one, 1)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def first_row(array: np.ndarray, wrong: Callable[[np.ndarray], np.ndarray]) -> int | None:
    """Return the first row of ``array[D, ...]`` with a ``wrong`` element, or None."""
    for block in blocks(array):
        found = wrong(array[block])
        if found.any():
            bad = found.reshape(len(found), -1).any(axis=1)
            return block.start + int(np.argmax(bad))
    return None


def first_nonfinite(array: np.ndarray) -> int | None:
    """Return the first row with NaN or infinity, or None; always None for integers and bools."""
    if array.dtype.kind in "iub":
        return None
    return first_row(array, lambda block: ~np.isfinite(block))


def on_host(tree: Any) -> Any:
    """Return a tree of numpy arrays."""
    return jax.tree.map(np.asarray, tree)


def name_of(path: tuple) -> str:
    """Return a leaf's name from its path in a tree, such as ``next_obs.state``."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
