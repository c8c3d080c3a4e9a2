"""The result of a sweep in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrl import processes
from jaxrl.run import Sweep

SHOWN = 10  # rows of the table


def report_sweep(result: Sweep, quiet: bool) -> None:
    """Print the result of a sweep, unless ``quiet``."""
    if not quiet and processes.is_first():
        print(describe_sweep(result))


def describe_sweep(result: Sweep) -> str:
    """Describe the result of a sweep, its reliability and its cost."""
    summary = result.summary
    best, cost = summary["best"], summary["cost"]
    lines = [_row(row) for row in result.table[:SHOWN]]
    if len(result.table) > SHOWN:
        lines.append(f"... {len(result.table) - SHOWN} more")
    lines += _pbt(best) if "schedule" in best else _chosen(best)
    if "confirmed" in best:
        fresh = best["confirmed"]
        if fresh["iqm"] is None:
            lines.append("on fresh seeds: not all returns are finite")
        else:
            lines.append(
                f"on {len(fresh['seeds'])} fresh seeds: final return {fresh['iqm']:.1f} (IQM, 95% "
                f"interval {fresh['ci95'][0]:.1f} to {fresh['ci95'][1]:.1f})"
            )
    lines.append(
        f"{cost['members']} runs in {cost['legs']} parts: {cost['wall_seconds']:.0f} s, of which "
        f"{cost['compile_seconds']:.0f} s compiling; {cost['seconds_per_member']:.2f} s a run; "
        f"{100 * cost['share_of_grid']:.0f} % of the steps of training all to the end"
    )
    if "one_run_alone" in cost:
        one = cost["one_run_alone"]
        lines.append(
            f"one run alone: {sum(one.values()):.0f} s, of which {one['compile_seconds']:.0f} s "
            f"compiling; the sweep took {cost['wall_seconds_over_one_run']:.1f} times as long"
        )
    if result.run_dir is not None:
        lines.append(f"record: {result.run_dir}")
    return "\n".join(lines)


def _row(row: Mapping[str, Any]) -> str:
    hidden = {"rank", "score", "ci_low", "ci_high", "final_mean", "seeds", "diverged", "scores"}
    hidden |= {"steps", "mean"}
    named = [
        f"{name}={value:.12g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in row.items()
        if name not in hidden
    ]
    known = f"{row['score']:.1f}" if row["score"] > float("-inf") else "diverged"
    if row.get("ci_low") is not None:
        known += f" ({row['ci_low']:.1f} to {row['ci_high']:.1f})"
    lost = f", {row['diverged']} diverged" if row["diverged"] else ""
    return f"{row['rank']:3}. {known:28} {' '.join(named)}{lost}"


def _chosen(best: Mapping[str, Any]) -> list[str]:
    lines = []
    bias = best["selection_bias_at_most"]
    if best["candidates"] > 1 and "confirmed" not in best:
        size = "" if bias is None else f" by up to {bias:.1f}"
        lines.append(
            f"the best of {best['candidates']} is overestimated{size}: it was chosen by this "
            "score; --confirm 8 trains it on fresh seeds"
        )
    if "command" in best:
        lines.append(f"best: {best['command']}")
    return lines


def _pbt(best: Mapping[str, Any]) -> list[str]:
    found = best["populations"]
    count = len(found["per_seed"])
    lines = []
    if found["iqm"] is not None:
        lines.append(
            f"best member of each population: final return {found['iqm']:.1f} (IQM of {count}; a "
            "population is one sample, as its members are related)"
        )
    lines.append(
        "the result is a schedule, in summary.json; --confirm 8 replays it on fresh seeds"
        if "confirmed" not in best
        else "the result is a schedule, in summary.json"
    )
    return lines
