"""Communication between the processes of a distributed run. A single process sends nothing.

All processes run the same host program, so they make the same calls in the same order. Each call
below that communicates returns once all processes have made it.
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
_LEAST_BYTES = 256  # per message; lengths are powers of two, so that few programs are compiled


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
    """Return whether this is the first process, which writes the record and shows progress."""
    return index() == 0


def to_host(tree: PyTree) -> PyTree:
    """Return complete host arrays for arrays that may be spread over all processes' devices."""
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
    """Return whether an array is stored entirely on this process's devices."""
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def readable(tree: PyTree) -> PyTree:
    """Return arrays that this process can read, using ``to_host`` with several processes."""
    return to_host(tree) if several() else tree


def moved(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Return arrays resharded over the devices of all processes."""
    return jax.jit(_same, out_shardings=sharding)(tree)


def _same(tree: PyTree) -> PyTree:
    return tree


def _on_host(x: Any) -> Any:
    if is_key(x):
        data: Any = np.asarray(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return np.asarray(x)


def gathered(value: Any) -> list[Any]:
    """Return the JSON-serialisable values from all processes, in process order."""
    if not several():
        return [value]
    text = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    length = max(_LEAST_BYTES, 1 << (int(sizes.max()) - 1).bit_length())
    padded = np.frombuffer(text.ljust(length), np.uint8)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def from_first(f: Callable[[], Value]) -> Value:
    """Call ``f`` in the first process and return its JSON-serialisable result in all of them.

    The other processes do not call ``f``. With a single process this just calls ``f``.

    Raises:
        UsageError, RunError: in all processes, if ``f`` raises one in the first process.
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
    """Return the largest ``value`` over all processes."""
    if not several():
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def smallest(value: int | None) -> int | None:
    """Return the smallest ``value`` over all processes; None if all are None."""
    if not several():
        return value
    return min((each for each in gathered(value) if each is not None), default=None)
