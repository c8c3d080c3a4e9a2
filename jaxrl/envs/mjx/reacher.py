"""Reacher-v5: bring a two-link arm's tip to a target."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.envs.mjx.task import Reading, Task, join, norm, numbers, square_sum
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reacher(Task):
    """Observes joint angles, target, velocities and tip minus target: ``[10]``."""

    xml_file: str = "reacher.xml"
    frame_skip: int = 2
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {"trackbodyid": 0}
    )
    reward_dist_weight: float = 1
    reward_control_weight: float = 1

    READS: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")
    MAX_STEPS: ClassVar[int] = 50

    def start(self, key: Key) -> tuple[Array, Array]:
        qpos_key, qvel_key, radius_key, angle_key = jax.random.split(key, 4)
        qpos, qvel = self.init()
        qpos = qpos + jax.random.uniform(qpos_key, qpos.shape, minval=-0.1, maxval=0.1)
        qvel = qvel + jax.random.uniform(qvel_key, qvel.shape, minval=-0.005, maxval=0.005)
        # Uniform in the disc of radius 0.2; Gymnasium uses rejection sampling.
        radius = 0.2 * jnp.sqrt(jax.random.uniform(radius_key))
        angle = 2 * jnp.pi * jax.random.uniform(angle_key)
        goal = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return qpos.at[-2:].set(goal), qvel.at[-2:].set(0.0)

    def tip_to_target(self, d: Reading) -> Any:
        return d.xpos[..., self.body("fingertip"), :] - d.xpos[..., self.body("target"), :]

    def observe(self, d: Reading) -> Any:
        xp, theta = numbers(d.qpos), d.qpos[..., :2]
        tip_to_target = self.tip_to_target(d)[..., :2]
        return join(xp.cos(theta), xp.sin(theta), d.qpos[..., 2:], d.qvel[..., :2], tip_to_target)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        reward_dist = -norm(self.tip_to_target(d)) * self.reward_dist_weight
        reward_ctrl = -square_sum(action) * self.reward_control_weight
        return reward_dist + reward_ctrl
