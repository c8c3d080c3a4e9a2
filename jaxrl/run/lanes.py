"""Training a variant's population, leg by leg."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import processes
from jaxrl.data.dataset import checksum
from jaxrl.errors import UsageError
from jaxrl.memory import nbytes
from jaxrl.record import checkpoint
from jaxrl.record.folder import CONFIG
from jaxrl.record.rows import Member
from jaxrl.run.best import with_best, without_best
from jaxrl.run.configurations import check_configurations
from jaxrl.run.devices import Programs
from jaxrl.run.legs import Leg, Outcome, Variant, finished, outcome
from jaxrl.run.memory import check_dataset, out_of_memory_reported
from jaxrl.run.phases import Phase, Plan, as_phases, check_one_agent
from jaxrl.run.placement import Placement, members_alone
from jaxrl.run.policy_from import PolicyFrom
from jaxrl.run.runner import check_data
from jaxrl.run.session import Session, Within
from jaxrl.run.settings import Settings
from jaxrl.run.sizing import analysed, check_bare, most_members, shapes
from jaxrl.run.sweep_bar import SweepBar
from jaxrl.types import TrainState


def _is_begun(folder: Path | None) -> bool:
    return folder is not None and (folder / CONFIG).exists()


class Lane:
    """Trains one variant's population.

    Args:
        variant: the static configuration.
        configurations: the numeric values that the sweep tries.
        settings: the run settings of every leg.
        folder: the parent of the legs' folders; None keeps everything in memory.
        bar: the sweep's progress bar.

    Raises:
        UsageError: for trainers that cannot train the configurations, or runs that are too short.
    """

    def __init__(
        self,
        variant: Variant,
        configurations: Sequence[Mapping[str, float]],
        settings: Settings,
        folder: Path | None,
        bar: SweepBar,
    ) -> None:
        self.variant, self.configurations = variant, configurations
        self.folder, self.bar = folder, bar
        self.phases = as_phases(variant.trainer, variant.total_steps)
        self.trainers = [phase.trainer for phase in self.phases]
        for each in self.trainers:  # a plan divides by their sizes
            check_configurations(each, configurations)
            each.check()
        self.full = settings.plan(self.phases)
        self.settings = settings
        if not self.full.named and settings.eval_every is None:  # the same in all legs
            self.settings = dataclasses.replace(
                settings, eval_every=self.full.periods("eval_every")
            )
        self.programs: dict[tuple, Any] = {}
        self.compile_seconds = 0.0  # for programs that were compiled to measure their memory
        self._states: dict[str, TrainState] = {}
        self._checksum: str | None = None

    # Checks and sizes

    def check(self, seeds: Sequence[int]) -> None:
        """Raise UsageError for settings that cannot work, before anything is compiled."""
        check_data(self.trainers, self.variant.data)
        check_one_agent(self.phases)
        if not self.full.final.evaluates:
            raise UsageError(
                "a sweep ranks by evaluation returns, and the trainer has no environment; "
                "give it one, as Offline(agent, env)"
            )
        check_dataset(self.variant.data, 1)
        self.placement(1)
        check_bare(self.trainers, 1, self.settings.eval_episodes, 1)
        self._policies([Member(0, self.configurations[0], seed) for seed in seeds])
        self._checksum = checksum(self.variant.data)

    def _policies(self, members: Sequence[Member]) -> PolicyFrom | None:
        if self.variant.policy_from is None:
            return None
        found = PolicyFrom(Path(self.variant.policy_from), self.trainers[0], members)
        found.policies  # noqa: B018 (raises if the policies do not fit)
        return found

    def placement(self, members: int) -> Placement:
        """Return the placement: members over as many devices as divide them, without sharding.

        Raises:
            UsageError: for more devices than there are.
        """
        return members_alone(members, self.settings.devices)

    def most_members(self, wanted: int) -> tuple[int, str]:
        """Return the members that fit in memory at once, at most ``wanted``, and a line about it.

        The programs compiled for this are kept for the first leg of this size.
        """
        stage, settings = self.full.stages[-1], self.settings

        def needs(members: int) -> int | None:
            placement = self.placement(members)
            programs = Programs(stage.trainer, placement, settings.eval_mode)
            data = self.variant.data if stage.trainer.needs_data else ()
            names, began = list(self.configurations[0]), time.monotonic()
            compiled, needed = analysed(programs, names, members, data, settings.eval_episodes)
            if needed is not None and settings.keep_best:
                agent = jax.eval_shape(stage.trainer.agent.init, jax.random.key(0))
                needed += members * nbytes(agent)
            self.compile_seconds += time.monotonic() - began
            if placement.members == 1:
                self.programs["chunk", stage.index, members] = compiled
            return needed

        def bare(members: int) -> None:
            used = self.placement(members).members
            check_bare(self.trainers, members, settings.eval_episodes, used)

        return most_members(wanted, bare, needs, lambda n: self.placement(n).members)

    # Training

    def plan(self, leg: Leg) -> Plan:
        """Return the plan of a leg: the plan of the whole run, cut off at the leg's end."""
        if self.full.named:
            return self.full
        (stage,) = self.full.stages
        trainer = stage.trainer
        steps = trainer.first_step + leg.ends * trainer.units_per_iteration
        whole = leg.ends == self.full.total
        plan = self.settings.plan([Phase(trainer, stage.steps if whole else steps)])
        return dataclasses.replace(plan, begins=leg.begins)

    def train(
        self,
        leg: Leg,
        interrupted: Callable[[], int | None],
        origin: Callable[[], TrainState] | None = None,
        session: Callable[..., Session] = Session,
        keep: bool = False,
    ) -> Outcome:
        """Train a leg to its end, or read its recorded outcome; it starts from ``origin``'s states.

        With ``keep``, its last states stay available even without a folder.

        Raises:
            Interrupted: after a signal, with a checkpoint.
            RunError: if training cannot continue.
        """
        plan, configurations = self.plan(leg), [self.configurations[c] for c in leg.configurations]
        members = [
            Member(i, each, seed) for i, each in enumerate(configurations) for seed in leg.seeds
        ]
        folder = None if self.folder is None else self.folder / leg.name
        rows, summary, extra = processes.from_first(partial(finished, folder, plan))
        first, last = (self.full.position(i).step if i else 0 for i in (leg.begins, leg.ends))
        if summary is None:
            placement = self.placement(len(members))
            config = self.settings.record(
                plan, placement, leg.seeds, configurations, self._checksum, self.variant.reference
            )
            start = self._policies(members) if origin is None else None
            within = Within(self.programs, origin)
            data, quiet = self.variant.data, self.settings.quiet
            training = session(plan, placement, config, members, data, quiet, start, within)
            training.records.bar = self.bar.of(len(members), first)
            resume = processes.from_first(partial(_is_begun, folder))
            with (
                training.records.opened(folder, resume, self.settings.log),
                out_of_memory_reported(config),
            ):
                state, summary = training.train(interrupted)
            if folder is None and keep:
                self._states[leg.name] = processes.readable(state)
            rows, extra = training.records.rows, training.records.extra
        self.bar.add((last - first) * len(members))
        return outcome(leg, rows, summary, extra, self.settings.max_skipped)

    def forget(self, legs: Sequence[Leg]) -> None:
        """Drop the in-memory states of legs."""
        for leg in legs:
            self._states.pop(leg.name, None)

    def states(self, leg: Leg, rows: Sequence[int]) -> TrainState:
        """Return the last states of these members of a finished leg, on the host or on devices.

        Raises:
            CheckpointError: if the leg's checkpoint is not intact.
        """
        if self.folder is None:
            state = self._states[leg.name]
        else:
            stage = self.full.stages[-1]
            data = self.variant.data if stage.trainer.needs_data else ()
            programs = Programs(stage.trainer, Placement())
            names, count = list(self.configurations[0]), len(leg.members)
            _, _, template = shapes(programs, names, count, data)
            folder = self.folder / leg.name / "checkpoints"

            def whole(meta: Mapping[str, Any]) -> dict[str, Any]:
                return with_best(template, template.agent if meta.get("best") else ())

            state, _ = without_best(checkpoint.restore(folder, whole, leg.ends).state)
        chosen: TrainState = jax.tree.map(lambda x: x[np.array(rows)], state)
        return chosen

    def gather(self, legs: Sequence[Leg], wanted: Sequence[tuple[int, int]]) -> TrainState:
        """Return the last states of members (configuration, seed) of several legs, in order."""
        found, order = [], []
        for leg in legs:
            known = {member: row for row, member in enumerate(leg.members)}
            own = [member for member in wanted if member in known]
            if own:
                found.append(self.states(leg, [known[member] for member in own]))
                order += own
        index = np.array([order.index(member) for member in wanted])
        together = jax.tree.map(lambda *xs: jnp.concatenate(xs)[index], *found)
        gathered: TrainState = together
        return gathered
