"""MuJoCo Playground through its adapter: bit for bit its own steps, mistakes told, nothing cloned.

Compiling the physics is nearly all that these tests cost: XLA is asked not to optimise.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import UsageError, VectorEnv, envs
from jaxrl.envs import playground
from jaxrl.types import Environment

pytest.importorskip("mujoco_playground")

KEY = jax.random.key(0)
COMPILER = {"xla_backend_optimization_level": 0}
CARTPOLE = "playground/CartpoleBalance"
STEPS = 6


@pytest.fixture(scope="module")
def cartpole():
    return envs.make(CARTPOLE)


def roll_out(reset, step, key, actions):
    """The outcomes ``[T, ...]`` of ``actions[T, A]`` from one reset, in one program."""

    def run(key, actions):
        return jax.lax.scan(step, reset(key), actions)[1]

    return jax.jit(run, compiler_options=COMPILER)(key, actions)


def adapted(env, key, actions):
    def step(state, action):
        state, out = env.step(KEY, state, action)
        return state, (out.obs, out.reward, out.terminated, state["data"])

    return roll_out(lambda key: env.reset(key)[0], step, key, actions)


def raw(env, key, actions):
    def step(state, action):
        state = env.env.step(state, action)
        data = {name: getattr(state.data, name) for name in ("qpos", "qvel", "qacc_warmstart")}
        return state, (state.obs, state.reward, state.done > 0, data)

    return roll_out(lambda key: env.env.reset(jax.random.key_data(key)), step, key, actions)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_names_are_those_of_playgrounds_registry():
    from mujoco_playground import registry

    assert len(playground.TASKS) == len(set(playground.TASKS)) == 54
    assert set(playground.DM_CONTROL) == set(registry.dm_control_suite.ALL_ENVS)
    assert set(playground.LOCOMOTION) == set(registry.locomotion.ALL_ENVS)
    assert set(playground.MANIPULATION) == set(registry.manipulation.ALL_ENVS)
    assert f"{CARTPOLE}Sparse" in envs.names("playground")


@pytest.mark.parametrize(
    "task",
    [
        task if task in ("CheetahRun", "CartpoleBalance", "WalkerRun")
        else pytest.param(task, marks=pytest.mark.slow)
        for task in playground.DM_CONTROL
    ],
)  # fmt: skip
def test_every_task_of_dm_control_can_be_made(task):
    """Which traces a reset for its shapes; nothing is compiled."""
    env = envs.make(f"playground/{task}")
    assert isinstance(env, Environment) and env.spec.max_steps > 0
    assert len(env.spec.observation.shape) == 1 and env.spec.observation.shape[0] > 0
    assert env.spec.action.shape == (env.mj_model.nu,)


@pytest.mark.parametrize(
    "task", ["CartpoleBalance", pytest.param("CheetahRun", marks=pytest.mark.slow)]
)
def test_steps_are_playgrounds_own_bit_for_bit(task, cartpole):
    """Although only the integration state is carried from step to step."""
    env = cartpole if task == "CartpoleBalance" else envs.make(f"playground/{task}")
    assert isinstance(env, Environment) and not env.cheap
    actions = jax.random.uniform(KEY, (STEPS, *env.spec.action.shape), minval=-1.0)
    obs, reward, ended, data = adapted(env, KEY, actions)
    theirs = raw(env, KEY, actions)
    assert obs.shape == (STEPS, *env.spec.observation.shape)
    assert reward.dtype == obs.dtype == jnp.float32 and ended.dtype == bool
    np.testing.assert_array_equal(obs, theirs[0])
    np.testing.assert_array_equal(reward, theirs[1])
    np.testing.assert_array_equal(ended, theirs[2])
    for name, wanted in theirs[3].items():
        np.testing.assert_array_equal(data[name], wanted)
    assert np.unique(obs).size > STEPS and np.ptp(reward) > 0


@pytest.mark.parametrize("value", [np.nan, 1e12])  # of the latter MuJoCo has diverged too
def test_the_vector_environment_limits_and_resets_and_contains_divergence(value, cartpole):
    venv = VectorEnv(envs.make(CARTPOLE, max_steps=3), 4, pool_size=2)
    assert venv.spec.max_steps == 3 and cartpole.spec.max_steps == 1000

    def run(key, value):
        reset_key, pool_key, step_key = jax.random.split(key, 3)
        state, pool = venv.reset(reset_key), venv.reset_pool(pool_key)
        first = state.obs
        broken = state.inner["data"]["qpos"].at[1].set(value)
        state = state._replace(inner=state.inner | {"data": state.inner["data"] | {"qpos": broken}})
        return first, jax.lax.scan(
            lambda s, k: venv.step(k, s, jnp.ones((4, 1)), pool),
            state,
            jax.random.split(step_key, 4),
        )

    first, (state, steps) = jax.jit(run, compiler_options=COMPILER)(KEY, value)
    assert np.unique(first, axis=0).shape == (4, 5)
    healthy = [0, 2, 3]
    np.testing.assert_array_equal(steps.terminated[0], [False, True, False, False])
    np.testing.assert_array_equal(steps.info["nonfinite"][0], [False, True, False, False])
    np.testing.assert_array_equal(steps.truncated[2], [True, False, True, True])
    np.testing.assert_array_equal(steps.truncated[3], [False, True, False, False])
    assert not steps.terminated[1:].any() and not steps.truncated[:2, healthy].any()
    assert np.isfinite(steps.obs).all() and np.isfinite(state.obs).all()
    np.testing.assert_array_equal(state.steps, [1, 0, 1, 1])


def test_a_state_has_a_pose_and_leaves_its_argument_alone(cartpole):
    state, _ = jax.jit(jax.vmap(cartpole.reset))(jax.random.split(KEY, 3))
    pose = cartpole.pose(state)
    assert set(pose) == {"qpos"} and pose["qpos"].shape == (3, cartpole.mj_model.nq)
    assert isinstance(pose["qpos"], np.ndarray) and cartpole.mj_model.nu == 1
    reacher = envs.make("playground/ReacherEasy", ctrl_dt=0.04)
    pose = jax.eval_shape(reacher.reset, KEY)[0]["data"]
    assert {"qpos", "mocap_pos", "mocap_quat"} <= set(pose)
    assert reacher.env.n_substeps == round(0.04 / reacher.env.sim_dt)


def test_another_model_may_be_stepped(cartpole):
    """As domain randomisation does."""

    def velocity(gravity):
        env = copy.copy(cartpole.env)
        env._mjx_model = env.mjx_model.tree_replace({"opt.gravity": gravity})
        state, _ = cartpole._reset(env, KEY)
        return cartpole._step(env, state, jnp.zeros(1))[0]["data"]["qvel"]

    gravity = jnp.array([[0.0, 0.0, -9.81], [0.0, 0.0, 0.0], [0.0, 0.0, -9.81]])
    given = jax.jit(jax.vmap(velocity), compiler_options=COMPILER)(gravity)
    np.testing.assert_array_equal(given[0], given[2])
    assert abs(given[0, 1] - given[1, 1]) > 1e-3


# An environment of Playground's form that needs no physics.


class Counting:
    """Observes a dictionary, keeps history, writes into its dictionaries, ends at ``end``."""

    action_size = 1

    def __init__(self, end):
        import mujoco

        self.mj_model = mujoco.MjModel.from_xml_string("<mujoco/>")
        self.mjx_model = SimpleNamespace(impl=SimpleNamespace(value="jax"))
        self.end = end

    def state(self, data, info, last, done):
        from mujoco_playground import State

        obs = {"state": last + 1.0, "privileged_state": jnp.zeros(2) + info["count"]}
        reward = jnp.float32(1.0) * info["count"]
        return State(data, obs, reward, jnp.float32(done), {"seen": 0.0}, info)

    def reset(self, rng):
        from mujoco_playground._src.mjx_env import make_data

        data = make_data(self.mj_model, impl="jax")
        return self.state(data, {"rng": rng, "count": 0}, jnp.zeros(1), False)

    def step(self, state, action):
        state.info["count"] += 1
        state.metrics["seen"] = action[0]
        ends = state.info["count"] >= self.end
        return self.state(state.data, state.info, state.obs["state"], ends)


def test_observations_may_be_dictionaries_and_actions_repeat_until_the_end():
    env = playground.PlaygroundEnv("playground/Counting", Counting(end=5), 9, repeat=3)
    boxes = env.spec.observation
    assert {name: box.shape for name, box in boxes.items()} == {
        "state": (1,),
        "privileged_state": (2,),
    }
    state, obs = env.reset(KEY)
    seen = jax.tree.map(np.asarray, obs)
    steps = []
    for _ in range(2):
        before = copy.deepcopy(jax.tree.map(np.asarray, state))
        after, out = env.step(KEY, state, jnp.zeros(1))
        jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        state, steps = after, [*steps, out]
    assert (seen["state"], int(state["info"]["count"])) == (1.0, 5)
    # Three of Playground's steps, then the two until it ends: 1 + 2 + 3 and 4 + 5.
    assert [float(out.reward) for out in steps] == [6.0, 9.0]
    assert [float(out.obs["state"][0]) for out in steps] == [4.0, 6.0]
    assert [float(out.obs["privileged_state"][1]) for out in steps] == [3.0, 5.0]
    assert [bool(out.terminated) for out in steps] == [False, True]
    assert not any(bool(out.truncated) for out in steps)

    venv = VectorEnv(env, 2)
    start, pool = venv.reset(KEY), venv.reset_pool(KEY)
    _, out = jax.jit(venv.step)(KEY, start, jnp.zeros((2, 1)), pool)
    assert jax.tree.map(jnp.shape, out.obs) == {"state": (2, 1), "privileged_state": (2, 2)}


# What is refused.


@pytest.mark.parametrize(
    ("task", "options", "parts"),
    [
        ("CheetahRum", {}, ["did you mean playground/CheetahRun"]),
        ("CheetahRun", {"impl": "wrap"}, ["impl is 'wrap'", "did you mean warp?"]),
        ("CheetahRun", {"impl": "warp"}, ["impl 'warp' needs an NVIDIA GPU", "choose impl jax"]),
        ("CheetahRun", {"max_steps": 0}, ["max_steps is 0", "at least 1"]),
        ("CheetahRun", {"ctl_dt": 0.02}, ["no option 'ctl_dt'", "did you mean ctrl_dt"]),
        ("CheetahRun", {"episode_length": 9}, ["no option 'episode_length'", "max_steps"]),
        ("CheetahRun", {"ctrl_dt": "slow"}, ["ctrl_dt is 'slow'", "like 0.01"]),
        ("CheetahRun", {"ctrl_dt": 0.015}, ["ctrl_dt is 0.015", "multiple of sim_dt, as 0.01"]),
        ("CheetahRun", {"sim_dt": 0}, ["sim_dt is 0", "more than 0"]),
        ("CheetahRun", {"sim_dt": float("nan")}, ["sim_dt is nan", "like 0.01"]),
        ("CheetahRun", {"njmax": 1.5}, ["njmax is 1.5", "count"]),
        ("CheetahRun", {"action_repeat": 0}, ["action_repeat is 0", "at least 1"]),
    ],
)
def test_mistakes_are_told_in_one_line(task, options, parts):
    if options.get("impl") == "warp" and jax.default_backend() != "cpu":
        pytest.skip("Warp may run here")
    with pytest.raises(UsageError) as error:
        envs.make(f"playground/{task}", **options)
    for part in (f"playground/{task}", *parts):
        assert part in one_line(error)


@pytest.mark.parametrize("task", ["Go1JoystickFlatTerrain", "PandaPickCube"])
def test_robots_without_their_models_are_told_and_nothing_is_cloned(task, monkeypatch, tmp_path):
    from mujoco_playground._src import mjx_env

    def started(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(subprocess, "run", started)
    missing = type(mjx_env.MENAGERIE_PATH)(tmp_path / "menagerie")
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", missing)
    with pytest.raises(UsageError) as error:
        envs.make(f"playground/{task}")
    message = one_line(error)
    assert f"no folder {missing}" in message and "mujoco_menagerie at commit" in message
    assert not missing.exists()

    missing.mkdir()  # there, but empty
    with pytest.raises(UsageError, match=f"playground/{task} is refused by Playground") as error:
        envs.make(f"playground/{task}")
    one_line(error)


def test_options_are_json_and_make_the_environment_again(cartpole):
    options = {"ctrl_dt": 0.02, "action_repeat": np.int64(2), "max_steps": 50}
    env = envs.make(CARTPOLE, **options)
    assert (env.spec.max_steps, env.repeat, env.env.n_substeps) == (50, 2, 2)
    stored = json.loads(json.dumps(env.options))
    assert stored == options | {"impl": "jax"}
    again = envs.make(CARTPOLE, **stored)
    assert (again.spec.max_steps, again.repeat, again.env.dt) == (50, 2, 0.02)
    assert envs.make(CARTPOLE, action_repeat=3).spec.max_steps == 334
    assert cartpole.options == {"impl": "jax"}


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(playground.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'not installed; pip install "jaxrl\[playground\]"') as e:
        envs.make(CARTPOLE)
    assert CARTPOLE in one_line(e)


def test_making_one_is_silent_and_patches_nothing_for_good(tmp_path):
    program = """
import warnings
warnings.simplefilter("error", UserWarning)
import jaxrl, jax
import mujoco
before, handler = set(dir(mujoco.MjSpec)), mujoco.get_mju_user_warning()
settings = dict(jax.config.values)
for task in ("CheetahRun", "ReacherHard"):
    jaxrl.make(f"playground/{task}")
assert set(dir(mujoco.MjSpec)) == before and mujoco.get_mju_user_warning() is handler
assert dict(jax.config.values) == settings
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())  # MuJoCo writes a log when it warns
