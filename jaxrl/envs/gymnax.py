"""Adapter of gymnax: classic control, MinAtar, bsuite and small research tasks.

Every task takes ``max_steps``, the time limit, in addition to the options of its gymnax class (e.g.
DeepSea's ``size``) and its gymnax parameters (e.g. Pendulum's ``g``).

gymnax's raw ``reset_env`` and ``step_env`` are used: nothing resets automatically. Their
``terminated`` never comes from the time limit, which becomes ``spec.max_steps``. Exceptions and
oddities:

- Some fixed-length tasks show the time in the observation (``CLOCKS``). Their last step is the
  task's own end and terminates: a value that knows the time left must not be bootstrapped beyond it
  (Pardo et al. 2018, "Time Limits in Reinforcement Learning").
- SimpleBandit, Catch, DeepSea, MemoryChain and UmbrellaChain end by themselves after a fixed number
  of steps, before (DeepSea: at) their time limits.
- MetaMaze teleports an agent that reaches the goal, and ends if it happens to land on the goal.
- FrozenLake's observation, a tile index, is given as one-hot ``[16]``.
- Observation bounds that gymnax misstates (``MISSTATED``) are given as infinite.
- MNISTBandit is excluded: gymnax downloads its data when the environment is created.

An illegal action raises. Under ``jit`` and ``vmap``, where that is impossible, an index out of
range makes the reward NaN; ``VectorEnv`` then ends the episode and counts it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.checks import check_action, check_options, check_positive, refuse
from jaxrl.errors import UsageError
from jaxrl.require import require, shown
from jaxrl.types import Array, Box, Discrete, Environment, Key, PyTree, Spec, Step

TASKS = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)
CLOCKS = frozenset(
    {
        "DiscountingChain-bsuite",
        "MetaMaze-misc",
        "PointRobot-misc",
        "BernoulliBandit-misc",
        "GaussianBandit-misc",
    }
)
MISSTATED = frozenset(
    {"MemoryChain-bsuite", "MetaMaze-misc", "BernoulliBandit-misc", "GaussianBandit-misc"}
)

_LIMIT = "max_steps_in_episode"  # gymnax's name for the time limit


@dataclasses.dataclass(eq=False)
class GymnaxEnv:
    """One gymnax environment. ``env`` and ``params`` are gymnax's own."""

    name: str
    env: Any
    params: Any
    spec: Spec
    clock: bool  # whether the time limit is the task's own end
    cheap: bool = True

    def __post_init__(self) -> None:
        reset = jax.eval_shape(lambda key: self.env.reset_env(key, self.params), jax.random.key(0))
        self._dtypes = jax.tree.map(lambda leaf: leaf.dtype, reset[1])

    def reset(self, key: Key) -> tuple[PyTree, Array]:
        """Draw a first state. Returns gymnax's state and ``obs[*O]``, float32."""
        obs, state = self.env.reset_env(key, self.params)
        return self._arrays(state), self._observe(obs)

    def step(self, key: Key, state: PyTree, action: Array) -> tuple[PyTree, Step]:
        """Advance one step with ``action[*A]``. Raises as ``check_action`` does."""
        action, legal = check_action(self.spec.action, action)
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, self.params)
        state = self._arrays(state)
        terminated = jnp.asarray(terminated, bool)
        if self.clock:
            terminated |= state.time >= self.spec.max_steps
        truncated = jnp.zeros_like(terminated)
        return state, Step(self._observe(obs), refuse(legal, reward), terminated, truncated, {})

    def _observe(self, obs: Array) -> Array:
        space: Any = self.spec.observation
        if obs.shape != space.shape:  # the index of a state
            return jax.nn.one_hot(obs, space.shape[0])
        return jnp.asarray(obs, jnp.float32)

    def _arrays(self, state: PyTree) -> PyTree:
        """gymnax mixes Python numbers and arrays of several dtypes into its states."""
        return jax.tree.map(jnp.asarray, state, self._dtypes)


