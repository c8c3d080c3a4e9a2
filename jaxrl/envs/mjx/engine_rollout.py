"""The engine ``"c"`` based on ``mujoco.rollout``, which loops over environments in C."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl.envs.mjx.engine_c import CEngine, rows_of


@dataclasses.dataclass(frozen=True, eq=False)
class RolloutEngine(CEngine):
    """Steps a task that reads only positions and velocities, with the model's own parameters.

    A rollout does not return the solver's warm start. So each step starts the solver cold and
    agrees with Gymnasium to the solver's tolerance, not bit for bit.
    """

    def _host_step(self, out: Sequence, given: Sequence, parameters: dict) -> None:
        words, action = given
        before, rows, spans = rows_of(words), *self._rows_and_spans(out[0])
        rows[...] = before
        held = [spans[:, self._probe.places[name]] for name in self._moving]
        frames = self.task.frame_skip
        start = np.concatenate([np.zeros((len(rows), 1)), *held], axis=1)  # the time first
        ctrl = np.repeat(action[:, None].astype(np.float64), frames, axis=1)
        states = np.empty((len(rows), frames, start.shape[1]))

        worker = self._take()
        try:
            models = [worker.model] * len(rows)
            worker.rollout(models, worker.datas, start, ctrl, nstep=frames, state=states)
        finally:
            self._idle.put(worker)

        ends = itertools.accumulate(part.shape[1] for part in held)
        for part, new in zip(held, np.split(states[:, -1, 1:], [*ends][:-1], axis=1), strict=True):
            part[...] = new
        read = self._readings(spans)
        self._judge(out, before[:, spans.shape[1] :], action, read)
        self._finish(out, rows, read)
        self._expose(out, spans)

    @property
    def _moving(self) -> list[str]:
        return [name for name in ("qpos", "qvel", "act") if name in self._probe.places]

    def _worker(self) -> Any:
        import mujoco
        from mujoco import rollout

        if mujoco.get_mju_user_warning() is None:
            # Rollouts reset warning counts: without this each warning is printed and written to a
            # file.
            mujoco.set_mju_user_warning(_warn)
        worker = super()._worker()
        spare = [mujoco.MjData(worker.model) for _ in range(self.threads - 1)]
        worker.datas = [worker.data, *spare]
        worker.rollout = rollout.Rollout(nthread=self.threads).rollout
        return worker


def _warn(text: str) -> None:
    """Raise MuJoCo's warnings in Python, except for divergence, which the vector env counts."""
    if "unstable" not in text:
        warnings.warn(text, stacklevel=2)
