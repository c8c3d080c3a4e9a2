"""Activations of hidden layers, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.types import Array

Activation = Literal["tanh", "relu", "swish", "elu", "gelu", "mish"]


# 1 - Phi(x) = p(x)^-8 / 2 for x >= 0, where Phi is the standard normal's distribution function
# (Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 7.1.28). The coefficients of p
# are a least-squares fit on [0, 6], reweighted until the largest errors are equal.
_TAIL = (
    1.0,
    0.099734835,
    0.04477126,
    0.008640192,
    0.00091443525,
    0.00016037031,
    7.760272e-05,
    -1.25490615e-05,
    2.5785987e-06,
)
_TAIL_SLOPE = tuple(i * c for i, c in enumerate(_TAIL))[1:]


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Return ``x`` times the standard normal's distribution function at ``x``, elementwise.

    (Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", without their approximations.) Errors
    are below 5e-7. XLA's ``erf`` takes three times as long on a CPU, and again for the gradient;
    here, value and gradient together need only polynomials and one division.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    value, slope = _gelu_and_slope(primals[0])
    return value, slope * tangents[0]


def _gelu_and_slope(x: Array) -> tuple[Array, Array]:
    """Return the value and the derivative of the same approximation."""
    size = jnp.minimum(jnp.abs(x), 12.0)  # the tail is 0 beyond this, and powers stay finite
    inverse = 1.0 / _polynomial(_TAIL, size)
    fourth = jnp.square(jnp.square(inverse))
    tail = 0.5 * fourth * fourth
    tail_slope = tail * (1.0 - 8.0 * size * _polynomial(_TAIL_SLOPE, size) * inverse)
    return jnp.where(x > 0, x - x * tail, x * tail), jnp.where(x > 0, 1.0 - tail_slope, tail_slope)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Return ``sum_i coefficients[i] x^i``."""
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _mish_parts(x: Array) -> tuple[Array, Array]:
    """Return ``e^x`` and ``tanh(log(1 + e^x))``; both stay finite, as the latter soon reaches 1."""
    exponential = jnp.exp(jnp.minimum(x, 20.0))
    n = exponential * (exponential + 2.0)
    return exponential, n / (n + 2.0)


@jax.custom_jvp
def mish(x: Array) -> Array:
    """Return ``x tanh(log(1 + e^x))``, elementwise.

    (Misra 2019, "Mish: A Self Regularized Non-Monotonic Activation Function".) As ``tanh(log y)``
    is ``(y^2 - 1) / (y^2 + 1)``, one exponential and one division suffice, even for the derivative.
    """
    return x * _mish_parts(x)[1]


@mish.defjvp
def _mish_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    # The barrier makes XLA recompute the exponential. Value and slope are separate passes, and
    # storing it between them takes longer on a CPU.
    exponential, gate = _mish_parts(jax.lax.optimization_barrier(x))
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
