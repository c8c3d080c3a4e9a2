"""DQN: updates against numpy, the slow copy, exploration, the probes, and its options."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import script_module

from jaxrl import DQN, NormalizeObs, OffPolicy, ScaleReward, UsageError, VectorEnv, cli, make
from jaxrl import metrics as m
from jaxrl.cli.presets import dqn
from jaxrl.types import Box, Discrete, Spec, Transition

KEY = jax.random.key(0)
OBS, ACTIONS, BATCH = (2, 2), 3, 6
SPEC = Spec(Box(-np.inf, np.inf, OBS), Discrete(ACTIONS))

# Agents are pytrees: one program serves all numbers.
update = jax.jit(lambda agent, state, batch: agent.update(state, batch, KEY))
values = jax.jit(lambda agent, state, obs: agent.values(state.params["q"], obs))


def batches(steps, n_step=1, seed=0):
    """Batches ``[G, B]`` with both kinds of end and errors on both sides of Huber's width."""
    rng = np.random.default_rng(seed)
    shape = (steps, BATCH)
    obs, next_obs = rng.normal(size=(2, *shape, *OBS))
    reward = rng.normal(size=shape) * 10.0 ** rng.uniform(-1.0, 1.0, shape)
    ends = rng.permuted(np.tile(np.arange(BATCH), (steps, 1)), axis=1)
    extras = {"steps": rng.integers(1, n_step + 1, shape)} if n_step > 1 else {}
    action = rng.integers(0, ACTIONS, shape)
    rows = Transition(obs, action, reward, next_obs, ends == 0, ends == 1, extras)
    return jax.tree.map(jnp.asarray, rows)


def scrambled(state, seed=0):
    """The state with other weights in the network and in its slow copy."""
    rng = np.random.default_rng(seed)
    parts = (state.params, state.targets)
    params, targets = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), parts)
    return state._replace(params=params, targets=targets)


# --- against numpy ------------------------------------------------------------------------------


def mlp(layers, x):
    """A plain network; without a head, its last hidden layer."""
    for name in sorted(name for name in layers if name.startswith("layer_")):
        x = x @ layers[name]["kernel"] + layers[name]["bias"]
        if f"norm_{name}" in layers:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
            x = x * layers[f"norm_{name}"]["scale"] + layers[f"norm_{name}"]["bias"]
        x = np.where(x.real > 0, x, 0)
    return x @ layers["head"]["kernel"] + layers["head"]["bias"] if "head" in layers else x


def q_values(agent, params, obs):
    layers, x = params["params"], obs.reshape(len(obs), -1)
    if not agent.dueling:
        return mlp(layers, x)
    x = mlp(layers["shared"], x) if "shared" in layers else x
    advantage = mlp(layers["advantage"], x)
    return mlp(layers["value"], x) + advantage - advantage.mean(-1, keepdims=True)


