"""mjx/*: Gymnasium's MuJoCo v5 tasks, held against Gymnasium itself."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import gymnasium
import jax
import mujoco
import numpy as np
import pytest

from jaxrl import make
from jaxrl.envs import mjx as suite
from jaxrl.envs.mjx.engine_c import CEngine

TASKS = suite.TASKS
# Where MJX and MuJoCo collide the same shapes by other routines: see the docs on MJX tasks.
OTHER_COLLISIONS = ("Humanoid-v5", "HumanoidStandup-v5")
VARIANTS = [(task, {}) for task in TASKS] + [
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "main_body": "front_left_leg"}),
    ("Ant-v5", {"contact_cost_weight": 0.1, "contact_force_range": (-0.5, 2.0)}),
    ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "frame_skip": 3}),
    ("Hopper-v5", {"healthy_state_range": (-0.5, 0.5), "healthy_reward": 3.0}),
    ("Humanoid-v5", {"include_cvel_in_observation": False, "contact_cost_weight": 1e-3}),
    (
        "HumanoidStandup-v5",
        {"impact_cost_range": (0.0, 0.01), "include_cinert_in_observation": False},
    ),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 2.5}),
    ("Pusher-v5", {"reward_near_weight": 2.0, "reward_control_weight": 0.7}),
    ("Reacher-v5", {"reward_dist_weight": 3.0}),
    ("Swimmer-v5", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.3}),
    ("Walker2d-v5", {"terminate_when_unhealthy": False, "healthy_angle_range": (-0.1, 0.1)}),
]


@functools.cache
def env_of(task, engine="c", **options):
    return make(f"mjx/{task}", engine=engine, **options)


@functools.cache
def gymnasium_of(task):
    return gymnasium.make(task).unwrapped


def trajectory(env, qpos, qvel, actions):
    """From that state, all observations [T+1, O], and rewards, ends and states [T, ...]."""

    def step(state, action):
        state, out = env.step(jax.random.key(0), state, action)
        return state, (out.obs, out.reward, out.terminated, state)

    @jax.jit
    def play(qpos, qvel, actions):
        state, obs = env.reset_to(qpos, qvel)
        return obs, jax.lax.scan(step, state, actions)[1]

    first, (obs, *rest) = play(qpos, qvel, actions)
    return np.concatenate([first[None], obs]), *map(np.asarray, rest[:2]), rest[2]


def random_actions(env, steps, seed=0):
    space = env.spec.action
    shape = (steps, *space.shape)
    return np.random.default_rng(seed).uniform(space.low, space.high, shape).astype(np.float32)


# The native engine


@pytest.mark.parametrize(("task", "options"), VARIANTS)
def test_the_native_engine_is_gymnasium_bit_for_bit(task, options):
    """A whole episode's states in float64; observations and rewards after the cast to float32."""
    theirs = gymnasium.make(task, **options).unwrapped
    ours = env_of(task, **options) if not options else make(f"mjx/{task}", engine="c", **options)
    first = theirs.reset(seed=1)[0].astype(np.float32)
    qpos, qvel = theirs.data.qpos.copy(), theirs.data.qvel.copy()
    if (qpos.astype(np.float32) != qpos).any() or (qvel.astype(np.float32) != qvel).any():
        qpos, qvel = qpos.astype(np.float32), qvel.astype(np.float32)  # as jaxrl draws starts
        theirs.set_state(qpos, qvel)
        first = theirs._get_obs().astype(np.float32)
        mujoco.mj_resetData(theirs.model, theirs.data)
        theirs.set_state(qpos, qvel)
    steps = ours.max_steps
    actions = random_actions(ours, steps)
    obs, reward, terminated, states = trajectory(ours, qpos, qvel, actions)
    pose = ours.pose(states)["qpos"]

    np.testing.assert_array_equal(obs[0], first)
    ended = 0
    for t, action in enumerate(actions):
        expected, r, end, *_ = theirs.step(action.astype(np.float64))
        np.testing.assert_array_equal(pose[t], theirs.data.qpos)
        np.testing.assert_array_equal(obs[t + 1], expected.astype(np.float32))
        np.testing.assert_allclose(reward[t], r, rtol=1.2e-7, atol=1e-12)
        assert terminated[t] == end
        ended += end
    if task in ("Hopper-v5", "Ant-v5", "Humanoid-v5", "InvertedPendulum-v5") and not options:
        assert 0 < ended < steps  # both flags were seen


