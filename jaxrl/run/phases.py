"""Phases: the parts of a run, checked together and planned before any of them compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxrl.agents import protocol
from jaxrl.errors import UsageError
from jaxrl.record.rows import Position
from jaxrl.require import plain, require_integer
from jaxrl.run.schedule import Schedule
from jaxrl.training.trainer import Trainer
from jaxrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run: a trainer, its minimum number of steps, and a name.

    Steps are counted in the trainer's ``unit``. Agent state, key and step counts are passed to the
    next phase; environments, agent memory and replay buffer start anew.
    """

    trainer: Trainer
    steps: int
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", plain(self.steps))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A phase with its schedule and its place in the run."""

    trainer: Trainer
    steps: int
    name: str | None
    schedule: Schedule
    index: int  # among the stages
    first: int  # iterations of all earlier stages
    before: Position  # at the end of the previous stage

    @property
    def last(self) -> int:
        """The stage's last iteration, counted over the run."""
        return self.first + self.schedule.total

    def position(self, done: int) -> Position:
        """Return the position after ``done`` iterations of the run, within this stage."""
        trainer, count, before = self.trainer, done - self.first, self.before
        return Position(
            step=before.step + trainer.first_step + count * trainer.units_per_iteration,
            env_steps=before.env_steps + trainer.first_step + count * trainer.steps_per_iteration,
            gradient_steps=before.gradient_steps + count * trainer.gradient_steps_per_iteration,
        )

    def iteration(self, step: int) -> int:
        """Return the run's iteration after which ``position`` has this step."""
        made = step - self.before.step - self.trainer.first_step
        return self.first + made // self.trainer.units_per_iteration

    def next(self, done: int) -> int:
        """Return the iteration of the run at which the chunk that begins after ``done`` ends."""
        return self.first + self.schedule.next(done - self.first)

    def due(self, done: int, event: str) -> bool:
        """Return whether an event (``"eval_every"``) is due; all are due at the end of a stage."""
        return self.schedule.due(done - self.first, event)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of a run, in order. A run without phases is one stage without a name.

    ``begins`` is the number of iterations already done, for a run without phases that continues
    from other runs' states.
    """

    stages: tuple[Stage, ...]
    begins: int = 0

    @property
    def total(self) -> int:
        """The iterations of the whole run."""
        return self.stages[-1].last

    @property
    def final(self) -> Trainer:
        """The trainer of the last stage."""
        return self.stages[-1].trainer

    @property
    def named(self) -> bool:
        """Whether the run has phases."""
        return self.stages[0].name is not None

    @property
    def unit(self) -> str:
        """The unit of steps in all stages, or "steps" if they differ."""
        units = {stage.trainer.unit for stage in self.stages}
        return units.pop() if len(units) == 1 else "steps"

    def position(self, done: int) -> Position:
        """Return the position after ``done`` iterations; between two stages, the end of the
        earlier.
        """
        stage = next(stage for stage in self.stages if done <= stage.last)
        return stage.position(done)

    def trained(self) -> tuple[int, int]:
        """Return a member's steps and gradient steps over all iterations, without warm-ups."""
        counts = [stage.schedule.total for stage in self.stages]
        counts[0] -= self.begins
        trainers = [stage.trainer for stage in self.stages]
        steps = (n * t.units_per_iteration for n, t in zip(counts, trainers, strict=True))
        gradient_steps = (
            n * t.gradient_steps_per_iteration for n, t in zip(counts, trainers, strict=True)
        )
        return sum(steps), sum(gradient_steps)

    def periods(self, name: str) -> Any:
        """Return the steps between two events (``"log_every"``), a list if there are phases."""
        each = [
            getattr(stage.schedule, name) * stage.trainer.units_per_iteration
            for stage in self.stages
        ]
        return each if self.named else each[0]


def as_phases(trainer: Trainer | Sequence[Phase], total_steps: int | None) -> list[Phase]:
    """Return the phases of ``run(trainer, total_steps)`` or ``run([Phase(...), ...])``.

    Raises:
        UsageError: for steps that are missing, given twice, or not positive integers; for phases
            with missing or duplicate names.
    """
    if isinstance(trainer, Trainer):
        if total_steps is None:
            raise UsageError("total_steps is missing; give the length of the run, as 100_000")
        phases = [Phase(trainer, total_steps)]
        require_integer("total_steps", total_steps)
        return phases
    phases = list(trainer)
    if not phases:
        raise UsageError("the run has no phases; give at least one, as Phase(trainer, 1000, 'a')")
    if total_steps is not None:
        raise UsageError(
            f"total_steps is {total_steps}, and every phase has steps of its own; leave it out"
        )
    names = [phase.name for phase in phases]
    for phase in phases:
        if not phase.name:
            raise UsageError("a phase has no name; give one, as Phase(trainer, 1000, 'online')")
        require_integer(f"steps of phase {phase.name!r}", phase.steps)
    if len(set(names)) < len(names):
        raise UsageError(f"phases {names} repeat a name; give every phase its own")
    return phases


def make_plan(
    phases: Sequence[Phase],
    eval_every: int | None,
    log_every: int | None,
    checkpoint_every: int | None,
) -> Plan:
    """Return the plan of ``phases``; the periods are as in ``run``.

    Raises:
        UsageError: for phases that are too short.
    """
    stages: list[Stage] = []
    first, before = 0, Position(0, 0, 0)
    for index, phase in enumerate(phases):
        schedule = _schedule(phase, eval_every, log_every, checkpoint_every)
        steps = int(phase.steps)
        stage = Stage(phase.trainer, steps, phase.name, schedule, index, first, before)
        first, before = stage.last, stage.position(stage.last)
        stages.append(stage)
    return Plan(tuple(stages))


def _schedule(
    phase: Phase, eval_every: int | None, log_every: int | None, checkpoint_every: int | None
) -> Schedule:
    def iterations(steps: int | None, default: int) -> int:
        per_iteration = phase.trainer.units_per_iteration
        return -(-int(steps) // per_iteration) if steps else max(default, 1)

    total = phase.trainer.iterations(int(phase.steps))
    evaluations = iterations(eval_every, -(-total // 10))
    return Schedule(
        total=total,
        log_every=iterations(log_every, evaluations // 5),
        eval_every=evaluations,
        checkpoint_every=iterations(checkpoint_every, evaluations),
    )


def check_one_agent(phases: Sequence[Phase]) -> None:
    """Raise UsageError unless all phases train one agent class with one state structure."""
    first, *others = phases
    wanted = _agent_state(first.trainer) if others else {}
    for phase in others:
        classes = [type(protocol.innermost(each.trainer.agent)) for each in (first, phase)]
        if classes[0] is not classes[1]:
            raise UsageError(
                f"phase {phase.name!r} trains {classes[1].__name__}, and phase {first.name!r} "
                f"{classes[0].__name__}; all phases must share one class of agents"
            )
        found = _agent_state(phase.trainer)
        differing = [
            path
            for path in [*wanted, *(path for path in found if path not in wanted)]
            if wanted.get(path) != found.get(path)
        ]
        if differing:
            path = differing[0]
            raise UsageError(
                f"phases {first.name!r} and {phase.name!r} have agents of different states: "
                f"{path} is {wanted.get(path, 'nothing')}, then {found.get(path, 'nothing')}; "
                "give both the same networks and wrappers"
            )


def _agent_state(trainer: Trainer) -> dict[str, str]:
    """Return the shape and dtype of every leaf of the agent's state, by path."""
    state: PyTree = jax.eval_shape(trainer.agent.init, jax.random.key(0))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(state)
    }
