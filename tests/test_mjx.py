"""mjx/*: Gymnasium's MuJoCo tasks, held against Gymnasium itself."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrl import PPO, OnPolicy, VectorEnv, make, rng
from jaxrl.envs import make_recorded
from jaxrl.envs import mjx as suite
from jaxrl.envs.mjx.engine_c import CEngine
from jaxrl.envs.mjx.engine_mjx import MjxEngine
from jaxrl.envs.vector import rescale
from jaxrl.errors import UsageError

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
TASKS = suite.TASKS
V5 = [task for task in TASKS if task.endswith("v5")]
COMPILER = {"xla_backend_optimization_level": 0}  # compiling is nearly all that MJX costs here
# Where MJX and MuJoCo collide the same shapes by other routines: see the docs on MJX tasks.
OTHER_COLLISIONS = ("Humanoid-v5", "HumanoidStandup-v5")
VARIANTS = [(task, {}) for task in TASKS] + [
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "main_body": "front_left_leg"}),
    ("Ant-v5", {"contact_cost_weight": 0.1, "contact_force_range": (-0.5, 2.0)}),
    ("Ant-v5", {"healthy_z_range": (0.4, 0.7), "healthy_reward": 2.0}),
    ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "frame_skip": 3}),
    ("Hopper-v5", {"healthy_state_range": (-0.5, 0.5), "healthy_reward": 3.0}),
    ("Humanoid-v5", {"include_cvel_in_observation": False, "contact_cost_weight": 1e-3}),
    (
        "Humanoid-v5",
        {
            "include_qfrc_actuator_in_observation": False,
            "include_cfrc_ext_in_observation": False,
            "contact_cost_weight": 1e-3,
            "contact_cost_range": (0.5, 2.0),
        },
    ),
    (
        "HumanoidStandup-v5",
        {"impact_cost_range": (0.0, 0.01), "include_cinert_in_observation": False},
    ),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 2.5}),
    ("Pusher-v5", {"reward_near_weight": 2.0, "reward_control_weight": 0.7}),
    ("Reacher-v5", {"reward_dist_weight": 3.0}),
    ("Swimmer-v5", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.3}),
    ("Walker2d-v5", {"terminate_when_unhealthy": False, "healthy_angle_range": (-0.1, 0.1)}),
    ("Ant-v4", {"use_contact_forces": True, "contact_cost_weight": 0.1}),
    ("Hopper-v4", {"terminate_when_unhealthy": False}),
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
    """States in float64; observations and rewards after the cast to float32; for 250 steps."""
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
    actions = random_actions(ours, 250)
    obs, reward, terminated, states = trajectory(ours, qpos, qvel, actions)
    pose = ours.pose(states)["qpos"]

    np.testing.assert_array_equal(obs[0], first)
    ended = 0
    for t, action in enumerate(actions):
        expected, r, end, *_ = theirs.step(action.astype(np.float64))
        np.testing.assert_array_equal(pose[t], theirs.data.qpos)
        np.testing.assert_array_equal(obs[t + 1], expected.astype(np.float32))
        np.testing.assert_array_equal(reward[t], np.float32(r))
        assert terminated[t] == end
        ended += end
    falls = ("Hopper", "Ant", "Humanoid", "InvertedPendulum")
    if task.partition("-")[0] in falls and not options:
        assert 0 < ended < len(actions)  # both flags were seen


def test_batches_threads_and_nested_vmap_change_no_bit():
    """Batches of [2, 16] on one and on three threads, against one environment after another."""
    env = env_of("Hopper-v5")
    many = CEngine(env.task, threads=3)
    keys = jax.random.split(jax.random.key(0), (2, 16))
    start = jax.vmap(jax.vmap(env.reset))(keys)[0]
    actions = random_actions(env, 32).reshape(2, 16, -1)

    def alone(i, j):
        return env.engine.step(jax.tree.map(lambda x: x[i, j], start), actions[i, j])

    outs = [alone(i, j) for i in range(2) for j in range(16)]
    expected = jax.tree.map(lambda *x: np.stack(x).reshape(2, 16, *x[0].shape), *outs)
    for engine in (env.engine, many):
        found = jax.jit(jax.vmap(jax.vmap(engine.step)))(start, actions)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5"])
def test_rollouts_follow_the_exact_engine_to_the_solvers_tolerance(task):
    exact, rolled = env_of(task), env_of(task, exact=False)
    assert (exact.options["exact"], rolled.options["exact"]) == (True, False)
    start = jax.vmap(exact.reset)(jax.random.split(jax.random.key(0), 20))[0]
    actions = random_actions(exact, 200).reshape(10, 20, -1)

    def play(engine):
        def step(state, action):
            state, *out = jax.vmap(engine.step)(state, action)
            return state, out

        return jax.jit(lambda: jax.lax.scan(step, start, actions))()

    states, outs = zip(play(exact.engine), play(rolled.engine), strict=True)
    poses = [exact.pose(state)["qpos"] for state in states]
    np.testing.assert_allclose(poses[0], poses[1], atol=1e-8)
    assert task == "InvertedPendulum-v5" or (poses[0] != poses[1]).any()  # it has no contacts
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-6), *outs)


# MJX


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def step_errors(task, engine=None):
    """Errors of observations (relative above 1) and rewards, and wrong flags, of 100 steps: [100].

    Each from another state of random episodes in Gymnasium. By default MJX whose solver has the
    XML's budget.
    """
    ours = env_of(task)
    engine = engine or MjxEngine(ours.task, (100, 50))
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
    over = jax.vmap if engine.impl == "warp" else lambda f: functools.partial(map_over, f)
    step = jax.jit(over(lambda *x: engine.step(*x)[1:]), compiler_options=COMPILER)
    obs, reward, terminated = step(stacked, actions)
    assert obs.dtype == jnp.result_type(float)
    expected = [np.stack(x) for x in zip(*after, strict=True)]
    relative = np.abs(obs - expected[0]) / np.maximum(1.0, np.abs(expected[0]))
    return relative, np.abs(reward - expected[1]), terminated != expected[2]


def map_over(f, *xs):
    return jax.lax.map(lambda x: f(*x), xs)


def quick(names, *kept):
    """The names as parameters of a test; all but ``kept`` are slow: MJX takes long to compile."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.slow) for n in names]


