"""The parts of a sweep: variants, legs and their outcomes.

A *variant* is a static configuration; its programs compile once. A *leg* is a part of its
population, trained as one program from one iteration to another. Each leg is a run with its own
folder and can be resumed like any other.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxrl.data.scores import Reference, as_reference
from jaxrl.record import checkpoint
from jaxrl.record.folder import METRICS, SUMMARY
from jaxrl.record.metrics_file import Row
from jaxrl.run.phases import Phase, Plan
from jaxrl.run.ranking import diverged_members, member_scores
from jaxrl.run.summary import evaluations
from jaxrl.training.trainer import Trainer
from jaxrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class Variant:
    """A static configuration: the arguments of ``run``, and the static choices that name it.

    Attributes:
        trainer: the trainer, or phases.
        total_steps: the length of a run; phases define their own.
        choices: the static choices by name, e.g. ``{"num-envs": "8"}``.
        data, reference, policy_from: as in ``run``.

    Raises:
        UsageError: for a reference that gives no scores.
    """

    trainer: Trainer | Sequence[Phase]
    total_steps: int | None = None
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    data: PyTree = ()
    reference: Reference | None = None
    policy_from: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", as_reference(self.reference))

    @property
    def name(self) -> str:
        """The choices as text: ``num-envs=8``, or an empty string."""
        return " ".join(f"{name}={value}" for name, value in self.choices.items())


class Leg(NamedTuple):
    """A part of a variant's population, trained from iteration ``begins`` to ``ends``."""

    name: str  # its folder's name
    configurations: list[int]  # indices; seeds vary fastest among the members
    seeds: list[int]
    begins: int
    ends: int

    @property
    def members(self) -> list[tuple[int, int]]:
        """Configuration and seed of every member."""
        return [(c, seed) for c in self.configurations for seed in self.seeds]


class Outcome(NamedTuple):
    """The outcome of a leg: scores and returns of its members ``[M]``, and its cost."""

    leg: Leg
    scores: NDArray[np.float64]
    final: NDArray[np.float64]  # returns of the last evaluation
    diverged: NDArray[np.bool_]
    summary: dict[str, Any]
    lineage: list[dict[str, Any]]
    values: list[Mapping[str, float]]  # the members' last values


def outcome(leg: Leg, rows: Sequence[Row], summary: dict, extra: dict, max_skipped: int) -> Outcome:
    """Return the outcome of a leg from its run's rows, summary and lineage.

    The evaluation before training counts in no score.
    """
    count = len(leg.members)
    returns = evaluations(rows, count)
    diverged = diverged_members(rows, count, max_skipped)
    untrained = leg.begins == 0 and len(returns) > 1
    scores = member_scores(returns[1:] if untrained else returns, diverged)
    values = [row.get("sweep", {}) for row in rows[-count:]]
    lineage = extra.get("lineage", [])
    return Outcome(leg, scores, returns[-1], diverged, summary, lineage, values)


def finished(folder: Path | None, plan: Plan) -> tuple[list[Row], dict | None, dict]:
    """Return a leg's rows, summary and lineage; the summary is None if it has not finished."""
    if folder is None or not (folder / SUMMARY).exists():
        return [], None, {}
    summary = json.loads((folder / SUMMARY).read_text())
    if summary["total_steps"] != plan.position(plan.total).step:
        return [], None, {}  # the sweep was extended
    rows = [json.loads(line) for line in (folder / METRICS).read_bytes().splitlines()]
    at = checkpoint.available(folder / "checkpoints")[-1:]
    extra: dict = {}
    for iteration in at:
        manifest = folder / "checkpoints" / str(iteration) / "manifest.json"
        extra = json.loads(manifest.read_text())["meta"].get("extra", {})
    return rows, summary, extra


def divide(
    configurations: Sequence[int], seeds: Sequence[int], most: int
) -> list[tuple[list[int], list[int]]]:
    """Return parts of at most ``most`` members, as even as possible: (configurations, seeds) each.

    The seeds of a configuration stay together if they fit.
    """
    if most < len(seeds):
        return [([c], part) for c in configurations for part in _even(seeds, most)]
    return [(part, list(seeds)) for part in _even(configurations, most // len(seeds))]


def _even(items: Sequence[int], most: int) -> list[list[int]]:
    count = math.ceil(len(items) / most)
    size = math.ceil(len(items) / count)
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
