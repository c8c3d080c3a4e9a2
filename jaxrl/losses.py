"""Formulae of returns and losses, as pure functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.axes import shard_mean
from jaxrl.types import Array


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    gae_lambda: Array | float,
) -> Array:
    """Generalised advantage estimates: all arguments ``[T, ...]``, returns ``[T, ...]``.

    ``next_value[t]`` is the value of the true successor of step ``t``. Bootstrapping stops at
    ``terminated``; the sum over lambda stops at ``terminated`` and at ``truncated``, since the next
    row belongs to another episode. (Schulman et al. 2016, "High-Dimensional Continuous Control
    Using Generalized Advantage Estimation", eq. 16.)
    """
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    decay = jnp.where(terminated | truncated, 0.0, gamma * gae_lambda)

    def backward(advantage: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        delta_t, decay_t = row
        advantage = delta_t + decay_t * advantage
        return advantage, advantage

    start = jnp.zeros_like(delta[0])
    _, advantages = jax.lax.scan(backward, start, (delta, decay), reverse=True, unroll=8)
    return advantages


def normalised(x: Array) -> Array:
    """``x`` of any shape with zero mean and unit standard deviation, over all shards."""
    mean = shard_mean(jnp.mean(x))
    deviation = x - mean
    return deviation / (jnp.sqrt(shard_mean(jnp.mean(deviation**2))) + 1e-8)


def variance(x: Array) -> Array:
    """The variance of ``x`` of any shape, over all shards: ``[]``."""
    return shard_mean(jnp.mean(jnp.square(x - shard_mean(jnp.mean(x)))))


def clipped_surrogate(ratio: Array, advantage: Array, clip: Array | float) -> Array:
    """PPO's policy loss per sample (Schulman et al. 2017, eq. 7, negated): any equal shapes."""
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)


def clipped_value_loss(value: Array, old_value: Array, target: Array, clip: Array | float) -> Array:
    """Squared error per sample, where leaving ``old_value`` by more than ``clip`` earns nothing.

    ``clip`` is in units of the value: harmful with large rewards that are not scaled.
    """
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))
