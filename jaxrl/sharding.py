"""Reductions over the shards of a run. Algorithms need not know whether there are any shards.

A trainer that runs inside ``shard_map`` traces its body under ``reducing_over(axis)``. There,
``shard_sum`` and ``shard_mean`` reduce over that mesh axis; elsewhere they are the identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

from jaxrl.types import Array, PyTree

_axis: ContextVar[str | None] = ContextVar("shard_axis", default=None)


@contextlib.contextmanager
def reducing_over(axis: str | None) -> Iterator[None]:
    """Trace the body with reductions over the mesh axis ``axis`` (None: no shards)."""
    token = _axis.set(axis)
    try:
        yield
    finally:
        _axis.reset(token)


def shard_count() -> int:
    """The number of shards of the run being traced."""
    axis = _axis.get()
    return 1 if axis is None else jax.lax.axis_size(axis)


def shard_sum(tree: PyTree) -> PyTree:
    """Leaf-wise sum over shards."""
    axis = _axis.get()
    return tree if axis is None else jax.lax.psum(tree, axis)


def shard_mean(tree: PyTree) -> PyTree:
    """Leaf-wise mean over shards."""
    axis = _axis.get()
    return tree if axis is None else jax.lax.pmean(tree, axis)


def shard_max(tree: PyTree) -> PyTree:
    """Leaf-wise maximum over shards."""
    axis = _axis.get()
    return tree if axis is None else jax.lax.pmax(tree, axis)


def shard_index() -> Array | None:
    """Return the index of this shard, or None outside of shards."""
    axis = _axis.get()
    return None if axis is None else jax.lax.axis_index(axis)
