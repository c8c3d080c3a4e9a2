"""Swimmer-v5: swim along x."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrl.envs.mjx.task import Reading, Task, join, square_sum
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swimmer(Task):
    """Observes positions (except x and y) and velocities: ``[8]``; acts on two joints."""

    xml_file: str = "swimmer.xml"
    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-4
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.uniform_start(key, self.reset_noise_scale)

    def position(self, d: Reading) -> Any:
        return d.qpos[..., :2]

    def observe(self, d: Reading) -> Any:
        skipped = 2 * int(self.exclude_current_positions_from_observation)
        return join(d.qpos[..., skipped:], d.qvel)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        x_velocity = ((self.position(d) - before) / self.dt)[..., 0]
        forward_reward = self.forward_reward_weight * x_velocity
        ctrl_cost = self.ctrl_cost_weight * square_sum(action)
        return forward_reward - ctrl_cost
