"""Brax's tasks through their adapter: bit for bit Brax's own, resets real, mistakes told.

Compiling the physics is nearly all that these tests cost: XLA is asked not to optimise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.envs import brax as brax_suite
from jaxrl.types import Environment

KEY = jax.random.key(0)
COMPILER = {"xla_backend_optimization_level": 0}


def roll_out(reset, step, keys, actions):
    """Observations, rewards and terminations ``[T, N, ...]`` of given actions ``[T, N, A]``."""

    def run(keys, actions):
        return jax.lax.scan(step, reset(keys), actions)[1]

    return jax.jit(run, compiler_options=COMPILER)(keys, actions)


def adapted(env, keys, actions):
    def step(state, action):
        state, out = jax.vmap(env.step)(keys, state, action)
        return state, (out.obs, out.reward, out.terminated)

    return roll_out(lambda k: jax.vmap(env.reset)(k)[0], step, keys, actions)


def raw(env, keys, actions):
    def step(state, action):
        state = jax.vmap(env.env.step)(state, action)
        return state, (state.obs, state.reward, state.done > 0)

    def reset(keys):
        return jax.vmap(env.env.reset)(jax.random.key_data(keys))

    return roll_out(reset, step, keys, actions)


@pytest.mark.parametrize(
    "backend",
    ["spring"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("positional", "generalized", "mjx")],
)
def test_brax_agrees_bit_for_bit_with_raw_brax(backend):
    """Although only a part of Brax's state is carried from step to step."""
    env = envs.make("brax/inverted_pendulum", backend=backend)
    keys = jax.random.split(KEY, 2)
    push = jnp.linspace(0.0, 1.0, 2)[None, :, None]  # The first pendulum is left alone.
    actions = jnp.broadcast_to(push, (12, 2, 1))
    got, wanted = adapted(env, keys, actions), raw(env, keys, actions)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    np.testing.assert_array_equal(got[2].any(axis=0), [False, True])


OTHERS = [name for name in brax_suite.BACKENDS if name != "spring"]


@pytest.mark.parametrize(
    ("backend", "tasks"),
    [
        ("spring", ["hopper", "humanoid", "reacher"]),
        *((name, ["inverted_pendulum"]) for name in OTHERS),
        *(
            pytest.param(name, brax_suite.TASKS, marks=pytest.mark.slow)
            for name in brax_suite.BACKENDS
        ),
    ],
)
def test_tasks_can_be_reset_and_stepped_on_every_back_end(backend, tasks):
    """Traced alone, which takes a second a task: a state after a step is as one after a reset,
    and fits the spec.
    """
    for task in tasks:
        env = envs.make(f"brax/{task}", backend=backend)
        action = jnp.zeros(env.spec.action.shape)
        state, obs = jax.eval_shape(env.reset, KEY)
        after, step = jax.eval_shape(env.step, KEY, state, action)
        assert after == state, task
        assert step.obs == obs and obs.shape == env.spec.observation.shape, task
        assert (step.reward.shape, step.terminated.dtype) == ((), bool), task


def test_brax_ant_steps_and_shows_its_spec():
    env = envs.make("brax/ant", max_steps=77)
    assert isinstance(env, Environment) and not env.cheap and env.env.backend == "spring"
    assert (env.spec.observation.shape, env.spec.action.shape) == ((27,), (8,))
    assert env.spec.max_steps == 77
    obs, reward, terminated = adapted(env, jax.random.split(KEY, 2), jnp.ones((3, 2, 8)))
    assert np.isfinite(obs).all() and np.isfinite(reward).all() and not terminated.any()
    assert np.unique(obs).size > 100


def test_brax_resets_move_the_reachers_target():
    env = envs.make("brax/reacher")
    reset = jax.jit(jax.vmap(env.reset), compiler_options=COMPILER)
    _, obs = reset(jax.random.split(KEY, 8))
    targets = np.asarray(obs[:, 4:6])
    assert np.unique(targets, axis=0).shape == (8, 2)
    assert (np.linalg.norm(targets, axis=1) <= 0.2 + 1e-6).all()


def test_brax_may_be_told_not_to_terminate():
    env = envs.make("brax/hopper", terminate_when_unhealthy=False, n_frames=1)
    state, _ = jax.eval_shape(env.reset, KEY)
    _, step = jax.eval_shape(env.step, KEY, state, jnp.zeros(3))
    assert (step.terminated.shape, step.terminated.dtype) == ((), bool)
    assert not env.env._terminate_when_unhealthy and env.env._n_frames == 1
    assert envs.make("brax/hopper").env._terminate_when_unhealthy


def test_brax_cannot_step_its_swimmer():
    """When this fails, the swimmer can be offered."""
    from brax.envs.swimmer import Swimmer

    with brax_suite.quiet():
        env = brax_suite.BraxEnv("brax/swimmer", Swimmer(), 1000)
    state, _ = jax.eval_shape(env.reset, KEY)
    with pytest.raises(TypeError, match="a_min"):
        jax.eval_shape(env.step, KEY, state, jnp.zeros(2))


def test_brax_refuses_actions_of_the_wrong_shape():
    env = envs.make("brax/inverted_pendulum")
    state, _ = jax.eval_shape(env.reset, KEY)
    with pytest.raises(ValueError, match=r"action has shape \(\); expected \(1,\)") as error:
        jax.eval_shape(env.step, KEY, state, jnp.float32(0))
    assert "\n" not in str(error.value)
