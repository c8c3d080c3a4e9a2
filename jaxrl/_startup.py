"""JAX settings that must precede its first computation. The user's own settings always win."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

import jax

_LARGE_POOL = 8  # threads


def configure() -> None:
    """Use one XLA device per core on a CPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in flags
    if not chosen and jax.config.values["jax_num_cpu_devices"] == -1:
        cpu_devices(cores())


def cpu_devices(count: int) -> None:
    """Ask for ``count`` XLA devices on the CPU; too late, and ignored, once JAX has computed."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def prepare(devices: int | None = None) -> None:
    """Set up JAX for a script: its CPU devices, and the persistent compilation cache."""
    if devices is not None and devices > 1:
        cpu_devices(devices)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "jaxrl" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def large_pool() -> None:
    """Give XLA's CPU pool enough threads for batched factorisations on machines with few cores.

    Several factorisations in one program can deadlock a small pool. JAX reads the pool size from
    the environment variable ``NPROC`` at its first computation; after that, a warning says what to
    do. A pool larger than the machine slows small programs down (by a quarter to a half on two
    cores), so only physics engines that factorise ask for it.
    """
    if cores() >= _LARGE_POOL or "NPROC" in os.environ:
        return
    if _started():
        warnings.warn(
            "this physics may hang: JAX has begun to compute with a small pool of threads; make "
            f"such environments first, or set the environment variable NPROC={_LARGE_POOL}",
            stacklevel=2,
        )
        return
    os.environ["NPROC"] = str(_LARGE_POOL)


def _started() -> bool:
    from jax._src import xla_bridge  # no public function exists

    return xla_bridge.backends_are_initialized()


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
