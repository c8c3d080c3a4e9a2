"""Probe environments: tiny tasks with known values; each detects one kind of fault.

Each adds one difficulty. A value that cannot learn a constant fails ``constant``; one that ignores
its input fails ``observation``; wrong discounting fails ``delayed``; a wrong policy gradient fails
``action``; a policy that ignores its input fails ``both``; a policy or value that sees the wrong
part of a dictionary fails ``privileged``; an agent without memory fails ``memory``. ``time_limit``
and ``termination`` distinguish truncated from terminated episodes.

Each has ``value(obs, gamma)``, the optimal value, and ``best_action(obs)``. Every final observation
also occurs before the end, so that bootstrapping beyond the end is detected. With
``continuous=True`` the action is ``[1]`` in [-1, 1] instead of an index 0 or 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.envs.checks import check_action, check_options, check_positive, refuse
from jaxrl.errors import UsageError
from jaxrl.types import Array, Box, Discrete, Key, PyTree, Spec, Step


@dataclasses.dataclass(frozen=True)
class Probe:
    """The defaults that probes share: one step, observation 0, reward 1."""

    continuous: bool = False

    name: ClassVar[str]
    cheap: ClassVar[bool] = True

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``make`` that differ from their defaults."""
        values = {field: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {field.name: x for field, x in values.items() if x != field.default}

    @property
    def limit(self) -> int | None:
        """The time limit in steps."""
        return None

    @property
    def spec(self) -> Spec:
        """Observations ``[1]`` in [-1, 1]; actions ``[1]`` in [-1, 1], or 0 and 1."""
        action = Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)
        return Spec(Box(-1.0, 1.0, (1,)), action, self.limit)

    def reset(self, key: Key) -> tuple[Array, PyTree]:
        """Draw a first state, float32[]. Returns ``state, obs[1]``."""
        state = self.start(key)
        return state, self.observe(state)

    def step(self, key: Key, state: Array, action: Array) -> tuple[Array, Step]:
        """Advance one step. Raises as ``check_action`` does."""
        action, legal = check_action(self.spec.action, action)
        reward = self.reward(state, action)
        state, terminated = self.advance(state)
        terminated = jnp.asarray(terminated)
        truncated = jnp.zeros_like(terminated)
        return state, Step(self.observe(state), refuse(legal, reward), terminated, truncated, {})

    def start(self, key: Key) -> Array:
        """The first state."""
        return jnp.zeros(())

    def observe(self, state: Array) -> Any:
        """The observation ``[1]``."""
        return state[None]

    def reward(self, state: Array, action: Array) -> Array:
        """The reward of an action."""
        return jnp.ones(())

    def advance(self, state: Array) -> tuple[Array, Any]:
        """The next state, and whether it ends the episode."""
        return state, True

    def value(self, obs: Any, gamma: float) -> Array:
        """The optimal value of ``obs[..., 1]``: ``[...]``, for ``gamma`` in [0, 1)."""
        return jnp.ones(obs.shape[:-1])

    def best_action(self, obs: Any) -> Array:
        """An optimal action at ``obs[..., 1]``: ``[...]``, or ``[..., 1]`` if continuous."""
        shape = obs.shape if self.continuous else obs.shape[:-1]
        return jnp.zeros(shape, self.spec.action.dtype)


class Constant(Probe):
    """One step, observation 0, reward 1. Value 1."""

    name = "probe/constant"


class Observation(Probe):
    """One step; the reward equals the observation, 1 or -1 at random. Value ``obs``."""

    name = "probe/observation"

    def start(self, key: Key) -> Array:
        return jax.random.rademacher(key, dtype=jnp.float32)

    def reward(self, state: Array, action: Array) -> Array:
        return state

    def value(self, obs: Array, gamma: float) -> Array:
        return obs[..., 0]


class Delayed(Probe):
    """Two steps, observed as 0 and 1; reward 1 at the end. Values ``gamma`` and 1."""

    name = "probe/delayed"

    def reward(self, state: Array, action: Array) -> Array:
        return state

    def advance(self, state: Array) -> tuple[Array, Any]:
        return jnp.ones_like(state), state > 0

    def value(self, obs: Array, gamma: float) -> Array:
        return jnp.where(obs[..., 0] > 0, 1.0, gamma)


class Action(Probe):
    """One step; the action decides. The observation is 1, the value 1.

    Discrete: reward 1 for action 1, else -1. Continuous: reward ``1 - (action - 1/2)^2``.
    """

    name = "probe/action"

    def start(self, key: Key) -> Array:
        return jnp.ones(())

    def reward(self, state: Array, action: Array) -> Array:
        return self.score(self.best_action(self.observe(state)), action)

    def score(self, best: Array, action: Array) -> Array:
        """The reward of an action where ``best`` is the best."""
        if self.continuous:
            return 1.0 - jnp.sum((action - best) ** 2)
        return jnp.where(action == best, 1.0, -1.0)

    def best_action(self, obs: Array) -> Array:
        best = 0.5 * obs if self.continuous else obs[..., 0] > 0
        return best.astype(self.spec.action.dtype)


class Both(Action):
    """One step; the right action depends on the observation, 1 or -1 at random. Value 1.

    Discrete: reward 1 for action 1 at 1 and for action 0 at -1, else -1. Continuous: reward
    ``1 - (action - obs / 2)^2``.
    """

    name = "probe/both"

    def start(self, key: Key) -> Array:
        return jax.random.rademacher(key, dtype=jnp.float32)


