"""``experiments/minimal_ppo.py`` needs nothing of jaxrl, and is the same algorithm."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, OnPolicy, VectorEnv, make
from jaxrl.agents.ppo import Samples
from jaxrl.losses import gae
from jaxrl.nn.distributions import Categorical

SCRIPT = Path(__file__).parent.parent / "experiments" / "minimal_ppo.py"
STEPS, SEEDS, N, T = 60_000, 16, 8, 64
AGENT = PPO(learning_rate=1e-3, entropy=0.01)


@pytest.fixture(scope="module")
def minimal():
    """The script's names."""
    return runpy.run_path(str(SCRIPT), run_name="minimal_ppo")


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
        (["--num-envs", "-2"], "num_envs is -2"),
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
    params = network.init(jax.random.key(0), obs)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape), params
    )  # far from the start

    def as_ours(params):
        dense = [params["params"][f"Dense_{i}"] for i in range(6)]
        names = ("layer_0", "layer_1", "head")
        policy, value = (dict(zip(names, dense[i : i + 3], strict=True)) for i in (0, 3))
        return {"policy": {"params": {"logits": policy}}, "value": {"params": value}}

    batch = minimal["Minibatch"](obs, action, old, advantage, target)
    samples = Samples(obs, action, old, jnp.zeros(128), advantage, target)
    theirs = jax.value_and_grad(minimal["loss"])(params, network, batch, minimal["Config"]())
    (loss, _), grads = jax.value_and_grad(AGENT.loss, has_aux=True)(
        as_ours(params), samples, jax.random.key(0)
    )
    np.testing.assert_allclose(loss, theirs[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(as_ours(theirs[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


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
