"""SAC: updates against numpy, the temperature, ensembles and subsets, the delay, and options."""

from __future__ import annotations

import functools
import math

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import DSAC, DSACT, SAC, TD3, UsageError, make
from jaxrl import metrics as m
from jaxrl.types import Box, Spec, Transition

KEY = jax.random.key(0)
SMALL = {"hidden": (5,), "gamma": 0.9, "tau": 0.3}
RATES = {"learning_rate": 0.02, "actor_learning_rate": 0.03, "alpha_learning_rate": 0.05}


# --- against numpy ------------------------------------------------------------------------------


def numpy_step(learner, batch, noise, actor):
    """Section 2 of the reference: critics, then actor and temperature, then slow critics."""
    agent, params = learner.agent, learner.params

    def q(critic, obs, action):
        return ref.critics(critic, obs, action, agent.activation)[..., 0]

    alpha = np.exp(params["log_alpha"])
    next_action, next_log_prob = ref.policy(params["actor"], batch.next_obs, noise["next"], agent)
    next_q = q(learner.targets["critic"], batch.next_obs, next_action)
    next_q = ref.least_of_subset(next_q, noise, agent)
    y = batch.reward + ref.discount(batch, agent.gamma) * (next_q - alpha * next_log_prob)

    def critic_loss(critic):
        return sum(((one - y) ** 2).mean() for one in q(critic, batch.obs, batch.action))

    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.learning_rate)

    def actor_loss(actor):
        action, log_prob = ref.policy(actor, batch.obs, noise["policy"], agent)
        values = q(params["critic"], batch.obs, action)
        value = ref.least(values) if agent.policy_value == "min" else values.mean(0)
        return (alpha * log_prob - value).mean()

    def alpha_loss(log_alpha):
        return np.exp(log_alpha) * (entropy - agent.target_entropy * ref.ACTION)

    if actor:
        _, log_prob = ref.policy(params["actor"], batch.obs, noise["policy"], agent)
        entropy = -log_prob.mean()
        slopes = ref.gradient(actor_loss, params["actor"])
        learner.step("actor", slopes, agent.actor_learning_rate)
        slopes = ref.gradient(alpha_loss, params["log_alpha"])
        learner.step("log_alpha", slopes, agent.alpha_learning_rate)
    learner.follow()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ensemble": 1, "target_entropy": -0.5, "log_std_range": (-1.0, 0.2)},
        {"ensemble": 3, "subset": 2, "policy_value": "mean"},
        {"ensemble": 3, "policy_value": "mean", "layer_norm": True, "max_grad_norm": 0.5}
        | {"activation": "tanh", "hidden": (4, 3)},
    ],
    ids=["defaults", "one critic", "REDQ's", "mean of three normalised"],
)
def test_updates_equal_a_numpy_transcription(options):
    agent = SAC(**(SMALL | RATES | {"delay": 2} | options))
    with jax.enable_x64(True):
        state = ref.state(agent)
        ref.Learner(agent, state).assert_follows(state, numpy_step)


def test_truncated_bootstraps_as_if_nothing_had_ended():
    agent = SAC(**SMALL)
    state, batch = ref.state(agent), ref.narrowed(ref.batches(1))
    none, every = (jnp.full((1, ref.BATCH), value) for value in (False, True))
    losses = [
        m.values(ref.update(agent, state, batch._replace(terminated=t, truncated=u), KEY)[1])
        for t, u in ((none, none), (none, every), (every, none))
    ]
    never, truncated, terminated = (float(loss["critic_loss"]) for loss in losses)
    assert never == truncated != terminated


# --- the temperature ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SAC, DSAC, DSACT])
def test_the_temperature_settles_where_the_policy_has_its_entropy(kind):
    """A bandit of reward ``-4 (a - 0.2)^2``, whatever the temperature and its goal at first."""
    steps, size = 3000, 64
    agent = kind(hidden=(16,), learning_rate=3e-3, actor_learning_rate=3e-3, delay=1)
    agent = agent.replace(alpha_learning_rate=1e-2, log_std_range=(-20.0, 2.0))
    spec = Spec(Box(-1.0, 1.0, (1,)), Box(-1.0, 1.0, (1,)))
    action = jax.random.uniform(KEY, (steps, size, 1), minval=-1.0)
    zeros = jnp.zeros((steps, size, 1))
    ends = jnp.ones((steps, size), bool)
    reward = -4.0 * (action[..., 0] - 0.2) ** 2
    batch = Transition(zeros, action, reward, zeros, ends, ~ends, {})

    def learn(goal, initial_alpha):
        own = agent.replace(target_entropy=goal, initial_alpha=initial_alpha)
        state, _ = own.update(own.init(KEY, spec), batch, jax.random.key(1))
        dist = own.policy(state.params["actor"], jnp.zeros((4096, 1)))
        entropy = dist.entropy(jax.random.key(2)).mean()
        return entropy, own.temperature(state), dist.mode()[0, 0]

    goals = np.array([-1.0, -0.5])
    entropy, alpha, mode = jax.jit(jax.vmap(learn))(goals, np.array([1.0, 0.05]))
    np.testing.assert_allclose(entropy, goals, atol=0.12)
    np.testing.assert_allclose(mode, 0.2, atol=0.1)
    # Of exp(reward / alpha), nearly a normal where it is narrow: H = log(2 pi e alpha / 8) / 2.
    narrow = 8.0 * math.exp(2.0 * goals[0]) / (2.0 * math.pi * math.e)
    assert alpha[0] == pytest.approx(narrow, rel=0.4) and alpha[1] > 2 * alpha[0]


