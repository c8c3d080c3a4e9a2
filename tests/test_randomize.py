"""Domain randomisation: every environment steps the model that its parameters describe.

Compiling the physics is nearly all that these tests cost: XLA is asked not to optimise.
"""

from __future__ import annotations

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrl import Randomize, UsageError, VectorEnv, envs, make
from jaxrl.envs.randomize import nominal, randomize_option

KEY = jax.random.key(0)
COMPILER = {"xla_backend_optimization_level": 0}
compiled = functools.partial(jax.jit, compiler_options=COMPILER)
N = 8
ALL = {
    "friction": (0.3, 2.0),
    "mass": (0.5, 2.0),
    "gain": (0.5, 1.5),
    "damping": (0.0, 3.0),
    "armature": (0.5, 2.0),
    "gravity": (0.8, 1.2),
}
# A ball that is pushed over the ground and swings a rod: contact, friction, a motor, a servo.
BALL = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body pos="0 0 0.09">
      <joint name="push" type="slide" axis="1 0 0" damping="1"/>
      <joint type="slide" axis="0 0 1"/>
      <geom size="0.1"/>
      <body>
        <joint name="swing" axis="0 1 0" damping="0.1" armature="0.01"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" contype="0" conaffinity="0"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="push" gear="80" ctrlrange="-1 1"/>
    <position joint="swing" kp="2" kv="0.1" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""
# Environments of a pole on a cart, and MuJoCo's steps per step of theirs.
POLES = {
    "brax/inverted_pendulum": ({"backend": "mjx"}, 2),
    "playground/CartpoleBalance": ({}, 1),
}


@functools.cache
def pole(name, randomize=None):
    return make(name, randomize=randomize, **POLES.get(name, ({}, 1))[0])


def edited(model, parameters):
    """A copy of a MuJoCo model with those parameters written into it."""
    model = model.__copy__()
    for name, value in parameters.items():
        nominal(model, name)[...] = value
    return model


def row(tree, i):
    return jax.tree.map(lambda x: np.asarray(x[i]), tree)


@pytest.mark.parametrize("engine", ["c", "mjx"])
def test_a_vector_environment_is_as_many_models_edited_by_hand(engine, tmp_path):
    """In C bit for bit, on MJX in float64."""
    (tmp_path / "ball.xml").write_text(BALL)
    options = {"engine": engine, "xml_file": str(tmp_path / "ball.xml"), "randomize": ALL}
    exact = engine == "c"
    with contextlib.nullcontext() if exact else jax.enable_x64(True):
        options |= {} if exact else {"iterations": 100, "ls_iterations": 50}
        env = make("mjx/InvertedPendulum-v5", **options)
        actions = jax.random.uniform(KEY, (20, N, 2), minval=-1.0)

        def play(keys, actions):
            def step(state, action):
                state = jax.vmap(env.step)(keys, state, action)[0]
                return state, state

            state, obs = jax.vmap(env.reset)(keys)
            return state, obs, jax.lax.scan(step, state, actions)[1]

        start, obs, states = compiled(play)(jax.random.split(KEY, N), actions)
        later = env.pose(states)["qpos"]
        parameters = jax.tree.map(np.asarray, start["parameters"])
    touched = 0
    for i in range(N):
        model = edited(env.mj_model, row(parameters, i))
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = obs[i, :3], obs[i, 3:]
        mujoco.mj_forward(model, data)
        for t in range(len(actions)):
            data.ctrl[:] = actions[t, i]
            mujoco.mj_step(model, data, env.task.frame_skip)
            np.testing.assert_allclose(later[t, i], data.qpos, rtol=0, atol=0 if exact else 1e-7)
            touched += data.ncon
    assert touched > 10 * N and np.unique(later[-1, :, 0]).size == N
    assert len(parameters) == 9


