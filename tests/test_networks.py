"""Activations and products of layers against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from jaxrl.nn.activations import gelu
from jaxrl.nn.products import bfloat16_product

RNG = np.random.default_rng(0)


def test_gelu_and_its_derivative_are_exact_to_float32():
    x = np.linspace(-20, 20, 40_001).astype(np.float32)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(gelu)))(x)
    exact = x.astype(np.float64)
    cdf = special.ndtr(exact)
    np.testing.assert_allclose(value, exact * cdf, rtol=4e-7, atol=4e-7)
    np.testing.assert_allclose(slope, cdf + exact * stats.norm.pdf(exact), rtol=4e-7, atol=4e-7)
    _, tangent = jax.jvp(gelu, (x,), (np.ones_like(x),))
    np.testing.assert_allclose(tangent, slope, rtol=4e-7, atol=4e-7)
    assert np.isnan(gelu(jnp.float32(np.nan)))


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def test_bfloat16_rounds_operands_and_nothing_else_forwards_and_backwards():
    x, gradient = (RNG.normal(size=(2, 3, 4, n)).astype(np.float32) for n in (5, 6))
    weights = RNG.normal(size=(2, 5, 6)).astype(np.float32)
    ensemble = jax.vmap(bfloat16_product)  # two networks at once
    out, back = jax.vjp(ensemble, x, weights)
    by_x, by_weights = back(jnp.asarray(gradient))
    a, w, g = map(rounded, (x, weights, gradient))
    for found, expected in (
        (out, np.einsum("etbi,eio->etbo", a, w)),
        (by_x, np.einsum("etbo,eio->etbi", g, w)),
        (by_weights, np.einsum("etbi,etbo->eio", a, g)),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(out - np.einsum("etbi,eio->etbo", x, weights)).max() > 1e-3


def test_gradients_of_bfloat16_gradients_round_their_operands_too():
    """As in losses that hold a gradient themselves, such as EDAC's."""

    def back(x, weights, gradient):
        return jax.vjp(bfloat16_product, x, weights)[1](gradient)

    x, by_x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    weights, by_weights = RNG.normal(size=(2, 5, 6)).astype(np.float32)
    gradient = RNG.normal(size=(3, 4, 6)).astype(np.float32)
    found = jax.vjp(back, x, weights, gradient)[1]((jnp.asarray(by_x), jnp.asarray(by_weights)))
    a, w, g, c, d = map(rounded, (x, weights, gradient, by_x, by_weights))
    expected = (g @ d.T, np.einsum("tbi,tbo->io", c, g), c @ w + a @ d)
    for mine, exact in zip(found, expected, strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, exact, rtol=1e-5, atol=1e-5)