def mjx_state(task, theirs):
    """Gymnasium's state as MJX's engine carries it; copies, as MuJoCo writes into its arrays."""
    data, model = theirs.data, theirs.model
    read = {name: getattr(data if hasattr(data, name) else model, name) for name in task.reads}
    names = ("qpos", "qvel", "act", "qacc_warmstart")
    state = {name: np.array(getattr(data, name)) for name in names}
    return state | {"before": np.array(task.position(SimpleNamespace(**read))), "parameters": {}}


@pytest.mark.parametrize("task", quick(TASKS, "HalfCheetah-v5"))
def test_one_step_of_mjx_is_gymnasiums_in_float64(task, float64):
    obs_error, reward_error, wrong_flags = step_errors(task)
    tolerance = 5e-3 if task in OTHER_COLLISIONS else 1e-9
    assert obs_error.max() < tolerance
    assert reward_error.max() < max(tolerance / 100, 1e-9)
    assert not wrong_flags.any()


@pytest.mark.slow  # it belongs to the step of Ant, which is slow too
def test_mjx_without_the_corrected_contacts_is_not(float64, monkeypatch):
    """The correction matters: with MJX's own collision function Ant is far off."""
    from mujoco.mjx._src import collision_driver
    from mujoco.mjx._src.types import GeomType

    own = collision_driver._COLLISION_FUNC[GeomType.PLANE, GeomType.CAPSULE]
    monkeypatch.setattr("jaxrl.envs.mjx.collision.plane_capsule", own)
    assert step_errors("Ant-v5")[0].max() > 1e-3
    assert collision_driver._COLLISION_FUNC[GeomType.PLANE, GeomType.CAPSULE] is own


