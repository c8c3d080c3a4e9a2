"""Matrix products of layers, and the precision in which they are computed."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl.types import Array

ComputeDtype = Literal["float32", "bfloat16"]


@jax.custom_vjp
def bfloat16_product(x: Array, weights: Array) -> Array:
    """Return ``x[..., I] @ weights[I, O]`` of operands rounded to bfloat16: ``[..., O]``.

    Products are accumulated and returned in float32, forwards and backwards; bfloat16 has eight
    bits of precision.
    """
    return _contract(x, weights, (x.ndim - 1,), (0,))


def _forward(x: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    return bfloat16_product(x, weights), (x, weights)


def _backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weights = operands
    last, leading = gradient.ndim - 1, tuple(range(gradient.ndim - 1))
    inputs = jnp.moveaxis(x.astype(jnp.bfloat16), -1, 0)
    if jax.default_backend() == "cpu":
        # XLA's kernels for a product without a transpose are faster there, the copy included.
        inputs = jax.lax.optimization_barrier(inputs)
    by_weights = _contract(inputs, gradient, tuple(axis + 1 for axis in leading), leading)
    return _contract(gradient, weights, (last,), (1,)), by_weights


bfloat16_product.defvjp(_forward, _backward)


def _contract(x: Array, y: Array, x_axes: tuple[int, ...], y_axes: tuple[int, ...]) -> Array:
    operands = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    axes = ((x_axes, y_axes), ((), ()))
    return jax.lax.dot_general(*operands, axes, preferred_element_type=jnp.float32)


def dot_general(compute_dtype: ComputeDtype) -> Any:
    """Return the product for ``flax.linen.Dense``; None is its usual one."""
    if compute_dtype == "float32":
        return None
    return lambda x, weights, *_, **__: bfloat16_product(x, weights)
