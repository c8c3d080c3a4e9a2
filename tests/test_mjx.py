"""mjx/*: Gymnasium's MuJoCo v5 tasks, held against Gymnasium itself."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrl import PPO, NormalizeObs, OnPolicy, VectorEnv, load_policy, make, run
from jaxrl.envs import mjx as suite
from jaxrl.envs.mjx.engine_c import CEngine
from jaxrl.errors import UsageError
from jaxrl.run.devices import Placement, choose

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


# What both share


@pytest.mark.parametrize("task", TASKS)
def test_arguments_and_their_defaults_are_gymnasiums(task):
    theirs = dict(inspect.signature(type(gymnasium_of(task)).__init__).parameters)
    base = inspect.signature(gymnasium.envs.mujoco.MujocoEnv.__init__).parameters
    task_of = env_of(task).task
    ours = {f.name: getattr(task_of, f.name) for f in dataclasses.fields(task_of)}
    names = ("width", "height", "camera_id", "camera_name", "max_geom", "visual_options")
    for name, parameter in ({name: base[name] for name in names} | theirs).items():
        if name in ("self", "kwargs"):
            continue
        if name == "default_camera_config":
            assert str(ours[name]) == str(parameter.default)
        else:
            assert ours[name] == parameter.default
    assert env_of(task).max_steps == gymnasium.spec(task).max_episode_steps
    assert env_of(task).dt == pytest.approx(gymnasium_of(task).dt)
    box, space = env_of(task).spec.action, gymnasium_of(task).action_space
    np.testing.assert_array_equal(box.low, space.low)
    np.testing.assert_array_equal(box.high, space.high)


@pytest.mark.parametrize("task", TASKS)
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
    qpos, qvel = gymnasium_of("Hopper-v5").init_qpos, np.zeros(6)
    actions = random_actions(current, 25)
    ends = [trajectory(env, qpos, qvel, actions)[0][-1] for env in (legacy, current)]
    assert np.abs(ends[0] - ends[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("HalfCheetah-v5", {"engine": "c"}),
        ("HalfCheetah-v5", {"engine": "c", "exact": False}),
        ("InvertedPendulum-v5", {"engine": "mjx"}),
    ],
)
def test_diverged_physics_ends_one_episode_and_is_counted(task, options, tmp_path, monkeypatch):
    """NaN in one environment of 64: its neighbours do not change by a bit."""
    monkeypatch.chdir(tmp_path)  # MuJoCo would write a log file here
    env, engine = env_of(task, **options), options["engine"]
    venv = VectorEnv(env, 64)
    state = jax.jit(venv.reset)(jax.random.key(0))
    draws = jax.jit(venv.draw, static_argnums=1)(jax.random.key(1), 1).at(0)
    action = jnp.asarray(random_actions(env, 64))
    inner = dict(state.inner)
    part = "words" if engine == "c" else "qvel"
    bad = np.array(inner[part])
    (bad.view(np.float64) if engine == "c" else bad)[7, 1] = np.nan
    inner[part] = jnp.asarray(bad)

    step = jax.jit(venv.step)
    healthy_next, healthy = step(state, action, draws)
    after, out = step(state._replace(inner=inner), action, draws)
    others = np.arange(64) != 7

    def same(a, b):
        np.testing.assert_array_equal(a[others], b[others])

    jax.tree.map(same, (after, out), (healthy_next, healthy))
    assert out.info["nonfinite"][7] and out.terminated[7] and not out.truncated[7]
    assert out.info["nonfinite"].sum() == 1
    assert (out.obs[7] == 0).all() and out.reward[7] == 0
    again, following = step(after, action, draws)
    assert not following.info["nonfinite"].any() and np.isfinite(again.obs).all()
    assert not list(tmp_path.iterdir())


def test_gradients_flow_through_mjx_and_equal_finite_differences(float64):
    """Of how far a pole leans over five steps, with respect to a linear policy's weights."""
    env = make("mjx/InvertedPendulum-v5", engine="mjx", iterations=1)
    qpos, qvel = np.array([0.1, 0.15]), np.array([0.0, 0.2])

    @jax.jit
    def loss(weights):
        def step(carry, _):  # of the engine: actions of environments travel in float32
            state, obs = carry
            state, obs, *_ = env.engine.step(state, jnp.tanh(obs @ weights)[None])
            return (state, obs), jnp.square(obs[1])

        return jax.lax.scan(step, env.reset_to(qpos, qvel), length=5)[1].sum()

    weights, h = jnp.array([0.3, -0.2, 0.1, 0.4]), 1e-6
    gradient = jax.jit(jax.grad(loss))(weights)
    for i, shift in enumerate(h * jnp.eye(4)):
        difference = (loss(weights + shift) - loss(weights - shift)) / (2 * h)
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-5)
    assert np.abs(gradient).min() > 1e-6


