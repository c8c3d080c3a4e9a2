"""Arrays in files, written and read by orbax in this process alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl import processes
from jaxrl.record import manifest as manifests
from jaxrl.record.names import plainly_named


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Import orbax (0.4 s) and silence it: it logs 60 lines for an error that it also raises."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield ocp
    finally:
        logger.setLevel(level)


def _checkpointer(ocp: Any) -> Any:
    """Return an orbax checkpointer that writes here and does not wait for other processes."""
    if not processes.several():
        return ocp.PyTreeCheckpointer()
    own = processes.index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process-{own}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by path into ``folder``, which must not exist."""
    filled = {path: array for path, array in arrays.items() if array.size}  # orbax refuses empty
    if filled:
        with (
            plainly_named(folder.parent) as parent,
            _orbax() as ocp,
            _checkpointer(ocp) as checkpointer,
        ):
            checkpointer.save(parent / folder.name, filled)


def read_arrays(folder: Path, leaves: dict[str, dict]) -> dict[str, np.ndarray]:
    """Restore exactly these leaves and verify the checksum of each."""
    arrays, filled = {}, {}
    for path, leaf in leaves.items():
        if 0 in leaf["shape"]:
            arrays[path] = np.zeros(leaf["shape"], "uint32" if "impl" in leaf else leaf["dtype"])
        else:
            filled[path] = 0
    if filled:
        with (
            plainly_named(folder) as folder,
            _orbax() as ocp,
            _checkpointer(ocp) as checkpointer,
        ):
            as_numpy = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in filled}
            args = ocp.args.PyTreeRestore(filled, restore_args=as_numpy, partial_restore=True)
            arrays.update(checkpointer.restore(folder, args=args))
    for path, leaf in leaves.items():
        manifests.check_array(path, leaf, arrays[path])
    return arrays
