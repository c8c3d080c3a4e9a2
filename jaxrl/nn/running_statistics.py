"""Running mean and variance of a stream of observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.precision import widened
from jaxrl.sharding import shard_sum
from jaxrl.types import Array, PyTree


class RunningStatistics(NamedTuple):
    """Count, mean and spread of observations ``*O`` (an array or a tree of arrays)."""

    size: Array  # float32, the number of observations
    mean: PyTree
    m2: PyTree  # sum of squared deviations from the mean


def start(example: PyTree) -> RunningStatistics:
    """Return empty statistics; ``example`` gives the shapes ``*O``."""
    # Do not share one tree of zeros: an array that is two leaves cannot be donated.
    mean, m2 = (jax.tree.map(lambda x: jnp.zeros(x.shape), example) for _ in range(2))
    return RunningStatistics(jnp.float32(0), mean, m2)


def merge(statistics: RunningStatistics, batch: PyTree) -> RunningStatistics:
    """Add ``batch[..., *O]`` of every shard (Chan, Golub and LeVeque 1983, pairwise update).

    The size is stored in float32, so it is rounded beyond 2^24 observations. A batch then has the
    weight of as many rows as the size grows by, or the variance would drift. A batch that is too
    small to change the size, such as one row after 2^24, changes nothing.
    """
    some, mean_of_some = jax.tree.leaves(batch)[0], jax.tree.leaves(statistics.mean)[0]
    axes = tuple(range(some.ndim - mean_of_some.ndim))
    rows = 1
    for axis in axes:
        rows *= some.shape[axis]
    size = shard_sum(jnp.float32(rows))
    total = statistics.size + size
    counted = total - statistics.size  # exact; equal to ``size`` unless the sum was rounded

    def update(mean: Array, m2: Array, x: Array) -> tuple[Array, Array]:
        x = widened(x)
        batch_mean = shard_sum(jnp.sum(x, axes)) / size
        batch_m2 = shard_sum(jnp.sum(jnp.square(x - batch_mean), axes))
        delta = batch_mean - mean
        correction = jnp.square(delta) * statistics.size * (counted / total)
        return mean + delta * (counted / total), m2 + batch_m2 * (counted / size) + correction

    pairs = jax.tree.map(update, statistics.mean, statistics.m2, batch)
    mean = jax.tree.map(lambda _, pair: pair[0], statistics.mean, pairs)
    m2 = jax.tree.map(lambda _, pair: pair[1], statistics.mean, pairs)
    return RunningStatistics(total, mean, m2)


def normalise(statistics: RunningStatistics, x: PyTree, clip: Array | float) -> PyTree:
    """Return ``(x - mean) / std`` clipped to ``[-clip, clip]``, for ``x[..., *O]``.

    Empty statistics leave ``x`` as it is, but clipped.
    A dictionary may lack entries that have statistics; entries without are returned unchanged.
    """
    seen = statistics.size > 0

    def one(mean: Array, m2: Array, x: Array) -> Array:
        std = jnp.sqrt(m2 / jnp.maximum(statistics.size, 1.0))
        # A constant element carries no information: a floor keeps its rounding errors small.
        scaled = (x - mean) / jnp.where(seen, jnp.maximum(std, 1e-6), 1.0)
        return jnp.clip(scaled, -clip, clip)

    if not isinstance(x, Mapping):
        return jax.tree.map(one, statistics.mean, statistics.m2, x)
    known = [name for name in x if name in statistics.mean]
    return {**x} | {
        name: one(statistics.mean[name], statistics.m2[name], x[name]) for name in known
    }
