"""The correction of ``collision.plane_capsule`` for MuJoCo Warp, whose kernels mirror MJX."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any


@functools.cache
def correct_warp() -> None:
    """Install it permanently in Warp's collision table: kernels are built when they first run.

    From then on, it applies to everything this process steps with Warp, including Playground's
    tasks.
    """
    import warp as wp
    from mujoco.mjx.third_party.mujoco_warp._src import collision_primitive
    from mujoco.mjx.third_party.mujoco_warp._src import collision_primitive_core as core
    from mujoco.mjx.third_party.mujoco_warp._src.math import normalize_with_norm
    from mujoco.mjx.third_party.mujoco_warp._src.types import GeomType

    plane_sphere, mat23f = core.plane_sphere, core.mat23f

    def plane_capsule(
        normal: Any, place: Any, middle: Any, axis: Any, radius: Any, half: Any
    ) -> Any:
        tangent, length = normalize_with_norm(axis - normal * wp.dot(normal, axis))
        if length < 1e-6:  # MJX and Warp: 0.5
            if wp.abs(normal[1]) < 0.5:
                tangent = wp.vec3(0.0, 1.0, 0.0)
            else:
                tangent = wp.vec3(0.0, 0.0, 1.0)
        other = wp.cross(normal, tangent)
        frame = wp.matrix_from_rows(normal, tangent, other)  # type: ignore[arg-type]
        first, at = plane_sphere(normal, place, middle + axis * half, radius)
        second, there = plane_sphere(normal, place, middle - axis * half, radius)
        return wp.vec2(first, second), mat23f(*at, *there), frame

    # Warp compiles the source of functions and looks up their callees by name in the module.
    own: Any = collision_primitive.plane_capsule_wrapper.func
    names = own.__globals__ | {"plane_capsule": wp.func(plane_capsule)}
    wrapper = FunctionType(own.__code__, names, own.__name__)
    wrapper.__annotations__ = own.__annotations__
    table = collision_primitive._PRIMITIVE_COLLISIONS
    table[GeomType.PLANE, GeomType.CAPSULE] = wp.func(wrapper)
