"""The engine ``"mjx"`` (MuJoCo in JAX), and ``"warp"`` (the same interface on MuJoCo Warp)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.mjx.collision import corrected
from jaxrl.envs.mjx.collision_warp import correct_warp
from jaxrl.envs.mjx.gradients import forward_alone, not_differentiable
from jaxrl.envs.mjx.task import MOVING, Task, diverged
from jaxrl.envs.randomize import Parameters, with_parameters
from jaxrl.errors import UsageError
from jaxrl.types import Array, PyTree

_CARRIED = ("qpos", "qvel", "act", "qacc_warmstart")  # what a step reads from the previous state
_WORLDS = 16384  # Warp's default contact capacity suffices for this many environments


@dataclasses.dataclass(frozen=True, eq=False)
class MjxEngine:
    """Steps a task in JAX. A state is a dictionary of arrays.

    Attributes:
        budget: the maximum iterations of the solver and its line search.
        impl: "jax" or "warp".
        naconmax: for Warp, the maximum number of contacts over all environments.

    Raises:
        UsageError: the model uses a feature that this implementation lacks.
    """

    task: Task
    budget: tuple[int, int]
    impl: str = "jax"
    naconmax: int | None = None
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
        if self.impl == "warp":
            correct_warp()
            most = self.naconmax or _WORLDS * max(4, 2 * model.ngeom)
            sizes = {"naconmax": most, "njmax": 8 * model.ngeom}
        with jax.ensure_compile_time_eval(), corrected():  # data has room for each contact
            try:
                put = mjx.put_model(model, impl=self.impl)
                data = mjx.make_data(model, impl=self.impl, **sizes)
            except (NotImplementedError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UsageError(
                    f"xml_file is {self.task.xml_file!r}, which MJX does not support: {reason}; "
                    "choose engine c"
                ) from error
        if self.impl == "warp":
            put = _silent(put)
        object.__setattr__(self, "model", put)
        object.__setattr__(self, "data", data)

    def reset(self, qpos: Array, qvel: Array, parameters: Parameters) -> tuple[PyTree, Array]:
        """The state at ``qpos[nq], qvel[nv]``, and its observation."""
        return self._differentiated(self._reset)(qpos, qvel, parameters)

    def step(self, state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        """``frame_skip`` steps of physics. Returns ``state, obs[O], reward, terminated``.

        The observation of a diverged state is NaN.
        """
        return self._differentiated(self._step)(state, action)

    def _differentiated(self, f: Callable) -> Callable:
        """``f``, raising an error if differentiated where no derivative exists."""
        if self.impl == "warp":
            return not_differentiable(f, "warp")
        if self.budget[0] == 1:
            return f
        return lambda *given: forward_alone(f(*given))

    def _reset(self, qpos: Array, qvel: Array, parameters: Parameters) -> tuple[PyTree, Array]:
        from mujoco import mjx

        with corrected():
            model = with_parameters(self.model, parameters)
            data = mjx.forward(model, self.data.replace(qpos=qpos, qvel=qvel))
        # MJX returns normalised quaternions, but Gymnasium's first observation has them as drawn.
        # Without a warm start the solver begins at the unconstrained acceleration. So for tasks
        # that read only positions and velocities, a reset computes no physics.
        data = data.replace(qpos=qpos, qacc_warmstart=jnp.zeros_like(qvel))
        read = self._read(model, data)
        return self._pack(read, data, parameters), self.task.observe(read)

    def _step(self, state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        from mujoco import mjx

        action = action.astype(self.data.ctrl.dtype)
        data = self.data.replace(ctrl=action, **{name: state[name] for name in _CARRIED})
        dtypes = jax.tree.map(lambda x: x.dtype, data)

        def substep(_: Any, data: Any) -> Any:
            data = mjx.step(model, data)
            return jax.tree.map(lambda x, dtype: x.astype(dtype), data, dtypes)  # for float64

        forces = "cfrc_ext" in self.task.reads
        with corrected():
            model = with_parameters(self.model, state["parameters"])
            if forces and self.impl == "warp":
                model = model.tree_replace({"opt._impl.run_rne_postconstraint": True})
            data = jax.lax.fori_loop(0, self.task.frame_skip, substep, data)
            if forces and self.impl == "jax":
                data = _with_forces(model, data)
        read = self._read(model, data)
        reward = self.task.reward(read, state["before"], action)
        ended = self.task.terminated(read)
        bad = diverged(*(getattr(data, name) for name in MOVING))
        obs = jnp.where(bad, jnp.nan, self.task.observe(read))
        return self._pack(read, data, state["parameters"]), obs, reward, ended

    def pose(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the pose that a renderer needs."""
        return {"qpos": np.asarray(state["qpos"])}

    def _read(self, model: Any, data: Any) -> Any:
        def find(name: str) -> Any:
            for place in (data, data._impl, model):
                if name in {field.name for field in dataclasses.fields(place)}:
                    return getattr(place, name)
            raise AssertionError(f"neither MJX's data nor its model has {name}")

        return SimpleNamespace(**{name: find(name) for name in self.task.reads})

    def _pack(self, read: Any, data: Any, parameters: Parameters) -> PyTree:
        carried = {name: getattr(data, name) for name in _CARRIED}
        return carried | {"before": self.task.position(read), "parameters": parameters}


def _silent(model: Any) -> Any:
    """Warp's model without the message it prints whenever its solver's budget is used up."""
    from mujoco.mjx.third_party.mujoco_warp import OverflowType

    said = int(OverflowType.ITERATIONS | OverflowType.LS_ITERATIONS)
    return model.tree_replace({"opt._impl.warn_overflow": model.opt._impl.warn_overflow & ~said})


def _with_forces(model: Any, data: Any) -> Any:
    """The data with contact forces, which MJX computes only when asked."""
    from mujoco.mjx._src import smooth

    return smooth.rne_postconstraint(model, data)