def test_the_native_engine_has_no_gradients_and_says_so():
    env = env_of("InvertedPendulum-v5")
    state, _ = env.reset(jax.random.key(0))

    def reward(action):
        return env.step(jax.random.key(0), state, action)[1].obs.sum()

    with pytest.raises(UsageError, match="no gradients; make the environment with engine='mjx'"):
        jax.grad(reward)(jnp.zeros(1))


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
        ({"healthy_reward": "much"}, ["healthy_reward is 'much'", "like 1.0"]),
        ({"terminate_when_unhealthy": 1}, ["terminate_when_unhealthy is 1", "like True"]),
        ({"render_mode": "human"}, ["no option 'render_mode'"]),
        ({"xml_file": 3}, ["xml_file is 3"]),
        ({"xml_file": "hoper.xml"}, ["xml_file is 'hoper.xml'", "missing"]),
        ({"randomize": {"frction": (1, 2)}}, ["no option 'frction'", "friction"]),
        ({"randomize": {"friction": 2}}, ["friction is 2", "(0.5, 1.5)"]),
        ({"max_steps": "long"}, ["max_steps is 'long'", "integer"]),
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
        make("mjx/HalfCheetah-v4")
    with pytest.raises(UsageError, match="no body 'leg'"):
        make("mjx/Ant-v5", main_body="leg")
    broken = tmp_path / "broken.xml"
    broken.write_text("<mujoco")
    with pytest.raises(UsageError, match="xml_file is"):
        make("mjx/Ant-v5", xml_file=str(broken))


def test_an_engine_that_cannot_run_here_is_one_line(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UsageError, match="engine 'c' runs on the CPU.*choose engine mjx"):
        make("mjx/Hopper-v5", engine="c")
    assert suite.choose_engine("mjx/Hopper-v5", None) == "mjx"


# Training


def trainer_of(env):
    agent = NormalizeObs(PPO(hidden=(32, 32), learning_rate=1e-3, epochs=4, minibatches=4))
    return OnPolicy(agent, VectorEnv(env, 32), unroll=32)


def test_environments_that_use_all_cores_are_not_sharded(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    native, mjx = trainer_of(env_of("Hopper-v5")), trainer_of(env_of("Hopper-v5", "mjx"))
    assert choose(native, 1) == Placement(1, 1)
    assert choose(native, 2) == Placement(2, 1)
    assert choose(mjx, 1) == Placement(1, 2)


def test_a_resumed_run_on_the_native_engine_is_the_uninterrupted_one(tmp_path):
    trainer = trainer_of(env_of("Hopper-v5"))
    whole = run(trainer, 4096, seeds=2, run_dir=tmp_path / "whole", eval_every=2048, quiet=True)
    run(trainer, 2048, seeds=2, run_dir=tmp_path / "half", eval_every=2048, quiet=True)
    resumed = run(
        trainer, 4096, seeds=2, run_dir=tmp_path / "half", eval_every=2048, quiet=True, resume=True
    )
    plain = [x.state._replace(key=jax.random.key_data(x.state.key)) for x in (whole, resumed)]
    jax.tree.map(np.testing.assert_array_equal, *plain)
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "half")]
    assert rows[0] == rows[1]


def test_a_trained_policy_gets_the_same_return_in_gymnasium(tmp_path):
    """A pole that is not yet balanced for good: returns that differ between starts."""
    env = env_of("InvertedPendulum-v5")
    trained = run(trainer_of(env), 24 * 1024, run_dir=tmp_path / "run", quiet=True)
    ts = jax.tree.map(lambda x: x[0], trained.state)
    evaluate = jax.jit(trained.trainer.evaluate, static_argnums=2)
    ours = np.asarray(evaluate(ts, jax.random.key(5), 100).returns)
    policy = load_policy(tmp_path / "run")
    theirs = gymnasium.make("InvertedPendulum-v5")
    returns = []
    for seed in range(100):
        (obs, _), done, total = theirs.reset(seed=seed), False, 0.0
        while not done:
            action = np.asarray(policy(obs.astype(np.float32)))
            obs, reward, terminated, truncated, _ = theirs.step(action)
            total, done = total + reward, terminated or truncated
        returns.append(total)
    assert 30 < ours.mean() < 990
    error = (ours.var(ddof=1) / 100 + np.var(returns, ddof=1) / 100) ** 0.5
    assert abs(ours.mean() - np.mean(returns)) < 3 * error