def test_a_rate_of_zero_keeps_the_temperature():
    agent = SAC(**SMALL, alpha_learning_rate=0.0)
    before = ref.state(agent)
    after, _ = ref.update(agent, before, ref.narrowed(ref.batches(1)), KEY)
    assert moved(before, after) == {"actor", "critic", "slow critic"}


# --- ensembles ----------------------------------------------------------------------------------


def constant(params, values):
    """Critics that put out ``values[E]`` whatever they see."""
    flat = jax.tree.map(jnp.zeros_like, params)
    flat["params"]["mlp"]["head"]["bias"] = jnp.array(values, jnp.float32)[:, None]
    return flat


def without_entropy(state):
    """At a temperature of next to nothing, if there is one."""
    if "log_alpha" not in state.params:
        return state
    return state._replace(params=state.params | {"log_alpha": jnp.float32(-40.0)})


@pytest.mark.parametrize("kind", [SAC, functools.partial(TD3, delay=1)], ids=["SAC", "TD3"])
def test_a_target_takes_the_least_of_exactly_so_many_critics_and_each_equally_often(kind):
    agent = kind(hidden=(2,), ensemble=4, subset=2, gamma=1.0)
    batch = jax.tree.map(jnp.zeros_like, ref.batches(1, size=1, several=False))
    state = without_entropy(ref.state(agent))

    def target(values, key):
        """Found out of the loss ``sum_i (0 - y)^2``."""
        critics = state.params["critic"]
        known = state._replace(
            params=state.params | {"critic": constant(critics, [0.0] * 4)},
            targets=state.targets | {"critic": constant(critics, values)},
        )
        return jnp.sqrt(m.values(agent.update(known, batch, key)[1])["critic_loss"] / 4)

    count = 1500
    several = jax.jit(jax.vmap(target, in_axes=(None, 0)))
    values = np.array([1.0, 2.0, 3.0, 4.0])
    for shift in range(4):
        keys = jax.random.split(jax.random.key(shift), count)
        found = np.asarray(several(np.roll(values, shift), keys))
        np.testing.assert_allclose(found, np.round(found), atol=1e-4)
        counts = np.bincount(np.round(found).astype(int), minlength=5)
        # Of the six pairs, three hold the smallest, two the second, one the third; none the largest
        # alone, as it would be of one critic.
        assert counts[0] == counts[4] == 0
        expected = np.array([3, 2, 1]) * count / 6
        assert stats.chisquare(counts[1:4], expected).pvalue > 1e-4


def test_all_critics_are_those_of_the_whole_ensemble():
    agent = SAC(**SMALL, ensemble=3)
    state, batch = ref.state(agent), ref.narrowed(ref.batches(1))
    noise = ref.noise(agent, state, 1)
    order = {"critics": jax.random.bits(KEY, (1, 3))}
    whole, _ = ref.update(agent, state, batch, noise)
    subset, _ = ref.update(SAC(**SMALL, ensemble=3, subset=3), state, batch, noise | order)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, subset)


@pytest.mark.parametrize(("value", "expected"), [("min", -1.0), ("mean", 2.0)])
def test_the_policy_climbs_the_least_or_the_mean(value, expected):
    agent = SAC(hidden=(2,), ensemble=3, policy_value=value, learning_rate=1e-9)
    state = without_entropy(ref.state(agent))
    critic = constant(state.params["critic"], [2.0, -1.0, 5.0])
    state = state._replace(params=state.params | {"critic": critic})
    _, metrics = ref.update(agent, state, ref.narrowed(ref.batches(1)), KEY)
    assert m.values(metrics)["actor_loss"] == pytest.approx(-expected, abs=1e-5)


