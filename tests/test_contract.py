"""The contract of users' environments: kept, or refused in one line that names the field."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DQN, PPO, OffPolicy, OnPolicy, UsageError, VectorEnv, envs
from jaxrl.envs.contract import check_contract
from jaxrl.nn.critics import QNetwork
from jaxrl.types import Box, Discrete, Spec, Step

FALSE = jnp.bool_(False)


@dataclasses.dataclass(frozen=True)
class Line:
    """A walk on a line; each test changes one thing about it."""

    spec: Any = Spec(Box(-1.0, 1.0, (2,)), Discrete(2), 10)
    start: Any = lambda: (jnp.zeros(2), jnp.zeros(2))
    out: Any = lambda state, action: (state + action, Step(state, state[0], FALSE, FALSE, {}))
    name: Any = "own/line"
    cheap: Any = True

    def reset(self, key):
        return self.start()

    def step(self, key, state, action):
        return self.out(state, action)


def stepping(**fields):
    """A walk whose ``Step`` has other fields."""
    step = Step(jnp.zeros(2), jnp.zeros(()), FALSE, FALSE, {})._replace(**fields)
    return Line(out=lambda state, action: (state, step))


def spec(**fields):
    return Line(spec=dataclasses.replace(Line().spec, **fields))


ENTRIES = {"state": Box(-1.0, 1.0, (2,)), "goal": Box(-1.0, 1.0, (1,))}
SLIPS = {
    "class": (Line, "env is the class Line; give an instance"),
    "no name": (object(), "object has no name; jaxrl.types.Environment says"),
    "name": (Line(name=3), "Line.name is 3; it must be a string"),
    "cheap": (Line(cheap="yes"), "Line.cheap is 'yes'; it must be True or False"),
    "spec": (Line(spec=None), "Line.spec is a NoneType; it must be a jaxrl.types.Spec"),
    "method": (Line(spec=lambda: 1), "Line.spec is a function; .*Spec, and spec a property"),
    "observation": (
        spec(observation=Discrete(3)),
        "Line.spec.observation is a Discrete; it must be a jaxrl.types.Box, or a dictionary",
    ),
    "entry": (
        spec(observation={"state": 3}),
        r"Line.spec.observation\['state'\] is a int; it must be a jaxrl.types.Box",
    ),
    "no entries": (spec(observation={}), "Line.spec.observation is empty; give it an entry"),
    "action": (spec(action=2), "Line.spec.action is a int; it must be a jaxrl.types.Box or Discre"),
    "n": (spec(action=Discrete(0)), "Line.spec.action.n is 0; it must be at least 1"),
    "part n": (spec(action=Discrete(2.0)), "Line.spec.action.n is 2.0; it must be an integer"),
    "several": (spec(action=Discrete(2, shape=(3,))), r"it must be one index, as Discrete\(2\)"),
    "integers": (
        spec(action=Box(0, 3, (1,), np.int32)),
        "Line.spec.action has dtype int32; a Box of actions has floats, and a single index is Di",
    ),
    "limit": (spec(max_steps=0), "Line.spec.max_steps is 0; it must be at least 1"),
    "half": (spec(max_steps=10.5), "Line.spec.max_steps is 10.5; it must be an integer"),
    "reset alone": (
        Line(start=lambda: jnp.zeros(2)),
        r"Line.reset\(key\) returns a ShapeDtypeStruct; it must return state and obs",
    ),
    "reset of three": (
        Line(start=lambda: (jnp.zeros(2), jnp.zeros(2), {})),
        r"Line.reset\(key\) returns a tuple of 3; it must return state and obs",
    ),
    "reset raises": (
        Line(start=lambda: {}["missing"]),
        r"Line.reset\(key\) cannot be traced: KeyError: 'missing'",
    ),
    "reset with numpy": (
        Line(out=lambda state, action: np.sin(np.asarray(state))),
        r"Line.step\(key, state, action\) cannot be traced: TracerArrayConversionError: ",
    ),
    "reset's obs": (
        Line(start=lambda: (jnp.zeros(2), jnp.zeros(3))),
        r"Line.reset\(key\): obs is float32\[3\]; it must be float32\[2\], as spec.observation",
    ),
    "reset's dtype": (
        Line(start=lambda: (jnp.zeros(2), jnp.zeros(2, jnp.int32))),
        r"Line.reset\(key\): obs is int32\[2\]; it must be float32\[2\], as spec.observation",
    ),
    "no state": (
        Line(out=lambda state, action: Step(state, state[0], FALSE, FALSE, {})),
        r"Line.step\(.*\) returns a Step of 5; it must return state and Step",
    ),
    "of Gymnasium": (
        Line(out=lambda state, action: (state, state[0], FALSE, FALSE, {})),
        r"Line.step\(.*\) returns a tuple of 5; it must return state and Step",
    ),
    "no Step": (
        Line(out=lambda state, action: (state, (state, state[0], FALSE, FALSE, {}))),
        r"Line.step\(.*\) returns state and a tuple; the second must be a jaxrl.types.Step\(obs, ",
    ),
    "state": (
        Line(out=lambda state, action: (state[0], stepping().out(state, action)[1])),
        r"state is float32\[\], and Line.reset\(key\) gives float32\[2\]; both must be the same",
    ),
    "state's dtype": (
        Line(
            start=lambda: ({"t": jnp.int32(0)}, jnp.zeros(2)),
            out=lambda state, action: ({"t": state["t"] + 1.0}, stepping().out(state, action)[1]),
        ),
        r"state\['t'\] is float32\[\], and Line.reset\(key\) gives int32\[\]; both must be",
    ),
    "state's entries": (
        Line(
            start=lambda: ({"t": jnp.int32(0)}, jnp.zeros(2)),
            out=lambda state, action: (state | {"x": 1}, stepping().out(state, action)[1]),
        ),
        r"state\['x'\] is int32\[\], and Line.reset\(key\) gives nothing; both must be the same",
    ),
    "state's nodes": (
        Line(
            start=lambda: ((jnp.int32(0),), jnp.zeros(2)),
            out=lambda state, action: ([state[0]], stepping().out(state, action)[1]),
        ),
        "state is a list of other nodes than Line.reset.*a tuple; both must be the same",
    ),
    "obs": (
        stepping(obs=jnp.zeros((2, 1))),
        r"Line.step\(.*\): obs is float32\[2, 1\]; it must be float32\[2\], as spec.observation",
    ),
    "obs of entries": (
        stepping(obs={"state": jnp.zeros(2)}),
        r"obs is a dict; it must be float32\[2\]",
    ),
    "integer reward": (
        stepping(reward=1),
        r"reward is int32\[\]; it must be float32\[\], as jnp.float32\(reward\)",
    ),
    "reward's shape": (
        stepping(reward=jnp.zeros(1)),
        r"reward is float32\[1\]; it must be float32\[\], as jnp.float32\(reward\)",
    ),
    "no reward": (stepping(reward=None), r"reward is a NoneType; it must be float32\[\]"),
    "terminated": (
        stepping(terminated=0),
        r"terminated is int32\[\]; it must be bool\[\], as jnp.bool_\(False\)",
    ),
    "truncated": (
        stepping(truncated=jnp.zeros(1, bool)),
        r"truncated is bool\[1\]; it must be bool\[\], as jnp.bool_\(False\)",
    ),
    "info": (stepping(info=None), "info is a NoneType; it must be a dictionary"),
    "missing entry": (
        Line(
            spec=Spec(ENTRIES, Discrete(2)), start=lambda: (jnp.zeros(2), {"state": jnp.zeros(2)})
        ),
        r"Line.reset\(key\): obs lacks the entry 'goal'; both must have the same",
    ),
    "no entries observed": (
        Line(spec=Spec(ENTRIES, Discrete(2))),
        r"Line.reset\(key\): obs is a ShapeDtypeStruct; it must be a dictionary of state, goal",
    ),
    "entry's shape": (
        Line(
            spec=Spec(ENTRIES, Discrete(2)),
            start=lambda: (jnp.zeros(2), {"state": jnp.zeros(2), "goal": jnp.zeros(2)}),
        ),
        r"obs\['goal'\] is float32\[2\]; it must be float32\[1\], as spec.observation",
    ),
}


@pytest.mark.parametrize(("env", "words"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_one_line_that_names_the_field(env, words):
    with pytest.raises(UsageError, match=words) as error:
        VectorEnv(env, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "env",
    [
        Line(),
        stepping(reward=1.0, terminated=False, truncated=True, info={"x": 1}),  # of Python
        spec(action=Box(-1.0, 1.0, (2,), np.float64), max_steps=None),
        spec(observation=Box(-1.0, 1.0, (2,), np.float64)),  # float32 without jax_enable_x64
        spec(action=Discrete(np.int64(2)), max_steps=np.int64(7)),
        Line(cheap=np.bool_(False), start=lambda: (np.zeros(2, np.float32), np.zeros(2))),
    ],
)
def test_what_keeps_the_contract_is_stepped(env):
    venv = VectorEnv(env, 3)

    def two_steps(key):
        action = jnp.zeros((3, *env.spec.action.shape), jnp.int32)
        state, _ = venv.step(key, venv.reset(key), action, venv.reset_pool(key))
        return venv.step(key, state, action, venv.reset_pool(key))

    _, out = jax.eval_shape(two_steps, jax.random.key(0))
    assert out.reward.shape == (3,) and out.obs.shape == (3, 2)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
def test_integer_observations_train(dtype):
    def out(state, action):
        return state, Step(state.astype(dtype), jnp.sum(state, dtype=jnp.float32), FALSE, FALSE, {})

    observed = Spec(Box(0, 1, (2,), dtype), Discrete(2), 5)
    env = Line(observed, lambda: (jnp.zeros(2, jnp.int32), jnp.zeros(2, dtype)), out)
    dqn = DQN(QNetwork(hidden_dims=(4,)))
    for trainer in (
        OnPolicy(PPO(), VectorEnv(env, 4), num_steps=8),
        OffPolicy(dqn, VectorEnv(env, 4), buffer_size=64, learning_starts=32, cycles=2),
    ):
        ts, _ = jax.eval_shape(lambda key, t=trainer: t.train(key, 96), jax.random.key(0))
        assert ts.env.obs.dtype == dtype and ts.env.episode_return.dtype == jnp.float32


@pytest.mark.parametrize("suite", ["probe", "gymnax"])
def test_the_librarys_environments_keep_the_contract(suite):
    for name in envs.names(suite):
        check_contract(envs.make(name))
