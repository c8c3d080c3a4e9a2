"""Environments: names, options, time limits, illegal actions, and the probes' known values."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, OnPolicy, VectorEnv, envs
from jaxrl.envs import brax as brax_suite
from jaxrl.envs import gymnax as gymnax_suite
from jaxrl.envs import probe
from jaxrl.envs.maze import GoalMaze, PointMaze
from jaxrl.envs.probe import Memory, Termination
from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete, Environment

KEY = jax.random.key(0)


def draw_action(space, key):
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n)
    return jax.random.uniform(key, space.shape, minval=space.low, maxval=space.high)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def dtypes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


# Names and options.


def test_names_are_those_of_the_installed_suites():
    import brax.envs
    import gymnax

    assert set(brax_suite.TASKS) == set(brax.envs._envs) - {"fast", "swimmer"}
    assert set(gymnax_suite.TASKS) == set(gymnax.registered_envs) - {"MNISTBandit-bsuite"}
    assert set(gymnax_suite.TASKS) >= gymnax_suite.CLOCKS | gymnax_suite.MISSTATED
    suites = ("brax", "gymnax", "maze", "mjx", "playground", "probe")
    assert set(envs.names()) == {name for suite in suites for name in envs.names(suite)}
    with pytest.raises(UsageError, match="unknown suite 'brx'; did you mean brax?"):
        envs.names("brx")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("CartPole-v1", "did you mean gymnax/CartPole-v1?"),
        ("cartpole-v1", "did you mean gymnax/CartPole-v1?"),
        ("gym/CartPole-v1", "did you mean gymnax/CartPole-v1?"),
        ("reacher", "did you mean brax/reacher?"),
        ("brax/antt", "brax/ant"),
        ("gymnax/Pendulum-v0", "gymnax/Pendulum-v1"),
        ("antt", "brax/ant"),
        ("probe/tme_limit", "probe/time_limit"),
        ("zzz", "choose one of"),
    ],
)
def test_a_wrong_name_answers_with_the_nearest(name, answer):
    with pytest.raises(UsageError) as error:
        envs.make(name)
    assert repr(name) in one_line(error)
    assert answer in one_line(error)


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("gymnax/CartPole-v1", {"backend": "mjx"}, ["backend", "gravity"]),
        ("gymnax/Pendulum-v1", {"g": "heavy"}, ["'heavy'", "float"]),
        ("gymnax/FourRooms-misc", {"resample_goal_pos": 1}, ["resample_goal_pos is 1", "bool"]),
        ("gymnax/CartPole-v1", {"max_steps": 0}, ["max_steps is 0", "at least 1"]),
        ("gymnax/CartPole-v1", {"max_steps_in_episode": 9}, ["did you mean max_steps"]),
        ("gymnax/Acrobot-v1", {"available_torque": [1.0]}, ["[1.0]", "[-1.0, 0.0, 1.0]"]),
        ("gymnax/FrozenLake-misc", {"map_name": "5x5"}, ["map_name", "'8x8'"]),
        ("gymnax/DeepSea-bsuite", {"size": 0}, ["'size': 0", "refused by gymnax"]),
        ("gymnax/DeepSea-bsuite", {"action_mapping_key": 3}, ["no option 'action_mapping_key'"]),
        ("gymnax/MetaMaze-misc", {"maze_size": 4}, ["'maze_size': 4", "an assertion"]),
        ("gymnax/CartPole-v1", {"gravity": np.nan}, ["gravity is nan", "as 9.8"]),
        ("gymnax/SimpleBandit-bsuite", {"num_actions": 0}, ["num_actions is 0", "at least 1"]),
        ("gymnax/MemoryChain-bsuite", {"num_bits": 0}, ["num_bits is 0", "at least 1"]),
        ("gymnax/MemoryChain-bsuite", {"memory_length": 1000}, ["max_steps=1002"]),
        ("gymnax/UmbrellaChain-bsuite", {"chain_length": 200}, ["max_steps=202"]),
        ("gymnax/DiscountingChain-bsuite", {"mapping_seed": 9}, ["mapping_seed is 9", "at most 4"]),
        ("gymnax/DiscountingChain-bsuite", {"n_actions": 7}, ["n_actions is 7", "at most 5"]),
        ("gymnax/FourRooms-misc", {"goal_fixed": [0, 0]}, ["goal_fixed is (0, 0)", "(4, 1)"]),
        ("gymnax/FourRooms-misc", {"pos_fixed": [99, 0]}, ["pos_fixed is (99, 0)", "(4, 1)"]),
        ("brax/ant", {"backend": "mjxx"}, ["'mjxx'", "did you mean mjx?"]),
        ("brax/ant", {"backend": None}, ["backend is None"]),
        ("brax/reacher", {"max_steps": 1.5}, ["max_steps is 1.5"]),
        ("brax/reacher", {"bakend": "mjx"}, ["did you mean backend?"]),
        ("brax/reacher", {"sys": None}, ["no option 'sys'"]),
        ("brax/ant", {"use_contact_forces": True}, ["use_contact_forces"]),
        ("probe/constant", {"length": 3}, ["length", "continuous"]),
        ("probe/termination", {"length": 0}, ["length is 0"]),
        ("probe/memory", {"delay": 0}, ["delay is 0"]),
        ("probe/action", {"continuous": 1}, ["continuous is 1"]),
    ],
)
def test_wrong_options_are_refused_in_one_line(name, options, parts):
    with pytest.raises(UsageError) as error:
        envs.make(name, **options)
    message = one_line(error)
    assert name in message
    for part in parts:
        assert part in message


NUMPY = {
    "gymnax/Acrobot-v1": {"available_torque": [np.float32(-1), 0.0, 1.0]},
    "gymnax/FrozenLake-misc": {"reward_schedule": (np.float32(1), 0, 0)},
    "gymnax/Pendulum-v1": {"execute": 2, "gamma": jnp.float32(0.5)},
}


@pytest.mark.parametrize("name", NUMPY)
def test_numbers_of_numpy_and_jax_are_recorded_as_json(name):
    env = envs.make(name, **NUMPY[name])
    again = envs.make_recorded(name, json.loads(json.dumps(env.options)))
    assert again.spec == env.spec and again.options == env.options


@pytest.mark.parametrize(
    "env",
    [PointMaze(anywhere=True), GoalMaze(anywhere=True), Memory(delay=9), Termination(length=9)],
)
def test_environments_made_by_their_classes_are_recorded_with_their_options(env):
    config = OnPolicy(PPO(), VectorEnv(env, 2)).config()
    assert envs.make_recorded(config["env"], config["env_options"]) == env
    plain = envs.make(config["env"])
    assert plain.options == {} and dataclasses.replace(env) == env != plain


def test_mistakes_answer_before_heavy_imports_and_imports_are_silent():
    program = """
