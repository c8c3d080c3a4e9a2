"""DQN: updates against numpy, the target network, the probes, and its options."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import trainer_of

from jaxrl import DQN, NormalizeObs, OffPolicy, ScaleReward, UsageError, VectorEnv, make
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.agents.dqn import DQNState
from jaxrl.nn.critics import QNetwork
from jaxrl.nn.encoders import Flatten
from jaxrl.optim import Adam
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.types import Batch, Box, Discrete, Spec

KEY = jax.random.key(0)
OBS, ACTIONS, BATCH = (2, 2), 3, 6
SPEC = Spec(Box(-np.inf, np.inf, OBS), Discrete(ACTIONS))

# Agents are pytrees: one program serves all numbers.
update = jax.jit(lambda agent, state, batch: agent.update(state, batch, KEY))
updates = jax.jit(lambda agent, state, batches: gradient_steps(agent, state, batches, KEY))
values = jax.jit(lambda agent, state, obs: agent.q_network(state.q.params, obs))


def batches(steps, n_step=1, seed=0, gamma=0.99):
    """Batches ``[G, B]``: terminated or not, and errors on both sides of Huber's width."""
    rng = np.random.default_rng(seed)
    shape = (steps, BATCH)
    obs, next_obs = rng.normal(size=(2, *shape, *OBS))
    reward = rng.normal(size=shape) * 10.0 ** rng.uniform(-1.0, 1.0, shape)
    ends = rng.permuted(np.tile(np.arange(BATCH), (steps, 1)), axis=1)
    discount = np.where(ends == 0, 0.0, gamma ** rng.integers(1, n_step + 1, shape))
    action = rng.integers(0, ACTIONS, shape)
    return jax.tree.map(jnp.asarray, Batch(obs, action, reward, discount, next_obs, {}))


