"""One session of a run: restore; then, for each phase, compile, train in chunks and record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from jaxrl import processes
from jaxrl.errors import Interrupted
from jaxrl.record.metrics_file import Row
from jaxrl.record.rows import Member, Position, evaluation_rows, latest_return, train_rows
from jaxrl.run.devices import Compiled, Programs
from jaxrl.run.health import DivergenceGuard
from jaxrl.run.phases import Plan, Stage
from jaxrl.run.placement import MEMBER, Placement
from jaxrl.run.policy_from import PolicyFrom
from jaxrl.run.progress import ProgressBar
from jaxrl.run.records import Records
from jaxrl.training.evaluate import EVALUATION_SEED
from jaxrl.types import Array, Key, PyTree, TrainState


@dataclasses.dataclass
class Within:
    """State that a sweep passes to its sessions.

    ``programs`` holds compiled programs from the sweep's earlier sessions, for later sessions with
    the same shapes. ``origin`` returns the states ``[M, ...]`` after ``plan.begins`` iterations,
    from which this session continues.
    """

    programs: dict[tuple, Any]
    origin: Callable[[], TrainState] | None = None


class Session:
    """Trains a run. Use inside ``records.opened``.

    Iterations are counted over the whole run; ``stage`` is the stage that the state belongs to.
    """

    def __init__(
        self,
        plan: Plan,
        placement: Placement,
        config: Mapping[str, Any],
        members: Sequence[Member],
        data: PyTree,
        quiet: bool,
        policy_from: PolicyFrom | None = None,
        within: Within | None = None,
    ) -> None:
        self.plan, self.config, self.members, self.quiet = plan, config, members, quiet
        self.placement = placement
        mode = config["eval_mode"]
        self.programs = [Programs(stage.trainer, placement, mode) for stage in plan.stages]
        self.records = Records(plan, config, quiet)
        report, saved, alone = self.records.report, self.records.saved, within is None
        self.guard = DivergenceGuard(members, config, report, saved, stops=alone)
        self.within = within or Within({})
        self.stage = plan.stages[0]
        self._data, self._policy_from = data, policy_from
        self._trained = 0  # total steps of all members in this session
        self._seconds = 0.0  # training time in this session

    # The programs' arguments are arrays, so they are only created once the folder is open.

    @cached_property
    def sweep(self) -> dict[str, Array]:
        """The swept values of all members: ``{name: [M]}``."""
        return self.spread(self.values)

    @property
    def values(self) -> dict[str, NDArray[np.float32]]:
        """The swept values of all members on the host: ``{name: [M]}``."""
        return {
            name: np.array([member.sweep[name] for member in self.members], np.float32)
            for name in self.members[0].sweep
        }

    def spread(self, values: PyTree) -> PyTree:
        """Turn values on the host into arguments ``[M]`` of the programs."""
        return self.placement.put_if_far(jax.tree.map(jnp.asarray, values), P(MEMBER))

    @cached_property
    def keys(self) -> Key:
        """The keys of all members ``[M]``."""
        seeds = jnp.array([member.seed for member in self.members])
        return self.spread(jax.vmap(jax.random.key)(seeds))

    @cached_property
    def eval_keys(self) -> Key:
        """The keys of the evaluation episodes, the same for all members."""
        keys = jax.random.split(jax.random.key(EVALUATION_SEED), self.config["eval_episodes"])
        return self.placement.put_if_far(keys, P())

    @cached_property
    def _data_on_devices(self) -> PyTree:
        return self.programs[0].put_data(self._data)

    def data(self, stage: Stage) -> PyTree:
        """The dataset, or ``()`` for a stage that does not use one."""
        return self._data_on_devices if stage.trainer.needs_data else ()

    # Training

    def train(self, interrupted: Callable[[], int | None]) -> tuple[TrainState, dict[str, Any]]:
        """Train to the end; return the final state and the summary."""
        ts = self.train_on(interrupted)
        summary = self.records.summarise(self.members)
        self.records.require_saved()
        return ts, summary

    def train_on(self, interrupted: Callable[[], int | None]) -> TrainState:
        """Train to the end and return the final state."""
        records, began = self.records, time.monotonic()
        ts, done = self.start()
        began -= records.clock["wall_seconds"]  # in earlier sessions
        if done >= self.plan.total and self.stage is self.plan.stages[-1]:
            if self._lacks_evaluation(done):
                self._evaluate(self.compile(ts), ts, done)
                records.clock["wall_seconds"] = time.monotonic() - began
                self.save(ts, done)
            records.report(f"already finished at step {self.position(done).step}")
            return ts
        for stage in self.plan.stages[self.stage.index :]:
            if stage is not self.stage:
                ts = ts._replace(env=(), carry=(), store=())  # frees memory for the next ones
                ts = self.begin(stage, ts)
            if done < stage.last:
                ts, done = self._train_stage(ts, done, began, interrupted)
        records.close_bar()
        return ts

    def _lacks_evaluation(self, done: int) -> bool:
        """Return whether an evaluation is due after ``done`` iterations and not recorded.

        This is so if a stopped run was made to end where it was stopped.
        """
        step, rows = self.position(done).step, reversed(self.records.rows)
        evaluated = next((row["step"] for row in rows if row["kind"] == "eval"), None)
        wanted = self.stage.trainer.evaluates and self.stage.due(done, "eval_every")
        return wanted and evaluated != step

    def _train_stage(
        self, ts: TrainState, done: int, began: float, interrupted: Callable[[], int | None]
    ) -> tuple[TrainState, int]:
        """Train to the end of the stage; return the state and the iterations done."""
        records, stage = self.records, self.stage
        compiled = self.compile(ts)
        if records.bar is None:  # the time left is estimated from here on
            records.bar = self.progress(done)
        if done == 0 and not records.rows:  # a checkpoint of iteration 0 has its rows
            self._evaluate(compiled, ts, 0)
        while done < stage.last:
            if signum := interrupted():
                self.save(ts, done)
                raise Interrupted(self._stopped(signum, done), signum)
            ts, done = self.advance(compiled, ts, done)
            ts = self.between(ts, done)
            records.clock["wall_seconds"] = time.monotonic() - began
            if stage.due(done, "checkpoint_every"):
                self.save(ts, done)
                if records.unsaved:
                    records.warn(f"{records.unsaved}; training goes on")
        return ts, done

    def between(self, ts: TrainState, done: int) -> TrainState:
        """Return the states that the next chunk starts from, given the last chunk's."""
        return ts

    def _stopped(self, signum: int, done: int) -> str:
        """Return the message about a signal received after ``done`` iterations."""
        text = f"stopped by signal {signum} at step {self.position(done).step}"
        if self.records.unsaved:
            since = [f" since step {self.position(at).step}" for at in self.records.saved()[-1:]]
            text += f", but {self.records.unsaved}; nothing is saved{''.join(since)}"
        return text

    def position(self, done: int) -> Position:
        """Return the position of each member after ``done`` iterations."""
        return self.plan.position(done)

    def start(self) -> tuple[TrainState, int]:
        """Return the initial or restored state, and the number of iterations done."""
        found = None
        if self.records.folder is not None and self.records.resume:
            found = self.records.restore(self._template)
        if found is None and self.within.origin is not None:
            return self.programs[0].put(self.within.origin()), self.plan.begins
        if found is None:
            return self._first_state(), 0
        state, done, self.stage = found
        programs, best = self.programs[self.stage.index], self.records.best
        if best is not None:
            best.agent = programs.put_policies(best.agent)
        return programs.put(state), done

    def _template(self, index: int) -> TrainState:
        """Return the shapes of a stage's states."""
        data = self.data(self.plan.stages[index])
        shapes: TrainState = jax.eval_shape(self.programs[index].init, self.sweep, self.keys, data)
        return shapes

    def _first_state(self) -> TrainState:
        data, policies = self.data(self.stage), ()
        if self._policy_from is not None:
            policies = self.programs[0].put_policies(self._policy_from.policies)
        name = ("init", len(self.members))  # the members decide the placement
        init = self._once(name, lambda: jax.jit(self.programs[0].init))
        return self._timed(lambda: init(self.sweep, self.keys, data, policies))

    def begin(self, stage: Stage, ts: TrainState) -> TrainState:
        """Return the first state of the next stage, given the last state of the previous stage."""
        self.stage = stage
        go_on = self._once(
            ("begin", stage.index, len(self.members)),
            lambda: jax.jit(self.programs[stage.index].continue_from),
        )
        return self._timed(lambda: go_on(self.sweep, ts, self.data(stage)))

    def compile(self, ts: TrainState) -> Compiled:
        """Return the compiled programs for the stage's chunks and evaluations."""
        programs, data = self.programs[self.stage.index], self.data(self.stage)
        return self._once(
            ("chunk", self.stage.index, len(self.members)),
            lambda: self._timed(lambda: programs.compiled(self.sweep, ts, data, self.eval_keys)),
        )

    def _once(self, name: tuple, make: Callable[[], Any]) -> Any:
        """Return the program with this name; make it unless an earlier session did."""
        known = self.within.programs
        if name not in known:
            known[name] = make()
        return known[name]

    def _timed(self, prepare: Callable[[], Any]) -> Any:
        """Return the result of ``prepare``; its time counts as compile time."""
        began = time.monotonic()
        prepared = jax.block_until_ready(prepare())
        self.records.clock["compile_seconds"] += time.monotonic() - began
        return prepared

    def advance(self, compiled: Compiled, ts: TrainState, done: int) -> tuple[TrainState, int]:
        """Train one chunk and record it; return the state and the iterations done."""
        records, stage = self.records, self.stage
        target = stage.next(done)
        data, count, first = self.data(stage), target - done, done - stage.first
        began = time.monotonic()
        ts, metrics = compiled.chunk(self.sweep, ts, data, jnp.int32(count), jnp.int32(first))
        jax.block_until_ready(metrics)
        seconds = time.monotonic() - began
        metrics = processes.to_host(metrics)
        records.clock["train_seconds"] += seconds

        position = stage.position(target)
        rows = train_rows(self.members, metrics, position, stage.name)
        records.add(rows)
        if stage.due(target, "eval_every"):
            self._evaluate(compiled, ts, target)
        steps = count * stage.trainer.units_per_iteration * len(self.members)
        records.add_time(position.step, steps / seconds)
        self._trained, self._seconds = self._trained + steps, self._seconds + seconds
        if records.bar is not None:
            speed = self._trained / self._seconds
            latest = latest_return(records.rows, len(self.members))
            records.bar.update(position.step, speed, latest)
        before = self.position(done).env_steps if done else 0  # the first rows include the warm-up
        self.guard.check(rows, (position.env_steps - before) * len(self.members))
        return ts, target

    def _evaluate(self, compiled: Compiled, ts: TrainState, done: int) -> None:
        """Evaluate all members and record the results; keep agents with new best evaluations."""
        rows = self.evaluate(compiled, ts, done)
        self.records.add(rows)
        if rows and self.records.best is not None:
            self.records.best.update(ts.agent, rows, done, self.stage.index)

    def evaluate(self, compiled: Compiled, ts: TrainState, done: int) -> list[Row]:
        """Return one row per member from whole episodes; none without an environment."""
        if compiled.evaluate is None:
            return []
        result = processes.to_host(compiled.evaluate(self.sweep, ts, self.eval_keys))
        position = self.stage.position(done)
        return evaluation_rows(self.members, result, position, self.stage.name)

    def save(self, ts: TrainState, done: int) -> None:
        """Save a checkpoint, or set ``records.unsaved`` to the reason for failure."""
        self.records.save(ts, done, self.stage)

    def progress(self, done: int) -> ProgressBar:
        """Return the progress bar of this session."""
        label = f"{self.config['algorithm']} {self.config['env']} x{len(self.members)}"
        total = self.position(self.plan.total).step
        return ProgressBar(total, self.position(done).step, label, self.quiet)
