"""InvertedPendulum-v5 and InvertedDoublePendulum-v5: balance one or two poles on a cart."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxrl.envs.mjx.task import Reading, Task, join, numbers
from jaxrl.types import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertedPendulum(Task):
    """Observes positions and velocities: ``[4]``; reward 1 for every step within 0.2 rad."""

    xml_file: str = "inverted_pendulum.xml"
    frame_skip: int = 2
    default_camera_config: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {"trackbodyid": 0, "distance": 2.04}
    )
    reset_noise_scale: float = 0.01

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.uniform_start(key, self.reset_noise_scale)

    def observe(self, d: Reading) -> Any:
        return join(d.qpos, d.qvel)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        return (~self.terminated(d)).astype(d.qpos.dtype)

    def terminated(self, d: Reading) -> Any:
        finite = numbers(d.qpos).isfinite(self.observe(d)).all(axis=-1)
        return ~finite | (abs(d.qpos[..., 1]) > 0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertedDoublePendulum(Task):
    """Observes the cart, sines and cosines of both angles, velocities and a force: ``[9]``."""

    xml_file: str = "inverted_double_pendulum.xml"
    frame_skip: int = 5
    healthy_reward: float = 10.0
    reset_noise_scale: float = 0.1

    READS: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "site_xpos", "qfrc_constraint")

    def start(self, key: Key) -> tuple[Array, Array]:
        return self.normal_start(key, self.reset_noise_scale)

    def observe(self, d: Reading) -> Any:
        xp, angles = numbers(d.qpos), d.qpos[..., 1:]
        force = d.qfrc_constraint.clip(-10, 10)[..., :1]
        velocity = d.qvel.clip(-10, 10)
        return join(d.qpos[..., :1], xp.sin(angles), xp.cos(angles), velocity, force)

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        x, y = d.site_xpos[..., 0, 0], d.site_xpos[..., 0, 2]
        v1, v2 = d.qvel[..., 1], d.qvel[..., 2]
        dist_penalty = 0.01 * x**2 + (y - 2) ** 2
        vel_penalty = 1e-3 * v1**2 + 5e-3 * v2**2
        alive_bonus = self.healthy_reward * ~self.terminated(d)
        return alive_bonus - dist_penalty - vel_penalty

    def terminated(self, d: Reading) -> Any:
        return d.site_xpos[..., 0, 2] <= 1
