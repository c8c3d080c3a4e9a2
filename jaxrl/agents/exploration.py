"""Exploration schedules, and epsilon-greedy choices among discrete actions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.optim import linear_decay
from jaxrl.rng import row_key
from jaxrl.types import Array, Key, Mode


def epsilon_greedy(q: Array, epsilon: Array, key: Key, mode: Mode) -> Array:
    """Return the action with the largest of the values ``q[..., n]``: int32 ``[...]``.

    Unless ``mode`` is greedy, each action is replaced by a uniformly random one with probability
    ``epsilon``.
    """
    best = jnp.argmax(q, axis=-1).astype(jnp.int32)
    if mode == "greedy":
        return best
    uniform_key, action_key = jax.random.split(row_key(key))
    explores = jax.random.uniform(uniform_key, best.shape) < epsilon
    return jnp.where(explores, jax.random.randint(action_key, best.shape, 0, q.shape[-1]), best)


def linear_schedule(
    step: Array, start: Array | float, end: Array | float, decay_steps: Array | float
) -> Array:
    """Return a value that goes linearly from ``start`` to ``end`` over ``decay_steps``: ``[]``.

    If ``decay_steps`` is 0, it stays at ``start``.
    """
    return end + (start - end) * linear_decay(step, decay_steps)
