"""Where metrics go: an append-only file, optional event writers, a progress bar.

Everything takes the same rows: ``{"kind": "train" | "eval", "seed": 0, "step": 20480, ...}``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxrl.errors import UsageError, nearest

Row = Mapping[str, Any]
PLAIN_SECONDS = 10.0  # between two lines of progress where nothing can be redrawn


class MetricsFile:
    """An append-only file of JSON rows that can be cut back to what a checkpoint knows of.

    Identical values give identical bytes: keys stay in the order given, floats are written by
    ``repr`` in float64, NaN and infinities as ``null``.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open for the run)
        self._pending = b""  # what a full disk did not take yet
        self._end_torn_line()

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows of numbers, strings, lists, dictionaries, numpy or jax scalars and arrays.

        Raises:
            OSError: on a full disk; what is missing is written with what comes next.
        """
        lines = [json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) for row in rows]
        self._pending += "".join(f"{line}\n" for line in lines).encode()
        self._flush()

    def sync(self) -> int:
        """Bring everything to the disk; returns the size in bytes, for ``truncate`` on resume."""
        self._flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Forget what was written after ``sync`` returned ``size``; warns if even that is lost."""
        found = os.fstat(self._file.fileno()).st_size
        if found < size:
            warnings.warn(
                f"{self.path} has {found} bytes of the {size} written before the checkpoint: "
                "its last rows are lost",
                stacklevel=2,
            )
            return
        self._file.truncate(size)

    def close(self) -> None:
        """Write what is pending, and close."""
        with self._file:
            self._flush()

    def _flush(self) -> None:
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def _end_torn_line(self) -> None:
        """Cut off the unfinished row of a killed process, so that the next row stands alone."""
        self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """What JSON can hold, of scalars and arrays of any library."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "dtype"):
        array = np.asarray(value)
        exact = array.dtype.kind in "biuSU"
        return _plain(array.tolist() if exact else array.astype(np.float64).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- event writers


class Writer(Protocol):
    """Shows rows elsewhere; ``metrics.jsonl`` remains the record."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def forget(self, step: int) -> None:
        """Hide what an earlier sitting wrote behind ``step``; called before the first write."""

    def close(self) -> None: ...


class TensorBoardWriter:
    """Events in ``RUN_DIR/tensorboard``, one run of the dashboard for each member."""

    def __init__(self, run_dir: Path | str) -> None:
        from tensorboardX import SummaryWriter

        self._make = SummaryWriter
        self._folder = Path(run_dir) / "tensorboard"
        self._members: dict[str, Any] = {}
        self._purged: int | None = None  # the first step of which earlier events are void

    def forget(self, step: int) -> None:
        """Have dashboards drop the events of earlier files behind ``step``."""
        self._purged = step + 1

    def write(self, rows: Sequence[Row]) -> None:
        """Add every number of the rows at their step."""
        for row in rows:
            member = _member(row)
            if member not in self._members:
                folder = str(self._folder / member)
                self._members[member] = self._make(folder, purge_step=self._purged)
            for name, value in _numbers(row):
                self._members[member].add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Flush and close the event files."""
        for writer in self._members.values():
            writer.close()


class WandbWriter:
    """One Weights & Biases run with metrics such as ``seed0/eval/episode_return``.

    Offline unless the environment's ``WANDB_MODE`` says otherwise. The run is named after its
    folder, so that a resumed one continues it.
    """

    def __init__(self, run_dir: Path | str, config: Row | None = None, resume: bool = False):
        import wandb

        folder = Path(run_dir).absolute()
        identity = folder / "wandb_id.txt"
        if not (resume and identity.exists()):
            identity.write_text(os.urandom(4).hex())
        self._run = wandb.init(
            project="jaxrl",
            dir=str(folder),
            name=folder.name,
            id=identity.read_text(),
            resume="allow" if resume else None,
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=_plain(config or {}),
        )

    def write(self, rows: Sequence[Row]) -> None:
        """Log the rows, those of one step together."""
        steps: dict[int, dict[str, float]] = {}
        for row in rows:
            named = {f"{_member(row)}/{row['kind']}/{name}": v for name, v in _numbers(row)}
            steps.setdefault(int(row["step"]), {}).update(named)
        for step, values in steps.items():
            self._run.log(values, step=step)

    def forget(self, step: int) -> None:
        """Nothing: W&B itself takes no step twice."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


