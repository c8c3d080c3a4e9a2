"""Groups of runs to compare: their members, tasks and scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxrl._output import one_line, sweep_label
from jaxrl.analysis.load import Curve
from jaxrl.analysis.sources import Source, choose, merged, read_csv, read_run
from jaxrl.data.scores import normalized
from jaxrl.errors import UsageError, nearest

FEW_SEEDS = 5  # with fewer, an interval covers less than its nominal level
LENGTHS = 1.02  # runs whose steps differ by a larger factor are not equally long
References = Mapping[str, tuple[float, float]]


class Scores(NamedTuple):
    """A group's scores on one task: normalised scores in percent, or returns."""

    final: NDArray[np.float64]  # [n], at the end of each seed's curve
    curve: Curve  # for the same seeds, at the steps that all of them cover
    curves: tuple[Curve, ...]  # for the same seeds, in full; seeds of one have the same steps

    @property
    def ends(self) -> tuple[int, int]:
        """The last steps of the shortest and the longest seed."""
        ends = [int(curve.steps[-1]) for curve in self.curves]
        return min(ends), max(ends)


class Group(NamedTuple):
    """The seeds of one side, or of one of its configurations, on every task."""

    side: int  # groups of the same side are not compared with each other
    name: str
    tasks: dict[str, Scores]


class Groups(NamedTuple):
    """The groups to compare and their common tasks."""

    groups: list[Group]
    tasks: list[str]  # the tasks that all groups have
    scaled: bool  # whether scores are normalised, in percent
    units: set[str]  # units of steps: "env_steps", "gradient_steps"; "" if unknown
    notes: list[str]  # caveats for the reader


def read_groups(
    sides: Sequence[Sequence[str | Path]],
    csv: Sequence[str | Path] = (),
    *,
    names: Sequence[str] = (),
    where: Mapping[str, float] | None = None,
    steps: int | None = None,
    references: References | None = None,
    failed: float | None = None,
) -> Groups:
    """Read groups of runs.

    All seeds of one side's runs on one environment form one sample. Every configuration of a sweep
    is a separate group: none is selected by its returns. With a single side, its configurations are
    compared with each other.

    Args:
        sides: run folders, a sequence per side.
        csv: files with additional curves (``sources.read_csv``); each algorithm in them is a side.
        names: the names of the sides; default their algorithms.
        where: for runs that sweep these names, use only the configurations with these values.
        steps: compare at these steps instead of at the end.
        references: ``{task: (random, expert)}``, the returns for scores of 0 and 100, for tasks
            where the runs have no reference or a different one.
        failed: the return to use in place of a non-finite one.

    Raises:
        UsageError: for a single group, a run that is duplicated or cannot be read, or groups
            without a common task.
        OSError: if a CSV file cannot be opened.
    """
    _check_once(sides)
    read = [[s for run in side for s in read_run(run, steps, failed)] for side in sides]
    for path in csv:
        sources = read_csv(path, steps, failed)
        algorithms = dict.fromkeys(source.algorithm for source in sources)
        read += [[s for s in sources if s.algorithm == each] for each in algorithms]
    chosen, notes = choose(read, where or {})
    kept = _with_data(chosen)
    parts = [
        (side, f"{title} {sweep_label(own[0].sweep)}".strip(), own)
        for side, title in enumerate(_titles(kept, names))
        for own in _by(kept[side], _configuration).values()
    ]
    if len(read) == 1:  # a sweep: its configurations are compared with each other
        parts = [(i, name, own) for i, (_, name, own) in enumerate(parts)]
    if len(parts) < 2:
        raise UsageError(
            "one group of runs cannot be compared; give two, as in runs/a* -- runs/b*, or --csv"
        )
    groups = [_group(*part, notes) for part in parts]
    return _scaled(groups, [s for side in kept for s in side], references or {}, notes)


