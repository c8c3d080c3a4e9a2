"""``experiments/minimal_iql.py`` is the library's IQL; its data, its reader and what it learns."""

from __future__ import annotations

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_minimal import names_of

from jaxrl import IQL, VectorEnv, make
from jaxrl.agents.iql import IQLState
from jaxrl.nn.critics import Critic, ValueFunction
from jaxrl.nn.policies import Gaussian
from jaxrl.types import Batch

PENDULUM = make("gymnax/Pendulum-v1")
RATE, UPDATES = 1e-3, 3
OPTIONS = {"expectile": 0.8, "temperature": 3.0, "gamma": 0.99, "tau": 0.005}
SIZES = {"hidden_dims": (64, 64)}
AGENT = IQL(
    policy=Gaussian(std="clipped", log_std_range=(-5.0, 2.0), squash_mean=True, **SIZES),
    critic=Critic(**SIZES),
    value=ValueFunction(**SIZES),
    actor_learning_rate=RATE,
    critic_learning_rate=RATE,
    value_learning_rate=RATE,
    lr_decay_steps=float(UPDATES),
    **OPTIONS,
).bind(PENDULUM.spec)


@pytest.fixture(scope="module")
def minimal():
    """The names of the script."""
    return names_of("iql")


def as_ours(state):
    """The script's networks in the library's structure: actor, critics, value, target critics."""
    names = {"Dense_0": "layer_0", "Dense_1": "layer_1", "Dense_2": "head"}

    def network(params):
        layers = {names[name]: layer for name, layer in params["params"].items()}
        return {"encoder": {}, "network": layers}

    actor = network(state.actor["mean"]) | {"log_std": state.actor["log_std"]}
    others = (network(x) for x in (state.critics, state.value, state.target_critics))
    return actor, *others


def one_batch(minimal, size=32):
    """Transitions ``[B]``, a quarter of them terminated."""
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, size, 3))
    action, reward = rng.uniform(-1, 1, (size, 1)), 30.0 * rng.normal(size=size)
    floats = [jnp.float32(x) for x in (obs, action, reward, next_obs)]
    return minimal["Dataset"](*floats, jnp.arange(size) % 4 == 0)


def test_the_networks_start_alike(minimal):
    learner = minimal["Learner"](minimal["Config"]())
    theirs, ours = learner.init(jax.random.key(0)), AGENT.init(jax.random.key(0))
    found = (ours.actor.params, ours.critic.params, ours.value.params, ours.target_critic)
    for mine, other in zip(found, as_ours(theirs), strict=True):
        assert jax.tree.structure(mine) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            assert a.shape == b.shape
            assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=0.3, abs=0.15)
    jax.tree.map(np.testing.assert_array_equal, theirs.critics, theirs.target_critics)


