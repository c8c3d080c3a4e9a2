"""``experiments/minimal_ppo.py`` needs nothing of jaxrl, and is the same algorithm."""

from __future__ import annotations

import ast
import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, OnPolicy, VectorEnv, make
from jaxrl import metrics as m
from jaxrl.agents.ppo import PPOState, Samples
from jaxrl.losses import gae
from jaxrl.nn.distributions import Categorical
from jaxrl.types import Transition

SCRIPT = Path(__file__).parent.parent / "experiments" / "minimal_ppo.py"
STEPS, SEEDS, N, T = 60_000, 16, 8, 64
AGENT = PPO(learning_rate=1e-3, entropy=0.01)


@pytest.fixture(scope="module")
def minimal():
    """The script's names."""
    return runpy.run_path(str(SCRIPT), run_name="minimal_ppo")


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
    policy, value = (dict(zip(names, dense[i : i + 3], strict=True)) for i in (0, 3))
    return {"policy": {"params": {"logits": policy}}, "value": {"params": value}}


def test_it_imports_nothing_of_jaxrl():
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert "jax" in imported and "jaxrl" not in imported


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--env", "CartPole-v7"], "env is 'CartPole-v7'"),
        (["--env", "Pendulum-v1"], "continuous"),
        (["--minibatches", "7"], "minibatches is 7: it must divide 512"),
        (["--total-steps", "100"], "total_steps is 100: one rollout needs 512"),
        (["--num-envs", "-2"], "num_envs is -2: it must be at least 1"),
        (["--learning-rate", "-1"], "learning_rate is -1.0: it must be at least 0"),
        (["--clip", "nan"], "clip is nan: it must be at least 0"),
        (["--gamma", "1.5"], "gamma is 1.5: it must be at most 1"),
    ],
)
def test_bad_input_is_one_line(minimal, options, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minimal_ppo.py", *options])
    with pytest.raises(SystemExit) as ended:
        minimal["main"]()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and says in said


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
    old = Categorical(jnp.asarray(rng.normal(size=(128, 2)), jnp.float32)).log_prob(action)
    network = minimal["ActorCritic"](2)
    params = jax.eval_shape(network.init, jax.random.key(0), obs)
    params = jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), params)

    batch = minimal["Minibatch"](obs, action, old, advantage, target)
    samples = Samples(obs, action, old, jnp.zeros(128), advantage, target)
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
    spec = make("gymnax/CartPole-v1").spec
    ours = jax.jit(lambda key: AGENT.init(key, spec))(jax.random.key(0)).params
    theirs = as_ours(params)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if a.ndim == 2:
            a, b = (np.linalg.svd(x, compute_uv=False) for x in (a, b))
            assert a.max() == pytest.approx(a.min(), rel=1e-3)
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_the_environments_are_the_same_to_their_time_limits(minimal):
    """Step by step from the library's states; where an episode ends, both must start another."""
    env, venv = minimal["Env"]("CartPole-v1"), VectorEnv(make("gymnax/CartPole-v1"), N)
    assert env.max_steps == venv.spec.max_steps == 500
    env.max_steps, limit = 12, dataclasses.replace(venv, max_steps=12)
    draws = limit.draw(jax.random.key(1), 60)

    def step(state, xs):
        action, drawn = xs
        same = minimal["EnvState"](*state[:4])
        after, row = jax.vmap(env.step)(drawn.keys, same, action)
        state, out = limit.step(state, action, drawn)
        return state, (row, out, after, state)

    actions = jax.random.bernoulli(jax.random.key(2), shape=(60, N)).astype(jnp.int32)
    start = limit.reset(jax.random.key(0))
    row, out, after, state = jax.jit(lambda: jax.lax.scan(step, start, (actions, draws)))()[1]
    assert out.terminated.any() and out.truncated.any()
    for ours, theirs in (
        (out.terminated, row.terminated),
        (out.truncated, row.truncated),
        (out.info["episode_return"], row.episode_return),
        (state.steps, after.steps),
        (state.episode_return, after.episode_return),
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(out.obs, row.next_obs, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(out.reward, row.reward)
    ended = row.ended
    np.testing.assert_array_equal(after.obs[~ended], row.next_obs[~ended])
    assert np.abs(after.obs[ended]).max() <= 0.05  # where CartPole starts


@pytest.mark.parametrize(("epochs", "minibatches", "iterations"), [(4, 4, 10**6), (1, 1, 4)])
def test_whole_updates_are_the_same(minimal, epochs, minibatches, iterations):
    """Three in a row, of rollouts with terminations and truncations.

    The script anneals its rate at every gradient step and the library at every update: so either
    there are many gradient steps and (nearly) no annealing, or one gradient step and much of it.
    Batches of 4 * 37 rows are shuffled with ``jax.random.permutation`` by both.
    """
    sizes = {"num_envs": 4, "unroll": 37, "epochs": epochs, "minibatches": minibatches}
    learner, params = learner_of(minimal, **sizes, total_steps=4 * 37 * iterations)
    learner.env.max_steps = 12
    agent = AGENT.replace(epochs=epochs, minibatches=minibatches, anneal_over=float(iterations))

    @jax.jit
    def both(params, opt_state, env_state, state, key):
        env_state, rows = learner.rollout(key, params, env_state)
        extras = {"dist": agent.policy(state.params, rows.obs)}
        ours, metrics = agent.update(state, Transition(*rows[:-1], extras), key)
        shuffle_key, _ = jax.random.split(key)
        theirs = learner.update(shuffle_key, params, opt_state, rows)
        return theirs, env_state, ours, rows, metrics

    state = PPOState(as_ours(params), agent.optimiser.init(params), jnp.int32(0))
    env_state = jax.vmap(learner.env.reset)(jax.random.split(jax.random.key(1), 4))
    opt_state = learner.optimiser.init(params)
    for update in range(3):
        before, key = state.params, jax.random.key(update)
        (params, opt_state), env_state, state, rows, metrics = both(
            params, opt_state, env_state, state, key
        )
        assert rows.terminated.any() and rows.truncated.any()
        assert m.values(metrics)["grad_norm"] > AGENT.max_grad_norm  # it is clipped
        trees = before, state.params, as_ours(params)
        for old, a, b in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
            assert np.abs(a - old).max() > 1e-5


def test_it_learns_as_the_library_does(minimal):
    """Half way up the curve, where differences show: final greedy returns and the way there."""
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    config = minimal["Config"](total_steps=STEPS, num_seeds=SEEDS)
    theirs = minimal["train"](config, keys)

    iterations = STEPS // (N * T)
    agent = AGENT.replace(anneal_over=float(iterations))
    trainer = OnPolicy(agent, VectorEnv(make("gymnax/CartPole-v1"), N), unroll=T)

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


def test_it_runs_where_there_is_no_jaxrl(tmp_path):
    code = "import sys; sys.modules['jaxrl'] = None; import runpy; "
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='minimal_ppo')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
