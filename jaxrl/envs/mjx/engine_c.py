"""The engine ``"c"``: MuJoCo's own, on the CPU's cores, called from inside ``jit``.

A step runs entirely on the host in float64: physics, observation, reward and termination. JAX
carries the state as an array of 32-bit words, two per float64, so nothing is rounded, and ``vmap``,
``scan``, checkpoints and resuming treat it like any other array. Trajectories equal Gymnasium's bit
for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from jaxrl._startup import cores
from jaxrl.envs.mjx.gradients import not_differentiable
from jaxrl.envs.mjx.task import MOVING, Task, diverged
from jaxrl.envs.randomize import FIELDS, Parameters, nominal
from jaxrl.types import Array, PyTree

_CARRIED = ("qpos", "qvel", "act", "qacc_warmstart", "ctrl")  # all that a step reads
_SMALLEST = 8  # minimum environments per thread


@dataclasses.dataclass(frozen=True, eq=False)
class CEngine:
    """Steps a task in C. A state is ``{"words": uint32[2 K], "parameters": ...}``.

    Attributes:
        budget: the maximum iterations of the solver and its line search; None: the model's values.
        threads: the number of threads that share the environments of one call.
    """

    task: Task
    budget: tuple[int, int] | None = None
    threads: int = 1
    _idle: queue.SimpleQueue = dataclasses.field(init=False, default_factory=queue.SimpleQueue)
    _calls: list[int] = dataclasses.field(init=False, default_factory=list)  # running calls

    def __post_init__(self) -> None:
        self._idle.put(self._worker())

    # In JAX

    def reset(self, qpos: Array, qvel: Array, parameters: Parameters) -> tuple[PyTree, Array]:
        """The state at ``qpos[nq], qvel[nv]``, and its observation."""
        out = (self._words, self._obs)
        words, obs = _call(self._host_reset, out, (qpos, qvel), parameters)
        return {"words": words, "parameters": parameters}, obs

    def step(self, state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        """``frame_skip`` steps of physics. Returns ``state, obs[O], reward, terminated``.

        The observation of a diverged state is NaN.
        """
        scalar = jax.ShapeDtypeStruct((), self._obs.dtype)
        out = (self._words, self._obs, scalar, jax.ShapeDtypeStruct((), jnp.bool_))
        parameters = state["parameters"]
        words, *outcome = _call(self._host_step, out, (state["words"], action), parameters)
        return ({"words": words, "parameters": parameters}, *outcome)

    def pose(self, state: PyTree) -> dict[str, np.ndarray]:
        """Return the pose that a renderer needs."""
        rows = rows_of(np.ascontiguousarray(state["words"]))
        return {"qpos": rows[..., self._probe.places["qpos"]]}

    @property
    def _words(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2 * (self._probe.span.size + self._before.size),), jnp.uint32)

    @property
    def _obs(self) -> jax.ShapeDtypeStruct:
        # The dtype is not kept: one environment may be used with and without ``jax.enable_x64``.
        return jax.ShapeDtypeStruct(self._obs_shape, jnp.result_type(float))

    @functools.cached_property
    def _obs_shape(self) -> tuple[int, ...]:
        return tuple(self.task.observe(self._probe_read).shape)

    @functools.cached_property
    def _before(self) -> np.ndarray:
        position: np.ndarray = self.task.position(self._probe_read)
        return position

    @functools.cached_property
    def _probe(self) -> Any:
        worker = self._idle.get()
        self._idle.put(worker)
        return worker

    @property
    def _probe_read(self) -> Any:
        return SimpleNamespace(**{name: _field(self._probe, name) for name in self.task.reads})

    # On the host. A row is one environment's span of MuJoCo's data, then the task's ``position``.

    def _host_reset(self, out: Sequence, given: Sequence, parameters: dict) -> None:
        rows, spans = self._rows_and_spans(out[0])
        rows[...] = 0.0
        for name, values in zip(("qpos", "qvel"), given, strict=True):
            spans[:, self._probe.places[name]] = values
        read = self._advance(spans, parameters, lambda worker: worker.forward, restart=True)
        self._finish(out, rows, read)

    def _host_step(self, out: Sequence, given: Sequence, parameters: dict) -> None:
        words, action = given
        before, rows, spans = rows_of(words), *self._rows_and_spans(out[0])
        rows[...] = before
        spans[:, self._probe.places["ctrl"]] = action
        read = self._advance(spans, parameters, lambda worker: worker.step)
        self._judge(out, before[:, spans.shape[1] :], action, read)
        self._finish(out, rows, read)
        self._expose(out, spans)

    def _judge(self, out: Sequence, position: np.ndarray, action: np.ndarray, read: Any) -> None:
        out[2][...] = self.task.reward(read, position, action.astype(np.float64))
        out[3][...] = self.task.terminated(read)

    def _finish(self, out: Sequence, rows: np.ndarray, read: Any) -> None:
        rows[:, self._probe.span.size :] = self.task.position(read)
        out[1][...] = self.task.observe(read)

    def _expose(self, out: Sequence, spans: np.ndarray) -> None:
        """Set the observations of diverged environments to NaN, so that the caller notices."""
        places = (self._probe.places[name] for name in MOVING)
        out[1][diverged(*(spans[:, place] for place in places))] = np.nan

    def _rows_and_spans(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_of(words)
        return rows, rows[:, : self._probe.span.size]

    def _advance(
        self, spans: np.ndarray, parameters: dict, how: Callable, restart: bool = False
    ) -> Any:
        """Simulate all rows in place on several threads. Returns the task's readings."""
        read = self._readings(spans)
        outside = {name: x for name, x in vars(read).items() if name not in self._probe.places}

        def work(first: int, last: int) -> None:
            worker = self._take()
            fields = [(output, _field(worker, name)) for name, output in outside.items()]
            span, simulate = worker.span, how(worker)
            try:
                for name in worker.changed - parameters.keys():
                    worker.settable[name][...] = worker.nominal[name]
                worker.changed = set(parameters)
                for i in range(first, last):
                    for name, values in parameters.items():
                        worker.settable[name][...] = values[i]
                    if restart:
                        worker.restart()
                    row = spans[i]
                    span[:] = row
                    simulate()
                    row[:] = span
                    for output, field in fields:
                        output[i] = field
            finally:
                self._idle.put(worker)

        size = len(spans)
        self._calls.append(size)  # calls from several XLA devices share the threads
        jobs = max(1, min(self.threads // len(self._calls), size // _SMALLEST))
        edges = [size * job // jobs for job in range(jobs + 1)]
        try:
            others = [_pool().submit(work, *edge) for edge in itertools.pairwise(edges[1:])]
            work(*edges[:2])
            for other in others:
                other.result()
        finally:
            self._calls.pop()
        return read

    def _readings(self, spans: np.ndarray) -> Any:
        """The task's readings: views of the rows if these hold them, else new arrays."""
        places = self._probe.places

        def room(name: str) -> np.ndarray:
            if name in places:
                return spans[:, places[name]]
            return np.empty((len(spans), *_field(self._probe, name).shape))

        return SimpleNamespace(**{name: room(name) for name in self.task.reads})

    def _take(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._worker()

    def _worker(self) -> Any:
        """A separate model and data, with views of the fields that are set and read."""
        import mujoco

        model = self.task.model.__copy__()
        # A diverged state is kept so that it is noticed and counted, not replaced by the first
        # state.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        if self.budget is not None:
            model.opt.iterations, model.opt.ls_iterations = self.budget
        data = mujoco.MjData(model)
        for warning in data.warning:
            warning.number = 1  # said once already: nothing is printed, no file is written
        span, places = _span(data)
        step = functools.partial(mujoco.mj_step, model, data, self.task.frame_skip)
        forces = functools.partial(mujoco.mj_rnePostConstraint, model, data)

        def step_with_forces() -> None:
            step()
            forces()

        settable = {name: nominal(model, name) for name in FIELDS}
        return SimpleNamespace(
            model=model,
            data=data,
            span=span,
            places=places,
            settable=settable,
            nominal={name: field.copy() for name, field in settable.items()},
            changed=set(),
            restart=functools.partial(_restart, mujoco.mj_resetData, model, data),
            forward=functools.partial(mujoco.mj_forward, model, data),
            step=step_with_forces if "cfrc_ext" in self.task.reads else step,
        )


def _span(data: Any) -> tuple[np.ndarray, dict[str, slice]]:
    """A single view of all ``_CARRIED`` fields, adjacent in MuJoCo's data, and their slices.

    Copying them at once takes a third of the time of copying them one by one in Python.
    """
    fields = {name: getattr(data, name) for name in _CARRIED if getattr(data, name).size}
    first = fields[_CARRIED[0]].ctypes.data
    starts = {name: (field.ctypes.data - first) // 8 for name, field in fields.items()}
    places = {name: slice(start, start + fields[name].size) for name, start in starts.items()}
    ends = [place.stop for place in places.values()]
    gaps = [b.start - a for a, b in zip(ends, list(places.values())[1:], strict=False)]
    if not all(0 <= gap < 64 for gap in gaps):
        raise AssertionError(f"MuJoCo lays its data out in another order: {places}")
    span = np.lib.stride_tricks.as_strided(fields[_CARRIED[0]], (ends[-1],))
    span[:] = 0.0  # padding included
    return span, places


def _restart(reset: Callable, model: Any, data: Any) -> None:
    reset(model, data)
    for warning in data.warning:
        warning.number = 1


def _field(worker: Any, name: str) -> np.ndarray:
    """A view of a field of the data, or of the model if the data lacks it."""
    place = worker.data if hasattr(worker.data, name) else worker.model
    view: np.ndarray = getattr(place, name)
    return view


def rows_of(words: np.ndarray) -> np.ndarray:
    """The float64 numbers encoded by pairs of words."""
    return words.view(np.float64)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="mujoco")


def _call(host: Callable, out: Any, given: PyTree, parameters: Parameters) -> Any:
    """``host(out, given, parameters)`` on numpy arrays with one leading axis, inside ``jit``."""

    def callback(_: Any, out: Any, given: Any, parameters: Any) -> None:
        outputs = [np.asarray(x) for x in out]
        lead = outputs[1].ndim - 1

        def merge(x: Any) -> np.ndarray:
            x = np.asarray(x)
            return x.reshape(-1, *x.shape[lead:])

        rest = ([merge(x) for x in given], jax.tree.map(merge, parameters))
        with np.errstate(over="ignore", invalid="ignore"):  # from diverged states
            host([merge(x) for x in outputs], *rest)

    batched = buffer_callback(callback, out, vmap_method="broadcast_all")
    return not_differentiable(batched, "c")(given, parameters)
