"""PPO: one update against numpy, the probes, and its options."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared import numerical_gradient

from jaxrl import PPO, NormalizeObs, OnPolicy, ScaleReward, UsageError, VectorEnv, make
from jaxrl import metrics as m
from jaxrl.nn import statistics
from jaxrl.training import rollout
from jaxrl.types import Transition

KEY = jax.random.key(0)

CONTINUOUS = {"gymnax/CartPole-v1": False, "gymnax/Pendulum-v1": True}


def one_rollout(agent, env="gymnax/CartPole-v1", num_envs=4, unroll=8):
    """A fresh agent's state and its first rollout."""
    venv = VectorEnv(make(env), num_envs, max_steps=5)
    state = agent.init(jax.random.key(0), venv.spec)
    env_state = venv.reset(jax.random.key(1))
    _, batch, _ = rollout(agent, state, venv, env_state, jax.random.key(2), unroll)
    return state, batch


# --- numpy transcription ------------------------------------------------------------------------


def mlp(params, x):
    layer, head = params["params"]["layer_0"], params["params"]["head"]
    return np.tanh(x @ layer["kernel"] + layer["bias"]) @ head["kernel"] + head["bias"]


def log_prob_and_entropy(params, obs, action, continuous):
    if continuous:
        mean = mlp({"params": params["params"]["normal"]}, obs)
        log_std = params["params"]["log_std"]
        z = (action - mean) / np.exp(log_std)
        log_prob = -(0.5 * z**2 + log_std + 0.5 * np.log(2 * np.pi)).sum(-1)
        return log_prob, (log_std + 0.5 + 0.5 * np.log(2 * np.pi)).sum() * np.ones(len(obs))
    logits = mlp({"params": params["params"]["logits"]}, obs)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(len(obs)), action], -(np.exp(log_p) * log_p).sum(-1)


def loss_of(params, rows, agent, continuous):
    obs, action, old_log_prob, advantage, target, old_value = rows
    log_prob, entropy = log_prob_and_entropy(params["policy"], obs, action, continuous)
    ratio = np.exp(log_prob - old_log_prob)
    A = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = np.clip(ratio, 1 - agent.clip, 1 + agent.clip)
    policy_loss = -np.minimum(ratio * A, clipped * A).mean()
    value = mlp(params["value"], obs)[:, 0]
    error = (value - target) ** 2
    if agent.clip_value:
        near = old_value + np.clip(value - old_value, -agent.clip, agent.clip)
        error = np.maximum(error, (near - target) ** 2)
    value_loss = 0.5 * error.mean()
    return policy_loss + agent.value * value_loss - agent.entropy * entropy.mean()


