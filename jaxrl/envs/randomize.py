"""Domain randomisation: model parameters that differ between environments.

They are drawn at every reset and are part of the environment's state. So each environment of a
vector environment steps its own model, and each state in a pool of starts has its own model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.checks import check_options
from jaxrl.errors import UsageError
from jaxrl.types import Array, Key

Parameters = dict[str, Array]  # fields of the model, by name
Range = tuple[float, float]

FIELDS = (
    *("geom_friction", "pair_friction", "body_mass", "body_inertia", "body_subtreemass"),
    *("actuator_gainprm", "actuator_biasprm", "dof_damping", "dof_dampingpoly", "dof_armature"),
    "gravity",
)
# Lower bounds of the factors. MJX's float32 solver diverges if contacts have almost no friction.
_LEAST = {"friction": 0.05, "damping": 0.0, "armature": 0.0}
_MUSCLE = 2  # in both mjtGain and mjtBias; lower values are motors and servos


@dataclasses.dataclass(frozen=True)
class Randomize:
    """Factors, drawn uniformly from ``(low, high)``, for a MuJoCo model's own parameters.

    All engines use exactly the same numbers. For quantities that MuJoCo derives from a parameter
    when it compiles a model:

    - subtree masses are updated: C and Warp divide by them for centres of mass;
    - the inverse weights (``body_``, ``dof_`` and ``tendon_invweight0``) keep their nominal values.
      They only scale the softness of contacts, joint limits and friction losses: a heavier body
      stands on slightly softer ground. Accelerations of a Hopper standing on its foot differ by 6 %
      if its whole mass is doubled, and by 0.7 % if one body's mass is;
    - muscles without a given force use the nominal model's (``actuator_acc0``).

    Values that a task reads from its model at construction also stay nominal: some of Playground's
    robots are pushed in proportion to their nominal weight.

    Attributes:
        friction: sliding, torsional and rolling friction; one factor for all contacts; >= 0.05.
        mass: masses and inertias; a factor for each body; > 0.
        gain: actuator forces, including servo gains; a factor for each actuator. Force limits are
            unchanged.
        damping: joint damping; a factor for each degree of freedom; >= 0.
        armature: joint armature; a factor for each degree of freedom; >= 0.
        gravity: one factor.
    """

    friction: Range | None = None
    mass: Range | None = None
    gain: Range | None = None
    damping: Range | None = None
    armature: Range | None = None
    gravity: Range | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _check_range(field.name, value))

    def draw(self, key: Key, model: Any) -> Parameters:
        """Draw new values for the randomised ``FIELDS`` that are not zero.

        ``model`` is a ``mujoco.MjModel`` or an ``mjx.Model``. Raises UsageError for a gain factor
        if an actuator is not a motor, servo or muscle.
        """
        names = [field.name for field in dataclasses.fields(self)]
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

        def factor(name: str, *shape: int) -> Array | None:
            span = getattr(self, name)
            if span is None:
                return None
            return jax.random.uniform(keys[name], shape, minval=span[0], maxval=span[1])

        friction, mass = factor("friction"), factor("mass", model.nbody)
        gain, damping = factor("gain", model.nu), factor("damping", model.nv)
        factors = {
            "geom_friction": friction,
            "pair_friction": friction,
            "body_mass": mass,
            "body_inertia": mass,
            "actuator_gainprm": _of_forces(gain, model.actuator_gaintype),
            "actuator_biasprm": _of_forces(gain, model.actuator_biastype),
            "dof_damping": damping,
            "dof_dampingpoly": damping,
            "dof_armature": factor("armature", model.nv),
            "gravity": factor("gravity"),
        }
        drawn = {
            name: _scaled(nominal(model, name), by)
            for name, by in factors.items()
            if by is not None and np.asarray(nominal(model, name)).any()
        }
        if "body_mass" in drawn:
            drawn["body_subtreemass"] = _subtree_sums(drawn["body_mass"], model.body_parentid)
        return drawn


def draw_beside(randomize: Randomize | None, key: Key, model: Any) -> Parameters:
    """The parameters of an episode whose reset gets the same ``key``; may be empty."""
    if randomize is None:
        return {}
    # This number is far from those the reset uses to derive its own keys.
    return randomize.draw(jax.random.fold_in(key, 0x6D6F6465), model)


def nominal(model: Any, name: str) -> np.ndarray:
    """One of a model's ``FIELDS``; for a ``mujoco.MjModel``, a view."""
    field: np.ndarray = getattr(model.opt if name == "gravity" else model, name)
    return field


