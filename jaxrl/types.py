"""The interfaces shared by all parts of the library.

Axes: ``T`` time, ``N`` environments, ``B`` batch, ``G`` gradient steps, ``E`` critics, ``M`` runs
trained together; ``*O`` and ``*A`` are the observation and action shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError
from jaxrl.require import plain

Array = jax.Array
Key = jax.Array
PyTree = Any
Extras = dict[str, Any]
Mode = Literal["explore", "sample", "greedy"]


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """A continuous space: every element is within its ``[low, high]`` (which may be infinite).

    ``low`` and ``high`` are numpy arrays of ``shape``; numbers are broadcast to it. Bounds at or
    beyond the largest float32 count as infinite, as Gymnasium and gymnax write them. Boxes compare
    and hash by value.

    Raises:
        UsageError: for bounds that are not numbers of ``dtype`` and ``shape``, or enclose nothing.
    """

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        for name in ("low", "high"):
            object.__setattr__(self, name, self._broadcast(name))
        # False for NaN, and for infinite bounds on the wrong side.
        if not np.all((self.low <= self.high) & (self.low < np.inf) & (self.high > -np.inf)):
            raise UsageError(
                f"Box: low is {self.low.tolist()} and high {self.high.tolist()}; every element "
                "needs low <= high, as low -1 and high 1"
            )

    def _broadcast(self, name: str) -> np.ndarray:
        """Return a bound for every element; it is infinite from the largest float on."""
        given, dtype = getattr(self, name), np.dtype(self.dtype)
        try:
            with np.errstate(over="ignore"):
                bound = np.array(np.broadcast_to(np.array(given, dtype), self.shape))
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"Box: {name} is {given!r}; it must be a number of {dtype}, or an array of them "
                f"of shape {self.shape}"
            ) from None
        if jnp.issubdtype(dtype, np.floating):
            largest = min(float(jnp.finfo(dtype).max), float(jnp.finfo(np.float32).max))
            bound[np.abs(bound) >= largest] *= np.inf
        bound.flags.writeable = False
        return bound

    @property
    def bounded(self) -> np.ndarray:
        """Whether each element has two finite bounds: ``bool[*shape]``."""
        return np.isfinite(self.low) & np.isfinite(self.high)

    def _value(self) -> tuple:
        bounds = ((bound + 0).tobytes() for bound in (self.low, self.high))  # -0.0 is 0.0
        return self.shape, np.dtype(self.dtype).str, *bounds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers ``0 .. n-1``."""

    n: int
    dtype: Any = np.int32
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", plain(self.n))


@dataclasses.dataclass(frozen=True)
class Spec:
    """The spaces of an environment, and its time limit. Specs compare and hash by value.

    ``observation`` may be a dictionary of entries. By default policies see the entry ``"state"``
    and critics ``"privileged_state"`` if there is one (``jaxrl.nn.encoders``).
    ``max_steps`` is the time limit in environment steps; ``VectorEnv`` enforces it as truncation.
    ``None`` means that only the environment itself ends episodes.
    """

    observation: Box | dict[str, Box]
    action: Box | Discrete
    max_steps: int | None = None

    def __hash__(self) -> int:
        box = self.observation
        entries = tuple(sorted(box.items())) if isinstance(box, dict) else box
        return hash((entries, self.action, self.max_steps))


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
    """Environment steps as they happened: ``[T, N]`` in a rollout, ``[S, N]`` in a replay buffer.

    ``action`` is the agent's output before any clipping or rescaling; ``extras`` is what
    ``agent.act`` returned with it. ``carry`` is the agent's memory ``[N, ...]`` before the first
    step of a rollout, or ``()`` for agents without memory.
    """

    obs: PyTree
    action: Array
    reward: Array
    next_obs: PyTree
    terminated: Array
    truncated: Array
    extras: Extras
    carry: PyTree = ()


class Batch(NamedTuple):
    """Sampled transitions ``[..., B]``, which off-policy and offline agents learn from.

    ``reward`` may be a sum over n steps; ``next_obs`` is then the observation after those steps.
    ``discount`` multiplies the value of ``next_obs``: 0 where the episode terminated, else gamma to
    the power of the number of summed steps. So every agent writes ``target = reward + discount *
    value``.
    """

    obs: PyTree
    action: Array
    reward: Array
    discount: Array
    next_obs: PyTree
    extras: Extras


class TrainState(NamedTuple):
    """A whole run as arrays only: it can be pickled, vmapped, sharded and checkpointed.

    ``env_steps`` and ``gradient_steps`` have two uint32 limbs each (``jaxrl.counters``).
    """

    agent: PyTree
    env: PyTree
    carry: PyTree  # the agent's memory for acting, [N, ...]
    store: PyTree  # the replay buffer, or ()
    key: Key
    env_steps: Array
    gradient_steps: Array
    iterations: Array  # int32, in this phase; sets where the replay buffer is written next


@runtime_checkable
class Environment(Protocol):
    """One environment. It never resets itself and has no time limit of its own.

    ``cheap`` is true for toy dynamics, where steps and resets cost next to nothing. Physics
    environments may have two more attributes: ``cheap_resets``, and ``threaded`` if the environment
    itself steps a batch on all of the host's cores. They determine how ``VectorEnv`` resets, and
    the placement on devices.
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


class Agent(Protocol):
    """A frozen dataclass of hyper-parameters and parts (``jaxrl.hyper``).

    Numbers are pytree leaves, so ``vmap`` can sweep them; sizes are static. ``learns_from`` says
    which trainer the agent needs. Off-policy and offline agents also have ``policy_delay``: their
    actor is updated on every ``policy_delay``-th gradient step. The optional methods
    ``init_carry``, ``observe`` and ``check`` are called through ``jaxrl.agents.protocol``.

    Keys are common to all shards. Values drawn per row use ``rng.row_key(key)``, as the
    distributions in ``jaxrl.nn`` do; values drawn per network use the key itself.
    """

    learns_from: ClassVar[Literal["rollouts", "batches"]]

    def bind(self, spec: Spec) -> Any:
        """Return the agent with sizes and observation entries resolved for ``spec``. Idempotent.

        Raises:
            UsageError: for a spec or a part that the agent cannot work with.
        """
        ...

    def init(self, key: Key) -> PyTree:
        """Return a fresh state: a NamedTuple of arrays."""
        ...

    def act(
        self, state: PyTree, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return ``action[..., *A]`` in [-1, 1] or an index for ``obs[..., *O]``, carry, extras."""
        ...

    def update(self, state: PyTree, data: Any, key: Key) -> tuple[PyTree, dict]:
        """Learn. Returns the new state and metrics, ``{name: mean_of(x)}`` (``jaxrl.metrics``).

        Agents that learn from rollouts take a ``Transition[T, N]``. Agents that learn from batches
        perform one gradient step on a ``Batch[B]``, and take ``update_actor: bool = True``.
        """
        ...
