"""A run's folder in a file system shared by all processes of the run.

The first process locks the folder and writes in it; the others only read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxrl import processes
from jaxrl.errors import UsageError
from jaxrl.record.folder import CONFIG, RunFolder

_PATIENCE = 5.0  # seconds; a network file system may show a new file a little later


class ReadFolder(RunFolder):
    """The folder of a run that another process writes to."""

    def __init__(self, path: Path | str, config: Mapping[str, Any]) -> None:
        self.path = Path(path).absolute()
        self.config = json.loads(json.dumps(config))
        self._lock = None

    def write_config(self) -> None:
        """Do nothing: the first process writes it."""


def open_folder(
    path: Path | str,
    config: Mapping[str, Any],
    resume: bool,
    report: Callable[[str], Any] = print,
) -> RunFolder:
    """Open the folder of a run in all its processes, as ``RunFolder`` does in one process.

    Raises:
        UsageError, RunError: as in ``RunFolder``, in all processes; also if one cannot see the
            folder.
    """
    opened: list[RunFolder] = []
    processes.from_first(lambda: opened.append(RunFolder(path, config, resume, report)))
    folder = opened[0] if opened else ReadFolder(path, config)
    if processes.several():
        _check_shared(folder)
    return folder


def _check_shared(folder: RunFolder) -> None:
    """Raise UsageError in all processes unless all of them see the folder."""
    until = time.monotonic() + _PATIENCE
    while not (folder.path / CONFIG).exists() and time.monotonic() < until:
        time.sleep(0.1)
    seen = processes.gathered((folder.path / CONFIG).exists())
    if not all(seen):
        folder.close()
        raise UsageError(
            f"run-dir {folder.path} is not there in process {seen.index(False)}; give a folder of "
            "a file system that all hosts share"
        )
