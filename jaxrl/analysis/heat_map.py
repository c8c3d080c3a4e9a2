"""The figure of a sweep: heat maps of scores for a grid, otherwise score against value."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns of a table that are not axes of a sweep.
RESULTS = {
    "rank", "score", "ci_low", "ci_high", "final_mean", "seeds", "diverged", "rung", "steps",
    "scores", "mean", "population", "member", "copies",
}  # fmt: skip
MOST_CELLS = 24  # maximum cells with printed numbers
DEFAULT = "default"  # the value in rows that lack a name, such as a variant without that choice


def axes_of(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of a table's swept columns with more than one value."""
    return [name for name in _names(table) if len(_values(table, name)) > 1]


def is_grid(table: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Return whether the table has a row for every combination of its axes' values."""
    counts = [len(_values(table, name)) for name in names]
    return len(table) == np.prod(counts, dtype=int)


def _names(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the swept names of all rows, each once; some rows may lack some of them."""
    names = dict.fromkeys(name for row in table for name in row)
    return [name for name in names if name not in RESULTS and not name.startswith("first_")]


def plot_sweep(
    table: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path | None = None
) -> Figure:
    """Plot the table of a sweep and write the figure to ``path``.

    One swept name gives a map of values by seeds, which are ``summary["seeds"]``; two give a map of
    the IQM; more give a map for every pair, with the best over the other names. Random draws give a
    panel of score against value for each name. A table without swept names has one panel. With PBT,
    the values that led to the best member are drawn against steps. Crosses mark diverged members.

    Raises:
        OSError: if ``path`` cannot be written.
    """
    from matplotlib.figure import Figure

    names = axes_of(table) or _names(table)[:1] or ["configuration"]
    table = [dict.fromkeys(names, DEFAULT) | dict(row) for row in table]
    best = summary["best"]
    if "schedule" in best:
        names = [name for name in best["schedule"][0] if name != "step"]
        figure = Figure(figsize=(5.2 * len(names), 3.6), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for ax, name in zip(panels, names, strict=True):
            _schedule(ax, name, best["schedule"], int(best["row"]["steps"]))
    elif is_grid(table, names):
        pairs: list[Any] = list(itertools.combinations(names, 2)) or [(names[0], None)]
        columns = min(len(pairs), 3)
        rows = -(-len(pairs) // columns)
        figure = Figure(figsize=(7.2 * columns, 4.6 * rows), layout="constrained")
        cells = list(figure.subplots(rows, columns, squeeze=False).ravel())
        for ax in cells[len(pairs) :]:
            ax.set_axis_off()
        for ax, (x, y) in zip(cells, pairs, strict=False):
            _map(ax, table, x, y, summary)
    else:
        figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for ax, name in zip(panels, names, strict=True):
            _scatter(ax, table, name)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _values(table: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    found = {row.get(name, DEFAULT) for row in table}
    return sorted(found, key=lambda value: (isinstance(value, str), value))


def _map(
    ax: Axes,
    table: Sequence[Mapping[str, Any]],
    x: str,
    y: str | None,
    summary: Mapping[str, Any],
) -> None:
    """Draw a map of scores by the values of ``x`` and the values of ``y`` or the seeds."""
    columns = _values(table, x)
    if y is None:
        labels = [str(seed) for seed in summary["seeds"]]
        cells = np.full((len(labels), len(columns)), np.nan)
        for row in table:
            cells[: len(row["scores"]), columns.index(row[x])] = row["scores"]
        ax.set_ylabel("seed")
    else:
        values = _values(table, y)
        labels = _labels(values)
        cells = np.full((len(values), len(columns)), -np.inf)
        for row in table:
            at = values.index(row[y]), columns.index(row[x])
            cells[at] = max(cells[at], row["score"])
        ax.set_ylabel(y)
    finite = np.isfinite(cells)
    shown = np.where(finite, cells, np.nan)
    image = ax.imshow(shown, aspect="auto", cmap="viridis", origin="lower")
    ax.set_xticks(range(len(columns)), _labels(columns), rotation=60, fontsize=8)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_xlabel(x)
    for i, j in zip(*np.nonzero(~finite), strict=True):
        ax.text(j, i, "x", ha="center", va="center", color="#D55E00")
    if y is not None and cells.size <= MOST_CELLS:
        for i, j in zip(*np.nonzero(finite), strict=True):
            ax.text(j, i, f"{cells[i, j]:.3g}", ha="center", va="center", fontsize=8, color="white")
    label = "score" if y is None else "score (IQM over seeds)"
    ax.figure.colorbar(image, ax=ax, label=label)


def _scatter(ax: Axes, table: Sequence[Mapping[str, Any]], name: str) -> None:
    """Draw the scores of all rows against a swept value; colours show the rung reached."""
    if any(isinstance(row[name], str) for row in table):  # an axis of texts takes no numbers
        values = _values(table, name)
        labels = dict(zip(values, _labels(values), strict=True))
        table = [{**row, name: labels[row[name]]} for row in table]
    known = [row for row in table if np.isfinite(row["score"])]
    lost = [row for row in table if not np.isfinite(row["score"])]
    x = [row[name] for row in known]
    colours = [row.get("rung", 0) for row in known]
    points = ax.scatter(x, [row["score"] for row in known], c=colours, cmap="viridis", s=18)
    if lost:
        bottom = min((row["score"] for row in known), default=0.0)
        ax.plot([row[name] for row in lost], [bottom] * len(lost), "x", color="#D55E00")
    numbers = [value for value in x if not isinstance(value, str)]
    if numbers and min(numbers) > 0 and max(numbers) > 20 * min(numbers):
        ax.set_xscale("log")
    ax.set(xlabel=name, ylabel="score (IQM over seeds)")
    ax.grid(alpha=0.3)
    if len(set(colours)) > 1:
        ax.figure.colorbar(points, ax=ax, label="rung")


def _schedule(ax: Axes, name: str, steps: Sequence[Mapping[str, Any]], last: int) -> None:
    """Draw the values of one name that led to the best member."""
    x = [each["step"] for each in steps] + [last]
    y = [each[name] for each in steps]
    ax.step(x, [*y, y[-1]], where="post", color="#0072B2")
    if min(y) > 0 and max(y) > 20 * min(y):
        ax.set_yscale("log")
    ax.set(xlabel="steps", ylabel=name, title="values of the best member's line")
    ax.grid(alpha=0.3)


def _labels(values: Sequence[Any]) -> list[str]:
    """Return a label for each value: numbers have 6 digits, or as many as tell them apart."""
    # With 1, so that a discount just below it does not read as 1.
    numbers = {1.0, *(value for value in values if not isinstance(value, str))}
    digits = next(n for n in range(6, 18) if len({f"{x:.{n}g}" for x in numbers}) == len(numbers))
    return [value if isinstance(value, str) else f"{value:.{digits}g}" for value in values]