def _by(sources: Iterable[Source], key: Callable[[Source], str]) -> dict[str, list[Source]]:
    """Return the sources of each key, in their original order."""
    found: dict[str, list[Source]] = {}
    for source in sources:
        found.setdefault(key(source), []).append(source)
    return found


def _configuration(source: Source) -> str:
    """Return a source's swept values, the same in any order."""
    return sweep_label(dict(sorted(source.sweep.items())))


def _check_once(sides: Sequence[Sequence[str | Path]]) -> None:
    seen: set[Path] = set()
    for run in (run for side in sides for run in side):
        if Path(run).resolve() in seen:
            raise UsageError(f"{run} is given twice; give every run once")
        seen.add(Path(run).resolve())
    if any(not side for side in sides):
        raise UsageError("there is no run on one side of --; give such as runs/a* -- runs/b*")


def _titles(sides: Sequence[Sequence[Source]], names: Sequence[str]) -> list[str]:
    """Return a name for each side: its algorithms, plus its runs if the algorithms are equal."""
    if names:
        if len(names) != len(sides) or len(set(names)) != len(names):
            raise UsageError(
                f"names has {len(set(names))} different ones; give one for each of the "
                f"{len(sides)} groups, separated by commas"
            )
        return [one_line(name) for name in names]
    algorithms = ["+".join(dict.fromkeys(source.algorithm for source in side)) for side in sides]
    titles = []
    for algorithm, side in zip(algorithms, sides, strict=True):
        if algorithms.count(algorithm) > 1:
            runs = list(dict.fromkeys(source.name for source in side))
            more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
            algorithm += f" ({runs[0]}{more})"
        titles.append(one_line(algorithm))
    return titles


def _with_data(sides: Sequence[Sequence[Source]]) -> list[list[Source]]:
    """Return the sources, adding the dataset to the task if a side has several for it."""
    several = {
        task
        for side in sides
        for task, own in _by(side, lambda source: source.task).items()
        if len({source.data for source in own}) > 1
    }
    return [
        [s._replace(task=f"{s.task} from {s.data}") if s.task in several else s for s in side]
        for side in sides
    ]


def _group(side: int, name: str, sources: Sequence[Source], notes: list[str]) -> Group:
    """Return a group of one side's and configuration's sources; add notes about them."""
    tasks = {}
    for task, own in _by(sources, lambda source: source.task).items():
        _check_pool(task, own)
        tasks[task] = _scores([curve for source in own for curve in source.curves])
        if any(source.in_training for source in own):
            notes.append(f"{name} on {task} was not evaluated: its returns are those in training")
        if len({source.agent for source in own}) > 1:
            notes.append(
                f"the runs of {name} on {task} have different hyper-parameters (config.json); they "
                "are taken as seeds of one algorithm"
            )
    return Group(side, name, tasks)


def _scores(curves: Sequence[Curve]) -> Scores:
    final = np.concatenate([curve.returns[-1] for curve in curves])
    return Scores(final, merged(curves), tuple(curves))


def _check_pool(task: str, sources: Sequence[Source]) -> None:
    """Raise UsageError unless the runs are seeds of one algorithm, without duplicates."""
    algorithms = {source.algorithm for source in sources}
    if len(algorithms) > 1:
        raise UsageError(
            f"{' and '.join(sorted(algorithms))} are on one side on {task}, which makes no sample "
            "of either; put -- between them"
        )
    seen: dict[tuple[int | str, bytes, bytes], str] = {}
    for name, curve in [(source.name, curve) for source in sources for curve in source.curves]:
        for seed, returns in zip(curve.seeds, curve.returns.T, strict=True):
            key = (seed, curve.steps.tobytes(), returns.tobytes())
            if key in seen and len(returns) > 1:
                raise UsageError(
                    f"{seen[key]} and {name} hold the same returns of seed {seed}; give a run once"
                )
            seen[key] = name


