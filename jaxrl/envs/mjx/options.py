"""Checks of the Gymnasium class arguments that are options of ``mjx/<Task>``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Real
from types import NoneType
from typing import Any

from jaxrl.envs.checks import check_like, check_options, check_positive
from jaxrl.errors import UsageError
from jaxrl.require import require, shown

# Options of every task in addition to its class's; ``make`` takes them by name.
_OWN = ("engine", "exact", "iterations", "ls_iterations", "naconmax", "margin", "randomize")
# Fields that are not options: set by ``margin`` and by the task's name.
_FIXED = ("legacy_margin", "version")
# Options whose default does not tell their type: the types, and what to pass.
_KINDS: dict[str, tuple[Any, str]] = {
    "main_body": ((int, str), "a name or an index"),
    "xml_file": (str, "the name or path of an XML file, as './ant.xml'"),
    "camera_id": ((int, NoneType), "an index, as 0, or None"),
    "camera_name": ((str, NoneType), "a name, as 'track', or None"),
    "default_camera_config": ((Mapping, NoneType), "a dictionary, as {'distance': 4.0}, or None"),
    "visual_options": ((Mapping, NoneType), "a dictionary, as {14: True}, or None"),
}
# The fields of ``mujoco.MjvCamera``, with values of their types.
_CAMERA: dict[str, Any] = {
    **dict.fromkeys(("type", "fixedcamid", "trackbodyid", "orthographic"), 0),
    **dict.fromkeys(("distance", "azimuth", "elevation"), 0.0),
    "lookat": (0.0, 0.0, 0.0),
}


def checked(name: str, kind: Any, version: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the task's class ``kind``, with lists (of JSON) as tuples.

    Raises:
        UsageError: unknown option, or a value of the wrong type.
    """
    fields = {
        f.name: f
        for f in dataclasses.fields(kind)
        if f.name not in _FIXED and f.metadata.get("version", version) == version
    }
    check_options(name, options, {*fields, *_OWN, "max_steps"})
    for option, value in options.items():
        default = fields[option].default
        if option in ("frame_skip", "width", "height", "max_geom"):
            check_positive(name, option, value)
        elif option in _KINDS:
            kinds, wanted = _KINDS[option]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise UsageError(f"{name}: {option} is {shown(value)}; it must be {wanted}")
        elif isinstance(default, (bool, tuple, Real)):
            check_like(name, option, value, default)
            if option == "reset_noise_scale":
                require(f"{name}: {option}", value, 0)

    arguments: dict[str, Any] = {
        option: tuple(value) if isinstance(value, list) else value
        for option, value in options.items()
    }
    if None not in (arguments.get("camera_id"), arguments.get("camera_name")):
        raise UsageError(f"{name}: camera_id and camera_name are both given; leave one of them out")
    if arguments.get("default_camera_config") is not None:
        _check_camera(name, arguments["default_camera_config"])
    if arguments.get("visual_options") is not None:
        arguments["visual_options"] = _flags(name, arguments["visual_options"])
    return arguments


def _check_camera(name: str, config: Mapping[str, Any]) -> None:
    check_options(f"{name}: default_camera_config", map(str, config), _CAMERA)
    for field, value in config.items():
        plain = value.tolist() if hasattr(value, "tolist") else value  # an array or a scalar
        check_like(f"{name}: default_camera_config", field, plain, _CAMERA[field])


def _flags(name: str, given: Mapping[Any, Any]) -> dict[int, bool]:
    """The flags by number; JSON turned the numbers into strings."""
    import mujoco

    most = int(mujoco.mjtVisFlag.mjNVISFLAG) - 1
    for flag, value in given.items():
        fits = isinstance(value, bool) and not isinstance(flag, bool)
        if not fits or not str(flag).isdecimal() or int(flag) > most:
            raise UsageError(
                f"{name}: visual_options is {dict(given)!r}; it must be flags of mujoco.mjtVisFlag "
                f"by number, 0 to {most}, as {{14: True}}"
            )
    return {int(flag): value for flag, value in given.items()}
