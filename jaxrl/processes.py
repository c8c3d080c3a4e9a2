"""Communication between the processes of a distributed run; a single process sends nothing.

All processes run the same program on the host, and so make the same calls in the same order. Each
call below that sends something returns when all of them have made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl.errors import RunError, UsageError
from jaxrl.rng import is_key
from jaxrl.types import PyTree

Value = TypeVar("Value")
_LEAST_BYTES = 256  # of a message: lengths are powers of two, so that few programs are compiled


def several() -> bool:
    """Return whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def count() -> int:
    """Return the number of processes."""
    return jax.process_count() if several() else 1


def index() -> int:
    """Return the number of this process, from 0."""
    return jax.process_index() if several() else 0


def is_first() -> bool:
    """Return whether this process is the one that writes the record and shows progress."""
    return index() == 0


def to_host(tree: PyTree) -> PyTree:
    """Return whole arrays, on the host, of arrays that may lie on devices of all processes."""
    if not several():
        return jax.device_get(tree)
    leaves, structure = jax.tree.flatten(tree)
    far = {i: x for i, x in enumerate(leaves) if not is_here(x)}
    if far:
        mesh = next(iter(far.values())).sharding.mesh
        for i, x in moved(far, NamedSharding(mesh, P())).items():
            leaves[i] = x
    return jax.tree.unflatten(structure, [_on_host(x) for x in leaves])


def is_here(x: Any) -> bool:
    """Return whether all of an array lies on devices of this process."""
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def readable(tree: PyTree) -> PyTree:
    """Return arrays that this process can read: ``to_host`` of several processes' arrays."""
    return to_host(tree) if several() else tree


def moved(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Return arrays with another sharding over devices of all processes."""
    return jax.jit(_same, out_shardings=sharding)(tree)


def _same(tree: PyTree) -> PyTree:
    return tree


def _on_host(x: Any) -> Any:
    if is_key(x):
        data: Any = np.asarray(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return np.asarray(x)


def gathered(value: Any) -> list[Any]:
    """Return the values, as JSON holds them, that all processes gave, in their order."""
    if not several():
        return [value]
    text = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    length = max(_LEAST_BYTES, 1 << (int(sizes.max()) - 1).bit_length())
    padded = np.frombuffer(text.ljust(length), np.uint8)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def from_first(f: Callable[[], Value]) -> Value:
    """Return what ``f`` returns in the first process, a value as JSON holds it, in all of them.

    The others do not call ``f``. In a single process this is a call of ``f``.

    Raises:
        UsageError, RunError: in all processes, as ``f`` raises them in the first one.
    """
    if not several():
        return f()
    value, error = None, None
    if is_first():
        try:
            value = f()
        except Exception as found:  # the others must not wait for a process that has ended
            error = found
    kind = None if error is None else "usage" if isinstance(error, UsageError) else "run"
    sent = gathered([value, kind, str(error)] if is_first() else None)[0]
    if error is not None:
        raise error
    if sent[1] is not None:
        raise (UsageError if sent[1] == "usage" else RunError)(sent[2])
    result: Value = value if is_first() else sent[0]  # type: ignore[assignment]
    return result


def largest(value: int) -> int:
    """Return the largest of the numbers that the processes gave."""
    if not several():
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def smallest(value: int | None) -> int | None:
    """Return the smallest of the numbers that the processes gave; None if none gave one."""
    if not several():
        return value
    return min((each for each in gathered(value) if each is not None), default=None)
