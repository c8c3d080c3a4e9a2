"""PQN: one update against numpy, its rollouts, the probes, and its options."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import numerical_gradient, trainer_of

from jaxrl import PQN, NormalizeObs, OnPolicy, ScaleReward, UsageError, VectorEnv, make
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.nn import running_statistics
from jaxrl.nn.critics import QNetwork
from jaxrl.nn.encoders import Flatten
from jaxrl.optim import Adam
from jaxrl.sharding import reducing_over
from jaxrl.training import rollout

# Agents are pytrees: one program serves all numbers.
targets = jax.jit(lambda agent, state, batch: agent.targets(state.q.params, batch))
largest_q = jax.jit(lambda agent, state, obs: agent.q_network(state.q.params, obs).max(-1))
update = jax.jit(lambda agent, state, batch, key: agent.update(state, batch, key))


def pqn(hidden_dims=(8,), optimizer=None, network=None, **options):
    """PQN with a small network, and other fields of its default parts."""
    default = PQN()
    return PQN(
        q_network=default.q_network.replace(hidden_dims=hidden_dims, **(network or {})),
        optimizer=default.optimizer.replace(**(optimizer or {})),
        **options,
    )


@pytest.fixture(scope="module")
def first_rollout():
    """A small agent, its state and a rollout ``[8, 4]`` with both kinds of end."""
    venv = VectorEnv(make("gymnax/CartPole-v1"), 4, max_steps=5)
    agent = pqn((3,), learning_rate=0.01, update_epochs=2, num_minibatches=1).bind(venv.spec)
    state = agent.init(jax.random.key(0))
    noise = jax.random.normal(jax.random.key(7), (200,))
    params = jax.tree.map(lambda p: p + 0.3 * noise[: p.size].reshape(p.shape), state.q.params)
    state = state._replace(q=agent.optimizer.start(params))
    env_state = venv.reset(jax.random.key(1))
    _, _, batch, _ = rollout(agent, state, venv, env_state, (), jax.random.key(2), 8)
    assert batch.truncated.any()
    ends = jnp.zeros_like(batch.terminated).at[6, 1].set(True).at[7, 2].set(True)
    return agent, state, batch._replace(terminated=ends, truncated=batch.truncated & ~ends)


# --- numpy transcription ------------------------------------------------------------------------


def q_values(params, x):
    p = params["network"]
    x = x @ p["layer_0"]["kernel"] + p["layer_0"]["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = np.maximum(x * p["norm_0"]["scale"] + p["norm_0"]["bias"], 0)
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def lambda_returns(b, next_value, gamma, lam):
    T, N = b.reward.shape
    G = np.zeros((T, N))
    for n in range(N):
        for t in reversed(range(T)):
            bracket = next_value[t, n]
            if t + 1 < T and not b.truncated[t, n]:
                bracket = lam * G[t + 1, n] + (1 - lam) * next_value[t, n]
            G[t, n] = b.reward[t, n] + (0.0 if b.terminated[t, n] else gamma * bracket)
    return G


def test_one_update_equals_a_numpy_transcription(first_rollout):
    agent, state, batch = first_rollout
    clipping = agent.optimizer.replace(max_grad_norm=0.2)
    agent = agent.replace(update_epochs=7, optimizer=clipping, lr_decay_steps=4.0)  # RAdam: from 6
    state = state._replace(updates=jnp.int32(1))  # so the rate is 0.01 * 3/4
    new, metrics = update(agent, state, batch, jax.random.key(3))

    params = jax.tree.map(lambda p: np.array(p, np.float64), state.q.params)
    b = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == jnp.float32 else None), batch)
    target = lambda_returns(b, q_values(params, b.next_obs).max(-1), agent.gamma, agent.q_lambda)
    obs, action, target = b.obs.reshape(32, 4), b.action.ravel(), target.ravel()

    def loss(params):
        return 0.5 * ((q_values(params, obs)[np.arange(32), action] - target) ** 2).mean()

    first, mean, var = loss(params), 0.0, 0.0
    rho_inf = 2 / (1 - 0.999) - 1
    losses = []
    for step in range(1, 8):
        losses.append(loss(params))
        g = np.concatenate([x.ravel() for x in numerical_gradient(loss, params)[0]])
        g *= min(1.0, agent.optimizer.max_grad_norm / np.linalg.norm(g))
        mean, var = 0.9 * mean + 0.1 * g, 0.999 * var + 0.001 * g**2
        change = mean / (1 - 0.9**step)
        rho = rho_inf - 2 * step * 0.999**step / (1 - 0.999**step)
        if rho >= 5:
            r = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            change = np.sqrt(r) * change / (np.sqrt(var / (1 - 0.999**step)) + 1e-8)
        leaves, tree = jax.tree.flatten(params)
        pieces = np.split(0.01 * 0.75 * change, np.cumsum([x.size for x in leaves])[:-1])
        moved = [x - p.reshape(x.shape) for x, p in zip(leaves, pieces, strict=True)]
        params = tree.unflatten(moved)

    for found, expected in zip(jax.tree.leaves(new.q.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    values = m.values(metrics)
    assert values["q_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert losses[-1] < first and values["skipped_updates"] == 0 and new.updates == 2


def test_lambda_0_is_one_step_q_learning_and_lambda_1_is_monte_carlo(first_rollout):
    agent, state, batch = first_rollout
    b = jax.tree.map(np.asarray, batch)
    following = np.asarray(largest_q(agent, state, batch.next_obs))
    one_step = b.reward + agent.gamma * ~b.terminated * following
    found = targets(agent.replace(q_lambda=0.0), state, batch)
    np.testing.assert_allclose(found, one_step, rtol=1e-5)

    found = np.asarray(targets(agent.replace(q_lambda=1.0), state, batch))
    for n in range(4):
        for t in range(8):
            ends = [k for k in range(t, 8) if b.terminated[k, n] or b.truncated[k, n]]
            last = ends[0] if ends else 7
            rewards = b.reward[t : last + 1, n] @ agent.gamma ** np.arange(last + 1 - t)
            beyond = 0.0 if b.terminated[last, n] else following[last, n]
            expected = rewards + agent.gamma ** (last + 1 - t) * beyond
            assert found[t, n] == pytest.approx(expected, rel=1e-5)


def test_shards_learn_as_one(first_rollout):
    """Two shards of two environments each make the steps that four environments make."""
    agent, state, batch = first_rollout
    whole, _ = update(agent, state, batch, jax.random.key(3))
    halves = jax.tree.map(lambda x: jnp.stack([x[:, :2], x[:, 2:]]), batch)

    def update_shard(half):
        with reducing_over("shard"):
            return agent.update(state, half, jax.random.key(3))[0]

    sharded = jax.jit(jax.vmap(update_shard, axis_name="shard"))(halves)
    for a, b in zip(
        jax.tree.leaves(sharded.q.params), jax.tree.leaves(whole.q.params), strict=True
    ):
        np.testing.assert_array_equal(a[0], a[1])
        np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6)


def test_scaling_rewards_scales_what_it_learns(first_rollout):
    agent, state, batch = first_rollout
    scaled, _ = update(ScaleReward(agent, 0.5), state, batch, jax.random.key(0))
    halved = batch._replace(reward=0.5 * batch.reward)
    direct, _ = update(agent, state, halved, jax.random.key(0))
    for a, b in zip(
        jax.tree.leaves(scaled.q.params), jax.tree.leaves(direct.q.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# --- exploration --------------------------------------------------------------------------------


def test_epsilon_is_reported(first_rollout):
    agent, state, batch = first_rollout
    agent = agent.replace(epsilon_start=0.9, epsilon_end=0.1, epsilon_decay_steps=4.0)
    state = state._replace(updates=jnp.int32(3))
    _, metrics = update(agent, state, batch, jax.random.key(0))
    assert m.values(metrics)["epsilon"] == pytest.approx(0.3)


def test_a_rollout_s_choices_are_independent_in_time_and_over_environments():
    venv = VectorEnv(make("gymnax/CartPole-v1"), 50)
    agent = pqn((4,), epsilon_start=1.0).bind(venv.spec)
    state, env_state = agent.init(jax.random.key(0)), venv.reset(jax.random.key(1))
    _, _, batch, _ = rollout(agent, state, venv, env_state, (), jax.random.key(2), 40)
    chosen = np.asarray(batch.action)
    assert chosen.shape == (40, 50) and abs(chosen.mean() - 0.5) < 0.05
    assert len(np.unique(chosen, axis=0)) == 40 and len(np.unique(chosen, axis=1).T) == 50
    for a, b in ((chosen[1:], chosen[:-1]), (chosen[:, 1:], chosen[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1


# --- probes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solve():
    """Train on a probe, and give the largest Q-values and greedy actions for observations."""

    def train(name, steps=40_000, **options):
        env = make(f"probe/{name}")
        agent = pqn(
            (32,),
            learning_rate=1e-2,
            gamma=0.9,
            update_epochs=4,
            num_minibatches=4,
            epsilon_end=0.2,
            epsilon_decay_steps=steps / 1024,
            lr_decay_steps=steps / 512,
            **options,
        )
        trainer = OnPolicy(agent, VectorEnv(env, 16), num_steps=32)
        ts, _ = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), steps)
        agent, key = trainer.agent, jax.random.key(0)

        def value(obs):
            return np.asarray(largest_q(agent, ts.agent, jnp.array(obs)))

        def act(obs):
            return np.asarray(agent.act(ts.agent, (), jnp.array(obs), key, "greedy")[0])

        return env, value, act

    return train


@pytest.mark.parametrize("name", ["constant", "observation", "delayed", "action", "both"])
def test_solves_the_probes(solve, name):
    env, value, act = solve(name)
    seen = {"constant": [0.0], "delayed": [0.0, 1.0], "action": [1.0]}
    obs = jnp.array(seen.get(name, [-1.0, 1.0]))[:, None]
    np.testing.assert_allclose(value(obs), env.value(obs, 0.9), atol=0.05)
    if name in ("action", "both"):
        np.testing.assert_array_equal(act(obs), env.best_action(obs))


@pytest.mark.parametrize("q_lambda", [0.0, 0.65])
def test_a_time_limit_is_not_an_end(solve, q_lambda):
    """The learnt value is that of going on for ever, within 2 %."""
    env, value, _ = solve("time_limit", steps=150_000, q_lambda=q_lambda)
    assert value([[0.0]])[0] == pytest.approx(1 / (1 - 0.9), rel=0.02)


@pytest.mark.parametrize("q_lambda", [0.0, 0.65])
def test_termination_is_an_end(solve, q_lambda):
    """The learnt values are those of the finite sums, within 2 %."""
    env, value, _ = solve("termination", steps=150_000, q_lambda=q_lambda)
    obs = jnp.arange(1, env.length + 1)[:, None] / env.length
    np.testing.assert_allclose(value(obs), env.value(obs, 0.9), rtol=0.02)


def test_it_sees_the_part_of_a_dictionary_that_it_is_told():
    told = {"encoder": Flatten(obs_keys=("privileged_state",))}
    agent = NormalizeObs(pqn(network=told, num_minibatches=4))
    trainer = OnPolicy(agent, VectorEnv(make("probe/privileged"), 4), num_steps=8)
    ts, _ = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), 64)
    agent = trainer.agent
    obs = {"state": jnp.ones((3, 1)), "privileged_state": jnp.array([[-1.0], [0.0], [1.0]])}
    seen = running_statistics.normalise(ts.agent.statistics, obs, agent.obs_clip)
    blind = seen | {"state": jnp.full((3, 1), jnp.nan)}
    found = largest_q(agent.agent, ts.agent.agent, blind)
    np.testing.assert_array_equal(found, largest_q(agent.agent, ts.agent.agent, seen))
    assert np.isfinite(found).all() and len(np.unique(found)) > 2


# --- a whole run --------------------------------------------------------------------------------


@pytest.mark.slow
def test_learns_cart_pole():
    agent = NormalizeObs(
        pqn(
            (64,),
            learning_rate=1e-3,
            q_lambda=0.95,
            update_epochs=4,
            num_minibatches=4,
            epsilon_end=0.1,
            epsilon_decay_steps=40.0,
            lr_decay_steps=200.0,
        )
    )
    trainer = OnPolicy(ScaleReward(agent, 0.1), VectorEnv(make("gymnax/CartPole-v1"), 16), 32)
    keys = jax.random.split(jax.random.key(0), 8)
    whole = jax.jit(jax.vmap(lambda key: trainer.train(key, 102_400)[0]))(keys)
    evaluate = jax.jit(jax.vmap(lambda ts: trainer.evaluate(ts, jax.random.key(1), 16).returns))
    assert evaluate(jax.jit(jax.vmap(trainer.init))(keys)).mean() < 150
    # Over 48 seeds the mean is 421 and the deviation 103: one seed alone shows little.
    assert evaluate(whole).mean() > 300


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0; it must be more than 0"),
        (
            {"optimizer": Adam(max_grad_norm=math.inf)},
            "optimizer.max_grad_norm is inf; it must be more than 0 and finite",
        ),
        ({"gamma": 1.2}, "gamma is 1.2; it must be at least 0 and at most 1"),
        ({"q_lambda": -0.1}, "q_lambda is -0.1; it must be at least 0 and at most 1"),
        ({"epsilon_end": 1.5}, "epsilon_end is 1.5; it must be at least 0 and at most 1"),
        ({"epsilon_decay_steps": -1.0}, "epsilon_decay_steps is -1; it must be at least 0"),
        ({"lr_decay_steps": -1.0}, "lr_decay_steps is -1; it must be at least 0"),
        ({"update_epochs": 0}, "update_epochs is 0; it must be at least 1"),
        (
            {"num_minibatches": 3},
            "num_minibatches is 3, which does not divide the 32 transitions of an update; 2 would",
        ),
        (
            {"q_network": QNetwork(hidden_dims=(64, 0))},
            "q_network.hidden_dims is 0; it must be at least 1",
        ),
        (
            {"q_network": QNetwork(activation="relu6")},
            "q_network.activation is 'relu6'; did you mean relu, elu, gelu?",
        ),
    ],
)
def test_hyper_parameters_that_cannot_work_are_refused(options, message):
    agent = PQN(**options).bind(make("gymnax/CartPole-v1").spec)
    with pytest.raises(UsageError) as error:
        protocol.check(agent, 4 * 8)
    assert str(error.value) == message


def test_epsilon_falls_over_a_fraction_of_the_run_unless_told_otherwise():
    words = "--total-steps 1000 --num-envs 2 --num-steps 5 --epsilon-fraction 0.25"
    words += " --reward-scale 1"
    for more, updates in [("", 25.0), (" --agent.epsilon-decay-steps 7", 7.0)]:
        agent = trainer_of("pqn", words + more).agent
        assert (agent.epsilon_decay_steps, agent.lr_decay_steps) == (updates, 100.0)
