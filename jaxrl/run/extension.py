"""Adding seeds to a recorded run.

New seeds are first trained alone, from the beginning to the run's newest checkpoint, with the same
chunks and evaluations as the recorded run. This is a run in the folder ``added``, which can be
killed and resumed like any other. Then both records are joined, and the run continues with all
seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl import processes
from jaxrl.errors import Interrupted, UsageError
from jaxrl.record import checkpoint
from jaxrl.record.folder import ADDED, CHECKPOINTS, CONFIG, RunFolder, differences
from jaxrl.record.joining import Record, join, read_record
from jaxrl.record.rows import Member
from jaxrl.run.phases import Plan, Stage
from jaxrl.run.placement import Placement
from jaxrl.run.schedule import Recorded
from jaxrl.run.session import Session

EVALUATED = {"eval_episodes", "eval_mode"}  # added seeds must share these settings with the others
AddedSession = Callable[[Plan, Placement, Mapping[str, Any], Sequence[Member], bool], Session]


def new_seeds(run_dir: str | Path, seeds: Sequence[int]) -> list[int]:
    """Return the ``seeds`` that the run in ``run_dir`` does not have.

    Returns none if the folder holds no run; ``RunFolder`` then reports that.

    Raises:
        UsageError: if the run has seeds that are not in ``seeds``.
    """
    try:
        recorded = json.loads((Path(run_dir) / CONFIG).read_text())["seeds"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    new = [seed for seed in seeds if seed not in recorded]
    missing = [seed for seed in recorded if seed not in seeds]
    if missing:
        raise UsageError(
            f"run-dir {run_dir} has seeds {named(recorded)}, and those asked for lack "
            f"{named(missing)}; seeds can be added to a run, and not taken away"
        )
    return new


def named(seeds: Sequence[int]) -> str:
    """Return seeds in words: ``8 to 15``, or ``1, 5, 7``."""
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 2 and list(seeds) == list(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(map(str, seeds))


@dataclasses.dataclass(frozen=True)
class Extension:
    """Seeds to be added to a run.

    Attributes:
        run_dir: the folder of the run.
        plan: the plan of the whole run.
        config: the configuration of the whole run, with all seeds.
        members: the members of the new seeds only.
        placement: the placement of these members.
        session: makes the session that trains them; its last argument says whether it starts fresh.
        report: called with a line for the user.
    """

    run_dir: Path
    plan: Plan
    config: Mapping[str, Any]
    members: Sequence[Member]
    placement: Placement
    session: AddedSession
    report: Callable[[str], Any]

    @property
    def seeds(self) -> list[int]:
        """The new seeds."""
        return list(dict.fromkeys(member.seed for member in self.members))

    @property
    def folder(self) -> Path:
        """The folder in which the new seeds are trained."""
        return self.run_dir.absolute() / ADDED

    def make(self, interrupted: Callable[[], int | None]) -> None:
        """Train the new seeds and join them to the run; an interrupted session resumes.

        Raises:
            UsageError: if the seeds cannot be joined; nothing has been written then.
            Interrupted: after a signal, with a checkpoint of the new seeds.
            RunError: if training cannot continue, or the records cannot be joined. The run is then
                unchanged.
        """
        if processes.several():
            raise UsageError("seeds are added by one process; start the run on one host")
        stored = json.loads((self.run_dir / CONFIG).read_text())
        own = {"seeds": stored["seeds"], "placement": stored.get("placement")}
        folder = RunFolder(self.run_dir, {**self.config, **own}, True, self.report)
        try:
            self._check(stored)
            checkpoint.clean(folder.checkpoints)
            record, iteration = self._newest()
            self._train(record, iteration, interrupted)
            self.report(f"seeds {named(self.seeds)} join the others")
            join(folder.path, self.folder, self.config, iteration)
        finally:
            folder.close()

    def _check(self, stored: Mapping[str, Any]) -> None:
        """Raise UsageError unless the seeds can be added to the run with these settings."""
        changed = differences(stored, self.config, EVALUATED)
        if changed:
            raise UsageError(
                f"run-dir {self.run_dir} holds a run with another {'; '.join(changed)}; new seeds "
                "are evaluated as the others were, so change it after they have joined"
            )
        try:
            begun = json.loads((self.folder / CONFIG).read_text())["seeds"]
        except FileNotFoundError:
            return
        if begun != self.seeds:
            raise UsageError(
                f"seeds {named(begun)} are being added in {self.folder}, and not "
                f"{named(self.seeds)}; let them join first, or remove that folder"
            )

    def _newest(self) -> tuple[Record, int]:
        """Return the record up to the newest intact checkpoint, and that checkpoint's iteration."""
        folder, found = self.run_dir / CHECKPOINTS, None
        if checkpoint.available(folder):
            found = checkpoint.restore(folder, None, prefix="agent", report=self.report)
        if found is None or found.iteration == 0:
            raise UsageError(
                f"run-dir {self.run_dir} has no trained checkpoint yet; go on with its own seeds "
                "first, or start a run of all of them"
            )
        iteration, meta = found.iteration, found.meta
        stage = self.plan.stages[meta["phase"]]
        if iteration > stage.last:
            raise UsageError(
                f"total-steps is {self.config['total_steps']}, but the run in {self.run_dir} is "
                f"at step {stage.position(iteration).step} already; give at least that"
            )
        done = checkpoint.available(self.folder / CHECKPOINTS)[-1:]
        if done and done[0] > iteration:
            raise UsageError(
                f"the seeds in {self.folder} are at iteration {done[0]}, and the others at "
                f"{iteration}; go on with the others alone first"
            )
        return read_record(self.run_dir, iteration), iteration

    def _train(self, record: Record, iteration: int, interrupted: Callable[[], int | None]) -> None:
        """Train the new seeds up to ``iteration``, in the same way as the others."""
        kept = checkpoint.available(self.run_dir / CHECKPOINTS)
        plan = repeated(self.plan, record, iteration, kept)
        own = {"seeds": self.seeds, "placement": self.placement.describe()}
        resume = (self.folder / CONFIG).exists()
        config = {**self.config, **own}
        session = self.session(plan, self.placement, config, self.members, not resume)
        step = plan.position(iteration).step
        seeds = named(self.seeds)
        self.report(f"training seeds {seeds} to step {step}, where the others are")
        with session.records.opened(self.folder, resume, self.config["log"], self.run_dir):
            try:
                ts = session.train_on(interrupted)
            except Interrupted as error:
                text = f"{error} of seeds {seeds}, which are being added; go on with --resume"
                raise Interrupted(text, error.signum) from None
            newest = session.records.saved()[-1:]
            if newest != [iteration] or session.stage.first == iteration:
                session.save(ts, iteration)  # the first state of a phase
            session.records.require_saved()


def repeated(plan: Plan, record: Record, iteration: int, kept: Sequence[int]) -> Plan:
    """Return the plan that ends at ``iteration`` and repeats the events of a record.

    ``kept`` are the iterations of the checkpoints still in the record.
    """
    last: Stage = plan.stages[record.meta["phase"]]
    stages = []
    for stage in plan.stages[: last.index + 1]:
        ends: dict[str, list[int]] = {"train": [], "eval": []}
        for event in record.events:
            if event.phase == stage.name:
                ends[event.kind].append(stage.iteration(event.step) - stage.first)
        own = vars(stage.schedule) | {"total": min(stage.last, iteration) - stage.first}
        repeating = Recorded(
            **own,
            chunks=tuple(ends["train"]),
            evaluations=frozenset(ends["eval"]),
            checkpoints=frozenset(each - stage.first for each in kept),
        )
        stages.append(dataclasses.replace(stage, schedule=repeating))
    return dataclasses.replace(plan, stages=tuple(stages))
