"""``run``: train, and keep a record. Notebooks and scripts call the same function."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.record.metrics_file import Row
from jaxrl.record.policy import Policy
from jaxrl.record.provenance import provenance
from jaxrl.record.rows import Member
from jaxrl.run import devices as placing
from jaxrl.run.logs import check_writers
from jaxrl.run.memory import out_of_memory_reported
from jaxrl.run.schedule import Schedule
from jaxrl.run.session import Session
from jaxrl.run.signals import interruptible
from jaxrl.run.sweep import check_configurations, grid
from jaxrl.training.trainer import Trainer
from jaxrl.types import Mode, TrainState


@dataclasses.dataclass
class Run:
    """The result of a run, in memory; its record is in ``run_dir`` if it had one.

    The population is the runs trained together (configurations x seeds); a member is one of them.
    """

    trainer: Trainer
    members: list[Member]  # the population, seeds varying fastest
    state: TrainState  # of all members, stacked [M, ...]
    rows: list[Row]
    summary: dict[str, Any]
    run_dir: Path | None

    def frame(self, kind: str | None = None) -> Any:
        """Return the metrics as a pandas frame, of "train" or "eval" rows or both."""
        import pandas as pd

        rows = [row for row in self.rows if kind in (None, row["kind"])]
        return pd.DataFrame(rows)

    def policy(self, member: int = 0, mode: Mode = "greedy") -> Policy:
        """Return the trained policy of one member."""
        agent = hyper.replace(self.trainer.agent, self.members[member].sweep)
        state = jax.tree.map(lambda x: x[member], self.state.agent)
        return Policy(agent, state, self.trainer.env.spec, mode)


def run(
    trainer: Trainer,
    total_steps: int,
    *,
    seeds: Sequence[int] | int = 1,
    sweep: Mapping[str, Sequence[float]] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    eval_every: int | None = None,
    eval_episodes: int = 32,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    devices: int | None = None,
    max_skipped: int = 100,
    max_nonfinite: float = 0.5,
    log: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Train the population (all configurations x seeds) together, and keep a record of it.

    Steps are environment steps of one member, rounded up to whole iterations.

    Args:
        trainer: the trainer of every member.
        total_steps: the minimum number of steps.
        seeds: the seeds, or their number (0, 1, ...).
        sweep: values of hyper-parameters, by name; every combination is a configuration.
        run_dir: the folder of the record; None keeps everything in memory.
        resume: continue the run in ``run_dir`` from its newest intact checkpoint.
        eval_every: steps between evaluations; default a tenth of the run. The first is at step 0.
        eval_episodes: greedy episodes per evaluation and member, the same starts each time.
        log_every: steps between rows of metrics; default a fifth of ``eval_every``.
        checkpoint_every: steps between checkpoints; default ``eval_every``.
        devices: the number of local devices; default all that the sizes divide over.
        max_skipped: stop after this many consecutive gradient steps were skipped as not finite, for
            every member; if only some members diverge, they are reported and the rest go on.
        max_nonfinite: stop if more than this fraction of a chunk's environment steps was not
            finite.
        log: other places to log to: "tensorboard", "wandb".
        quiet: no progress bar and no messages.

    Raises:
        UsageError: for input that cannot work, before anything is compiled or written.
        Interrupted: after SIGTERM or Ctrl-C, once the chunk has ended and a checkpoint is saved.
        RunError: if training cannot go on, or the last checkpoint could not be saved.
    """
    seed_list = (
        [*range(seeds)] if isinstance(seeds, int | np.integer) else [*map(operator.index, seeds)]
    )
    configurations = grid(sweep) if sweep else [{}]
    positive = {
        "total_steps": total_steps,
        "num_seeds": len(seed_list),
        "eval_every": eval_every,
        "eval_episodes": eval_episodes,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
        "max_skipped": max_skipped,
    }
    for option, number in positive.items():
        if number is not None and not isinstance(number, Integral):
            raise UsageError(f"{option} is {number!r}; it must be an integer")
        hyper.require(option, number, 1)
    total_steps, eval_episodes, max_skipped = map(int, (total_steps, eval_episodes, max_skipped))
    hyper.require("max_nonfinite", max_nonfinite, 0, 1)
    for seed in seed_list:
        hyper.require("seed", seed, 0, 2**31 - 1)
    if len(set(seed_list)) < len(seed_list):
        raise UsageError(f"seeds {seed_list} repeat; give every seed once")
    if resume and run_dir is None:
        raise UsageError("resume needs the run-dir of the run to continue")
    if log and run_dir is None:
        raise UsageError(f"log {', '.join(log)} needs a run-dir to write to")
    check_writers(log)
    check_configurations(trainer, configurations)
    members = [Member(i, c, seed) for i, c in enumerate(configurations) for seed in seed_list]
    placement = placing.choose(trainer, len(members), devices)
    memory = trainer.check_memory(len(members), placement.members * placement.shards)

    def iterations(steps: int | None, default: int) -> int:
        return -(-int(steps) // trainer.steps_per_iteration) if steps else max(default, 1)

    total = trainer.iterations(total_steps)
    evaluations = iterations(eval_every, -(-total // 10))
    schedule = Schedule(
        total=total,
        log_every=iterations(log_every, evaluations // 5),
        eval_every=evaluations,
        checkpoint_every=iterations(checkpoint_every, evaluations),
        steps=trainer.steps_per_iteration,
        first=trainer.first_step,
        updates=trainer.updates_per_iteration,
    )
    config = {
        **trainer.config(),
        "seeds": seed_list,
        "sweep": configurations if sweep else [],
        "total_steps": total_steps,
        "eval_every": schedule.eval_every * schedule.steps,
        "eval_episodes": eval_episodes,
        "log_every": schedule.log_every * schedule.steps,
        "checkpoint_every": schedule.checkpoint_every * schedule.steps,
        "max_skipped": max_skipped,
        "max_nonfinite": float(max_nonfinite),
        "log": list(log),
        "placement": placement.describe(),
        **provenance(),
    }
    session = Session(trainer, placement, schedule, config, members, quiet)
    with (
        session.opened(run_dir, resume, log),
        interruptible() as interrupted,
        out_of_memory_reported(config),
    ):
        if memory:
            session.report(memory)
        state, summary = session.train(interrupted)
    folder = None if run_dir is None else Path(run_dir)
    return Run(trainer, members, state, session.rows, summary, folder)
