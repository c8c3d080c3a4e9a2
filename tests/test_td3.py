"""TD3: updates against numpy, DDPG as its limit, exploration, and options."""

from __future__ import annotations

import functools
import math

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import TD3, TD3BC, ReBRAC, UsageError, VectorEnv, make
from jaxrl.agents import protocol
from jaxrl.nn.flow import Flow
from jaxrl.nn.policies import AutoPolicy, TanhGaussian
from jaxrl.training.rollout import rollout

KEY = jax.random.key(0)
RATES = {"critic_learning_rate": 0.02, "actor_learning_rate": 0.03}


def action_of(actor, obs, agent):
    return np.tanh(ref.mlp(actor["network"], obs, agent.policy.activation))


def q_of(critic, obs, action, agent):
    return ref.critics(critic, obs, action, agent)[..., 0]


# --- against numpy ------------------------------------------------------------------------------


def td3_step(learner, batch, noise, update_actor):
    """Critics; and if ``update_actor``, the actor and all target networks.

    Without a target actor, target critics are updated on every step.
    """
    agent, params = learner.agent, learner.params
    source = learner.targets if agent.target_actor else params
    epsilon = np.clip(agent.policy_noise * noise["next"], -agent.noise_clip, agent.noise_clip)
    next_action = np.clip(action_of(source["actor"], batch.next_obs, agent) + epsilon, -1.0, 1.0)
    next_q = q_of(learner.targets["critic"], batch.next_obs, next_action, agent)
    y = batch.reward + batch.discount * next_q[noise["critics"]].min(0)

    def critic_loss(critic):
        values = q_of(critic, batch.obs, batch.action, agent)
        return sum(((one - y) ** 2).mean() for one in values)

    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.critic_learning_rate)
    if not update_actor:
        if not agent.target_actor:
            learner.update_targets()
        return

    def actor_loss(actor):
        values = q_of(params["critic"], batch.obs, action_of(actor, batch.obs, agent), agent)
        reduced = {"first": values[0], "min": ref.least(values), "mean": values.mean(0)}
        return -reduced[agent.actor_q].mean()

    slopes = ref.gradient(actor_loss, params["actor"])
    learner.step("actor", slopes, agent.actor_learning_rate)
    learner.update_targets()


def ddpg_step(learner, batch, noise, update_actor):
    """DDPG: ``y = r + gamma Q'(s', mu'(s'))``; ``mu`` maximises ``Q(s, mu(s))``; targets."""
    agent, params, targets = learner.agent, learner.params, learner.targets
    next_action = action_of(targets["actor"], batch.next_obs, agent)
    next_q = q_of(targets["critic"], batch.next_obs, next_action, agent)[0]
    y = batch.reward + batch.discount * next_q

    def critic_loss(critic):
        return ((q_of(critic, batch.obs, batch.action, agent)[0] - y) ** 2).mean()

    def actor_loss(actor):
        return -q_of(params["critic"], batch.obs, action_of(actor, batch.obs, agent), agent).mean()

    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.critic_learning_rate)
    slopes = ref.gradient(actor_loss, params["actor"])
    learner.step("actor", slopes, agent.actor_learning_rate)
    learner.update_targets()


@pytest.mark.parametrize(
    ("reference", "options"),
    [
        (td3_step, {}),
        (td3_step, {"critic.num_critics": 3, "actor_q": "min", "target_actor": False}),
        (td3_step, {"critic.num_critics": 3, "num_min_critics": 2}),
        (
            td3_step,
            {"actor_q": "mean", "critic.layer_norm": True, "optimizer.max_grad_norm": 0.5}
            | {f"{part}.activation": "tanh" for part in ("policy", "critic")}
            | {f"{part}.hidden_dims": (4, 3) for part in ("policy", "critic")},
        ),
        (ddpg_step, {"policy_noise": 0.0, "policy_delay": 1, "critic.num_critics": 1}),
    ],
    ids=["defaults", "FastTD3", "two of three", "mean of two with layer norm", "DDPG"],
)
def test_update_matches_numpy(reference, options):
    agent = ref.small(TD3, RATES | {"policy_noise": 0.4} | options)
    assert TD3().policy_delay == 2

    def assert_clipped(noise):
        clipped.append(np.any(np.abs(0.4 * noise["next"]) > agent.noise_clip))

    clipped = []
    with jax.enable_x64(True):
        state = ref.state(agent)
        ref.Learner(agent, state).assert_matches(state, reference, see=assert_clipped)
    assert all(clipped) and len(clipped) == 4