@pytest.mark.parametrize(
    ("env", "clip_value"), [*((env, False) for env in CONTINUOUS), ("gymnax/CartPole-v1", True)]
)
def test_one_update_equals_a_numpy_transcription(env, clip_value):
    continuous = CONTINUOUS[env]
    agent = PPO(
        learning_rate=0.01, entropy=0.02, epochs=2, minibatches=1, hidden=(3,), anneal_over=4.0
    )
    if clip_value:  # the first step takes values further than that
        agent = agent.replace(clip_value=True, clip=0.01)
    state, batch = one_rollout(agent, env)
    state = state._replace(updates=jnp.int32(1))  # so the rate is 0.01 * 3/4
    # Weights of every size, lest the small policy head hide a mistake.
    noise = jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(jax.random.key(7), p.shape), state.params
    )
    new, metrics = jax.jit(agent.update)(state._replace(params=noise), batch, jax.random.key(3))

    params = jax.tree.map(lambda p: np.array(p, np.float64), noise)
    b = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == jnp.float32 else None), batch)
    old_params = jax.tree.map(lambda p: np.array(p, np.float64), state.params)
    values, next_values = (mlp(params["value"], x)[..., 0] for x in (b.obs, b.next_obs))
    T, N = b.reward.shape
    advantage = np.zeros((T, N))
    for n in range(N):
        g = 0.0
        for t in reversed(range(T)):
            alive = 0.0 if b.terminated[t, n] else 1.0
            delta = b.reward[t, n] + agent.gamma * alive * next_values[t, n] - values[t, n]
            cut = b.terminated[t, n] or b.truncated[t, n]
            g = delta + (0.0 if cut else agent.gamma * agent.gae_lambda * g)
            advantage[t, n] = g

    def flat(x):
        return x.reshape(T * N, *x.shape[2:])

    obs, action = flat(b.obs), flat(b.action)
    old_log_prob, _ = log_prob_and_entropy(old_params["policy"], obs, action, continuous)
    rows = (obs, action, old_log_prob, flat(advantage), flat(advantage + values), flat(values))

    mean = var = 0.0
    for step in (1, 2):
        gradient, leaves, tree = numerical_gradient(
            lambda p: loss_of(p, rows, agent, continuous), params
        )
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        g = np.concatenate([x.ravel() for x in gradient]) * min(1.0, agent.max_grad_norm / norm)
        mean, var = 0.9 * mean + 0.1 * g, 0.999 * var + 0.001 * g**2
        update = (mean / (1 - 0.9**step)) / (np.sqrt(var / (1 - 0.999**step)) + 1e-5)
        moved = np.concatenate([x.ravel() for x in leaves]) - 0.01 * 0.75 * update
        splits = np.cumsum([x.size for x in leaves])[:-1]
        pieces = np.split(moved, splits)
        params = tree.unflatten([p.reshape(x.shape) for p, x in zip(pieces, leaves, strict=True)])

    for found, expected in zip(jax.tree.leaves(new.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    assert m.values(metrics)["skipped_updates"] == 0


# --- properties ---------------------------------------------------------------------------------


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("std", ["independent", "dependent"])
def test_the_ratio_is_one_before_the_first_step(squash, std):
    agent = NormalizeObs(PPO(epochs=1, minibatches=1, squash=squash, std=std, hidden=(8,)))
    state, batch = one_rollout(agent, "gymnax/Pendulum-v1")
    state = agent.observe(state, batch)
    venv = VectorEnv(make("gymnax/Pendulum-v1"), 4)
    _, batch, _ = rollout(agent, state, venv, venv.reset(jax.random.key(5)), jax.random.key(6), 8)
    _, metrics = agent.update(state, batch, jax.random.key(3))
    values = m.values(metrics)
    assert values["kl"] == pytest.approx(0.0, abs=1e-6) and values["clip_fraction"] == 0
    assert values["policy_loss"] == pytest.approx(
        0.0, abs=1e-5
    )  # normalised advantages have mean 0


def test_target_kl_turns_the_rest_of_an_update_into_a_no_op():
    agent = PPO(learning_rate=0.05, epochs=8, minibatches=2, hidden=(8,))
    state, batch = one_rollout(agent)
    free, _ = agent.update(state, batch, jax.random.key(3))
    stopped, few = agent.replace(target_kl=1e-9).update(state, batch, jax.random.key(3))
    never, all_ = agent.replace(target_kl=1e9).update(state, batch, jax.random.key(3))
    # The first minibatch has KL 0, so exactly one step is made.
    counts = [optax.tree.get(s.optim.moments, "count") for s in (stopped, free, never)]
    assert counts == [1, 16, 16]
    assert (few["minibatch_steps"].total, all_["minibatch_steps"].total) == (1, 16)
    assert 0 < distance(state, stopped) < 0.2 * distance(state, free)
    assert distance(never, free) == 0


def test_a_kl_that_is_not_finite_does_not_hide_that_steps_are_skipped():
    agent = PPO(epochs=3, minibatches=2, hidden=(4,), target_kl=0.02)
    state, batch = one_rollout(agent)
    bad = batch._replace(obs=batch.obs.at[0, 0].set(jnp.nan))  # in one minibatch of each epoch
    after, metrics = jax.jit(agent.update)(state, bad, jax.random.key(3))
    assert after.optim.skipped == 3 == metrics["skipped_updates"].total
    assert 1 <= metrics["minibatch_steps"].total <= 3
    worse = batch._replace(obs=jnp.full_like(batch.obs, jnp.nan))
    after, metrics = jax.jit(agent.update)(state, worse, jax.random.key(3))
    assert after.optim.in_a_row == 6 and metrics["minibatch_steps"].total == 0
    assert distance(state, after) == 0


def distance(a, b):
    pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
    return float(sum(jnp.abs(x - y).sum() for x, y in pairs))


def test_scaling_rewards_scales_what_the_value_learns():
    agent = PPO(hidden=(8,))
    state, batch = one_rollout(agent)
    scaled, _ = ScaleReward(agent, 0.5).update(state, batch, jax.random.key(0))
    direct, _ = agent.update(state, batch._replace(reward=0.5 * batch.reward), jax.random.key(0))
    assert distance(scaled, direct) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0; it must be more than 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be more than 0 and finite"),
        ({"gamma": 1.2}, "gamma is 1.2; it must be at least 0 and at most 1"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        (
            {"minibatches": 3},
            "minibatches is 3, which does not divide the 32 transitions .* 2 would",
        ),
        ({"clip": -0.1}, "clip is -0.1; it must be more than 0"),
        ({"hidden": (64, 0)}, "hidden is 0; it must be at least 1"),
    ],
)
def test_hyper_parameters_that_cannot_work_are_refused(options, message):
    trainer = OnPolicy(PPO(**options), VectorEnv(make("gymnax/CartPole-v1"), 4), unroll=8)
    with pytest.raises(UsageError, match=message):
        trainer.check()


# --- dictionaries of observations ---------------------------------------------------------------


def train_privileged(steps=30_000, **options):
    """The trainer, its state and its last metrics after training where only the value is told."""
    agent = NormalizeObs(PPO(learning_rate=3e-3, gamma=0.9, hidden=(32,), **options))
    trainer = OnPolicy(agent, VectorEnv(make("probe/privileged"), 16), unroll=32)
    ts, metrics = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), steps)
    return trainer, ts, {name: float(np.mean(x[-5:])) for name, x in metrics.items()}


