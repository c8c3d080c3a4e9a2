"""The vector environment against a plain Python loop, and its guards."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs.vector import VectorEnv, rescale
from jaxrl.errors import UsageError
from jaxrl.types import Box, Spec, Step


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk on the line that terminates beyond ``edge``; actions of 0.5 to 1.5 a step."""

    edge: float = 5.0
    limit: int = 5
    poison: float = np.inf  # an action above it makes the observation NaN
    name: str = "test/walk"
    cheap: bool = True

    @property
    def spec(self):
        return Spec(Box(-np.inf, np.inf, (2,)), Box(0.5, 1.5, (1,)), self.limit)

    def reset(self, key):
        start = jax.random.uniform(key)
        return start, jnp.stack([start, 0.0])

    def step(self, key, state, action):
        noise = 0.1 * jax.random.normal(key)
        state = state + action[0] + noise
        obs = jnp.stack([jnp.where(action[0] > self.poison, jnp.nan, state), action[0]])
        return state, Step(obs, state, state > self.edge, jnp.bool_(False), {})


def python_reference(env, keys, starts, actions, reset_to):
    """One environment and one step at a time, with ``keys[T, N]``.

    ``reset_to(t, n)`` is the start of the episode after one that ended there.
    """
    T, N = actions.shape[:2]
    rows = []
    state = [starts[n][0] for n in range(N)]
    obs = [starts[n][1] for n in range(N)]
    steps, returns = [0] * N, [0.0] * N
    for t in range(T):
        for n in range(N):
            action = rescale(env.spec.action, actions[t, n])
            new, out = env.step(keys[t, n], state[n], action)
            steps[n] += 1
            returns[n] += float(out.reward)
            terminated = bool(out.terminated)
            truncated = steps[n] >= env.limit and not terminated
            row = {
                "obs": np.asarray(out.obs),
                "reward": float(out.reward),
                "terminated": terminated,
                "truncated": truncated,
                "episode_return": returns[n],
                "episode_length": steps[n],
            }
            state[n], obs[n] = new, out.obs
            if terminated or truncated:
                state[n], obs[n] = reset_to(t, n)
                steps[n], returns[n] = 0, 0.0
            rows.append(row | {"next": np.asarray(obs[n])})
    return rows


@pytest.mark.parametrize("mode", ["fresh", "pool", "first"])
def test_equals_a_plain_python_loop_step_by_step(mode):
    env, N, T = Walk(), 3, 24
    venv = VectorEnv(env, N, reset_mode=mode, pool_size=4)
    start_key, pool_key, action_key, step_key = jax.random.split(jax.random.key(4), 4)
    state = venv.reset(start_key)
    pool = venv.reset_pool(pool_key)
    actions = jax.random.uniform(action_key, (T, N, 1), minval=-1.3, maxval=1.3)
    starts = [env.reset(key) for key in jax.random.split(start_key, N)]
    keys = jax.random.split(step_key, T)
    step_keys, reset_keys = jnp.moveaxis(
        jax.vmap(lambda k: jax.random.split(k, (2, N)))(keys), 1, 0
    )
    pooled = [env.reset(key) for key in jax.random.split(pool_key, 4)]

    def reset_to(t, n):
        if mode == "first":
            return starts[n]
        if mode == "fresh":
            return env.reset(reset_keys[t, n])
        return pooled[int(jax.random.randint(reset_keys[t, 0], (N,), 0, 4)[n])]

    expected = iter(python_reference(env, step_keys, starts, actions, reset_to))
    ends = {"both": 0, "terminated": 0, "truncated": 0}
    for t in range(T):
        state, out = venv.step(keys[t], state, actions[t], pool)
        for n in range(N):
            row = next(expected)
            np.testing.assert_allclose(out.obs[n], row["obs"], rtol=1e-5)
            np.testing.assert_allclose(state.obs[n], row["next"], rtol=1e-5)
            np.testing.assert_allclose(out.reward[n], row["reward"], rtol=1e-5)
            assert bool(out.terminated[n]) == row["terminated"]
            assert bool(out.truncated[n]) == row["truncated"]
            assert int(out.info["episode_length"][n]) == row["episode_length"]
            np.testing.assert_allclose(
                out.info["episode_return"][n], row["episode_return"], rtol=1e-5
            )
            at_limit = row["episode_length"] == env.limit
            ends["both"] += row["terminated"] and at_limit
            ends["terminated"] += row["terminated"] and not at_limit
            ends["truncated"] += row["truncated"]
    assert min(ends.values()) > 0, ends  # every kind of end was seen, also both at once


def test_fresh_and_pooled_resets_differ_and_first_ones_do_not():
    def starts(mode):
        venv = VectorEnv(Walk(limit=1), 4, reset_mode=mode, pool_size=8)
        state = venv.reset(jax.random.key(0))
        seen = [state.obs[:, 0]]
        for i in range(20):
            pool_key, step_key = jax.random.split(jax.random.key(1 + i))
            pool = venv.reset_pool(pool_key)
            state, _ = venv.step(step_key, state, jnp.zeros((4, 1)), pool)
            seen.append(state.obs[:, 0])
        return len(np.unique(np.asarray(seen)))

    assert starts("fresh") == 84
    assert starts("pool") > 60
    assert starts("first") == 4


