"""Sources of compared curves: run folders, and CSV files from any library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxrl._output import joined, sweep_label
from jaxrl.analysis.curves import env_label
from jaxrl.analysis.efficiency import at_steps, common_steps
from jaxrl.analysis.load import Curve, is_finished, load_config, load_curves
from jaxrl.envs import OF_ENGINE
from jaxrl.errors import UsageError, nearest

COLUMNS = ("step", "return", "seed", "env", "algorithm")  # in a CSV file


# Options of the environment that leave returns as they are, or are named in the task.
SAME_RETURNS = OF_ENGINE | {
    *("naconmax", "margin", "backend"),
    *("camera_id", "camera_name", "default_camera_config", "visual_options"),
}


class Source(NamedTuple):
    """One configuration of a run, or one algorithm and environment of a CSV file."""

    name: str  # the folder or file
    algorithm: str
    task: str  # the environment, with options that make it a different task
    curves: tuple[Curve, ...]  # all returns finite; seeds of one curve have the same steps
    in_training: bool = False  # training returns, if there was no evaluation
    unit: str = ""  # unit of steps: "env_steps", "gradient_steps"; empty if unknown
    data: str | None = None  # the checksum of its dataset
    reference: tuple[float, float] | None = None  # returns of a random policy and an expert
    agent: str = ""  # the record of the agent and its hyper-parameters
    world: Mapping[str, Any] = {}  # options of the environment that may change returns

    @property
    def curve(self) -> Curve:
        """The curve of all seeds, at the steps that all of them cover."""
        return merged(self.curves)

    @property
    def final(self) -> NDArray[np.float64]:
        """The last return of every seed, ``[n]``."""
        return np.concatenate([curve.returns[-1] for curve in self.curves])

    @property
    def sweep(self) -> dict[str, float]:
        """The swept values; empty if nothing is swept."""
        return self.curves[0].sweep


def read_run(
    run_dir: str | Path, steps: int | None = None, failed: float | None = None
) -> list[Source]:
    """Read a run as one source per configuration.

    Args:
        run_dir: the folder of a run, finished or not.
        steps: read up to these steps, interpolating returns linearly between evaluations; by
            default read to the end.
        failed: the return to use in place of a non-finite one.

    Raises:
        UsageError: if it is not a run folder, has no returns (at ``steps``), or a seed has failed
            and ``failed`` is not given.
    """
    config = load_config(run_dir)
    kind, curves = load_curves(run_dir)
    if not curves:
        raise UsageError(f"{run_dir} has no returns yet; wait for its first evaluation")
    reference: Any = config.get("reference")
    given = None if not reference else (float(reference["random"]), float(reference["expert"]))
    finished = is_finished(run_dir)
    sources = []
    for curve in curves:
        curve = curve if finished else curve.without_partial()
        if kind == "train" and len(curve.complete().steps):
            curve = curve.complete()  # a return is missing until the first episode has ended
        curve = _finite(str(run_dir), curve, steps, failed)
        source = Source(
            str(run_dir),
            str(config["algorithm"]),
            env_label(config),
            (curve,),
            kind == "train",
            config.get("unit", "env_steps"),
            (config.get("data") or {}).get("checksum"),
            given,
            json.dumps(config.get("agent"), sort_keys=True),
            _world(config),
        )
        sources.append(source)
    return sources


def _world(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's options of the environment and its time limit, if they may change returns."""
    limit = {"max_steps": config["max_steps"]} if config.get("max_steps") else {}
    options = limit | (config.get("env_options") or {})
    return {name: value for name, value in options.items() if name not in SAME_RETURNS}