def test_updates_are_the_same(minimal):
    """Three in a row, to the end of the policy's step size, with the scaled rewards."""
    config = minimal["Config"](learning_rate=RATE, num_updates=UPDATES, num_evals=1, **OPTIONS)
    learner, rows = minimal["Learner"](config), one_batch(minimal)
    state = learner.init(jax.random.key(0))
    larger = jax.tree.map(lambda x: 2.0 * x, state.target_critics)  # advantages of every size
    state = state._replace(target_critics=larger)
    actor, critic, value, target = as_ours(state)
    start = AGENT.optimizer.start
    ours = IQLState(start(actor), start(critic), start(value), target, jnp.int32(0))
    discount = jnp.where(rows.terminated, 0.0, AGENT.gamma)
    scaled = config.reward_scale * rows.reward
    batch = Batch(rows.obs, rows.action, scaled, discount, rows.next_obs, {})

    @jax.jit
    def both(state, ours):
        return learner.update(state, rows), AGENT.update(ours, batch, jax.random.key(0))[0]

    for _ in range(UPDATES):
        before = ours
        state, ours = both(state, ours)
        pairs = (
            (ours.actor.params, before.actor.params),
            (ours.critic.params, before.critic.params),
            (ours.value.params, before.value.params),
            (ours.target_critic, before.target_critic),
        )
        for (mine, old), other in zip(pairs, as_ours(state), strict=True):
            trees = map(jax.tree.leaves, (mine, other, old))
            for a, b, c in zip(*trees, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
                assert np.abs(a - c).max() > 1e-7


def test_the_data_that_it_makes_are_pendulum_s(minimal):
    """Rewards and next observations are the library's, and some of the episodes are good."""
    env = minimal["Env"]("Pendulum-v1")
    make_dataset = jax.jit(minimal["make_dataset"], static_argnums=(1, 2))
    data, returns = make_dataset(jax.random.key(0), env, 6)
    assert data.reward.shape == (1_200,) and not data.terminated.any()
    assert np.abs(data.action).max() <= 1.0
    assert returns[0] > -500 and returns[-1] < -700  # little noise, and much
    rows = jax.tree.map(lambda x: x.reshape(200, 6, *x.shape[1:]), data)
    np.testing.assert_allclose(rows.reward.sum(0), returns, rtol=1e-4)
    np.testing.assert_array_equal(rows.next_obs[:-1], rows.obs[1:])
    venv = VectorEnv(PENDULUM, 6)
    state = jax.jit(venv.reset)(jax.random.key(1))
    angle = jnp.arctan2(rows.obs[3, :, 1], rows.obs[3, :, 0])
    state = state._replace(inner=state.inner.replace(theta=angle, theta_dot=rows.obs[3, :, 2]))
    _, after = jax.jit(venv.step)(jax.random.key(2), state, rows.action[3], ())
    np.testing.assert_allclose(after.reward, rows.reward[3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.obs, rows.next_obs[3], rtol=1e-4, atol=1e-5)


def test_it_reads_files_in_d4rl_s_layout(minimal, tmp_path):
    """Where next observations are not in the file, those after a time-out are unknown."""
    env, path = minimal["Env"]("Pendulum-v1"), str(tmp_path / "data.hdf5")
    rng = np.random.default_rng(0)
    obs, next_obs = np.float32(rng.normal(size=(2, 6, 3)))
    action, reward = np.float32(rng.uniform(-2, 2, (6, 1))), np.float32(rng.normal(size=6))
    ends = np.arange(6)
    fields = {"observations": obs, "actions": action, "rewards": reward}
    fields |= {"terminals": ends == 2, "timeouts": ends == 4}

    def read(**more):
        with h5py.File(path, "w") as file:
            for name, value in (fields | more).items():
                file[name] = value
        return minimal["read"](path, env)

    data = read(next_observations=next_obs)
    for found, expected in zip(data, (obs, action / 2.0, reward, next_obs, ends == 2), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    data = read()
    kept = [0, 1, 2, 3]  # 4 is a time-out, and 5 has no next row
    for found, expected in zip(data[:3], (obs, action / 2.0, reward), strict=True):
        np.testing.assert_allclose(found, expected[kept], rtol=1e-5)
    np.testing.assert_array_equal(data.next_obs[:2], obs[1:3])
    np.testing.assert_array_equal(data.terminated, [False, False, True, False])
    fields.pop("timeouts")
    with pytest.raises(ValueError, match="it has no timeouts"):
        read()


@pytest.mark.slow
def test_it_learns_from_bad_data(minimal):
    """Data of returns of -615 on average; the best policy gets about -150."""
    env = minimal["Env"]("Pendulum-v1")
    make_dataset = jax.jit(minimal["make_dataset"], static_argnums=(1, 2))
    data, returns = make_dataset(jax.random.key(0), env, 50)
    sizes = {"num_updates": 2_000, "num_evals": 2, "batch_size": 64}
    config = minimal["Config"](learning_rate=3e-3, tau=0.02, gamma=0.95, **sizes)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    results = minimal["train"](config, keys, data)
    assert results.returns.shape == (2, 2, 16)
    assert results.returns[:, -1].mean() > -350 > returns.mean() + 200
