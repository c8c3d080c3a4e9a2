"""The folder of a run: its lock, its configuration, and the rules for resuming in it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxrl.errors import RunError, UsageError
from jaxrl.record.names import check_path

CONFIG, METRICS, TIMING = "config.json", "metrics.jsonl", "timing.jsonl"
CHECKPOINTS, SUMMARY, CURVES = "checkpoints", "summary.json", "curves.png"
LOCK = ".lock"
ADDED = "added"  # the folder of the run that trains added seeds
JOINED = "joined"  # the folder of a complete record that is about to replace the run's

# Options that may change on resume: length, evaluation, logging, scores in the summary.
FREE = {
    "total_steps",
    "eval_every",
    "eval_episodes",
    "eval_mode",
    "log_every",
    "checkpoint_every",
    "keep_best",
    "max_skipped",
    "max_nonfinite",
    "log",
    "reference",
}
# Entries that are only recorded; a change is reported, since bits may differ.
RECORDED = {"placement", "device", "versions", "git", "command"}
_SHOWN = 6  # maximum differences listed in a message


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten ``{"agent": {"gamma": 0.9}}`` to ``{"agent.gamma": 0.9}``."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        items |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return items


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], names: set[str] | None
) -> list[str]:
    """List the entries that differ, each as ``"agent.gamma (0.9, now 0.8)"``.

    Only ``names`` are compared; None compares all but ``FREE`` and ``RECORDED``.
    """

    def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
        outside = FREE | RECORDED
        keep = {k: v for k, v in config.items() if (k in names if names else k not in outside)}
        return flat(_without_repetition(keep))

    a, b = relevant(old), relevant(new)
    missing = "absent"
    return [
        f"{name} ({a.get(name, missing)}, now {b.get(name, missing)})"
        for name in sorted(a.keys() | b.keys())
        if a.get(name, missing) != b.get(name, missing)
    ]


def _few(changed: list[str], command: str | None) -> str:
    """Join differences, the environment's first; if many, a few and the run's original command.

    Many differ if the run's own options are not given again.
    """
    first = sorted(changed, key=lambda each: not each.startswith("env ("))
    if len(first) <= _SHOWN:
        return "; ".join(first)
    started = f"; it was started as: {command}" if command else ""
    return f"{'; '.join(first[:_SHOWN])}; and {len(first) - _SHOWN} more{started}"


def _without_repetition(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without entries that repeat the last phase, whose length is free."""
    if "phases" not in config:
        return dict(config)
    *earlier, last = config["phases"]
    last = {name: value for name, value in last.items() if name != "steps"}
    own = {name: value for name, value in config.items() if name not in last}
    return own | {"phases": {str(i): phase for i, phase in enumerate([*earlier, last])}}


def finish_joining(run: Path) -> None:
    """Move a joined record to its place in ``run``; the caller holds the lock.

    After a crash, ``mend`` finishes the move.
    """
    joined = run / JOINED
    if (joined / CHECKPOINTS).is_dir():
        if (run / CHECKPOINTS).is_dir():
            os.rename(run / CHECKPOINTS, joined / "replaced")
        os.rename(joined / CHECKPOINTS, run / CHECKPOINTS)
    for name in (SUMMARY, CURVES):  # for fewer seeds; the continuing session writes new ones
        if (joined / CONFIG).exists():
            (run / name).unlink(missing_ok=True)
    for name in (METRICS, TIMING, CONFIG):
        if (joined / name).exists():
            os.replace(joined / name, run / name)
    for name in (ADDED, JOINED):
        shutil.rmtree(run / name, ignore_errors=True)


def mend(run: Path) -> None:
    """Finish an interrupted join in ``run``, if there is one; call this before resuming.

    Raises:
        RunError: if another process is writing in the folder.
    """
    if (run / JOINED).is_dir():
        with _locked(run.absolute()):
            finish_joining(run)


def _locked(path: Path) -> TextIO:
    """Return the lock of the folder ``path``; it is held until closed."""
    lock = open(path / LOCK, "a+")  # noqa: SIM115 (open for the run)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise RunError(
            f"run-dir {path} is in use by process {owner}; wait for it, or give another"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


class RunFolder:
    """The folder of one run, locked against other processes while this object is open.

    ``path`` gets a ``config.json``. With ``resume`` it must contain one that agrees with
    ``config``, and ``write_config`` updates it.

    Raises:
        UsageError: if the folder is not empty; with ``resume``, if there is nothing to resume or
            the configuration differs (the message names the options).
        RunError: if another process is writing in the folder.
    """

    def __init__(
        self,
        path: Path | str,
        config: Mapping[str, Any],
        resume: bool,
        report: Callable[[str], Any] = print,
    ) -> None:
        self.path = Path(path).absolute()
        check_path("run-dir", self.path)
        self.config = json.loads(json.dumps(config))
        self._lock: TextIO | None = None
        try:
            if resume:
                self._check_resume(report)
            else:
                self._check_new()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)
            for stray in self.path.glob(".*.json-*"):  # left by a process killed in write_json
                stray.unlink()
            if not resume:
                self.write_config()
        except OSError as error:
            self.close()
            raise UsageError(
                f"run-dir {self.path} cannot be used ({error.strerror}); give another --run-dir"
            ) from None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    def write_config(self) -> None:
        """Write this session's configuration; a resumed run does so once resuming is certain."""
        write_json(self.path / CONFIG, self.config)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check_new(self) -> None:
        if (self.path / CONFIG).exists():
            raise UsageError(
                f"run-dir {self.path} already holds a run; continue it with --resume, "
                "or give another --run-dir"
            )
        taken = self.path.is_dir() and any(
            path.name != LOCK and not path.name.startswith(f".{CONFIG}-")
            for path in self.path.iterdir()
        )
        if taken or (self.path.exists() and not self.path.is_dir()):
            raise UsageError(f"run-dir {self.path} is not an empty folder; give another --run-dir")

    def _check_resume(self, report: Callable[[str], Any]) -> None:
        try:
            stored = json.loads((self.path / CONFIG).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"run-dir {self.path} holds nothing to resume; start it without --resume"
            ) from None
        except ValueError:
            stored = None
        if not isinstance(stored, dict):
            raise UsageError(f"{self.path / CONFIG} is not a JSON object; nothing can be resumed")
        changed = differences(stored, self.config, None)
        if changed:
            raise UsageError(
                f"run-dir {self.path} holds a run with another configuration: "
                f"{_few(changed, stored.get('command'))}"
            )
        recorded = differences(stored, self.config, RECORDED - {"command", "git"})
        if recorded:
            report(f"note: resumed under another {'; '.join(recorded)}: results may differ in bits")