@pytest.mark.parametrize("task", quick(["HalfCheetah-v5", "Ant-v5"], "HalfCheetah-v5"))
@pytest.mark.parametrize("impl", quick(["jax", "warp"], "jax"))
def test_one_step_in_float32_at_the_default_budget(task, impl):
    """Warp is stepped on the CPU, which ``make`` refuses as too slow: its kernels are the same."""
    if impl == "warp":
        pytest.importorskip("warp")
    kind = env_of(task).task
    engine = MjxEngine(kind, kind.ITERATIONS, impl, naconmax=2000 if impl == "warp" else None)
    if impl == "warp":
        obs = engine.reset(*map(jnp.asarray, (kind.model.qpos0, np.zeros(kind.model.nv))), {})[1]
        assert (obs[27:] == 0).all()  # Gymnasium's first observation has no contact forces
    obs_error, reward_error, wrong_flags = step_errors(task, engine)
    assert np.median(obs_error.max(axis=1)) < 1e-5
    assert obs_error.max() < 1e-3 and reward_error.max() < 1e-4
    assert not wrong_flags.any()


# What both share


@pytest.mark.parametrize("task", TASKS)
def test_arguments_and_their_defaults_are_gymnasiums(task):
    theirs = dict(inspect.signature(type(gymnasium_of(task)).__init__).parameters)
    base = inspect.signature(gymnasium.envs.mujoco.MujocoEnv.__init__).parameters
    task_of = env_of(task).task
    ours = {f.name: getattr(task_of, f.name) for f in dataclasses.fields(task_of)}
    names = ("width", "height", "camera_id", "camera_name", "max_geom", "visual_options")
    for name, parameter in ({name: base[name] for name in names} | theirs).items():
        if name not in ("self", "kwargs", "default_camera_config"):
            assert ours[name] == parameter.default
    if "default_camera_config" in theirs:
        camera = theirs["default_camera_config"].default
    else:  # v4 has no such argument
        camera = inspect.getmodule(type(gymnasium_of(task))).DEFAULT_CAMERA_CONFIG
    assert str(ours["default_camera_config"]) == str(camera)
    assert Path(gymnasium_of(task).fullpath) == ASSETS / ours["xml_file"]
    assert gymnasium_of(task).frame_skip == ours["frame_skip"]
    assert env_of(task).spec.observation.shape == gymnasium_of(task).observation_space.shape
    assert env_of(task).max_steps == gymnasium.spec(task).max_episode_steps
    assert env_of(task).dt == pytest.approx(gymnasium_of(task).dt)
    box, space = env_of(task).spec.action, gymnasium_of(task).action_space
    np.testing.assert_array_equal(box.low, space.low)
    np.testing.assert_array_equal(box.high, space.high)


@pytest.mark.parametrize("task", quick(TASKS, *V5))  # v4 has v5's
def test_starts_are_distributed_as_gymnasiums(task):
    """Means and spreads of every coordinate, over 1500 starts of each."""
    theirs, n = gymnasium_of(task), 1500
    rows = []
    for seed in range(n):
        theirs.reset(seed=seed)
        rows.append(np.concatenate([theirs.data.qpos, theirs.data.qvel]))
    expected = np.array(rows)
    keys = jax.random.split(jax.random.key(1), n)
    ours = np.concatenate(jax.jit(jax.vmap(env_of(task).task.start))(keys), axis=1)

    spread = expected.std(axis=0)
    fixed = spread < 1e-12
    np.testing.assert_allclose(ours[:, fixed], expected[:, fixed], atol=1e-7)
    free = ~fixed
    error = np.abs(ours.mean(axis=0) - expected.mean(axis=0))[free]
    assert (error / (spread[free] * (2 / n) ** 0.5)).max() < 5
    assert np.abs(ours.std(axis=0)[free] / spread[free] - 1).max() < 0.12
    extremes = np.abs(ours - expected.mean(axis=0)).max(axis=0)[free]
    reach = np.abs(expected - expected.mean(axis=0)).max(axis=0)[free]
    assert (extremes < 1.5 * reach).all()
    if task in ("Reacher-v5", "Pusher-v5"):  # which draw until a condition holds
        place = ours[:, : theirs.model.nq][:, -2:] if task == "Reacher-v5" else ours[:, 7:9]
        distance = np.linalg.norm(place, axis=1)
        assert distance.max() < 0.2 if task == "Reacher-v5" else distance.min() > 0.17


