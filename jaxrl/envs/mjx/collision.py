"""Corrections of MJX's contacts: capsules with planes and with cylinders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def plane_capsule(model: Any, data: Any, _: Any, geom: jax.Array) -> tuple[Any, Any, Any]:
    """Two contacts for each pair ``geom[P, 2]``: distance ``[2P]``, position and frame.

    The first tangent is the capsule's axis projected onto the plane, as in MuJoCo's C engine. MJX
    uses a fixed direction instead if the axis is steeper than 60 degrees. With pyramidal friction
    cones, a different tangent means a different force.
    """
    import mujoco.mjx._src.math as math

    def collide(plane: jax.Array, capsule: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        normal, axis = data.geom_xmat[plane][:, 2], data.geom_xmat[capsule][:, 2]
        tangent, length = math.normalize_with_norm(axis - normal * jnp.dot(normal, axis))
        fixed = jnp.where(
            jnp.abs(normal[1]) < 0.5, jnp.array([0.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 1.0])
        )
        tangent = jnp.where(length < 1e-6, fixed, tangent)
        frame = jnp.stack([normal, tangent, jnp.cross(normal, tangent)])

        radius, half = model.geom_size[capsule][0], model.geom_size[capsule][1]
        ends = data.geom_xpos[capsule] + jnp.stack([axis, -axis]) * half
        distance = (ends - data.geom_xpos[plane]) @ normal - radius
        position = ends - normal * (radius + 0.5 * distance[:, None])
        return distance, position, jnp.stack([frame, frame])

    contacts = jax.vmap(collide)(geom[:, 0], geom[:, 1])
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), contacts)


plane_capsule.ncon = 2  # type: ignore[attr-defined]  # MJX reads each collider's number of contacts


def capsule_cylinder(model: Any, data: Any, _: Any, geom: jax.Array) -> tuple[Any, Any, Any]:
    """One contact for each pair ``geom[P, 2]``: distance ``[P]``, position and frame.

    The contact is where the capsule's axis is nearest to the cylinder, as in MuJoCo's C engine. MJX
    runs gradient descent from two places and returns two contacts, neither accurate enough.
    """
    import mujoco.mjx._src.math as math

    def collide(capsule: jax.Array, cylinder: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        to_world, size = data.geom_xmat[cylinder], model.geom_size[cylinder]
        radius, half = model.geom_size[capsule][0], model.geom_size[capsule][1]
        middle = (data.geom_xpos[capsule] - data.geom_xpos[cylinder]) @ to_world
        axis = data.geom_xmat[capsule][:, 2] @ to_world

        at = middle + half * _nearest(middle, half * axis, size) * axis
        apart, normal = _from_cylinder(at, size)  # of the axis, outwards
        position = data.geom_xpos[cylinder] + to_world @ (at - 0.5 * (apart + radius) * normal)
        return apart - radius, position, math.make_frame(to_world @ -normal)

    contacts: tuple[Any, Any, Any] = jax.vmap(collide)(geom[:, 0], geom[:, 1])
    return contacts


def _from_cylinder(point: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The distance of ``point[3]`` from a cylinder at 0 (negative inside), and its gradient."""
    radial = jnp.linalg.norm(point[:2] + jnp.finfo(point.dtype).tiny)
    outwards = jnp.append(point[:2] / jnp.maximum(radial, 1e-12), 0.0)
    upwards = jnp.array([0.0, 0.0, 1.0]) * jnp.where(point[2] < 0.0, -1.0, 1.0)
    beside, above = radial - size[0], jnp.abs(point[2]) - size[1]
    corner = jnp.hypot(beside, above) + jnp.finfo(point.dtype).tiny
    by_corner = (beside * outwards + above * upwards) / corner
    at_corner = (beside > 0.0) & (above > 0.0)
    by_face = jnp.where(beside > above, outwards, upwards)
    distance = jnp.where(at_corner, corner, jnp.maximum(beside, above))
    return distance, jnp.where(at_corner, by_corner, by_face)


def _nearest(middle: jax.Array, reach: jax.Array, size: jax.Array) -> jax.Array:
    """Where on ``middle + t reach``, ``-1 <= t <= 1``, a cylinder at 0 is nearest: ``t``.

    The distance is convex along the line. Bisection finds both ends of the nearest interval; if the
    axis runs along the cylinder's side, the middle of the interval is used.
    """

    def bisect(flat: jax.Array) -> jax.Array:
        def halve(_: int, ends: jax.Array) -> jax.Array:
            t = jnp.mean(ends)
            normal = _from_cylinder(middle + t * reach, size)[1]
            further = jnp.dot(normal, reach) < flat
            return jnp.where(further, jnp.stack([t, ends[1]]), jnp.stack([ends[0], t]))

        ends = jnp.array([-1.0, 1.0], middle.dtype)
        return jnp.mean(jax.lax.fori_loop(0, 40, halve, ends))

    level = 1e-6 * size[0]
    return jax.lax.stop_gradient(0.5 * (bisect(-level) + bisect(level)))


capsule_cylinder.ncon = 1  # type: ignore[attr-defined]


@contextlib.contextmanager
def corrected() -> Iterator[None]:
    """MJX programs traced inside use the corrected contacts; others are unchanged."""
    from mujoco.mjx._src import collision_driver
    from mujoco.mjx._src.types import GeomType

    table = collision_driver._COLLISION_FUNC
    ours = {
        (GeomType.PLANE, GeomType.CAPSULE): plane_capsule,
        (GeomType.CAPSULE, GeomType.CYLINDER): capsule_cylinder,
    }
    own = {pair: table[pair] for pair in ours}
    table.update(ours)
    try:
        yield
    finally:
        table.update(own)
