"""The output of a session: rows, files, checkpoints and messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jaxrl import processes
from jaxrl._output import Lasting, one_line
from jaxrl.errors import RunError, UsageError
from jaxrl.record import checkpoint
from jaxrl.record.folder import METRICS, TIMING, RunFolder
from jaxrl.record.joining import members_of
from jaxrl.record.metrics_file import MetricsFile, Row
from jaxrl.record.shared_folder import open_folder
from jaxrl.run.best import Best, with_best, without_best
from jaxrl.run.logs import Writer, make_writers
from jaxrl.run.phases import Plan, Stage
from jaxrl.run.progress import ProgressBar
from jaxrl.types import PyTree, TrainState


class Records:
    """The rows of a run, its folder and event writers, and the progress bar. Use in ``opened``.

    All processes of a run have the rows and save checkpoints together. The first process writes and
    shows everything else.
    """

    def __init__(self, plan: Plan, config: Mapping[str, Any], quiet: bool) -> None:
        self.plan, self.config, self.quiet = plan, config, quiet
        self.first = processes.is_first()
        self.rows: list[Row] = []
        self.folder: RunFolder | None = None
        self.resume = False
        self.bar: ProgressBar | None = None
        self.best: Best | None = None  # also kept in checkpoints; None if not wanted
        self.unsaved: str | None = None  # why the newest checkpoint could not be saved
        self.extra: dict[str, Any] = {}  # kept in checkpoints in addition to what all runs have
        self.clock = {"train_seconds": 0.0, "compile_seconds": 0.0, "wall_seconds": 0.0}
        self._writers: list[Writer] = []

    @contextmanager
    def opened(
        self,
        run_dir: str | Path | None,
        resume: bool,
        log: Sequence[str],
        log_dir: Path | None = None,
    ) -> Iterator[None]:
        """Keep the run's folder, files and writers open while inside.

        ``log_dir``, for the event writers, is the folder of the run that this one belongs to.
        """
        self.resume = resume
        with ExitStack() as stack:
            if run_dir is not None:
                self.best = Best() if self.config["keep_best"] else None
                self._open(Path(run_dir), log, log_dir, stack)
            stack.callback(self.close_bar)
            yield

    def _open(
        self, run_dir: Path, log: Sequence[str], log_dir: Path | None, stack: ExitStack
    ) -> None:
        self.folder = open_folder(run_dir, self.config, self.resume, self.report)
        stack.callback(self.folder.close)
        if not self.first:
            return

        def closing(opened: Any) -> Any:
            stack.callback(self._despite_full_disk, opened.close)
            return opened

        path = self.folder.path
        try:
            self._metrics = closing(MetricsFile(path / METRICS))
            self._timing = closing(MetricsFile(path / TIMING))
            writers = make_writers(log, path, self.folder.config, self.resume, log_dir)
        except OSError as error:
            raise RunError(f"run-dir {path} cannot be written in: {error.strerror}") from None
        self._writers = [closing(writer) for writer in writers]

    @property
    def writes(self) -> bool:
        """Whether this process writes the files of a record."""
        return self.folder is not None and self.first

    # Messages

    def report(self, text: str) -> None:
        """Show the user one line; a quiet run shows only warnings."""
        if not self.first:
            return
        if self.bar is not None and not self.quiet:
            self.bar.message(text)
        elif not self.quiet or text.startswith("warning"):
            print(one_line(text), file=Lasting(sys.stderr))

    def warn(self, text: str) -> None:
        """Show the user a line, even in a quiet run."""
        self.report(f"warning: {text}")

    def close_bar(self) -> None:
        """Remove the progress bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    # Rows

    def add(self, rows: list[Row]) -> None:
        """Add rows to the record and pass them to the event writers."""
        self.rows += rows
        if self.writes:
            self._despite_full_disk(lambda: self._metrics.append(rows))
        for writer in self._writers:
            self._despite_full_disk(partial(writer.write, rows))

    def add_time(self, step: int, steps_per_second: float) -> None:
        """Record the speed in a separate file, so that the metrics of a resumed run are
        byte-identical.
        """
        if self.writes:
            row = {
                "step": step,
                "seconds": round(self.clock["train_seconds"], 4),
                "steps_per_second": round(steps_per_second, 1),
            }
            self._despite_full_disk(lambda: self._timing.append([row]))

    def _despite_full_disk(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self.warn(f"{error}; training goes on")

    # Checkpoints

    def saved(self) -> list[int]:
        """Return the iterations of the checkpoints in ascending order."""
        return checkpoint.available(self.folder.checkpoints) if self.folder else []

    def save(self, ts: TrainState, done: int, stage: Stage) -> None:
        """Save a checkpoint, or set ``unsaved`` to the reason for failure; older checkpoints stay.

        ``done`` counts the iterations of the run, and ``stage`` is the stage that ``ts`` belongs
        to. Between two stages, ``ts`` is either the earlier stage's last state or the later stage's
        first.
        """
        if self.folder is None:
            return
        try:
            sizes = processes.from_first(self._synced)
            meta = {
                "iteration": done,
                "phase": stage.index,
                "iteration_of_phase": done - stage.first,
                "metrics_bytes": sizes[0],
                "timing_bytes": sizes[1],
                "clock": self.clock,
                "extra": self.extra,
                "best": None if self.best is None else self.best.evaluations,
                "config": self.folder.config,
            }
            best = () if self.best is None else self.best.agent
            checkpoint.save(self.folder.checkpoints, done, with_best(ts, best), meta)
            self.unsaved = None
        except (RunError, OSError) as error:
            self.unsaved = str(error)

    def require_saved(self) -> None:
        """Raise RunError if the newest checkpoint could not be saved."""
        if self.unsaved:
            raise RunError(f"the run ended, but its last state is not saved: {self.unsaved}")

    def _synced(self) -> list[int]:
        """Flush both files of rows to disk; return their sizes in bytes."""
        return [self._metrics.sync(), self._timing.sync()]

    def restore(
        self, template: Callable[[int], TrainState]
    ) -> tuple[TrainState, int, Stage] | None:
        """Return the state of the newest intact checkpoint, its iteration and its stage.

        The records are truncated to that checkpoint. Return None if there is no checkpoint; the run
        then starts from the beginning. ``template`` gives the shapes of a stage's states, by stage
        index. The best agents so far are restored from the checkpoint, on the host.

        Raises:
            UsageError: if the checkpoint is beyond the end of the run.
            CheckpointError: if no checkpoint is intact.
        """
        assert self.folder is not None
        if not processes.from_first(self._cleaned):
            self.report("note: no checkpoint yet; starting from the beginning")
            processes.from_first(partial(self._rewind, -1, 0, 0))
            return None

        def whole(meta: Mapping[str, Any]) -> PyTree:
            ts = template(meta["phase"])
            return with_best(ts, ts.agent if meta.get("best") else ())

        read = partial(checkpoint.restore, self.folder.checkpoints, whole, report=self.warn)
        restored = read()
        if restored.iteration != (common := processes.smallest(restored.iteration)):
            restored = read(common)
        meta = restored.meta
        stage, done = self.plan.stages[meta["phase"]], meta["iteration"]
        if done > stage.last:
            raise UsageError(
                f"total-steps is {self.config['total_steps']}, but the run in {self.folder.path} "
                f"is at step {stage.position(done).step} already; give at least that"
            )
        step = self.plan.position(done).step
        sizes = meta["metrics_bytes"], meta["timing_bytes"]
        processes.from_first(partial(self._rewind, step, *sizes))
        self.rows = processes.from_first(self._read_rows)
        self.clock |= meta["clock"]
        self.extra = meta.get("extra", {})
        state, best = without_best(restored.state)
        if self.best is not None:
            self.best.agent, self.best.evaluations = best, meta.get("best")
            if self.best.evaluations is None and any(row["kind"] == "eval" for row in self.rows):
                self.best = None  # it may be one of the evaluations so far
        self.report(f"resumed at step {step}")
        return state, done, stage

    def _cleaned(self) -> list[int]:
        """Remove a killed process's leftovers; return the iterations of the checkpoints."""
        assert self.folder is not None
        checkpoint.clean(self.folder.checkpoints)
        return self.saved()

    def _read_rows(self) -> list[Row]:
        """Return the rows; drop those at the end that are not of all members.

        Raises:
            RunError: if some members' rows are missing earlier.
        """
        assert self.folder is not None
        path, members = self.folder.path / METRICS, members_of(self.config)
        text = path.read_bytes()
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        events = len(lines) // len(members)
        lines = lines[: events * len(members)]
        rows = [json.loads(line) for line in lines]
        if [(row.get("config", 0), row["seed"]) for row in rows] != events * members:
            raise RunError(
                f"{path} lacks rows of some seeds, so this run cannot be resumed; start it anew "
                "in another run-dir"
            )
        self._metrics.truncate(sum(map(len, lines)))
        return rows

    def _rewind(self, step: int, metrics_bytes: int, timing_bytes: int) -> None:
        """Truncate the records to ``step``, once resuming is certain."""
        assert self.folder is not None
        self._despite_full_disk(self.folder.write_config)
        self._metrics.truncate(metrics_bytes)
        self._timing.truncate(timing_bytes)
        for writer in self._writers:
            writer.rewind(step)

    def summarise(self, members: Sequence[Any]) -> dict[str, Any]:
        """Write ``summary.json`` and ``curves.png`` (as ``summary.write``); return the summary."""
        from jaxrl.run import summary  # imports pandas

        config = self.folder.config if self.folder else self.config
        best = None if self.best is None else self.best.evaluations
        found = summary.summarise(config, members, self.rows, self.plan, self.clock, best)
        if self.folder is not None:
            processes.from_first(partial(summary.write, self.folder.path, found, self.report))
        return found