def test_legacy_margins_are_half_and_change_hopper():
    legacy = env_of("Hopper-v5", margin="legacy")
    current = env_of("Hopper-v5")
    assert (legacy.options["margin"], current.options["margin"]) == ("legacy", "current")
    margins = current.mj_model.geom_margin
    assert margins.max() > 0
    np.testing.assert_array_equal(legacy.mj_model.geom_margin, 0.5 * margins)
    for task in ("Hopper-v4", "Ant-v4"):
        halves = [
            env_of(task, margin=which).mj_model.geom_margin for which in ("legacy", "current")
        ]
        np.testing.assert_array_equal(halves[0], 0.5 * halves[1])
        assert halves[1].max() > 0
    qpos, qvel = gymnasium_of("Hopper-v5").init_qpos, np.zeros(6)
    actions = random_actions(current, 25)
    ends = [trajectory(env, qpos, qvel, actions)[0][-1] for env in (legacy, current)]
    assert np.abs(ends[0] - ends[1]).max() > 1e-2


def with_euler(task, folder, **options):
    """The task on MJX without the Runge-Kutta integrator, which takes minutes to compile."""
    own = env_of(task).task.xml_file
    text = (ASSETS / own).read_text()
    assert 'integrator="RK4"' in text
    (folder / own).write_text(text.replace('integrator="RK4"', 'integrator="Euler"'))
    return make(f"mjx/{task}", **{"engine": "mjx", "xml_file": str(folder / own)} | options)


HOPPING = {"terminate_when_unhealthy": False}


@pytest.mark.parametrize(
    ("task", "options", "value"),
    [
        ("HalfCheetah-v5", {"engine": "c"}, np.nan),
        ("HalfCheetah-v5", {"engine": "c"}, 1e12),
        ("HalfCheetah-v5", {"engine": "c", "exact": False}, 1e12),
        ("Hopper-v5", {"engine": "c"} | HOPPING, 1e12),
        pytest.param("Hopper-v5", {"engine": "mjx"} | HOPPING, 1e12, marks=pytest.mark.slow),
        ("InvertedPendulum-v5", {"engine": "mjx"}, np.nan),
    ],
)
def test_diverged_physics_ends_one_episode_and_is_counted(
    task, options, value, tmp_path, tmp_path_factory, monkeypatch
):
    """Of 64 environments one is not finite, or out of MuJoCo's range; no other changes by a bit.

    Hopper's observation clips velocities: of them alone nobody would see it.
    """
    monkeypatch.chdir(tmp_path)  # MuJoCo would write a log file here
    engine = options["engine"]
    folder = tmp_path_factory.mktemp("models")
    env = env_of(task, **options) if engine == "c" else with_euler(task, folder, **options)
    venv = VectorEnv(env, 64)
    state = jax.jit(venv.reset)(jax.random.key(0))
    pool_key, step_key = jax.random.split(jax.random.key(1))
    pool = jax.jit(venv.reset_pool)(pool_key)
    action = jnp.asarray(random_actions(env, 64))
    inner = dict(state.inner)
    part = "words" if engine == "c" else "qvel"
    bad = np.array(inner[part])
    (bad.view(np.float64) if engine == "c" else bad)[7, 1] = value
    inner[part] = jnp.asarray(bad)

    step = jax.jit(venv.step, compiler_options=COMPILER)
    healthy_next, healthy = step(step_key, state, action, pool)
    after, out = step(step_key, state._replace(inner=inner), action, pool)
    others = np.arange(64) != 7

    def same(a, b):
        np.testing.assert_array_equal(a[others], b[others])

    jax.tree.map(same, (after, out), (healthy_next, healthy))
    assert out.info["nonfinite"][7] and out.terminated[7] and not out.truncated[7]
    assert out.info["nonfinite"].sum() == 1
    assert (out.obs[7] == 0).all() and out.reward[7] == 0
    again, following = step(step_key, after, action, pool)
    assert not following.info["nonfinite"].any() and np.isfinite(again.obs).all()
    assert not list(tmp_path.iterdir())


