"""Runs in ``results/`` as figures and tables. No number is copied by hand."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "results"
FEW = 5  # seeds below which an interval says little
SETTINGS = re.compile(r" --(?:run-dir|quiet|render)(?: (?!--)\S+)?")
ABOUT = """\
# Runs

Every run whose folder is in `results/`, read from its `summary.json` when these pages were built.
The return is the final greedy evaluation: the IQM over the seeds with its 95 % bootstrap interval,
or the return itself of a single seed. Intervals of fewer than five seeds are too short
([statistics](../statistics.md)). Commands are those that were recorded: they use the names that
options had at their commit, of which the [change log](../changelog.md) lists the renamed.

| algorithm | environment | seeds | steps each | return |
|---|---|---|---|---|
"""


class Run(NamedTuple):
    """What a folder says of its run."""

    name: str
    algorithm: str
    env: str
    seeds: int
    steps: int
    score: str
    device: str
    commit: str
    command: str
    figure: bool


@cache
def runs() -> dict[str, Run]:
    """Return the runs of ``results/`` by the names of their folders."""
    folders = (path.parent for path in sorted(RESULTS.glob("*/summary.json")))
    return {folder.name: _read(folder) for folder in folders}


def _read(folder: Path) -> Run:
    summary = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    seeds = len(summary["seeds"])
    return Run(
        name=folder.name,
        algorithm=summary["algorithm"],
        env=summary["env"],
        seeds=seeds,
        steps=_total(summary),
        score=_score(summary["final_return"], seeds),
        device=str(summary.get("device", "")).partition(":")[0],
        commit=str(config.get("git") or "")[:8],
        command=SETTINGS.sub("", f" {summary.get('command', '')}").strip(),
        figure=(folder / "curves.png").exists(),
    )


def _total(summary: dict[str, Any]) -> int:
    steps = summary.get("total_steps", summary.get("env_steps", 0))
    return int(sum(steps) if isinstance(steps, list) else steps or 0)


def _score(final: dict[str, Any], seeds: int) -> str:
    if final["iqm"] is None:
        return "not finite"
    if seeds == 1:
        return number(final["iqm"])
    low, high = final["ci95"]
    return f"{number(final['iqm'])} ({number(low)} to {number(high)})"


def number(x: float) -> str:
    """Return a number with three or four digits that matter."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def steps_of(n: int) -> str:
    """Return a number of steps, as ``1.00M`` or ``20k``."""
    return f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.0f}k"


def table() -> str:
    """Return the page of all runs."""
    rows = [
        f"| [{run.algorithm}](#{run.name}) | `{run.env}` | {run.seeds} "
        f"| {steps_of(run.steps)} | {run.score.replace(' ', '&nbsp;')} |"
        for run in runs().values()
    ]
    each = [f"## {run.name}\n\n{figure(run.name)}" for run in runs().values()]
    return ABOUT + "\n".join(rows) + "\n\n" + "\n\n".join(each) + "\n"


def speeds(name: str) -> str:
    """Return the speeds in a file of ``results/`` as a table, a column for each program."""
    rows = json.loads((RESULTS / name).read_text())["results"]
    programs = list(dict.fromkeys(row["command"] for row in rows))
    lines = [f"| steps per second | {' | '.join(programs)} |", "|---" * (len(programs) + 1) + "|"]
    for case in dict.fromkeys((row["workload"], row["seeds"]) for row in rows):
        found = {row["command"]: row for row in rows if (row["workload"], row["seeds"]) == case}
        cells = [
            f"{found[each]['steps_per_second'] / 1e3:.3g}k" if each in found else ""
            for each in programs
        ]
        lines.append(f"| {case[0]}, {case[1]} seed{'s' * (case[1] > 1)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scores(names: str) -> str:
    """Return the rows of ``results/offline.json`` of these algorithms as a table.

    Raises:
        KeyError: for an algorithm that has none.
    """
    rows = json.loads((RESULTS / "offline.json").read_text())["rows"]
    lines = ["| dataset | algorithm | steps | seeds | normalised score |", "|---|---|---|---|---|"]
    for name in names.split():
        found = [row for row in rows if row["algorithm"] == name]
        if not found:
            raise KeyError(name)
        for row in found:
            score = _score(row["scores"]["final"], len(row["seeds"])).replace(" ", "&nbsp;")
            words = (re.sub(r"^--([a-z-]+\.)*", "", word) for word in row["options"])
            label = " ".join([name, *words])
            cells = (f"`{row['dataset']}`", label, steps_of(row["steps"]), len(row["seeds"]), score)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def fine_tuning(names: str) -> str:
    """Return the rows of ``results/fine_tuning*.json`` of these methods as a table.

    Raises:
        KeyError: for methods that have none.
    """
    lines = [
        "| dataset | method | seeds | clone | fine-tuned | steps |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("fine_tuning*.json")):
        file = json.loads(path.read_text())
        dataset = file["dataset"].removeprefix("runs/data/").removesuffix(".hdf5")
        for row in file["results"]:
            if row["method"] in names.split():
                final = _score(row["final"], len(row["seeds"])).replace(" ", "&nbsp;")
                clone, steps = number(row["clone"]["iqm"]), steps_of(row["env_steps"])
                cells = (f"`{dataset}`", row["method"], len(row["seeds"]), clone, final, steps)
                lines.append(f"| {' | '.join(map(str, cells))} |")
    if len(lines) == 2:
        raise KeyError(names)
    return "\n".join(lines)


def generative(part: str) -> str:
    """Return ``updates`` or ``latency`` of ``results/generative_speed.json`` as a table.

    Raises:
        KeyError: for another name.
    """
    rows = json.loads((RESULTS / "generative_speed.json").read_text())[part]["results"]
    if part == "updates":
        lines = [
            "| agent | gradient steps per second | bare products | share |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['agent']} | {row['loop']:.1f} | {row['products']:.1f} "
            f"| {row['of_products']:.0%} |"
            for row in rows
        ]
        return "\n".join(lines)
    lines = [
        "| policy | steps K | return | one observation | 256 observations |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['policy']} | {row['steps']} | {number(row['return'])} "
        f"| {row['microseconds_at_1'] / 1e3:.2f} ms | {row['microseconds_at_256'] / 1e3:.1f} ms |"
        for row in rows
    ]
    return "\n".join(lines)


def figure(name: str) -> str:
    """Return a run as Markdown: its curves, its result and its command.

    Raises:
        KeyError: for a run that is not in ``results/``.
    """
    run = runs()[name]
    seeds = f"{run.seeds} seed{'s' * (run.seeds > 1)}"
    few = ", few seeds" if 1 < run.seeds < FEW else ""
    device = {"cpu": "on CPU cores"}.get(run.device, f"on {run.device}" if run.device else "")
    commit = f"commit `{run.commit}`" if run.commit else "commit unknown"
    facts = f"{run.algorithm} on `{run.env}`, {seeds}, {steps_of(run.steps)} steps each {device}"
    lines = [f"{facts}: **{run.score}**{few} ({commit}).", f"```text\n{run.command}\n```"]
    if run.figure:
        lines.insert(0, f"![Evaluation returns of {name}](/results/{name}/curves.png)")
    return "\n\n".join(lines)