import sys, warnings
from jaxrl import envs
for name, options in [("brax/antt", {}), ("brax/ant", {"backend": "x"}), ("CartPole", {})]:
    try:
        envs.make(name, **options)
    except ValueError:
        pass
envs.names()
assert not {"brax", "gymnax", "mujoco", "matplotlib"} & set(sys.modules)
import jax
warnings.simplefilter("error", UserWarning)
before = dict(jax.config.values)
envs.make("brax/inverted_pendulum")
assert dict(jax.config.values) == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# gymnax.


@pytest.fixture(scope="module", params=gymnax_suite.TASKS)
def gymnax_case(request):
    """An environment, two states and the step from them, compiled as training uses it."""
    env = envs.make(f"gymnax/{request.param}")
    state, obs = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 2))
    return env, state, obs, jax.jit(jax.vmap(env.step))


def test_every_gymnax_task_steps(gymnax_case):
    env, state, obs, step_all = gymnax_case
    assert isinstance(env, Environment)
    space = env.spec.observation
    assert obs.shape == (2, *space.shape) and obs.dtype == jnp.float32
    kinds = dtypes(state)
    for key in jax.random.split(KEY, 3):
        action = jax.vmap(lambda k: draw_action(env.spec.action, k))(jax.random.split(key, 2))
        state, step = step_all(jax.random.split(key, 2), state, action)
        assert dtypes(state) == kinds, "a scan could not carry this state"
        assert step.obs.shape == obs.shape and step.obs.dtype == jnp.float32
        assert step.reward.shape == (2,) and step.reward.dtype == jnp.float32
        assert step.terminated.dtype == step.truncated.dtype == bool
        assert np.isfinite(step.obs).all() and np.isfinite(step.reward).all()
        assert (step.obs >= space.low - 1e-4).all() and (step.obs <= space.high + 1e-4).all()
        assert not step.truncated.any()


def test_gymnax_time_limits_never_terminate_unless_the_task_shows_its_clock(gymnax_case):
    env, state, _, step_all = gymnax_case
    task = env.name.partition("/")[2]
    last = state.replace(time=jnp.full_like(state.time, env.spec.max_steps - 1))
    action = jax.vmap(lambda k: draw_action(env.spec.action, k))(jax.random.split(KEY, 2))
    _, step = step_all(jax.random.split(KEY, 2), last, action)
    one_step = {"SimpleBandit-bsuite"}
    assert step.terminated.all() == (task in gymnax_suite.CLOCKS | one_step)
    assert not step.truncated.any()


