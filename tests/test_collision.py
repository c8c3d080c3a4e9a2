"""Corrected contacts of MJX against MuJoCo's, pose by pose, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from jaxrl.envs.mjx.collision import corrected

BODIES = """
<mujoco>
  <worldbody>
    <body><freejoint/><geom type="capsule" size="0.03 0.1"/></body>
    <body><freejoint/><geom type="cylinder" size="0.05 0.06"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def poses():
    """Capsules around a cylinder, half of them as upright as it: ``[N, 14]``."""
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(400, 2, 4))
    turns[:200] = [1, 0, 0, 0]
    turns /= np.linalg.norm(turns, axis=-1, keepdims=True)
    capsule = np.concatenate([rng.uniform(-0.1, 0.1, (400, 3)), turns[:, 0]], axis=1)
    return np.concatenate([capsule, np.zeros((400, 3)), turns[:, 1]], axis=1)


def contacts_of_mujoco(model, qpos):
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_fwdPosition(model, data)
    return data.contact


def contacts_of_mjx(model, poses):
    """Distance ``[N]``, position and normal ``[N, 3]``."""
    device, start = mjx.put_model(model), mjx.make_data(model)

    def collide(qpos):
        data = mjx.com_pos(device, mjx.kinematics(device, start.replace(qpos=qpos)))
        contact = mjx.collision(device, data)._impl.contact
        return contact.dist[0], contact.pos[0], contact.frame[0].reshape(3, 3)[0]

    return jax.device_get(jax.jit(jax.vmap(collide))(jnp.asarray(poses)))


def test_a_capsule_meets_a_cylinder_as_in_mujoco(poses):
    """But for axes inside the cylinder. At its edge MuJoCo's own search is off once in fifty."""
    model = mujoco.MjModel.from_xml_string(BODIES)
    with jax.enable_x64(True), corrected():
        distance, position, normal = contacts_of_mjx(model, poses)
    errors = []
    for i, qpos in enumerate(poses):
        contact = contacts_of_mujoco(model, qpos)
        depth = contact.dist.min(initial=1.0)
        if depth == 1.0:
            assert distance[i] > -1e-6
        elif depth > -0.029:
            place = np.abs(position[i] - contact.pos[0])
            errors.append(
                (
                    abs(distance[i] - depth),
                    np.abs(normal[i] - contact.frame[0, :3]).max(),
                    place[:2].max() if i < 200 else place.max(),  # upright: any common height
                )
            )
    assert len(errors) > 60 and np.max(errors, axis=0)[0] < 5e-4
    np.testing.assert_array_less(np.quantile(errors, 0.9, axis=0), [1e-8, 1e-4, 1e-5])
