"""TD3: updates against numpy, DDPG as its limit, exploration, and options."""

from __future__ import annotations

import math

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import TD3, UsageError

KEY = jax.random.key(0)
SMALL = {"hidden": (5,), "gamma": 0.9, "tau": 0.3}
RATES = {"learning_rate": 0.02, "actor_learning_rate": 0.03}


def action_of(actor, obs, agent):
    return np.tanh(ref.mlp(actor["params"], obs, agent.activation))


def q_of(critic, obs, action, agent):
    return ref.critics(critic, obs, action, agent.activation)[..., 0]


# --- against numpy ------------------------------------------------------------------------------


def td3_step(learner, batch, noise, actor):
    """Section 4.1 of the reference: critics; and if the actor's turn, it and all slow copies.

    Without a slow actor, section 4.2: slow critics follow on every step.
    """
    agent, params = learner.agent, learner.params
    source = learner.targets if agent.target_actor else params
    epsilon = np.clip(agent.policy_noise * noise["next"], -agent.noise_clip, agent.noise_clip)
    next_action = np.clip(action_of(source["actor"], batch.next_obs, agent) + epsilon, -1.0, 1.0)
    next_q = q_of(learner.targets["critic"], batch.next_obs, next_action, agent)
    y = batch.reward + ref.discount(batch, agent.gamma) * ref.least_of_subset(next_q, noise, agent)

    def critic_loss(critic):
        values = q_of(critic, batch.obs, batch.action, agent)
        return sum(((one - y) ** 2).mean() for one in values)

    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.learning_rate)
    if not actor:
        if not agent.target_actor:
            learner.follow()
        return

    def actor_loss(actor):
        values = q_of(params["critic"], batch.obs, action_of(actor, batch.obs, agent), agent)
        reduced = {"first": values[0], "min": ref.least(values), "mean": values.mean(0)}
        return -reduced[agent.policy_value].mean()

    slopes = ref.gradient(actor_loss, params["actor"])
    learner.step("actor", slopes, agent.actor_learning_rate)
    learner.follow()


def ddpg_step(learner, batch, noise, actor):
    """DDPG: ``y = r + gamma Q'(s', mu'(s'))``; ``mu`` climbs ``Q(s, mu(s))``; slow copies."""
    agent, params, slow = learner.agent, learner.params, learner.targets
    next_action = action_of(slow["actor"], batch.next_obs, agent)
    next_q = q_of(slow["critic"], batch.next_obs, next_action, agent)[0]
    y = batch.reward + ref.discount(batch, agent.gamma) * next_q

    def critic_loss(critic):
        return ((q_of(critic, batch.obs, batch.action, agent)[0] - y) ** 2).mean()

    def actor_loss(actor):
        return -q_of(params["critic"], batch.obs, action_of(actor, batch.obs, agent), agent).mean()

    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.learning_rate)
    slopes = ref.gradient(actor_loss, params["actor"])
    learner.step("actor", slopes, agent.actor_learning_rate)
    learner.follow()


@pytest.mark.parametrize(
    ("reference", "options"),
    [
        (td3_step, {}),
        (td3_step, {"ensemble": 3, "policy_value": "min", "target_actor": False}),
        (td3_step, {"ensemble": 3, "subset": 2}),
        (
            td3_step,
            {"policy_value": "mean", "layer_norm": True, "max_grad_norm": 0.5}
            | {"activation": "tanh", "hidden": (4, 3)},
        ),
        (ddpg_step, {"policy_noise": 0.0, "delay": 1, "ensemble": 1}),
    ],
    ids=["defaults", "FastTD3's", "two of three", "mean of two normalised", "DDPG"],
)
def test_updates_equal_a_numpy_transcription(reference, options):
    agent = TD3(**(SMALL | RATES | {"policy_noise": 0.4} | options))
    assert TD3().delay == 2

    def assert_clipped(noise):
        assert np.any(np.abs(0.4 * noise["next"]) > agent.noise_clip)

    with jax.enable_x64(True):
        state = ref.state(agent)
        ref.Learner(agent, state).assert_follows(state, reference, assert_clipped)


