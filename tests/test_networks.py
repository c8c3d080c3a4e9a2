"""Activations and products of layers against numpy in float64; dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.nn.activations import gelu, mish
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.networks import MLP, ResidualMLP, apply_network, init_network
from jaxrl.nn.normalization import LayerNorm
from jaxrl.nn.policies import Deterministic, Gaussian
from jaxrl.nn.products import bfloat16_product, product
from jaxrl.types import Box, Spec

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


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


@pytest.mark.parametrize("std", ["independent", "clipped", "softplus", "exp"])
def test_every_kind_of_std_starts_at_initial_std(std):
    spec = Spec(Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)))
    policy = Gaussian(std=std, initial_std=0.1, initializer="orthogonal", head_scale=1e-3)
    policy = policy.bind(spec)
    dist = policy.dist(policy.init(KEY), jnp.ones((4, 3)))
    np.testing.assert_allclose(dist.std, 0.1, rtol=0.02)
    if std in ("clipped", "exp"):
        line = "initial_std is 10; it must be at least .* and at most 7.389"
        with pytest.raises(UsageError, match=line):
            hyper.check(policy.replace(initial_std=10.0))
    if std == "softplus":  # the logarithm of expm1(100) is no float32
        wide = policy.replace(initial_std=100.0)
        np.testing.assert_allclose(wide.dist(wide.init(KEY), jnp.ones((4, 3))).std, 100, rtol=0.02)


@pytest.mark.parametrize(("inputs", "outputs"), [(70, 3), (3, 70)])
def test_products_and_their_derivatives_are_those_of_matmul(inputs, outputs):
    x, x_tangent = RNG.normal(size=(2, 2, 4, inputs)).astype(np.float32)
    weights, weights_tangent = RNG.normal(size=(2, 2, inputs, outputs)).astype(np.float32)
    gradient = RNG.normal(size=(2, 4, outputs)).astype(np.float32)
    arrays = x, x_tangent, weights, weights_tangent, gradient
    x, x_tangent, weights, weights_tangent, gradient = map(jnp.asarray, arrays)

    def derivatives(multiply):
        """Of two networks at once: value, tangent, gradients, and a gradient of gradients."""
        multiply = jax.vmap(multiply)

        def penalty(x, weights):
            by_x, by_weights = jax.vjp(multiply, x, weights)[1](gradient)
            return jnp.sum(by_x**2 * x) + jnp.sum(jnp.sin(by_weights) * weights)

        return (
            *jax.jvp(multiply, (x, weights), (x_tangent, weights_tangent)),
            jax.vjp(multiply, x, weights)[1](gradient),
            jax.vjp(lambda weights: multiply(x, weights), weights)[1](gradient),
            jax.vjp(lambda x: multiply(x, weights), x)[1](gradient),
            jax.grad(penalty, argnums=(0, 1))(x, weights),
        )

    found, expected = (jax.jit(lambda f=f: derivatives(f))() for f in (product, jnp.matmul))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )


def test_mish_and_its_derivative_are_exact_to_float32():
    x = np.linspace(-100, 100, 40_001).astype(np.float32)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(mish)))(x)
    exact = x.astype(np.float64)
    gate = np.tanh(np.logaddexp(exact, 0))
    np.testing.assert_allclose(value, exact * gate, rtol=4e-7, atol=4e-7)
    expected = gate + exact * (1 - gate**2) * special.expit(exact)
    np.testing.assert_allclose(slope, expected, rtol=4e-7, atol=4e-7)
    assert np.isnan(mish(jnp.float32(np.nan))) and mish(jnp.float32(np.inf)) == np.inf


def test_layer_norm_and_its_derivatives_are_those_of_flax():
    x = jnp.asarray(3.0 * RNG.normal(size=(2, 7, 9)) + 1.0, jnp.float32)
    own, reference = LayerNorm(), nn.LayerNorm()
    params = jax.tree.map(lambda p: p + RNG.normal(size=p.shape), own.init(KEY, x))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, reference.init(KEY, x))

    def first(norm, x):
        slopes = jax.grad(lambda *args: jnp.sum(jnp.sin(norm.apply(*args))), (0, 1))
        return slopes(params, x)

    def second(norm):
        return jax.grad(lambda x: jnp.sum(jnp.sin(first(norm, x)[1])))(x)

    for f in (lambda norm: norm.apply(params, x), lambda norm: first(norm, x), second):
        same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(same, f(own), f(reference))


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


SPEC = Spec(Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)), 10)


def test_dropout_drops_a_share_and_keeps_the_mean():
    """Of one hidden layer, each row has its own zeros; the others grow by 1 / (1 - rate)."""
    network = MLP((400,), None, "relu", "lecun")
    params, x = init_network(network, KEY, 4), jnp.ones((50, 4))
    plain = np.asarray(apply_network(network, params, x))[0]

    @jax.jit
    def dropped(rate):
        return apply_network(network.clone(dropout=rate), params, x, dropout_key=KEY)

    found, alive = np.asarray(dropped(0.3)), plain > 0
    kept = found[:, alive] > 0
    assert abs(kept.mean() - 0.7) < 0.02 and len(np.unique(kept, axis=0)) == 50
    expected = np.broadcast_to(plain[alive], kept.shape)[kept] / 0.7
    np.testing.assert_allclose(found[:, alive][kept], expected, rtol=1e-5)
    np.testing.assert_allclose(dropped(0.0)[0], plain, rtol=1e-6)
    assert not dropped(1.0).any()


def test_residual_blocks_drop_before_their_norms():
    """With all inputs of the blocks dropped, they add what their norms' biases make: 0."""
    network = ResidualMLP((6, 6), 2, "relu", "lecun", dropout=1.0)
    params, x = init_network(network, KEY, 4), jnp.ones((3, 4))
    found = apply_network(network, params, x, dropout_key=KEY)
    x = np.maximum(x @ params["inputs"]["kernel"] + params["inputs"]["bias"], 0)
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("family", [Gaussian, Deterministic, Diffusion])
def test_only_imitation_has_dropout(family):
    policy = family(hidden_dims=(16, 16)).bind(SPEC)
    params, obs, action = policy.init(KEY), jnp.ones((4, 3)), jnp.zeros((4, 2))

    @jax.jit
    def found(rate):
        dropping = policy if rate is None else policy.replace(dropout=rate)
        loss = dropping.fit_loss(params, obs, action, KEY)
        gradient = jax.grad(lambda p: dropping.fit_loss(p, obs, action, KEY).sum())(params)
        return loss, dropping.sample(params, obs, KEY)[0], gradient

    loss, sample, _ = found(None)
    many, samples, gradients = jax.jit(jax.vmap(found))(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(many[0], loss, rtol=1e-5)
    assert (np.abs(many[1] - loss) > 1e-4).all()
    np.testing.assert_allclose(samples, np.broadcast_to(sample, samples.shape), rtol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
