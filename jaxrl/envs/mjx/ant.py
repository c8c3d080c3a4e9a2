"""Ant-v4 and Ant-v5: run along x without falling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxrl.envs.mjx.task import Healthy, Reading, flat, join, numbers, of_version, square_sum
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ant(Healthy):
    """Observes positions (except x and y), velocities and contact forces: ``[105]``.

    In v4, contact forces are neither observed nor part of the reward, ``[27]``, unless
    ``use_contact_forces`` is set; then the world's forces, all 0, are observed too: ``[111]``.
    """

    xml_file: str = "ant.xml"
    frame_skip: int = 5
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {"distance": 4.0}
    )
    forward_reward_weight: float = 1
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 5e-4
    main_body: int | str = 1
    healthy_z_range: tuple[float, float] = (0.2, 1.0)
    contact_force_range: tuple[float, float] = (-1.0, 1.0)
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    include_cfrc_ext_in_observation: bool = of_version(5, True)
    use_contact_forces: bool = of_version(4, False)

    READS: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")
    V4: ClassVar[Mapping[str, Any]] = {"main_body": "torso"}
    ITERATIONS: ClassVar[tuple[int, int]] = (6, 8)  # 4 are too few in a tenth of the steps

    @property
    def uses_forces(self) -> bool:
        """Whether contact forces count in rewards, and may be observed."""
        return self.version == 5 or self.use_contact_forces

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.READS, "cfrc_ext") if self.uses_forces else self.READS

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.normal_start(key, self.reset_noise_scale)

    def position(self, d: Reading) -> Any:
        return d.xpos[..., self.body(self.main_body), :2]

    def contact_forces(self, d: Reading) -> Any:
        return d.cfrc_ext.clip(*self.contact_force_range)

    def observe(self, d: Reading) -> Any:
        skipped = 2 * int(self.exclude_current_positions_from_observation)
        parts = [d.qpos[..., skipped:], d.qvel]
        if self.uses_forces and self.include_cfrc_ext_in_observation:
            first = 1 if self.version == 5 else 0  # the world is body 0
            parts.append(flat(self.contact_forces(d)[..., first:, :]))
        return join(*parts)

    def is_healthy(self, d: Reading) -> Any:
        finite = numbers(d.qpos).isfinite(join(d.qpos, d.qvel)).all(axis=-1)
        min_z, max_z = self.healthy_z_range
        z = d.qpos[..., 2]
        return finite & (min_z <= z) & (z <= max_z)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        x_velocity = ((self.position(d) - before) / self.dt)[..., 0]
        forward_reward = x_velocity * self.forward_reward_weight
        costs = self.ctrl_cost_weight * square_sum(action)
        if self.uses_forces:
            costs += self.contact_cost_weight * square_sum(flat(self.contact_forces(d)))
        return forward_reward + self.bonus(d) - costs