def with_parameters(model: Any, parameters: Mapping[str, Array]) -> Any:
    """An ``mjx.Model`` with other parameters."""
    if not parameters:
        return model
    path = {"gravity": "opt.gravity"}
    return model.tree_replace({path.get(name, name): x for name, x in parameters.items()})


def randomize_option(env: str, value: Any) -> Randomize | None:
    """The option ``randomize``: a ``Randomize``, a dictionary of its fields, or None.

    Raises:
        UsageError: unknown parameter, or an invalid range.
    """
    if value is None or isinstance(value, Randomize):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{env}: randomize is {value!r}; it must be a dictionary, as {{'friction': (0.5, 1.5)}}"
        )
    check_options(
        f"{env}: randomize", map(str, value), [f.name for f in dataclasses.fields(Randomize)]
    )
    return Randomize(**value)


def as_option(randomize: Randomize | None) -> dict[str, list[float]] | None:
    """Return the options as JSON, readable by ``randomize_option``."""
    if randomize is None:
        return None
    given = dataclasses.asdict(randomize).items()
    return {name: list(span) for name, span in given if span is not None}


def _check_range(name: str, value: Any) -> Range:
    numbers = isinstance(value, (tuple, list)) and all(
        isinstance(x, Real) and not isinstance(x, bool) for x in value
    )
    if not numbers or len(value) != 2 or not np.all(np.isfinite(value)) or value[0] > value[1]:
        raise UsageError(f"randomize: {name} is {value!r}; it must be low and high, as (0.5, 1.5)")
    low, high = map(float, value)
    if name == "mass" and low <= 0:
        raise UsageError(f"randomize: mass is {value!r}; it must be above 0, as (0.5, 1.5)")
    if low < _LEAST.get(name, low):
        least = f"{_LEAST[name]:g}"
        raise UsageError(
            f"randomize: {name} is {value!r}; it must be at least {least}, as (0.5, 1.5)"
        )
    return low, high


def _scaled(x: Any, by: Array) -> Array:
    return jnp.asarray(x) * by.reshape(by.shape + (1,) * (x.ndim - by.ndim) * (by.ndim > 0))


def _of_forces(gain: Array | None, kinds: Any) -> Array | None:
    """``gain[nu]`` for the actuator parameters that are proportional to force: ``[nu, 10]``.

    These are all parameters of motors and servos, and ``force`` and ``scale`` of muscles.
    """
    if gain is None:
        return None
    kinds = np.asarray(kinds)[:, None]
    if (kinds > _MUSCLE).any():
        which = np.argmax(kinds > _MUSCLE)
        raise UsageError(
            f"randomize: gain is of motors, servos and muscles, and actuator {which} is none; "
            "leave gain out"
        )
    forces = (kinds != _MUSCLE) | np.isin(np.arange(10), (2, 3))
    return jnp.where(forces, gain[:, None], 1.0)


def _subtree_sums(x: Array, parents: Any) -> Array:
    """Sum ``x[nbody]`` over each body and its descendants: ``[nbody]``."""
    above = np.eye(len(parents), dtype=bool)  # above[i, j]: j is i or its descendant
    for body in range(len(parents) - 1, 0, -1):
        above[parents[body]] |= above[body]
    return jnp.where(above, x, 0.0).sum(axis=1)
