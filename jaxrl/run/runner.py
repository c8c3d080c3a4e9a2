"""``run``: train, and keep a record. Notebooks and scripts call the same function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxrl import hyper, processes
from jaxrl.data.dataset import checksum
from jaxrl.data.scores import Reference, as_reference
from jaxrl.errors import UsageError
from jaxrl.record.folder import mend
from jaxrl.record.metrics_file import Row
from jaxrl.record.policy import Policy
from jaxrl.record.rows import Member
from jaxrl.run.configurations import check_configurations
from jaxrl.run.distributed import check_alike, loss_reported
from jaxrl.run.extension import Extension, new_seeds
from jaxrl.run.memory import check_dataset, check_states, out_of_memory_reported
from jaxrl.run.phases import Phase, Plan, as_phases, check_one_agent
from jaxrl.run.placement import Placement, choose
from jaxrl.run.policy_from import PolicyFrom
from jaxrl.run.population import population
from jaxrl.run.session import Session, Within
from jaxrl.run.settings import Settings
from jaxrl.run.signals import interruptible
from jaxrl.training.sampling import check_split
from jaxrl.training.trainer import Trainer
from jaxrl.types import Mode, PyTree, TrainState


@dataclasses.dataclass
class Run:
    """The result of a run, in memory; its record, if any, is in ``run_dir``.

    The population is the set of runs trained together (configurations x seeds); each is a member.
    """

    trainer: Trainer  # the trainer of the last phase
    members: list[Member]  # the population, seeds varying fastest
    state: TrainState  # all members, stacked [M, ...]
    rows: list[Row]
    summary: dict[str, Any]
    run_dir: Path | None

    def frame(self, kind: str | None = None) -> Any:
        """Return the metrics as a pandas frame with "train" rows, "eval" rows or both.

        Columns are named as in ``jaxrl.analysis.load``; swept values e.g. ``sweep.learning_rate``.
        """
        import pandas as pd

        from jaxrl.analysis.load import flat

        return pd.DataFrame([flat(row) for row in self.rows if kind in (None, row["kind"])])

    def policy(self, member: int = 0, mode: Mode = "greedy") -> Policy:
        """Return the trained policy of one member."""
        agent = hyper.replace(self.trainer.agent, self.members[member].sweep)
        state = jax.tree.map(lambda x: x[member], processes.readable(self.state.agent))
        return Policy(agent, state, self.trainer.env.spec, mode)


def run(
    trainer: Trainer | Sequence[Phase],
    total_steps: int | None = None,
    *,
    data: PyTree = (),
    reference: Reference | None = None,
    seeds: Sequence[int] | int = 1,
    sweep: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    policy_from: str | Path | None = None,
    eval_every: int | None = None,
    eval_episodes: int = 32,
    eval_mode: Mode = "greedy",
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    keep_best: bool = True,
    devices: int | None = None,
    max_skipped: int = 100,
    max_nonfinite: float = 0.5,
    log: Sequence[str] | str = (),
    quiet: bool = False,
) -> Run:
    """Train the population (all configurations x seeds) together and keep a record.

    Steps are counted per member in the trainer's ``unit`` (environment steps, or gradient steps for
    ``Offline``) and rounded up to whole iterations. With phases, each counts in its own unit, and
    the periods below apply within each phase.

    Args:
        trainer: the trainer of every member, or a sequence of phases.
        total_steps: the minimum number of steps; phases define their own instead.
        data: the dataset that the sampler reads, one copy for all members.
        reference: returns of a random policy and of an expert (``jaxrl.data.scores``); the summary
            then has normalised scores.
        seeds: the seeds, or their number (0, 1, ...).
        sweep: values of hyper-parameters by name, where every combination is a configuration; or a
            list of configurations, e.g. ``[{"gamma": 0.9}, {"gamma": 0.99}]``.
        run_dir: the folder of the record; None keeps everything in memory.
        resume: continue the run in ``run_dir`` from its newest intact checkpoint. Additional seeds
            are first trained alone until they catch up, and then join the others; this can be
            killed and resumed too.
        policy_from: the folder of an earlier run whose policy the agent starts from. Both must have
            the same policy family and sizes, and both must normalise observations or neither. The
            newest checkpoint's policy (its moving average if the agent keeps one) and the
            observation statistics are used; everything else starts fresh. A seed that the earlier
            run also has starts from that seed's policy; any other seed starts from the policy of
            the earlier run's first seed.
        eval_every: steps between evaluations; default a tenth of the run, or of each phase. The
            first is before the first gradient step.
        eval_episodes: episodes per evaluation and member, with the same starts each time.
        eval_mode: how evaluation episodes are played: "greedy"; "sample", from the policy's
            distribution; or "explore", as in training. In a deterministic task with a fixed start,
            all greedy episodes are identical; the summary then says so.
        log_every: steps between rows of metrics; default a fifth of ``eval_every``.
        checkpoint_every: steps between checkpoints; default ``eval_every``.
        keep_best: whether checkpoints also hold each member's agent at its best evaluation so far,
            for ``load_policy(run_dir, checkpoint="best")``. This takes the memory of one more agent
            per member, but no second replay buffer.
        devices: the number of local devices; by default all that the sizes divide over.
        max_skipped: stop once every member has skipped this many consecutive gradient steps because
            they were not finite. If only some members diverge, they are reported and the rest
            continue.
        max_nonfinite: stop if more than this fraction of a chunk's environment steps is non-finite.
        log: additional loggers: "tensorboard", "wandb", or both in a list.
        quiet: no progress bar and no messages.

    Raises:
        UsageError: for input that cannot work, before anything is compiled or written.
        Interrupted: after SIGTERM, SIGHUP or Ctrl-C, once the chunk has ended and a checkpoint has
            been saved.
        RunError: if training cannot continue, or the last checkpoint could not be saved.
    """
    quiet = quiet or not processes.is_first()
    settings = Settings(
        eval_every,
        eval_episodes,
        eval_mode,
        log_every,
        checkpoint_every,
        keep_best,
        devices,
        max_skipped,
        max_nonfinite,
        log,
        quiet,
    )
    seed_list, configurations = population(seeds, sweep)
    if resume and run_dir is None:
        raise UsageError("resume needs the run-dir of the run to continue")
    reference = as_reference(reference)
    if settings.log and run_dir is None:
        raise UsageError(f"log {', '.join(settings.log)} needs a run-dir to write to")

    phases = as_phases(trainer, total_steps)
    trainers = [phase.trainer for phase in phases]
    for each in trainers:
        check_configurations(each, configurations[:1])
    check_data(trainers, data)
    check_one_agent(phases)
    size = len(seed_list) * len(configurations)
    placement = choose(trainers, size, settings.devices)
    used = placement.members * placement.shards
    check_dataset(data, used)
    memory = [each.check_memory(size, used) for each in trainers]
    check_states(trainers, size, settings.eval_episodes, used)
    for each in trainers:
        check_configurations(each, configurations)
    members = [Member(i, c, seed) for i, c in enumerate(configurations) for seed in seed_list]
    plan = settings.plan(phases)
    config = settings.record(plan, placement, seed_list, configurations, checksum(data), reference)
    if policy_from is not None:
        config["policy_from"] = str(policy_from)
    check_alike(config)

    def session_of(
        plan: Plan,
        placement: Placement,
        config: Mapping[str, Any],
        members: Sequence[Member],
        begins: bool,
        within: Within | None = None,
    ) -> Session:
        start = None
        if policy_from is not None:
            start = PolicyFrom(Path(policy_from), trainers[0], members)
        if start is not None and begins:  # a resumed run has the policies in its checkpoint
            start.policies  # noqa: B018
        return Session(plan, placement, config, members, data, quiet, start, within)

    session = session_of(plan, placement, config, members, not resume)
    if resume and run_dir is not None:
        processes.from_first(partial(mend, Path(run_dir)))
    if resume and run_dir is not None and (added := new_seeds(run_dir, seed_list)):
        new = [member for member in members if member.seed in added]
        where = choose(trainers, len(new), settings.devices)
        alone = partial(session_of, within=Within({}))
        report = session.records.report
        extension = Extension(Path(run_dir), plan, config, new, where, alone, report)
        with interruptible() as interrupted, out_of_memory_reported(config):
            extension.make(interrupted)
    with (
        session.records.opened(run_dir, resume, settings.log),
        interruptible() as interrupted,
        out_of_memory_reported(config),
        loss_reported(resumable=run_dir is not None),
    ):
        for line in filter(None, memory):
            session.records.report(line)
        state, summary = session.train(interrupted)
    folder = None if run_dir is None else Path(run_dir)
    return Run(plan.final, members, state, session.records.rows, summary, folder)


def check_data(trainers: Sequence[Trainer], data: PyTree) -> None:
    """Raise UsageError unless a dataset is given exactly when a trainer samples from one.

    Every agent must be able to learn from its trainer's batches.
    """
    readers = [trainer for trainer in trainers if trainer.needs_data]
    for trainer in readers or trainers[:1]:
        trainer.check_data(data)
    check_split(trainers, data)
    for trainer in trainers:
        trainer.check_learning(data if trainer.needs_data else ())
