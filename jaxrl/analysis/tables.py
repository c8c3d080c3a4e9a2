"""Tables of comparisons: for the terminal, as CSV, as LaTeX, and in sentences."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl.analysis.compare import ALL, Comparison, GroupRow, Interval, PairRow
from jaxrl.analysis.groups import FEW_SEEDS
from jaxrl.analysis.power import ALPHA, MOST_SEEDS

NUMBERS = (
    *("seeds", "steps", "IQM", "median", "mean", "optimality gap", "area", "difference of IQM"),
    *("P(left > right)", "p", "p (Holm)", "d", "95% interval", "95% interval (t)"),
)
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def group_table(comparison: Comparison) -> list[list[str]]:
    """Return the header and a row per group and task; empty columns are omitted."""
    threshold = comparison.threshold
    head = ["group", "task", "seeds", "steps", "IQM", "95% interval", "median", "mean"]
    steps_to = "" if threshold is None else f"steps to {threshold:g}"
    head += ["95% interval (t)", "optimality gap", "area", steps_to, "reached"]
    return used_columns([head, *map(_group_cells, comparison.rows)])


def pair_table(comparison: Comparison) -> list[list[str]]:
    """Return the header and a row per pair of groups and task; empty columns are omitted."""
    head = ["left", "right", "task", "difference of IQM", "95% interval", "P(left > right)"]
    head += ["95% interval", "p", "p (Holm)", "d", "seeds needed"]
    return used_columns([head, *map(_pair_cells, comparison.pairs)])


def used_columns(table: list[list[str]]) -> list[list[str]]:
    """Return a table, with the header as first row, without columns that have no values."""
    columns = [i for i in range(len(table[0])) if any(row[i] for row in table[1:])]
    return [[row[i] for i in columns] for row in table]


def _group_cells(row: GroupRow) -> list[str]:
    few = row.seeds[0] < FEW_SEEDS
    number = _format([row.iqm.value, row.iqm.low, row.iqm.high, row.mean.value, row.median])
    cells = [row.group, row.task, _range(row.seeds), _range(row.steps), number(row.iqm.value)]
    cells += [_edges(row.iqm, number, few), number(row.median), number(row.mean.value)]
    cells += [_edges(row.mean, number, False)]
    cells += ["" if row.gap is None else number(row.gap), number(row.area.value)]
    if row.steps_to is None:
        return [*cells, "", ""]
    return [*cells, _steps(row.steps_to), f"{row.reached} of {row.seeds[0]}"]


def _pair_cells(row: PairRow) -> list[str]:
    few = min(row.seeds) < FEW_SEEDS
    cells = [row.left, row.right, row.task, "", ""]
    if row.difference is not None:
        number = _format(row.difference)
        cells[3:] = [number(row.difference.value), _edges(row.difference, number, few)]
    chance = _format([0.99])
    cells += [f"{row.improvement.value:.3f}", _edges(row.improvement, chance, few)]
    d, seeds, high = row.separation
    needed = "" if d is None else f"{_needed(seeds)} ({_needed(high)})"
    return [*cells, p_text(row.p), p_text(row.p_holm), "" if d is None else f"{d:.2f}", needed]


def _format(values: Sequence[float]) -> Any:
    """Return a function that formats numbers of this magnitude."""
    size = max([abs(value) for value in values if math.isfinite(value)], default=0.0)
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    return lambda x: f"{x:,.{digits}f}" if math.isfinite(x) else "-"


def _edges(estimate: Interval, number: Any, few: bool) -> str:
    if math.isnan(estimate.low):
        return "- (one seed)"
    text = f"{number(estimate.low)} to {number(estimate.high)}"
    return f"{text} (few seeds)" if few else text


def _steps(estimate: Interval) -> str:
    value, low, high = (f"{x:,.0f}" if math.isfinite(x) else "never" for x in estimate)
    alone = math.isnan(estimate.low) or low == high == "never"
    return value if alone else f"{value} ({low} to {high})"


def _range(pair: tuple[int, int]) -> str:
    low, high = pair
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def p_text(p: float) -> str:
    """Format p with a useful number of digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def conclusions(comparison: Comparison) -> list[str]:
    """Return one sentence per pair, after a sentence that explains the terms."""
    lines = [
        "d is the difference of the means divided by the standard deviation over seeds. The seeds "
        "that it needs, in each group, give a two-sided t test (5%) a power of 80%; in brackets, "
        "if the standard deviation is at its upper 80% limit."
    ]
    for alone in (True, False):  # the two families of p-values (Holm)
        family = [pair for pair in comparison.pairs if (pair.task != ALL) == alone]
        lines += [_conclusion(pair, len(family)) for pair in family]
    return lines


