"""How much memory can still be allocated on devices and in containers."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import jax

from jaxrl import processes
from jaxrl.types import PyTree


def nbytes(tree: PyTree) -> int:
    """Return the total bytes of arrays, array shapes, or spaces."""
    structs = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(tree))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in structs)


def gib(size: int) -> str:
    """Return a number of bytes as ``1.50 GiB``."""
    return f"{size / 2**30:.2f} GiB"


def free_over(devices: int) -> int | None:
    """Return the bytes that can still be allocated on ``devices``; CPU devices share one memory.

    With several processes, ``devices`` are spread over all of them and the process with the least
    memory counts.
    """
    free = processes.smallest(free_memory())
    return free and free * (devices if jax.default_backend() != "cpu" else processes.count())


def free_memory() -> int | None:
    """Bytes that can still be allocated on a device; None if unknown."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"])
    found = [memory for memory in (_free_of_host(), free_of_group()) if memory is not None]
    return min(found, default=None)


def _free_of_host() -> int | None:
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        sizes = dict(line.split(":") for line in file)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    return None


def free_of_group(
    root: Path = Path("/sys/fs/cgroup"), process: str = "/proc/self/cgroup"
) -> int | None:
    """Bytes left under the memory limits of this process's control groups, as set by containers.

    Groups nest, and the tightest limit counts; None if there is no limit. The file cache counts as
    free, since it is reclaimed on demand.
    """
    found = []
    with contextlib.suppress(OSError):
        lines = Path(process).read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        group = root / own.strip("/")
        for each in (group, *group.parents):
            if each.is_relative_to(root):
                found += _below_limit(each)
    return min(found, default=None)


def _below_limit(group: Path) -> list[int]:
    with contextlib.suppress(OSError):
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            kinds = dict(line.split() for line in (group / "memory.stat").open())
            return [max(int(limit) - used + int(kinds["inactive_file"]), 0)]
    return []
