"""Initialisers of weights and biases that are safe under ``vmap``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.types import Array, Key

Initializer = Literal["orthogonal", "lecun", "torch", "xavier", "small_head"]
SMALL_HEAD = 3e-3  # the bound of a head's weights and biases
SMALL_BIAS = 0.1  # the biases of hidden layers before a small head


def orthogonal(scale: float = 1.0, iterations: int = 48) -> Callable[..., Array]:
    """Return an initialiser of (semi-)orthogonal matrices that uses only matrix products.

    The polar factor of a Gaussian matrix is Haar-distributed, and Newton-Schulz iterations compute
    it. The usual QR factorisation can deadlock XLA's CPU thread pool when several run at once, as
    under ``vmap`` over seeds.
    """

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        wide = rows < columns
        x = jax.random.normal(key, (columns, rows) if wide else (rows, columns))
        x = x / jnp.linalg.norm(x)

        def newton_schulz(_: int, x: Array) -> Array:
            return 1.5 * x - 0.5 * x @ (x.T @ x)

        x = jax.lax.fori_loop(0, iterations, newton_schulz, x)
        return (scale * (x.T if wide else x)).reshape(shape).astype(dtype)

    return init


def kernel_init(kind: Initializer, scale: Any, head: bool = False) -> Callable[..., Array]:
    """Return the initialiser of a layer's weights.

    ``scale`` is the gain of orthogonal matrices; for a small head it multiplies the bound.
    PyTorch's default, for weights and biases, is uniform within ``1 / sqrt(inputs)``: a third of
    LeCun's variance. ``small_head`` uses it for hidden layers, and uniform within 0.003 for the
    head, as in the code of An et al. 2021 ("Uncertainty-Based Offline Reinforcement Learning with
    Diversified Q-Ensemble").
    """
    if kind == "small_head" and head:
        return _uniform(SMALL_HEAD * scale)
    if kind in ("torch", "small_head"):
        return nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
    if kind == "xavier":
        return nn.initializers.xavier_uniform()
    return orthogonal(scale) if kind == "orthogonal" else nn.initializers.lecun_uniform()


def bias_init(
    kind: Initializer, inputs: int, scale: Any = 1.0, head: bool = False
) -> Callable[..., Array]:
    """Return the initialiser of a layer's biases: zeros, except with ``torch`` and ``small_head``.

    ``small_head`` has biases of 0.1 in hidden layers.
    """
    if kind == "torch":
        return _uniform(inputs**-0.5)
    if kind == "small_head":
        return _uniform(SMALL_HEAD * scale) if head else nn.initializers.constant(SMALL_BIAS)
    return nn.initializers.zeros


def _uniform(bound: Any) -> Callable[..., Array]:
    """Return an initialiser that is uniform within ``bound`` of 0."""

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
