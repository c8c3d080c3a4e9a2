"""Epochs of minibatch steps on a rollout, and the check that it divides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxrl.errors import UsageError
from jaxrl.metrics import Metrics, scan
from jaxrl.sharding import shard_key
from jaxrl.shuffle import permutations
from jaxrl.types import Array, Key, PyTree

Carry = TypeVar("Carry")


def check_divides(minibatches: int, transitions: int) -> None:
    """Raise UsageError unless ``transitions`` of one update (and shard) divide evenly."""
    if transitions % minibatches:
        below = min(minibatches, transitions)
        nearest = (m for d in range(below) for m in (below - d, below + d))
        best = next(m for m in nearest if transitions % m == 0)
        raise UsageError(
            f"minibatches is {minibatches}, which does not divide the "
            f"{transitions} transitions of an update; {best} would"
        )


def learn(
    step: Callable[[Carry, Any, Key], tuple[Carry, Metrics]],
    start: Carry,
    samples: PyTree,
    key: Key,
    epochs: int,
    minibatches: int,
) -> tuple[Carry, Metrics]:
    """``step(carry, minibatch, key) -> carry, metrics`` on shuffled minibatches of a rollout.

    ``samples`` are ``[T, N, ...]``, a minibatch ``[B, ...]`` of their rows, none of which comes
    twice in an epoch. Each shard shuffles its own. Returns the last carry and the metrics of all
    steps together.
    """
    size = _rows(samples)
    check_divides(minibatches, size)
    rows = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), samples)
    shuffle_key, step_key = jax.random.split(shard_key(key))
    steps = epochs * minibatches
    order = permutations(shuffle_key, size, epochs).reshape(steps, -1)

    def minibatch_step(carry: Carry, xs: tuple[Array, Key]) -> tuple[Carry, Metrics]:
        indices, key = xs
        return step(carry, jax.tree.map(lambda x: x[indices], rows), key)

    return scan(minibatch_step, start, (order, jax.random.split(step_key, steps)))


def _rows(samples: PyTree) -> int:
    """``T * N``."""
    leaf = jax.tree.leaves(samples)[0]
    return leaf.shape[0] * leaf.shape[1]
