"""Matrix products of layers, and the precision used to compute them."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrl.types import Array

ComputeDtype = Literal["float32", "bfloat16"]

NARROW = 64  # layers with at most this many outputs compute the weight gradient transposed


@jax.custom_jvp
def product(x: Array, weights: Array) -> Array:
    """Return ``x[..., I] @ weights[I, O]``: ``[..., O]``, with a fast weight gradient.

    XLA's CPU kernel is slow for a transposed matrix times a matrix with few columns. With few
    outputs, the weight gradient is therefore computed transposed, as ``(gradient.T @ x).T``.
    """
    return _last_by_first(x, weights)


def _product_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, weights), (x_tangent, weights_tangent) = primals, tangents
    out = product(x, weights)
    tangent = jnp.zeros_like(out)
    if not isinstance(x_tangent, SymbolicZero):
        tangent = tangent + product(x_tangent, weights)
    if not isinstance(weights_tangent, SymbolicZero):
        tangent = tangent + _turned_product(x, weights_tangent)
    return out, tangent


product.defjvp(_product_jvp, symbolic_zeros=True)


def dense_product(x: Array, weights: Array, *_: Any, **__: Any) -> Array:
    """``product`` as ``flax.linen.Dense`` calls it.

    Leading axes are merged: with several, XLA would copy the transposed gradient of the product.
    """
    if x.ndim < 3:
        return product(x, weights)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return product(rows, weights).reshape(*x.shape[:-1], weights.shape[-1])


def _turned_product(x: Array, weights: Array) -> Array:
    """Return ``x @ weights`` so that its transpose, the weight gradient, is fast."""
    if weights.shape[1] > NARROW:
        return _last_by_first(x, weights)
    turned = jax.lax.optimization_barrier(weights.T)
    return jax.lax.dot_general(x, turned, (((x.ndim - 1,), (1,)), ((), ())))


def _last_by_first(x: Array, weights: Array) -> Array:
    return jax.lax.dot_general(x, weights, (((x.ndim - 1,), (0,)), ((), ())))


@jax.custom_vjp
def bfloat16_product(x: Array, weights: Array) -> Array:
    """Return ``x[..., I] @ weights[I, O]`` with operands rounded to bfloat16: ``[..., O]``.

    Products are accumulated and returned in float32, in the forward and backward passes; bfloat16
    has eight bits of precision.
    """
    return _contract(x, weights, (x.ndim - 1,), (0,))


@jax.custom_vjp
def _by_inputs(gradient: Array, weights: Array) -> Array:
    """The product's input gradient: ``gradient[..., O] @ weights[I, O].T``."""
    return _contract(gradient, weights, (gradient.ndim - 1,), (1,))


@jax.custom_vjp
def _by_weights(x: Array, gradient: Array) -> Array:
    """The product's weight gradient ``[I, O]``, from ``x[..., I]`` and ``gradient[..., O]``."""
    leading = tuple(range(gradient.ndim - 1))
    inputs = jnp.moveaxis(x.astype(jnp.bfloat16), -1, 0)
    if jax.default_backend() == "cpu":
        # XLA's kernels for a product without a transpose are faster there, the copy included.
        inputs = jax.lax.optimization_barrier(inputs)
    return _contract(inputs, gradient, tuple(axis + 1 for axis in leading), leading)


def _with_operands(product: Any) -> Any:
    """Return the forward pass of a product that keeps its operands."""
    return lambda a, b: (product(a, b), (a, b))


# The gradients of each product are products of the other two kinds, so losses that contain a
# gradient need no other kinds: JAX's own rules would multiply float32 by bfloat16, and round
# results.
bfloat16_product.defvjp(
    _with_operands(bfloat16_product),
    lambda operands, g: (_by_inputs(g, operands[1]), _by_weights(operands[0], g)),
)
_by_inputs.defvjp(
    _with_operands(_by_inputs),
    lambda operands, g: (bfloat16_product(g, operands[1]), _by_weights(g, operands[0])),
)
_by_weights.defvjp(
    _with_operands(_by_weights),
    lambda operands, g: (_by_inputs(operands[1], g), bfloat16_product(operands[0], g)),
)


def _contract(x: Array, y: Array, x_axes: tuple[int, ...], y_axes: tuple[int, ...]) -> Array:
    operands = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    axes = ((x_axes, y_axes), ((), ()))
    return jax.lax.dot_general(*operands, axes, preferred_element_type=jnp.float32)


def dot_general(compute_dtype: ComputeDtype) -> Any:
    """Return the product for ``flax.linen.Dense``; None is flax's default."""
    if compute_dtype == "bfloat16":
        return lambda x, weights, *_, **__: bfloat16_product(x, weights)
    if jax.default_backend() == "cpu":
        return dense_product
    return None
