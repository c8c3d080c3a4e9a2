"""One sitting of a run: compile, restore, then chunk after chunk with the records between them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import metrics as m
from jaxrl.errors import Interrupted, RunError, UsageError
from jaxrl.run import checkpoint
from jaxrl.run.devices import Placement, Programs
from jaxrl.run.folder import RunFolder, write_json
from jaxrl.run.logs import MetricsFile, ProgressBar, Writer, make_writers
from jaxrl.run.rows import Member, Row, evaluation_rows, latest_return, train_rows
from jaxrl.run.schedule import Schedule
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, TrainState

EVALUATION_SEED = 2**31 - 1  # evaluation starts are the same for all seeds, runs and checkpoints
METRICS, TIMING, SUMMARY = "metrics.jsonl", "timing.jsonl", "summary.json"


class Compiled(NamedTuple):
    """The programs of a run, ready to call."""

    chunk: Callable[..., tuple[TrainState, m.Metrics]]
    evaluate: Callable[..., Any]


class Session:
    """Everything of a run that is not arrays. Use inside ``opened``."""

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
        self.told_nonfinite = False
        self.unsaved: str | None = None  # why the newest checkpoint could not be saved
        self.clock = {"train_seconds": 0.0, "compile_seconds": 0.0, "wall_seconds": 0.0}
        self.bar: ProgressBar | None = None

    # The programs' arguments are arrays, and so are not made until the folder is open.

    @cached_property
    def sweep(self) -> dict[str, Array]:
        """The swept values of every member: ``{name: [M]}``."""
        return {
            name: jnp.array([member.sweep[name] for member in self.members], jnp.float32)
            for name in self.members[0].sweep
        }

    @cached_property
    def keys(self) -> Key:
        """The key of every member ``[M]``."""
        return jax.vmap(jax.random.key)(jnp.array([member.seed for member in self.members]))

    @cached_property
    def eval_keys(self) -> Key:
        """The keys of the evaluation episodes, the same for all members."""
        return jax.random.split(jax.random.key(EVALUATION_SEED), self.config["eval_episodes"])

    @contextmanager
    def opened(
        self, run_dir: str | Path | None, resume: bool, log: Sequence[str]
    ) -> Iterator[None]:
        """Hold the run's folder, files and writers."""
        if run_dir is None:
            yield
            return
        self.folder = RunFolder(run_dir, self.config, resume, self.report)
        self.resume = resume
        try:
            self.metrics = MetricsFile(self.folder.path / METRICS)
            self.timing = MetricsFile(self.folder.path / TIMING)
            self.writers = make_writers(log, self.folder.path, self.folder.config, resume)
            yield
        finally:
            self._close_bar()
            for close in (*(w.close for w in self.writers), self.metrics.close, self.timing.close):
                self._despite_full_disk(close)
            self.folder.close()

    def report(self, text: str) -> None:
        """One line for the user; a quiet run shows warnings alone."""
        if self.bar is not None and not self.quiet:
            self.bar.message(text)
        elif not self.quiet or text.startswith("warning"):
            print(text, file=sys.stderr)

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    # One sitting

    def train(self, interrupted: Callable[[], int | None]) -> tuple[TrainState, dict[str, Any]]:
        """Go on to the end. Returns the final state and the summary."""
        began = time.monotonic()
        ts, done = self.start()
        began -= self.clock["wall_seconds"]  # of earlier sittings
        if done >= self.schedule.total and self.rows:
            self.report(f"already finished at step {self.step(done)}")
            return ts, self.summarise()
        compiled = self.compile(ts)
        self.bar = self.progress(done)
        if done == 0:
            self.record(self.evaluate(compiled, ts, 0))
        while done < self.schedule.total:
            if signum := interrupted():
                self.save(ts, done)
                raise Interrupted(f"stopped by signal {signum} at step {self.step(done)}", signum)
            ts, done = self.advance(compiled, ts, done)
            self.clock["wall_seconds"] = time.monotonic() - began
            if self.schedule.due(done, self.schedule.checkpoint_every):
                self.save(ts, done)
        self._close_bar()
        summary = self.summarise()
        if self.unsaved:
            raise RunError(f"the run ended, but its last state is not saved: {self.unsaved}")
        return ts, summary

    def step(self, done: int) -> int:
        """Environment steps of each member after ``done`` iterations."""
        return self.schedule.step(done)

    def start(self) -> tuple[TrainState, int]:
        """The first state, or the restored one, and the iterations that are done."""
        if self.folder is None or not self.resume:
            return self._first_state(), 0
        checkpoint.clean(self.folder.checkpoints)
        if not checkpoint.available(self.folder.checkpoints):
            self.report("note: no checkpoint yet; starting from the beginning")
            self.metrics.truncate(0)
            self.timing.truncate(0)
            self.folder.write_config()
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
        self.folder.write_config()
        self.metrics.truncate(restored.meta["metrics_bytes"])
        self.timing.truncate(restored.meta["timing_bytes"])
        lines = (self.folder.path / METRICS).read_text().splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.clock |= restored.meta["clock"]
        self.report(f"resumed at step {restored.step}")
        return self.programs.put(restored.state), done

    def _first_state(self) -> TrainState:
        began = time.monotonic()
        ts = jax.block_until_ready(jax.jit(self.programs.init)(self.sweep, self.keys))
        self.clock["compile_seconds"] += time.monotonic() - began
        return ts

    def compile(self, ts: TrainState) -> Compiled:
        """Trace both programs, and compile them side by side."""
        began = time.monotonic()
        chunk = jax.jit(self.programs.chunk, donate_argnums=1)
        lowered = (
            chunk.lower(self.sweep, ts, jnp.int32(0)),
            jax.jit(self.programs.evaluate).lower(self.sweep, ts, self.eval_keys),
        )
        with ThreadPoolExecutor(len(lowered)) as pool:
            compiled = Compiled(*pool.map(lambda program: program.compile(), lowered))
        self.clock["compile_seconds"] += time.monotonic() - began
        return compiled

    def advance(self, compiled: Compiled, ts: TrainState, done: int) -> tuple[TrainState, int]:
        """One chunk, and what is recorded after it."""
        target = self.schedule.next(done)
        began = time.monotonic()
        ts, metrics = compiled.chunk(self.sweep, ts, jnp.int32(target - done))
        metrics = jax.device_get(jax.block_until_ready(metrics))
        seconds = time.monotonic() - began
        self.clock["train_seconds"] += seconds

        rows = train_rows(self.members, metrics, self.step(target))
        self.record(rows)
        self.check_physics(rows)
        if self.schedule.due(target, self.schedule.eval_every):
            self.record(self.evaluate(compiled, ts, target))
        steps = (self.step(target) - self.step(done)) * len(self.members)
        self.time_step(target, steps / seconds)
        if self.bar is not None:
            self.bar.update(self.step(target), latest_return(self.rows, len(self.members)))
        self.check_gradients(metrics, target)
        return ts, target

    def evaluate(self, compiled: Compiled, ts: TrainState, done: int) -> list[Row]:
        """Rows of whole greedy episodes."""
        result = jax.device_get(compiled.evaluate(self.sweep, ts, self.eval_keys))
        return evaluation_rows(self.members, result, self.step(done))

    def check_physics(self, rows: Sequence[Row]) -> None:
        """Warn, once a sitting, of environments that left the finite numbers."""
        steps = sum(row["nonfinite_steps"] for row in rows)
        if steps and not self.told_nonfinite:
            self.told_nonfinite = True
            self.report(
                f"warning: {steps:.0f} environment steps before step {rows[0]['step']} were not "
                f"finite and ended their episodes; nonfinite_steps in {METRICS} counts them"
            )

    def check_gradients(self, metrics: m.Metrics, done: int) -> None:
        """Stop when updates have been skipped as not finite for too long; checkpoints stay."""
        worst = metrics.get("skipped_in_a_row")
        most = self.config["max_skipped"]
        if worst is not None and np.max(worst[0]) >= most:
            self._close_bar()
            kept = checkpoint.available(self.folder.checkpoints) if self.folder else []
            where = (
                f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint"
            )
            raise RunError(
                f"stopped at step {self.step(done)}: {int(np.max(worst[0]))} gradients in a row "
                f"were not finite (max-skipped is {most}); {where}"
            )

    # Records

    def record(self, rows: list[Row]) -> None:
        """Add rows to the record and show them to the other writers."""
        self.rows += rows
        if self.folder is not None:
            self._despite_full_disk(lambda: self.metrics.append(rows))
        for writer in self.writers:
            self._despite_full_disk(partial(writer.write, rows))

    def time_step(self, done: int, steps_per_second: float) -> None:
        """Wall-clock has a file of its own, so that resumed metrics are the same bytes."""
        if self.folder is not None:
            row = {
                "step": self.step(done),
                "seconds": round(self.clock["train_seconds"], 4),
                "steps_per_second": round(steps_per_second, 1),
            }
            self._despite_full_disk(lambda: self.timing.append([row]))

    def save(self, ts: TrainState, done: int) -> None:
        """A checkpoint. If it cannot be written, say so and go on; older ones are as they were."""
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
            self.report(f"warning: {error}; training goes on")

    def summarise(self) -> dict[str, Any]:
        """Write ``summary.json`` and ``curves.png``."""
        from jaxrl.run.summary import summarise

        config = self.folder.config if self.folder else self.config
        summary = summarise(config, self.members, self.rows, self.schedule, self.clock)
        if self.folder is not None:
            path = self.folder.path
            self._despite_full_disk(lambda: write_json(path / SUMMARY, summary))
            self._despite_full_disk(lambda: _draw(path))
        return summary

    def progress(self, done: int) -> ProgressBar:
        """The bar of this sitting."""
        label = f"{self.config['algorithm']} {self.config['env']} x{len(self.members)}"
        total = self.step(self.schedule.total)
        return ProgressBar(total, self.step(done), label, self.quiet)

    def _despite_full_disk(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self.report(f"warning: {error}; training goes on")


def _draw(path: Path) -> None:
    from jaxrl.analysis import plot_run

    plot_run(path, path / "curves.png")