REACH = (np.array([0.3, -0.8, 0.1, -0.12]), np.array([0.5, 0.2, 0.0, 0.0]))


def return_of(step, env, weights, length=5):
    """The rewards of ``length`` steps of Reacher under a policy with one hidden layer."""
    first, second = weights[:30].reshape(10, 3), weights[30:].reshape(3, 2)

    def act(carry, _):
        state, obs = carry
        state, obs, reward = step(state, jnp.tanh(jnp.tanh(obs @ first) @ second))
        return (state, obs), reward

    return jax.lax.scan(act, env.reset_to(*REACH), length=length)[1].sum()


@pytest.mark.slow
def test_the_gradient_of_a_return_with_respect_to_a_policy_is_finite_differences(float64, tmp_path):
    env = with_euler("Reacher-v5", tmp_path, iterations=1)

    def as_users_do(state, action):  # actions of environments travel in float32
        state, out = env.step(jax.random.key(0), state, action)
        return state, out.obs, out.reward

    weights = 0.3 * jax.random.normal(jax.random.key(1), (36,))
    derivative = jax.grad(lambda w: return_of(as_users_do, env, w))
    gradient = jax.jit(derivative, compiler_options=COMPILER)(weights)
    value = jax.jit(
        lambda w: return_of(lambda *x: env.engine.step(*x)[:3], env, w), compiler_options=COMPILER
    )
    differences = []
    for shift in 1e-5 * jnp.eye(36):
        differences.append((value(weights + shift) - value(weights - shift)) / 2e-5)
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-7)
    assert np.abs(gradient).max() > 1e-2


@pytest.mark.slow
def test_at_the_default_budget_derivatives_go_forwards_and_in_reverse_are_one_line(tmp_path):
    env = with_euler("InvertedPendulum-v5", tmp_path)

    def moved(action):
        state, _ = env.reset_to(np.array([0.1, 0.15]), np.array([0.0, 0.2]))
        return env.step(jax.random.key(0), state, action)[1].obs[2]

    one = jnp.ones(1)
    assert jax.jit(jax.jacfwd(moved), compiler_options=COMPILER)(0.3 * one) > 0.1
    with pytest.raises(UsageError, match="make the environment with iterations=1") as caught:
        jax.jit(jax.vmap(jax.grad(moved)))(one[None])
    assert "\n" not in str(caught.value)