@pytest.mark.parametrize(
    ("task", "length"),
    [("SimpleBandit", 1), ("Catch", 9), ("DeepSea", 8), ("MemoryChain", 6), ("UmbrellaChain", 10)],
)
def test_gymnax_tasks_of_fixed_length_terminate_at_their_own_end(task, length):
    env = envs.make(f"gymnax/{task}-bsuite")
    state, _ = env.reset(KEY)
    _, steps = jax.lax.scan(
        lambda s, k: env.step(k, s, jnp.int32(0)), state, jax.random.split(KEY, 12)
    )
    assert int(np.argmax(steps.terminated)) + 1 == length <= env.spec.max_steps


def test_gymnax_options_change_the_environment():
    def second_velocity(**options):
        env = envs.make("gymnax/Pendulum-v1", **options)
        state, _ = env.reset(KEY)
        return float(env.step(KEY, state, jnp.zeros(1))[1].obs[2])

    assert second_velocity(g=1.0) != second_velocity() == second_velocity(g=10)
    assert envs.make("gymnax/DeepSea-bsuite", size=5).spec.observation.shape == (5, 5)
    assert envs.make("gymnax/DeepSea-bsuite", size=5).spec.max_steps == 5
    assert envs.make("gymnax/CartPole-v1", max_steps=7).spec.max_steps == 7
    heavy = envs.make("gymnax/CartPole-v1", masspole=1.0).params
    assert (heavy.total_mass, heavy.polemass_length) == (2.0, 0.5)


def test_frozen_lake_shows_its_tile_as_one_hot():
    env = envs.make("gymnax/FrozenLake-misc")
    _, obs = env.reset(KEY)
    np.testing.assert_array_equal(obs, np.eye(16)[0])


def test_gymnax_agrees_with_gymnaxs_own_step():
    import gymnax

    env = envs.make("gymnax/CartPole-v1")
    reference, params = gymnax.make("CartPole-v1")
    state, obs = env.reset(KEY)
    theirs_obs, theirs = reference.reset(KEY, params)
    np.testing.assert_array_equal(obs, theirs_obs)
    for key in jax.random.split(KEY, 5):
        state, step = env.step(key, state, 1)
        theirs_obs, theirs, reward, terminated, _, _ = reference.step(key, theirs, 1, params)
        np.testing.assert_allclose(step.obs, theirs_obs, rtol=1e-6)
        assert (float(step.reward), bool(step.terminated)) == (float(reward), bool(terminated))


# Illegal actions.


@pytest.mark.parametrize(
    ("action", "error", "says"),
    [
        (2, ValueError, "action is 2; expected an integer 0 .. 1"),
        (-1, ValueError, "action is -1"),
        (jnp.int32(7), ValueError, "action is 7"),
        (0.0, TypeError, "action has dtype float64; expected an integer 0 .. 1"),
        (True, TypeError, "bool"),
        (np.zeros(1, int), ValueError, r"action has shape \(1,\); expected \(\)"),
    ],
)
def test_illegal_concrete_indices_raise(action, error, says):
    env = envs.make("gymnax/CartPole-v1")
    state, _ = env.reset(KEY)
    with pytest.raises(error, match=says) as caught:
        env.step(KEY, state, action)
    one_line(caught)


def test_wrong_shapes_and_dtypes_raise_while_tracing():
    env = envs.make("gymnax/Pendulum-v1")
    state, _ = env.reset(KEY)
    with pytest.raises(ValueError, match=r"action has shape \(2,\); expected \(1,\)"):
        jax.eval_shape(env.step, KEY, state, jnp.zeros(2))
    with pytest.raises(TypeError, match="action has dtype bool; expected float32"):
        jax.eval_shape(env.step, KEY, state, jnp.zeros(1, bool))
    cart_pole = envs.make("gymnax/CartPole-v1")
    with pytest.raises(TypeError, match="dtype float32"):
        jax.eval_shape(cart_pole.step, KEY, cart_pole.reset(KEY)[0], jnp.float32(0))


@pytest.mark.parametrize("name", ["gymnax/CartPole-v1", "gymnax/FourRooms-misc", "probe/both"])
def test_a_traced_index_out_of_range_makes_the_reward_nan(name):
    env = envs.make(name)
    state, _ = env.reset(KEY)
    step = jax.jit(lambda action: env.step(KEY, state, action)[1])
    for action in (-1, env.spec.action.n):
        assert np.isnan(step(action).reward)
    assert np.isfinite(step(0).reward) and np.isfinite(step(1).reward)


def test_the_vector_environment_ends_and_counts_an_illegal_action():
    venv = envs.VectorEnv(envs.make("gymnax/CartPole-v1"), 2)
    state = venv.reset(KEY)
    _, step = jax.jit(venv.step)(KEY, state, jnp.array([1, 5]))
    np.testing.assert_array_equal(step.info["nonfinite"], [False, True])
    np.testing.assert_array_equal(step.terminated, [False, True])
    np.testing.assert_array_equal(step.reward, [1.0, 0.0])


