"""The engine ``"c"``: MuJoCo's own, on the CPU's cores, called from inside ``jit``.

The whole of a step happens on the host in float64: physics, observation, reward and end. A state
travels through JAX as an array of 32-bit words, two for each float64, so nothing is rounded and
``vmap``, ``scan``, checkpoints and resuming see an array like any other. Trajectories equal
Gymnasium's bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from jaxrl.envs.mjx.task import Task
from jaxrl.envs.randomize import FIELDS, Parameters, nominal
from jaxrl.errors import UsageError
from jaxrl.types import Array, PyTree

_CARRIED = ("qpos", "qvel", "act", "qacc_warmstart")  # what a step reads of the one before
_SMALLEST = 8  # environments that are worth a thread


@dataclasses.dataclass(frozen=True, eq=False)
class CEngine:
    """Steps a task in C. A state is ``{"words": uint32[2 K], "parameters": ...}``.

    Attributes:
        budget: at most so many iterations of the solver and of its line search; None: the model's.
        threads: over which the environments of one call are spread.
    """

    task: Task
    budget: tuple[int, int] | None = None
    threads: int = 1
    _idle: queue.SimpleQueue = dataclasses.field(init=False, default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self._idle.put(self._worker())

    # In JAX

    def reset(self, qpos: Array, qvel: Array, parameters: Parameters) -> tuple[PyTree, Array]:
        """The state at ``qpos[nq], qvel[nv]``, and its observation."""
        out = (self._words, self._obs)
        words, obs = _call(self._host_reset, out, (qpos, qvel), parameters)
        return {"words": words, "parameters": parameters}, obs

    def step(self, state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        """``frame_skip`` steps of physics. Returns ``state, obs[O], reward, terminated``."""
        scalar = jax.ShapeDtypeStruct((), self._obs.dtype)
        out = (self._words, self._obs, scalar, jax.ShapeDtypeStruct((), jnp.bool_))
        parameters = state["parameters"]
        words, *outcome = _call(self._host_step, out, (state["words"], action), parameters)
        return ({"words": words, "parameters": parameters}, *outcome)

    def pose(self, state: PyTree) -> dict[str, np.ndarray]:
        """What a renderer needs."""
        rows = np.ascontiguousarray(state["words"]).view(np.float64)
        return {"qpos": rows[..., : self.task.model.nq]}

    @property
    def _words(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2 * self._layout[-1],), jnp.uint32)

    @functools.cached_property
    def _obs(self) -> jax.ShapeDtypeStruct:
        read = SimpleNamespace(**{name: _field(self._probe, name) for name in self.task.READS})
        return jax.ShapeDtypeStruct(self.task.observe(read).shape, jnp.result_type(float))

    @functools.cached_property
    def _probe(self) -> Any:
        worker = self._idle.get()
        self._idle.put(worker)
        return worker

    @functools.cached_property
    def _layout(self) -> list[int]:
        """Where the parts of a state end: ``_CARRIED``, then the task's ``position``."""
        read = SimpleNamespace(**{name: _field(self._probe, name) for name in self.task.READS})
        sizes = [getattr(self._probe.data, name).size for name in _CARRIED]
        return list(itertools.accumulate([*sizes, self.task.position(read).size]))

    # On the host

    def _host_reset(self, out: Sequence, given: Sequence, parameters: dict) -> None:
        qpos, qvel = given
        rows = _rows_of(out[0])
        read = self._readings(len(rows))

        def reset(worker: Any, i: int) -> None:
            worker.restart()
            worker.parts[0][:], worker.parts[1][:] = qpos[i], qvel[i]
            worker.forward(worker.model, worker.data)

        self._run(reset, rows, read, parameters)
        self._finish(out, rows, read)

    def _host_step(self, out: Sequence, given: Sequence, parameters: dict) -> None:
        words, action = given
        before, rows = _rows_of(words), _rows_of(out[0])
        read = self._readings(len(rows))
        ends = self._layout[:-1]
        starts = [0, *ends[:-1]]
        frames, forces = self.task.frame_skip, "cfrc_ext" in self.task.READS

        def step(worker: Any, i: int) -> None:
            row = before[i]
            for part, a, b in zip(worker.parts, starts, ends, strict=True):
                part[:] = row[a:b]
            worker.ctrl[:] = action[i]
            worker.step(worker.model, worker.data, frames)
            if forces:
                worker.forces(worker.model, worker.data)

        self._run(step, rows, read, parameters)
        action64 = action.astype(np.float64)
        out[2][...] = self.task.reward(read, before[:, ends[-1] :], action64)
        out[3][...] = self.task.terminated(read)
        self._finish(out, rows, read)

    def _finish(self, out: Sequence, rows: np.ndarray, read: Any) -> None:
        rows[:, self._layout[-2] :] = self.task.position(read)
        out[1][...] = self.task.observe(read)

    def _readings(self, size: int) -> Any:
        like = ((name, _field(self._probe, name)) for name in self.task.READS)
        return SimpleNamespace(**{name: np.empty((size, *x.shape)) for name, x in like})

    def _run(self, act: Callable, rows: np.ndarray, read: Any, parameters: dict) -> None:
        """``act`` on every row, over the threads; then store what it left in MuJoCo's data."""
        ends = self._layout[:-1]
        starts = [0, *ends[:-1]]
        outputs = vars(read)

        def work(first: int, last: int) -> None:
            worker = self._take()
            fields = [(outputs[name], _field(worker, name)) for name in outputs]
            try:
                for i in range(first, last):
                    for name, values in parameters.items():
                        worker.settable[name][...] = values[i]
                    act(worker, i)
                    row = rows[i]
                    for part, a, b in zip(worker.parts, starts, ends, strict=True):
                        row[a:b] = part
                    for output, field in fields:
                        output[i] = field
            finally:
                self._idle.put(worker)

        size = len(rows)
        jobs = max(1, min(self.threads, size // _SMALLEST))
        edges = [size * job // jobs for job in range(jobs + 1)]
        others = [_pool().submit(work, *edge) for edge in itertools.pairwise(edges[1:])]
        work(*edges[:2])
        for other in others:
            other.result()

    def _take(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._worker()

    def _worker(self) -> Any:
        """A model and data of its own, with views of the fields that are set and read."""
        import mujoco

        model = self.task.model.__copy__()
        # A diverged state stays as it is, to be seen and counted, and is not replaced by the first.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        if self.budget is not None:
            model.opt.iterations, model.opt.ls_iterations = self.budget
        data = mujoco.MjData(model)
        for warning in data.warning:
            warning.number = 1  # said once already: nothing is printed, no file is written
        return SimpleNamespace(
            model=model,
            data=data,
            ctrl=data.ctrl,
            parts=[getattr(data, name) for name in _CARRIED],
            settable={name: nominal(model, name) for name in FIELDS},
            restart=functools.partial(_restart, mujoco.mj_resetData, model, data),
            forward=mujoco.mj_forward,
            step=mujoco.mj_step,
            forces=mujoco.mj_rnePostConstraint,
        )


def _restart(reset: Callable, model: Any, data: Any) -> None:
    reset(model, data)
    for warning in data.warning:
        warning.number = 1


def _field(worker: Any, name: str) -> np.ndarray:
    """A view of a field of the data, or of the model where the data has none such."""
    place = worker.data if hasattr(worker.data, name) else worker.model
    view: np.ndarray = getattr(place, name)
    return view


def _rows_of(words: np.ndarray) -> np.ndarray:
    return words.view(np.float64)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="mujoco")


def _call(host: Callable, out: Any, given: PyTree, parameters: Parameters) -> Any:
    """``host(out, given, parameters)`` on numpy arrays with one leading axis, inside ``jit``."""

    def callback(_: Any, out: Any, given: Any, parameters: Any) -> None:
        outputs = [np.asarray(x) for x in out]
        lead = outputs[1].ndim - 1

        def merge(x: Any) -> np.ndarray:
            x = np.asarray(x)
            return x.reshape(-1, *x.shape[lead:])

        host(
            [merge(x) for x in outputs], [merge(x) for x in given], jax.tree.map(merge, parameters)
        )

    return _not_differentiable(buffer_callback(callback, out, vmap_method="broadcast_all"))(
        given, parameters
    )


def _not_differentiable(f: Callable) -> Callable:
    """``f``, whose derivative is an error that says what to do."""
    function = jax.custom_jvp(f)

    def refuse(primals: Any, tangents: Any) -> Any:
        raise UsageError("engine 'c' has no gradients; make the environment with engine='mjx'")

    function.defjvp(refuse)
    return function
