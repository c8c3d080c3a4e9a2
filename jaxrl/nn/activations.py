"""Activations of hidden layers, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.types import Array

Activation = Literal["tanh", "relu", "swish", "elu", "gelu", "mish"]


def again(x: Array) -> Array:
    """Return ``x``, from which XLA computes anew what it has computed from ``x`` itself.

    A slope then shares no exponential with the value. It would be written to memory between the
    two passes, which takes longer on a CPU than a second one in the loop that needs it.
    """
    return jax.lax.optimization_barrier(x)


def normal_cdf(x: Array) -> tuple[Array, Array]:
    """Return the cumulative distribution function and the density of a standard normal at ``x``.

    Errors of the first are below 3e-7. Both share one exponential: ``1 - cdf`` is a polynomial
    times the density. (Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 7.1.26.)
    """
    size = jnp.abs(x) * math.sqrt(0.5)
    exponential = jnp.exp(-size * size)
    t = 1.0 / (1.0 + 0.3275911 * size)
    polynomial = jnp.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = coefficient + t * polynomial
    tail = 0.5 * t * polynomial * exponential
    return jnp.where(x > 0, 1.0 - tail, tail), exponential / math.sqrt(2 * math.pi)


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Return ``x`` times the standard normal's distribution function at ``x``, elementwise.

    (Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", without their approximations.) XLA's
    ``erf`` takes three times as long on a CPU, and once more for the gradient.
    """
    return x * normal_cdf(x)[0]


@gelu.defjvp
def _gelu_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    cdf, density = normal_cdf(again(x))
    return gelu(x), (cdf + x * density) * tangent


def _mish_parts(x: Array) -> tuple[Array, Array]:
    """Return ``e^x`` and ``tanh(log(1 + e^x))``; both stay finite, as the latter is 1 early."""
    exponential = jnp.exp(jnp.minimum(x, 20.0))
    n = exponential * (exponential + 2.0)
    return exponential, n / (n + 2.0)


@jax.custom_jvp
def mish(x: Array) -> Array:
    """Return ``x tanh(log(1 + e^x))``, elementwise.

    (Misra 2019, "Mish: A Self Regularized Non-Monotonic Activation Function".) As ``tanh(log y)``
    is ``(y^2 - 1) / (y^2 + 1)``, one exponential and a division do, for the derivative too.
    """
    return x * _mish_parts(x)[1]


@mish.defjvp
def _mish_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    exponential, gate = _mish_parts(again(x))
    rest = 2.0 / (exponential * (exponential + 2.0) + 2.0)  # 1 - gate, without cancellation
    slope = gate + x * exponential * (exponential + 1.0) * jnp.square(rest)
    return mish(x), slope * tangent


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "swish": nn.swish,
    "elu": nn.elu,
    "gelu": gelu,
    "mish": mish,
}
