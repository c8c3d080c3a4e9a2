"""Readers of run folders, for finished and unfinished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxrl._output import sweep_label
from jaxrl.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

RETURNS = ("kind", "seed", "step", "episode_return")  # in every metrics row
TIMING = ("step", "seconds", "steps_per_second")


class Curve(NamedTuple):
    """The returns of one configuration: steps ``[T]``, returns ``[T, seeds]`` (NaN if missing)."""

    sweep: dict[str, float]  # the swept values; empty if nothing is swept
    steps: NDArray[np.int64]
    returns: NDArray[np.float64]
    seeds: tuple[int | str, ...] = ()  # for the columns of returns; empty if unknown
    partial: bool = False  # the last step has no rows of some seeds, as after a kill

    @property
    def label(self) -> str:
        """The swept values as ``"learning_rate=0.001"``, or an empty string."""
        return sweep_label(self.sweep)

    def without_partial(self) -> Curve:
        """Drop the last step if it is partial. A seed that diverged has a row, and is kept."""
        if not self.partial:
            return self
        return self._replace(steps=self.steps[:-1], returns=self.returns[:-1], partial=False)

    def complete(self) -> Curve:
        """Keep the steps at which every seed has a return; a mean over fewer would be biased."""
        whole = np.isfinite(self.returns).all(axis=1)
        return self._replace(steps=self.steps[whole], returns=self.returns[whole])


def load(run_dir: str | Path, kind: str | None = None) -> DataFrame:
    """Load a run's metrics, one row per chunk and member; ``kind`` is "train", "eval" or both.

    Columns are the names in ``metrics.jsonl``; swept values are columns such as
    ``sweep.learning_rate``. Non-finite numbers are NaN. An incomplete last line left by a killed
    process is skipped.

    Raises:
        UsageError: if ``run_dir`` is not a run folder, a line is damaged, or ``kind`` is unknown.
    """
    if kind not in (None, "train", "eval"):
        raise UsageError(f"kind is '{kind}'; choose train or eval, or None for both")
    load_config(run_dir)
    path = Path(run_dir) / "metrics.jsonl"
    kept = Path(run_dir) / "evaluations.jsonl"
    rows = _rows(kept if kept.exists() and not path.exists() else path, RETURNS)
    return _frame([flat(row) for row in rows if kind in (None, row["kind"])], RETURNS)


def load_timing(run_dir: str | Path) -> DataFrame:
    """Load a run's timing: columns step, seconds (of training so far), steps_per_second.

    Raises:
        UsageError: as ``load``.
    """
    load_config(run_dir)
    return _frame(_rows(Path(run_dir) / "timing.jsonl", TIMING), TIMING)


def load_config(run_dir: str | Path) -> dict[str, Any]:
    """Load ``config.json`` of a run: every option and hyper-parameter.

    Raises:
        UsageError: if ``run_dir`` is not a run folder or the file is damaged.
    """
    return _read_json(Path(run_dir), "config.json", ("algorithm", "env"))


def load_summary(run_dir: str | Path) -> dict[str, Any] | None:
    """Load a run's ``summary.json``; None if it does not exist yet.

    Raises:
        UsageError: as ``load_config``.
    """
    load_config(run_dir)
    if not (Path(run_dir) / "summary.json").exists():
        return None
    names = ("final_return", "total_steps", "steps_per_second")
    return _read_json(Path(run_dir), "summary.json", names)


def is_finished(run_dir: str | Path) -> bool:
    """Whether a run has reached its end. An extended run still has its first summary.

    Raises:
        UsageError: as ``load_config``.
    """
    summary, timing = load_summary(run_dir), load_timing(run_dir)
    reached = 0 if timing.empty else int(timing["step"].iloc[-1])
    return summary is not None and summary["total_steps"] >= reached


def load_curves(run_dir: str | Path) -> tuple[str, list[Curve]]:
    """Return ``"eval"`` and every configuration's evaluation returns.

    For a run that was never evaluated, return ``"train"`` and the training returns; a seed without
    a finished episode in a chunk keeps its return from the previous chunk.

    Raises:
        UsageError: as ``load``.
    """
    everything = load(run_dir)
    frame = everything[everything["kind"] == "eval"]
    kind = "train" if frame.empty else "eval"
    if frame.empty:
        frame = everything
    groups = frame.groupby("config") if "config" in frame else [(0, frame)]
    return kind, [_curve(group, kind) for _, group in groups if not group.empty]


def load_switches(run_dir: str | Path) -> dict[str, int]:
    """Return the steps at which all phases except the first began; empty without phases.

    Raises:
        UsageError: as ``load``.
    """
    frame = load(run_dir)
    if "phase" not in frame:
        return {}
    last = frame.groupby("phase", sort=False)["step"].max()
    return {str(name): int(step) for name, step in zip(last.index[1:], last.iloc[:-1], strict=True)}


def _curve(group: DataFrame, kind: str) -> Curve:
    swept = [column for column in group if column.startswith("sweep.")]
    sweep = {column.removeprefix("sweep."): group[column].iloc[0] for column in swept}
    unique = group.drop_duplicates(["step", "seed"], keep="last")
    table = unique.pivot(index="step", columns="seed", values="episode_return").astype(float)
    table = table.ffill() if kind == "train" else table
    seeds = tuple(map(int, table.columns))
    last = (unique["step"] == table.index[-1]).sum()
    partial = bool(len(table) > 1 and last < len(seeds))
    return Curve(sweep, table.index.to_numpy(), table.to_numpy(), seeds, partial)


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a table row; swept values are columns such as ``sweep.learning_rate``."""
    swept = {f"sweep.{name}": value for name, value in row.get("sweep", {}).items()}
    return {name: value for name, value in row.items() if name != "sweep"} | swept


def _rows(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Parse the complete lines of a file (if it exists); each is an object with these names."""
    *lines, _torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line) or {}
        if not row.keys() >= set(names) or not isinstance(row.get("sweep", {}), dict):
            raise UsageError(
                f"{path} line {number} is damaged: it must be a JSON object with "
                f"{', '.join(names)}; repair or delete the line"
            )
        rows.append(row)
    return rows


def _parse(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a text, or None."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _frame(rows: list[dict[str, Any]], columns: Sequence[str]) -> DataFrame:
    """Return a frame; a column that is null everywhere is numeric (NaN) too."""
    import pandas as pd

    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns))
    return frame.astype({name: float for name in frame if frame[name].isna().all()})


def _read_json(run_dir: Path, name: str, needed: Sequence[str]) -> dict[str, Any]:
    path = run_dir / name
    try:
        content = _parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{run_dir} is not a run folder (it has no {name}); give the --run-dir of a run"
        ) from None
    if content is None:
        raise UsageError(f"{path} is not a JSON object; was it truncated or edited?")
    missing = [each for each in needed if each not in content]
    if missing:
        raise UsageError(f"{path} has no {', '.join(missing)}; is it the {name} of a run?")
    return content
