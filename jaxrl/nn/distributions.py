"""Action distributions: NamedTuples of parameters with a batch shape ``[...]`` and one interface.

``sample(key)`` returns ``action, trace``. The action is what an agent emits: in [-1, 1], or an
index. The trace has what is needed to score the sample exactly: the sample before squashing, which
keeps ``log_prob`` safe where ``tanh`` saturates, and the log-probability when it was drawn.
``log_prob(trace)`` is the log-density under this distribution, and ``trace(action)`` is the trace
of a given action. ``entropy(key)`` is exact, and ignores its key, if there is a closed form.

Samples belong to rows, so shards with the same key draw different samples (``rng.row_key``).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxrl.precision import widened
from jaxrl.rng import row_key
from jaxrl.types import Array, Key

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_LARGEST_TANH = 1.0 - 1e-6


class Trace(NamedTuple):
    """A sample before squashing, and its log-probability under the policy that drew it."""

    raw: Array  # int32[...] or [..., A]
    log_prob: Array  # [...]


class Distribution(Protocol):
    """The interface of all distributions, including those that your own policies return."""

    def mode(self) -> Array:
        """Return the most likely action."""
        ...

    def sample(self, key: Key) -> tuple[Array, Trace]:
        """Return an action and its trace."""
        ...

    def log_prob(self, trace: Trace) -> Array:
        """Return the log-density of a traced sample: ``[...]``."""
        ...

    def entropy(self, key: Key) -> Array:
        """Return the entropy in nats: ``[...]``."""
        ...


class Categorical(NamedTuple):
    """Indices ``0 .. n-1``, from unnormalised ``logits[..., n]``; -inf forbids an index."""

    logits: Array

    def mode(self) -> Array:
        """Return the most likely index ``int32[...]``."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def sample(self, key: Key) -> tuple[Array, Trace]:
        """Return an index ``int32[...]`` and its trace."""
        gumbel = jax.random.gumbel(row_key(key), self.logits.shape)
        index = jnp.argmax(self.logits + gumbel, axis=-1).astype(jnp.int32)
        return index, self.trace(index)

    def trace(self, action: Array) -> Trace:
        """Return the trace of indices ``[...]``."""
        return Trace(action, self._log_prob(action))

    def log_prob(self, trace: Trace) -> Array:
        """Return log-probabilities ``[...]``."""
        return self._log_prob(trace.raw)

    def _log_prob(self, index: Array) -> Array:
        log_p = jax.nn.log_softmax(self.logits)
        hot = jax.nn.one_hot(index, self.logits.shape[-1], dtype=bool)
        return jnp.sum(jnp.where(hot, log_p, 0.0), axis=-1)

    def entropy(self, key: Key | None = None) -> Array:
        """Return the entropy in nats: ``[...]``."""
        log_p = jax.nn.log_softmax(self.logits)
        surprise = jnp.where(jnp.isneginf(log_p), 0.0, log_p)
        return -jnp.sum(jnp.exp(log_p) * surprise, axis=-1)


class Normal(NamedTuple):
    """Independent normals over the last axis: ``mean[..., A]``, ``std[..., A]``."""

    mean: Array
    std: Array

    def mode(self) -> Array:
        """Return the mean ``[..., A]``."""
        return self.mean

    def sample(self, key: Key) -> tuple[Array, Trace]:
        """Return an action ``[..., A]`` and its trace; ``VectorEnv`` clips it to the space."""
        raw = self.mean + self.std * jax.random.normal(row_key(key), self.mean.shape)
        return raw, self.trace(raw)

    def trace(self, action: Array) -> Trace:
        """Return the trace of ``action[..., A]``."""
        return Trace(action, self._log_prob(action))

    def log_prob(self, trace: Trace) -> Array:
        """Return log-densities ``[...]``."""
        return self._log_prob(trace.raw)

    def log_probs(self, action: Array) -> Array:
        """Return log-densities of ``action[..., A]``, element by element: ``[..., A]``."""
        z = (action - self.mean) / self.std
        return -(0.5 * z**2 + jnp.log(self.std) + _HALF_LOG_TWO_PI)

    def _log_prob(self, x: Array) -> Array:
        return jnp.sum(self.log_probs(x), axis=-1)

    def entropy(self, key: Key | None = None) -> Array:
        """Return the entropy in nats: ``[...]``."""
        per_axis = jnp.log(self.std) + 0.5 + _HALF_LOG_TWO_PI
        return jnp.sum(jnp.broadcast_to(per_axis, self.mean.shape), axis=-1)


class ClippedNormal(Normal):
    """Independent normals whose samples are clipped to [-1, 1] when they are acted on.

    Densities and entropies refer to samples before clipping; traces keep these samples.
    """

    def mode(self) -> Array:
        """Return the clipped mean ``[..., A]``."""
        return jnp.clip(self.mean, -1.0, 1.0)

    def sample(self, key: Key) -> tuple[Array, Trace]:
        """Return a clipped action ``[..., A]`` and the trace of the sample before clipping."""
        raw, trace = super().sample(key)
        return jnp.clip(raw, -1.0, 1.0), trace


def log_det_tanh(x: Array) -> Array:
    """Return ``log |d tanh(x) / dx|`` elementwise, stable for large ``|x|``."""
    return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))


def _unsquashed(action: Array) -> Array:
    """Return ``arctanh`` of actions, clipped to the open interval (-1, 1)."""
    return jnp.arctanh(jnp.clip(widened(action), -_LARGEST_TANH, _LARGEST_TANH))


class TanhNormal(NamedTuple):
    """``tanh`` of independent normals over the last axis: actions in (-1, 1)."""

    mean: Array
    std: Array

    @property
    def base(self) -> Normal:
        """The normal before squashing."""
        return Normal(self.mean, self.std)

    def mode(self) -> Array:
        """Return ``tanh`` of the mean ``[..., A]``: the median of the distribution."""
        return jnp.tanh(self.mean)

    def sample(self, key: Key) -> tuple[Array, Trace]:
        """Return a squashed action ``[..., A]`` and its trace."""
        raw, trace = self.base.sample(key)
        return jnp.tanh(raw), self._squashed(trace)

    def trace(self, action: Array) -> Trace:
        """Return the trace of ``action[..., A]``, clipped to the open interval (-1, 1)."""
        raw = _unsquashed(action)
        return self._squashed(self.base.trace(raw))

    def log_prob(self, trace: Trace) -> Array:
        """Return log-densities of the actions ``tanh(raw)``: ``[...]``."""
        return self._squashed(self.base.trace(trace.raw)).log_prob

    def log_probs(self, action: Array) -> Array:
        """Return log-densities of ``action[..., A]``, element by element: ``[..., A]``."""
        raw = _unsquashed(action)
        return self.base.log_probs(raw) - log_det_tanh(raw)

    def _squashed(self, trace: Trace) -> Trace:
        return Trace(trace.raw, trace.log_prob - jnp.sum(log_det_tanh(trace.raw), axis=-1))

    def entropy(self, key: Key) -> Array:
        """Return a one-sample estimate in nats ``[...]``; there is no closed form."""
        raw, _ = self.base.sample(key)
        return self.base.entropy() + jnp.sum(log_det_tanh(raw), axis=-1)