# --- acting -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    """Of a policy with actions well inside [-1, 1]."""
    agent = TD3(**SMALL)
    state = ref.state(agent)
    return state._replace(params=jax.tree.map(lambda x: 0.3 * x, state.params))


def test_exploration_is_normal_noise_on_the_greedy_action_within_bounds(state):
    agent = TD3(**SMALL, exploration=0.3)
    obs = jax.random.normal(jax.random.key(1), (5, ref.OBS))
    noise = agent.draw(state, obs, jax.random.key(2), 4000)
    assert noise.shape == (4000, 5, ref.ACTION)
    assert stats.kstest(np.ravel(noise), stats.norm(0.0, 0.3).cdf).pvalue > 1e-4
    actor = jax.tree.map(lambda x: np.asarray(x, float), state.params["actor"])
    expected = action_of(actor, np.asarray(obs, float), agent)
    greedy, extras = agent.act(state, obs, KEY, "greedy")
    assert extras == {}
    np.testing.assert_allclose(greedy, expected, rtol=1e-4, atol=1e-6)
    actions, _ = jax.vmap(lambda n: agent.act(state, obs, n, "explore"))(noise)
    np.testing.assert_allclose(actions, np.clip(expected + noise, -1, 1), rtol=1e-4, atol=1e-6)
    assert np.abs(actions).max() == 1.0
    by_key, _ = agent.act(state, obs, jax.random.key(3), "explore")
    ahead, _ = agent.act(state, obs, agent.draw(state, obs, jax.random.key(3), 1)[0], "explore")
    np.testing.assert_array_equal(by_key, ahead)


def test_every_environment_has_a_standard_deviation_of_its_own(state):
    low, high, steps = 0.1, 0.5, 2000
    agent = TD3(**SMALL, exploration=low, exploration_max=high)
    obs = jnp.zeros((300, ref.OBS))
    noise = np.asarray(agent.draw(state, obs, KEY, steps))
    std = noise.std(axis=0)
    np.testing.assert_allclose(std[:, 0], std[:, 1], rtol=0.15)  # of all elements the same
    of_row = np.sqrt((noise**2).mean(axis=(0, 2)))
    error = 5 * of_row / (2 * steps * ref.ACTION) ** 0.5
    assert np.all(of_row > low - error) and np.all(of_row < high + error)
    assert stats.kstest(of_row, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    half = steps // 2  # and all along
    first, second = (np.sqrt((x**2).mean(axis=(0, 2))) for x in (noise[:half], noise[half:]))
    np.testing.assert_allclose(first, second, rtol=0.15)
    again = np.asarray(agent.draw(state, obs, jax.random.key(1), steps))
    other = np.sqrt((again**2).mean(axis=(0, 2)))
    assert abs(np.corrcoef(of_row, other)[0, 1]) < 0.3  # the next draw gives others


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be more than 0 and finite"),
        ({"actor_learning_rate": 0.0}, "actor_learning_rate is 0; it must be more than 0"),
        ({"gamma": -0.1}, "gamma is -0.1; it must be at least 0 and at most 1"),
        ({"tau": 1.5}, "tau is 1.5; it must be at least 0 and at most 1"),
        ({"exploration": -0.1}, "exploration is -0.1; it must be at least 0"),
        ({"exploration_max": -1.0}, "exploration_max is -1; it must be at least 0"),
        ({"policy_noise": -0.2}, "policy_noise is -0.2; it must be at least 0"),
        ({"noise_clip": -0.5}, "noise_clip is -0.5; it must be at least 0"),
        ({"delay": 0}, "delay is 0; it must be at least 1"),
        ({"ensemble": 0}, "ensemble is 0; it must be at least 1"),
        ({"subset": 3}, "subset is 3; of an ensemble of 2 it must be at least 1 and at most 2"),
        ({"policy_value": "max"}, "policy_value is 'max'; .*choose|mean"),
    ],
)
def test_hyper_parameters_that_cannot_work_are_refused(options, message):
    TD3().check(256)
    with pytest.raises(UsageError, match=message) as error:
        TD3(**options).check(256)
    assert "\n" not in str(error.value)
