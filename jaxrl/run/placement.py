"""Placement: which devices compute which part of a run.

Members (configurations x seeds) are spread over devices first, then each member's environments. The
devices are those of all processes of a distributed run, equally many from each.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl import processes
from jaxrl.errors import UsageError
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, PyTree

MEMBER, SHARD = "member", "shard"


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh: ``members`` groups of members x ``shards`` of every member's environments.

    The mesh uses the first devices of each process of a distributed run. With ``processes`` 1 it
    uses this process's devices only, and every process computes the same.
    """

    members: int = 1
    shards: int = 1
    processes: int = 1

    @property
    def mesh(self) -> Mesh:
        """The devices as a mesh of this shape. Each process's devices form a rectangle in it."""
        each = self.members * self.shards // self.processes
        rows = math.gcd(self.members, self.processes)
        columns = self.processes // rows
        if self.processes == 1:
            devices = jax.local_devices()[:each]
        else:
            ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
            own = itertools.groupby(ordered, key=lambda device: device.process_index)
            devices = [device for _, group in own for device in list(group)[:each]]
        blocks = np.array(devices).reshape(
            rows, columns, self.members // rows, self.shards // columns
        )
        grid = blocks.transpose(0, 2, 1, 3).reshape(self.members, self.shards)
        return Mesh(grid, (MEMBER, SHARD))

    def describe(self) -> dict[str, Any]:
        """Return the placement as JSON, for ``config.json``."""
        several = {"processes": self.processes} if self.processes > 1 else {}
        mesh = {"members": self.members, "shards": self.shards, **several}
        return {**mesh, "platform": jax.default_backend()}

    def put(self, tree: PyTree, spec: P) -> PyTree:
        """Put a tree onto the devices. The tree is on the host or already on this mesh."""
        if self.members * self.shards == 1:
            return jax.device_put(tree)
        sharding = NamedSharding(self.mesh, spec)
        if self.processes == 1:
            return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)
        return jax.tree.map(partial(_put_far, sharding=sharding), tree)

    def put_if_far(self, tree: PyTree, spec: P) -> PyTree:
        """Put small arguments onto several processes' devices; JAX handles a single process."""
        return self.put(tree, spec) if self.processes > 1 else tree


def _put_far(x: Any, sharding: NamedSharding) -> Array:
    """Put an array onto devices of several processes; each process has the whole array."""
    if not processes.is_here(x):
        moved: Array = processes.moved(x, sharding)
        return moved
    return jax.make_array_from_callback(np.shape(x), sharding, lambda index: x[index])


def choose(trainers: Sequence[Trainer], members: int, devices: int | None = None) -> Placement:
    """Choose the placement of ``members`` runs on ``devices``, the same for all ``trainers``.

    A given number of devices (per process) is either used or refused. By default all devices are
    used, as far as the sizes divide over them. Environments are not sharded if a trainer gains
    nothing from it (``Trainer.shares_environments``), unless a process would otherwise be idle.

    Raises:
        UsageError: for more devices than there are, or sizes that do not divide over them.
    """

    def check(shards: int) -> None:
        for trainer in trainers:
            trainer.check(shards)

    count, available = processes.count(), _available(devices)
    if devices is not None:
        groups = math.gcd(members, devices * count)
        check(devices * count // groups)
        return Placement(groups, devices * count // groups, count)

    gains = all(trainer.shares_environments for trainer in trainers)
    for groups, shards in _meshes(members, available * count, count, gains):
        try:
            check(shards)
        except UsageError:
            continue
        return Placement(groups, shards, count)
    check(1)
    raise UsageError(
        f"{members} members do not divide over {count} processes, nor do their environments; "
        f"{math.ceil(members / count) * count} members would"
    )


def _meshes(members: int, most: int, count: int, gains: bool) -> Iterator[tuple[int, int]]:
    """Yield mesh shapes over ``count`` processes, best first.

    Members use as many devices as divide them; their environments use the remaining devices.
    """
    for groups in (d for d in range(min(most, members), 0, -1) if members % d == 0):
        shards = range(most // groups, 0, -1) if gains else range(1, most // groups + 1)
        useful = [each for each in shards if groups * each % count == 0]
        yield from ((groups, each) for each in (useful if gains or count > 1 else useful[:1]))
        if count == 1:
            return


def members_alone(members: int, devices: int | None = None) -> Placement:
    """Choose the placement of members on at most ``devices`` per process, without sharding.

    If the members do not divide over the processes, every process trains all of them, with equal
    results.

    Raises:
        UsageError: for more devices than there are.
    """
    count, most = processes.count(), _available(devices)
    fitting = [d for d in range(1, most * count + 1) if members % d == 0]
    if over_all := [d for d in fitting if d % count == 0]:
        return Placement(max(over_all), 1, count)
    return Placement(max(d for d in fitting if d <= most), 1)


def _available(devices: int | None) -> int:
    """Return the number of devices per process that may be used.

    Raises:
        UsageError: if ``devices`` exceeds the devices available, or processes have different
            numbers of devices.
    """
    available, count = jax.local_device_count(), processes.count()
    if count > 1 and jax.device_count() != available * count:
        raise UsageError(
            f"the processes have different numbers of devices, this one {available} of "
            f"{jax.device_count()}; start each with the same, as --devices 1"
        )
    if devices is None:
        return available
    if not 1 <= devices <= available:
        of_each = "each process" if count > 1 else "this machine"
        raise UsageError(f"devices is {devices}; {of_each} has 1 to {available}")
    return devices
