"""Behaviour cloning with every policy family, and offline training on a dataset."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

from jaxrl import BC, DQN, NormalizeObs, Offline, UsageError, VectorEnv, make
from jaxrl.data import Dataset
from jaxrl.nn.policies import AutoPolicy, Categorical, Deterministic, Gaussian, TanhGaussian
from jaxrl.types import Batch, Box, Discrete, Spec, Step

KEY = jax.random.key(0)
OBS, ROWS = 3, 2_000
# The expert of continuous actions is linear, and within (-1, 1) where observations are.
GAIN = np.float32([[0.3, -0.2], [0.1, 0.25], [-0.25, 0.1]])
# That of discrete actions takes the largest of three linear scores.
SCORES = np.float32([[1.0, -1.0, 0.0], [0.5, 0.0, -1.0], [-1.0, 0.5, 1.0]])


@dataclasses.dataclass(frozen=True)
class Imitation:
    """One step; the reward is 1 less the squared distance to the expert's action, if any."""

    discrete: bool = False
    name: str = "test/imitation"
    cheap: bool = True

    @property
    def spec(self):
        action = Discrete(3) if self.discrete else Box(-1.0, 1.0, (2,))
        return Spec(Box(-1.0, 1.0, (OBS,)), action, 1)

    def reset(self, key):
        obs = jax.random.uniform(key, (OBS,), minval=-1.0)
        return obs, obs

    def step(self, key, state, action):
        best = expert(state, self.discrete)
        miss = action != best if self.discrete else jnp.sum(jnp.square(action - best))
        no = jnp.zeros((), bool)
        return state, Step(state, 1.0 - miss, ~no, no, {})


def expert(obs, discrete):
    return jnp.argmax(obs @ SCORES, axis=-1).astype(jnp.int32) if discrete else obs @ GAIN


def demonstrations(discrete=False, noise=0.0):
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.uniform(-1.0, 1.0, (ROWS, OBS)), jnp.float32)
    action = expert(obs, discrete)
    if noise:
        action += noise * jnp.asarray(rng.normal(size=action.shape), jnp.float32)
    ends = jnp.ones(ROWS, bool)
    return Dataset.of(obs, action, jnp.ones(ROWS), obs, ends, ~ends)


def clone(policy, data, steps=3_000, discrete=False, wrapper=lambda agent: agent, **options):
    agent = wrapper(BC(policy=policy, **({"learning_rate": 3e-3} | options)))
    trainer = Offline(agent, VectorEnv(Imitation(discrete), 1), batch_size=256, num_updates=100)
    ts, metrics = jax.jit(trainer.train, static_argnums=1)(KEY, steps, data)
    return trainer, ts, metrics


def unseen():
    return jax.random.uniform(jax.random.key(9), (500, OBS), minval=-1.0)


# --- families -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Categorical, AutoPolicy])
def test_discrete_actions_are_imitated(policy):
    trainer, ts, metrics = clone(policy(hidden_dims=(32,)), demonstrations(True), discrete=True)
    assert type(trainer.agent.policy) is Categorical
    evaluation = trainer.evaluate(ts, KEY, 500)
    assert evaluation.returns.mean() > 0.97  # a third by chance
    assert metrics["policy_loss"][0] > 0.5 and metrics["policy_loss"][-1] < 0.1
    # Only the best action is certain where the scores are far apart.
    obs = unseen()
    margin = np.diff(np.sort(np.asarray(obs @ SCORES), axis=-1)[:, -2:])[:, 0]
    logits = trainer.agent.policy.dist(ts.agent.policy.params, obs).logits
    probability = np.asarray(jax.nn.softmax(logits)).max(-1)
    assert probability[margin > 0.5].min() > 0.9


@pytest.mark.parametrize("policy", [Gaussian, TanhGaussian, Deterministic, AutoPolicy])
def test_a_linear_expert_is_recovered(policy):
    trainer, ts, metrics = clone(
        policy(hidden_dims=(64,)), demonstrations(noise=0.02), steps=6_000, learning_rate=1e-3
    )
    act = jax.jit(trainer.agent.act, static_argnums=4)
    obs = unseen()
    greedy, _, _ = act(ts.agent, (), obs, KEY, "greedy")
    np.testing.assert_allclose(greedy, expert(obs, False), atol=0.06)
    assert trainer.evaluate(ts, KEY, 500).returns.mean() > 0.995
    sampled, carry, extras = act(ts.agent, (), obs, KEY, "sample")
    assert carry == () and extras == {}
    spread = np.std(sampled - greedy)
    if policy is Deterministic:
        assert spread == 0
    else:
        assert 0.01 < spread < 0.06  # of 0.02 in the data
    assert metrics["policy_loss"][-1] < metrics["policy_loss"][0]