# --- acting -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    """A state whose policy has actions well inside [-1, 1]."""
    state = ref.state(ref.small(TD3))
    return ref.with_params(state, actor=jax.tree.map(lambda x: 0.3 * x, state.actor.params))


def test_exploration_is_normal_noise_on_the_greedy_action(state):
    agent = ref.small(TD3, {"exploration_noise": 0.3})
    assert protocol.init_carry(agent, KEY, 5) == ()
    obs = jax.random.normal(jax.random.key(1), (5, ref.OBS))
    actor = jax.tree.map(lambda x: np.asarray(x, float), state.actor.params)
    expected = action_of(actor, np.asarray(obs, float), agent)
    greedy, carry, extras = agent.act(state, (), obs, KEY, "greedy")
    assert (carry, extras) == ((), {})
    np.testing.assert_allclose(greedy, expected, rtol=1e-4, atol=1e-6)

    keys = jax.random.split(jax.random.key(2), 4000)
    actions, _, _ = jax.vmap(lambda key: agent.act(state, (), obs, key, "explore"))(keys)
    noise = 0.3 * jax.vmap(lambda key: jax.random.normal(key, greedy.shape))(keys)
    np.testing.assert_allclose(actions, np.clip(expected + noise, -1, 1), rtol=1e-4, atol=1e-6)
    assert np.abs(actions).max() == 1.0
    # Whatever the draws are: the distribution is a normal, whose tails are at the bounds.
    for n in range(5):
        for a in range(ref.ACTION):
            normal, found = stats.norm(expected[n, a], 0.3), np.asarray(actions[:, n, a], float)
            inside = found[np.abs(found) < 1]
            low, high = normal.cdf([-1.0, 1.0])
            assert stats.kstest((normal.cdf(inside) - low) / (high - low), "uniform").pvalue > 1e-4
            for tail, share in ((found == -1, low), (found == 1, 1 - high)):
                assert stats.binomtest(int(tail.sum()), 4000, share).pvalue > 1e-4


# --- exploration noise that differs between episodes --------------------------------------------

LOW, HIGH = 0.05, 0.25
EPISODE = 400  # steps
SEVERAL = {"exploration_noise": LOW, "exploration_noise_max": HIGH}


@functools.cache
def explorer(num_envs, max_steps):
    """A rollout of TD3 whose actions are its noise: ``run(env_state, carry, key, steps)``."""
    env = VectorEnv(make("probe/time_limit", continuous=True, max_steps=max_steps), num_envs)
    agent = ref.agent_of(TD3, SEVERAL | {"policy.hidden_dims": (2,)}).bind(env.spec)
    state = agent.init(KEY)
    state = ref.with_params(state, actor=jax.tree.map(jnp.zeros_like, state.actor.params))

    @functools.partial(jax.jit, static_argnums=3)
    def run(env_state, carry, key, steps):
        return rollout(agent, state, env, env_state, carry, key, steps)[:3]

    return run, env.reset(KEY), protocol.init_carry(agent, jax.random.key(1), num_envs)


def test_deviations_are_uniform_between_the_two_options(state):
    agent = ref.small(TD3, SEVERAL)
    std = agent.init_carry(KEY, 2000)
    assert std.shape == (2000, 1) and std.min() >= LOW and std.max() <= HIGH
    assert stats.kstest(np.ravel(std), stats.uniform(LOW, HIGH - LOW).cdf).pvalue > 1e-3
    other = agent.init_carry(jax.random.key(1), 2000)
    assert abs(np.corrcoef(np.ravel(std), np.ravel(other))[0, 1]) < 5 / 2000**0.5

    # Greedy actions need no deviation; the others have that of their row, and keep it.
    obs = jnp.zeros((2000, ref.OBS))
    greedy, same, _ = agent.act(state, std, obs, KEY, "greedy")
    np.testing.assert_array_equal(same, std)
    for mode in ("explore", "sample"):
        actions, same, _ = agent.act(state, std, obs, KEY, mode)
        np.testing.assert_array_equal(same, std)
        inside = np.all(np.abs(actions) < 1, axis=1)
        noise = np.asarray((actions - greedy) / std)[inside]
        assert stats.kstest(np.ravel(noise), "norm").pvalue > 1e-3