def make(task: str, /, max_steps: int | None = None, **options: Any) -> Environment:
    """The environment ``gymnax/<task>``, with gymnax's class options and parameters as keywords.

    Raises:
        UsageError: unknown option, or a value that gymnax does not accept.
    """
    name = f"gymnax/{task}"
    if max_steps is not None:
        check_positive(name, "max_steps", max_steps)

    import gymnax

    env, _ = gymnax.make(task)
    own = set(inspect.signature(type(env)).parameters) - {"action_mapping_key"}  # no JSON
    built = {option: value for option, value in options.items() if option in own}
    try:
        env = type(env)(**built)
    except (AssertionError, IndexError, TypeError, ValueError) as error:
        reason = str(error) or "an assertion about them failed"
        raise UsageError(f"{name}: {built} is refused by gymnax: {reason}") from error

    defaults = {key: value for key, value in vars(env.default_params).items() if key != _LIMIT}
    check_options(name, options, {"max_steps", *own, *defaults})
    changed = {
        option: _parameter(name, option, value, defaults[option])
        for option, value in options.items()
        if option not in own
    }
    if task == "CartPole-v1":
        changed = _consistent({**defaults, **changed}, changed)
    limit = getattr(env.default_params, _LIMIT)
    limit = limit if max_steps is None else type(limit)(max_steps)  # a float in BernoulliBandit
    params = env.default_params.replace(**changed, **{_LIMIT: limit})
    _check_sense(name, env, params, int(limit))
    try:
        with jax.ensure_compile_time_eval():  # even while a user's function is traced
            spec = Spec(_observation(task, env, params), _action(env, params), int(limit))
        return GymnaxEnv(name, env, params, spec, clock=task in CLOCKS)  # traces a reset
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise UsageError(f"{name}: {options} is refused by gymnax: {error}") from error


def _check_sense(name: str, env: Any, params: Any, limit: int) -> None:
    """Raise UsageError for options with which gymnax makes a task that cannot be solved."""
    values = {**vars(env), **vars(params)}
    require(f"{name}: num_actions", env.num_actions, 1)
    require(f"{name}: num_bits", values.get("num_bits"), 1)
    if "mapping_seed" in values and "reward_timestep" in values:  # DiscountingChain
        delays = len(values["reward_timestep"])
        require(f"{name}: n_actions", values["n_actions"], 1, delays)
        require(f"{name}: mapping_seed", values["mapping_seed"], 0, values["n_actions"] - 1)
    for length in ("chain_length", "memory_length"):
        if length in values and values[length] >= limit:
            raise UsageError(
                f"{name}: {length} is {values[length]}, and max_steps {limit} ends the episode "
                f"before its reward; give max_steps={values[length] + 2}"
            )
    for cell in ("goal_fixed", "pos_fixed"):  # FourRooms
        place = tuple(np.asarray(values.get(cell, ())).tolist())
        free = set(map(tuple, np.asarray(values.get("coords", ())).tolist()))
        if place and place not in free:
            raise UsageError(f"{name}: {cell} is {place}, which is no free cell, as (4, 1) is")


def _parameter(name: str, option: str, value: Any, default: Any) -> Any:
    """A gymnax parameter converted to its default's type, because gymnax itself checks nothing."""
    if isinstance(default, jax.Array):
        if np.shape(value) == default.shape:
            return jnp.asarray(value, default.dtype)
        raise UsageError(f"{name}: {option} is {shown(value)}; it must be like {default.tolist()}")
    kind = bool if isinstance(default, bool) else Integral if isinstance(default, int) else Real
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if fits and (math.isfinite(value) or not math.isfinite(default)):
        return type(default)(value)
    wanted = "finite float" if kind is Real else type(default).__name__
    raise UsageError(f"{name}: {option} is {shown(value)}; it must be a {wanted}, as {default}")


def _consistent(params: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Update the two CartPole parameters that gymnax derives from other parameters."""
    derived = {
        "total_mass": params["masscart"] + params["masspole"],
        "polemass_length": params["masspole"] * params["length"],
    }
    return derived | changed


def _observation(task: str, env: Any, params: Any) -> Box:
    space = env.observation_space(params)
    if hasattr(space, "n"):
        return Box(0.0, 1.0, (space.n,))
    if task in MISSTATED:
        return Box(-np.inf, np.inf, space.shape)
    return Box(space.low, space.high, space.shape)


def _action(env: Any, params: Any) -> Box | Discrete:
    space = env.action_space(params)
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    return Box(space.low, space.high, space.shape)
