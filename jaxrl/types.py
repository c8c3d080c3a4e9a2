"""The contracts that every part of the library is built to.

Axes: ``T`` time, ``N`` environments, ``B`` batch, ``G`` gradient steps, ``E`` ensemble;
``*O`` and ``*A`` are the observation and action shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array
Key = jax.Array
PyTree = Any
Extras = dict[str, Any]
Mode = Literal["explore", "sample", "greedy"]


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """A continuous space: every element lies in ``[low, high]`` (which may be infinite).

    ``low`` and ``high`` are numpy arrays of ``shape``; numbers are broadcast to it.
    """

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = np.broadcast_to(np.asarray(getattr(self, name), self.dtype), self.shape)
            object.__setattr__(self, name, bound)
        if np.any(self.low > self.high):
            raise ValueError(f"Box: low {self.low} exceeds high {self.high}")

    @property
    def bounded(self) -> bool:
        """Whether every element has finite bounds."""
        return bool(np.all(np.isfinite(self.low)) and np.all(np.isfinite(self.high)))


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers ``0 .. n-1``."""

    n: int
    dtype: Any = np.int32
    shape: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """What an agent needs to know of an environment.

    ``observation`` may be a dictionary of parts, of which policies see ``"state"`` and value
    functions ``"privileged_state"`` where there is one (``jaxrl.nn.networks.policy_part``).
    ``max_steps`` is the time limit in environment steps; ``VectorEnv`` enforces it as truncation.
    ``None`` means that episodes end only by themselves.
    """

    observation: Box | dict[str, Box]
    action: Box | Discrete
    max_steps: int | None = None


class Step(NamedTuple):
    """The outcome of one environment step; under ``VectorEnv`` every field has a leading ``[N]``.

    ``obs`` is always the true successor of the action, never an observation after a reset.
    ``terminated`` and ``truncated`` are booleans and never both true.
    """

    obs: PyTree
    reward: Array
    terminated: Array
    truncated: Array
    info: dict[str, Array]


class Transition(NamedTuple):
    """What agents learn from: ``[T, N]`` on-policy, ``[G, B]`` off-policy and offline.

    ``action`` is what the agent emitted, before any clipping or rescaling; ``extras`` is what
    ``agent.act`` returned beside it.
    """

    obs: PyTree
    action: Array
    reward: Array
    next_obs: PyTree
    terminated: Array
    truncated: Array
    extras: Extras


class TrainState(NamedTuple):
    """A whole run as arrays, and nothing else: it pickles, vmaps, shards and checkpoints.

    ``env_steps`` counts environment steps as two uint32 limbs (see ``counter_add``), ``updates``
    counts iterations.
    """

    agent: PyTree
    env: PyTree
    replay: PyTree
    key: Key
    env_steps: Array
    updates: Array


@runtime_checkable
class Environment(Protocol):
    """One environment. It never resets itself and knows no time limit of its own.

    ``cheap`` is true for toy dynamics, where a step costs next to nothing and a reset no more.
    Physics may have two attributes more: ``cheap_resets``, and ``threaded`` if a batch is stepped
    on all of the host's cores by itself. They choose resets (``VectorEnv``) and placement.
    """

    name: str
    cheap: bool

    @property
    def spec(self) -> Spec: ...

    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        """Draw a first state. Returns ``state, obs[*O]``."""
        ...

    def step(self, key: Key, state: PyTree, action: Array) -> tuple[PyTree, Step]:
        """Advance one step with ``action[*A]`` in the units of ``spec.action``."""
        ...


@runtime_checkable
class Agent(Protocol):
    """A frozen dataclass of hyper-parameters: numbers are pytree leaves, shapes are static."""

    def init(self, key: Key, spec: Spec) -> PyTree:
        """The agent's state: a NamedTuple of arrays and nothing else."""
        ...

    def draw(self, state: PyTree, obs: PyTree, key: Key, steps: int) -> PyTree:
        """The randomness of ``steps`` exploring calls of ``act`` at such ``obs``: ``[steps, ...]``.

        Keys, or noise: on a CPU, one large draw costs far less than many small ones inside a loop.
        """
        ...

    def act(self, state: PyTree, obs: PyTree, key: PyTree, mode: Mode) -> tuple[Array, Extras]:
        """Actions for ``obs[..., *O]``: ``action[..., *A]`` in [-1, 1] or an index, and extras.

        ``key`` is a typed key, or one row of what ``draw`` returned.
        """
        ...

    def update(self, state: PyTree, batch: Transition, key: Key) -> tuple[PyTree, dict]:
        """Learn from a batch. Returns the new state and scalar metrics."""
        ...

    def observe(self, state: PyTree, transitions: Transition) -> PyTree:
        """Take in fresh experience ``[T, N]``; the identity unless the agent keeps statistics."""
        ...


@runtime_checkable
class ReplayAgent(Agent, Protocol):
    """An agent that learns from batches ``[G, B]`` wherever they come from: a ring, or a dataset.

    ``delay``: the actor steps on every so many gradient steps.
    """

    @property
    def delay(self) -> int: ...

    def draw_update(self, state: PyTree, key: Key, shape: tuple[int, ...]) -> PyTree:
        """The randomness of gradient steps on batches of ``shape[..., B]``: ``[..., B, ...]``.

        ``key`` is the same on all shards; what belongs to rows, each shard draws for itself.
        """
        ...

    def update(
        self, state: PyTree, batch: Transition, key: PyTree, actor: bool = True
    ) -> tuple[PyTree, dict]:
        """One gradient step on each of ``[G, B]``; with ``actor``, the actor's on schedule.

        ``key`` is a typed key, or what ``draw_update`` drew for ``[G, B]``.
        """
        ...


def learns_from_replay(agent: Any) -> bool:
    """Whether an agent, wrapped or not, is a ``ReplayAgent``.

    ``isinstance`` cannot tell of a wrapper, which has all its names whatever is inside.
    """
    return hasattr(agent, "delay")