def read_csv(
    path: str | Path, steps: int | None = None, failed: float | None = None
) -> list[Source]:
    """Read a CSV file from any library as one source per algorithm and environment.

    The columns ``step``, ``return``, ``seed``, ``env`` and ``algorithm`` are required, in any
    order; other columns are allowed. A row is one evaluation of one seed. Seeds evaluated at
    different steps are interpolated linearly. For ``steps`` and ``failed`` see ``read_run``.

    Raises:
        UsageError: if the file cannot be parsed; the message names the line.
        OSError: if the file cannot be opened.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except ValueError as error:  # all of pandas's are
        raise UsageError(f"csv {path} is not a CSV file: {joined(error)}") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first field as a label
        raise UsageError(
            f"csv {path} has lines with more fields than its first line names; remove the commas "
            "at their ends"
        )
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise UsageError(
            f"csv {path} has no column {', '.join(missing)}; its first line must name "
            f"{','.join(COLUMNS)}"
        )
    frame = frame[list(COLUMNS)].fillna("")
    frame = frame[(frame != "").any(axis=1)]  # the index still counts the lines
    for name in ("step", "return"):
        frame[name] = _numbers(path, name, frame[name])
    twice = frame.duplicated(["algorithm", "env", "seed", "step"])
    if twice.any():
        raise UsageError(f"csv {path} line {_line(twice)} repeats the step of its seed")
    if frame.empty:
        raise UsageError(f"csv {path} has no rows; give one for each evaluation of each seed")
    sources = []
    for (algorithm, env), group in frame.groupby(["algorithm", "env"], sort=False):
        what = f"{path}: {algorithm} on {env}"
        curves = _of_seeds(what, dict(iter(group.groupby("seed"))), steps, failed)
        sources.append(Source(str(path), str(algorithm), str(env), curves))
    return sources


def merged(curves: Sequence[Curve]) -> Curve:
    """Merge the seeds of several curves into one curve, at steps that all of them cover."""
    first, *others = curves
    if all(np.array_equal(first.steps, other.steps) for other in others):
        steps, parts = first.steps, [curve.returns for curve in curves]
    else:
        steps = common_steps(curves)
        parts = [at_steps(curve, steps) for curve in curves]
    seeds = tuple(seed for curve in curves for seed in curve.seeds)
    return Curve(first.sweep, steps, np.concatenate(parts, axis=1), seeds)


def choose(
    sides: Sequence[Sequence[Source]], where: Mapping[str, float]
) -> tuple[list[list[Source]], list[str]]:
    """Return the sources with these swept values, and notes on how they were chosen.

    Sources that do not sweep a name are kept.

    Raises:
        UsageError: for a name that is not swept, or values that leave a side empty.
    """
    swept = [source.sweep for side in sides for source in side if source.sweep]
    known = {name for sweep in swept for name in sweep}
    for name in where:
        if name not in known:
            hint = nearest(name, known) if known else "no run has a sweep"
            raise UsageError(f"where names {name}, which no run sweeps; {hint}")
    chosen = [[source for source in side if _has(source, where)] for side in sides]
    words = sweep_label(where)
    for side, kept in zip(sides, chosen, strict=True):
        if not kept:
            labels = "; ".join(dict.fromkeys(sweep_label(source.sweep) for source in side))
            raise UsageError(f"where has {words}; {side[0].name} has {labels}")
    if not swept:
        return chosen, []
    if where:
        note = f"configurations were selected by --where {words}; if for their returns, scores are "
        return chosen, [note + "biased upwards: run them again with new seeds"]
    note = "every configuration of a sweep is its own group; the best score of several is biased "
    return chosen, [note + "upwards: see p (Holm), and run that configuration with new seeds"]


def _has(source: Source, where: Mapping[str, float]) -> bool:
    sweep = source.sweep
    return all(math.isclose(sweep[n], v, rel_tol=1e-9) for n, v in where.items() if n in sweep)


def _of_seeds(
    what: str, seeds: Mapping[str, Any], steps: int | None, failed: float | None
) -> tuple[Curve, ...]:
    """Return a curve for each of several frames with columns step and return."""
    found = []
    for seed, rows in seeds.items():
        rows = rows.sort_values("step")
        returns = rows["return"].to_numpy(float)[:, None]
        curve = Curve({}, rows["step"].to_numpy(np.int64), returns, (seed,))
        found.append(_finite(what, curve, steps, failed))
    return tuple(found)


def _finite(what: str, curve: Curve, steps: int | None, failed: float | None) -> Curve:
    """Return the finite part of a curve, up to the given steps."""
    if steps is not None:
        first, last = curve.steps[0], curve.steps[-1]
        if not first <= steps <= last:
            raise UsageError(
                f"steps is {steps}, but {what} has returns from step {first} to {last}; give one "
                "of these"
            )
        # Up to the first evaluation at these steps or later.
        kept = curve.steps <= curve.steps[curve.steps >= steps][0]
        curve = curve._replace(steps=curve.steps[kept], returns=curve.returns[kept])
    if failed is not None:
        returns = np.where(np.isfinite(curve.returns), curve.returns, failed)
        curve = curve._replace(returns=returns)
    lost = ~np.isfinite(curve.returns[-1])
    if lost.any():
        seeds = ", ".join(str(s) for s, x in zip(curve.seeds, lost, strict=True) if x)
        raise UsageError(
            f"{what} has no finite return of seed {seeds} at step {curve.steps[-1]:,}; leaving it "
            "out would be biased: say what it counts as, such as --failed 0"
        )
    curve = curve.complete()
    if steps is not None and curve.steps[-1] > steps:
        inside = np.append(curve.steps[curve.steps < steps], steps)
        curve = curve._replace(steps=inside, returns=at_steps(curve, inside))
    return curve


def _numbers(path: str | Path, name: str, column: Any) -> Any:
    """Convert a text column to numbers; an empty return counts as failed."""
    import pandas as pd

    texts = column.str.strip()
    numbers = pd.to_numeric(texts, errors="coerce").astype(float)
    lost = texts.str.lower().isin(["", "nan", "inf", "-inf"])
    wrong = numbers.isna() & ~lost if name == "return" else numbers % 1 != 0  # so is NaN's
    if wrong.any():
        kind = "number" if name == "return" else "whole number"
        raise UsageError(
            f"csv {path} line {_line(wrong)}: {name} is {texts[wrong].iloc[0]!r}; give a {kind}"
        )
    return numbers


def _line(rows: Any) -> int:
    """Return the line number of the first of some rows; the header is line 1."""
    return int(rows.index[rows][0]) + 2
