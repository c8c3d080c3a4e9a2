"""Metadata of an exported policy: its task, observations and actions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxrl.agents import protocol
from jaxrl.export.acting import Acting
from jaxrl.require import is_number
from jaxrl.types import Box, Discrete

UNITS = "the environment's own: the scaling from the policy's [-1, 1] is inside, where there is any"


def metadata(acting: Acting, env: Any, inputs: Sequence[str]) -> dict[str, Any]:
    """Return the metadata as JSON; ``inputs`` are the observations the policy reads, in order.

    An environment may have ``dt`` (seconds per step), ``observation_names`` and ``action_names``
    (one per element); for MuJoCo tasks these are read from the model. Unknown values and infinite
    bounds are null.
    """
    names = observation_names(env)
    observation = [
        _box(name, acting.boxes[name])
        | {"entry": name.partition(".")[2] or None}
        | {"elements": _fitting(names, acting.boxes[name])}
        for name in inputs
    ]
    space = acting.policy.spec.action
    if isinstance(space, Discrete):
        action: dict[str, Any] = {"name": "action", "shape": [], "dtype": "int32", "n": space.n}
    else:
        action = _box("action", space) | {"units": UNITS}
        action["elements"] = _fitting(action_names(env), space)
    return {
        "format": 1,
        "made_by": f"jaxrl {_version()}",
        "algorithm": type(protocol.innermost(acting.policy.agent)).__name__,
        "environment": getattr(env, "name", None),
        "control_interval_seconds": control_interval(env),
        "observation": observation,
        "action": action,
    }


def _version() -> str:
    try:
        return version("jaxrl")
    except PackageNotFoundError:  # on the path, but not installed
        return "unknown"


def _box(name: str, box: Box) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(box.shape),
        "dtype": np.dtype(jax.dtypes.canonicalize_dtype(box.dtype)).name,
        "low": _bound(box.low),
        "high": _bound(box.high),
    }


def _bound(bound: np.ndarray) -> Any:
    """Return a bound as nested lists, or as one number if all elements are equal."""
    finite = [float(x) if np.isfinite(x) else None for x in bound.reshape(-1)]
    if len(set(finite)) == 1:
        return finite[0]
    return np.array(finite, object).reshape(bound.shape).tolist()


def _fitting(names: Sequence[str | None] | None, box: Box) -> list[str | None] | None:
    return list(names) if names is not None and box.shape == (len(names),) else None


def control_interval(env: Any) -> float | None:
    """Return the seconds between actions, if the environment defines them."""
    for each in (env, getattr(env, "env", None)):
        if is_number(found := getattr(each, "dt", None)):
            return float(found)
    return None


def action_names(env: Any) -> Sequence[str] | None:
    """Return a name for each action element, if the environment defines them."""
    given: Sequence[str] | None = getattr(env, "action_names", None)
    model = _model(env)
    if given is not None or model is None:
        return given
    return [_actuator(model, i) for i in range(model.nu)]


def _actuator(model: Any, i: int) -> str:
    """Return the name of an actuator, or else of the part it moves."""
    import mujoco

    actuator = model.actuator(i)
    kinds = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    if actuator.name or int(actuator.trntype[0]) not in map(int, kinds):
        return str(actuator.name or f"actuator {i}")
    return str(model.joint(actuator.trnid[0]).name or f"actuator {i}")


def _model(env: Any) -> Any:
    """Return the ``mujoco.MjModel`` of an environment or its inner Brax environment, or None."""
    system = getattr(getattr(env, "env", None), "sys", None)
    return getattr(env, "mj_model", None) or getattr(system, "mj_model", None)


def observation_names(env: Any) -> Sequence[str | None] | None:
    """Return a name for each observation element, if the environment defines them."""
    given: Sequence[str | None] | None = getattr(env, "observation_names", None)
    task = getattr(env, "task", None)
    if given is not None or not hasattr(task, "reads"):
        return given
    return _readings(task)


def _readings(task: Any) -> list[str | None]:
    """Return the names of a ``mjx/`` task's observation elements; None for computed elements.

    The task's ``observe`` is called on readings in which all numbers are distinct.
    """
    import mujoco

    model = task.model
    data = mujoco.MjData(model)
    names: dict[float, str] = {}
    marks, readings = itertools.count(1), {}
    for field in task.reads:
        like = np.asarray(getattr(data if hasattr(data, field) else model, field))
        reading = np.zeros(like.shape)
        for index in np.ndindex(like.shape):
            mark = next(marks) / 65_536  # exact, and too small to be clipped
            reading[index] = mark
            name = f"{field} {_place(model, field, index)}"
            names |= {mark: name, np.sin(mark): f"sin {name}", np.cos(mark): f"cos {name}"}
        readings[field] = reading
    seen = np.asarray(task.observe(SimpleNamespace(**readings)))
    return [names.get(x) for x in seen.tolist()]


def _place(model: Any, field: str, index: tuple[int, ...]) -> str:
    """Return the owner of an element of a MuJoCo array: a joint, body, or number."""
    first, rest = index[0], "".join(f"[{i}]" for i in index[1:])
    if field in ("qpos", "qvel", "qfrc_actuator", "qfrc_constraint"):
        starts = model.jnt_qposadr if field == "qpos" else model.jnt_dofadr
        joint = int(np.searchsorted(starts, first, side="right")) - 1
        size = np.diff([*starts, model.nq if field == "qpos" else model.nv])[joint]
        name = model.joint(joint).name or f"joint {joint}"
        return f"{name}[{first - starts[joint]}]" if size > 1 else name
    if field in ("xpos", "cinert", "cvel", "cfrc_ext"):
        return f"{model.body(first).name or f'body {first}'}{rest}"
    return f"[{first}]{rest}"