def test_parameters_lie_in_their_ranges_and_last_for_an_episode():
    """Factors over all environments and resets, and when they change."""
    env = make("mjx/InvertedPendulum-v5", engine="c", randomize=ALL)
    venv = VectorEnv(env, N, max_steps=3, pool_size=16)

    @compiled
    def play(key):
        reset_key, pool_key, step_key = jax.random.split(key, 3)
        state, pool = venv.reset(reset_key), venv.reset_pool(pool_key)

        def step(state, key):
            after, out = venv.step(key, state, jnp.zeros((N, 1)), pool)
            return after, (after.inner["parameters"], out.info["ended"])

        keys = jax.random.split(step_key, 6)
        return state.inner["parameters"], jax.lax.scan(step, state, keys)[1]

    first, (later, ended) = play(KEY)
    assert not ended[:2].any() and ended[2].all()
    options = {
        "geom_friction": "friction",
        "body_mass": "mass",
        "body_inertia": "mass",
        "actuator_gainprm": "gain",
        "dof_damping": "damping",
        "gravity": "gravity",
    }  # armature and the actuator's bias are zero in this model
    assert set(first) == {*options, "body_subtreemass"}
    factors = {}
    for name, option in options.items():
        values, own = np.concatenate([first[name][None], later[name]]), nominal(env.mj_model, name)
        assert (values[..., own == 0] == 0).all()
        factors[name] = by = values[..., own != 0] / own[own != 0]
        assert ALL[option][0] - 1e-6 <= by.min() < by.max() <= ALL[option][1] + 1e-6
        assert np.unique(by[0], axis=0).shape[0] == N
        np.testing.assert_array_equal((by[1:] != by[:-1]).any(axis=-1), ended)
    assert np.ptp(factors["geom_friction"], axis=-1).max() < 1e-6  # one for all
    assert np.ptp(factors["body_mass"], axis=-1).min() > 1e-3
    of_inertia = factors["body_inertia"].reshape(7, N, -1, 3)
    np.testing.assert_allclose(
        of_inertia, np.repeat(factors["body_mass"][..., None], 3, axis=-1), rtol=1e-5
    )


def test_factors_of_one_are_the_plain_environment():
    ones = Randomize(**dict.fromkeys(ALL, (1.0, 1.0)))
    env, plain = (make("mjx/Hopper-v5", engine="c", randomize=r) for r in (ones, None))
    actions = jax.random.uniform(KEY, (30, 3), minval=-1.0)

    def play(env):
        def step(state, action):
            state, out = env.step(KEY, state, action)
            return state, out.obs

        state, _ = env.reset(KEY)
        return state["parameters"], jax.lax.scan(step, state, actions)[1]

    parameters, obs = compiled(lambda: play(env))()
    none, expected = compiled(lambda: play(plain))()
    assert none == {} and len(parameters) > 6
    np.testing.assert_allclose(obs, expected, atol=1e-4)  # parameters are in float32
    for name, value in parameters.items():
        np.testing.assert_allclose(value, nominal(env.mj_model, name), rtol=1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("brax")) for n in POLES]
)
def test_every_suite_steps_the_model_of_its_parameters(name):
    """A pole as the plain environment's, one four times as heavy, and one without gravity."""
    env = pole(name, Randomize(mass=(0.5, 2.0), gravity=(0.5, 1.5)))
    inner = env.env
    before = dict(vars(inner))
    model = inner.sys.mj_model if name.startswith("brax") else env.mj_model

    def play(env, key, parameters=None):
        def step(state, _):
            state, out = env.step(key, state, jnp.zeros(env.spec.action.shape))
            return state, (state, out.obs)

        start, _ = env.reset(key)
        state = start | ({} if parameters is None else {"parameters": parameters})
        return start, jax.lax.scan(step, state, length=20)[1]

    heavy = np.where(np.arange(model.nbody) == model.nbody - 1, 4.0, 1.0)[:, None]
    by = {"body_mass": heavy[:, 0], "body_inertia": heavy, "gravity": 0.0}
    rows = ((), ("body_mass", "body_inertia"), ("gravity",))
    given = {
        field: np.float32([nominal(model, field) * (by[field] if field in r else 1) for r in rows])
        for field in by
    }
    keys = jax.random.split(KEY, 3)
    start, (states, obs) = compiled(jax.vmap(lambda *x: play(env, *x)))(keys, given)
    _, (_, expected) = compiled(lambda key: play(pole(name), key))(keys[0])

    drawn = start["parameters"]
    assert set(drawn) == {*by, "body_subtreemass"}
    assert all(np.unique(x.reshape(3, -1), axis=0).shape[0] == 3 for x in drawn.values())
    np.testing.assert_array_equal(states["parameters"]["body_mass"][:, -1], given["body_mass"])
    np.testing.assert_allclose(obs[0], expected, rtol=1e-4, atol=1e-5)
    for i in range(3):
        ends = [
            fall(m, row(start, i), 20 * POLES[name][1])
            for m in (edited(model, row(given, i)), model)
        ]
        found = carried(row(states, i))["qpos"][-1]
        np.testing.assert_allclose(found, ends[0], atol=1e-4)
        assert (np.abs(ends[0] - ends[1]).max() > 1e-3) == (i > 0)
    assert dict(vars(inner)) == before  # tracing left nothing behind
    assert all(x.size for x in jax.tree.leaves(start))  # checkpoints do not hold empty arrays


