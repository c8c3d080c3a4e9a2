"""Improving a policy's samples by a critic: laws in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import UsageError
from jaxrl.agents.improvement import Ascent, BestOf, Softmax, candidates
from jaxrl.nn.policies import Gaussian
from jaxrl.types import Box, Spec

KEY = jax.random.key(0)
SPEC = Spec(Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)), 10)
PARTS = [BestOf(1), Softmax(1, 0.5), Ascent(1, 1, 3, 0.0)]


def improve(part, q, actions):
    choose = jax.jit(lambda actions, key: part.improve(q, actions, key))
    return choose(actions, jax.random.key(1))  # its own noise, not that of the actions


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_one_candidate_is_the_policy_s(part):
    actions = jnp.clip(jax.random.normal(KEY, (1, 7, 2)), -1, 1)
    found = improve(part, lambda a: a.sum(-1), actions)
    np.testing.assert_array_equal(found, actions[0])


@pytest.mark.parametrize("part", [BestOf(8), Softmax(8, 0.5), Ascent(8, 4, 3, 0.1, 1.0)])
def test_a_constant_value_leaves_the_distribution_as_it_is(part):
    actions = jnp.clip(0.3 * jax.random.normal(KEY, (8, 4_000, 1)), -1, 1)
    found = improve(part, lambda a: jnp.ones(a.shape[:-1]), actions)
    assert abs(found.mean()) < 0.02 and abs(found.std() - 0.3) < 0.015


def test_softmax_of_many_candidates_is_the_tilted_policy():
    """A base policy of three actions with values of their own: pi exp(q / T)."""
    base, values, temperature = np.array([0.6, 0.3, 0.1]), jnp.array([0.0, 1.0, 2.0]), 0.8
    index = jax.random.choice(KEY, 3, (400, 4_000), p=jnp.asarray(base))
    drawn = improve(Softmax(400, temperature), lambda a: values[a], index)
    law = base * np.exp(np.asarray(values) / temperature)
    shares = np.bincount(np.asarray(drawn), minlength=3) / 4_000
    np.testing.assert_allclose(shares, law / law.sum(), atol=0.025)
    best = improve(Softmax(400, 0.0), lambda a: values[a], index)
    assert (best == 2).all()


def test_best_of_ten_normals():
    """The mean of the largest of ten is 1.54."""
    actions = jax.random.normal(KEY, (10, 20_000, 1))
    for part in (BestOf(10), Softmax(10, 0.0)):
        assert abs(improve(part, lambda a: a[..., 0], actions).mean() - 1.5388) < 0.02


def test_ascent_never_lowers_the_value_and_finds_a_top_within_the_box():
    actions = jax.random.uniform(KEY, (6, 50, 2), minval=-1, maxval=1)

    def q(a):  # steep enough that steps overshoot for some of the actions
        return -((a[..., 0] - 0.5) ** 2) - 4 * (a[..., 1] - 2) ** 2

    moved, values = jax.jit(lambda a: Ascent(6, 4, 5, 0.6).moved(q, a))(actions)
    first = jnp.sort(q(actions), axis=0)[::-1][:4]
    assert moved.shape == (4, 50, 2) and (values >= first).all() and (values > first).any()
    np.testing.assert_allclose(values, q(moved), rtol=1e-5)
    assert (jnp.abs(moved) <= 1).all()

    found = improve(Ascent(6, 2, 60, 0.1), q, actions)
    np.testing.assert_allclose(found, np.broadcast_to([0.5, 1.0], found.shape), atol=1e-3)
    with pytest.raises(UsageError, match="num_kept is 10, and there are 6 candidates; give at mos"):
        Ascent().moved(q, actions)


def test_ascent_never_leaves_the_box():
    """Not even from outside, where values may be higher."""
    moved, values = Ascent(1, 1, 3, 0.1).moved(lambda a: a.sum(-1), jnp.full((1, 4, 2), 3.0))
    np.testing.assert_array_equal(moved, 1.0)
    np.testing.assert_array_equal(values, 2.0)


def test_ascent_makes_its_steps():
    """Two steps by hand, of a value that grows all the way."""
    actions = jnp.array([[[0.1, -0.2]], [[0.4, 0.95]]])
    slope = np.array([0.5, 2.0])
    moved, _ = Ascent(2, 2, 2, 0.1).moved(lambda a: a @ slope, actions)
    by_hand = np.clip(np.asarray(actions[::-1]) + 2 * 0.1 * slope, -1, 1)
    np.testing.assert_allclose(moved, by_hand, atol=1e-6)


def test_candidates_are_independent_samples_of_every_row_within_the_box():
    """Of standard normal samples, 31.7 % are clipped."""
    policy = Gaussian(hidden_dims=(4,)).bind(SPEC)
    params = policy.init(KEY)
    draw = jax.jit(lambda obs, key: candidates(policy, params, obs, key, 5))
    found = draw(jnp.zeros((300, 3)), KEY)
    inside = found[np.abs(found) < 1]
    assert found.shape == (5, 300, 2) and len(np.unique(inside)) == inside.size
    assert np.abs(found).max() == 1 and abs(inside.size / found.size - 0.683) < 0.03
    np.testing.assert_allclose(inside.std(), 0.54, atol=0.02)
    assert draw(jnp.zeros(3), KEY).shape == (5, 2)
