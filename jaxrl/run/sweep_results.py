"""The results of a sweep: its table, the reliability of its best score, its cost, and figures."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxrl.analysis.statistics import final_return
from jaxrl.errors import RunError
from jaxrl.record.folder import SUMMARY, write_json
from jaxrl.record.metrics_file import plain
from jaxrl.run.halving import cost
from jaxrl.run.legs import Outcome
from jaxrl.run.pbt import PBT, Lineage, schedule
from jaxrl.run.ranking import configuration_score, rank_key, selection_bias
from jaxrl.run.sweep_plans import Course

TABLE, PICTURE, LINEAGE = "table.csv", "heat_map.png", "lineage.json"
Row = dict[str, Any]


class Trained(NamedTuple):
    """The members ``[S]`` of one configuration, in the order of the seeds."""

    scores: NDArray[np.float64]
    final: NDArray[np.float64]
    diverged: NDArray[np.bool_]


class Best(NamedTuple):
    """The best configuration of a sweep; with PBT the best member and its schedule of values."""

    variant: int
    configuration: dict[str, float]
    configuration_index: int
    trained: Trained
    member: tuple[Lineage, int, int] | None  # lineage, slot and population


def of_configuration(outcomes: Sequence[Outcome], index: int) -> Trained:
    """Return the members of a configuration, possibly trained in several legs."""
    columns: list[list[float]] = [[], [], []]
    for outcome in outcomes:
        for row, (c, _) in enumerate(outcome.leg.members):
            if c == index:
                for column, values in zip(columns, outcome[1:4], strict=True):
                    column.append(values[row])
    scores, final, diverged = columns
    return Trained(np.array(scores), np.array(final), np.array(diverged, bool))


def table_of_rungs(course: Course, rungs: Sequence[tuple]) -> list[Row]:
    """Return a row per candidate: the last rung first, sorted by score within a rung."""
    rows = []
    known: set[int] = set()
    for k in reversed(range(len(rungs))):
        alive, _, found = rungs[k]
        ranked = [_row(course, i, k, found[i], len(rungs)) for i in alive if i not in known]
        known |= set(alive)
        rows += sorted(ranked, key=rank_key, reverse=True)
    return [{"rank": i + 1, **row} for i, row in enumerate(rows)]


def _row(course: Course, candidate: int, rung: int, trained: Trained, rungs: int) -> Row:
    variant, index = course.plans.candidates[candidate]
    lane = course.lanes[variant]
    steps = lane.full.position(course.ends[variant][rung]).step
    return {
        **lane.variant.choices,
        **course.plans.configurations[index],
        **configuration_score(trained.scores),
        "final_mean": float(np.mean(trained.final)),
        "seeds": len(trained.scores),
        "diverged": int(trained.diverged.sum()),
        **({"rung": rung} if rungs > 1 else {}),
        "steps": steps,
        "scores": trained.scores.tolist(),
    }


def table_of_populations(course: Course) -> tuple[list[Row], Best]:
    """Return a row per member of all populations, sorted by score, and the best member."""
    rows, members = [], []
    for v, outcome in course.outcomes:
        populations = len(outcome.leg.seeds)
        for row, (slot, seed) in enumerate(outcome.leg.members):
            population = row % populations
            copies = sum(each["parents"][slot][population] != slot for each in outcome.lineage)
            path = schedule(outcome.lineage, course.plans.configurations, slot, population)
            began = {f"first_{name}": value for name, value in path.first.items()}
            rows.append(
                {
                    **course.lanes[v].variant.choices,
                    "population": seed,
                    "member": slot,
                    **outcome.values[row],
                    **began,
                    "score": float(outcome.scores[row]),
                    "final_mean": float(outcome.final[row]),
                    "diverged": int(outcome.diverged[row]),
                    "copies": copies,
                    "steps": course.lanes[v].full.position(outcome.leg.ends).step,
                }
            )
            members.append((v, outcome, row, population))
    order = np.argsort([-row["score"] for row in rows], kind="stable")
    v, outcome, row, population = members[order[0]]
    slot = outcome.leg.members[row][0]
    trained = Trained(outcome.scores[row : row + 1], outcome.final[row : row + 1],
                      outcome.diverged[row : row + 1])  # fmt: skip
    best = Best(v, dict(outcome.values[row]), slot, trained, (outcome.lineage, slot, population))
    return [{"rank": i + 1, **rows[j]} for i, j in enumerate(order)], best


def summarise(
    course: Course,
    table: Sequence[Row],
    best: Best,
    confirmed: Outcome | None,
    alone: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Return the content of ``summary.json``."""
    plans, lane, config = course.plans, course.lanes[best.variant], course.config()
    entry = {name: value for name, value in table[0].items() if name != "scores"}
    chosen: dict[str, Any] = {"row": entry, "candidates": len(table)}
    if best.member is None:
        chosen["selection_bias_at_most"] = selection_bias(table[0], len(table))
        if plans.command is not None:
            chosen["command"] = plans.command(lane.variant, best.configuration)
    else:
        chosen |= _schedule(course, best)
    if confirmed is not None:
        chosen["confirmed"] = {"seeds": confirmed.leg.seeds, **final_return(confirmed.final)}
    summary: dict[str, Any] = plain(
        {
            "kind": "sweep",
            "method": config["method"],
            "configurations": len(plans.configurations),
            "seeds": plans.seeds,
            "best": chosen,
            "cost": _cost(course, best.variant, confirmed, alone),
            "device": config["device"],
            "command": config["command"],
        }
    )
    return summary


