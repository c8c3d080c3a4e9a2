"""Settings of JAX that must be made before its first computation. The user's own always win."""

from __future__ import annotations

import os

import jax

_CPU_POOL = 8  # threads


def configure() -> None:
    """On a CPU: one XLA device per core, and a thread pool that cannot block itself.

    Several batched factorisations in one program can block every thread of XLA's CPU pool for good
    when the pool is small, as it is by default on machines with few cores. The size of the pool is read
    from the environment variable ``NPROC`` at the first computation.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if cores < _CPU_POOL:
        os.environ.setdefault("NPROC", str(_CPU_POOL))
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in flags
    if not chosen and jax.config.jax_num_cpu_devices == -1:
        cpu_devices(cores)


def cpu_devices(count: int) -> None:
    """Ask for ``count`` XLA devices on the CPU; too late, and ignored, once JAX has computed."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass
