"""A task and an engine as an environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.checks import check_action
from jaxrl.envs.mjx.task import Task
from jaxrl.envs.randomize import Parameters, Randomize
from jaxrl.errors import UsageError
from jaxrl.types import Array, Box, Key, PyTree, Spec, Step


class Engine(Protocol):
    """The physics that steps a task: one environment, or many under ``vmap``."""

    def reset(self, qpos: Array, qvel: Array, parameters: Parameters) -> tuple[PyTree, Array]:
        """The state at ``qpos[nq], qvel[nv]``, and its observation ``[O]``."""
        ...

    def step(self, state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        """One environment step. Returns ``state, obs[O], reward, terminated``."""
        ...

    def pose(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the pose that a renderer needs, on the host: ``{"qpos": [nq]}``."""
        ...


@dataclasses.dataclass(eq=False)
class MujocoEnv:
    """One of Gymnasium's MuJoCo tasks.

    Attributes:
        options: the options that, with its name, define it; includes automatic choices.
        cheap_resets: a reset computes no physics.
        threaded: a batch is stepped on all host cores, for any number of devices.
    """

    name: str
    task: Task
    engine: Engine
    max_steps: int
    randomize: Randomize | None
    options: dict[str, Any]
    cheap_resets: bool
    threaded: bool
    cheap: bool = False
    spec: Spec = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        _, obs = jax.eval_shape(self.reset, jax.random.key(0))
        bounds = self.task.model.actuator_ctrlrange.astype(np.float32)
        # MuJoCo gives the range (0, 0) to an actuator without limits.
        bounds[~self.task.model.actuator_ctrllimited.astype(bool)] = -np.inf, np.inf
        low, high = bounds.T
        spec = Spec(Box(-np.inf, np.inf, obs.shape), Box(low, high, low.shape), self.max_steps)
        self.spec = spec

    @property
    def mj_model(self) -> Any:
        """The ``mujoco.MjModel``, for renderers."""
        return self.task.model

    @property
    def camera(self) -> dict[str, Any]:
        """The arguments of Gymnasium's renderer."""
        return self.task.camera

    @property
    def dt(self) -> float:
        """Seconds per step."""
        return self.task.dt

    def reset(self, key: Key) -> tuple[PyTree, Array]:
        """Draw a first state. Returns ``state, obs[O]``."""
        start_key, model_key = jax.random.split(key)
        qpos, qvel = self.task.start(start_key)
        randomize = self.randomize
        parameters = {} if randomize is None else randomize.draw(model_key, self.task.model)
        return self.engine.reset(qpos, qvel, parameters)

    def reset_to(self, qpos: Array, qvel: Array) -> tuple[PyTree, Array]:
        """The state at ``qpos[nq], qvel[nv]`` with the model's own parameters, and ``obs[O]``.

        Raises:
            UsageError: for positions or velocities of another length.
        """
        model = self.task.model
        for name, value, size in (("qpos", qpos, model.nq), ("qvel", qvel, model.nv)):
            if jnp.shape(value) != (size,):
                raise UsageError(f"{name} has shape {jnp.shape(value)}; {self.name} has ({size},)")
        return self.engine.reset(jnp.asarray(qpos), jnp.asarray(qvel), {})

    def step(self, key: Key, state: PyTree, action: Array) -> tuple[PyTree, Step]:
        """Advance one step with ``action[A]`` in the actuators' units.

        As in Gymnasium, MuJoCo clips values outside their range, and the control cost uses the
        unclipped action. Raises as ``check_action`` does.
        """
        action, _ = check_action(self.spec.action, action)
        state, obs, reward, terminated = self.engine.step(state, action)
        return state, Step(obs, reward, terminated, jnp.zeros_like(terminated), {})

    def pose(self, state: PyTree) -> dict[str, np.ndarray]:
        """Return the pose that a renderer needs, on the host: ``{"qpos": [nq]}``."""
        return self.engine.pose(state)
