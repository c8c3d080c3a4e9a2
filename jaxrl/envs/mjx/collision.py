"""A correction of MJX's contacts between planes and capsules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def plane_capsule(model: Any, data: Any, _: Any, geom: jax.Array) -> tuple[Any, Any, Any]:
    """Two contacts for each pair ``geom[P, 2]``: distance ``[2P]``, position and frame.

    The first tangent is the capsule's axis projected onto the plane, as in MuJoCo's C engine. MJX
    takes a fixed direction instead where the axis is steeper than 60 degrees; with pyramidal
    friction cones another tangent is another force.
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


plane_capsule.ncon = 2  # type: ignore[attr-defined]  # MJX asks each collider how many it gives


@contextlib.contextmanager
def corrected() -> Iterator[None]:
    """MJX programs traced inside have the corrected contacts; others stay as they are."""
    from mujoco.mjx._src import collision_driver
    from mujoco.mjx._src.types import GeomType

    table, pair = collision_driver._COLLISION_FUNC, (GeomType.PLANE, GeomType.CAPSULE)
    own = table[pair]
    table[pair] = plane_capsule
    try:
        yield
    finally:
        table[pair] = own
