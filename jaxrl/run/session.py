"""One session of a run: compile, restore, then train chunk by chunk and record in between."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.errors import Interrupted, RunError, UsageError
from jaxrl.record import checkpoint
from jaxrl.record.folder import RunFolder
from jaxrl.record.metrics_file import MetricsFile, Row
from jaxrl.record.rows import Member, evaluation_rows, latest_return, train_rows
from jaxrl.run.devices import Compiled, Placement, Programs
from jaxrl.run.health import DivergenceGuard
from jaxrl.run.logs import Writer, make_writers
from jaxrl.run.progress import ProgressBar
from jaxrl.run.schedule import Schedule
from jaxrl.training.evaluate import EVALUATION_SEED
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, TrainState

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"


class Session:
    """The part of a run that is not arrays: files, clocks, messages. Use inside ``opened``."""

    def __init__(
        self,
        trainer: Trainer,
        placement: Placement,
        schedule: Schedule,
        config: Mapping[str, Any],
        members: Sequence[Member],
        quiet: bool,
    ) -> None:
        self.trainer, self.placement, self.schedule = trainer, placement, schedule
        self.config, self.members, self.quiet = config, members, quiet
        self.programs = Programs(trainer, placement)
        self.rows: list[Row] = []
        self.writers: list[Writer] = []
        self.folder: RunFolder | None = None
        self.resume = False
        self.guard = DivergenceGuard(members, config, self.report, self.saved)
        self.unsaved: str | None = None  # the reason why the newest checkpoint could not be saved
        self.clock = {"train_seconds": 0.0, "compile_seconds": 0.0, "wall_seconds": 0.0}
        self.bar: ProgressBar | None = None
        # Iterations done, and their seconds of training, when this session began.
        self.begun = (0, 0.0)

    # The programs' arguments are arrays, so they are created only once the folder is open.

    @cached_property
    def sweep(self) -> dict[str, Array]:
        """The swept values of all members: ``{name: [M]}``."""
        return {
            name: jnp.array([member.sweep[name] for member in self.members], jnp.float32)
            for name in self.members[0].sweep
        }

    @cached_property
    def keys(self) -> Key:
        """The keys of all members ``[M]``."""
        return jax.vmap(jax.random.key)(jnp.array([member.seed for member in self.members]))

    @cached_property
    def eval_keys(self) -> Key:
        """The keys of the evaluation episodes, the same for all members."""
        return jax.random.split(jax.random.key(EVALUATION_SEED), self.config["eval_episodes"])

    @contextmanager
    def opened(
        self, run_dir: str | Path | None, resume: bool, log: Sequence[str]
    ) -> Iterator[None]:
        """Keep the run's folder, files and writers open while inside."""
        self.resume = resume
        with ExitStack() as stack:
            if run_dir is not None:
                self._open(Path(run_dir), log, stack)
            stack.callback(self._close_bar)
            yield

    def _open(self, run_dir: Path, log: Sequence[str], stack: ExitStack) -> None:
        self.folder = RunFolder(run_dir, self.config, self.resume, self.report)
        stack.callback(self.folder.close)

        def closing(opened: Any) -> Any:
            stack.callback(self._despite_full_disk, opened.close)
            return opened

        path = self.folder.path
        try:
            self.metrics = closing(MetricsFile(path / METRICS))
            self.timing = closing(MetricsFile(path / TIMING))
            writers = make_writers(log, path, self.folder.config, self.resume)
        except OSError as error:
            raise RunError(f"run-dir {path} cannot be written in: {error.strerror}") from None
        self.writers = [closing(writer) for writer in writers]

    def report(self, text: str) -> None:
        """Show the user one line; a quiet run shows only warnings."""
        if self.bar is not None and not self.quiet:
            self.bar.message(text)
        elif not self.quiet or text.startswith("warning"):
            print(text, file=sys.stderr)

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    # Training

    def train(self, interrupted: Callable[[], int | None]) -> tuple[TrainState, dict[str, Any]]:
        """Train to the end; return the final state and the summary."""
        began = time.monotonic()
        ts, done = self.start()
        began -= self.clock["wall_seconds"]  # of earlier sessions
        if done >= self.schedule.total and self.rows:
            self.report(f"already finished at step {self.step(done)}")
            return ts, self.summarise()
        compiled = self.compile(ts)
        self.bar, self.begun = self.progress(done), (done, self.clock["train_seconds"])
        if done == 0 and not self.rows:  # a checkpoint of step 0 has its rows
            self.record(self.evaluate(compiled, ts, 0))
        while done < self.schedule.total:
            if signum := interrupted():
                self.save(ts, done)
                text = f"stopped by signal {signum} at step {self.step(done)}"
                if self.unsaved:
                    since = [f" since step {step}" for step in self.saved()[-1:]]
                    text += f", but {self.unsaved}; nothing is saved{''.join(since)}"
                raise Interrupted(text, signum)
            ts, done = self.advance(compiled, ts, done)
            self.clock["wall_seconds"] = time.monotonic() - began
            if self.schedule.due(done, self.schedule.checkpoint_every):
                self.save(ts, done)
                if self.unsaved:
                    self.report(f"warning: {self.unsaved}; training goes on")
        self._close_bar()
        summary = self.summarise()
        if self.unsaved:
            raise RunError(f"the run ended, but its last state is not saved: {self.unsaved}")
        return ts, summary

    def step(self, done: int) -> int:
        """Return the environment steps of each member after ``done`` iterations."""
        return self.schedule.step(done)

    def start(self) -> tuple[TrainState, int]:
        """Return the initial or restored state, and the number of iterations done."""
        if self.folder is None or not self.resume:
            return self._first_state(), 0
        checkpoint.clean(self.folder.checkpoints)
        if not checkpoint.available(self.folder.checkpoints):
            self.report("note: no checkpoint yet; starting from the beginning")
            self._rewind(-1, 0, 0)
            return self._first_state(), 0
        template = jax.eval_shape(self.programs.init, self.sweep, self.keys)
        warn = lambda text: self.report(f"warning: {text}")  # noqa: E731
        restored = checkpoint.restore(self.folder.checkpoints, template, report=warn)
        done = restored.meta["iteration"]
        if done > self.schedule.total:
            raise UsageError(
                f"total-steps is {self.config['total_steps']}, but the run in {self.folder.path} "
                f"is at step {restored.step} already; give at least that"
            )
        self._rewind(restored.step, restored.meta["metrics_bytes"], restored.meta["timing_bytes"])
        lines = (self.folder.path / METRICS).read_text().splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.clock |= restored.meta["clock"]
        self.report(f"resumed at step {restored.step}")
        return self.programs.put(restored.state), done

    def _rewind(self, step: int, metrics_bytes: int, timing_bytes: int) -> None:
        """Truncate the records to ``step``, once resuming is certain."""
        assert self.folder is not None
        self._despite_full_disk(self.folder.write_config)
        self.metrics.truncate(metrics_bytes)
        self.timing.truncate(timing_bytes)
        for writer in self.writers:
            writer.rewind(step)

    def _first_state(self) -> TrainState:
        began = time.monotonic()
        ts = jax.block_until_ready(jax.jit(self.programs.init)(self.sweep, self.keys))
        self.clock["compile_seconds"] += time.monotonic() - began
        return ts

    def compile(self, ts: TrainState) -> Compiled:
        """Return the compiled programs of all chunks and evaluations."""
        began = time.monotonic()
        compiled = self.programs.compiled(self.sweep, ts, self.eval_keys)
        self.clock["compile_seconds"] += time.monotonic() - began
        return compiled

    def advance(self, compiled: Compiled, ts: TrainState, done: int) -> tuple[TrainState, int]:
        """Train one chunk and record it; return the state and the iterations done."""
        target = self.schedule.next(done)
        began = time.monotonic()
        ts, metrics = compiled.chunk(self.sweep, ts, jnp.int32(target - done))
        metrics = jax.device_get(jax.block_until_ready(metrics))
        seconds = time.monotonic() - began
        self.clock["train_seconds"] += seconds

        rows = train_rows(self.members, metrics, self.step(target))
        self.record(rows)
        if self.schedule.due(target, self.schedule.eval_every):
            self.record(self.evaluate(compiled, ts, target))
        steps = self._all_steps(done, target)
        self.time_step(target, steps / seconds)
        if self.bar is not None:
            first, earlier = self.begun
            speed = self._all_steps(first, target) / (self.clock["train_seconds"] - earlier)
            self.bar.update(self.step(target), speed, latest_return(self.rows, len(self.members)))
        before = self.step(done) if done else 0  # the first rows count the prefill too
        self.guard.check(rows, (self.step(target) - before) * len(self.members))
        return ts, target

    def _all_steps(self, done: int, target: int) -> int:
        """Return the environment steps of all members together between two iterations."""
        return (self.step(target) - self.step(done)) * len(self.members)

    def evaluate(self, compiled: Compiled, ts: TrainState, done: int) -> list[Row]:
        """Return one row per member from whole greedy episodes."""
        result = jax.device_get(compiled.evaluate(self.sweep, ts, self.eval_keys))
        return evaluation_rows(self.members, result, self.step(done))

    def saved(self) -> list[int]:
        """Return the steps of the checkpoints in ascending order."""
        return checkpoint.available(self.folder.checkpoints) if self.folder else []

    # Records

    def record(self, rows: list[Row]) -> None:
        """Add rows to the record and pass them to the event writers."""
        self.rows += rows
        if self.folder is not None:
            self._despite_full_disk(lambda: self.metrics.append(rows))
        for writer in self.writers:
            self._despite_full_disk(partial(writer.write, rows))

    def time_step(self, done: int, steps_per_second: float) -> None:
        """Record speed in a file of its own, so that resumed metrics have identical bytes."""
        if self.folder is not None:
            row = {
                "step": self.step(done),
                "seconds": round(self.clock["train_seconds"], 4),
                "steps_per_second": round(steps_per_second, 1),
            }
            self._despite_full_disk(lambda: self.timing.append([row]))

    def save(self, ts: TrainState, done: int) -> None:
        """Save a checkpoint, or set ``unsaved`` to the reason why not; older ones stay."""
        if self.folder is None:
            return
        try:
            meta = {
                "iteration": done,
                "metrics_bytes": self.metrics.sync(),
                "timing_bytes": self.timing.sync(),
                "clock": self.clock,
                "config": self.folder.config,
            }
            checkpoint.save(self.folder.checkpoints, self.step(done), ts, meta)
            self.unsaved = None
        except (checkpoint.CheckpointError, OSError) as error:
            self.unsaved = str(error)

    def summarise(self) -> dict[str, Any]:
        """Write ``summary.json`` and ``curves.png`` (as ``summary.write``); return the summary."""
        from jaxrl.run import summary  # it imports pandas

        config = self.folder.config if self.folder else self.config
        found = summary.summarise(config, self.members, self.rows, self.schedule, self.clock)
        if self.folder is not None:
            summary.write(self.folder.path, found, self.report)
        return found

    def progress(self, done: int) -> ProgressBar:
        """Return the progress bar of this session."""
        label = f"{self.config['algorithm']} {self.config['env']} x{len(self.members)}"
        total = self.step(self.schedule.total)
        return ProgressBar(total, self.step(done), label, self.quiet)

    def _despite_full_disk(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self.report(f"warning: {error}; training goes on")
