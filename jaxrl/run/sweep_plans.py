"""The plan of a sweep: its checks, and the length of each session."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl.data.dataset import checksum
from jaxrl.errors import UsageError
from jaxrl.record.folder import CONFIG
from jaxrl.record.provenance import provenance
from jaxrl.run.extension import named, new_seeds
from jaxrl.run.halving import Halving, Rung
from jaxrl.run.lanes import Lane
from jaxrl.run.legs import Outcome, Variant
from jaxrl.run.pbt import PBT
from jaxrl.run.ranking import WINDOW
from jaxrl.run.settings import Settings
from jaxrl.run.sweep_bar import SweepBar

PARTS = "parts"  # the parent of the legs' folders
INTERVALS = 20  # PBT intervals per run


@dataclasses.dataclass(frozen=True)
class Plans:
    """The arguments of ``sweep``, each checked."""

    variants: list[Variant]
    configurations: list[dict[str, float]]
    seeds: list[int]
    cohorts: list[list[int]]  # the seeds in the order they were added: initial ones, later ones
    method: Halving | PBT | None
    confirm: int
    max_parallel: int | None
    time_one: bool
    settings: Settings
    command: Callable[[Variant, Mapping[str, float]], str] | None

    @property
    def candidates(self) -> list[tuple[int, int]]:
        """The variant and configuration of every candidate."""
        count = len(self.configurations)
        return [(v, c) for v in range(len(self.variants)) for c in range(count)]


class Course:
    """A checked sweep: a lane for each variant, and the iterations at which rungs end.

    ``outcomes`` are the outcomes of finished legs.

    Raises:
        UsageError: for settings that cannot work.
    """

    def __init__(self, plans: Plans, folder: Path | None) -> None:
        self.plans, self.folder = plans, folder
        self.outcomes: list[tuple[int, Outcome]] = []  # with the index of the variant
        settings, method = plans.settings, plans.method
        if isinstance(method, PBT):
            method.check(plans.configurations)
            if settings.eval_every is not None:
                raise UsageError(
                    "eval-every cannot be chosen with pbt, which evaluates twice in an interval; "
                    "give the interval instead, as --interval 20000"
                )
            count, most = len(plans.configurations), plans.max_parallel
            if most is not None and most < count:
                raise UsageError(population_too_large(count, most))
        self.bar = SweepBar(self._label(), settings.quiet)
        parts = None if folder is None else folder / PARTS
        self.lanes = [
            Lane(variant, plans.configurations, settings, parts, self.bar)
            for variant in plans.variants
        ]
        alone = method is not None or plans.time_one
        if alone and any(lane.full.named for lane in self.lanes):
            raise UsageError(
                "halving, pbt and time-one are for runs without phases, and this one has several; "
                "leave them out, and all configurations are trained to the end"
            )
        self.ladder = [Rung(len(plans.candidates), 1.0)]
        if isinstance(method, Halving):
            self.ladder = method.ladder(len(plans.candidates))
        for lane in self.lanes:
            lane.settings = self._settings(lane)
            lane.check(plans.seeds)
        self.ends = [self._ends(lane) for lane in self.lanes]
        self.intervals = [self._interval(lane) for lane in self.lanes]

    def _label(self) -> str:
        trainer: Any = self.plans.variants[0].trainer
        trainer = trainer[-1].trainer if isinstance(trainer, Sequence) else trainer
        config = trainer.config()
        return (
            f"{config['algorithm']} {config['env']} {len(self.plans.candidates)} configurations "
            f"x {len(self.plans.seeds)} seeds"
        )

    # Lengths

    def _settings(self, lane: Lane) -> Settings:
        """Return a lane's settings with its evaluation and checkpoint periods."""
        method, settings = self.plans.method, lane.settings
        units = lane.trainers[0].units_per_iteration
        if isinstance(method, Halving) and self.plans.settings.eval_every is None:
            first = math.ceil(self.ladder[0].share * lane.full.total)
            return dataclasses.replace(settings, eval_every=math.ceil(first / WINDOW) * units)
        if isinstance(method, PBT):
            steps = method.interval or lane.full.total * units // INTERVALS
            each = max(round(steps / units / WINDOW), 1)
            every = settings.checkpoint_every or WINDOW * each * units
            return dataclasses.replace(settings, eval_every=each * units, checkpoint_every=every)
        return settings

    def _ends(self, lane: Lane) -> list[int]:
        """Return the iterations at which the rungs end."""
        ends = [math.ceil(rung.share * lane.full.total - 1e-9) for rung in self.ladder]
        if len(set(ends)) < len(ends):
            raise UsageError(
                f"total_steps make {lane.full.total} iterations, too few for {len(ends)} rungs; "
                f"give more steps, or fewer rungs, as --rungs 2"
            )
        return ends

    def _interval(self, lane: Lane) -> int:
        if not isinstance(self.plans.method, PBT):
            return 0
        units = lane.trainers[0].units_per_iteration
        interval = WINDOW * (lane.settings.eval_every or units) // units
        if interval >= lane.full.total:
            raise UsageError(
                f"interval is {interval * units} steps, and the run has "
                f"{lane.full.total * units}; give a shorter one, as "
                f"{max(lane.full.total * units // INTERVALS, 1)}"
            )
        return interval

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        plans, method = self.plans, self.plans.method
        described = None
        if method is not None:
            described = (
                method.describe()
                if isinstance(method, PBT)
                else {"class": "Halving", **dataclasses.asdict(method)}
            )
        free = (
            *("eval_every", "eval_episodes", "eval_mode", "log_every", "checkpoint_every"),
            "keep_best",
        )
        return {
            "kind": "sweep",
            "method": described,
            "variants": {
                variant.name or "all": {
                    "trainers": {str(i): each.config() for i, each in enumerate(lane.trainers)},
                    "data": checksum(variant.data),
                    "policy_from": variant.policy_from and str(variant.policy_from),
                }
                for variant, lane in zip(plans.variants, self.lanes, strict=True)
            },
            "configurations": {
                str(i): " ".join(f"{k}={v!r}" for k, v in each.items())
                for i, each in enumerate(plans.configurations)
            },
            "seeds": plans.seeds,
            **({"cohorts": plans.cohorts} if len(plans.cohorts) > 1 else {}),
            "confirm": plans.confirm,
            "max_parallel": plans.max_parallel,
            "total_steps": [variant.total_steps for variant in plans.variants],
            **({} if method is None else {"iterations": self.ends, "intervals": self.intervals}),
            **{name: getattr(plans.settings, name) for name in (*free, "max_skipped")},
            "log": list(plans.settings.log),
            **provenance(),
        }