def _scaled(
    groups: list[Group],
    sources: Sequence[Source],
    references: References,
    notes: list[str],
) -> Groups:
    """Return the groups on their common tasks, normalised if possible for all tasks."""
    everywhere = list(dict.fromkeys(task for group in groups for task in group.tasks))
    tasks = [task for task in everywhere if all(task in group.tasks for group in groups)]
    if not tasks:
        held = "; ".join(f"{group.name} has {', '.join(group.tasks)}" for group in groups)
        raise UsageError(f"no task is common to all groups: {held}")
    for name in references:
        if name not in everywhere:
            raise UsageError(f"reference names {name}; {nearest(name, everywhere)}")
    if left := [task for task in everywhere if task not in tasks]:
        notes.append(f"not compared, as not every group has it: {', '.join(left)}")
    known = {task: _reference(task, sources, references) for task in tasks}
    missing = [task for task, reference in known.items() if reference is None]
    if missing and len(tasks) > 1:
        notes.append(
            "returns of several tasks have no common scale, so only the probability of improvement "
            f"is averaged over them; for scores give --reference '{missing[0]}=RANDOM,EXPERT'"
        )
    compared = [
        group._replace(tasks={task: group.tasks[task] for task in tasks}) for group in groups
    ]
    if not missing:
        compared = [_normalised(group, known) for group in compared]
    _note_seeds(compared, tasks, notes)
    _note_lengths(compared, tasks, notes)
    _note_worlds([source for source in sources if source.task in tasks], notes)
    units = {source.unit for source in sources if source.task in tasks}
    if len(units - {""}) > 1:
        notes.append("the steps of some runs are environment steps, of others gradient steps")
    return Groups(compared, tasks, not missing, units, list(dict.fromkeys(notes)))


def _reference(
    task: str, sources: Sequence[Source], references: References
) -> tuple[float, float] | None:
    if task in references:
        return references[task]
    found = {s.reference for s in sources if s.task == task and s.reference is not None}
    if len(found) > 1:
        raise UsageError(
            f"the runs on {task} have {len(found)} different references; choose one: "
            f"--reference '{task}=RANDOM,EXPERT'"
        )
    return found.pop() if found else None


def _normalised(group: Group, references: Mapping[str, tuple[float, float] | None]) -> Group:
    tasks = {}
    for task, scores in group.tasks.items():
        random, expert = references[task] or (0.0, 100.0)
        tasks[task] = _scores(
            [c._replace(returns=normalized(c.returns, random, expert)) for c in scores.curves]
        )
    return group._replace(tasks=tasks)


def _note_seeds(groups: Sequence[Group], tasks: Sequence[str], notes: list[str]) -> None:
    for group in groups:
        counts = {len(group.tasks[task].final) for task in tasks}
        if len(counts) > 1:
            notes.append(f"{group.name} has {min(counts)} to {max(counts)} seeds, by the task")


def _note_worlds(sources: Sequence[Source], notes: list[str]) -> None:
    """Note the options of the environment in which the runs on a task differ."""
    for task, own in _by(sources, lambda source: source.task).items():
        worlds = [source.world for source in own if source.world]
        for name in sorted({name for world in worlds for name in world}):
            # Old records lack the time limit; other options that are missing have their default.
            known = [world for world in worlds if name != "max_steps" or name in world]
            values = list(dict.fromkeys(repr(world.get(name)) for world in known))
            if len(values) > 1:
                shown = " and ".join(values).replace("None", "the default")
                notes.append(f"the runs on {task} differ in {name}: {shown}")


def _note_lengths(groups: Sequence[Group], tasks: Sequence[str], notes: list[str]) -> None:
    for task in tasks:
        ends = [end for group in groups for end in group.tasks[task].ends]
        if max(ends) > LENGTHS * min(ends):
            notes.append(
                f"runs on {task} end at {min(ends):,} to {max(ends):,} steps; to compare them at "
                f"the same: --steps {min(ends)}"
            )