def target(agent, params, slow, batch):
    """Row by row, as the papers have it."""
    y = np.array(batch.reward)
    following = q_values(agent, slow, batch.next_obs)
    judged = q_values(agent, params, batch.next_obs)
    steps = batch.extras.get("steps", np.ones(BATCH, int))
    for i in np.flatnonzero(~batch.terminated):
        best = following[i, np.argmax(judged[i])] if agent.double else max(following[i])
        y[i] += agent.gamma ** steps[i] * best
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
    "options",
    [
        {"double": False, "huber": None, "n_step": 1},
        {"huber": None, "n_step": 3},
        {"double": False, "tau": 0.3},
        {"dueling": True, "hidden": (4, 3), "layer_norm": True, "max_grad_norm": 0.5},
        {"dueling": True, "huber": 3.0},
    ],
    ids=["plain", "double, 3 steps", "plain, Huber, Polyak", "dueling, normalised", "dueling"],
)
def test_updates_equal_a_numpy_transcription(options):
    n_step = options.pop("n_step", 2)
    agent = DQN(**({"learning_rate": 0.02, "gamma": 0.9, "hidden": (4,)} | options))
    agent = agent.replace(target_every=2, anneal_over=4.0)
    with jax.enable_x64(True):
        state = scrambled(agent.init(KEY, SPEC))
        moments = jax.tree.map(lambda x: x.astype(float), state.optim["q"].moments.mu)
        moments = state.optim["q"].moments._replace(mu=moments, nu=moments)
        state = state._replace(optim={"q": state.optim["q"]._replace(moments=moments)})
        batch = batches(3, n_step)
        new, metrics = update(agent, state, batch)

        start = (state.params["q"], state.targets["q"])
        params, slow = jax.tree.map(lambda x: np.array(x, float), start)
        rows = jax.tree.map(np.asarray, batch)
        mean = var = 0.0
        losses = []
        for g in range(3):
            row = jax.tree.map(lambda x, g=g: x[g], rows)
            y = target(agent, params, slow, row)
            losses.append(loss(agent, params, row, y))
            slopes = gradient(lambda p, row=row, y=y: loss(agent, p, row, y), params)
            if agent.max_grad_norm is not None:
                slopes *= min(1.0, agent.max_grad_norm / np.linalg.norm(slopes))
            mean, var = 0.9 * mean + 0.1 * slopes, 0.999 * var + 0.001 * slopes**2
            step = mean / (1 - 0.9 ** (g + 1))
            step = step / (np.sqrt(var / (1 - 0.999 ** (g + 1))) + 1e-8)
            leaves, tree = jax.tree.flatten(params)
            pieces = np.split(0.02 * (1 - g / 4) * step, np.cumsum([x.size for x in leaves])[:-1])
            moved = [x - p.reshape(x.shape) for x, p in zip(leaves, pieces, strict=True)]
            params = tree.unflatten(moved)
            if g == 1:
                slow = closer(slow, params, agent.tau)

        for found, expected in ((new.params["q"], params), (new.targets["q"], slow)):
            assert_near(found, expected, 1e-6)
        found = m.values(metrics)
        assert found["q_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert new.updates == 3 and found["skipped_updates"] == 0


def test_double_lets_the_network_choose_what_its_slow_copy_values():
    def table(*rows):
        return {"params": {"head": {"kernel": jnp.array(rows), "bias": jnp.zeros(2)}}}

    online, slow = table([1.0, 3.0], [2.0, 1.0]), table([5.0, 2.0], [4.0, 0.0])
    agent = DQN(hidden=(), gamma=0.5)
    state = agent.init(KEY, Spec(Box(0.0, 1.0, (2,)), Discrete(2)))
    state = state._replace(params={"q": online}, targets={"q": slow})
    following = jnp.eye(2)[jnp.array([0, 1, 0, 0, 0])]  # the first state twice more, as an end
    ends = jnp.arange(5)
    batch = Transition(
        following,
        jnp.zeros(5, jnp.int32),
        jnp.ones(5),
        following,
        ends == 2,
        ends == 3,
        {"steps": jnp.array([1, 1, 1, 1, 3])},
    )
    double = agent.target(state, batch)
    np.testing.assert_allclose(double, [1 + 0.5 * 2, 1 + 0.5 * 4, 1, 1 + 0.5 * 2, 1 + 0.125 * 2])
    plain = agent.replace(double=False).target(state, batch)
    np.testing.assert_allclose(plain, [1 + 0.5 * 5, 1 + 0.5 * 4, 1, 1 + 0.5 * 5, 1 + 0.125 * 5])


# --- the slow copy ------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_the_slow_copy_moves_after_every_so_many_gradient_steps_and_not_between(tau):
    agent = DQN(hidden=(4,), learning_rate=0.1, tau=tau, target_every=3)
    first = state = agent.init(KEY, SPEC)
    batch = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, batches(7))
    for g in range(7):
        before = state
        state, _ = update(agent, state, jax.tree.map(lambda x, g=g: x[g : g + 1], batch))
        if g in (2, 5):
            assert_near(state.targets, closer(before.targets, state.params, tau), 1e-5)
        else:
            jax.tree.map(equal, state.targets, before.targets)
    whole, _ = update(agent, first, batch)
    assert_near(whole.targets, state.targets, 1e-4)
    assert_near(whole.params, state.params, 1e-4)