def cohorts_of(folder: Path | None, seeds: list[int], method: Any) -> list[list[int]]:
    """Return the seeds in the order they joined the sweep in ``folder``; new ones come last.

    Raises:
        UsageError: if the sweep has other seeds, or cannot get new ones.
    """
    if folder is None or not (new := new_seeds(folder, seeds)):
        return _known_cohorts(folder) or [seeds]
    if isinstance(method, Halving):
        raise UsageError(
            f"the sweep in {folder} was halved by the scores of its seeds, so {named(new)} cannot "
            "be added; train its best configuration on more seeds instead"
        )
    return [*_known_cohorts(folder), new]


def _known_cohorts(folder: Path | None) -> list[list[int]]:
    """Return the recorded cohorts; none without a record, which ``RunFolder`` then reports."""
    if folder is None:
        return []
    try:
        stored = json.loads((folder / CONFIG).read_text())
        return list(stored.get("cohorts", [stored["seeds"]]))
    except (OSError, ValueError, KeyError, AttributeError):
        return []


def before_added(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a sweep as it was before its last cohort was added."""
    *earlier, new = config["cohorts"]
    seeds = [seed for seed in config["seeds"] if seed not in new]
    rest = {name: x for name, x in config.items() if name != "cohorts"}
    return rest | {"seeds": seeds} | ({"cohorts": earlier} if len(earlier) > 1 else {})


def population_too_large(count: int, most: int) -> str:
    """Return the message for a population whose members cannot all train at once."""
    return (
        f"a population of {count} members must train at once, and only {most} can; "
        f"give a smaller one, or --max-parallel {count} if they fit"
    )
