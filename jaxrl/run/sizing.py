"""How many members fit in memory at once, based on their compiled program's needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxrl.errors import UsageError
from jaxrl.memory import free_over, gib
from jaxrl.run import devices as placing
from jaxrl.run.memory import check_states
from jaxrl.training.trainer import Trainer
from jaxrl.types import PyTree, TrainState

MARGIN = 0.8  # fraction of the free memory that a program may use


def most_members(
    wanted: int,
    bare: Callable[[int], None],
    needs: Callable[[int], int | None],
    devices: Callable[[int], int],
) -> tuple[int, str]:
    """Return the members that fit in memory at once, at most ``wanted``, and a line about it.

    Args:
        wanted: the number of members wanted.
        bare: raises UsageError if the states of that number of members do not fit.
        needs: compiles the program for a number of members. Returns the bytes it needs on all
            devices together, or None if unknown.
        devices: returns the number of devices that a number of members use.
    """
    size = wanted
    while size > 1 and not _passes(bare, size):
        size = math.ceil(size / 2)
    while True:
        needed, free = needs(size), free_over(devices(size))
        if free is None or needed is None:
            return size, "the memory of the device is not known"
        line = f"{size} members at once need {gib(needed)}; {gib(free)} are free"
        if size == 1 or needed <= MARGIN * free:
            return size, line
        size = max(min(int(size * MARGIN * free / needed), size - 1), 1)


def _passes(check: Callable[[int], None], size: int) -> bool:
    try:
        check(size)
    except UsageError:
        return False
    return True


def check_bare(trainers: Sequence[Trainer], members: int, episodes: int, devices: int) -> None:
    """Raise UsageError if the members' rollouts, replay buffers or states cannot fit."""
    for trainer in trainers:
        trainer.check_memory(members, devices)
    check_states(trainers, members, episodes, devices)


def shapes(
    programs: placing.Programs, names: Sequence[str], members: int, data: PyTree
) -> tuple[dict[str, Any], Any, TrainState]:
    """Return the shapes of swept values, keys and states for ``members`` members."""
    number = jax.ShapeDtypeStruct((members,), jnp.float32)
    sweep = dict.fromkeys(names, number)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))
    return sweep, keys, jax.eval_shape(programs.init, sweep, keys, data)


def analysed(
    programs: placing.Programs, names: Sequence[str], members: int, data: PyTree, episodes: int
) -> tuple[placing.Compiled, int | None]:
    """Return the compiled programs for ``members`` members, and the bytes that they need.

    The bytes are for all devices together, or None if the compiler does not report them.
    """
    placement = programs.placement
    sweep, _, ts = shapes(programs, names, members, data)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), episodes))
    if placement.members > 1:
        given: Any = placing.STATE
        specs = (NamedSharding(placement.mesh, spec) for spec in given)
        ts = TrainState(*(_placed(part, each) for part, each in zip(ts, specs, strict=True)))
    compiled = programs.compiled(sweep, ts, data, keys)
    programs_made: Any = [each for each in compiled if each is not None]
    analyses = [each.memory_analysis() for each in programs_made]
    if None in analyses:
        return compiled, None
    needed = max(
        a.argument_size_in_bytes
        + a.output_size_in_bytes
        + a.temp_size_in_bytes
        - a.alias_size_in_bytes
        for a in analyses
    )
    return compiled, placement.members * needed


def _placed(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
