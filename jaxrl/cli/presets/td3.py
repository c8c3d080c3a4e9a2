"""Presets of TD3."""

from jaxrl.cli.presets.off_policy import PAPER, PARALLEL, PENDULUM, SLOW, SUITE
from jaxrl.cli.presets.preset import Preset

# FastTD3's range of exploration noise.
NOISE_RANGE = dict(agent=dict(exploration_noise_max=0.4))

PRESETS = [
    Preset("*", PAPER, learning_starts=25_000),
    Preset("gymnax/Pendulum-v1", PENDULUM),
    Preset("brax/*", PARALLEL, NOISE_RANGE),
    Preset("playground/*", SUITE, NOISE_RANGE),
    *SLOW,
    Preset("mjx/InvertedPendulum-v5", learning_starts=1_000),
    Preset("mjx/InvertedDoublePendulum-v5", learning_starts=1_000),
    Preset("mjx/Reacher-v5", learning_starts=1_000),
]
