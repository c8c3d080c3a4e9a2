"""The summary of a run: final returns with intervals, and speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.analysis import plot_run
from jaxrl.analysis.statistics import final_return
from jaxrl.data.scores import Reference, normalized
from jaxrl.errors import RunError, UsageError
from jaxrl.record.folder import CURVES, SUMMARY, write_json
from jaxrl.run.best import KEPT
from jaxrl.run.phases import Plan


def summarise(
    config: Mapping[str, Any],
    members: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    plan: Plan,
    clock: Mapping[str, float],
    best: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the content of ``summary.json``. Speeds are totals over all members.

    ``best`` are the evaluations of the best policies, if these are kept. ``rows`` must end with the
    last evaluation of every member, if there is an environment.
    """
    last = [row for row in rows if row["kind"] == "eval"][-len(members) :]
    returns = [row["episode_return"] for row in last] or [None] * len(members)
    position = plan.position(plan.total)
    steps, gradient_steps = (count * len(members) for count in plan.trained())
    seconds = clock["train_seconds"] or float("inf")
    summary: dict[str, Any] = {
        "algorithm": config["algorithm"],
        "env": config["env"],
        "total_steps": position.step,
        "unit": config["unit"],
        "env_steps": position.env_steps,
        "gradient_steps": position.gradient_steps,
        "seeds": list(config["seeds"]),
        "final_return": final_return(returns),
        "eval_mode": config["eval_mode"],
        "identical_episodes": identical_episodes(rows),
        "compile_seconds": round(clock["compile_seconds"], 2),
        "train_seconds": round(clock["train_seconds"], 2),
        "wall_seconds": round(clock["wall_seconds"], 2),
        "steps_per_second": round(steps / seconds, 1),
        "gradient_steps_per_second": round(gradient_steps / seconds, 2),
        "device": config["device"],
        "command": config["command"],
    }
    reference: Any = config.get("reference")
    played = evaluations(rows, len(members))
    scored = bool(reference) and played.size > 0
    if scored:
        summary["scores"] = scores(reference, played)
    if best is not None:
        pairs = zip(members, best, strict=True)
        summary["best_checkpoint"] = [member.label | {n: x[n] for n in KEPT} for member, x in pairs]
    if plan.named and played.size:
        summary["switches"] = switches(rows, len(members))
    if config["sweep"]:
        size = len(config["seeds"])
        summary["configurations"] = [
            {"sweep": sweep, "final_return": final_return(returns[i * size : (i + 1) * size])}
            for i, sweep in enumerate(config["sweep"])
        ]
        for i, entry in enumerate(summary["configurations"]):
            if scored:
                entry["scores"] = scores(reference, played[:, i * size : (i + 1) * size])
    return summary


def evaluations(rows: Sequence[Mapping[str, Any]], members: int) -> np.ndarray:
    """Return the mean returns of all evaluations ``[evaluations, members]``."""
    played = [row["episode_return"] for row in rows if row["kind"] == "eval"]
    return np.reshape(np.array(played, float), (-1, members))


def switches(rows: Sequence[Mapping[str, Any]], members: int) -> list[dict[str, Any]]:
    """Return how each phase changed the returns reached by the previous phase.

    ``dip`` is how far the worst evaluation of the phase fell below the last one before it (0 if
    none did). ``area`` is the mean return over the phase's evaluations: the area under its curve.
    """
    names = [row["phase"] for row in rows if row["kind"] == "eval"][::members]
    played, found = evaluations(rows, members), []
    for name in list(dict.fromkeys(names))[1:]:
        first = names.index(name)
        before, phase = played[first - 1], played[first : first + names.count(name)]
        dip = np.maximum(before - phase.min(axis=0), 0.0)
        found.append(
            {
                "phase": name,
                "before": final_return(before),
                "dip": final_return(dip),
                "area": final_return(phase.mean(axis=0)),
            }
        )
    return found


def scores(reference: Mapping[str, Any], played: np.ndarray) -> dict[str, Any]:
    """Return normalised scores of ``played[evaluations, members]`` under three protocols.

    ``final`` is the last evaluation, ``last_ten`` the mean of the last ten, and ``best`` the best
    of all. Choosing ``best`` takes online evaluation, which is not available in offline training.
    """
    known = Reference(**reference)
    score = normalized(played, known.random, known.expert)
    return {
        "name": known.name,
        "reference": dict(reference),
        "final": final_return(score[-1]),
        "last_ten": final_return(score[-10:].mean(axis=0)),
        "best": final_return(score.max(axis=0)),
    }


def identical_episodes(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all episodes of each member had the same return in every evaluation.

    They are then probably one episode repeated several times, not a sample of returns.
    """
    returns = [row["returns"] for row in rows if row["kind"] == "eval"]
    return bool(returns) and all(len(each) > 1 and len(set(each)) == 1 for each in returns)


def write(folder: Path, summary: Mapping[str, Any], report: Callable[[str], Any]) -> None:
    """Write ``summary.json`` and ``curves.png`` (a failure to plot is only a warning).

    Raises:
        RunError: if the summary cannot be written; a resumed run tries again.
    """
    try:
        if summary["final_return"]["iqm"] is not None:
            plot_run(folder, folder / CURVES)
    except (OSError, UsageError) as error:  # UsageError: a full disk left the metrics incomplete
        report(f"warning: {CURVES} was not drawn: {error}")
    try:
        write_json(folder / SUMMARY, summary)
    except OSError as error:
        raise RunError(
            f"the run ended, but {folder / SUMMARY} could not be written: {error.strerror}; "
            "resume it to try again"
        ) from None