def _conclusion(pair: PairRow, family: int) -> str:
    n, m = pair.seeds
    adjusted = f" (Holm, {family} comparisons)" if family > 1 else ""
    found = "a difference" if pair.p_holm <= ALPHA else "no difference was found"
    text = f"{pair.left} and {pair.right} on {pair.task}: {found}, p {p_text(pair.p_holm)}"
    text += adjusted
    least = min(1.0, family * 2 / math.comb(n + m, n))
    if pair.task != ALL and pair.p_holm > ALPHA and least > ALPHA:
        text += f" (with {n} and {m} seeds it cannot be below {least:.2g})"
    d, seeds, high = pair.separation
    if d is not None:
        text += f"; d {d:.2f} needs {_needed(seeds)} seeds ({_needed(high)})"
    if pair.detectable is not None:
        text += f"; {n} and {m} seeds find a d of {pair.detectable:.2f}"
    return f"{text}."


def _needed(seeds: int | None) -> str:
    return f"over {MOST_SEEDS:,}" if seeds is None else f"{seeds:,}"


def print_table(table: Sequence[Sequence[str]], numbers: Sequence[str]) -> None:
    """Print a table whose first row is the header; columns in ``numbers`` are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in table[0]:
        number = name in numbers
        justify: Any = "right" if number else "left"
        wide = len(name)
        drawn.add_column(name, justify=justify, no_wrap=number, overflow="fold", min_width=wide)
    for row in table[1:]:
        drawn.add_row(*map(Text, row))
    console = Console()
    need = console.measure(drawn, options=console.options.update(max_width=10_000))
    # On a narrow terminal names are folded, but never numbers; in a pipe a row is one line.
    width = max(console.width, need.minimum) if console.is_terminal else need.maximum
    Console(width=width).print(drawn)


def write_csv(comparison: Comparison, path: str | Path) -> None:
    """Write all numbers, unrounded: a row per group and task, then one per pair and task.

    Missing values are empty. Infinite steps are ``inf``.

    Raises:
        OSError: if the file cannot be written.
    """
    rows = [*map(_group_record, comparison.rows), *map(_pair_record, comparison.pairs)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _group_record(row: GroupRow) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": "group", "group": row.group, "task": row.task}
    record |= {"seeds": row.seeds[0], "seeds_most": row.seeds[1]}
    record |= {"steps": row.steps[0], "steps_most": row.steps[1]}
    record |= _numbers("iqm", row.iqm) | {"median": row.median} | _numbers("mean", row.mean)
    record |= {"optimality_gap": row.gap} | _numbers("area", row.area)
    return record | {"reached": row.reached} | _numbers("steps_to", row.steps_to)


def _pair_record(row: PairRow) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": "pair",
        "group": row.left,
        "against": row.right,
        "task": row.task,
    }
    record |= {"seeds": row.seeds[0], "seeds_against": row.seeds[1]}
    record |= _numbers("iqm_difference", row.difference)
    record |= _numbers("probability_of_improvement", row.improvement)
    record |= {"p": row.p, "p_holm": row.p_holm, "d": row.separation.d}
    needed = row.separation
    record |= {"seeds_needed": needed.seeds, "seeds_needed_high": needed.seeds_high}
    return record | {"d_found": row.detectable}


def _numbers(name: str, estimate: Interval | None) -> dict[str, Any]:
    values = [None] * 3 if estimate is None else [None if math.isnan(x) else x for x in estimate]
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def write_latex(comparison: Comparison, path: str | Path) -> None:
    """Write both tables as ``tabular`` environments with ``booktabs`` rules.

    Raises:
        OSError: if the file cannot be written.
    """
    tables = [group_table(comparison), pair_table(comparison)]
    text = "% \\usepackage{booktabs}\n" + "\n".join(map(_tabular, tables))
    Path(path).write_text(text)


def _tabular(table: Sequence[Sequence[str]]) -> str:
    head, *rows = [" & ".join(map(_escaped, row)) + r" \\" for row in table]
    aligned = "".join("r" if name in NUMBERS else "l" for name in table[0])
    lines = [rf"\begin{{tabular}}{{{aligned}}}", r"\toprule", head, r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
