"""Returns and losses as pure functions of arrays."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl.errors import UsageError
from jaxrl.sharding import shard_count, shard_mean
from jaxrl.types import Array, Key

OverCritics = Literal["min", "mean"]


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
    return discounted_sums(delta, decay, jnp.zeros_like(delta[0]))


def lambda_returns(
    reward: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    lam: Array | float,
) -> Array:
    """Lambda returns: all arguments ``[T, ...]``, returns ``[T, ...]``.

    ``G_t = r_t + gamma (lam G_{t+1} + (1 - lam) V(s_{t+1}))``, where ``next_value[t]`` is the value
    of the true successor of step ``t``. At the last row, and where an episode was truncated, the
    value replaces the whole bracket; where it terminated, zero replaces it. With the largest
    Q-value as the value this is Peng's Q(lambda), which does not cut traces at non-greedy actions.
    (Sutton & Barto 2018, "Reinforcement Learning", section 12.1; Gallici et al. 2024, "Simplifying
    Deep Temporal Difference Learning", section 3.)
    """
    ended = terminated | truncated
    own = jnp.where(ended, 1.0, 1.0 - lam)  # the weight of the value, not the next row
    one_step = reward + gamma * jnp.where(terminated, 0.0, own * next_value)
    decay = jnp.where(ended, 0.0, gamma * lam)
    return discounted_sums(one_step, decay, next_value[-1])


def discounted_sums(x: Array, decay: Array, start: Array) -> Array:
    """``y_t = x_t + decay_t y_{t+1}`` for ``[T, ...]``, backwards from ``y_T = start[...]``."""

    def backward(after: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        x_t, decay_t = row
        y = x_t + decay_t * after
        return y, y

    _, y = jax.lax.scan(backward, start, (x, decay), reverse=True, unroll=8)
    return y


def normalised(x: Array) -> Array:
    """``x`` of any shape with zero mean and unit standard deviation, over all shards.

    Raises:
        UsageError: for a single value, which would always become 0.
    """
    if x.size * shard_count() < 2:
        raise UsageError(
            f"a minibatch of {x.size} cannot be normalised, as one value is its own mean; give at "
            "least 2, by a larger num_steps, more num_envs or fewer num_minibatches"
        )
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
    """Squared error per sample, with no gain from moving further than ``clip`` from ``old_value``.

    ``clip`` is in units of the value, so clipping is harmful with large unscaled rewards.
    """
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))


def min_over_critics(q: Array, num: int | None, key: Key) -> Array:
    """Return the minimum of ``q[E, ...]`` over all critics, or over ``num`` random ones: ``[...]``.

    All rows, on all shards, use the same subset (REDQ: Chen et al. 2021, algorithm 1).
    """
    if num is not None:
        q = q[jax.random.permutation(key, q.shape[0])[:num]]
    return jnp.min(q, axis=0)


def over_critics(q: Array, how: OverCritics, pessimism: Array | float) -> Array:
    """Return the min or mean of ``q[E, ...]`` minus ``pessimism`` standard deviations: ``[...]``.

    For two critics, the mean minus one standard deviation is their minimum.
    """
    value = jnp.min(q, axis=0) if how == "min" else jnp.mean(q, axis=0)
    return value - pessimism * jnp.std(q, axis=0)


def value_of_action(q: Array, action: Array) -> Array:
    """``Q(s, a)`` from the values ``q[..., n]`` of all actions, for indices ``action[...]``.

    Sums one-hot rows, because the gradient of an indexed read would be a slow scatter. Values of
    other actions may be infinite.
    """
    hot = jax.nn.one_hot(action, q.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(hot, q, 0.0), axis=-1)


def huber(x: Array, width: float = 50.0) -> Array:
    """``x^2 / 2`` within ``width`` of 0, and linear beyond: any shape."""
    far = jnp.abs(x)
    return jnp.where(far <= width, 0.5 * x**2, width * (far - 0.5 * width))


def safe_norm(x: Array) -> Array:
    """Return the Euclidean norm of ``x[..., A]`` as ``[..., 1]``; its gradient at 0 is 0."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def expectile_loss(x: Array, expectile: Array | float) -> Array:
    """``expectile x^2`` where ``x`` is positive, else ``(1 - expectile) x^2``: any shape.

    (Kostrikov et al. 2022, "Offline Reinforcement Learning with Implicit Q-Learning", eq. 5.)
    """
    return jnp.where(x > 0, expectile, 1.0 - expectile) * jnp.square(x)
