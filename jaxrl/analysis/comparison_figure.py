"""The figure of a comparison: per task, a row of intervals, profiles, improvement and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxrl.analysis.compare import Comparison, Interval, PairRow, View, scores_of, shared_steps
from jaxrl.analysis.curves import (
    UNITS,
    check_picture,
    colours_of,
    count_steps,
    decorate,
    drawing,
    written,
)
from jaxrl.analysis.efficiency import at_steps, curve_ci
from jaxrl.analysis.statistics import performance_profile, profile_ci
from jaxrl.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 101  # per profile
POINTS = 200  # per curve, at most
GREY = "#555555"
DRAWN = 12  # pairs; if there are more, those with the smallest p are drawn


def plot_groups(comparison: Comparison, path: str | Path | None = None) -> Figure:
    """Draw a comparison and write it to ``path``.

    There is a row per task, and one for all tasks if scores are normalised. Each row shows the
    final IQM with its 95% interval; the performance profile (the share of seeds above each score)
    with its band; the probability of improvement for each pair; and the IQM against steps with its
    band. A group with one seed has no interval. Tasks that share no steps have no common curve.

    Raises:
        UsageError: if ``path`` does not end in an image format.
        OSError: if ``path`` cannot be written.
    """
    if path is not None:
        check_picture(path)
    count = len(comparison.groups.groups)
    colours = colours_of(count)
    pairs = max(len(_pairs(comparison, view)) for view in comparison.views)
    height = max(3.2, 0.28 * max(count, pairs) + 1.2)
    figure = drawing(18.0, height * len(comparison.views))
    rows = figure.subplots(len(comparison.views), 4, squeeze=False)
    for axes, view in zip(rows, comparison.views, strict=True):
        _intervals(axes[0], comparison, view, colours)
        _profiles(axes[1], comparison, view, colours)
        _improvement(axes[2], _pairs(comparison, view))
        _curves(axes[3], comparison, view, colours)
        for ax in axes:
            decorate(ax)
    _legend(rows[0, 3])
    return written(figure, path)


def _score(comparison: Comparison) -> str:
    return "normalised score (%)" if comparison.groups.scaled else "return"


def _pairs(comparison: Comparison, view: View) -> list[PairRow]:
    pairs = [pair for pair in comparison.pairs if pair.task == view.name]
    return sorted(pairs, key=lambda pair: pair.p)[:DRAWN] if len(pairs) > DRAWN else pairs


def _intervals(ax: Axes, comparison: Comparison, view: View, colours: Sequence[str]) -> None:
    rows = [row for row in comparison.rows if row.task == view.name]
    for i, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        _bar(ax, i, row.iqm, colour)
    _names(ax, [row.group for row in rows])
    ax.set_title(view.name, fontsize=11, parse_math=False)
    ax.set_xlabel(f"{_score(comparison)}: IQM, 95% interval")


def _profiles(ax: Axes, comparison: Comparison, view: View, colours: Sequence[str]) -> None:
    scores = [scores_of(group, view) for group in comparison.groups.groups]
    every = np.concatenate([task for tasks in scores for task in tasks])
    margin = 0.02 * (np.ptp(every) or 1.0)
    taus = np.linspace(every.min() - margin, every.max() + margin, LEVELS)
    for tasks, colour in zip(scores, colours, strict=True):
        ax.plot(taus, performance_profile(tasks, taus), color=colour, linewidth=2.0)
        if min(map(len, tasks)) > 1:
            ax.fill_between(taus, *profile_ci(tasks, taus), color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel(f"{_score(comparison)} τ")
    ax.set_ylabel("share of seeds with more than τ")
    ax.set_ylim(-0.02, 1.02)


def _improvement(ax: Axes, pairs: Sequence[PairRow]) -> None:
    for i, pair in enumerate(pairs):
        _bar(ax, i, pair.improvement, GREY)
    ax.axvline(0.5, color=GREY, linestyle="--", linewidth=0.8, zorder=1)
    _names(ax, [f"{pair.left} > {pair.right}" for pair in pairs])
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("probability of improvement")


def _curves(ax: Axes, comparison: Comparison, view: View, colours: Sequence[str]) -> None:
    groups = comparison.groups
    try:
        steps = shared_steps(groups, view)
    except UsageError:  # between tasks; on each task compare_groups has found some
        ax.text(0.5, 0.5, "no common steps", ha="center", color=GREY, transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int))]
    for group, colour in zip(groups.groups, colours, strict=True):
        curves = [at_steps(group.tasks[task].curve, steps) for task in view.tasks]
        seeds = min(curve.shape[1] for curve in curves)
        middle, low, high = curve_ci(curves)
        label = f"{group.name}, {seeds} seeds" if seeds > 1 else f"{group.name}, 1 seed"
        marker = "o" if len(steps) == 1 else ""
        ax.plot(steps, middle, marker=marker, color=colour, linewidth=2.0, label=label)
        if seeds > 1:
            ax.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    unit = groups.units.copy().pop() if len(groups.units) == 1 else ""
    ax.set_xlabel(f"{UNITS.get(unit, UNITS['steps'])} per seed")
    ax.set_ylabel(f"{_score(comparison)}: IQM")
    count_steps(ax)


def _bar(ax: Axes, row: int, estimate: Interval, colour: str) -> None:
    """Draw an interval as a bar and the estimate as a mark in it."""
    edges = [estimate.low, estimate.high]
    ax.plot(edges, [row, row], color=colour, linewidth=6.0, alpha=0.35, solid_capstyle="butt")
    ax.plot(estimate.value, row, marker="|", markersize=14, markeredgewidth=2.5, color=colour)


def _names(ax: Axes, names: Sequence[str]) -> None:
    """Label the rows of a panel, with the first on top."""
    ax.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names], fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)


def _legend(ax: Axes) -> None:
    legend = ax.legend(frameon=False, fontsize=8, loc="best")
    for text in legend.get_texts():  # folder names may contain dollar signs
        text.set_parse_math(False)
