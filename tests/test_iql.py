"""IQL: updates against numpy, expectiles and weights of a tabular problem, BC as its limit."""

from __future__ import annotations

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import BC, IQL, UsageError, hyper, optim
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.nn.critics import AutoCritic, Critic, DiscreteCritic, ValueFunction
from jaxrl.nn.distributions import ClippedNormal, Normal
from jaxrl.nn.policies import AutoPolicy, Categorical, Deterministic, Gaussian, TanhGaussian
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.types import Batch, Box, Discrete, Spec

KEY = jax.random.key(0)
RATES = {f"{name}_learning_rate": rate for name, rate in
         (("critic", 0.02), ("actor", 0.03), ("value", 0.04))}  # fmt: skip
SMALL = {"value.hidden_dims": (5,), "temperature": 1.0} | RATES
DISCRETE = Spec(Box(-np.inf, np.inf, (ref.OBS,)), Discrete(3))


def small(options=(), spec=ref.SPEC):
    agent = ref.small(IQL, SMALL | dict(options))
    if spec is ref.SPEC:
        return agent
    auto = {"policy": AutoPolicy(hidden_dims=(5,)), "critic": AutoCritic(hidden_dims=(5,))}
    return agent.replace(**auto).bind(spec)


# --- against numpy ------------------------------------------------------------------------------


def log_prob(actor, batch, agent):
    out = ref.mlp(actor["network"], batch.obs, agent.policy.activation)
    if isinstance(agent.policy, Categorical):
        out = out - out.real.max(-1, keepdims=True)
        out = out - np.log(np.exp(out).sum(-1, keepdims=True))
        return np.take_along_axis(out, batch.action[:, None], -1)[:, 0]
    log_std = ref.clip(actor["log_std"], *agent.policy.log_std_range)
    z = (batch.action - np.tanh(out)) / np.exp(log_std)
    return (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)


def q_of(critic, batch, agent):
    """The values of the batch's actions by each critic: ``[E, B]``."""
    if isinstance(agent.critic, Critic):
        return ref.critics(critic, batch.obs, batch.action, agent)[..., 0]
    no_action = batch.obs[:, :0]
    values = ref.critics(critic, batch.obs, no_action, agent)
    return np.take_along_axis(values, batch.action[None, :, None], -1)[..., 0]


def numpy_step(learner, batch, updates):
    """V, then the actor by the new V, critics by the new V, and target critics."""
    agent, params = learner.agent, learner.params
    q = q_of(learner.targets["critic"], batch, agent).min(0)

    def value(layers, obs):
        return ref.mlp(layers["network"], obs, agent.value.activation)[:, 0]

    def value_loss(layers):
        u = q - value(layers, batch.obs)
        return (np.abs(agent.expectile - (u.real < 0)) * u**2).mean()

    def actor_loss(actor):
        weight = np.minimum(
            np.exp(agent.temperature * (q - value(params["value"], batch.obs))), 100
        )
        weights.append(weight)
        return -(weight * log_prob(actor, batch, agent)).mean()

    def critic_loss(critic):
        y = batch.reward + batch.discount * value(params["value"], batch.next_obs)
        return ((q_of(critic, batch, agent) - y) ** 2).mean(-1).sum()

    weights = []
    rate = agent.actor_learning_rate
    if agent.lr_decay_steps:
        rate = rate * (1 + np.cos(np.pi * min(1.0, updates / agent.lr_decay_steps))) / 2
    learner.step("value", ref.gradient(value_loss, params["value"]), agent.value_learning_rate)
    if (updates + 1) % agent.policy_delay == 0:
        learner.step("actor", ref.gradient(actor_loss, params["actor"]), rate)
    learner.step("critic", ref.gradient(critic_loss, params["critic"]), agent.critic_learning_rate)
    learner.update_targets()
    return weights[-1] if weights else np.zeros(0)


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ({"lr_decay_steps": 3.0, "temperature": 20.0}, ref.SPEC),
        (
            {"policy_delay": 2, "expectile": 0.9, "critic.num_critics": 3, "temperature": 10.0},
            ref.SPEC,
        ),
        ({"temperature": 2.0}, DISCRETE),
    ],
    ids=["decayed", "delayed", "discrete"],
)
def test_update_matches_numpy(options, spec):
    agent = small(options, spec)
    weights = []
    with jax.enable_x64(True):
        state = ref.state(agent)
        learner = ref.Learner(agent, state)
        for updates in range(4):
            batch = ref.row(ref.batches(1, seed=updates), 0)
            if spec is DISCRETE:
                batch = batch._replace(action=jnp.arange(ref.BATCH, dtype=jnp.int32) % 3)
            actor = (updates + 1) % agent.policy_delay == 0
            step = ref.update if actor else ref.without_actor
            state, metrics = step(agent, state, batch, KEY)
            learner.norms = {name: [] for name in learner.params}
            weights.extend(numpy_step(learner, jax.tree.map(np.asarray, batch), updates))
            assert ("actor_loss" in metrics) == actor
            learner.norms = {name: norms for name, norms in learner.norms.items() if norms}
            learner.assert_equals(state, m.values(metrics))
        assert state.gradient_steps == 4
    assert {0, 1} == {*np.digitize(weights, [100])}  # some are clipped