def closer(slow, params, tau):
    return jax.tree.map(lambda s, p: (1 - tau) * s + tau * p, slow, params)


def assert_near(found, expected, rtol):
    def near(a, b):
        np.testing.assert_allclose(a, b, rtol, 0.1 * rtol)

    jax.tree.map(near, found, expected)


def equal(a, b):
    np.testing.assert_array_equal(a, b)


# --- exploration --------------------------------------------------------------------------------


def test_epsilon_falls_linearly_over_gradient_steps_and_stays():
    agent = DQN(epsilon_start=0.9, epsilon_end=0.1, epsilon_over=4.0, hidden=(4,))
    expected = [0.9, 0.7, 0.5, 0.3, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(agent.epsilon(jnp.array([0, 1, 2, 3, 4, 5, 99])), expected, 1e-6)
    np.testing.assert_allclose(DQN(epsilon_start=0.3).epsilon(jnp.array([0, 99])), 0.3)
    _, metrics = update(agent, agent.init(KEY, SPEC), batches(3))
    assert m.values(metrics)["epsilon"] == pytest.approx(0.7)  # of gradient steps 0, 1, 2


@pytest.mark.parametrize("drawn", [False, True])
def test_it_acts_at_random_with_probability_epsilon(drawn):
    agent = DQN(epsilon_start=0.9, epsilon_end=0.3, epsilon_over=6.0, hidden=(8,))
    state = agent.init(KEY, SPEC)._replace(updates=jnp.int32(5))  # epsilon 0.4
    obs = jnp.broadcast_to(jax.random.normal(jax.random.key(1), OBS), (100_000, *OBS))
    best, _ = agent.act(state, obs[:1], KEY, "greedy")
    assert best[0] == np.argmax(values(agent, state, obs[0]))
    keys = agent.draw(state, obs, jax.random.key(3), 3)
    key = jax.tree.map(lambda x: x[1], keys) if drawn else jax.random.key(3)
    action, extras = agent.act(state, obs, key, "explore")
    assert action.dtype == jnp.int32 and extras == {}
    expected = np.full(ACTIONS, 0.4 / ACTIONS)
    expected[best[0]] += 0.6
    shares = np.bincount(action, minlength=ACTIONS) / len(action)
    np.testing.assert_allclose(shares, expected, atol=0.01)


# --- probes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solve():
    """Train on a probe, and give the largest Q-values and greedy actions for observations."""

    def train(name, steps=24_000, **options):
        env = make(f"probe/{name}")
        agent = DQN(
            **{
                "learning_rate": 3e-3,
                "gamma": 0.9,
                "tau": 0.1,
                "target_every": 5,
                "hidden": (32,),
                "epsilon_end": 0.2,
                "epsilon_over": steps / 64,
            }
            | options
        )
        sizes = {"batch_size": 64, "capacity": 8_000, "prefill": 1_000, "n_step": n_step(name)}
        trainer = OffPolicy(agent, VectorEnv(env, 8), **sizes)
        ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, steps)

        def value(obs):
            return np.asarray(values(agent, ts.agent, jnp.array(obs)).max(-1))

        def act(obs):
            return np.asarray(agent.act(ts.agent, jnp.array(obs), KEY, "greedy")[0])

        return env, value, act

    return train


def n_step(name):
    return 2 if name == "delayed" else 1


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
    agent = DQN(hidden=(8,), policy_obs="privileged_state")
    env = VectorEnv(make("probe/privileged"), 4)
    trainer = OffPolicy(NormalizeObs(agent), env, capacity=64, prefill=16, batch_size=8)
    ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, 64)
    state = ts.agent.agent
    seen = {"state": jnp.ones((3, 1)), "privileged_state": jnp.array([[-1.0], [0.0], [1.0]])}
    found = values(agent, state, seen)
    equal(found, values(agent, state, seen | {"state": jnp.full((3, 1), jnp.nan)}))
    assert np.isfinite(found).all() and len(np.unique(found[:, 0])) == 3