WRITERS: dict[str, Callable[..., Writer]] = {
    "tensorboard": lambda run_dir, config, resume: TensorBoardWriter(run_dir),
    "wandb": WandbWriter,
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_writers(names: Sequence[str]) -> None:
    """Raise ``UsageError`` for an unknown writer, or one whose package is not installed."""
    for name in names:
        if name not in WRITERS:
            raise UsageError(f"unknown log writer '{name}'; {nearest(name, WRITERS)}")
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError:
            raise UsageError(
                f"log writer '{name}' needs the package {PACKAGES[name]}: pip install 'jaxrl[log]'"
            ) from None


def make_writers(
    names: Sequence[str], run_dir: Path | str, config: Row | None = None, resume: bool = False
) -> list[Writer]:
    """The event writers of these names; raises ``UsageError`` for an unknown or missing one."""
    check_writers(names)
    return [WRITERS[name](run_dir, config, resume) for name in names]


def _member(row: Row) -> str:
    """``seed0``, or ``config2/seed0`` in a swept run."""
    seed = f"seed{row['seed']}"
    return f"config{row['config']}/{seed}" if "config" in row else seed


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    """The finite scalar metrics of a row."""
    for name, value in _plain(row).items():
        known = name in ("kind", "seed", "step", "config")
        if not known and isinstance(value, (int, float)):
            yield name, value


# --- progress


class ProgressBar:
    """A line that shows how far the run is: steps, steps/s, latest return, time left.

    Where no terminal or notebook can redraw it, a plain line at most every 10 seconds and at the
    end. Make it when training begins: the time left is judged by what has passed since then.
    """

    def __init__(
        self, total_steps: int, start_step: int = 0, label: str = "", quiet: bool = False
    ) -> None:
        self._total, self._first, self._label = total_steps, start_step, label
        self._quiet = quiet
        self._began = self._printed = time.monotonic()
        self._console = Console(file=sys.stderr)
        self._progress: Progress | None = None
        if not quiet and _can_redraw(self._console):
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),  # takes what the texts leave
                TextColumn("{task.fields[status]}", markup=False),
                console=self._console,
            )
            self._task = self._progress.add_task(
                label, total=total_steps, completed=start_step, status="starting"
            )
            self._progress.start()

    def update(self, step: int, speed: float, episode_return: float | None = None) -> None:
        """Every member has reached ``step``; all of them together train ``speed`` steps/s."""
        if self._quiet:
            return
        now = time.monotonic()
        rate = (step - self._first) / max(now - self._began, 1e-9)
        status = f"{_short(step)}/{_short(self._total)} steps, {_short(speed)} steps/s"
        if episode_return is not None:
            status += f", return {episode_return:.1f}"
        if rate:
            status += f", {_duration(max(self._total - step, 0) / rate)} left"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=status)
        elif now - self._printed >= PLAIN_SECONDS or step >= self._total:
            self._printed = now
            self.message(f"{self._label} {status}".strip())

    def message(self, text: str) -> None:
        """Print one line above the bar."""
        if not self._quiet:
            line = " ".join(text.split())
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        if self._progress is not None:
            self._progress.stop()


def _can_redraw(console: Console) -> bool:
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def _short(number: float) -> str:
    """``9,999``, ``20.5k``, ``1.25M``."""
    if number < 9999.5:
        return f"{number:,.0f}"
    for unit, size in {"k": 1e3, "M": 1e6, "G": 1e9}.items():
        if number < 999.5 * size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return f"{number / 1e12:.3g}T"


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(min(seconds, 1e8)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