# Probes.


def discounted_returns(env, gamma, steps):
    """Observations ``[T, O]`` and the returns ``[T]`` of the best actions, by playing them."""
    state, obs = env.reset(KEY)
    seen, rewards = [], []
    for key in jax.random.split(KEY, steps):
        seen.append(obs)
        remembered = seen[0] if env.name == "probe/memory" else obs
        state, step = env.step(key, state, env.best_action(remembered))
        rewards.append(float(step.reward))
        obs = step.obs
        if step.terminated:
            break
    returns = np.zeros(len(rewards) + 1)
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + gamma * returns[t + 1]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *seen), returns[:-1]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", probe.TASKS)
def test_probes_have_the_values_they_state(task, continuous):
    env = envs.make(f"probe/{task}", continuous=continuous)
    assert isinstance(env, Environment) and env.name == f"probe/{task}"
    assert isinstance(env.spec.action, Box if continuous else Discrete)
    gamma = 0.7
    seen, returns = discounted_returns(env, gamma, 80)
    stated = env.value(seen, gamma)
    assert stated.shape == returns.shape
    played = 40 if task == "time_limit" else len(returns)
    np.testing.assert_allclose(returns[:played], stated[:played], rtol=1e-5)


@pytest.mark.parametrize("task", ["action", "both", "privileged"])
@pytest.mark.parametrize("continuous", [False, True])
def test_the_best_actions_are_the_best(task, continuous):
    env = envs.make(f"probe/{task}", continuous=continuous)
    actions = np.linspace(-1, 1, 41)[:, None].astype(np.float32) if continuous else np.arange(2)
    for key in jax.random.split(KEY, 4):
        state, obs = env.reset(key)
        rewards = [float(env.step(key, state, action)[1].reward) for action in actions]
        best = actions[int(np.argmax(rewards))]
        np.testing.assert_allclose(env.best_action(obs), best, atol=1e-6)
        np.testing.assert_allclose(max(rewards), env.value(obs, 0.9), atol=1e-6)


def test_probes_show_both_observations_and_their_lengths():
    both = envs.make("probe/both")
    _, obs = jax.vmap(both.reset)(jax.random.split(KEY, 32))
    assert set(np.unique(obs)) == {-1.0, 1.0}
    seen, _ = discounted_returns(envs.make("probe/termination", length=4), 1.0, 9)
    np.testing.assert_allclose(seen[:, 0], [1.0, 0.75, 0.5, 0.25])
    assert envs.make("probe/time_limit", max_steps=3).spec.max_steps == 3
    assert envs.make("probe/termination").spec.max_steps is None


@pytest.mark.parametrize("continuous", [False, True])
def test_a_cue_to_remember_is_seen_once_and_decides_the_last_reward_alone(continuous):
    env = envs.make("probe/memory", continuous=continuous, delay=3)
    actions = jnp.linspace(-1, 1, 41)[:, None] if continuous else jnp.arange(2)
    keys = jax.random.split(KEY, 16)
    state, obs = jax.vmap(env.reset)(keys)
    cue = np.asarray(obs[:, 0])
    assert set(cue) == {-1.0, 1.0}
    best = env.best_action(obs)
    for left in (3, 2, 1, 0):
        np.testing.assert_allclose(obs[:, 1], left / 3)
        assert left == 3 or (obs == obs[0]).all()  # both cues look the same
        each = jax.vmap(lambda s: jax.vmap(lambda a, s=s: env.step(KEY, s, a)[1].reward)(actions))
        rewards = np.asarray(each(state))  # [16, actions]
        if left:
            assert (rewards == 0).all()
        else:
            np.testing.assert_allclose(actions[rewards.argmax(axis=1)], best, atol=1e-6)
            np.testing.assert_allclose(rewards.max(axis=1), 1.0)
            blind = (rewards[cue < 0].mean(axis=0) + rewards[cue > 0].mean(axis=0)) / 2
            np.testing.assert_allclose(blind.max(), 0.75 if continuous else 0.0)
        state, step = jax.vmap(env.step)(keys, state, best)
        assert (step.terminated == (left == 0)).all()
        obs = step.obs


def test_the_vector_environment_truncates_one_limit_probe_and_lets_the_other_end():
    ends = {}
    for task in ("time_limit", "termination"):
        venv = envs.VectorEnv(envs.make(f"probe/{task}"), 1)
        state, out = venv.reset(KEY), None
        for key in jax.random.split(KEY, 10):
            state, out = venv.step(key, state, jnp.zeros(1, jnp.int32))
        ends[task] = (bool(out.terminated[0]), bool(out.truncated[0]))
    assert ends == {"time_limit": (False, True), "termination": (True, False)}
