"""Hopper-v4 and Hopper-v5: hop forward without falling."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxrl.envs.mjx.task import Healthy, Reading, between, join, square_sum
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hopper(Healthy):
    """Observes positions (except x) and velocities, clipped to [-10, 10]: ``[11]``."""

    xml_file: str = "hopper.xml"
    frame_skip: int = 4
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {
            "trackbodyid": 2,
            "distance": 3.0,
            "lookat": np.array((0.0, 0.0, 1.15)),
            "elevation": -20.0,
        }
    )
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_state_range: tuple[float, float] = (-100.0, 100.0)
    healthy_z_range: tuple[float, float] = (0.7, float("inf"))
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.uniform_start(key, self.reset_noise_scale)

    def position(self, d: Reading) -> Any:
        return d.qpos[..., :1]

    def observe(self, d: Reading) -> Any:
        skipped = int(self.exclude_current_positions_from_observation)
        return join(d.qpos[..., skipped:], d.qvel.clip(-10, 10))

    def is_healthy(self, d: Reading) -> Any:
        z, angle = d.qpos[..., 1], d.qpos[..., 2]
        state = join(d.qpos, d.qvel)[..., 2:]
        low, high = self.healthy_state_range
        healthy_state = between(low, state, high).all(axis=-1)
        min_z, max_z = self.healthy_z_range
        min_angle, max_angle = self.healthy_angle_range
        return healthy_state & between(min_z, z, max_z) & between(min_angle, angle, max_angle)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        x_velocity = (d.qpos[..., 0] - before[..., 0]) / self.dt
        forward_reward = self.forward_reward_weight * x_velocity
        ctrl_cost = self.ctrl_cost_weight * square_sum(action)
        return forward_reward + self.bonus(d) - ctrl_cost