def test_the_value_sees_the_privileged_part_and_the_policy_does_not():
    trainer, ts, metrics = train_privileged()
    grid = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    obs = {"state": grid[:, :1], "privileged_state": grid[:, 1:]}
    env, agent = trainer.env.env, trainer.agent
    seen = statistics.normalise(ts.agent.statistics, obs, agent.obs_clip)
    values = agent.agent.values(ts.agent.agent.params, seen)
    np.testing.assert_allclose(values, env.value(obs, 0.9), atol=0.05)
    actions, _ = agent.act(ts.agent, obs, jax.random.key(0), "greedy")
    np.testing.assert_array_equal(actions, env.best_action(obs))
    alone, _ = agent.act(ts.agent, {"state": obs["state"]}, jax.random.key(0), "greedy")
    np.testing.assert_array_equal(alone, actions)
    assert metrics["explained_variance"] > 0.95


def test_a_value_that_is_not_told_explains_nothing():
    _, _, metrics = train_privileged(value_obs="state")
    assert metrics["explained_variance"] < 0.1 and metrics["value_loss"] > 0.4


def test_every_part_of_a_dictionary_has_its_statistics():
    agent = NormalizeObs(PPO(hidden=(8,)))
    state = jax.eval_shape(lambda key: agent.init(key, make("probe/privileged").spec), KEY)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape), state)
    rows = np.random.default_rng(0).normal([1.0, -3.0], [2.0, 0.5], (8, 4, 2))
    obs = {"state": rows[..., :1], "privileged_state": rows[..., 1:]}
    found = agent.observe(state, Transition(obs, *[None] * 6)).statistics
    for part, seen in obs.items():
        np.testing.assert_allclose(found.mean[part], seen.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(found.m2[part] / found.size, seen.var((0, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("probe/privileged", {"policy_obs": "stat"}, "policy_obs is 'stat', .*did you mean state"),
        ("probe/privileged", {"value_obs": "pixels"}, "value_obs is 'pixels', which .*choose one"),
        ("probe/both", {"policy_obs": "privileged_state"}, "policy_obs is 'privileged_state'"),
        ("probe/both", {"value_obs": "critic"}, "value_obs is 'critic', .*choose one of state"),
    ],
)
def test_parts_that_are_not_observed_are_refused(env, options, message):
    trainer = OnPolicy(NormalizeObs(PPO(**options)), VectorEnv(make(env), 4), unroll=8)
    with pytest.raises(UsageError, match=message) as error:
        jax.eval_shape(trainer.init, jax.random.key(0))
    assert "\n" not in str(error.value)


# --- probes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solve():
    """Train on a probe, and give the values and actions the agent has for observations."""

    def train(name, continuous=False, steps=40_000, **options):
        env = make(f"probe/{name}", **({"continuous": True} if continuous else {}))
        agent = PPO(learning_rate=3e-3, gamma=0.9, hidden=(32,), anneal_over=steps / 512, **options)
        trainer = OnPolicy(agent, VectorEnv(env, 16), unroll=32)
        ts, _ = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), steps)

        def value(obs):
            return np.asarray(agent.values(ts.agent.params, jnp.array(obs)))

        def act(obs):
            return np.asarray(agent.act(ts.agent, jnp.array(obs), jax.random.key(0), "greedy")[0])

        return env, value, act

    return train


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", ["constant", "observation", "delayed", "action", "both"])
def test_solves_the_probes(solve, name, continuous):
    env, value, act = solve(name, continuous)
    seen = {"constant": [0.0], "delayed": [0.0, 1.0], "action": [1.0]}
    obs = jnp.array(seen.get(name, [-1.0, 1.0]))[:, None]
    best = np.asarray(env.value(obs, 0.9))
    np.testing.assert_allclose(value(obs), best, atol=0.12 if continuous else 0.05)
    if name in ("action", "both"):
        expected = np.asarray(env.best_action(obs))
        np.testing.assert_allclose(act(obs), expected, atol=0.15 if continuous else 0)


VARIANTS = {
    "brax": {"squash": True, "std": "dependent", "init_kind": "lecun", "activation": "swish"},
    "dependent": {"std": "dependent", "init_kind": "lecun"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_policy_solves_the_probe_of_actions(solve, variant):
    env, value, act = solve("both", True, steps=30_000, **VARIANTS[variant])
    obs = jnp.array([[-1.0], [1.0]])
    np.testing.assert_allclose(act(obs), np.asarray(env.best_action(obs)), atol=0.15)
    np.testing.assert_allclose(value(obs), np.asarray(env.value(obs, 0.9)), atol=0.15)


def test_a_time_limit_is_not_an_end(solve):
    """The learnt value is that of going on for ever, within 2 %."""
    env, value, _ = solve("time_limit", steps=150_000)
    assert value([[0.0]])[0] == pytest.approx(1 / (1 - 0.9), rel=0.02)


def test_termination_is_an_end(solve):
    """The learnt values are those of the finite sums, within 2 %."""
    env, value, _ = solve("termination", steps=150_000)
    _, obs = env.reset(jax.random.key(0))
    starts = np.asarray(env.value(obs[None], 0.9))
    np.testing.assert_allclose(value(obs[None]), starts, rtol=0.02)