def test_batches_threads_and_nested_vmap_change_no_bit():
    """Batches of [2, 16] on one and on three threads, against one environment after another."""
    env = env_of("Hopper-v5")
    many = CEngine(env.task, threads=3)
    keys = jax.random.split(jax.random.key(0), (2, 16))
    start = jax.vmap(jax.vmap(env.reset))(keys)[0]
    actions = random_actions(env, 32).reshape(2, 16, -1)

    one = [
        [env.engine.step(jax.tree.map(lambda x: x[i, j], start), actions[i, j]) for j in range(16)]
        for i in range(2)
    ]
    expected = jax.tree.map(
        lambda *x: np.stack(x).reshape(2, 16, *x[0].shape), *(out for row in one for out in row)
    )
    for engine in (env.engine, many):
        found = jax.jit(jax.vmap(jax.vmap(engine.step)))(start, actions)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


# MJX


@pytest.fixture(scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def step_errors(task):
    """Largest error of observation (relative above 1) and reward, and wrong flags, in 100 steps.

    Each from another state of random episodes in Gymnasium; solvers have the XML's budget.
    """
    ours = make(f"mjx/{task}", engine="mjx", iterations=100, ls_iterations=50)
    theirs = gymnasium.make(task).unwrapped
    if theirs.model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        theirs.model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    actions = random_actions(ours, 100)
    before, after = [], []
    for t, action in enumerate(actions):
        if t % 25 == 0:
            theirs.reset(seed=t)
        before.append(mjx_state(ours.task, theirs))
        after.append(theirs.step(action.astype(np.float64))[:3])

    stacked = jax.tree.map(lambda *x: np.stack(x), *before)
    step = jax.jit(lambda x: jax.lax.map(lambda xs: ours.engine.step(*xs)[1:], x))
    obs, reward, terminated = step((stacked, actions))
    assert obs.dtype == np.float64
    expected = [np.stack(x) for x in zip(*after, strict=True)]
    relative = np.abs(obs - expected[0]) / np.maximum(1.0, np.abs(expected[0]))
    return relative.max(), np.abs(reward - expected[1]).max(), np.sum(terminated != expected[2])


def mjx_state(task, theirs):
    """Gymnasium's state as MJX's engine carries it; copies, as MuJoCo writes into its arrays."""
    data, model = theirs.data, theirs.model
    read = {name: getattr(data if hasattr(data, name) else model, name) for name in task.READS}
    names = ("qpos", "qvel", "act", "qacc_warmstart")
    state = {name: np.array(getattr(data, name)) for name in names}
    return state | {"before": np.array(task.position(SimpleNamespace(**read))), "parameters": {}}


@pytest.mark.parametrize("task", TASKS)
def test_one_step_of_mjx_is_gymnasiums_in_float64(task, float64):
    obs_error, reward_error, wrong_flags = step_errors(task)
    tolerance = 5e-3 if task in OTHER_COLLISIONS else 1e-9
    assert obs_error < tolerance
    assert reward_error < max(tolerance / 100, 1e-9)
    assert wrong_flags == 0


def test_mjx_without_the_corrected_contacts_is_not(float64, monkeypatch):
    """The correction matters: with MJX's own collision function Ant is far off."""
    from mujoco.mjx._src import collision_driver
    from mujoco.mjx._src.types import GeomType

    own = collision_driver._COLLISION_FUNC[GeomType.PLANE, GeomType.CAPSULE]
    monkeypatch.setattr("jaxrl.envs.mjx.collision.plane_capsule", own)
    assert step_errors("Ant-v5")[0] > 1e-3
    assert collision_driver._COLLISION_FUNC[GeomType.PLANE, GeomType.CAPSULE] is own
