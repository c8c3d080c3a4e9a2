"""``run``: train, and keep a record of it. Of a notebook and of a script the same function."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from jaxrl import hyper
from jaxrl.agents import NormalizeObs, ScaleReward
from jaxrl.errors import RunError, UsageError
from jaxrl.run import devices as placing
from jaxrl.run.folder import circumstances
from jaxrl.run.logs import check_writers
from jaxrl.run.policy import Policy
from jaxrl.run.rows import Member, Row
from jaxrl.run.schedule import Schedule
from jaxrl.run.session import Session
from jaxrl.training.trainer import Trainer
from jaxrl.types import Mode, TrainState

# What asks scripts for a wrapper. A scale of 1 needs none.
WRAPPERS: dict[Any, str] = {
    NormalizeObs: "--normalize-obs",
    ScaleReward: "a --reward-scale other than 1",
}


@dataclasses.dataclass
class Run:
    """What a run leaves behind: all of it in memory, and in ``run_dir`` if it had one."""

    trainer: Trainer
    members: list[Member]  # configurations x seeds, seeds varying fastest
    state: TrainState  # of all members, stacked [M, ...]
    rows: list[Row]
    summary: dict[str, Any]
    run_dir: Path | None

    def frame(self, kind: str | None = None) -> Any:
        """The metrics as a pandas frame, of "train" or "eval" rows or both."""
        import pandas as pd

        rows = [row for row in self.rows if kind in (None, row["kind"])]
        return pd.DataFrame(rows)

    def policy(self, member: int = 0, mode: Mode = "greedy") -> Policy:
        """The trained policy of one member."""
        agent = hyper.replace(self.trainer.agent, self.members[member].sweep)
        state = jax.tree.map(lambda x: x[member], self.state.agent)
        return Policy(agent, state, self.trainer.env.spec, mode)


def grid(sweep: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """All combinations of the swept values: ``{"gamma": [0.9, 0.99]}`` gives two.

    Raises:
        UsageError: for a name without values.
    """
    for name, values in sweep.items():
        if not len(values):
            raise UsageError(f"sweep of {name} has no values; give some, as gamma=0.9,0.99")
    names = list(sweep)
    return [
        dict(zip(names, map(float, values), strict=True))  # they are recorded as JSON
        for values in itertools.product(*sweep.values())
    ]


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
    """Train all members (configurations x seeds) together, and keep a record of it.

    Steps are environment steps of one member, rounded up to whole iterations.

    Args:
        trainer: what to train.
        total_steps: at least so many steps.
        seeds: which, or how many (0, 1, ...).
        sweep: values of hyper-parameters, by name; every combination is a configuration.
        run_dir: the folder of the record; None keeps everything in memory.
        resume: continue the run in ``run_dir`` from its newest intact checkpoint.
        eval_every: steps between evaluations; default a tenth of the run. The first is at step 0.
        eval_episodes: greedy episodes per evaluation and member, the same starts each time.
        log_every: steps between rows of metrics; default a fifth of ``eval_every``.
        checkpoint_every: steps between checkpoints; default ``eval_every``.
        devices: how many local devices to use; default all that the sizes divide over.
        max_skipped: stop once so many gradient steps in a row were skipped as not finite, of every
            member; a member that is not alone is told of.
        max_nonfinite: stop once more than this part of a chunk's environment steps was not finite.
        log: other places to log to: "tensorboard", "wandb".
        quiet: no progress bar and no messages.

    Raises:
        UsageError: for input that cannot work, before anything is compiled or written.
        Interrupted: after SIGTERM or Ctrl-C, once the chunk has ended and a checkpoint is saved.
        RunError: if training cannot go on, or the last checkpoint could not be saved.
    """
    names = (
        [*range(seeds)] if isinstance(seeds, int | np.integer) else [*map(operator.index, seeds)]
    )
    configurations = grid(sweep) if sweep else [{}]
    positive = {
        "total_steps": total_steps,
        "num_seeds": len(names),
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
    for seed in names:
        hyper.require("seed", seed, 0, 2**31 - 1)
    if len(set(names)) < len(names):
        raise UsageError(f"seeds {names} repeat; give every seed once")
    if resume and run_dir is None:
        raise UsageError("resume needs the run-dir of the run to continue")
    if log and run_dir is None:
        raise UsageError(f"log {', '.join(log)} needs a run-dir to write to")
    check_writers(log)
    placement = choose_placement(trainer, configurations, len(names), devices)
    count = len(configurations) * len(names)
    memory = trainer.check_memory(count, placement.members * placement.shards)

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
        "seeds": names,
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
        **circumstances(),
    }
    members = [Member(i, c, seed) for i, c in enumerate(configurations) for seed in names]
    session = Session(trainer, placement, schedule, config, members, quiet)
    with (
        session.opened(run_dir, resume, log),
        interruptible() as interrupted,
        memory_told(config),
    ):
        if memory:
            session.report(memory)
        state, summary = session.train(interrupted)
    folder = None if run_dir is None else Path(run_dir)
    return Run(trainer, members, state, session.rows, summary, folder)


def check_in_use(trainer: Trainer, sweep: Iterable[str]) -> None:
    """Raise UsageError for swept names of wrappers that ``trainer`` goes without."""
    known = hyper.numbers(trainer)
    for wrapper, option in WRAPPERS.items():
        fields = {field.name for field in dataclasses.fields(wrapper)}
        for name in sweep:
            if name in fields - known.keys():
                raise UsageError(
                    f"{name} is not in use, and so cannot be swept; "
                    f"wrap the agent in {wrapper.__name__}, or give {option}, first"
                )


def choose_placement(
    trainer: Trainer, configurations: Sequence[Mapping[str, float]], seeds: int, count: int | None
) -> placing.Placement:
    """Check every configuration, then place all members."""
    check_in_use(trainer, configurations[0])
    for configuration in configurations:
        hyper.replace(trainer, configuration).check()
    return placing.choose(trainer, len(configurations) * seeds, count)


@contextmanager
def memory_told(config: Mapping[str, Any]) -> Iterator[None]:
    """XLA's running out of memory as one line that names what to lower."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        sizes = {
            "num-envs": config["num_envs"],
            "unroll": config["trainer"].get("unroll"),
            "capacity": config["trainer"].get("capacity"),
            "num-seeds": len(config["seeds"]),
            "configurations of the sweep": len(config["sweep"]) or None,
        }
        given = ", ".join(f"{name} ({size})" for name, size in sizes.items() if size is not None)
        reason = text.splitlines()[0][:120]
        raise RunError(f"the device's memory is too small; lower {given}: {reason}") from error


@contextmanager
def interruptible() -> Iterator[Callable[[], int | None]]:
    """While inside, the first SIGTERM or Ctrl-C is only remembered; a second Ctrl-C ends at once.

    Yields a function that gives the signal's number, or None so far.
    """
    received: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        if received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signum)

    caught = (signal.SIGTERM, signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    before = [signal.signal(each, remember) for each in caught] if main else []
    try:
        yield lambda: received[0] if received else None
    finally:
        for each, handler in zip(caught, before, strict=False):
            signal.signal(each, handler)