def test_temperature_of_zero_is_behaviour_cloning():
    """Gradients for the policy, of every family."""
    batch = ref.row(ref.batches(1), 0)
    families = (Gaussian(), TanhGaussian(), Deterministic(), AutoPolicy(squash_mean=True))

    @jax.jit
    def gradients():
        found = []
        for policy in families:
            agent = small({"temperature": 0.0}).replace(policy=policy.replace(hidden_dims=(5,)))
            agent, q = agent.bind(ref.SPEC), 7.0 * batch.reward
            state, clone = agent.init(KEY), BC(policy=agent.policy)
            params = state.actor.params
            ours = jax.grad(agent.actor_loss, has_aux=True)(params, state, batch, q, KEY)[0]
            theirs = jax.grad(clone.policy_loss, has_aux=True)(params, batch, KEY)[0]
            found.append((ours, theirs))
        return found

    for ours, theirs in gradients():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), ours, theirs)
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(ours)) > 0.01


# --- a tabular problem --------------------------------------------------------------------------

# Two actions lead from the first state to the second, whose three actions end the episode.
STATE = np.array([0, 0, 1, 1, 1])
ACTIONS = np.array([0, 1, 0, 1, 2])
REWARD = np.array([0.0, 0.5, 0.0, 1.0, 2.0])
DISCOUNT = np.where(STATE == 0, 0.9, 0.0)
EXPECTILES = np.array([0.5, 0.7, 0.999])


def expectile(x, tau):
    """The number at which ``tau`` times what is above equals ``1 - tau`` times what is below."""
    value = x.mean()
    for _ in range(10_000):
        weight = np.where(x > value, tau, 1 - tau)
        value = (weight * x).sum() / weight.sum()
    return value


@pytest.fixture(scope="module")
def tabular():
    """IQL with linear networks of one-hot states, for each expectile: agent and states."""
    linear = {f"{name}.hidden_dims": () for name in ("policy", "critic", "value")}
    rates = dict.fromkeys(RATES, 0.02) | {"tau": 0.1, "temperature": 1.0}
    agent = ref.agent_of(IQL, linear | rates).bind(Spec(Box(0.0, 1.0, (2,)), Discrete(3)))
    one_hot = jnp.eye(2)
    batch = Batch(one_hot[STATE], jnp.asarray(ACTIONS), jnp.float32(REWARD),
                  jnp.float32(DISCOUNT), one_hot[1 - STATE], {})  # fmt: skip
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (3_000, *x.shape)), batch)

    def learn(expectile, key):
        own = hyper.replace(agent, {"expectile": expectile})
        return gradient_steps(own, own.init(key), repeated, key)[0]

    keys = jax.random.split(KEY, len(EXPECTILES))
    return agent, jax.jit(jax.vmap(learn))(jnp.float32(EXPECTILES), keys)


def test_values_are_expectiles_over_the_data_s_actions(tabular):
    """The mean at 0.5, the maximum near 1, and the fixed point in between."""
    agent, states = tabular
    value = jax.vmap(lambda params: agent.value(params, jnp.eye(2)))(states.value.params)
    for i, tau in enumerate(EXPECTILES):
        last = expectile(REWARD[2:], tau)
        first = expectile(REWARD[:2] + 0.9 * last, tau)
        np.testing.assert_allclose(value[i], [first, last], atol=0.02)
    np.testing.assert_allclose(value[0], [0.25 + 0.9, 1.0], atol=0.02)
    np.testing.assert_allclose(value[2], [0.5 + 0.9 * 2.0, 2.0], atol=0.02)


def test_the_policy_weighs_the_data_s_actions_by_their_advantage(tabular):
    agent, states = tabular
    logits = jax.vmap(lambda params: agent.policy.output(params, jnp.eye(2)))(states.actor.params)
    found = jax.nn.softmax(logits)
    weight = np.exp(REWARD[2:])  # V is the same for all, and drops out
    np.testing.assert_allclose(found[:, 1], np.tile(weight / weight.sum(), (3, 1)), atol=0.02)
    np.testing.assert_allclose(found[:, 0, 2], 0.0, atol=0.02)  # no data have it
    ratio = found[:, 0, 1] / found[:, 0, 0]
    np.testing.assert_allclose(ratio, np.exp(0.5), atol=0.05)


# --- sweeps and options -------------------------------------------------------------------------


def test_one_program_sweeps_expectile_temperature_and_seeds():
    agent, batch = small(), ref.row(ref.batches(1), 0)
    names = ("expectile", "temperature")

    def update(values, state):
        own = hyper.replace(agent, dict(zip(names, values, strict=True)))
        return own.update(state, batch, KEY)[0]

    values = np.float32([[0.5, 0.1], [0.9, 0.2]])
    states = [ref.state(agent, seed) for seed in range(2)]
    together = jax.jit(jax.vmap(update))(values, jax.tree.map(lambda *x: jnp.stack(x), *states))
    one = jax.jit(update)
    for i, state in enumerate(states):
        found = jax.tree.map(lambda x, i=i: x[i], together)
        expected = one(values[i], state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, expected)


