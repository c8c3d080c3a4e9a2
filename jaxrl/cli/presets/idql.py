"""Presets of IDQL: the authors' settings, by dataset family."""

from jaxrl.cli.presets.offline import LOCOMOTION, PAPER, SMALL
from jaxrl.cli.presets.preset import Preset

VALUE = dict(batch_size=256, agent=dict(value=dict(hidden_dims=(128, 128)), lr_decay_steps=30_000))
MAZE = dict(reward_shift=-1.0, agent=dict(expectile=0.9))

PRESETS = [
    Preset("*", PAPER, total_steps=3_000_000, batch_size=512, agent=dict(lr_decay_steps=3_000_000)),
    *[Preset(pattern, return_range=1000.0) for pattern in LOCOMOTION],
    Preset("antmaze*", MAZE),
    *[Preset(pattern, SMALL, VALUE, return_range=1000.0) for pattern in ("gymnax/*", "mjx/*/*")],
    Preset("maze/*", SMALL, VALUE, MAZE),
]
