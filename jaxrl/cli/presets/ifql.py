"""Presets of IFQL: the defaults of flow Q-learning's authors, their only settings."""

from jaxrl.cli.presets.offline import PAPER, SMALL
from jaxrl.cli.presets.preset import Preset

VALUE = dict(agent=dict(value=dict(hidden_dims=(128, 128))))
MAZE = dict(reward_shift=-1.0)

PRESETS = [
    Preset("*", PAPER, total_steps=500_000),
    Preset("antmaze*", MAZE),
    *[Preset(pattern, SMALL, VALUE, return_range=1000.0) for pattern in ("gymnax/*", "mjx/*/*")],
    Preset("maze/*", SMALL, VALUE, MAZE),
]