def test_the_other_engines_have_no_gradients_and_say_so():
    pytest.importorskip("warp")
    task = env_of("InvertedPendulum-v5").task
    for name, engine in {"c": CEngine(task), "warp": MjxEngine(task, (4, 8), "warp", 64)}.items():
        state, _ = engine.reset(*map(jnp.asarray, (task.model.qpos0, np.zeros(2))), {})
        of_action = lambda action, engine=engine, state=state: engine.step(state, action)[1].sum()  # noqa: E731
        for derivative in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.jit(f))):
            with pytest.raises(UsageError, match=f"engine '{name}' has no gradients; make the"):
                derivative(of_action)(jnp.zeros(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "mjc"}, ["engine is 'mjc'", "c"]),
        ({"engine": "warp"}, ["engine 'warp' needs an NVIDIA GPU", "choose engine mjx"]),
        ({"margin": "old"}, ["margin is 'old'", "current, legacy"]),
        ({"iterations": 0}, ["iterations is 0", "at least 1"]),
        ({"ls_iterations": 2.5}, ["ls_iterations is 2.5", "integer"]),
        ({"frame_skip": 0}, ["frame_skip is 0", "at least 1"]),
        ({"helthy_reward": 1}, ["no option 'helthy_reward'", "did you mean healthy_reward"]),
        ({"healthy_z_range": 0.7}, ["healthy_z_range is 0.7", "must be like (0.7, inf)"]),
        ({"healthy_z_range": (2.0, 0.7)}, ["healthy_z_range is (2.0, 0.7)", "like (0.7, inf)"]),
        ({"healthy_reward": np.zeros((3, 3))}, ["healthy_reward is array", "like 1.0"]),
        ({"reset_noise_scale": -0.1}, ["reset_noise_scale is -0.1", "at least 0"]),
        ({"reset_noise_scale": np.nan}, ["reset_noise_scale is nan", "like 0.005"]),
        ({"xml_file": "/"}, ["xml_file is '/'", "a folder"]),
        ({"healthy_reward": "much"}, ["healthy_reward is 'much'", "like 1.0"]),
        ({"terminate_when_unhealthy": 1}, ["terminate_when_unhealthy is 1", "like True"]),
        ({"render_mode": "human"}, ["no option 'render_mode'"]),
        ({"xml_file": 3}, ["xml_file is 3"]),
        ({"xml_file": "hoper.xml"}, ["xml_file is 'hoper.xml'", "missing"]),
        ({"randomize": {"frction": (1, 2)}}, ["no option 'frction'", "friction"]),
        ({"randomize": {"friction": 2}}, ["friction is 2", "(0.5, 1.5)"]),
        ({"max_steps": "long"}, ["max_steps is 'long'", "integer"]),
        ({"naconmax": 0}, ["naconmax is 0", "at least 1"]),
        ({"naconmax": 512}, ["naconmax is 512", "engine 'warp'"]),
        ({"width": "wide"}, ["width is 'wide'", "integer"]),
        ({"camera_id": "track"}, ["camera_id is 'track'", "an index"]),
        ({"camera_name": 0}, ["camera_name is 0", "a name"]),
        ({"camera_id": 0, "camera_name": "track"}, ["camera_id and camera_name are both given"]),
        ({"default_camera_config": 4.0}, ["default_camera_config is 4.0", "a dictionary"]),
        ({"default_camera_config": {"distnce": 4.0}}, ["'distnce'", "did you mean distance"]),
        ({"default_camera_config": {"distance": "far"}}, ["distance is 'far'", "like 0.0"]),
        ({"visual_options": [14]}, ["visual_options is [14]", "a dictionary"]),
        ({"visual_options": {14: 1}}, ["visual_options is {14: 1}", "mjtVisFlag"]),
        ({"visual_options": {99: True}}, ["visual_options is {99: True}", "0 to 30"]),
        ({"exact": 1}, ["exact is 1", "like True"]),
        ({"exact": False, "engine": "mjx"}, ["exact is False", "engine 'c'"]),
        ({"exact": False, "randomize": {"gravity": (1, 2)}}, ["exact is False", "randomize"]),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(UsageError) as caught:
        make("mjx/Hopper-v5", **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_unknown_tasks_and_bodies_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="exact is False, but this task reads more than"):
        make("mjx/Ant-v5", exact=False)
    with pytest.raises(UsageError, match="did you mean .*mjx/HalfCheetah-v5"):
        make("mjx/HalfCheetah-v3")
    with pytest.raises(UsageError, match="Ant-v5 has no option 'use_contact_forces'"):
        make("mjx/Ant-v5", use_contact_forces=True)
    with pytest.raises(UsageError, match="Ant-v4 has no option 'include_cfrc_ext_in_observation'"):
        make("mjx/Ant-v4", include_cfrc_ext_in_observation=True)
    with pytest.raises(UsageError, match="no body 'leg'"):
        make("mjx/Ant-v5", main_body="leg")
    broken = tmp_path / "broken.xml"
    broken.write_text("<mujoco><worldbody><body><geom size='1'/><joint type='bent'/>")
    with pytest.raises(UsageError, match="xml_file is") as caught:
        make("mjx/Ant-v5", xml_file=str(broken))
    assert "\n" not in str(caught.value)


