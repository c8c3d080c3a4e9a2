"""Presets of SAC."""

from jaxrl.cli.presets.off_policy import PAPER, PARALLEL, PENDULUM, SLOW, SUITE
from jaxrl.cli.presets.preset import Preset

# The target entropy of Brax's SAC: half of the paper's.
HALF_ENTROPY = dict(agent=dict(target_entropy=-0.5))

PRESETS = [
    Preset("*", PAPER),
    Preset("gymnax/Pendulum-v1", PENDULUM),
    Preset("brax/*", PARALLEL, HALF_ENTROPY),
    Preset(
        "brax/hopper",
        total_steps=6_553_600,
        num_updates=64,
        batch_size=512,
        reward_scale=30.0,
        agent=dict(gamma=0.997),
    ),
    Preset(
        "brax/walker2d",
        total_steps=7_864_320,
        batch_size=128,
        reward_scale=5.0,
        agent=dict(gamma=0.997),
    ),
    Preset("playground/*", SUITE, HALF_ENTROPY),
    *SLOW,
]
