"""The settings of a run that are independent of what it trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl.data.scores import Reference
from jaxrl.errors import UsageError
from jaxrl.record.provenance import provenance
from jaxrl.require import plain, require, require_choice, require_integer
from jaxrl.run.logs import check_writers
from jaxrl.run.phases import Phase, Plan, make_plan
from jaxrl.run.placement import Placement
from jaxrl.types import Mode

OPTIONAL = {"eval_every", "log_every", "checkpoint_every"}
INTEGERS = ("eval_every", "eval_episodes", "log_every", "checkpoint_every", "max_skipped")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Evaluation, logging, checkpoints, devices and limits, like the arguments of ``run``.

    Raises:
        UsageError: for a value that cannot work.
    """

    eval_every: int | None = None
    eval_episodes: int = 32
    eval_mode: Mode = "greedy"
    log_every: int | None = None
    checkpoint_every: int | None = None
    keep_best: bool = True
    devices: int | None = None
    max_skipped: int = 100
    max_nonfinite: float = 0.5
    log: Sequence[str] | str = ()
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in INTEGERS:
            require_integer(name, getattr(self, name), optional=name in OPTIONAL)
        require_integer("devices", self.devices, -math.inf, optional=True)
        if self.max_nonfinite is None:
            raise UsageError("max_nonfinite is None; it must be at least 0 and at most 1, as 0.5")
        require("max_nonfinite", self.max_nonfinite, 0, 1)
        require_choice("eval_mode", self.eval_mode, Mode)
        object.__setattr__(self, "log", check_writers(self.log))
        # They are recorded as JSON, which numpy and JAX numbers do not support.
        for name in (*INTEGERS, "devices", "max_nonfinite"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def plan(self, phases: Sequence[Phase]) -> Plan:
        """Return the plan for a run with these phases.

        Raises:
            UsageError: for phases that are too short.
        """
        return make_plan(phases, self.eval_every, self.log_every, self.checkpoint_every)

    def record(
        self,
        plan: Plan,
        placement: Placement,
        seeds: Sequence[int],
        configurations: Sequence[Mapping[str, float]],
        checksum: str | None,
        reference: Reference | None,
    ) -> dict[str, Any]:
        """Return the content of ``config.json`` for a run of ``plan``."""
        return {
            **describe(plan),
            "data": {"checksum": checksum},
            "reference": None if reference is None else reference._asdict(),
            "seeds": list(seeds),
            "sweep": [dict(each) for each in configurations if each],
            "eval_episodes": int(self.eval_episodes),
            "eval_mode": self.eval_mode,
            "keep_best": bool(self.keep_best),
            "max_skipped": int(self.max_skipped),
            "max_nonfinite": float(self.max_nonfinite),
            "log": list(self.log),
            "placement": placement.describe(),
            **provenance(),
        }


def describe(plan: Plan) -> dict[str, Any]:
    """Return the entries of ``config.json`` about trainers and lengths.

    With phases, the last phase's entries stand for the run, and ``phases`` lists all of them.
    """
    phases = [
        {"name": stage.name, "steps": stage.steps, **stage.trainer.config()}
        for stage in plan.stages
    ]
    return {
        **plan.final.config(),
        **({"phases": phases} if plan.named else {}),
        "unit": plan.unit,
        "total_steps": sum(stage.steps for stage in plan.stages),
        "eval_every": plan.periods("eval_every"),
        "log_every": plan.periods("log_every"),
        "checkpoint_every": plan.periods("checkpoint_every"),
    }