def carried(state):
    return state.get("data", state)


def fall(model, start, steps):
    """MuJoCo's positions after so many of its steps without control."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = carried(start)["qpos"], carried(start)["qvel"]
    mujoco.mj_step(model, data, steps)
    return data.qpos


# What is derived of parameters.


def test_subtree_masses_follow_and_inverse_weights_stay():
    """All that MuJoCo derives anew for the edited model, but what is said to keep its value."""
    model = make("mjx/Humanoid-v5", engine="c").mj_model
    given = jax.jit(lambda key: Randomize(**ALL).draw(key, model))(KEY)
    ours = edited(model, jax.tree.map(np.asarray, given))
    mujocos = ours.__copy__()
    mujoco.mj_setConst(mujocos, mujoco.MjData(mujocos))
    names = [n for n in dir(model) if isinstance(getattr(model, n, None), np.ndarray)]
    others = {n for n in names if not np.allclose(getattr(ours, n), getattr(mujocos, n), rtol=1e-5)}
    weights = {"body_invweight0", "dof_invweight0", "tendon_invweight0", "actuator_acc0"}
    unread = {"dof_M0", "cam_poscom0", "light_poscom0"}  # by physics
    assert weights <= others <= weights | unread
    assert np.ptp(ours.body_subtreemass / model.body_subtreemass) > 0.1


ACTUATORS = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1"/>
    <body pos="0 0 0.1">
      <joint name="slide" type="slide" axis="0 0 1"/><geom name="ball" size="0.2"/>
    </body>
    <body pos="1 0 0.1"><freejoint/><geom size="0.2"/></body>
  </worldbody>
  <contact><pair geom1="floor" geom2="ball" friction="0.5 0.4 0.1 0.1 0.1"/></contact>
  <actuator>
    <motor joint="slide"/>
    <position joint="slide" kp="3" kv="2"/>
    <muscle joint="slide" lengthrange="-1 1" force="5"/>
    <muscle joint="slide" lengthrange="-1 1" scale="7"/>
  </actuator>
</mujoco>
"""


def test_gain_scales_forces_and_friction_all_contacts():
    """Of motors, servos and muscles; of contacts by geoms and by explicit pairs."""
    model = mujoco.MjModel.from_xml_string(ACTUATORS)
    given = Randomize(gain=(2.0, 2.0), friction=(0.5, 0.5)).draw(KEY, model)
    found = []
    for m in (model, edited(model, row(jax.tree.map(lambda x: x[None], given), 0))):
        data = mujoco.MjData(m)
        data.ctrl[:], data.act[:], data.qvel[0] = 0.7, 0.6, 0.3
        mujoco.mj_forward(m, data)
        found.append((data.actuator_force.copy(), data.contact.friction.copy()))
    (force, friction), (stronger, smoother) = found
    assert (np.abs(force) > 0.1).all() and len(friction) == 2
    np.testing.assert_allclose(stronger, 2 * force, rtol=1e-6)
    np.testing.assert_allclose(smoother, 0.5 * friction, rtol=1e-6)

    model.actuator_gaintype[1] = mujoco.mjtGain.mjGAIN_USER
    with pytest.raises(UsageError, match="actuator 1 is none; leave gain out"):
        Randomize(gain=(2.0, 2.0)).draw(KEY, model)


