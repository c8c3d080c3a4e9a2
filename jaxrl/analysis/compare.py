"""Numerical comparison of groups of runs: one row per group and one per pair of groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrl.analysis.aggregate import (
    Array,
    aggregate_iqm,
    aggregate_mean,
    aggregate_median,
    bootstrap,
    interval,
    optimality_gap,
)
from jaxrl.analysis.efficiency import (
    area_under_curve,
    at_steps,
    common_steps,
    steps_to_threshold,
)
from jaxrl.analysis.groups import Group, Groups
from jaxrl.analysis.power import Separation, detectable_difference, separation
from jaxrl.analysis.statistics import (
    difference_ci,
    holm,
    improvement_ci,
    mean_ci,
    permutation_test,
    probability_of_improvement,
)
from jaxrl.errors import UsageError
from jaxrl.require import require

ALL = "all tasks"
GAMMA = 100.0  # the target normalised score
MOST_PAIRS = 200


class Interval(NamedTuple):
    """An estimate with its 95% interval; NaN if a single seed gives no interval."""

    value: float
    low: float
    high: float


class GroupRow(NamedTuple):
    """A group on one or all tasks: scores at the end of training and over the whole curve."""

    group: str
    task: str
    seeds: tuple[int, int]  # the minimum and the maximum over tasks
    steps: tuple[int, int]  # at the end of the shortest and the longest seed
    iqm: Interval
    median: float
    mean: Interval  # by Student's t
    gap: float | None  # the optimality gap, for normalised scores
    area: Interval  # IQM of the seeds' mean scores over the steps that all groups cover
    reached: int | None  # the number of seeds that reached the threshold
    steps_to: Interval | None  # the median of their steps; infinite if half of them did not


class PairRow(NamedTuple):
    """Two groups on one or all tasks; positive if the first is better."""

    left: str
    right: str
    task: str
    seeds: tuple[int, int]  # the minimum over tasks, for each group
    difference: Interval | None  # between the IQMs; None without a common scale
    improvement: Interval  # P(a score of the first beats one of the second)
    p: float
    p_holm: float
    separation: Separation
    detectable: float | None  # the standardised difference detectable on one task


class View(NamedTuple):
    """One row of the figure: a task, or all tasks on one scale."""

    name: str
    tasks: list[str]


class Comparison(NamedTuple):
    """All numbers of a comparison, and its groups."""

    groups: Groups
    views: list[View]
    rows: list[GroupRow]
    pairs: list[PairRow]
    threshold: float | None


def compare_groups(groups: Groups, threshold: float | None = None) -> Comparison:
    """Compare groups on each task and on all tasks together.

    Unnormalised returns of several tasks have no common scale. Then the only result over all tasks
    is the probability of improvement, which needs none. p-values are Holm-adjusted over all pairs,
    with separate families for single tasks and for all tasks together.

    Args:
        groups: the result of ``read_groups``.
        threshold: a score; the steps to reach it are counted on each task.

    Raises:
        UsageError: for too many pairs, curves without common steps, or a return threshold for
            several tasks.
    """
    require("threshold", threshold, -math.inf)
    if threshold is not None and not groups.scaled and len(groups.tasks) > 1:
        raise UsageError(
            f"threshold {threshold:g} would be a return of {len(groups.tasks)} tasks with scales "
            "of their own; compare one task, or give --reference to all"
        )
    couples = [(a, b) for a, b in itertools.combinations(groups.groups, 2) if a.side != b.side]
    if len(couples) > MOST_PAIRS:
        raise UsageError(
            f"there are {len(couples)} pairs of groups, at most {MOST_PAIRS} are compared; keep "
            "some configurations, as in --where learning_rate=0.001"
        )
    views = [View(task, [task]) for task in groups.tasks]
    whole = View(ALL, groups.tasks)
    scaled = [*views, whole] if len(views) > 1 and groups.scaled else views
    steps = {view.name: shared_steps(groups, view) for view in views}
    rows = [
        _row(group, view, steps, threshold, groups.scaled)
        for view in scaled
        for group in groups.groups
    ]
    pairs = _adjusted([_pair(a, b, view, True) for view in views for a, b in couples])
    if len(views) > 1:
        pairs += _adjusted([_pair(a, b, whole, groups.scaled) for a, b in couples])
    return Comparison(groups, scaled, rows, pairs, threshold)


def shared_steps(groups: Groups, view: View) -> Any:
    """Return the steps ``[T]`` covered by the curves of all groups.

    Raises:
        UsageError: if there are none.
    """
    curves = [group.tasks[task].curve for group in groups.groups for task in view.tasks]
    return common_steps(curves)


def scores_of(group: Group, view: View) -> list[Array]:
    """Return a group's final scores, ``[n_i]`` for each task of a view."""
    return [group.tasks[task].final for task in view.tasks]


