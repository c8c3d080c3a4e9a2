"""Epochs of minibatch steps on a rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxrl import metrics as m
from jaxrl.errors import UsageError
from jaxrl.metrics import Metrics, Sum
from jaxrl.rng import row_key
from jaxrl.sharding import shard_count, shard_mean
from jaxrl.shuffle import permutations
from jaxrl.types import Array, Key, PyTree

Carry = TypeVar("Carry")
Step = Callable[[Key, Carry, Any], tuple[Carry, Metrics]]


def check_divides(num_minibatches: int, transitions: int, least: int = 1) -> None:
    """Raise UsageError unless the ``transitions`` of one update (and shard) divide evenly.

    Minibatches need at least ``least`` transitions: 2 for agents that normalise over a minibatch.
    """
    most = transitions // least
    if most < 1:
        raise UsageError(
            f"an update has {transitions} transition, and the agent normalises over a minibatch "
            f"of at least {least}; give a larger num_steps, such as 128, or more num_envs"
        )
    if transitions % num_minibatches == 0 and num_minibatches <= most:
        return
    below = min(num_minibatches, most)
    nearest = (m for d in range(below) for m in (below - d, below + d) if m <= most)
    best = next(m for m in nearest if transitions % m == 0)
    wrong = f"which does not divide the {transitions} transitions of an update"
    if transitions % num_minibatches == 0:
        wrong = (
            f"and so its minibatches have {transitions // num_minibatches} of the {transitions} "
            f"transitions of an update, and normalising over them needs {least}"
        )
    raise UsageError(f"num_minibatches is {num_minibatches}, {wrong}; {best} would")


def minibatch_epochs(
    step: Step,
    start: Carry,
    samples: PyTree,
    key: Key,
    update_epochs: int,
    num_minibatches: int,
    stop: Callable[[dict[str, Array]], Array] | None = None,
) -> tuple[Carry, Metrics]:
    """Apply ``step(key, carry, minibatch) -> carry, metrics`` to shuffled minibatches of a rollout.

    ``samples`` are ``[T, N, ...]``. Minibatches ``[B, ...]`` contain their rows, and each row
    occurs once per epoch. Each shard shuffles its own rows. ``stop`` takes the values of a step's
    metrics. Once it is true, that step and all later ones have no effect, and the metric
    ``minibatch_steps`` counts the steps before it. Returns the final carry and the metrics of all
    steps combined.
    """
    leaf = jax.tree.leaves(samples)[0]
    size = leaf.shape[0] * leaf.shape[1]
    check_divides(num_minibatches, size)
    rows = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), samples)
    shuffle_key, step_key = jax.random.split(key)
    steps = update_epochs * num_minibatches
    order = permutations(row_key(shuffle_key), size, update_epochs).reshape(steps, -1)
    keys = jax.random.split(step_key, steps)

    def on_rows(key: Key, carry: Carry, indices: Array) -> tuple[Carry, Metrics]:
        return step(key, carry, jax.tree.map(lambda x: x[indices], rows))

    if stop is None:
        return m.scan(on_rows, start, keys, order)
    (end, _), metrics = m.scan(_stopping(on_rows, stop), (start, jnp.bool_(True)), keys, order)
    return end, metrics


def _stopping(step: Step, stop: Callable[[dict[str, Array]], Array]) -> Step:
    """Return ``step`` on ``(carry, active)``; ``active`` turns false once ``stop`` is true."""

    def guarded(key: Key, carry: tuple, x: Any) -> tuple[tuple, Metrics]:
        old, active = carry
        new, metrics = step(key, old, x)
        active = active & ~stop(shard_mean(m.values(metrics)))
        kept = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, old)
        made = active & (metrics["skipped_updates"][0] == 0)
        steps = Sum(made / shard_count())  # all shards take the same steps
        return (kept, active), metrics | {"minibatch_steps": steps}

    return guarded
