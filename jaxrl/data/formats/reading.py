"""Helpers for all readers: arrays of HDF5 files, checks with key and row, and a progress bar.

Arrays are read in blocks into their final dtype, so a float64 file is never fully in memory.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.data.fitting import first_outside
from jaxrl.data.rows import BLOCK_BYTES, first_nonfinite, first_row
from jaxrl.data.units import agent_bounds, clip, to_agent
from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete

if TYPE_CHECKING:
    import h5py

LARGE_BYTES = 64 << 20  # file size from which reading shows a progress bar
Place = Callable[[int], str]  # describes a row of an array as its file does
Advance = Callable[[int], None]


def key_of(place: Place) -> str:
    """Return the file and key of an array, without a row."""
    return place(0).rpartition(" row ")[0]


@contextlib.contextmanager
def progress(path: Path, rows: int, nbytes: int, quiet: bool) -> Iterator[Advance]:
    """Yield a function that counts rows read; a bar shows them for large files on a terminal."""
    if quiet or nbytes < LARGE_BYTES or not (sys.stderr and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    from jaxrl._output import Lasting, one_line

    stream: Any = Lasting(sys.stderr)
    with Progress(console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(one_line(f"reading {path.name}"), total=rows)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; while it is open, library errors become one-line UsageErrors."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except UsageError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read as HDF5: {words}") from None


def h5_child(group: h5py.Group, key: str) -> Any:
    """Return the group or dataset ``key`` of a group. Links out of the file are not followed.

    Raises:
        UsageError: if it is missing, or a link to elsewhere.
    """
    import h5py

    link = group.get(key, getlink=True)
    if link is None:
        found = ", ".join(map(repr, list(group)[:8])) or "nothing"
        raise UsageError(f"{h5_name(group)} has no {key!r}; it holds {found}")
    if not isinstance(link, h5py.HardLink):
        raise UsageError(
            f"{h5_name(group, key)} is a link; only arrays in the file itself are read"
        )
    return group[key]


def h5_name(group: h5py.Group, key: str = "") -> str:
    """Return the file and path of a group, or of its ``key``."""
    path = f"{group.name.rstrip('/')}/{key}".rstrip("/")
    return f"{group.file.filename}:{path}" if path else group.file.filename


def h5_group(group: h5py.Group, key: str) -> h5py.Group:
    """Return the group ``key`` of a group.

    Raises:
        UsageError: if it is missing, a link to elsewhere, or an array.
    """
    found = h5_child(group, key)
    if not hasattr(found, "keys"):
        raise UsageError(f"{h5_name(group, key)} is an array; it must be a group of arrays")
    return found


def h5_array(group: h5py.Group, key: str) -> h5py.Dataset:
    """Return the numeric dataset ``key`` of a group, unread, with at least one axis.

    Raises:
        UsageError: if it is missing, or not such an array in the file itself.
    """
    import h5py

    found = h5_child(group, key)
    where = h5_name(group, key)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiub" or not found.shape:
        kind = getattr(found, "dtype", "a group")
        raise UsageError(f"{where} is {kind}; it must be an array of numbers with a row each")
    if found.is_virtual or found.external:
        raise UsageError(f"{where} lies in another file; only arrays in the file itself are read")
    return found


def h5_values(group: h5py.Group, key: str) -> np.ndarray:
    """Return a small array in full, as ``h5_array`` would; floats in float32.

    With h5py's high-level interface, opening an episode's arrays takes longer than reading them.
    """
    from h5py import h5d, h5l

    name = key.encode()
    try:
        hard = group.id.links.get_info(name).type == h5l.TYPE_HARD
        found = h5d.open(group.id, name) if hard else None
    except (KeyError, TypeError, RuntimeError):
        found = None
    if found is not None and found.shape and found.dtype.kind in "fiub":
        plan = found.get_create_plist()
        if plan.get_layout() != h5d.VIRTUAL and plan.get_external_count() == 0:
            return _read_whole(found, lambda: h5_name(group, key))
    source = h5_array(group, key)  # raises an error if something is wrong
    return _read_whole(source.id, lambda: h5_name(group, key))


def _read_whole(found: Any, name: Callable[[], str]) -> np.ndarray:
    from h5py import h5s

    dtype = stored_dtype(found.dtype) if found.dtype.kind == "f" else found.dtype
    result = allocate(found.shape, dtype, name)
    if result.size:
        found.read(h5s.ALL, h5s.ALL, result)
    return result


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype of an array in a dataset: at most 32 bits, with floats in float32."""
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int32) if dtype.itemsize > 4 or dtype == np.uint32 else dtype


