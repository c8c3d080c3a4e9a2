"""``experiments/minimal_*.py`` need nothing of jaxrl, and are the library's algorithms."""

from __future__ import annotations

import ast
import dataclasses
import io
import runpy
import subprocess
import sys
import tokenize
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, SAC, OnPolicy, VectorEnv, make
from jaxrl import metrics as m
from jaxrl.agents.ppo import Minibatch, PPOState
from jaxrl.agents.sac import SACState
from jaxrl.data import ReplayBuffer, UniformReplay
from jaxrl.data.replay import Replay
from jaxrl.losses import gae
from jaxrl.nn.critics import Critic
from jaxrl.nn.distributions import Categorical
from jaxrl.nn.policies import TanhGaussian
from jaxrl.types import Batch, Transition

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SCRIPTS = {name: EXPERIMENTS / f"minimal_{name}.py" for name in ("ppo", "sac", "iql", "flow_bc")}
STEPS, SEEDS, N, T = 60_000, 8, 8, 64
CART_POLE = make("gymnax/CartPole-v1")
AGENT = PPO(learning_rate=1e-3, entropy_coef=0.01).bind(CART_POLE.spec)


def names_of(script):
    """A script's names."""
    return runpy.run_path(str(SCRIPTS[script]), run_name=f"minimal_{script}")


@pytest.fixture(scope="module")
def minimal():
    """The names of PPO's script."""
    return names_of("ppo")


@pytest.fixture(scope="module")
def minimal_sac():
    """The names of SAC's script."""
    return names_of("sac")


@pytest.fixture(scope="module")
def minimal_iql():
    """The names of IQL's script."""
    return names_of("iql")


@pytest.fixture(scope="module")
def minimal_flow_bc():
    """The names of the flow's script."""
    return names_of("flow_bc")


# --- all scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_imports_nothing_of_jaxrl(script):
    imported = set()
    for node in ast.walk(ast.parse(SCRIPTS[script].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert "jax" in imported and "jaxrl" not in imported


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_has_less_than_250_lines_of_code(script):
    """Beside docstrings, comments and blank lines."""
    text, code = SCRIPTS[script].read_text(), set()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank | {tokenize.ENDMARKER}:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            code -= set(range(node.lineno, node.end_lineno + 1))
    assert 200 < len(code) < 250


@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("ppo", ["--env", "CartPole-v7"], "env is 'CartPole-v7'"),
        ("ppo", ["--env", "Pendulum-v1"], "continuous"),
        ("ppo", ["--num-minibatches", "7"], "num_minibatches is 7: it must divide 512"),
        ("ppo", ["--num-minibatches", "512"], "num_minibatches is 512: at most 256"),
        ("ppo", ["--total-steps", "100"], "total_steps is 100: one rollout needs 512"),
        ("ppo", ["--num-envs", "-2"], "num_envs is -2: it must be at least 1"),
        ("ppo", ["--learning-rate", "-1"], "learning_rate is -1.0: it must be at least 0"),
        ("ppo", ["--clip-eps", "nan"], "clip_eps is nan: it must be at least 0"),
        ("ppo", ["--gamma", "1.5"], "gamma is 1.5: it must be at most 1"),
        ("ppo", ["--hidden-dims", "64", "0"], "hidden_dims is (64, 0): it must be at least 1"),
        ("sac", ["--env", "Pendulum-v7"], "env is 'Pendulum-v7'"),
        ("sac", ["--env", "CartPole-v1"], "discrete"),
        ("sac", ["--total-steps", "1000"], "total_steps is 1000: it must be at least 1001"),
        ("sac", ["--batch-size", "0"], "batch_size is 0: it must be at least 1"),
        ("sac", ["--learning-rate", "nan"], "learning_rate is nan: it must be at least 0"),
        ("sac", ["--tau", "1.5"], "tau is 1.5: it must be at most 1"),
        ("sac", ["--hidden-dims", "64", "0"], "hidden_dims is (64, 0): it must be at least 1"),
        ("iql", ["--env", "Pendulum-v7"], "env is 'Pendulum-v7'"),
        ("iql", ["--env", "CartPole-v1"], "discrete"),
        ("iql", ["--env", "Reacher-misc"], "data are made for Pendulum-v1; give --dataset"),
        ("iql", ["--num-evals", "7"], "num_evals is 7: it must divide 10000"),
        ("iql", ["--expectile", "1.5"], "expectile is 1.5: it must be at most 1"),
        ("iql", ["--temperature", "nan"], "temperature is nan: it must be at least 0"),
        ("iql", ["--dataset", "absent.hdf5"], "dataset is 'absent.hdf5': "),
        ("flow_bc", ["--ema-decay", "1.5"], "ema_decay is 1.5: it must be at most 1"),
        ("flow_bc", ["--top", "-1"], "top is -1.0: it must be at least 0"),
        ("flow_bc", ["--dataset", "absent.hdf5"], "dataset is 'absent.hdf5': "),
    ],
)
def test_bad_input_is_one_line(script, options, says, monkeypatch, capsys, request):
    names = request.getfixturevalue("minimal" if script == "ppo" else f"minimal_{script}")
    monkeypatch.setattr(sys, "argv", [f"minimal_{script}.py", *options])
    with pytest.raises(SystemExit) as ended:
        names["main"]()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and says in said


