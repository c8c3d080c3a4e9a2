"""The parts of a checkpoint whose state is spread over several processes' devices.

The devices of a process hold one box of each array (``run/placement.py``), which is the process's
part. Copies of the same values are stored once. A process writes the bytes of its parts to one
``.npz`` file: bytes because numpy lacks some of JAX's dtypes, and not with orbax because orbax lets
only process 0 write host arrays.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl import processes
from jaxrl.record import manifest as manifests


def own_part(array: Any) -> tuple[np.ndarray, list[int]] | None:
    """Return the part of an array that this process saves and its start, or None."""
    if processes.is_here(array):
        return (np.asarray(array), [0] * np.ndim(array)) if processes.is_first() else None
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    if not shards:
        return None
    firsts = np.array([[axis.start or 0 for axis in shard.index] for shard in shards], int)
    start = firsts.min(axis=0)
    shape = (firsts + [shard.data.shape for shard in shards]).max(axis=0) - start
    part = np.empty(shape, array.dtype)
    for shard, first in zip(shards, firsts - start, strict=True):
        part[_box(first, shard.data.shape)] = np.asarray(shard.data)
    return part, start.tolist()


def describe(part: np.ndarray, start: list[int]) -> dict[str, Any]:
    """Return a part's entry in the manifest."""
    return {
        "start": start,
        "shape": list(part.shape),
        "dtype": part.dtype.name,
        "crc32": manifests.array_checksum(part),
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write this process's parts, keyed by leaf path."""
    raw: dict[str, Any] = {name: each.reshape(-1).view(np.uint8) for name, each in arrays.items()}
    with open(path, "xb") as file:
        np.savez(file, **raw)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, entries: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Read these parts of a process.

    Raises:
        Damaged: if a part's bits differ from those saved.
    """
    found = {}
    with np.load(path) as file:
        for name, entry in entries.items():
            found[name] = file[name].view(np.dtype(entry["dtype"])).reshape(entry["shape"])
            manifests.check_array(name, entry, found[name])
    return found


def joined(leaf: dict[str, Any], parts: list[tuple[dict[str, Any], np.ndarray]]) -> np.ndarray:
    """Return the whole array of a leaf from its parts and their entries.

    Raises:
        Damaged: if the parts do not cover the whole array.
    """
    if sum(part.size for _, part in parts) != np.prod(leaf["shape"], dtype=int):
        raise manifests.Damaged("a part of a leaf is missing")
    whole = np.empty(leaf["shape"], parts[0][1].dtype)
    for entry, part in parts:
        whole[_box(entry["start"], entry["shape"])] = part
    return whole


def _box(start: Any, shape: Any) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