class Privileged(Both):
    """``both``, observed as ``state``, plus a bonus of 1 or -1, shown in ``privileged_state``.

    Value ``1 + bonus``. A policy that sees only the privileged part cannot act; a value that does
    not see it explains none of the variance.
    """

    name = "probe/privileged"

    @property
    def spec(self) -> Spec:
        box = Box(-1.0, 1.0, (1,))
        parts = {"state": box, "privileged_state": box}
        return dataclasses.replace(super().spec, observation=parts)

    def start(self, key: Key) -> Array:
        """``[2]``: the cue to act on, and the bonus."""
        return jax.random.rademacher(key, (2,), dtype=jnp.float32)

    def observe(self, state: Array) -> Any:
        """Two parts of ``[1]``."""
        return {"state": state[:1], "privileged_state": state[1:]}

    def reward(self, state: Array, action: Array) -> Array:
        return super().reward(state, action) + state[1]

    def value(self, obs: Any, gamma: float) -> Array:
        return 1.0 + obs["privileged_state"][..., 0]

    def best_action(self, obs: Any) -> Array:
        return super().best_action(obs["state"])


@dataclasses.dataclass(frozen=True)
class Memory(Both):
    """``both``, but the action that counts comes ``delay`` steps after the cue is observed.

    The observation holds the cue, which is 1 or -1 at random at the first step and 0 afterwards,
    and the remaining share of the ``delay``. All rewards except the last are 0. Value ``gamma^k``
    with ``k`` steps left. Both cues look the same when it counts: without memory the expected
    reward is at most 0, or 3 / 4 if continuous.
    """

    delay: int = 4

    name = "probe/memory"

    @property
    def spec(self) -> Spec:
        return dataclasses.replace(super().spec, observation=Box(-1.0, 1.0, (2,)))

    def start(self, key: Key) -> Array:
        """``[2]``: the cue, and the number of steps left."""
        return jnp.stack([super().start(key), jnp.float32(self.delay)])

    def observe(self, state: Array) -> Array:
        """The observation ``[2]``."""
        cue, left = state
        return jnp.stack([jnp.where(left == self.delay, cue, 0.0), left / self.delay])

    def reward(self, state: Array, action: Array) -> Array:
        return jnp.where(state[1] > 0, 0.0, self.score(self.best_action(state), action))

    def advance(self, state: Array) -> tuple[Array, Any]:
        return state.at[1].set(jnp.maximum(state[1] - 1.0, 0.0)), state[1] <= 0

    def value(self, obs: Array, gamma: float) -> Array:
        return gamma ** jnp.round(obs[..., 1] * self.delay)

    def best_action(self, obs: Array) -> Array:
        """The best last action given the first observation; it is optimal at every step."""
        return super().best_action(obs[..., :1])


@dataclasses.dataclass(frozen=True)
class TimeLimit(Probe):
    """Reward 1 at each step, forever; only the time limit interrupts. Value ``1 / (1 - gamma)``.

    An agent that treats the time limit as termination sees at most the sum of ``max_steps`` terms.
    """

    max_steps: int = 10

    name = "probe/time_limit"

    @property
    def limit(self) -> int | None:
        return self.max_steps

    def advance(self, state: Array) -> tuple[Array, Any]:
        return state, False

    def value(self, obs: Array, gamma: float) -> Array:
        return jnp.full(obs.shape[:-1], 1.0 / (1.0 - gamma))


@dataclasses.dataclass(frozen=True)
class Termination(Probe):
    """Reward 1 at each of ``length`` steps, then termination; observes the fraction of steps left.

    Value with ``k`` steps left: ``(1 - gamma^k) / (1 - gamma)``.
    """

    length: int = 5

    name = "probe/termination"

    def start(self, key: Key) -> Array:
        return jnp.full((), self.length, jnp.float32)

    def observe(self, state: Array) -> Array:
        return state[None] / self.length

    def advance(self, state: Array) -> tuple[Array, Any]:
        return jnp.maximum(state - 1.0, 1.0), state <= 1.0

    def value(self, obs: Array, gamma: float) -> Array:
        left = jnp.round(obs[..., 0] * self.length)
        return (1.0 - gamma**left) / (1.0 - gamma)


_KINDS = (
    Constant,
    Observation,
    Delayed,
    Action,
    Both,
    Privileged,
    Memory,
    TimeLimit,
    Termination,
)
_PROBES: dict[str, type[Probe]] = {kind.name.partition("/")[2]: kind for kind in _KINDS}
TASKS = tuple(_PROBES)


def make(task: str, /, **options: Any) -> Any:
    """The environment ``probe/<task>``.

    Every probe has the option ``continuous``; ``memory`` also has ``delay``, ``time_limit`` has
    ``max_steps``, and ``termination`` has ``length``.

    Raises:
        UsageError: unknown option or invalid value.
    """
    kind = _PROBES[task]
    check_options(kind.name, options, [field.name for field in dataclasses.fields(kind)])
    for option, value in options.items():
        if option != "continuous":
            check_positive(kind.name, option, value)
        elif not isinstance(value, bool):
            raise UsageError(f"{kind.name}: continuous is {value!r}; it must be True or False")
    return kind(**options)