# --- the delay ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "delayed", "always"),
    [
        (SAC, {"actor", "log_alpha"}, {"critic", "slow critic"}),
        (TD3, {"actor", "slow actor", "slow critic"}, {"critic"}),
        (functools.partial(TD3, target_actor=False), {"actor"}, {"critic", "slow critic"}),
        (DSACT, {"actor", "log_alpha", "slow actor", "slow critic"}, {"critic"}),
    ],
)
def test_one_call_of_many_batches_is_many_calls_and_the_delayed_parts_move_on_schedule(
    kind, delayed, always
):
    agent = kind(**SMALL, delay=3)
    first = ref.state(agent)
    batch = ref.narrowed(ref.batches(6))
    noise = ref.noise(agent, first, 6)
    whole, _ = ref.update(agent, first, batch, noise)

    state = first
    for g in range(6):
        part = jax.tree.map(lambda x, g=g: x[g : g + 1], (batch, noise))
        before, step = state, ref.update if g % 3 == 2 else ref.without_actor
        state, metrics = step(agent, state, *part)
        assert moved(before, state) == (always | delayed if g % 3 == 2 else always)
        assert ("actor_loss" in metrics) == (g % 3 == 2)
        assert m.values(metrics)["skipped_updates"] == 0
    close = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), whole, state)
    odd = jax.tree.map(lambda x: x[:5], (batch, noise))
    jax.eval_shape(lambda: agent.update(first, *odd, False))  # no actor, no schedule
    with pytest.raises(UsageError, match="5 batches are no multiple of the delay of 3; 6 would be"):
        agent.update(first, *odd)


def moved(before, after):
    """The parts whose numbers differ."""

    def differs(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return any(bool(jnp.any(x != y)) for x, y in pairs)

    parts = {name: (before.params[name], after.params[name]) for name in before.params}
    parts |= {f"slow {name}": (before.targets[name], after.targets[name]) for name in after.targets}
    return {name for name, pair in parts.items() if differs(*pair)}


# --- acting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SAC, DSAC, DSACT])
def test_actions_follow_the_policy_and_stay_within_bounds(kind):
    agent = kind(hidden=(5,), activation="relu")
    state = ref.state(agent)
    quiet = jax.tree.map(lambda x: 0.3 * x, state.params["actor"])  # tanh is not saturated
    state = state._replace(params=state.params | {"actor": quiet})
    obs = jax.random.normal(jax.random.key(1), (7, ref.OBS))
    noise = agent.draw(state, obs, jax.random.key(2), 4000)
    assert noise.shape == (4000, 7, ref.ACTION)
    actions, extras = jax.vmap(lambda n: agent.act(state, obs, n, "explore"))(noise)
    assert extras == {} and np.abs(actions).max() <= 1.0

    greedy, _ = agent.act(state, obs, KEY, "greedy")
    actor = jax.tree.map(np.asarray, quiet["params"]["normal"])
    out = ref.mlp(actor, np.asarray(obs, float), "relu")
    mean, log_std = np.split(out, 2, axis=-1)
    std = np.exp(np.clip(log_std, *agent.log_std_range))
    np.testing.assert_allclose(greedy, np.tanh(mean), rtol=1e-4, atol=1e-5)
    for n in range(7):
        inside = np.clip(np.asarray(actions[:, n, 0], float), -1 + 1e-7, 1 - 1e-7)
        quantiles = stats.norm(mean[n, 0], std[n, 0]).cdf(np.arctanh(inside))
        assert stats.kstest(quantiles, "uniform").pvalue > 1e-4
    one, _ = agent.act(state, obs, jax.random.key(3), "sample")
    assert one.shape == greedy.shape and np.any(one != greedy)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0; it must be more than 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be more than 0"),
        ({"actor_learning_rate": -1.0}, "actor_learning_rate is -1; it must be more than 0"),
        ({"alpha_learning_rate": -1e-3}, "alpha_learning_rate is -0.001; it must be at least 0"),
        ({"initial_alpha": 0.0}, "initial_alpha is 0; it must be more than 0"),
        ({"gamma": 1.2}, "gamma is 1.2; it must be at least 0 and at most 1"),
        ({"tau": -0.1}, "tau is -0.1; it must be at least 0 and at most 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0; it must be more than 0"),
        ({"delay": 0}, "delay is 0; it must be at least 1"),
        ({"hidden": (64, 0)}, "hidden is 0; it must be at least 1"),
        ({"activation": "rely"}, "activation is 'rely'; did you mean relu"),
        ({"init_kind": "he"}, "init_kind is 'he'; .*orthogonal"),
        ({"log_std_range": (2.0, -5.0)}, r"log_std_range is \(2.0, -5.0\); .*as \(-20.0, 2.0\)"),
        ({"ensemble": 0}, "ensemble is 0; it must be at least 1"),
        ({"subset": 3}, "subset is 3; of an ensemble of 2 it must be at least 1 and at most 2"),
        ({"subset": 0}, "subset is 0; .*at least 1 and at most 2"),
        ({"policy_value": "first"}, "policy_value is 'first'; .*min"),
    ],
)
def test_hyper_parameters_that_cannot_work_are_refused(options, message):
    SAC().check(256)
    with pytest.raises(UsageError, match=message) as error:
        SAC(**options).check(256)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [SAC, TD3, DSAC, DSACT])
def test_discrete_actions_are_refused_with_what_takes_them(kind):
    message = f"{kind.__name__} needs continuous actions, .* has 2 discrete ones; .*DQN or PPO"
    spec = make("gymnax/CartPole-v1").spec
    with pytest.raises(UsageError, match=message) as error:
        kind().init(KEY, spec)
    assert "\n" not in str(error.value)