def narrowed(tree):
    """In the precision of training."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, tree)


def scrambled(agent, seed=0):
    """A state with other weights in the Q-network than in the target network."""
    rng = np.random.default_rng(seed)
    params = jax.eval_shape(agent.init, KEY).target_q
    q, target = (jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), params) for _ in "qt")
    return DQNState(agent.optimizer.start(q), target, jnp.int32(0))


# --- against numpy ------------------------------------------------------------------------------


def mlp(layers, x):
    """A plain network; without a head, its last hidden layer."""
    for i in range(sum(name.startswith("layer_") for name in layers)):
        x = x @ layers[f"layer_{i}"]["kernel"] + layers[f"layer_{i}"]["bias"]
        if f"norm_{i}" in layers:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
            x = x * layers[f"norm_{i}"]["scale"] + layers[f"norm_{i}"]["bias"]
        x = np.where(x.real > 0, x, 0)
    return x @ layers["head"]["kernel"] + layers["head"]["bias"] if "head" in layers else x


def q_values(agent, params, obs):
    layers, x = params["network"], obs.reshape(len(obs), -1)
    if not agent.q_network.dueling:
        return mlp(layers, x)
    x = mlp(layers["shared"], x) if "shared" in layers else x
    advantage = mlp(layers["advantage"], x)
    return mlp(layers["value"], x) + advantage - advantage.mean(-1, keepdims=True)


def target(agent, params, target_params, batch):
    """Row by row, as the papers have it."""
    y = np.array(batch.reward)
    next_q = q_values(agent, target_params, batch.next_obs)
    judged = q_values(agent, params, batch.next_obs)
    for i in np.flatnonzero(batch.discount):
        best = next_q[i, np.argmax(judged[i])] if agent.double else max(next_q[i])
        y[i] += batch.discount[i] * best
    return y


def loss(agent, params, batch, y):
    error = q_values(agent, params, batch.obs)[np.arange(BATCH), batch.action] - y
    if agent.huber is None:
        return (error**2 / 2).mean()
    size = np.where(error.real > 0, error, -error)
    far = agent.huber * (size - agent.huber / 2)
    return np.where(size.real > agent.huber, far, error**2 / 2).mean()


def gradient(f, params):
    """By complex steps, which are exact to the last digits."""
    leaves, tree = jax.tree.flatten(params)
    slopes = []
    for i, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            moved = leaf.astype(complex)
            moved[index] += 1e-30j
            slopes.append(f(tree.unflatten([*leaves[:i], moved, *leaves[i + 1 :]])).imag / 1e-30)
    return np.array(slopes)


@pytest.mark.parametrize(
    ("options", "network", "n_step"),
    [
        ({"double": False, "huber": None}, {}, 1),
        ({"huber": None}, {}, 3),
        ({"double": False, "tau": 0.3}, {}, 2),
        (
            {"optimizer": Adam(max_grad_norm=0.5)},
            {"dueling": True, "hidden_dims": (4, 3), "layer_norm": True},
            2,
        ),
        ({"huber": 3.0}, {"dueling": True}, 2),
    ],
    ids=["plain", "double, 3 steps", "plain, Huber, Polyak", "dueling, normalised", "dueling"],
)
def test_updates_equal_a_numpy_transcription(options, network, n_step):
    options = {"learning_rate": 0.02, "target_every": 2, "lr_decay_steps": 4.0} | options
    agent = DQN(q_network=QNetwork(**({"hidden_dims": (4,)} | network)), **options).bind(SPEC)
    with jax.enable_x64(True):
        state = scrambled(agent)
        batch = batches(3, n_step, gamma=0.9)
        new, metrics = updates(agent, state, batch)

        start = (state.q.params, state.target_q)
        params, slow = jax.tree.map(lambda x: np.array(x, float), start)
        rows = jax.tree.map(np.asarray, batch)
        mean = var = 0.0
        losses = []
        for g in range(3):
            row = jax.tree.map(lambda x, g=g: x[g], rows)
            y = target(agent, params, slow, row)
            losses.append(loss(agent, params, row, y))
            slopes = gradient(lambda p, row=row, y=y: loss(agent, p, row, y), params)
            if agent.optimizer.max_grad_norm is not None:
                slopes *= min(1.0, agent.optimizer.max_grad_norm / np.linalg.norm(slopes))
            mean, var = 0.9 * mean + 0.1 * slopes, 0.999 * var + 0.001 * slopes**2
            step = mean / (1 - 0.9 ** (g + 1))
            step = step / (np.sqrt(var / (1 - 0.999 ** (g + 1))) + 1e-8)
            leaves, tree = jax.tree.flatten(params)
            pieces = np.split(0.02 * (1 - g / 4) * step, np.cumsum([x.size for x in leaves])[:-1])
            moved = [x - p.reshape(x.shape) for x, p in zip(leaves, pieces, strict=True)]
            params = tree.unflatten(moved)
            if g == 1:
                slow = closer(slow, params, agent.tau)

        for found, expected in ((new.q.params, params), (new.target_q, slow)):
            assert_near(found, expected, 1e-6)
        found = m.values(metrics)
        assert found["q_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert new.gradient_steps == 3 and found["skipped_updates"] == 0


def test_double_lets_the_network_choose_what_the_target_network_values():
    def table(*rows):
        head = {"kernel": jnp.array(rows), "bias": jnp.zeros(2)}
        return {"encoder": {}, "network": {"head": head}}

    online, slow = table([1.0, 3.0], [2.0, 1.0]), table([5.0, 2.0], [4.0, 0.0])
    agent = DQN(q_network=QNetwork(hidden_dims=()), huber=None)
    agent = agent.bind(Spec(Box(0.0, 1.0, (2,)), Discrete(2)))
    state = DQNState(agent.optimizer.start(online), slow, jnp.int32(0))
    zero = table([0.0, 0.0], [0.0, 0.0])
    obs = jnp.eye(2)[jnp.array([0, 1, 0, 0])]  # the first state twice more
    discount = jnp.array([0.5, 0.5, 0.0, 0.125])  # one step, one step, terminated, three steps
    batch = Batch(obs, jnp.zeros(4, jnp.int32), jnp.ones(4), discount, obs, {})

    @jax.jit
    def targets(agent):
        """``sqrt(2 loss)`` of each row by itself, where Q is 0 and targets are positive."""
        rows = jax.tree.map(lambda x: x[:, None], batch)
        return jnp.sqrt(2.0 * jax.vmap(lambda row: agent.q_loss(zero, state, row)[0])(rows))

    double, plain = targets(agent), targets(agent.replace(double=False))
    np.testing.assert_allclose(double, [1 + 0.5 * 2, 1 + 0.5 * 4, 1, 1 + 0.125 * 2], rtol=1e-6)
    np.testing.assert_allclose(plain, [1 + 0.5 * 5, 1 + 0.5 * 4, 1, 1 + 0.125 * 5], rtol=1e-6)


# --- the target network -------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_the_target_network_moves_every_so_many_gradient_steps_and_not_between(tau):
    agent = DQN(q_network=QNetwork((4,)), learning_rate=0.1, tau=tau, target_every=3).bind(SPEC)
    first = state = agent.init(KEY)
    batch = narrowed(batches(7))
    for g in range(7):
        before = state
        state, _ = update(agent, state, jax.tree.map(lambda x, g=g: x[g], batch))
        if g in (2, 5):
            assert_near(state.target_q, closer(before.target_q, state.q.params, tau), 1e-5)
        else:
            jax.tree.map(equal, state.target_q, before.target_q)
    whole, _ = updates(agent, first, batch)
    assert_near(whole.target_q, state.target_q, 1e-4)
    assert_near(whole.q.params, state.q.params, 1e-4)


def closer(slow, params, tau):
    return jax.tree.map(lambda s, p: (1 - tau) * s + tau * p, slow, params)


def assert_near(found, expected, rtol):
    def near(a, b):
        np.testing.assert_allclose(a, b, rtol, 0.1 * rtol)

    jax.tree.map(near, found, expected)


def equal(a, b):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("huber", "value"),
    [
        (None, 1 / (1 - 0.9 * 0.9)),  # v = 0.9 (1 + 0.9 v) + 0.1: the expected return, 5.26
        (1.0, 0.8 / 0.09),  # 0.9 (1 + 0.9 v - v) - 0.1 = 0, as the error at the end is clipped
        (10.0, 1 / (1 - 0.9 * 0.9)),  # more than any error
    ],
)
def test_values_are_expected_returns_unless_errors_are_clipped(huber, value):
    """Rewards of 1, which end with probability 0.1; one observation, and one action."""
    agent = DQN(
        q_network=QNetwork(hidden_dims=()),
        huber=huber,
        gamma=0.9,
        learning_rate=0.01,
        target_every=1,
    ).bind(Spec(Box(0.0, 1.0, (1,)), Discrete(1)))
    obs, rows = jnp.ones((10, 1)), jnp.ones(10)
    discount = 0.9 * rows.at[0].set(0.0)
    batch = Batch(obs, jnp.zeros(10, jnp.int32), rows, discount, obs, {})

    def step(state, _):
        return agent.update(state, batch, KEY)[0], None

    learn = jax.jit(lambda state: jax.lax.scan(step, state, None, 6_000)[0])
    q = agent.q_network(learn(agent.init(KEY)).q.params, obs)[0, 0]
    assert float(q) == pytest.approx(value, abs=0.02)


def test_epsilon_is_reported():
    agent = DQN(q_network=QNetwork((4,)), epsilon_start=0.9, epsilon_end=0.1, epsilon_decay_steps=4)
    agent = agent.bind(SPEC)
    _, metrics = updates(agent, agent.init(KEY), narrowed(batches(3)))
    assert m.values(metrics)["epsilon"] == pytest.approx(0.7)  # of gradient steps 0, 1, 2


# --- probes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solve():
    """Train on a probe, and give the largest Q-values and greedy actions for observations."""

    def train(name, steps=24_000, dueling=False, **options):
        env = make(f"probe/{name}")
        agent = DQN(
            q_network=QNetwork(hidden_dims=(32,), dueling=dueling),
            learning_rate=3e-3,
            gamma=0.9,
            tau=0.1,
            target_every=5,
            epsilon_end=0.2,
            epsilon_decay_steps=steps / 64,
            **options,
        )
        sizes = {"batch_size": 64, "buffer_size": 8_000, "learning_starts": 1_000}
        n_step = 2 if name == "delayed" else 1
        trainer = OffPolicy(agent, VectorEnv(env, 8), **sizes, n_step=n_step)
        ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, steps)
        agent = trainer.agent

        def value(obs):
            return np.asarray(values(agent, ts.agent, jnp.array(obs)).max(-1))

        def act(obs):
            return np.asarray(agent.act(ts.agent, (), jnp.array(obs), KEY, "greedy")[0])

        return env, value, act

    return train


@pytest.mark.parametrize("name", ["constant", "observation", "delayed", "action", "both"])
def test_solves_the_probes(solve, name):
    env, value, act = solve(name, dueling=name == "both")
    seen = {"constant": [0.0], "delayed": [0.0, 1.0], "action": [1.0]}
    obs = jnp.array(seen.get(name, [-1.0, 1.0]))[:, None]
    np.testing.assert_allclose(value(obs), env.value(obs, 0.9), atol=0.05)
    if name in ("action", "both"):
        np.testing.assert_array_equal(act(obs), env.best_action(obs))


@pytest.mark.parametrize("double", [False, True])
def test_a_time_limit_is_not_an_end(solve, double):
    """The learnt value is that of going on for ever, within 2 %."""
    _, value, _ = solve("time_limit", steps=40_000, double=double)
    assert value([[0.0]])[0] == pytest.approx(1 / (1 - 0.9), rel=0.02)


@pytest.mark.parametrize("double", [False, True])
def test_termination_is_an_end(solve, double):
    """The learnt values are those of the finite sums, within 2 %."""
    env, value, _ = solve("termination", steps=40_000, double=double)
    obs = jnp.arange(1, env.length + 1)[:, None] / env.length
    np.testing.assert_allclose(value(obs), env.value(obs, 0.9), rtol=0.02)


def test_it_sees_the_part_of_a_dictionary_that_it_is_told():
    agent = DQN(q_network=QNetwork((8,), encoder=Flatten(obs_keys=("privileged_state",))))
    env = VectorEnv(make("probe/privileged"), 4)
    sizes = {"buffer_size": 64, "learning_starts": 16, "batch_size": 8}
    trainer = OffPolicy(NormalizeObs(agent), env, **sizes)
    ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, 64)
    agent, state = trainer.agent.agent, ts.agent.agent
    seen = {"state": jnp.ones((3, 1)), "privileged_state": jnp.array([[-1.0], [0.0], [1.0]])}
    found = values(agent, state, seen)
    equal(found, values(agent, state, seen | {"state": jnp.full((3, 1), jnp.nan)}))
    assert np.isfinite(found).all() and len(np.unique(found[:, 0])) == 3


# --- a whole run --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.optimized
def test_learns_cart_pole():
    """The mean of four seeds, which reach 200 to 500."""
    agent = DQN(
        q_network=QNetwork(hidden_dims=(64, 64), layer_norm=True),
        learning_rate=1e-3,
        tau=0.02,
        target_every=1,
        epsilon_decay_steps=1_000.0,
    )
    env = VectorEnv(make("gymnax/CartPole-v1"), 8)
    sizes = {"batch_size": 64, "buffer_size": 20_000, "learning_starts": 1_000, "n_step": 3}
    trainer = OffPolicy(ScaleReward(agent, 0.1), env, **sizes, cycles=50)
    keys = jax.random.split(KEY, 4)
    whole = jax.jit(jax.vmap(lambda key: trainer.train(key, 31_000)[0]))(keys)
    evaluate = jax.jit(jax.vmap(lambda ts: trainer.evaluate(ts, jax.random.key(1), 16).returns))
    assert evaluate(jax.jit(jax.vmap(trainer.init))(keys)).mean() < 100
    assert evaluate(whole).mean() > 250


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0; it must be more than 0"),
        ({"gamma": 1.2}, "gamma is 1.2; it must be at least 0 and at most 1"),
        ({"tau": -0.1}, "tau is -0.1; it must be at least 0 and at most 1"),
        ({"target_every": 0}, "target_every is 0; it must be at least 1"),
        ({"huber": 0.0}, "huber is 0; it must be more than 0"),
        ({"huber": math.inf}, "huber is inf; it must be more than 0 and finite"),
        ({"epsilon_start": -0.1}, "epsilon_start is -0.1; it must be at least 0 and at most 1"),
        ({"epsilon_end": 1.5}, "epsilon_end is 1.5; it must be at least 0 and at most 1"),
        ({"epsilon_decay_steps": -1.0}, "epsilon_decay_steps is -1; it must be at least 0"),
        ({"lr_decay_steps": -1.0}, "lr_decay_steps is -1; it must be at least 0"),
        ({"double": 1}, "double is 1; it must be True or False"),
        (
            {"q_network": QNetwork(hidden_dims=(64, 0))},
            "q_network.hidden_dims is 0; it must be at least 1",
        ),
        (
            {"q_network": QNetwork(activation="relu6")},
            "q_network.activation is 'relu6'; did you mean relu, elu, gelu?",
        ),
        ({"optimizer": Adam(eps=0.0)}, "optimizer.eps is 0; it must be more than 0"),
    ],
)
def test_hyper_parameters_that_cannot_work_are_refused(options, message):
    with pytest.raises(UsageError) as error:
        protocol.check(DQN(**options).bind(SPEC), 256)
    assert str(error.value) == message


def test_hyper_parameters_that_can_work_are_accepted():
    protocol.check(DQN(huber=None).bind(SPEC), 256)
    protocol.check(DQN(target_every=1, tau=1.0, gamma=1.0, epsilon_start=0.0).bind(SPEC), 256)


def test_schedules_follow_the_run_s_length_unless_told_otherwise():
    words = "--total-steps 1100 --learning-starts 100 --num-envs 2 --num-steps 5 --num-updates 3"
    words += " --epsilon-fraction 0.25 --reward-scale 1"
    for more, epsilon_decay_steps, lr_decay_steps in [
        (" --anneal", 75.0, 300.0),
        (" --no-anneal --agent.epsilon-decay-steps 7", 7.0, 0.0),
        (" --anneal --agent.lr-decay-steps 9", 75.0, 9.0),
    ]:
        agent = trainer_of("dqn", words + more).agent
        assert agent.epsilon_decay_steps == epsilon_decay_steps
        assert agent.lr_decay_steps == lr_decay_steps
