"""Runs over several processes, usually one per host or device: start-up and lost processes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxrl import processes
from jaxrl.errors import RunError, UsageError
from jaxrl.record.folder import RECORDED, differences
from jaxrl.record.manifest import reason
from jaxrl.run.meeting import Meeting, meet

EXAMPLE = "10.0.0.1:1234 2 0"
_LOST = re.compile(r"gloo|nccl|coordination|heartbeat|connection (reset|closed)", re.IGNORECASE)
_LONGEST_END = 3600  # seconds that process 0 may take to draw figures after the others have ended
_meeting: Meeting | None = None


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 30,
) -> None:
    """Join the processes of a run before JAX computes anything. A second call does nothing.

    This is ``jax.distributed.initialize`` with one-line errors. Without arguments, JAX detects the
    processes from SLURM, Open MPI, Kubernetes or Cloud TPU. ``run`` and ``sweep`` then train on the
    devices of all processes; every process must make the same calls.

    Args:
        coordinator_address: ``HOST:PORT`` of process 0, which opens the port.
        num_processes: the number of processes.
        process_id: the number of this process, from 0.
        initialization_timeout: seconds to wait for the other processes.
        heartbeat_timeout: seconds without a heartbeat after which a process counts as lost.

    Raises:
        UsageError: for arguments that cannot work, if nothing is detected, or after JAX's first
            computation.
        RunError: if the other processes do not join in time, or the port is taken.
    """
    from jax._src import xla_bridge  # there is no public function

    if jax.distributed.is_initialized():
        return
    if xla_bridge.backends_are_initialized():
        raise UsageError(
            "distributed comes too late: JAX has begun to compute; call "
            "jaxrl.run.distributed.initialize() before anything else"
        )
    given: tuple = (coordinator_address, num_processes, process_id)
    found = (*given, None) if None not in given else _detected(given, initialization_timeout)
    address, count, number, own_devices = found
    _check(address, count, number)
    global _meeting
    _meeting = meet(address, count, number, initialization_timeout)
    # A signal ends a run between two chunks, in all processes: see jaxrl.run.signals.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            count,
            number,
            own_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=_LONGEST_END,
        )
    except (ValueError, RuntimeError) as error:
        raise RunError(f"distributed: JAX does not start: {reason(error)}") from None


def _detected(given: tuple, timeout: int) -> tuple:
    """Return address, number of processes, this process's number and its devices, as JAX finds
    them.
    """
    from jax._src.clusters import ClusterEnv  # there is no public function

    address, count, number = given
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        found: tuple = ClusterEnv.auto_detect_unset_distributed_params(
            address, count, number, None, None, timeout
        )
    except (ValueError, RuntimeError) as error:  # for instance, the Kubernetes API refuses
        raise RunError(f"distributed: {reason(error)}") from None
    if None in found[:3]:
        raise UsageError(
            "distributed found no job of SLURM, Open MPI, Kubernetes or Cloud TPU; give address, "
            f"number of processes and number of this one, as --distributed {EXAMPLE}"
        )
    chosen = "JAX_LOCAL_DEVICE_IDS" in os.environ  # JAX reads it itself
    return (*found[:3], None if chosen else found[3])


def from_words(words: Sequence[str]) -> None:
    """Join the processes of a run as given by ``--distributed``: no words or ``HOST:PORT NUM ID``.

    Raises:
        UsageError: for other words.
        RunError: as in ``initialize``.
    """
    if not words:
        return initialize()
    address, *numbers = words
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise UsageError(
            f"distributed is {' '.join(words)}; give nothing, or address, number of processes and "
            f"number of this one, as {EXAMPLE}"
        )
    return initialize(address, *map(int, numbers))


def _check(address: str, count: int, number: int) -> None:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UsageError(f"distributed has address {address!r}; give HOST:PORT, as {EXAMPLE}")
    if not 0 <= number < count:
        raise UsageError(
            f"distributed has process {number} of {count}; they count from 0, as {EXAMPLE}"
        )


def check_alike(config: Mapping[str, Any]) -> None:
    """Raise UsageError in all processes unless all have the same configuration."""
    given = {name: value for name, value in config.items() if name not in RECORDED}
    first, *others = processes.gathered(given)
    for number, other in enumerate(others, start=1):
        if changed := differences(first, other, {*first, *other}):
            raise UsageError(
                f"process {number} was given another configuration than process 0: "
                f"{'; '.join(changed)}; start all with the same options"
            )


@contextlib.contextmanager
def loss_reported(resumable: bool) -> Iterator[None]:
    """Turn JAX's errors about an ended process into a one-line RunError."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not processes.several() or isinstance(error, UsageError | RunError):
            raise
        if not _LOST.search(str(error)):
            raise
        known = None if _meeting is None else _meeting.line()
        line = known or f"another process of this run cannot be reached ({reason(error)[:120]})"
        again = "; start all again with --resume" if resumable else ""
        raise RunError(f"{line}{again}") from error


def end(code: int, line: str) -> None:
    """Print a line and end this process at once if it is one of several.

    A normal exit would wait for the other processes, which never arrive.
    """
    if _meeting is not None:
        _meeting.end(code, line)