@pytest.mark.parametrize("policy", [Gaussian, TanhGaussian])
def test_linear_policies_are_least_squares(policy):
    """Without hidden layers the most likely weights and deviation have a closed form."""
    data = demonstrations(noise=0.1)
    trainer, ts, _ = clone(policy(hidden_dims=(), std="independent"), data, learning_rate=1e-2)
    squashes = policy is TanhGaussian
    raw = np.arctanh(np.clip(data.action, -0.999, 0.999)) if squashes else np.asarray(data.action)
    inputs = np.concatenate([data.obs, np.ones((ROWS, 1))], axis=1)
    weights, *_ = np.linalg.lstsq(inputs, raw, rcond=None)
    residual = (raw - inputs @ weights).std(axis=0)
    params = ts.agent.policy.params
    np.testing.assert_allclose(params["network"]["head"]["kernel"], weights[:OBS], atol=0.02)
    np.testing.assert_allclose(params["network"]["head"]["bias"], weights[OBS], atol=0.02)
    np.testing.assert_allclose(np.exp(params["log_std"]), residual, rtol=0.1)


def test_observations_are_seen_through_wrappers():
    """Statistics are those of the dataset, which was seen once."""
    data = demonstrations()
    trainer, ts, _ = clone(Gaussian(hidden_dims=(32,)), data, wrapper=NormalizeObs)
    assert ts.agent.statistics.size == data.size
    assert trainer.evaluate(ts, KEY, 100).returns.mean() > 0.99


def test_policies_that_cannot_be_fitted_or_do_not_suit_the_actions_are_refused():
    env = VectorEnv(Imitation(), 1)

    @dataclasses.dataclass(frozen=True)
    class Random:
        def sample(self, params, obs, key): ...

        def mode(self, params, obs, key): ...

    for policy, message in {
        Random(): "BC needs a policy with fit_loss(), which Random lacks; give another, such as "
        "Gaussian",
        Categorical(): "Categorical needs discrete actions, and the environment has continuous "
        "ones; choose another policy, such as Gaussian or TanhGaussian",
    }.items():
        with pytest.raises(UsageError) as error:
            Offline(BC(policy=policy), env)
        assert str(error.value) == message
    with pytest.raises(UsageError) as error:
        Offline(BC(policy=Deterministic()), VectorEnv(Imitation(discrete=True), 1))
    assert str(error.value) == (
        "Deterministic needs continuous actions, and the environment has 3 discrete ones; "
        "choose another policy, such as Categorical"
    )


@pytest.mark.parametrize("policy", [Deterministic, Categorical])
def test_held_out_rows_are_judged_without_dropout(policy):
    """The policy's own actions are its best ones, whatever the key."""
    discrete = policy is Categorical
    agent = BC(policy=policy(hidden_dims=(16,), dropout=0.5)).bind(Imitation(discrete).spec)
    state = agent.init(KEY)
    obs = demonstrations().obs[:64]
    batch = Batch(obs, agent.policy.mode(state.policy.params, obs), *[jnp.ones(64)] * 2, obs, {})
    plain = agent.replace(policy=agent.policy.replace(dropout=None))
    expected = plain.policy_loss(state.policy.params, batch, KEY)[0]
    for seed in range(2):
        found = agent.validation_loss(state, batch, jax.random.key(seed))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    if not discrete:
        assert float(found) == 0.0


def test_steps_outside_an_episode_are_left_out_of_discrete_losses():
    agent = BC(policy=Categorical(hidden_dims=(16,))).bind(Imitation(True).spec)
    state, data = agent.init(KEY), demonstrations(True)
    obs, action = (x[:12].reshape(4, 3, *x.shape[1:]) for x in (data.obs, data.action))
    valid = jnp.arange(3) < jnp.array([[3], [2], [1], [1]])
    ones = jnp.ones((4, 3))
    batch = Batch(obs, action, ones, ones, obs, {"valid": valid})
    log_probs = agent.policy.dist(state.policy.params, obs).trace(action).log_prob
    found = agent.policy_loss(state.policy.params, batch, KEY)[0]
    np.testing.assert_allclose(found, -jnp.sum(log_probs * valid) / 12, rtol=1e-6)