# --- a whole run --------------------------------------------------------------------------------


def test_learns_cart_pole_in_chunks_of_any_length():
    agent = DQN(
        learning_rate=1e-3,
        tau=0.02,
        target_every=1,
        hidden=(64, 64),
        layer_norm=True,
        epsilon_over=1_000.0,
    )
    env = VectorEnv(make("gymnax/CartPole-v1"), 8)
    sizes = {"batch_size": 64, "capacity": 20_000, "prefill": 1_000, "n_step": 3}
    trainer = OffPolicy(ScaleReward(agent, 0.1), env, **sizes, rounds=50)
    whole, _ = jax.jit(trainer.train, static_argnums=1)(KEY, 31_000)
    untrained = trainer.evaluate(trainer.init(KEY), jax.random.key(1), 16)
    trained = trainer.evaluate(whole, jax.random.key(1), 16)
    assert untrained.returns.mean() < 100
    assert trained.returns.mean() > 250

    chunk = jax.jit(trainer.chunk)
    ts = jax.jit(trainer.init)(KEY)
    for iterations in (50, 1, 24):
        ts, _ = chunk(ts, jnp.int32(iterations))
    jax.tree.map(equal, ts.agent, whole.agent)


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
        ({"epsilon_over": -1.0}, "epsilon_over is -1; it must be at least 0"),
        ({"anneal_over": -1.0}, "anneal_over is -1; it must be at least 0"),
        ({"delay": 2}, "delay is 2; it must be at least 1 and at most 1"),
        ({"hidden": (64, 0)}, "hidden is 0; it must be at least 1"),
        ({"activation": "relu6"}, "activation is 'relu6'; did you mean relu"),
    ],
)
def test_hyper_parameters_that_cannot_work_are_refused(options, message):
    env = VectorEnv(make("gymnax/CartPole-v1"), 4)
    with pytest.raises(UsageError, match=message):
        OffPolicy(DQN(**options), env).check()


def test_continuous_actions_are_refused():
    trainer = OffPolicy(DQN(), VectorEnv(make("gymnax/Pendulum-v1"), 4))
    with pytest.raises(UsageError, match="DQN needs discrete actions; this environment has cont"):
        jax.eval_shape(trainer.init, KEY)


@pytest.fixture(scope="module")
def script():
    """``experiments/dqn.py`` as a module."""
    with script_module("dqn") as module:
        yield module


def build(script, words):
    return script.build(cli.parse(script.Config, dqn.PRESETS, DQN, words.split()))


def test_the_script_refuses_in_one_line_before_anything_is_compiled(script, monkeypatch):
    monkeypatch.setattr(OffPolicy, "init", lambda *_: pytest.fail("training began"))
    for words, message in {
        "--env gymnax/Pendulum-v1": "DQN needs discrete actions; gymnax/Pendulum-v1 has continuous"
        " ones; gymnax/CartPole-v1 has discrete ones",
        "--epsilon-fraction 1.5": "epsilon_fraction is 1.5; it must be at least 0 and at most 1",
        "--num-envs 0": "num_envs is 0; it must be at least 1",
    }.items():
        with pytest.raises(UsageError) as error:
            build(script, words)
        assert str(error.value) == message


def test_schedules_follow_the_run_s_length_unless_told_otherwise(script):
    words = "--total-steps 1100 --prefill 100 --num-envs 2 --unroll 5 --updates 3"
    words += " --epsilon-fraction 0.25 --reward-scale 1"
    for more, epsilon_over, anneal_over in [
        (" --anneal", 75.0, 300.0),
        (" --no-anneal --agent.epsilon-over 7", 7.0, 0.0),
        (" --anneal --agent.anneal-over 9", 75.0, 9.0),
    ]:
        agent = build(script, words + more).agent
        assert (agent.epsilon_over, agent.anneal_over) == (epsilon_over, anneal_over)