def iqm_ci(scores: list[Array]) -> Interval:
    """Return the IQM and its bootstrap interval, which is NaN for single seeds."""
    value = float(aggregate_iqm(scores))
    if min(map(len, scores)) < 2:
        return Interval(value, math.nan, math.nan)
    return Interval(value, *map(float, interval(bootstrap(scores))))


def _row(
    group: Group, view: View, steps: Mapping[str, Any], threshold: float | None, scaled: bool
) -> GroupRow:
    scores = scores_of(group, view)
    areas = [
        area_under_curve(steps[task], at_steps(group.tasks[task].curve, steps[task]))
        for task in view.tasks
    ]
    counts = [len(task) for task in scores]
    ends = [end for task in view.tasks for end in group.tasks[task].ends]
    reached, steps_to = None, None
    if threshold is not None and len(view.tasks) == 1:
        curves = group.tasks[view.tasks[0]].curves  # whole, where the merged curve is cut
        times = np.concatenate(
            [steps_to_threshold(curve.steps, curve.returns, threshold) for curve in curves]
        )
        reached, steps_to = int(np.isfinite(times).sum()), _median_steps(times)
    return GroupRow(
        group.name,
        view.name,
        (min(counts), max(counts)),
        (min(ends), max(ends)),
        iqm_ci(scores),
        float(aggregate_median(scores)),
        Interval(float(aggregate_mean(scores)), *mean_ci(scores)),
        float(optimality_gap(scores, GAMMA)) if scaled else None,
        iqm_ci(areas),
        reached,
        steps_to,
    )


def _median_steps(times: Array) -> Interval:
    """Return the median of steps, some of them infinite, and its interval."""
    value = float(np.median(times))
    if len(times) < 2:
        return Interval(value, math.nan, math.nan)
    never = np.finfo(float).max / 8  # infinities cannot be averaged or interpolated
    finite = np.where(np.isfinite(times), times, never)
    edges = interval(bootstrap(finite, aggregate_median))
    most = times[np.isfinite(times)].max(initial=0.0)
    return Interval(value, *(float(edge) if edge <= most else math.inf for edge in edges))


def _pair(a: Group, b: Group, view: View, scaled: bool) -> PairRow:
    x, y = scores_of(a, view), scores_of(b, view)
    n, m = min(map(len, x)), min(map(len, y))
    single = min(n, m) < 2
    difference = None
    if scaled:
        value = float(aggregate_iqm(x) - aggregate_iqm(y))
        edges = (math.nan, math.nan) if single else difference_ci(x, y)
        difference = Interval(value, *edges)
    chance = probability_of_improvement(x, y)
    edges = (math.nan, math.nan) if single else improvement_ci(x, y)
    return PairRow(
        a.name,
        b.name,
        view.name,
        (n, m),
        difference,
        Interval(chance, *edges),
        permutation_test(x, y),
        math.nan,
        separation(x, y) if scaled else Separation(None, None, None),
        None if single or len(x) > 1 else detectable_difference(n, m=m),
    )


def _adjusted(pairs: list[PairRow]) -> list[PairRow]:
    adjusted = holm([pair.p for pair in pairs])
    return [pair._replace(p_holm=float(p)) for pair, p in zip(pairs, adjusted, strict=True)]
