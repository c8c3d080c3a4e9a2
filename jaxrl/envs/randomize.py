"""Domain randomisation: model parameters that differ between environments.

They are drawn with every reset and travel in the environment's state, so a vector environment
steps as many different models as it has environments, and a bank of starts holds as many as it has
states.
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
    *("geom_friction", "body_mass", "body_inertia", "actuator_gainprm", "actuator_biasprm"),
    *("dof_damping", "dof_armature", "gravity"),
)


@dataclasses.dataclass(frozen=True)
class Randomize:
    """Factors, drawn uniformly from ``(low, high)``, for a MuJoCo model's own parameters.

    What MuJoCo derives from them when it compiles a model (the inverse weights that scale
    constraints) keeps its nominal value.

    Attributes:
        friction: sliding, torsional and rolling friction; one factor for all geoms; >= 0.
        mass: masses with their inertias; a factor for each body; > 0.
        gain: strength of the actuators; a factor for each.
        damping: of the joints; a factor for each degree of freedom; >= 0.
        armature: of the joints; a factor for each degree of freedom; >= 0.
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
        """The fields of ``model`` (a ``mujoco.MjModel``) that are randomised, drawn anew."""
        keys = dict(
            zip([f.name for f in dataclasses.fields(self)], jax.random.split(key, 6), strict=True)
        )

        def factor(name: str, *shape: int) -> Array | None:
            span = getattr(self, name)
            if span is None:
                return None
            return jax.random.uniform(keys[name], shape, minval=span[0], maxval=span[1])

        mass, gain = factor("mass", model.nbody), factor("gain", model.nu)
        factors = {
            "geom_friction": factor("friction"),
            "body_mass": mass,
            "body_inertia": mass,
            "actuator_gainprm": gain,
            "actuator_biasprm": gain,
            "dof_damping": factor("damping", model.nv),
            "dof_armature": factor("armature", model.nv),
            "gravity": factor("gravity"),
        }
        return {
            name: _scaled(nominal(model, name), by)
            for name, by in factors.items()
            if by is not None
        }


def nominal(model: Any, name: str) -> np.ndarray:
    """A view of one of ``FIELDS`` of a ``mujoco.MjModel``."""
    field: np.ndarray = getattr(model.opt if name == "gravity" else model, name)
    return field


def with_parameters(model: Any, parameters: Mapping[str, Array]) -> Any:
    """An ``mjx.Model`` with other parameters."""
    if not parameters:
        return model
    path = {"gravity": "opt.gravity"}
    return model.tree_replace({path.get(name, name): x for name, x in parameters.items()})


def randomize_option(env: str, value: Any) -> Randomize | None:
    """The option ``randomize`` of an environment: a ``Randomize``, a dictionary of it, or None.

    Raises:
        UsageError: unknown parameter, or a range that is none.
    """
    if value is None or isinstance(value, Randomize):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{env}: randomize is {value!r}; it must be a dictionary, as {{'friction': (0.5, 1.5)}}"
        )
    check_options(f"{env}: randomize", value, [f.name for f in dataclasses.fields(Randomize)])
    return Randomize(**value)


def as_option(randomize: Randomize | None) -> dict[str, list[float]] | None:
    """What ``randomize_option`` reads, as JSON."""
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
    if name not in ("gain", "gravity") and (low < 0 or (name == "mass" and low == 0)):
        least = "more than 0" if name == "mass" else "at least 0"
        raise UsageError(f"randomize: {name} is {value!r}; its factors must be {least}")
    return low, high


def _scaled(x: np.ndarray, by: Array) -> Array:
    return jnp.asarray(x) * by.reshape(by.shape + (1,) * (x.ndim - by.ndim) * (by.ndim > 0))
