"""A run's folder: who may write in it, and whether a run may continue in it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from jaxrl.errors import RunError, UsageError

CONFIG = "config.json"
LOCK = ".lock"

# What may change between two sittings of a run: how long it is, and how it is watched.
FREE = {
    "total_steps",
    "eval_every",
    "eval_episodes",
    "log_every",
    "checkpoint_every",
    "max_skipped",
    "max_nonfinite",
    "log",
}
# What is only recorded; another value is worth a note, since then bits may differ.
RECORDED = {"placement", "device", "versions", "git", "command"}

PACKAGES = ("jaxrl", "jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "gymnax")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
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
    """``{"agent": {"clip": 0.2}}`` as ``{"agent.clip": 0.2}``."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        items |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return items


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], names: set[str] | None
) -> list[str]:
    """What differs outside ``FREE`` and ``RECORDED``, or within ``names``.

    Each as ``"agent.clip (0.2, now 0.3)"``.
    """

    def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
        outside = FREE | RECORDED
        keep = {k: v for k, v in config.items() if (k in names if names else k not in outside)}
        return flat(keep)

    a, b = relevant(old), relevant(new)
    missing = "absent"
    return [
        f"{name} ({a.get(name, missing)}, now {b.get(name, missing)})"
        for name in sorted(a.keys() | b.keys())
        if a.get(name, missing) != b.get(name, missing)
    ]


class RunFolder:
    """The folder of one run, locked against a second process for as long as this object is open.

    ``path`` gets a ``config.json``; with ``resume`` it must hold one that agrees with ``config``,
    and that ``write_config`` brings up to date.

    Raises:
        UsageError: if there is already something in the folder; with ``resume``, if there is
            nothing to resume or the configuration differs (naming the options).
        RunError: if another process is writing in it.
    """

    def __init__(
        self,
        path: Path | str,
        config: Mapping[str, Any],
        resume: bool,
        report: Callable[[str], Any] = print,
    ) -> None:
        self.path = Path(path).absolute()
        self.config = json.loads(json.dumps(config))
        self._lock: TextIO | None = None
        try:
            if resume:
                self._check_resume(report)
            else:
                self._check_new()
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            for stray in self.path.glob(".*.json-*"):  # of a process killed within write_json
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
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def write_config(self) -> None:
        """Record this sitting's configuration; of a resumed run, once it is sure to go on."""
        write_json(self.path / CONFIG, self.config)

    def close(self) -> None:
        """Let others have the folder."""
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
                f"run-dir {self.path} holds a run with another configuration: {'; '.join(changed)}"
            )
        recorded = differences(stored, self.config, RECORDED - {"command", "git"})
        if recorded:
            report(f"note: resumed under another {'; '.join(recorded)}: results may differ in bits")

    def _acquire(self) -> None:
        lock = open(self.path / LOCK, "a+")  # noqa: SIM115 (it stays open for the run)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise RunError(
                f"run-dir {self.path} is in use by process {owner}; wait for it, or give another"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock


def circumstances() -> dict[str, Any]:
    """What a run should record of where it ran: device, versions, git commit, command."""
    import jax

    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = jax.local_devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "versions": versions,
        "git": _git_commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _git_commit() -> str | None:
    """The commit that the working directory's repository is at, if any."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