def test_a_model_that_mjx_lacks_is_one_line_and_runs_on_the_native_engine(tmp_path):
    """MJX has no such integrator."""
    xml = (ASSETS / "inverted_pendulum.xml").read_text()
    path = tmp_path / "implicit.xml"
    path.write_text(xml.replace('integrator="RK4"', 'integrator="implicit"'))
    words = r"implicit\.xml.*IMPLICIT.*choose engine c$"
    with pytest.raises(UsageError, match=words) as caught:
        make("mjx/InvertedPendulum-v5", engine="mjx", xml_file=str(path))
    assert "\n" not in str(caught.value)
    assert make("mjx/InvertedPendulum-v5", engine="c", xml_file=str(path)).spec


def test_actuators_without_limits_take_any_action(tmp_path):
    xml = (ASSETS / "hopper.xml").read_text()
    path = tmp_path / "free.xml"
    free = re.sub(r' ctrl(range|limited)="[^"]*"', "", xml)
    path.write_text(re.sub(r"<motor ", '<motor ctrllimited="false" ', free))
    space = make("mjx/Hopper-v5", engine="c", xml_file=str(path)).spec.action
    assert not space.bounded.any()
    np.testing.assert_allclose(rescale(space, jnp.array([0.7, -2.0, 1.0])), [0.7, -2.0, 1.0])


def test_arrays_of_a_camera_are_recorded_as_json():
    camera = {"lookat": np.array([0.0, 0.0, 1.0]), "distance": np.float32(2.0)}
    env = make("mjx/Hopper-v5", engine="c", default_camera_config=camera)
    recorded = json.loads(json.dumps(env.options))["default_camera_config"]
    assert recorded == {"lookat": [0.0, 0.0, 1.0], "distance": 2.0}


def test_numbers_of_numpy_in_ranges_are_recorded_as_json():
    env = make("mjx/Hopper-v5", engine="c", healthy_z_range=(np.float32(0.5), np.float32(2)))
    assert json.loads(json.dumps(env.options))["healthy_z_range"] == [0.5, 2.0]


@pytest.mark.parametrize("engine", ["c", "mjx"])
def test_models_with_delays_are_refused(engine, tmp_path):
    """MuJoCo's buffer of past controls and readings is part of the state."""
    text = (ASSETS / "inverted_pendulum.xml").read_text()
    assert "<motor " in text
    path = tmp_path / "delayed.xml"
    path.write_text(text.replace("<motor ", '<motor nsample="5" delay="0.06" '))
    with pytest.raises(UsageError, match="has delays .*; leave them out") as error:
        make("mjx/InvertedPendulum-v5", engine=engine, xml_file=str(path))
    assert "\n" not in str(error.value)


def test_reset_to_has_the_models_own_parameters_whatever_was_drawn_before():
    def play(env):
        state, _ = env.reset_to(env.task.model.qpos0, np.zeros(6))
        seen = []
        for _ in range(10):
            state, step = env.step(jax.random.key(0), state, np.full(3, 0.5, np.float32))
            seen.append(step.obs)
        return np.array(seen)

    drawn = make("mjx/Hopper-v5", engine="c", randomize={"mass": (3, 3), "gravity": (0.5, 0.5)})
    state, _ = drawn.reset(jax.random.key(0))
    drawn.step(jax.random.key(1), state, np.zeros(3, np.float32))
    np.testing.assert_array_equal(play(drawn), play(make("mjx/Hopper-v5", engine="c")))
    for wrong in (np.zeros(1), np.zeros(7)):
        with pytest.raises(UsageError, match=r"qpos has shape .*; mjx/Hopper-v5 has \(6,\)"):
            drawn.reset_to(wrong, np.zeros(6))


def test_a_run_of_warp_is_played_without_its_options():
    options = {"engine": "warp", "impl": "warp", "naconmax": 77, "reset_noise_scale": 0.0}
    env = make_recorded("mjx/InvertedDoublePendulum-v5", options)
    assert env.options["reset_noise_scale"] == 0.0 and "naconmax" not in env.options


def test_flags_of_pictures_may_have_been_json():
    env = make("mjx/Hopper-v5", engine="c", visual_options={"14": True}, camera_name=None)
    assert env.camera["visual_options"] == {14: True}