def test_the_moving_average_acts_and_has_a_closed_form():
    """``decay^n p_0 + (1 - decay) sum_k decay^(n - k) p_k``; the policy itself learns the same."""
    decay, steps = 0.7, 4
    rows = jax.tree.map(lambda x: x[:32], demonstrations())
    batch = Batch(rows.obs, rows.action, rows.reward, rows.reward, rows.next_obs, {})
    plain, averaged = (
        BC(policy=Deterministic(hidden_dims=(8,)), learning_rate=0.03, ema_decay=each).bind(
            Imitation().spec
        )
        for each in (None, decay)
    )
    alone, state = plain.init(KEY), averaged.init(KEY)
    assert alone.ema == ()
    both = jax.jit(lambda a, b: (plain.update(a, batch, KEY)[0], averaged.update(b, batch, KEY)[0]))
    expected = state.policy.params
    for _ in range(steps):
        alone, state = both(alone, state)
        mix = lambda old, new: decay * old + (1 - decay) * new  # noqa: E731
        expected = jax.tree.map(mix, expected, state.policy.params)
    pairs = (state.ema, expected), (state.policy.params, alone.policy.params)
    for a, b in zip(
        jax.tree.leaves([x for x, _ in pairs]), jax.tree.leaves([x for _, x in pairs]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    obs = unseen()
    for mode in ("greedy", "sample"):
        action, _, _ = averaged.act(state, (), obs, KEY, mode)
        np.testing.assert_allclose(action, plain.policy.mode(expected, obs), atol=1e-5)
        assert np.abs(action - plain.act(alone, (), obs, KEY, mode)[0]).max() > 1e-3
    loss = averaged.validation_loss(state, batch, KEY)
    assert loss == pytest.approx(float(plain.policy_loss(expected, batch, KEY)[0]), rel=1e-5)


# --- offline training ---------------------------------------------------------------------------


def offline():
    agent = BC(policy=Gaussian(hidden_dims=(8,)))
    return Offline(agent, VectorEnv(Imitation(), 1), batch_size=32, num_updates=10)


def test_the_dataset_is_an_argument_without_an_axis_of_seeds():
    trainer, data, seeds = offline(), demonstrations(), 5
    keys = jax.random.split(KEY, seeds)
    train = jax.vmap(lambda key, data: trainer.train(key, 30, data)[0].agent, (0, None))
    program = jax.make_jaxpr(train)(keys, data)
    shapes = [x.shape for x in jax.tree.leaves(data)]
    assert [var.aval.shape for var in program.jaxpr.invars] == [(seeds,), *shapes]
    assert all(np.size(const) < ROWS for const in program.consts)
    values = [
        value
        for equation, _ in equations(program.jaxpr)
        for value in (*equation.invars, *equation.outvars)
    ]
    held = {var.aval.shape for var in values if ROWS in getattr(var.aval, "shape", ())}
    assert held and all(shape[0] == ROWS and ROWS not in shape[1:] for shape in held)

    together = jax.jit(train)(keys, data)
    alone = jax.jit(trainer.train, static_argnums=1)(keys[3], 30, data)[0].agent
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[3], b, rtol=1e-4, atol=1e-6)
    weights = together.policy.params["network"]["layer_0"]["kernel"]
    assert np.abs(weights[0] - weights[1]).max() > 0.01


def test_agents_with_replay_learn_offline_too():
    """Q-learning on uniform actions: every action's reward is known, and the best is taken."""
    env = make("probe/both")
    obs = jnp.tile(jnp.array([[-1.0], [-1.0], [1.0], [1.0]]), (50, 1))
    action = jnp.arange(200, dtype=jnp.int32) % 2
    reward = jnp.where(action == env.best_action(obs), 1.0, -1.0)
    ends = jnp.ones(200, bool)
    data = Dataset.of(obs, action, reward, obs, ends, ~ends)
    agent = DQN(learning_rate=3e-3, epsilon_decay_steps=10.0, target_every=10)
    trainer = Offline(agent, VectorEnv(env, 1), batch_size=64)
    ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, 640, data)
    assert trainer.evaluate(ts, KEY, 32).returns.mean() == 1.0
    assert ts.agent.gradient_steps == 640
