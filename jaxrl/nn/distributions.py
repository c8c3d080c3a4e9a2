"""Action distributions: NamedTuples of parameters with a batch shape ``[...]`` and one interface.

``sample(noise)`` gives a *raw* sample, ``log_prob(raw)`` its log-density, ``emit(raw)`` the action
that an agent sends out. For all but ``TanhNormal`` the action is the raw sample itself; there,
keeping the raw sample is what makes the log-density safe where ``tanh`` saturates. ``entropy(key)``
is exact where there is a closed form, which then needs no key.

The noise of many samples can be drawn at once, by ``noise(key, leading shape)``: inside a loop a
call of the random number generator costs more than a small network. Wherever noise is asked for, a
key will do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Key

Noise = Array  # a typed key, or what ``noise`` returned

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def is_key(x: Array) -> bool:
    """Whether ``x`` is a typed PRNG key."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


class Categorical(NamedTuple):
    """Over ``n`` indices, from unnormalised ``logits[..., n]``."""

    logits: Array

    def mode(self) -> Array:
        """The most likely index ``int32[...]``."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def noise(self, key: Key, shape: tuple[int, ...] = ()) -> Array:
        """Gumbel noise ``[*shape, ..., n]``."""
        return jax.random.gumbel(key, (*shape, *self.logits.shape))

    def sample(self, noise: Noise) -> Array:
        """An index ``int32[...]``."""
        if is_key(noise):
            noise = self.noise(noise)
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        """Of indices ``[...]``: ``[...]``."""
        log_p = jax.nn.log_softmax(self.logits)
        hot = jax.nn.one_hot(action, self.logits.shape[-1], dtype=log_p.dtype)
        return jnp.sum(hot * log_p, axis=-1)

    def emit(self, raw: Array) -> Array:
        """The index itself."""
        return raw

    def entropy(self, key: Key | None = None) -> Array:
        """In nats: ``[...]``."""
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


class Normal(NamedTuple):
    """Independent normals over the last axis: ``mean[..., A]``, ``std[..., A]``."""

    mean: Array
    std: Array

    def mode(self) -> Array:
        """``[..., A]``."""
        return self.mean

    def noise(self, key: Key, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal noise ``[*shape, ..., A]``."""
        return jax.random.normal(key, (*shape, *self.mean.shape))

    def sample(self, noise: Noise) -> Array:
        """``[..., A]``."""
        if is_key(noise):
            noise = self.noise(noise)
        return self.mean + self.std * noise

    def log_prob(self, action: Array) -> Array:
        """Of ``action[..., A]``: ``[...]``."""
        z = (action - self.mean) / self.std
        return -jnp.sum(0.5 * z**2 + jnp.log(self.std) + _HALF_LOG_TWO_PI, axis=-1)

    def emit(self, raw: Array) -> Array:
        """The sample itself; ``VectorEnv`` clips it to the action space."""
        return raw

    def entropy(self, key: Key | None = None) -> Array:
        """In nats: ``[...]``."""
        per_axis = jnp.log(self.std) + 0.5 + _HALF_LOG_TWO_PI
        return jnp.sum(jnp.broadcast_to(per_axis, self.mean.shape), axis=-1)


def log_det_tanh(x: Array) -> Array:
    """``log |d tanh(x) / dx|`` elementwise, stable for large ``|x|``."""
    return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))


class TanhNormal(NamedTuple):
    """``tanh`` of independent normals over the last axis: actions in (-1, 1)."""

    mean: Array
    std: Array

    @property
    def base(self) -> Normal:
        """The normal before squashing."""
        return Normal(self.mean, self.std)

    def mode(self) -> Array:
        """``tanh`` of the mean ``[..., A]``: the median of the distribution."""
        return jnp.tanh(self.mean)

    def noise(self, key: Key, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal noise ``[*shape, ..., A]``."""
        return self.base.noise(key, shape)

    def sample(self, noise: Noise) -> Array:
        """A sample before squashing ``[..., A]``."""
        return self.base.sample(noise)

    def log_prob(self, raw: Array) -> Array:
        """Log-density of the action ``tanh(raw)`` for ``raw[..., A]``: ``[...]``."""
        return self.base.log_prob(raw) - jnp.sum(log_det_tanh(raw), axis=-1)

    def emit(self, raw: Array) -> Array:
        """The squashed action ``[..., A]``."""
        return jnp.tanh(raw)

    def entropy(self, key: Key) -> Array:
        """A one-sample estimate in nats ``[...]``; there is no closed form."""
        raw = self.sample(key)
        return self.base.entropy() + jnp.sum(log_det_tanh(raw), axis=-1)

    def sample_and_log_prob(self, noise: Noise) -> tuple[Array, Array]:
        """A squashed action ``[..., A]`` and its log-density ``[...]``."""
        raw = self.sample(noise)
        return jnp.tanh(raw), self.log_prob(raw)


Distribution = Categorical | Normal | TanhNormal