def test_they_run_where_there_is_no_jaxrl(tmp_path):
    code = "import sys; sys.modules['jaxrl'] = None; import runpy\n"
    for path in SCRIPTS.values():
        code += f"runpy.run_path({str(path)!r}, run_name={path.stem!r})\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def assert_same_environments(names, name, limit, actions, rtol=0.0):
    """Step by step from the library's states; where an episode ends, both must start another.

    ``rtol`` is that of rewards and returns. Gives the script's rows, and what it acts on next.
    """
    env, venv = names["Env"](name), VectorEnv(make(f"gymnax/{name}"), N)
    assert env.max_steps == venv.spec.max_steps
    env.max_steps, limited = limit, dataclasses.replace(venv, max_steps=limit)

    def step(state, xs):
        action, key = xs
        same = names["EnvState"](*state[:4])
        after, row = jax.vmap(env.step)(jax.random.split(key, N), same, action)
        state, out = limited.step(key, state, action)
        return state, (row, out, after, state)

    start = limited.reset(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(actions))
    scan = jax.jit(lambda: jax.lax.scan(step, start, (actions, keys)))
    row, out, after, state = scan()[1]
    for ours, theirs in (
        (out.terminated, row.terminated),
        (out.truncated, row.truncated),
        (state.steps, after.steps),
    ):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in (
        (out.reward, row.reward),
        (out.info["episode_return"], row.episode_return),
        (state.episode_return, after.episode_return),
    ):
        np.testing.assert_allclose(ours, theirs, rtol)
    np.testing.assert_allclose(out.obs, row.next_obs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.obs[~row.ended], row.next_obs[~row.ended])
    return row, after


# --- PPO ----------------------------------------------------------------------------------------


def learner_of(minimal, **options):
    """The learner that the script's ``train`` builds, and the parameters it would start from."""
    learners = []

    def train(learner, key, params):
        learners.append(learner)
        return params, jnp.zeros(()), jnp.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minimal["Learner"], "train", train)
        results = minimal["train"](minimal["Config"](**options), jax.random.key(0)[None])
    return learners[0], jax.tree.map(lambda x: x[0], results.params)


def as_ours(params):
    """The script's parameters (or gradients) in the library's structure."""
    dense = [params["params"][f"Dense_{i}"] for i in range(6)]
    names = ("layer_0", "layer_1", "head")
    policy, critic = (dict(zip(names, dense[i : i + 3], strict=True)) for i in (0, 3))
    networks = {"policy": policy, "critic": critic}
    return {name: {"encoder": {}, "network": network} for name, network in networks.items()}


