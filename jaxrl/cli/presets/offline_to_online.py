"""Presets of offline-to-online training; the rewards of mazes are IQL's."""

from jaxrl.cli.presets.offline import LOCOMOTION
from jaxrl.cli.presets.preset import Preset

SMALL = dict(total_steps=20_000, hidden_dims=(128, 128), buffer_size=100_000)

PRESETS = [
    Preset("*", total_steps=250_000, online_steps=250_000, learning_starts=5_000),
    *[Preset(pattern, online_updates=4) for pattern in LOCOMOTION],
    Preset("antmaze*", reward_shift=-1.0),
    Preset("gymnax/*", SMALL, online_steps=20_000, learning_starts=1_000),
    Preset("maze/*", SMALL, online_steps=20_000, learning_starts=1_000),
]