def test_deviation_is_constant_within_an_episode_and_redrawn_when_it_ends():
    """One step at a time, with episodes of 3 steps that do not end at once."""
    run, env_state, carry = explorer(64, 3)
    env_state = env_state._replace(steps=jnp.arange(64, dtype=jnp.int32) % 3)
    redrawn = []
    for key in jax.random.split(KEY, 7):
        before = carry
        env_state, carry, steps = run(env_state, carry, key, 1)
        np.testing.assert_array_equal(steps.carry, before)  # before the first step
        ended = np.asarray(steps.terminated | steps.truncated)[0]
        assert 0 < ended.sum() < 64
        np.testing.assert_array_equal(carry[~ended], before[~ended])
        assert np.all(carry[ended] != before[ended])
        assert carry.min() >= LOW and carry.max() <= HIGH
        redrawn.append(carry[ended])
    redrawn = np.ravel(np.concatenate(redrawn))
    assert len(np.unique(redrawn)) == len(redrawn)
    assert stats.kstest(redrawn, stats.uniform(LOW, HIGH - LOW).cdf).pvalue > 1e-3


def test_actions_of_an_episode_have_its_deviation():
    """In one rollout over an episode and all but the last step of the next."""
    run, env_state, first = explorer(50, EPISODE)
    _, second, steps = run(env_state, first, KEY, 2 * EPISODE - 1)
    noise = np.asarray(steps.action)[..., 0]
    assert np.all(np.asarray(steps.truncated)[EPISODE - 1]) and steps.truncated.sum() == 50
    for std, rows in ((first, noise[:EPISODE]), (second, noise[EPISODE:])):
        found = np.sqrt((rows**2).mean(0))
        np.testing.assert_allclose(found / std[:, 0], 1.0, atol=5 / (2 * len(rows)) ** 0.5)
        for half in np.array_split(rows, 2):  # and all along
            found = np.sqrt((half**2).mean(0))
            np.testing.assert_allclose(found / std[:, 0], 1.0, atol=5 / (2 * len(half)) ** 0.5)
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 5 / 50**0.5


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"critic_learning_rate": math.inf},
            "critic_learning_rate is inf; it must be more than 0 and finite",
        ),
        ({"actor_learning_rate": 0.0}, "actor_learning_rate is 0; it must be more than 0"),
        ({"gamma": -0.1}, "gamma is -0.1; it must be at least 0 and at most 1"),
        ({"tau": 1.5}, "tau is 1.5; it must be at least 0 and at most 1"),
        ({"exploration_noise": -0.1}, "exploration_noise is -0.1; it must be at least 0"),
        ({"exploration_noise_max": -1.0}, "exploration_noise_max is -1; it must be at least 0"),
        (
            {"exploration_noise": 0.3, "exploration_noise_max": 0.2},
            "exploration_noise_max is 0.2; it must be at least 0.3",
        ),
        ({"policy_noise": -0.2}, "policy_noise is -0.2; it must be at least 0"),
        ({"noise_clip": -0.5}, "noise_clip is -0.5; it must be at least 0"),
        ({"policy_delay": 0}, "policy_delay is 0; it must be at least 1"),
        ({"critic.num_critics": 0}, "critic.num_critics is 0; it must be at least 1"),
        (
            {"num_min_critics": 3},
            "num_min_critics is 3, and there are 2 critics; it must be at most 2",
        ),
        ({"actor_q": "max"}, "actor_q is 'max'; did you mean mean"),
    ],
)
def test_invalid_hyperparameters_are_refused(options, message):
    protocol.check(ref.agent_of(TD3).bind(ref.SPEC), 256)
    with pytest.raises(UsageError, match=message) as error:
        protocol.check(ref.agent_of(TD3, options).bind(ref.SPEC), 256)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("agent", [TD3, TD3BC, ReBRAC])
@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (Flow(), "policy is a Flow, which draws its actions, and .* give a Deterministic"),
        (AutoPolicy(), "policy is a Gaussian, which may leave .-1, 1., and .*; give a Determin"),
    ],
)
def test_policies_without_a_best_action_within_bounds_are_refused(agent, policy, why):
    with pytest.raises(UsageError, match=why):
        agent(policy=policy).bind(ref.SPEC)
    for within in (AutoPolicy(squash=True), AutoPolicy(squash_mean=True), TanhGaussian()):
        agent(policy=within).bind(ref.SPEC)
