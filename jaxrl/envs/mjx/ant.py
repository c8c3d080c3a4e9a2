"""Ant-v5: run along x without falling."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxrl.envs.mjx.task import Reading, Task, flat, join, numbers, square_sum
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ant(Task):
    """Observes positions (but for x and y), velocities and contact forces: ``[105]``."""

    xml_file: str = "ant.xml"
    frame_skip: int = 5
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {"distance": 4.0}
    )
    forward_reward_weight: float = 1
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 5e-4
    healthy_reward: float = 1.0
    main_body: int | str = 1
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (0.2, 1.0)
    contact_force_range: tuple[float, float] = (-1.0, 1.0)
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    include_cfrc_ext_in_observation: bool = True

    READS: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos", "cfrc_ext")
    ITERATIONS: ClassVar[tuple[int, int]] = (6, 8)  # 4 fall short in a tenth of the steps

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.normal_start(key, self.reset_noise_scale)

    def position(self, d: Reading) -> Any:
        return d.xpos[..., self.body(self.main_body), :2]

    def contact_forces(self, d: Reading) -> Any:
        return d.cfrc_ext.clip(*self.contact_force_range)

    def observe(self, d: Reading) -> Any:
        skipped = 2 * int(self.exclude_current_positions_from_observation)
        parts = [d.qpos[..., skipped:], d.qvel]
        if self.include_cfrc_ext_in_observation:
            parts.append(flat(self.contact_forces(d)[..., 1:, :]))
        return join(*parts)

    def is_healthy(self, d: Reading) -> Any:
        finite = numbers(d.qpos).isfinite(join(d.qpos, d.qvel)).all(axis=-1)
        min_z, max_z = self.healthy_z_range
        z = d.qpos[..., 2]
        return finite & (min_z <= z) & (z <= max_z)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        x_velocity = ((self.position(d) - before) / self.dt)[..., 0]
        forward_reward = x_velocity * self.forward_reward_weight
        healthy_reward = self.is_healthy(d) * self.healthy_reward
        ctrl_cost = self.ctrl_cost_weight * square_sum(action)
        contact_cost = self.contact_cost_weight * square_sum(flat(self.contact_forces(d)))
        return forward_reward + healthy_reward - (ctrl_cost + contact_cost)

    def terminated(self, d: Reading) -> Any:
        return ~self.is_healthy(d) & self.terminate_when_unhealthy