def test_a_pool_is_drawn_where_it_is_needed_and_every_row_of_it_is_used():
    def pool_of(**options):
        return VectorEnv(Walk(limit=1), 64, **options).reset_pool(jax.random.key(0))

    assert pool_of(reset_mode="fresh") == pool_of(reset_mode="first") == ()
    inner, obs = pool_of(reset_mode="pool", pool_size=5)
    assert inner.shape == (5,) and obs.shape == (5, 2) and len(np.unique(inner)) == 5
    venv = VectorEnv(Walk(limit=1), 64, reset_mode="pool", pool_size=5)
    state = venv.reset(jax.random.key(1))
    state, _ = venv.step(jax.random.key(2), state, jnp.zeros((64, 1)), (inner, obs))
    np.testing.assert_array_equal(np.unique(state.inner), np.unique(inner))


def test_the_mode_in_force_is_that_of_the_environments_costs():
    cheap, dear = Walk(), Walk(cheap=False)
    assert VectorEnv(cheap, 2).reset_mode == "fresh"
    assert VectorEnv(dear, 2).reset_mode == "pool"
    assert VectorEnv(cheap, 2, reset_mode="pool").reset_mode == "pool"
    with_cheap_resets = Walk(cheap=False)
    object.__setattr__(with_cheap_resets, "cheap_resets", True)
    assert VectorEnv(with_cheap_resets, 2).reset_mode == "fresh"


def test_a_non_finite_step_ends_its_own_episode_alone_and_is_stored_as_zeros():
    env = Walk(poison=1.4, limit=100, edge=1e9)
    venv = VectorEnv(env, 64)
    state = venv.reset(jax.random.key(0))
    actions = jnp.zeros((64, 1)).at[17].set(1.0)  # rescaled to 1.5, above the poison
    for i in range(3):
        state, out = venv.step(jax.random.key(i), state, actions)
        bad = np.asarray(out.info["nonfinite"])
        assert bad[17] and bad.sum() == 1
        assert out.terminated[17] and not out.truncated[17]
        assert np.all(out.obs[17] == 0) and out.reward[17] == 0
        assert np.all(np.isfinite(out.obs)) and np.all(np.isfinite(state.obs))
        assert state.steps[17] == 0 and np.all(np.delete(np.asarray(state.steps), 17) == i + 1)


def test_actions_are_clipped_and_rescaled_to_the_space():
    space = Box([-2.0, 0.0], [2.0, 10.0], (2,))
    found = rescale(space, jnp.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [9.0, -9.0]]))
    np.testing.assert_allclose(found, [[-2, 0], [2, 10], [0, 5], [2, 0]])


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([0, -np.inf], [10, np.inf], [[0, -1], [5, 0], [10, 1], [10, 9]]),
        ([0, -LARGEST], [10, LARGEST], [[0, -1], [5, 0], [10, 1], [10, 9]]),
        ([-2, 0], [2, np.inf], [[-2, 0], [0, 0], [2, 1], [2, 9]]),  # one bound
        ([-np.inf, -4], [0.5, 4], [[-1, -4], [0, 0], [0.5, 4], [0.5, 4]]),
        ([3, -2], [3, 1], [[3, -2], [3, -0.5], [3, 1], [3, 1]]),  # a single value
    ],
)
def test_each_action_element_is_scaled_to_its_own_bounds(low, high, expected):
    space = Box(low, high, (2,))
    actions = jnp.array([-1.0, 0.0, 1.0, 9.0])[:, None] * jnp.ones(2)
    np.testing.assert_allclose(rescale(space, actions), np.float32(expected))
    np.testing.assert_allclose(rescale(space, actions[0]), np.float32(expected[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0; it must be at least 1"),
        ({"num_envs": 4, "reset_mode": "frsh"}, "reset_mode is 'frsh'; did you mean fresh"),
        ({"num_envs": 4.0}, "num_envs is 4.0; it must be an integer"),
        ({"num_envs": "4"}, "num_envs is '4'; it must be an integer"),
        ({"num_envs": True}, "num_envs is True; it must be an integer"),
        ({"num_envs": None}, "num_envs is None; it must be an integer"),
        ({"num_envs": [4]}, r"num_envs is \(4,\); it must be an integer"),
        (
            {"num_envs": 2**31},
            "num_envs is 2147483648; it must be at most 2147483647",
        ),
        ({"num_envs": 4, "reset_mode": 3}, "reset_mode is 3; choose one of first, fresh, pool"),
        ({"num_envs": 4, "max_steps": 10.0}, "max_steps is 10.0; it must be an integer"),
        ({"num_envs": 4, "max_steps": -1}, "max_steps is -1; it must be at least 1"),
        ({"num_envs": 4, "pool_size": 0}, "pool_size is 0; it must be at least 1"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        VectorEnv(Walk(), **options)
