"""Placement: which device computes what. No algorithm knows of it.

The members of a run (seeds, times the configurations of a sweep) are spread over devices first,
which needs no communication; what devices are left share the environments of each member, which
needs gradient and statistics sums alone. Within a device the members are one ``vmap``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.metrics import Metrics
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, PyTree, TrainState

MEMBER, SHARD = "member", "shard"

_MEMBER: Any = P(MEMBER)

# How the leading axes of a stacked TrainState lie on the mesh.
STATE = TrainState(
    agent=P(MEMBER),
    env=P(MEMBER, SHARD),
    replay=P(MEMBER, None, SHARD),
    key=_MEMBER,
    env_steps=_MEMBER,
    updates=_MEMBER,
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """``members`` groups of members times ``shards`` of every member's environments."""

    members: int = 1
    shards: int = 1

    @property
    def mesh(self) -> Mesh:
        """The first local devices as a mesh of this shape."""
        devices = jax.local_devices()[: self.members * self.shards]
        return Mesh(np.array(devices).reshape(self.members, self.shards), (MEMBER, SHARD))

    def describe(self) -> dict[str, Any]:
        """For ``config.json``."""
        return {"members": self.members, "shards": self.shards, "platform": jax.default_backend()}


def choose(trainer: Trainer, members: int, devices: int | None = None) -> Placement:
    """The placement of ``members`` runs of ``trainer`` on ``devices`` (default: all local ones).

    A user's number of devices is kept to, or refused; left to itself, the choice drops devices that
    the sizes do not divide over, and does not shard what gains nothing by it
    (``Trainer.shares_environments``).

    Raises:
        UsageError: for more devices than there are, or sizes that do not divide over them.
    """
    available = jax.local_device_count()
    if devices is not None:
        if not 1 <= devices <= available:
            raise UsageError(f"devices is {devices}; this machine has 1 to {available}")
        groups = math.gcd(members, devices)
        trainer.check(devices // groups)
        return Placement(groups, devices // groups)

    groups = max(d for d in range(1, available + 1) if members % d == 0)
    most = available // groups if trainer.shares_environments else 1
    for shards in range(most, 1, -1):
        try:
            trainer.check(shards)
        except UsageError:
            continue
        return Placement(groups, shards)
    trainer.check()
    return Placement(groups, 1)


class Compiled(NamedTuple):
    """The programs of a run, ready to call."""

    chunk: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[..., Evaluation]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The functions of a run over all members, as they are to be jitted.

    ``sweep`` is ``{hyper-parameter: [M]}``, the swept values of every member; ``keys`` are ``[M]``.
    """

    trainer: Trainer
    placement: Placement

    def _place(self, f: Callable, in_specs: tuple, out_specs: Any) -> Callable:
        if self.placement.members * self.placement.shards == 1:
            return f
        mesh = self.placement.mesh
        return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _member(self, sweep: dict[str, Array]) -> Trainer:
        trainer = hyper.replace(self.trainer, sweep)
        return dataclasses.replace(trainer, axis=SHARD if self.placement.shards > 1 else None)

    def init(self, sweep: dict[str, Array], keys: Key) -> TrainState:
        """The first states ``[M, ...]``."""

        def start(sweep: dict[str, Array], key: Key) -> TrainState:
            return self._member(sweep).init(key)

        place = self._place(over_members(start), (P(MEMBER), P(MEMBER)), STATE)
        return place(sweep, keys)

    def chunk(self, sweep: dict[str, Array], ts: TrainState, iterations: Array) -> tuple:
        """``iterations`` iterations of every member; returns states and metrics ``[M, ...]``."""

        def advance(
            sweep: dict[str, Array], ts: TrainState, iterations: Array, first: Array
        ) -> tuple:
            return self._member(sweep).chunk(ts, iterations, first)

        specs = (P(MEMBER), STATE, P(), P())
        place = self._place(over_members(advance, shared=2), specs, (STATE, P(MEMBER)))
        return place(sweep, ts, iterations, ts.updates[0])  # which all members have in common

    def evaluate(self, sweep: dict[str, Array], ts: TrainState, keys: Key) -> Evaluation:
        """Greedy episodes from the same ``keys[E]`` for every member: ``[M, E]``.

        The episodes are shared out over the shards where they divide.
        """

        def greedy(sweep: dict[str, Array], ts: TrainState, keys: Key) -> Evaluation:
            return self._member(sweep).evaluate_from(ts, keys)

        split = SHARD if keys.shape[0] % self.placement.shards == 0 else None
        specs = (P(MEMBER), STATE, P(split))
        place = self._place(over_members(greedy, shared=1), specs, P(MEMBER, split))
        return place(sweep, ts, keys)

    def compiled(self, sweep: dict[str, Array], ts: TrainState, keys: Key) -> Compiled:
        """``chunk`` and ``evaluate`` for such arguments, compiled side by side."""
        lowered = (
            jax.jit(self.chunk, donate_argnums=1).lower(sweep, ts, jnp.int32(0)),
            jax.jit(self.evaluate).lower(sweep, ts, keys),
        )
        with ThreadPoolExecutor(len(lowered)) as pool:
            return Compiled(*pool.map(lambda program: program.compile(), lowered))

    def put(self, ts: TrainState) -> TrainState:
        """A state from the host, laid out as the programs expect it."""
        if self.placement.members * self.placement.shards == 1:
            return jax.device_put(ts)
        mesh = self.placement.mesh

        def put(spec: P, part: PyTree) -> PyTree:
            return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), part)

        return TrainState(*map(put, STATE, ts))


def over_members(f: Callable, shared: int = 0) -> Callable:
    """``vmap`` of ``f``, whose last ``shared`` arguments are the same for all members.

    A single member is run as itself: a batch of one is another, slower program.
    """

    def run(*args: PyTree) -> PyTree:
        own, same = args[: len(args) - shared], args[len(args) - shared :]
        if jax.tree.leaves(own)[0].shape[0] == 1:
            one = jax.tree.map(lambda x: x[0], own)
            return jax.tree.map(lambda x: x[None], f(*one, *same))
        return jax.vmap(f, in_axes=(0,) * len(own) + (None,) * shared)(*args)

    return run
