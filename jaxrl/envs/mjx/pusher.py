"""Pusher-v5: push a cylinder to a goal."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.envs.mjx.task import Reading, Task, join, norm, square_sum
from jaxrl.types import Array, Key

_CANDIDATES = 64  # all are too close to the goal once in 10^26 starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pusher(Task):
    """Observes seven joints, their velocities, and tip, object and goal positions: ``[23]``."""

    xml_file: str = "pusher_v5.xml"
    frame_skip: int = 5
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {"trackbodyid": -1, "distance": 4.0}
    )
    reward_near_weight: float = 0.5
    reward_dist_weight: float = 1
    reward_control_weight: float = 0.1

    READS: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")
    MAX_STEPS: ClassVar[int] = 100

    def start(self, key: Key) -> tuple[Array, Array]:
        place_key, qvel_key = jax.random.split(key)
        qpos, qvel = self.init()
        qvel = qvel + jax.random.uniform(qvel_key, qvel.shape, minval=-0.005, maxval=0.005)
        # The first candidate in the rectangle that is not too close to the goal, which is at 0.
        low, high = jnp.array([-0.3, -0.2]), jnp.array([0.0, 0.2])
        places = jax.random.uniform(place_key, (_CANDIDATES, 2), minval=low, maxval=high)
        far = jnp.linalg.norm(places, axis=-1) > 0.17
        place = places[jnp.argmax(far)]
        qpos = qpos.at[-4:-2].set(place).at[-2:].set(0.0)
        return qpos, qvel.at[-4:].set(0.0)

    def place(self, d: Reading, body: str) -> Any:
        return d.xpos[..., self.body(body), :]

    def observe(self, d: Reading) -> Any:
        places = [self.place(d, body) for body in ("tips_arm", "object", "goal")]
        return join(d.qpos[..., :7], d.qvel[..., :7], *places)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        near = self.place(d, "object") - self.place(d, "tips_arm")
        dist = self.place(d, "object") - self.place(d, "goal")
        reward_near = -norm(near) * self.reward_near_weight
        reward_dist = -norm(dist) * self.reward_dist_weight
        reward_ctrl = -square_sum(action) * self.reward_control_weight
        return reward_dist + reward_ctrl + reward_near
