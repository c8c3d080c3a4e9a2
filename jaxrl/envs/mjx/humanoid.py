"""Humanoid-v5 and HumanoidStandup-v5: walk along x without falling, and stand up."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxrl.envs.mjx.task import Healthy, Reading, Task, between, flat, join, numbers, square_sum
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Humanoid(Task):
    """The observations ``[348]`` and starts shared by both tasks."""

    xml_file: str = ""
    frame_skip: int = 5
    reset_noise_scale: float = 1e-2
    exclude_current_positions_from_observation: bool = True
    include_cinert_in_observation: bool = True
    include_cvel_in_observation: bool = True
    include_qfrc_actuator_in_observation: bool = True
    include_cfrc_ext_in_observation: bool = True

    READS: ClassVar[tuple[str, ...]] = (
        *("qpos", "qvel", "ctrl", "xipos", "body_mass"),
        *("cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
    )

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.uniform_start(key, self.reset_noise_scale)

    def observe(self, d: Reading) -> Any:
        skipped = 2 * int(self.exclude_current_positions_from_observation)
        parts = [d.qpos[..., skipped:], d.qvel]
        if self.include_cinert_in_observation:
            parts.append(flat(d.cinert[..., 1:, :]))
        if self.include_cvel_in_observation:
            parts.append(flat(d.cvel[..., 1:, :]))
        if self.include_qfrc_actuator_in_observation:
            parts.append(d.qfrc_actuator[..., 6:])
        if self.include_cfrc_ext_in_observation:
            parts.append(flat(d.cfrc_ext[..., 1:, :]))
        return join(*parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Humanoid(_Humanoid, Healthy):
    """Walk along x. The velocity is that of the centre of mass."""

    xml_file: str = "humanoid.xml"
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {
            "trackbodyid": 1,
            "distance": 4.0,
            "lookat": np.array((0.0, 0.0, 2.0)),
            "elevation": -20.0,
        }
    )
    forward_reward_weight: float = 1.25
    ctrl_cost_weight: float = 0.1
    contact_cost_weight: float = 5e-7
    contact_cost_range: tuple[float, float] = (-float("inf"), 10.0)
    healthy_reward: float = 5.0
    healthy_z_range: tuple[float, float] = (1.0, 2.0)

    def position(self, d: Reading) -> Any:
        mass = d.body_mass
        total = numbers(mass).einsum("...b,...bj->...j", mass, d.xipos)
        return (total / mass.sum(axis=-1, keepdims=True))[..., :2]

    def is_healthy(self, d: Reading) -> Any:
        min_z, max_z = self.healthy_z_range
        return between(min_z, d.qpos[..., 2], max_z)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        x_velocity = ((self.position(d) - before) / self.dt)[..., 0]
        forward_reward = self.forward_reward_weight * x_velocity
        ctrl_cost = self.ctrl_cost_weight * square_sum(d.ctrl)
        contact_cost = self.contact_cost_weight * square_sum(flat(d.cfrc_ext))
        contact_cost = contact_cost.clip(*self.contact_cost_range)
        return forward_reward + self.bonus(d) - (ctrl_cost + contact_cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanoidStandup(_Humanoid):
    """Stand up. The height is divided by the time of one *physics* step, as in Gymnasium."""

    xml_file: str = "humanoidstandup.xml"
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {
            "trackbodyid": 1,
            "distance": 4.0,
            "lookat": np.array((0.0, 0.0, 0.8925)),
            "elevation": -20.0,
        }
    )
    uph_cost_weight: float = 1
    ctrl_cost_weight: float = 0.1
    impact_cost_weight: float = 0.5e-6
    impact_cost_range: tuple[float, float] = (-float("inf"), 10.0)

    ITERATIONS: ClassVar[tuple[int, int]] = (8, 16)  # 4 are too few in a quarter of the steps

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        # Gymnasium also has the argument uph_cost_weight, but does not use it.
        uph_cost = d.qpos[..., 2] / self.model.opt.timestep
        quad_ctrl_cost = self.ctrl_cost_weight * square_sum(d.ctrl)
        quad_impact_cost = self.impact_cost_weight * square_sum(flat(d.cfrc_ext))
        quad_impact_cost = quad_impact_cost.clip(*self.impact_cost_range)
        return uph_cost - quad_ctrl_cost - quad_impact_cost + 1
