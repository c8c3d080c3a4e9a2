"""Metrics that can be combined over iterations, environments and shards, in any grouping.

An iteration returns ``{name: Sum | Mean | Max}`` of scalars. Any number of them can be reduced to
one, so the memory for metrics does not grow with the length of a rollout or a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import rng
from jaxrl.errors import UsageError
from jaxrl.require import shown
from jaxrl.sharding import shard_max, shard_sum
from jaxrl.types import Array, Key


class Sum(NamedTuple):
    """A count or another quantity that adds up."""

    total: Array


class Mean(NamedTuple):
    """A mean with its weight; weight 0 means there was nothing to average."""

    total: Array
    weight: Array


class Max(NamedTuple):
    """A maximum."""

    value: Array


Metrics = dict[str, Sum | Mean | Max]


def mean_of(values: Array, where: Array | None = None) -> Mean:
    """The mean of ``values`` of any shape; only where ``where`` is true, if given."""
    values = jnp.asarray(values, jnp.float32)
    if where is None:
        return Mean(jnp.sum(values), jnp.float32(values.size))
    weight = where.astype(jnp.float32)
    return Mean(jnp.sum(jnp.where(where, values, 0.0)), jnp.sum(weight))


def count_of(flags: Array) -> Sum:
    """Return the number of ``flags`` that are true."""
    return Sum(jnp.sum(flags.astype(jnp.float32)))


def _is_metric(node: Any) -> bool:
    return isinstance(node, Sum | Mean | Max)


def require_metrics(metrics: Any) -> None:
    """Raise UsageError unless all values are sums, means or maxima of scalars."""
    for name, value in metrics.items():
        if _is_metric(value) and all(jnp.shape(leaf) == () for leaf in value):
            continue
        found = f"{type(value).__name__} of vectors" if _is_metric(value) else shown(value)
        raise UsageError(
            f"metric {name!r} is a {found}; give jaxrl.metrics.mean_of(x), or a Sum, Mean or Max "
            "of scalars"
        )


def combine(a: Metrics, b: Metrics) -> Metrics:
    """Combine two sets of metrics with equal names."""

    def both(x: Any, y: Any) -> Any:
        operation = jnp.maximum if isinstance(x, Max) else jnp.add
        return type(x)(*map(operation, x, y))

    return jax.tree.map(both, a, b, is_leaf=_is_metric)


def summed(history: Metrics) -> Metrics:
    """Combine metrics stacked along a leading axis, as a scan returns them."""

    def reduce(x: Any) -> Any:
        operation = jnp.max if isinstance(x, Max) else jnp.sum
        return type(x)(*(operation(leaf, axis=0) for leaf in x))

    return jax.tree.map(reduce, history, is_leaf=_is_metric)


def pack(metrics: Metrics) -> Array:
    """All numbers as one vector ``[M]``: inside a loop, one small array is cheaper than many."""
    return jnp.stack(jax.tree.leaves(metrics))


def unpack(packed: Array, structure: Any) -> Metrics:
    """``packed[..., M]`` as metrics of this tree structure."""
    return jax.tree.unflatten(structure, jnp.moveaxis(packed, -1, 0))


def scan(
    step: Callable[[Key, Any, Any], tuple[Any, Metrics]], carry: Any, keys: Key, xs: Any = None
) -> tuple[Any, Metrics]:
    """``rng.scan`` of ``step(key, carry, x) -> carry, metrics``, with the metrics combined.

    Inside the loop the metrics are one vector.
    """
    structure: Any = None  # known from the first trace of the step

    def packed(key: Key, carry: Any, x: Any) -> tuple[Any, Array]:
        nonlocal structure
        carry, metrics = step(key, carry, x)
        require_metrics(metrics)
        structure = jax.tree.structure(metrics)
        return carry, pack(metrics)

    carry, history = rng.scan(packed, carry, keys, xs)
    return carry, summed(unpack(history, structure))


def merged(a: Metrics, b: Metrics) -> Metrics:
    """The union of two sets of metrics; metrics in both are combined."""
    common = a.keys() & b.keys()
    both = combine({name: a[name] for name in common}, {name: b[name] for name in common})
    return a | b | both


def over_shards(metrics: Metrics) -> Metrics:
    """Combine the metrics of all shards."""

    def reduce(x: Any) -> Any:
        return shard_max(x) if isinstance(x, Max) else shard_sum(x)

    require_metrics(metrics)
    return jax.tree.map(reduce, metrics, is_leaf=_is_metric)


def empty_like(metrics: Metrics) -> Metrics:
    """The neutral element of ``combine`` for metrics of this structure (arrays or their shapes)."""

    def neutral(x: Any) -> Any:
        fill = -jnp.inf if isinstance(x, Max) else 0.0
        return type(x)(*(jnp.full(leaf.shape, fill, leaf.dtype) for leaf in x))

    return jax.tree.map(neutral, metrics, is_leaf=_is_metric)


def values(metrics: Metrics) -> dict[str, Array]:
    """Plain numbers: sums, means (NaN if there was nothing to average) and maxima."""

    def value(x: Any) -> Any:
        return x.total / x.weight if isinstance(x, Mean) else x[0]

    return jax.tree.map(value, metrics, is_leaf=_is_metric)
