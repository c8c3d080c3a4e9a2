"""``experiments/minimal_flow_bc.py`` is the library's cloning with a flow; its data and results."""

from __future__ import annotations

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_minimal import names_of

from jaxrl import BC, make
from jaxrl.agents.bc import BCState
from jaxrl.nn.flow import Flow
from jaxrl.types import Batch

PENDULUM = make("gymnax/Pendulum-v1")
UPDATES = 3
FLOW = Flow(hidden_dims=(64, 64), sample_steps=5)
AGENT = BC(policy=FLOW, learning_rate=1e-3, ema_decay=0.995).bind(PENDULUM.spec)


@pytest.fixture(scope="module")
def minimal():
    """The names of the script."""
    return names_of("flow_bc")


def as_ours(params):
    """The script's network in the library's structure, whose inputs have the same order."""
    names = {"Dense_0": "layer_0", "Dense_1": "layer_1", "Dense_2": "head"}
    layers = {names[name]: layer for name, layer in params["params"].items()}
    return {"encoder": {}, "network": {"body": layers}}


def test_updates_and_actions_are_the_same(minimal):
    """Three updates in a row, of parameters and moving average, and actions from equal noise."""
    learner = minimal["Learner"](minimal["Config"]())
    rng = np.random.default_rng(0)
    obs, action = jnp.float32(rng.normal(size=(32, 3))), jnp.float32(rng.uniform(-1, 1, (32, 1)))
    rows, none = minimal["Dataset"](obs, action), jnp.zeros(32)
    batch = Batch(obs, action, none, none, obs, {})
    state = learner.init(jax.random.key(0))
    start = as_ours(state.params)
    ours = BCState(AGENT.optimizer.start(start), start)
    fresh = AGENT.init(jax.random.key(0)).policy.params
    assert jax.tree.structure(fresh) == jax.tree.structure(start)
    for a, b in zip(jax.tree.leaves(fresh), jax.tree.leaves(start), strict=True):
        assert a.shape == b.shape and np.abs(a).max() == pytest.approx(
            np.abs(b).max(), rel=0.3, abs=0.15
        )

    @jax.jit
    def both(state, ours, key):
        time_key, noise_key, _ = jax.random.split(key, 3)  # as the library draws them
        time = jax.random.uniform(time_key, (1, 32))[0]
        noise = jax.random.normal(noise_key, (1, 32, 1))[0]
        return learner.update(state, rows, time[:, None], noise), AGENT.update(ours, batch, key)[0]

    for key in jax.random.split(jax.random.key(1), UPDATES):
        before = ours
        state, ours = both(state, ours, key)
        pairs = (
            (ours.policy.params, state.params, before.policy.params),
            (
                ours.ema,
                state.ema,
                before.ema,
            ),
        )
        for mine, other, old in pairs:
            trees = map(jax.tree.leaves, (mine, as_ours(other), old))
            for a, b, c in zip(*trees, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
                assert np.abs(a - c).max() > 1e-7
    noise = jax.random.normal(jax.random.key(2), (32, 1))
    mine = AGENT.policy.from_noise(ours.ema, obs, noise)
    np.testing.assert_allclose(mine, learner.act(state.ema, obs, noise), atol=1e-5)


def test_it_reads_the_best_episodes_of_a_file(minimal, tmp_path):
    env, path = minimal["Env"]("Pendulum-v1"), str(tmp_path / "data.hdf5")
    rng = np.random.default_rng(0)
    obs, action = np.float32(rng.normal(size=(6, 3))), np.float32(rng.uniform(-2, 2, (6, 1)))
    reward, ends = np.float32([1, 1, 5, 0, 0, 3]), np.arange(6)  # returns 2, 5 and 3
    fields = {"observations": obs, "actions": action, "rewards": reward}
    with h5py.File(path, "w") as file:
        for name, value in (fields | {"terminals": ends == 2, "timeouts": ends == 1}).items():
            file[name] = value
    data = minimal["read"](path, env, 0.6)
    np.testing.assert_allclose(data.obs, obs[2:])
    np.testing.assert_allclose(data.action, action[2:] / 2.0, rtol=1e-6)
    np.testing.assert_allclose(minimal["read"](path, env, 0.01).obs, obs[2:3])
    with pytest.raises(ValueError, match="dataset is '.*nothing': .*[Uu]nable to .*open"):
        minimal["read"](str(tmp_path / "nothing"), env, 0.6)


@pytest.mark.slow
def test_it_learns_from_what_it_makes(minimal):
    """The chosen episodes have about -200, and a policy that does nothing -1,200."""
    env = minimal["Env"]("Pendulum-v1")
    make_dataset = jax.jit(minimal["make_dataset"], static_argnums=(1, 2))
    made, returns = make_dataset(jax.random.key(0), env, 30)
    assert made.obs.shape == (200, 30, 3) and np.abs(made.action).max() <= 1.0
    chosen = minimal["best"](np.asarray(returns), 0.3)
    assert len(chosen) == 9 and returns[chosen].min() >= np.sort(returns)[-9]
    data = jax.tree.map(lambda x: x[:, chosen].reshape(-1, x.shape[-1]), made)
    sizes = {"num_updates": 1_000, "num_evals": 1, "batch_size": 64}
    config = minimal["Config"](learning_rate=3e-3, ema_decay=0.99, **sizes)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    results = minimal["train"](config, keys, data)
    assert results.returns.shape == (2, 1, 16)
    assert results.returns.mean() > -450