def _schedule(course: Course, best: Best) -> dict[str, Any]:
    """Return the values that led to the best member, and the best member of every population."""
    assert best.member is not None
    lineage, slot, population = best.member
    path = schedule(lineage, course.plans.configurations, slot, population)
    lane = course.lanes[best.variant]
    steps = [{"step": 0, **path.first}]
    steps += [{"step": lane.full.position(i).step, **v} for i, v in path.later.items()]
    best_of_each = []
    for _, outcome in course.outcomes:
        populations = len(outcome.leg.seeds)
        scores = outcome.scores.reshape(-1, populations)
        final = outcome.final.reshape(-1, populations)
        best_of_each += [float(final[scores[:, p].argmax(), p]) for p in range(populations)]
    return {
        "schedule": steps,
        "populations": final_return(best_of_each),  # the best member of each
    }


def _cost(
    course: Course, variant: int, confirmed: Outcome | None, alone: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return the cost of the sweep. Seconds cover all sessions; ``variant`` is the best one's."""
    shapes = {(v, len(outcome.leg.members)) for v, outcome in course.outcomes}
    outcomes = [outcome for _, outcome in course.outcomes]
    if confirmed is not None:
        outcomes.append(confirmed)
        shapes.add((variant, len(confirmed.leg.members)))
    ladder, plans = course.ladder, course.plans
    sums = {
        name: round(sum(outcome.summary[name] for outcome in outcomes), 2)
        for name in ("compile_seconds", "train_seconds", "wall_seconds")
    }
    analysing = sum(lane.compile_seconds for lane in course.lanes)
    sums["compile_seconds"] = round(sums["compile_seconds"] + analysing, 2)
    sums["wall_seconds"] = round(sums["wall_seconds"] + analysing, 2)
    found = {
        "members": len(plans.candidates) * len(plans.seeds),
        "legs": len(outcomes),
        "programs": len(shapes),
        **sums,
        "seconds_per_member": round(
            sums["wall_seconds"] / (len(plans.candidates) * len(plans.seeds)), 3
        ),
        "share_of_grid": 1.0 if isinstance(plans.method, PBT) else round(cost(ladder), 4),
    }
    if alone is not None:
        one = sum(alone.values())
        found["one_run_alone"] = dict(alone)
        found["wall_seconds_over_one_run"] = round(sums["wall_seconds"] / one, 2)
    return found


def write(
    course: Course, table: Sequence[Row], summary: Mapping[str, Any], report: Callable[[str], Any]
) -> None:
    """Write the table, the figure, the populations' lineage, and the summary.

    Raises:
        RunError: if they cannot be written; a resumed sweep tries again.
    """
    from jaxrl.analysis.heat_map import plot_sweep

    folder = course.folder
    assert folder is not None
    lineages = {each.leg.name: each.lineage for _, each in course.outcomes if each.lineage}
    try:
        _write_table(folder / TABLE, table)
        plot_sweep(table, summary, folder / PICTURE)
        if lineages:
            write_json(folder / LINEAGE, lineages)
        write_json(folder / SUMMARY, summary)
    except OSError as error:
        raise RunError(
            f"the sweep ended, but {folder} could not be written in: {error.strerror}; "
            "resume it to try again"
        ) from None


def _write_table(path: Path, table: Sequence[Row]) -> None:
    """Write the table as CSV, atomically. Scores of single seeds are the last column."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in table for name in row))
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    for row in table:
        known = plain(row)
        if "scores" in known:
            known["scores"] = json.dumps(known["scores"])
        writer.writerow(known)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        file.write(text.getvalue())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
