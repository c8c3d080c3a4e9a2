"""Runs over several processes, usually one per host or device: starting them, and losing one."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax

from jaxrl import processes
from jaxrl.errors import RunError, UsageError
from jaxrl.record.folder import RECORDED, differences
from jaxrl.record.manifest import reason

EXAMPLE = "10.0.0.1:1234 2 0"
_LOST = re.compile(r"gloo|nccl|coordination|heartbeat|connection (reset|closed)", re.IGNORECASE)
_GRACE = 1.0  # seconds in which the other processes can say themselves what is wrong


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 30,
) -> None:
    """Join the processes of a run, before JAX computes anything; calling it again does nothing.

    It is ``jax.distributed.initialize`` with errors of one line. Without arguments, SLURM, Open
    MPI, Kubernetes and Cloud TPU say which processes there are, as JAX detects them. ``run`` and
    ``sweep`` then train on the devices of all processes, each of which calls them alike.

    Args:
        coordinator_address: ``HOST:PORT`` of process 0, which opens the port.
        num_processes: the number of processes.
        process_id: the number of this one, from 0.
        initialization_timeout: seconds to wait for the other processes.
        heartbeat_timeout: seconds after which a process that is not heard of counts as lost.

    Raises:
        UsageError: for arguments that cannot work, if nothing is detected, or after JAX's first
            computation.
        RunError: if the other processes are not there in time, or the port is taken.
    """
    from jax._src import xla_bridge  # there is no public function

    if jax.distributed.is_initialized():
        return
    if xla_bridge.backends_are_initialized():
        raise UsageError(
            "distributed comes too late: JAX has begun to compute; call "
            "jaxrl.run.distributed.initialize() before anything else"
        )
    given = (coordinator_address, num_processes, process_id)
    if None not in given:
        _check(*given)  # type: ignore[arg-type]
    # A signal ends a run between two chunks, in all processes: see jaxrl.run.signals.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method=None if None in given else "deactivate",
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        if "should be defined" not in str(error) and "must be defined" not in str(error):
            raise UsageError(f"distributed: {reason(error)}") from None
        raise UsageError(
            "distributed found no job of SLURM, Open MPI, Kubernetes or Cloud TPU; give address, "
            f"number of processes and number of this one, as --distributed {EXAMPLE}"
        ) from None
    except RuntimeError as error:
        where = coordinator_address or "the address that was detected"
        raise RunError(
            f"distributed: the processes did not meet at {where}: {reason(error)}"
        ) from None


def from_words(words: Sequence[str]) -> None:
    """Join the processes of a run, as ``--distributed`` says: no words, or ``HOST:PORT NUM ID``.

    Raises:
        UsageError: for other words.
        RunError: as ``initialize``.
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
    """Raise UsageError, in all processes, unless all of them were given the same configuration."""
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
    """Turn what JAX raises when another process has ended into a RunError of one line."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not processes.several() or isinstance(error, UsageError | RunError):
            raise
        if not _LOST.search(str(error)):
            raise
        again = "; start all again with --resume" if resumable else ""
        raise RunError(
            f"another process of this run ended or cannot be reached ({reason(error)[:120]}){again}"
        ) from error


def end(code: int) -> NoReturn:
    """End this process at once, without waiting for others as an ordinary end does.

    The first process, whose end ends all others, gives them a second to say what is wrong.
    """
    if processes.is_first():
        time.sleep(_GRACE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