def test_reset_noise_is_scaled():
    keys = jax.random.split(jax.random.key(0), 64)
    for task, wide in (("Ant-v5", 0.3), ("Humanoid-v5", 0.2), ("InvertedPendulum-v5", 0.1)):
        starts = [make(f"mjx/{task}", engine="c", reset_noise_scale=x) for x in (0.0, wide)]
        (still, rest), (qpos, qvel) = [jax.vmap(env.task.start)(keys) for env in starts]
        assert (rest == 0).all() and (still == still[0]).all()
        apart = np.abs(qpos - still)
        assert 0.95 * wide < apart.max() < 1.0001 * wide
        np.testing.assert_allclose(np.std(apart - wide / 2), wide / 12**0.5, rtol=0.1)
        assert np.abs(qvel).max() > 0.95 * wide


def test_threads_are_the_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    assert make("mjx/Hopper-v5", engine="c").engine.threads == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert make("mjx/Hopper-v5", engine="c").engine.threads == 5


def test_warps_room_for_contacts_is_an_option(monkeypatch):
    """``make`` with the check of the device left out, as of a machine with an NVIDIA GPU."""
    pytest.importorskip("warp")
    monkeypatch.setattr("jaxrl.envs.mjx.check_nvidia", lambda *_: None)
    env = make("mjx/InvertedDoublePendulum-v5", engine="warp", naconmax=77)
    assert env.engine.data._impl.naconmax == 77 and env.options["naconmax"] == 77
    assert env.engine.impl == "warp" and env.spec.observation.shape == (9,)


def test_an_engine_that_cannot_run_here_is_one_line(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UsageError, match="engine 'c' runs on the CPU.*choose engine mjx"):
        make("mjx/Hopper-v5", engine="c")
    assert suite.choose_engine("mjx/Hopper-v5", None) == "mjx"


# In rollouts


@pytest.mark.parametrize(
    ("mode", "resets"),
    [
        ("pool", [2 * 5]),
        pytest.param("fresh", [2 * 6 * 8], marks=pytest.mark.slow),
        pytest.param("first", [], marks=pytest.mark.slow),
    ],
)
def test_a_rollout_of_two_members_calls_the_engine_once_per_step(mode, resets, monkeypatch):
    """And once for all starts of a rollout. Draws inside the loop give the same steps."""
    env, num_steps, num_envs = make("mjx/HalfCheetah-v5", engine="c"), 6, 8
    venv = VectorEnv(env, num_envs, reset_mode=mode, pool_size=5, max_steps=4)
    trainer = OnPolicy(PPO(update_epochs=1, num_minibatches=1), venv, num_steps=num_steps)
    calls = []

    def counted(name):
        own = getattr(CEngine, name)

        def host(self, out, *args):
            calls.append((name, len(out[1])))  # the rows of this batch
            own(self, out, *args)

        monkeypatch.setattr(CEngine, name, host)

    counted("_host_reset")
    counted("_host_step")

    def two_iterations():
        init, iteration = (
            jax.jit(jax.vmap(f), compiler_options=COMPILER)
            for f in (trainer.init, trainer.iteration)
        )
        trained = init(jax.random.split(jax.random.key(0), 2))
        iteration = iteration.lower(trained).compile()
        jax.block_until_ready(trained)
        calls.clear()
        history = []
        for _ in range(2):
            trained, metrics = jax.block_until_ready(iteration(trained))
            history.append((trained.env.obs, metrics["episode_return"]))
        return calls.copy(), trained, history

    found, trained, history = two_iterations()
    each = [("_host_reset", rows) for rows in resets]
    each += [("_host_step", 2 * num_envs)] * num_steps
    assert sorted(found) == sorted(2 * each)
    assert (trained.env.steps < 4).all() and (history[1][1].weight == 2 * num_envs).all()
    monkeypatch.setattr(rng, "ENABLED", False)
    _, again, inside = two_iterations()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        history,
        inside,
    )
    networks = (x.agent.networks.params for x in (trained, again))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *networks)