def test_the_advantages_are_the_same(minimal):
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, T, N)).astype(np.float32)
    terminated = rng.random((T, N)) < 0.05
    truncated = (rng.random((T, N)) < 0.05) & ~terminated
    batch = minimal["Transition"](None, None, reward, None, terminated, truncated, None)
    ours = gae(reward, value, next_value, terminated, truncated, 0.99, 0.95)
    theirs = minimal["gae"](batch, value, next_value, minimal["Config"]())
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_and_its_gradient_are_the_same(minimal):
    rng = np.random.default_rng(1)
    obs, action = rng.normal(size=(128, 4)).astype(np.float32), rng.integers(0, 2, 128)
    advantage, target = rng.normal(size=(2, 128)).astype(np.float32)
    old = Categorical(jnp.asarray(rng.normal(size=(128, 2)), jnp.float32)).trace(action)
    network = minimal["ActorCritic"](2, (64, 64))
    params = jax.eval_shape(network.init, jax.random.key(0), obs)
    params = jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), params)

    batch = minimal["Minibatch"](obs, action, old.log_prob, advantage, target)
    samples = Minibatch(obs, old, jnp.zeros(128), advantage, target)
    config, key = minimal["Config"](), jax.random.key(0)
    theirs = jax.jit(
        jax.value_and_grad(lambda params: minimal["loss"](params, network, batch, config))
    )(params)
    (loss, _), grads = jax.jit(jax.value_and_grad(AGENT.loss, has_aux=True))(
        as_ours(params), samples, key
    )
    np.testing.assert_allclose(loss, theirs[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(as_ours(theirs[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_the_networks_start_alike(minimal):
    """All biases are zero and all singular values of a layer equal, to the same gain."""
    _, params = learner_of(minimal)
    ours = jax.jit(AGENT.init)(jax.random.key(0)).networks.params
    theirs = as_ours(params)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if a.ndim == 2:
            a, b = (np.linalg.svd(x, compute_uv=False) for x in (a, b))
            assert a.max() == pytest.approx(a.min(), rel=1e-3)
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_the_environments_are_the_same_to_their_time_limits(minimal):
    actions = jax.random.bernoulli(jax.random.key(2), shape=(60, N)).astype(jnp.int32)
    row, after = assert_same_environments(minimal, "CartPole-v1", 12, actions)
    assert row.terminated.any() and row.truncated.any()
    assert np.abs(after.obs[row.ended]).max() <= 0.05  # where CartPole starts


def test_whole_updates_are_the_same(minimal):
    """Three in a row, of rollouts with terminations and truncations; the learning rate decays.

    Batches of 4 * 37 rows are shuffled with ``jax.random.permutation`` by both.
    """
    sizes = {"num_envs": 4, "num_steps": 37, "update_epochs": 4, "num_minibatches": 4}
    learner, params = learner_of(minimal, **sizes, total_steps=4 * 37 * 4)
    learner.env.max_steps = 12
    agent = AGENT.replace(update_epochs=4, num_minibatches=4, lr_decay_steps=4.0)

    @jax.jit
    def both(params, opt_state, env_state, state, key):
        env_state, rows = learner.rollout(key, params, env_state)
        dist = agent.policy.dist(state.networks.params["policy"], rows.obs)
        extras = {"trace": dist.trace(rows.action)}
        ours, metrics = agent.update(state, Transition(*rows[:-1], extras), key)
        shuffle_key, _ = jax.random.split(key)
        theirs = learner.update(shuffle_key, params, opt_state, rows)
        return theirs, env_state, ours, rows, metrics

    state = PPOState(agent.optimizer.start(as_ours(params)), jnp.int32(0))
    env_state = jax.vmap(learner.env.reset)(jax.random.split(jax.random.key(1), 4))
    opt_state = learner.optimiser.init(params)
    for update in range(3):
        before, key = state.networks.params, jax.random.key(update)
        (params, opt_state), env_state, state, rows, metrics = both(
            params, opt_state, env_state, state, key
        )
        assert rows.terminated.any() and rows.truncated.any()
        assert m.values(metrics)["grad_norm"] > agent.optimizer.max_grad_norm  # it is clipped
        trees = before, state.networks.params, as_ours(params)
        for old, a, b in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
            assert np.abs(a - old).max() > 1e-5


@pytest.mark.slow
@pytest.mark.optimized
def test_it_learns_as_the_library_does(minimal):
    """Half way up the curve, where differences show: final greedy returns and the way there."""
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    config = minimal["Config"](total_steps=STEPS, num_seeds=SEEDS)
    theirs = minimal["train"](config, keys)

    iterations = STEPS // (N * T)
    agent = AGENT.replace(lr_decay_steps=float(iterations))
    trainer = OnPolicy(agent, VectorEnv(CART_POLE, N), num_steps=T)

    def train(key):
        ts, metrics = trainer.train(key, iterations * N * T)
        return metrics["episode_return"], trainer.evaluate(ts, key, episodes=16).returns

    curves, returns = jax.jit(jax.vmap(train))(keys)
    assert curves.shape == theirs.episode_return.shape
    for ours, other, least in (
        (np.nanmean(curves, axis=1), np.nanmean(theirs.episode_return, axis=1), 100),
        (np.mean(returns, axis=1), np.mean(theirs.final_return, axis=1), 250),
    ):
        error = np.sqrt((ours.var(ddof=1) + other.var(ddof=1)) / SEEDS)
        assert abs(ours.mean() - other.mean()) < 3 * error, (ours.mean(), other.mean(), error)
        assert min(ours.mean(), other.mean()) > least  # a random policy gets 22


# --- SAC ----------------------------------------------------------------------------------------

PENDULUM = make("gymnax/Pendulum-v1")
RATE = 1e-3
SAC_AGENT = SAC(
    policy=TanhGaussian(hidden_dims=(64, 64)),
    critic=Critic(hidden_dims=(64, 64)),
    actor_learning_rate=RATE,
    critic_learning_rate=RATE,
    alpha_learning_rate=RATE,
).bind(PENDULUM.spec)


def as_our_sac(state):
    """The script's policy and critics in the library's structure."""
    names = {"Dense_0": "layer_0", "Dense_1": "layer_1", "Dense_2": "head"}

    def network(params):
        return {
            "encoder": {},
            "network": {names[name]: layer for name, layer in params["params"].items()},
        }

    return [network(x) for x in (state.actor, state.critics, state.target_critics)]


def sac_state(state):
    """The script's state before its first gradient step as the library's."""
    actor, critic, target = as_our_sac(state)
    start = SAC_AGENT.optimizer.start
    return SACState(start(actor), start(critic), start(state.log_alpha), target)


def rows_of_pendulum(minimal_sac, steps=40, limit=7):
    """The script's transitions ``[T, N]`` of random actions, one in seven truncated."""
    actions = jax.random.uniform(jax.random.key(2), (steps, N, 1), minval=-1.0)
    return assert_same_environments(minimal_sac, "Pendulum-v1", limit, actions, rtol=1e-5)


def as_our_rows(rows):
    fields = (rows.obs, rows.action, rows.reward, rows.next_obs, rows.terminated, rows.truncated)
    return Transition(*fields, {})


def test_sac_s_environments_are_the_same_to_their_time_limits(minimal_sac):
    row, after = rows_of_pendulum(minimal_sac)
    assert row.truncated[6::7].all() and row.truncated.sum() == 5 * N and not row.terminated.any()
    assert np.abs(after.obs[row.ended] - row.next_obs[row.ended]).max() > 0.1


def test_sac_s_networks_start_alike(minimal_sac):
    """In structure, and in bounds and spread of all weights and biases."""
    learner = minimal_sac["Learner"](minimal_sac["Config"](hidden_dims=(64, 64)))
    keys = jax.random.split(jax.random.key(0), 20)
    theirs = jax.jit(jax.vmap(learner.init))(keys)
    ours = jax.jit(jax.vmap(SAC_AGENT.init))(keys)
    actor, critic, target = as_our_sac(theirs)
    pairs = ((ours.actor.params, actor), (ours.critic.params, critic))
    for mine, other in pairs:
        assert jax.tree.structure(mine) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            assert a.shape == b.shape
            a, b = np.asarray(a), np.asarray(b)
            assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=0.1)
            assert a.std() == pytest.approx(b.std(), rel=0.2)
    jax.tree.map(np.testing.assert_array_equal, critic, target)
    first, second = critic["network"]["head"]["kernel"][0]
    assert np.abs(first - second).max() > 0.01  # the twins differ
    np.testing.assert_array_equal(theirs.log_alpha, ours.log_alpha.params)


def test_sac_s_replay_buffer_holds_what_the_library_s_does(minimal_sac):
    """Written until the oldest are overwritten; batches are drawn from all that is held."""
    rows, _ = rows_of_pendulum(minimal_sac)
    config = minimal_sac["Config"](num_envs=N, buffer_size=16 * N, batch_size=400, num_updates=5)
    learner = minimal_sac["Learner"](config)
    buffer = jax.tree.map(lambda x: jnp.zeros((16, *x.shape[1:]), x.dtype), rows)
    ours = ReplayBuffer(config.slots)
    store = ours.empty(as_our_rows(jax.tree.map(lambda x: x[0], rows)))

    @jax.jit
    def write(buffer, store, row, t):
        one = jax.tree.map(lambda x: x[None], as_our_rows(row))
        return learner.write(buffer, row, t), ours.write(store, one, t)

    draw = jax.jit(learner.draw)
    sample = jax.jit(
        lambda store, t, key: UniformReplay().sample(Replay(ours, store, t), (), key, (5, 400), 0.9)
    )
    for t in range(40):
        row = jax.tree.map(lambda x, t=t: x[t], rows)
        buffer, store = write(buffer, store, row, jnp.int32(t))
        if t in (4, 15, 39):
            jax.tree.map(np.testing.assert_array_equal, as_our_rows(buffer)[:6], store[:6])
            held = np.asarray(rows.reward[max(t - 15, 0) : t + 1])
            theirs = draw(jax.random.key(t), buffer, jnp.int32(t + 1))
            batch = sample(store, jnp.int32(t + 1), jax.random.key(t))
            assert theirs.reward.shape == batch.reward.shape == (5, 400)
            for drawn in (theirs.reward, batch.reward):  # every transition, and no other
                np.testing.assert_array_equal(np.unique(drawn), np.unique(held))
            np.testing.assert_allclose(batch.discount, 0.9)  # truncation is no end
    assert theirs.truncated.any()


def one_batch(minimal_sac, size=32):
    """Transitions ``[B]``, a quarter of them terminated and a quarter truncated."""
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, size, 3))
    action, reward = rng.uniform(-1, 1, (size, 1)), 3.0 * rng.normal(size=size)
    ends = np.arange(size) % 4
    floats = [jnp.float32(x) for x in (obs, action, reward, next_obs)]
    return minimal_sac["Transition"](*floats, ends == 0, ends == 1, jnp.zeros(size))


def as_our_batch(rows):
    ours = as_our_rows(rows)
    discount = jnp.where(ours.terminated, 0.0, 0.99)
    return Batch(ours.obs, ours.action, ours.reward, discount, ours.next_obs, {})


def test_sac_s_targets_bootstrap_at_time_limits_and_not_at_ends(minimal_sac):
    """Of single rows, for critics of value 0, ``sqrt(loss / 2)`` is the size of the target."""
    learner = minimal_sac["Learner"](minimal_sac["Config"]())
    state = learner.init(jax.random.key(0))
    heads = state.target_critics["params"]["Dense_2"]
    heads = heads | {"bias": jnp.array([[50.0], [60.0]])}  # of the order of a return
    params = state.target_critics["params"] | {"Dense_2": heads}
    state = state._replace(target_critics={"params": params})
    batch, ours = one_batch(minimal_sac), sac_state(state)
    key = jax.random.key(5)
    zeros = jax.tree.map(jnp.zeros_like, state.critics)
    zeros_of_ours = jax.tree.map(jnp.zeros_like, ours.critic.params)

    def both(row):
        row = jax.tree.map(lambda x: x[None], row)
        noise = jax.random.normal(key, (1, 1))
        theirs = learner.critic_loss(zeros, state, row, noise)
        mine, _ = SAC_AGENT.critic_loss(zeros_of_ours, ours, as_our_batch(row), key)
        return theirs, mine

    theirs, mine = jax.jit(jax.vmap(both))(batch)
    np.testing.assert_allclose(theirs, mine, rtol=1e-5)
    target = np.sqrt(np.asarray(theirs) / 2)
    np.testing.assert_allclose(target[batch.terminated], np.abs(batch.reward)[batch.terminated])
    assert (target[~batch.terminated] > 30).all() and batch.truncated.sum() == 8


def test_sac_s_updates_are_the_same(minimal_sac):
    """Three in a row from the same parameters, batches and noise."""
    learner = minimal_sac["Learner"](minimal_sac["Config"](learning_rate=RATE))
    state = learner.init(jax.random.key(0))
    state = state._replace(log_alpha=jnp.float32(-0.7))
    ours, batch = sac_state(state), one_batch(minimal_sac)

    @jax.jit
    def both(state, ours, key):
        noise = jnp.stack([jax.random.normal(key, (32, 1)) for key in jax.random.split(key)])
        ours, metrics = SAC_AGENT.update(ours, as_our_batch(batch), key)
        return learner.update(state, batch, noise), ours, metrics

    for update in range(3):
        before = ours
        state, ours, _ = both(state, ours, jax.random.key(update))
        actor, critic, target = as_our_sac(state)
        found = (ours.actor.params, ours.critic.params, ours.target_critic, ours.log_alpha.params)
        old = (before.actor.params, before.critic.params, before.target_critic)
        old = (*old, before.log_alpha.params)
        trees = found, (actor, critic, target, state.log_alpha), old
        for a, b, c in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
            assert np.abs(a - c).max() > 1e-7  # of target networks, a small step


@pytest.mark.slow
@pytest.mark.optimized
def test_sac_s_script_learns(minimal_sac):
    """Pendulum within 6000 steps, with two environments and two gradient steps for their steps."""
    sizes = {"total_steps": 6_000, "num_envs": 2, "num_updates": 2, "learning_starts": 500}
    config = minimal_sac["Config"](**sizes, num_seeds=3)
    results = minimal_sac["train"](config, jax.vmap(jax.random.key)(jnp.arange(3)))
    assert results.final_return.shape == (3, 16)
    assert results.episode_return.shape == (3, 6_000 // 2 - 250)
    returns = np.asarray(results.final_return.mean(axis=1))
    assert np.median(returns) > -300  # uniform actions get -1200
    curve = np.asarray(results.episode_return)
    assert np.nanmean(curve[:, :200]) < -800 < np.nanmean(curve[:, -400:])