def allocate(shape: tuple[int, ...], dtype: Any, name: Callable[[], str]) -> np.ndarray:
    """Return an empty array. Raises UsageError with its size if there is not enough memory."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):
        size = float(np.prod([float(n) for n in shape])) * np.dtype(dtype).itemsize / 2**30
        raise UsageError(
            f"{name()} needs {size:.1f} GiB of memory, and there is less; give a smaller file"
        ) from None


def read_rows(
    source: Any, place: Place, dtype: Any = None, advance: Advance = lambda count: None
) -> np.ndarray:
    """Return ``source[D, ...]`` as ``stored_dtype``, or as ``dtype``; all values are finite.

    Raises:
        UsageError: with the row of a value that is not finite, or does not fit the dtype.
    """
    kept = stored_dtype(source.dtype) if dtype is None else np.dtype(dtype)
    result = allocate(tuple(source.shape), kept, lambda: key_of(place))
    for block in _chunked(source):
        values = source[block]
        with np.errstate(over="ignore", invalid="ignore"):
            result[block] = values
        if kept.kind in "iu" and kept != values.dtype:
            different = (values != result[block]).reshape(len(values), -1).any(axis=1)
            if different.any():
                row = block.start + int(np.argmax(different))
                raise UsageError(f"{place(row)} does not fit {kept}; give floats, or fewer bits")
        row = first_nonfinite(result[block])
        if row is not None:
            raise UsageError(f"{place(block.start + row)} is not finite; every value must be")
        advance(block.stop - block.start)
    return result


def _chunked(source: Any) -> Iterator[slice]:
    """Yield row slices of about 8 MiB, aligned with the file's chunks if it has any."""
    rows = source.shape[0]
    one = max(int(np.prod(source.shape[1:], dtype=np.float64)) * source.dtype.itemsize, 1)
    chunk = (getattr(source, "chunks", None) or (1,))[0]
    step = max(BLOCK_BYTES // (one * chunk), 1) * chunk
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def read_flags(source: Any, place: Place) -> np.ndarray:
    """Return ``source[D]`` as bools.

    Raises:
        UsageError: with the row of a value that is neither 0 nor 1.
    """
    values = source[...]
    row = first_row(values, lambda block: (block != 0) & (block != 1))
    if row is not None:
        raise UsageError(f"{place(row)} is {values[row]}; a flag must be 0 or 1")
    return values.astype(bool)


def convert_actions(action: np.ndarray, space: Box | Discrete | None, place: Place) -> np.ndarray:
    """Return actions ``[D, *A]`` of a file in the agent's units, in bounds.

    Args:
        space: the file's action space; None for [-1, 1], or for indices if actions are integers.

    Raises:
        UsageError: if the shape or dtype does not match the space, or with the row of an action
            that is out of bounds by more than 1e-4 in the agent's units.
    """
    discrete = action.dtype.kind in "iu"
    shape = action.shape[1:]
    if space is None:
        space = Discrete(2**31 - 1) if discrete else Box(-1.0, 1.0, shape)
    if isinstance(space, Discrete) != discrete or tuple(space.shape) != shape:
        wanted = f"indices 0 .. {space.n - 1}" if isinstance(space, Discrete) else "floats"
        raise UsageError(
            f"{key_of(place)} is {action.dtype} of shape {shape} in each row, and the action space "
            f"has {wanted} of shape {tuple(space.shape)}; give the action_space of the data"
        )
    scaled = action if discrete else to_agent(action, space)
    row = first_outside(scaled, space)
    if row is not None:
        raise UsageError(f"{place(row)} is {action[row].tolist()}; {_bounds_of(space)}")
    return to_agent(action, space) if discrete else clip(scaled, space)


def _bounds_of(space: Box | Discrete) -> str:
    if isinstance(space, Discrete):
        return f"it must be in 0 .. {space.n - 1}"
    if np.array_equal(agent_bounds(space), (space.low, space.high)):
        return "it must be in [-1, 1]; if it has other bounds, give action_space=Box(low, high, ..)"
    low, high = space.low.tolist(), space.high.tolist()
    return f"it must be in the action space, from {low} to {high}"
