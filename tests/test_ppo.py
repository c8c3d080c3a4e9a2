"""PPO: one update against numpy, the probes, and its options."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared import numerical_gradient

from jaxrl import PPO, NormalizeObs, OnPolicy, ScaleReward, UsageError, VectorEnv, make
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.nn import running_statistics
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.encoders import CNN, Flatten
from jaxrl.nn.policies import AutoPolicy, Deterministic
from jaxrl.optim import Adam
from jaxrl.training import rollout
from jaxrl.types import Box, Transition

KEY = jax.random.key(0)

CONTINUOUS = {"gymnax/CartPole-v1": False, "gymnax/Pendulum-v1": True}


def ppo(hidden_dims=(8,), policy=None, critic=None, **options):
    """PPO with small networks, and other fields of its default policy and value function."""
    default = PPO()
    return PPO(
        policy=default.policy.replace(hidden_dims=hidden_dims, **(policy or {})),
        critic=default.critic.replace(hidden_dims=hidden_dims, **(critic or {})),
        **options,
    )


update = jax.jit(lambda agent, state, batch, key: agent.update(state, batch, key))


@functools.partial(jax.jit, static_argnums=2)
def rollout_from(agent, state, venv, key):
    """A rollout of fresh environments."""
    reset_key, key = jax.random.split(key)
    return rollout(agent, state, venv, venv.reset(reset_key), (), key, 8)[2]


def one_rollout(agent, env="gymnax/CartPole-v1", num_envs=4):
    """The bound agent, its fresh state, and its first rollout."""
    venv = VectorEnv(make(env), num_envs, max_steps=5)
    agent = agent.bind(venv.spec)
    state = agent.init(jax.random.key(0))
    return agent, state, rollout_from(agent, state, venv, jax.random.key(1))


# --- numpy transcription ------------------------------------------------------------------------


def mlp(params, x):
    layer, head = params["network"]["layer_0"], params["network"]["head"]
    return np.tanh(x @ layer["kernel"] + layer["bias"]) @ head["kernel"] + head["bias"]


def log_prob_and_entropy(params, obs, action, continuous):
    if continuous:
        mean, log_std = mlp(params, obs), params["log_std"]
        z = (action - mean) / np.exp(log_std)
        log_prob = -(0.5 * z**2 + log_std + 0.5 * np.log(2 * np.pi)).sum(-1)
        return log_prob, (log_std + 0.5 + 0.5 * np.log(2 * np.pi)).sum() * np.ones(len(obs))
    logits = mlp(params, obs)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(len(obs)), action], -(np.exp(log_p) * log_p).sum(-1)


def loss_of(params, rows, agent, continuous):
    obs, action, old_log_prob, advantage, target, old_value = rows
    log_prob, entropy = log_prob_and_entropy(params["policy"], obs, action, continuous)
    ratio = np.exp(log_prob - old_log_prob)
    A = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = np.clip(ratio, 1 - agent.clip_eps, 1 + agent.clip_eps)
    policy_loss = -np.minimum(ratio * A, clipped * A).mean()
    value = mlp(params["critic"], obs)[:, 0]
    error = (value - target) ** 2
    if agent.clip_value:
        near = old_value + np.clip(value - old_value, -agent.clip_eps, agent.clip_eps)
        error = np.maximum(error, (near - target) ** 2)
    value_loss = 0.5 * error.mean()
    return policy_loss + agent.value_coef * value_loss - agent.entropy_coef * entropy.mean()


@pytest.mark.parametrize(
    ("env", "clip_value"), [*((env, False) for env in CONTINUOUS), ("gymnax/CartPole-v1", True)]
)
def test_one_update_equals_a_numpy_transcription(env, clip_value):
    continuous = CONTINUOUS[env]
    agent = ppo(
        (3,),
        learning_rate=0.01,
        entropy_coef=0.02,
        update_epochs=2,
        num_minibatches=1,
        lr_decay_steps=4.0,
    )
    if clip_value:  # the first step takes values further than that
        agent = agent.replace(clip_value=True, clip_eps=0.01)
    agent, state, batch = one_rollout(agent, env)
    acting = state.networks.params
    # Weights of every size, lest the small policy head hide a mistake.
    noise = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(7), p.shape), acting)
    # After one update the rate is 0.01 * 3/4.
    start = state._replace(networks=agent.optimizer.start(noise), updates=jnp.int32(1))
    new, metrics = update(agent, start, batch, jax.random.key(3))

    params = jax.tree.map(lambda p: np.array(p, np.float64), noise)
    b = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == jnp.float32 else None), batch)
    old_params = jax.tree.map(lambda p: np.array(p, np.float64), acting)
    values, next_values = (mlp(params["critic"], x)[..., 0] for x in (b.obs, b.next_obs))
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
    np.testing.assert_allclose(flat(b.extras["trace"].log_prob), old_log_prob, rtol=1e-4)
    rows = (obs, action, old_log_prob, flat(advantage), flat(advantage + values), flat(values))

    mean = var = 0.0
    for step in (1, 2):
        gradient, leaves, tree = numerical_gradient(
            lambda p: loss_of(p, rows, agent, continuous), params
        )
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        g = np.concatenate([x.ravel() for x in gradient]) * min(
            1.0, agent.optimizer.max_grad_norm / norm
        )
        mean, var = 0.9 * mean + 0.1 * g, 0.999 * var + 0.001 * g**2
        change = (mean / (1 - 0.9**step)) / (np.sqrt(var / (1 - 0.999**step)) + 1e-5)
        moved = np.concatenate([x.ravel() for x in leaves]) - 0.01 * 0.75 * change
        splits = np.cumsum([x.size for x in leaves])[:-1]
        pieces = np.split(moved, splits)
        params = tree.unflatten([p.reshape(x.shape) for p, x in zip(pieces, leaves, strict=True)])

    found_leaves = jax.tree.leaves(new.networks.params)
    for found, expected in zip(found_leaves, jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    assert m.values(metrics)["skipped_updates"] == 0


# --- properties ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("std", "squash"),
    [
        ("independent", False),
        ("exp", True),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("independent", True), ("softplus", False), ("softplus", True), ("exp", False)
            )
        ),
    ],
)  # fmt: skip
def test_the_ratio_is_one_before_the_first_step(squash, std):
    inner = ppo(policy={"squash": squash, "std": std}, update_epochs=1, num_minibatches=1)
    agent, state, batch = one_rollout(NormalizeObs(inner), "gymnax/Pendulum-v1")
    state = agent.observe(state, batch)
    venv = VectorEnv(make("gymnax/Pendulum-v1"), 4)
    batch = rollout_from(agent, state, venv, jax.random.key(5))
    _, metrics = update(agent, state, batch, jax.random.key(3))
    values = m.values(metrics)
    assert values["kl"] == pytest.approx(0.0, abs=1e-6) and values["clip_fraction"] == 0
    assert values["policy_loss"] == pytest.approx(
        0.0, abs=1e-5
    )  # normalised advantages have mean 0


def test_target_kl_turns_the_rest_of_an_update_into_a_no_op():
    agent = ppo(learning_rate=0.05, update_epochs=8, num_minibatches=2)
    agent, state, batch = one_rollout(agent)
    free, _ = update(agent, state, batch, jax.random.key(3))
    stopped, few = update(agent.replace(target_kl=1e-9), state, batch, jax.random.key(3))
    never, all_ = update(agent.replace(target_kl=1e9), state, batch, jax.random.key(3))
    # The first minibatch has KL 0, so exactly one step is made.
    counts = [optax.tree.get(s.networks.optim.moments, "count") for s in (stopped, free, never)]
    assert counts == [1, 16, 16]
    assert (few["minibatch_steps"].total, all_["minibatch_steps"].total) == (1, 16)
    assert 0 < largest_change(state, stopped) < 0.0501  # Adam's first step is the rate
    assert largest_change(state, free) > 0.2
    assert distance(never, free) < 1e-4


def test_a_kl_that_is_not_finite_does_not_hide_that_steps_are_skipped():
    agent = ppo((4,), update_epochs=3, num_minibatches=2, target_kl=0.02)
    agent, state, batch = one_rollout(agent)
    bad = batch._replace(obs=batch.obs.at[0, 0].set(jnp.nan))  # in one minibatch of each epoch
    after, metrics = update(agent, state, bad, jax.random.key(3))
    assert after.networks.optim.skipped == 3 == metrics["skipped_updates"].total
    assert 1 <= metrics["minibatch_steps"].total <= 3
    worse = batch._replace(obs=jnp.full_like(batch.obs, jnp.nan))
    after, metrics = update(agent, state, worse, jax.random.key(3))
    assert after.networks.optim.in_a_row == 6 and metrics["minibatch_steps"].total == 0
    assert distance(state, after) == 0


def changes(a, b):
    trees = (a.networks.params, b.networks.params)
    pairs = zip(*map(jax.tree.leaves, trees), strict=True)
    return np.concatenate([np.abs(x - y).ravel() for x, y in pairs])


def distance(a, b):
    return changes(a, b).sum()


def largest_change(a, b):
    return changes(a, b).max()


def test_scaling_rewards_scales_what_the_value_learns():
    agent, state, batch = one_rollout(ppo())
    halved = batch._replace(reward=0.5 * batch.reward)
    scaled, _ = update(ScaleReward(agent, 0.5), state, batch, KEY)
    same, _ = update(ScaleReward(agent, 1.0), state, halved, KEY)
    direct, _ = update(agent, state, halved, KEY)
    assert distance(scaled, same) == 0
    assert distance(scaled, direct) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0; it must be more than 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be more than 0 and finite"),
        ({"gamma": 1.2}, "gamma is 1.2; it must be at least 0 and at most 1"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1; it must be at least 0 and at most 1"),
        ({"lr_decay_steps": -1.0}, "lr_decay_steps is -1; it must be at least 0"),
        ({"entropy_coef": -1.0}, "entropy_coef is -1; it must be at least 0"),
        ({"value_coef": -1.0}, "value_coef is -1; it must be at least 0"),
        ({"target_kl": 0.0}, "target_kl is 0; it must be more than 0"),
        ({"update_epochs": 0}, "update_epochs is 0; it must be at least 1"),
        (
            {"num_minibatches": 3},
            "num_minibatches is 3, which does not divide the 32 transitions of an update; 2 would",
        ),
        (
            {"num_minibatches": 32},
            "num_minibatches is 32, and so its minibatches have 1 of the 32 transitions of an "
            "update, and normalising over them needs 2; 16 would",
        ),
        (
            {"num_minibatches": 100},
            "num_minibatches is 100, which does not divide the 32 transitions of an update; "
            "16 would",
        ),
        ({"clip_eps": -0.1}, "clip_eps is -0.1; it must be more than 0"),
        ({"clip_value": 1}, "clip_value is 1; it must be True or False"),
        (
            {"optimizer": Adam(max_grad_norm=math.inf)},
            "optimizer.max_grad_norm is inf; it must be more than 0 and finite",
        ),
        (
            {"policy": AutoPolicy(hidden_dims=(64, 0))},
            "policy.hidden_dims is 0; it must be at least 1",
        ),
        (
            {"critic": ValueFunction(activation="relu6")},
            "critic.activation is 'relu6'; did you mean relu, elu, gelu?",
        ),
        (
            {"policy": AutoPolicy(initial_std=0.0)},
            "policy.initial_std is 0; it must be more than 0",
        ),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_hyper_parameters_that_cannot_work_are_refused(options, message, wrapped):
    agent = NormalizeObs(ScaleReward(PPO(**options), 0.1)) if wrapped else PPO(**options)
    if "initial_std" not in message:  # of continuous actions
        agent = agent.bind(make("gymnax/CartPole-v1").spec)
    with pytest.raises(UsageError) as error:
        protocol.check(agent, 4 * 8)
    assert str(error.value) == message


def test_a_single_advantage_is_refused_and_two_are_learnt_from():
    env = VectorEnv(make("probe/action"), 1)
    for num_steps, num_minibatches in [(1, 1), (1, 4), (2, 2), (64, 64)]:
        trainer = OnPolicy(PPO(num_minibatches=num_minibatches), env, num_steps=num_steps)
        with pytest.raises(UsageError, match="num_minibatches is|an update has 1 transition"):
            jax.eval_shape(trainer.init, KEY)
    agent = ppo(update_epochs=1, num_minibatches=1, learning_rate=0.05)
    trainer = OnPolicy(agent, env, num_steps=2)
    state, _ = jax.jit(trainer.train, static_argnums=1)(KEY, 400)
    params = state.agent.networks.params["policy"]
    probabilities = jax.nn.softmax(trainer.agent.policy.dist(params, jnp.ones((1,))).logits)
    assert probabilities[1] > 0.95


def test_a_policy_without_a_density_is_refused():
    env = VectorEnv(make("gymnax/Pendulum-v1"), 4)
    with pytest.raises(UsageError) as error:
        OnPolicy(PPO(policy=Deterministic()), env)
    assert str(error.value) == (
        "PPO needs a policy with dist(), which Deterministic lacks; give another, such as Gaussian"
    )


# --- convolutions -------------------------------------------------------------------------------


def convolutional(**options):
    net = {"encoder": CNN(), "hidden_dims": (16,), "activation": "relu"}
    return PPO(policy=AutoPolicy(**net), critic=ValueFunction(**net), **options)


def test_convolutions_are_xlas():
    encoder = CNN(filters=(8, 6), kernels=(5, 3), strides=(3, 2))
    encoder = encoder.bind(Box(0.0, 1.0, (21, 18, 3)), ("state",))
    params, obs = encoder.init(KEY), jax.random.normal(KEY, (2, 4, 21, 18, 3))
    x = obs.reshape(8, 21, 18, 3)
    for layer, stride in zip(("conv_0", "conv_1"), (3, 2), strict=True):
        sides = ("NHWC", "HWIO", "NHWC")
        kernel, bias = params[layer]["kernel"], params[layer]["bias"] + 0.1
        params[layer]["bias"] = bias
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", None, None, sides)
        x = jax.nn.relu(x + bias)
    assert encoder.features == 2 * 2 * 6
    np.testing.assert_allclose(encoder(params, obs), x.reshape(2, 4, 24), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_convolutions_train():
    agent = convolutional(update_epochs=1, num_minibatches=2)
    trainer = OnPolicy(agent, VectorEnv(make("gymnax/Breakout-MinAtar"), 2), num_steps=8)
    ts, metrics = jax.jit(trainer.train, static_argnums=1)(KEY, 2 * 2 * 8)
    assert metrics["skipped_updates"].shape == (2,) and not metrics["skipped_updates"].any()
    fresh = trainer.agent.init(jax.random.split(KEY)[0]).networks.params
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), fresh, ts.agent.networks.params)
    for name in ("policy", "critic"):
        filters = ts.agent.networks.params[name]["encoder"]["conv_0"]["kernel"]
        assert filters.shape == (3, 3, 4, 16)  # height, width, channels seen, filters
        assert 0 < moved[name]["encoder"]["conv_0"]["kernel"] < 0.1


def test_convolutions_are_refused_where_observations_are_no_images():
    env = VectorEnv(make("gymnax/CartPole-v1"), 2)
    with pytest.raises(UsageError) as error:
        OnPolicy(convolutional(), env)
    assert str(error.value) == (
        "a CNN needs observations of shape [H, W, C], and these have [4]; give the encoder Flatten"
    )


# --- dictionaries of observations ---------------------------------------------------------------


def train_privileged(steps=30_000, **options):
    """The trainer, its state and its last metrics after training where only the value is told."""
    agent = NormalizeObs(ppo((32,), learning_rate=3e-3, gamma=0.9, **options))
    trainer = OnPolicy(agent, VectorEnv(make("probe/privileged"), 16), num_steps=32)
    ts, metrics = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), steps)
    return trainer, ts, {name: float(np.mean(x[-5:])) for name, x in metrics.items()}


def test_the_value_sees_the_privileged_part_and_the_policy_does_not():
    trainer, ts, metrics = train_privileged()
    grid = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    obs = {"state": grid[:, :1], "privileged_state": grid[:, 1:]}
    env, agent = trainer.env.env, trainer.agent
    seen = running_statistics.normalise(ts.agent.statistics, obs, agent.obs_clip)
    values = agent.agent.critic(ts.agent.agent.networks.params["critic"], seen)
    np.testing.assert_allclose(values, env.value(obs, 0.9), atol=0.05)
    actions, _, _ = agent.act(ts.agent, (), obs, jax.random.key(0), "greedy")
    np.testing.assert_array_equal(actions, env.best_action(obs))
    alone, _, _ = agent.act(ts.agent, (), {"state": obs["state"]}, jax.random.key(0), "greedy")
    np.testing.assert_array_equal(alone, actions)
    assert metrics["explained_variance"] > 0.95


def test_a_value_that_is_not_told_explains_nothing():
    _, _, metrics = train_privileged(critic={"encoder": Flatten(obs_keys=("state",))})
    assert metrics["explained_variance"] < 0.1 and metrics["value_loss"] > 0.4


def test_every_part_of_a_dictionary_has_its_statistics():
    agent = NormalizeObs(ppo()).bind(make("probe/privileged").spec)
    state = jax.eval_shape(agent.init, KEY)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape), state)
    rows = np.random.default_rng(0).normal([1.0, -3.0], [2.0, 0.5], (8, 4, 2))
    obs = {"state": rows[..., :1], "privileged_state": rows[..., 1:]}
    found = agent.observe(state, Transition(obs, *[None] * 6)).statistics
    for part, seen in obs.items():
        np.testing.assert_allclose(found.mean[part], seen.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(found.m2[part] / found.size, seen.var((0, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("env", "part", "keys", "message"),
    [
        (
            "probe/privileged",
            "policy",
            ("stat",),
            "obs_keys is \\('stat',\\), .*did you mean state",
        ),
        ("probe/privileged", "critic", ("pixels",), "does not observe 'pixels'; choose one of "),
        ("probe/both", "policy", ("privileged_state",), "does not observe 'privileged_state'"),
        ("probe/both", "critic", ("critic",), "does not observe 'critic'; choose one of state"),
    ],
)
def test_parts_that_are_not_observed_are_refused(env, part, keys, message):
    agent = NormalizeObs(ppo(**{part: {"encoder": Flatten(obs_keys=keys)}}))
    with pytest.raises(UsageError, match=message) as error:
        OnPolicy(agent, VectorEnv(make(env), 4), num_steps=8)
    assert "\n" not in str(error.value)


# --- probes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solve():
    """Train on a probe, and give the values and actions the agent has for observations."""

    def train(name, continuous=False, steps=40_000, **options):
        env = make(f"probe/{name}", **({"continuous": True} if continuous else {}))
        rates = {"learning_rate": 3e-3, "lr_decay_steps": steps / 512}
        agent = ppo((32,), gamma=0.9, **rates, **options)
        trainer = OnPolicy(agent, VectorEnv(env, 16), num_steps=32)
        ts, _ = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), steps)
        agent = trainer.agent

        def value(obs):
            return np.asarray(agent.critic(ts.agent.networks.params["critic"], jnp.array(obs)))

        def act(obs):
            return np.asarray(agent.act(ts.agent, (), jnp.array(obs), KEY, "greedy")[0])

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


BRAX = {"initializer": "lecun", "activation": "swish"}
VARIANTS = {
    "brax": {"policy": {"squash": True, "std": "softplus", **BRAX}, "critic": BRAX},
    "softplus": {
        "policy": {"std": "softplus", "initializer": "lecun"},
        "critic": {"initializer": "lecun"},
    },
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