def test_what_braxs_humanoids_observe_of_their_model_follows():
    """Brax keeps masses, inertias and gains a second time."""
    env = make("brax/humanoid", backend="mjx", randomize={"mass": (2, 2), "gain": (3, 3)})
    own = env.env.sys
    sys = env._env_with(env.randomize.draw(KEY, own)).sys
    np.testing.assert_allclose(sys.link.inertia.mass, 2 * own.link.inertia.mass, rtol=1e-6)
    np.testing.assert_allclose(sys.link.inertia.i, 2 * own.link.inertia.i, rtol=1e-6)
    np.testing.assert_allclose(sys.actuator.gain, 3 * own.actuator.gain, rtol=1e-6)
    np.testing.assert_allclose(sys.actuator.bias_q, 3 * own.actuator.bias_q, rtol=1e-6)
    assert env.env.sys is own and own.actuator.gain.size == 17


# Options


@pytest.mark.parametrize("name", [*POLES, "mjx/InvertedPendulum-v5"])
def test_recorded_options_make_the_environment_again(name):
    env = pole(name, Randomize(mass=(0.5, 2.0), gravity=(0.5, 1.5)))
    stored = json.loads(json.dumps(env.options))
    assert stored["randomize"] == {"mass": [0.5, 2.0], "gravity": [0.5, 1.5]}
    assert envs.make_recorded(name, stored).randomize == env.randomize
    plain = json.loads(json.dumps(pole(name).options))
    assert envs.make_recorded(name, plain).randomize is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"frictoin": (0.5, 1.5)}, ["no option 'frictoin'", "did you mean friction?"]),
        ({3: (0.5, 1.5)}, ["no option '3'", "mass"]),
        ({"mass": (1.5, 0.5)}, ["mass is (1.5, 0.5)", "low and high, as (0.5, 1.5)"]),
        ({"mass": (-1.0, 2.0)}, ["mass is (-1.0, 2.0)", "above 0"]),
        ({"mass": [0, 2]}, ["mass is [0, 2]", "above 0"]),
        ({"friction": (0.0, 1.0)}, ["friction is (0.0, 1.0)", "at least 0.05"]),
        ({"damping": (-0.5, 1.0)}, ["damping is (-0.5, 1.0)", "at least 0"]),
        ({"gravity": (0.5,)}, ["gravity is (0.5,)", "as (0.5, 1.5)"]),
        ({"gravity": (0.5, float("inf"))}, ["gravity is (0.5, inf)", "as (0.5, 1.5)"]),
        ({"gain": "high"}, ["gain is 'high'", "as (0.5, 1.5)"]),
        ({"gain": (True, 2)}, ["gain is (True, 2)", "as (0.5, 1.5)"]),
        (0.5, ["brax/ant: randomize is 0.5", "{'friction': (0.5, 1.5)}"]),
    ],
)
def test_mistakes_are_told_in_one_line(value, words):
    with pytest.raises(UsageError) as error:
        randomize_option("brax/ant", value)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["spring", "positional", "generalized"])
def test_other_backends_of_brax_refuse(backend):
    with pytest.raises(UsageError) as error:
        make("brax/ant", backend=backend, randomize={"mass": (0.5, 1.5)})
    assert str(error.value) == (
        f"brax/ant: randomize works on backend 'mjx', and not on {backend!r}"
    )
    assert make("brax/inverted_pendulum", randomize=None).randomize is None
