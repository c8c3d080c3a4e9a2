"""The engine ``"mjx"`` (MuJoCo in JAX), and ``"warp"`` (the same interface on MuJoCo Warp)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.mjx.collision import corrected
from jaxrl.envs.mjx.task import Task
from jaxrl.envs.randomize import Parameters, with_parameters
from jaxrl.types import Array, PyTree

_CARRIED = ("qpos", "qvel", "act", "qacc_warmstart")  # what a step reads of the one before
_WORLDS = 16384  # environments for which Warp's contacts are allocated


@dataclasses.dataclass(frozen=True, eq=False)
class MjxEngine:
    """Steps a task in JAX. A state is a dictionary of arrays.

    Attributes:
        budget: at most so many iterations of the solver, and of its line search.
        impl: "jax" or "warp".
    """

    task: Task
    budget: tuple[int, int]
    impl: str = "jax"
    model: Any = dataclasses.field(init=False)
    data: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        import mujoco
        from mujoco import mjx

        model = self.task.model.__copy__()
        if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON  # MJX has no PGS
        model.opt.iterations, model.opt.ls_iterations = self.budget
        sizes: dict[str, int] = {}
        with jax.ensure_compile_time_eval(), corrected():  # data has room for each contact
            put = mjx.put_model(model, impl=self.impl)
            if self.impl == "warp":
                sizes = {"naconmax": _WORLDS * max(4, 2 * model.ngeom), "njmax": 8 * model.ngeom}
            data = mjx.make_data(model, impl=self.impl, **sizes)
        object.__setattr__(self, "model", put)
        object.__setattr__(self, "data", data)

    def reset(self, qpos: Array, qvel: Array, parameters: Parameters) -> tuple[PyTree, Array]:
        """The state at ``qpos[nq], qvel[nv]``, and its observation."""
        from mujoco import mjx

        with corrected():
            model = with_parameters(self.model, parameters)
            data = mjx.forward(model, self.data.replace(qpos=qpos, qvel=qvel))
        # MJX returns normalised quaternions, but Gymnasium's first observation has them as drawn.
        # Without a warm start the solver begins at the unconstrained acceleration. So of tasks that
        # read positions and velocities alone, a reset computes no physics at all.
        data = data.replace(qpos=qpos, qacc_warmstart=jnp.zeros_like(qvel))
        read = self._read(model, data)
        return self._pack(read, data, parameters), self.task.observe(read)

    def step(self, state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        """``frame_skip`` steps of physics. Returns ``state, obs[O], reward, terminated``."""
        from mujoco import mjx

        action = action.astype(self.data.ctrl.dtype)
        data = self.data.replace(ctrl=action, **{name: state[name] for name in _CARRIED})
        dtypes = jax.tree.map(lambda x: x.dtype, data)

        def substep(_: Any, data: Any) -> Any:
            data = mjx.step(model, data)
            return jax.tree.map(lambda x, dtype: x.astype(dtype), data, dtypes)  # for float64

        with corrected():
            model = with_parameters(self.model, state["parameters"])
            data = jax.lax.fori_loop(0, self.task.frame_skip, substep, data)
            if "cfrc_ext" in self.task.READS:
                data = _with_forces(model, data)
        read = self._read(model, data)
        reward = self.task.reward(read, state["before"], action)
        ended = self.task.terminated(read)
        return self._pack(read, data, state["parameters"]), self.task.observe(read), reward, ended

    def pose(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What a renderer needs."""
        return {"qpos": np.asarray(state["qpos"])}

    def _read(self, model: Any, data: Any) -> Any:
        def find(name: str) -> Any:
            for place in (data, data._impl, model):
                if name in {field.name for field in dataclasses.fields(place)}:
                    return getattr(place, name)
            raise AssertionError(f"neither MJX's data nor its model has {name}")

        return SimpleNamespace(**{name: find(name) for name in self.task.READS})

    def _pack(self, read: Any, data: Any, parameters: Parameters) -> PyTree:
        carried = {name: getattr(data, name) for name in _CARRIED}
        return carried | {"before": self.task.position(read), "parameters": parameters}


def _with_forces(model: Any, data: Any) -> Any:
    """The data with contact forces, which MJX computes only when asked."""
    from mujoco.mjx._src import smooth

    return smooth.rne_postconstraint(model, data)
