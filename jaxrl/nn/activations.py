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
    cdf, density = normal_cdf(x)
    return x * cdf, (cdf + x * density) * tangent


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "swish": nn.swish,
    "elu": nn.elu,
    "gelu": gelu,
    "mish": jax.nn.mish,
}