def test_parts_and_options():
    agent = IQL().bind(ref.SPEC)
    assert type(agent.policy) is Gaussian and type(agent.critic) is Critic
    assert (agent.policy.std, agent.policy.squash_mean) == ("clipped", True)
    assert agent.bind(ref.SPEC) == agent
    agent = IQL().bind(DISCRETE)
    assert type(agent.policy) is Categorical and type(agent.critic) is DiscreteCritic
    assert agent.bind(DISCRETE) == agent
    with pytest.raises(UsageError, match="expectile is 1.5; it must be at least 0 and at most 1"):
        protocol.check(IQL(expectile=1.5), 8)
    with pytest.raises(UsageError, match=r"IQL needs a policy with sample\(\)"):
        IQL(policy=ValueFunction()).bind(ref.SPEC)


# --- what it added to the parts -----------------------------------------------------------------


def test_a_squashed_policy_is_squashed_once():
    """Its best action reaches the bounds."""
    policy = hyper.override(IQL(), {"policy": {"squash": True}}).bind(ref.SPEC).policy
    assert type(policy) is TanhGaussian
    params = jax.tree.map(lambda x: 100.0 * x, policy.init(KEY))
    obs = jax.random.normal(KEY, (50, ref.OBS))
    assert jnp.abs(policy.mode(params, obs)).max() > 0.99
    with pytest.raises(UsageError, match="squash_mean is True, and TanhGaussian passes its sampl"):
        TanhGaussian(squash_mean=True).bind(ref.SPEC)


def test_cosine_decay_falls_from_one_to_zero_and_stays():
    steps = jnp.array([0, 5, 10, 15])
    np.testing.assert_allclose(optim.cosine_decay(steps, 10.0), [1.0, 0.5, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(optim.cosine_decay(steps, 0.0), 1.0)


def test_squashed_means_keep_the_density_of_a_normal_and_actions_in_bounds():
    policy = Gaussian(hidden_dims=(4,), std="clipped", log_std_range=(-5.0, 2.0), squash_mean=True)
    policy = policy.bind(ref.SPEC)
    params = jax.tree.map(lambda x: 3.0 * x, policy.init(KEY)) | {"log_std": jnp.array([9.0, -9.0])}
    obs = jax.random.normal(KEY, (500, ref.OBS))
    dist = policy.dist(params, obs)
    assert isinstance(dist, ClippedNormal)
    np.testing.assert_allclose(dist.mean, jnp.tanh(policy.output(params, obs)), rtol=1e-5)
    np.testing.assert_allclose(dist.std[0], np.exp([2.0, -5.0]), rtol=1e-5)
    action, trace = dist.sample(jax.random.key(1))
    assert np.abs(action).max() == 1.0 < np.abs(trace.raw).max()
    np.testing.assert_array_equal(action, jnp.clip(trace.raw, -1.0, 1.0))
    normal = Normal(dist.mean, dist.std)
    np.testing.assert_allclose(trace.log_prob, normal.trace(trace.raw).log_prob, rtol=1e-5)
    loss = policy.fit_loss(params, obs, action, KEY)
    np.testing.assert_allclose(-loss, normal.trace(action).log_prob, rtol=1e-5)
    with pytest.warns(UserWarning, match=r"^Gaussian acts in \[-1, 1\]"):
        policy.bind(Spec(ref.SPEC.observation, Box(-np.inf, np.inf, (2,))))


def test_critics_of_indices_gather_from_the_values_of_all_actions():
    critic = AutoCritic(hidden_dims=(4,), num_critics=3).bind(DISCRETE)
    params = critic.init(KEY)
    obs, action = jax.random.normal(KEY, (7, 5, ref.OBS)), jnp.arange(35).reshape(7, 5) % 3
    values = critic.values(params, obs)
    assert values.shape == (3, 7, 5, 3)
    expected = np.take_along_axis(np.asarray(values), np.asarray(action)[None, ..., None], -1)
    np.testing.assert_allclose(critic(params, obs, action), expected[..., 0], rtol=1e-6)
    with pytest.raises(UsageError, match="^DiscreteCritic needs discrete actions"):
        critic.bind(ref.SPEC)


def test_critics_value_several_actions_of_each_observation():
    critic = Critic(hidden_dims=(4,)).bind(ref.SPEC)
    params, obs = critic.init(KEY), jax.random.normal(KEY, (5, ref.OBS))
    action = jax.random.uniform(KEY, (7, 5, ref.ACTION))
    repeated = jnp.broadcast_to(obs, (7, *obs.shape))
    np.testing.assert_array_equal(critic(params, obs, action), critic(params, repeated, action))
