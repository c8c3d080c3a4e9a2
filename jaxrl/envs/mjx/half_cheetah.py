"""HalfCheetah-v4 and HalfCheetah-v5, which are identical: run forward."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrl.envs.mjx.task import Reading, Task, join, square_sum
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfCheetah(Task):
    """Observes positions (except x) and velocities: ``[17]``; acts on six joints."""

    xml_file: str = "half_cheetah.xml"
    frame_skip: int = 5
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {"distance": 4.0}
    )
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.normal_start(key, self.reset_noise_scale)

    def position(self, d: Reading) -> Any:
        return d.qpos[..., :1]

    def observe(self, d: Reading) -> Any:
        skipped = int(self.exclude_current_positions_from_observation)
        return join(d.qpos[..., skipped:], d.qvel)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        x_velocity = (d.qpos[..., 0] - before[..., 0]) / self.dt
        forward_reward = self.forward_reward_weight * x_velocity
        ctrl_cost = self.ctrl_cost_weight * square_sum(action)
        return forward_reward - ctrl_cost
