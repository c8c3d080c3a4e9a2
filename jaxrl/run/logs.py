"""Event writers: rows of metrics, shown in TensorBoard or Weights & Biases.

``metrics.jsonl`` remains the record.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxrl.errors import UsageError, nearest
from jaxrl.record.metrics_file import Row, plain
from jaxrl.require import shown


class Writer(Protocol):
    """A destination for rows in addition to ``metrics.jsonl``."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def rewind(self, step: int) -> None:
        """Hide rows of earlier sessions after ``step``; called before the first write."""

    def close(self) -> None: ...


class TensorBoardWriter:
    """Events in ``RUN_DIR/tensorboard``: each member is one run in the dashboard."""

    def __init__(self, run_dir: Path | str) -> None:
        from tensorboardX import SummaryWriter

        self._make = SummaryWriter
        self._folder = Path(run_dir) / "tensorboard"
        self._members: dict[str, Any] = {}
        self._purge_step: int | None = None  # earlier events from this step on are invalid

    def rewind(self, step: int) -> None:
        """Make dashboards drop events after ``step`` from earlier files."""
        self._purge_step = step + 1

    def write(self, rows: Sequence[Row]) -> None:
        """Add every number of the rows at their step."""
        for row in rows:
            member = _member(row)
            if member not in self._members:
                folder = str(self._folder / member)
                self._members[member] = self._make(folder, purge_step=self._purge_step)
            for name, value in _numbers(row):
                self._members[member].add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Flush and close the event files."""
        for writer in self._members.values():
            writer.close()


class WandbWriter:
    """One Weights & Biases run with metrics such as ``seed0/eval/episode_return``.

    Offline unless the environment variable ``WANDB_MODE`` says otherwise. A file in the run's
    folder stores the W&B run id, so that a resumed run continues it. Seeds added to a run form a
    separate W&B run; all its files are in ``whole``, the folder of the full run.
    """

    def __init__(
        self,
        run_dir: Path | str,
        config: Row | None = None,
        resume: bool = False,
        whole: Path | None = None,
    ):
        import wandb

        folder = Path(run_dir if whole is None else whole).absolute()
        added = "" if whole is None else "_".join(["", *map(str, (config or {})["seeds"][:1])])
        identity = folder / f"wandb_id{added}.txt"
        if not (resume and identity.exists()):
            identity.write_text(os.urandom(4).hex())
        self._run = wandb.init(
            project="jaxrl",
            dir=str(folder),
            name=folder.name + added,
            id=identity.read_text(),
            resume="allow" if resume else None,
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=plain(config or {}),
        )

    def write(self, rows: Sequence[Row]) -> None:
        """Log the rows, grouped by step."""
        steps: dict[int, dict[str, float]] = {}
        for row in rows:
            named = {f"{_member(row)}/{row['kind']}/{name}": v for name, v in _numbers(row)}
            steps.setdefault(int(row["step"]), {}).update(named)
        for step, values in steps.items():
            self._run.log(values, step=step)

    def rewind(self, step: int) -> None:
        """Do nothing: W&B itself ignores repeated steps."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


WRITERS: dict[str, Callable[..., Writer]] = {
    "tensorboard": lambda run_dir, config, resume, whole: TensorBoardWriter(whole or run_dir),
    "wandb": WandbWriter,
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_writers(log: Sequence[str] | str) -> tuple[str, ...]:
    """Return the names of event writers; a string is one name.

    Raises:
        UsageError: for an unknown writer, or one whose package is not installed.
    """
    given = (log,) if isinstance(log, str) else log
    if not isinstance(given, Iterable):
        raise UsageError(f"log is {shown(log)}; give names, as ['tensorboard']")
    names = tuple(given)
    for name in names:
        if name not in WRITERS:
            raise UsageError(f"unknown log writer '{name}'; {nearest(str(name), WRITERS)}")
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError:
            raise UsageError(
                f"log writer '{name}' needs the package {PACKAGES[name]}: pip install 'jaxrl[log]'"
            ) from None
    return names


def make_writers(
    names: Sequence[str],
    run_dir: Path | str,
    config: Row | None = None,
    resume: bool = False,
    whole: Path | None = None,
) -> list[Writer]:
    """Return the event writers with these names; raise ``UsageError`` as ``check_writers`` does.

    ``whole`` is the folder of the full run if ``run_dir`` is a part of one.
    """
    return [WRITERS[name](run_dir, config, resume, whole) for name in check_writers(names)]


def _member(row: Row) -> str:
    """Return the member's label: ``seed0``, or ``config2/seed0`` in a sweep."""
    seed = f"seed{row['seed']}"
    return f"config{row['config']}/{seed}" if "config" in row else seed


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    """Yield the names and values of a row's finite scalar metrics."""
    for name, value in plain(row).items():
        known = name in ("kind", "seed", "step", "config")
        if not known and isinstance(value, (int, float)):
            yield name, value
