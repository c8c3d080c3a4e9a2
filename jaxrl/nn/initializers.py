"""Initialisers of weights and biases that are safe under ``vmap``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.types import Array, Key

Initializer = Literal["orthogonal", "lecun", "torch"]


def orthogonal(scale: float = 1.0, iterations: int = 48) -> Callable[..., Array]:
    """Return an initialiser of (semi-)orthogonal matrices, using matrix products only.

    The polar factor of a Gaussian matrix is Haar-distributed, and Newton-Schulz iterations find it.
    The usual QR factorisation can deadlock XLA's CPU thread pool when several run at once, as they
    do under ``vmap`` over seeds.
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


def kernel_init(kind: Initializer, scale: float) -> Callable[..., Array]:
    """Return the initialiser of a layer's weights; only ``orthogonal`` uses ``scale``.

    PyTorch's default is uniform within ``1 / sqrt(inputs)``, for weights and for biases: a third of
    LeCun's variance.
    """
    if kind == "torch":
        return nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
    return orthogonal(scale) if kind == "orthogonal" else nn.initializers.lecun_uniform()


def bias_init(kind: Initializer, inputs: int) -> Callable[..., Array]:
    """Return the initialiser of a layer's biases: zeros, except with PyTorch's initialisation."""
    if kind != "torch":
        return nn.initializers.zeros

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
