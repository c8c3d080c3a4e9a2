"""``sweep``: many configurations x seeds, ranked. Notebooks and scripts call the same function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl import processes
from jaxrl.data.scores import Reference
from jaxrl.errors import UsageError
from jaxrl.require import INT32_MAX, require_integer, shown
from jaxrl.run.halving import Halving
from jaxrl.run.legs import Variant
from jaxrl.run.pbt import PBT
from jaxrl.run.phases import Phase, as_phases
from jaxrl.run.population import population
from jaxrl.run.settings import Settings
from jaxrl.run.spaces import Space, grid, spaces_of
from jaxrl.run.sweep_driver import Driver
from jaxrl.run.sweep_plans import Course, Plans, cohorts_of
from jaxrl.training.trainer import Trainer
from jaxrl.types import Mode, PyTree

Method = Halving | PBT | None


@dataclasses.dataclass
class Sweep:
    """The result of a sweep; its record, if any, is in ``run_dir``.

    Attributes:
        table: a row per configuration (with PBT, per member), best first.
        summary: the best configuration, how reliable its score is, and the cost of the sweep.
        run_dir: the folder, or None.
    """

    table: list[dict[str, Any]]
    summary: dict[str, Any]
    run_dir: Path | None

    def frame(self) -> Any:
        """Return the table as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.table)

    def plot(self) -> Any:
        """Return the heat map of scores, or PBT's best schedule, as a matplotlib figure."""
        from jaxrl.analysis.heat_map import plot_sweep

        return plot_sweep(self.table, self.summary)


def sweep(
    trainer: Trainer | Sequence[Phase] | Sequence[Variant],
    total_steps: int | None = None,
    *,
    configurations: Mapping[str, Space | Sequence[float]] | Sequence[Mapping[str, float]],
    method: Method = None,
    seeds: Sequence[int] | int = 1,
    confirm: int = 0,
    max_parallel: int | None = None,
    time_one: bool = False,
    data: PyTree = (),
    reference: Reference | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    command: Callable[[Variant, Mapping[str, float]], str] | None = None,
    eval_every: int | None = None,
    eval_episodes: int = 32,
    eval_mode: Mode = "greedy",
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    keep_best: bool = True,
    devices: int | None = None,
    max_skipped: int = 100,
    log: Sequence[str] | str = (),
    quiet: bool = False,
) -> Sweep:
    """Train all configurations x seeds, rank the configurations, and keep a record.

    The members of one static configuration form one program. A seed's score is its mean return in
    the last two evaluations, without the one before training; a configuration's score is the IQM
    over its seeds. Members that diverge count as the lowest. They do not affect the others, which
    continue training.

    Args:
        trainer: the trainer of all members, or phases, or variants (static configurations).
        total_steps: the minimum number of steps; phases and variants define their own.
        configurations: numeric values by name. Either spaces (or lists of numbers), whose
            combinations are all tried, or a list of configurations, e.g. from
            ``jaxrl.run.spaces.draw``.
        method: None trains all to the end; ``Halving`` drops the worst during training; ``PBT``
            changes the values during training.
        seeds: the seeds, or their number (0, 1, ...); with PBT, one independent population per
            seed.
        confirm: fresh seeds on which the best configuration is trained again. The score that
            selected it is the best of many and therefore biased upwards; the score on fresh seeds
            is not.
        max_parallel: the maximum number of members trained at once; by default as many as fit
            according to the compiled program's memory analysis.
        time_one: whether to also time a single run, over a twentieth of its length.
        data, reference: as in ``run``, unless there are variants.
        run_dir: the folder of the record; None keeps everything in memory.
        resume: continue the sweep in ``run_dir``. Additional seeds are trained for every
            configuration (with PBT, as additional populations). A halved sweep cannot get more
            seeds.
        command: returns the command line that repeats a configuration, for the record.
        eval_every: steps between evaluations; default a tenth of the run. By default, halving
            evaluates twice in its first rung. PBT always evaluates twice per interval.
        eval_episodes, eval_mode, log_every, checkpoint_every, keep_best: as in ``run``.
        devices, max_skipped, log, quiet: as in ``run``. Members are spread over devices, but their
            environments are not.

    Raises:
        UsageError: for input that cannot work, before anything is compiled or written.
        Interrupted: after a signal, once the chunk has ended and a checkpoint has been saved.
        RunError: if training cannot continue, or a checkpoint could not be saved.
    """
    settings = Settings(
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        eval_mode=eval_mode,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        keep_best=keep_best,
        devices=devices,
        max_skipped=max_skipped,
        log=log,
        quiet=quiet or not processes.is_first(),
    )
    require_integer("confirm", confirm, 0)
    require_integer("max_parallel", max_parallel, optional=True)
    if resume and run_dir is None:
        raise UsageError("resume needs the run-dir of the sweep to continue")
    if method is not None and not isinstance(method, Halving | PBT):
        raise UsageError(
            f"method is {shown(method)}; give None, Halving(2), or "
            "PBT({'gamma': Values((0.9, 0.99))})"
        )
    if isinstance(configurations, Mapping):
        configurations = grid(spaces_of("configurations", configurations))
    seed_list, listed = population(seeds, configurations)
    if max(seed_list) + confirm > INT32_MAX:
        raise UsageError(
            f"confirm is {confirm}, and {max(seed_list)} is a seed; fresh seeds are larger than "
            f"all others, and at most {INT32_MAX}, so give smaller seeds"
        )
    folder = None if run_dir is None else Path(run_dir)
    plans = Plans(
        variants=_variants(trainer, total_steps, data, reference),
        configurations=listed,
        seeds=seed_list,
        cohorts=cohorts_of(folder, seed_list, method) if resume else [seed_list],
        method=method,
        confirm=confirm,
        max_parallel=max_parallel,
        time_one=time_one,
        settings=settings,
        command=command,
    )
    table, summary = Driver(Course(plans, folder)).run(resume)
    return Sweep(table, summary, folder)


def _variants(trainer: Any, steps: int | None, data: PyTree, reference: Any) -> list[Variant]:
    """Return the variants, given as variants, a trainer or phases."""
    if isinstance(trainer, Trainer) or not all(isinstance(each, Variant) for each in trainer):
        return [Variant(trainer, steps, data=data, reference=reference)]
    variants = list(trainer)
    if not variants:
        raise UsageError("the sweep has no variants; give at least one, as Variant(trainer, 10000)")
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise UsageError(f"variants {names} repeat a name; give each its own choices")
    for variant in variants:
        as_phases(variant.trainer, variant.total_steps)
    return variants
