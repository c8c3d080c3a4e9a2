"""Presets of IQL: the authors' settings, by dataset family."""

from jaxrl.cli.presets.offline import LOCOMOTION, PAPER, SMALL
from jaxrl.cli.presets.preset import Preset, merge

VALUE = dict(agent=dict(value=dict(hidden_dims=(128, 128))))
HANDS = dict(temperature=0.5, policy=dict(dropout=0.1))
MAZE = dict(reward_shift=-1.0, agent=dict(expectile=0.9, temperature=10.0))

PRESETS = [
    Preset("*", PAPER, agent=dict(lr_decay_steps=1_000_000)),
    # Advantages are of order 1 when returns span a thousand.
    *[Preset(pattern, return_range=1000.0) for pattern in LOCOMOTION],
    Preset("mjx/*/*", merge(SMALL, VALUE), return_range=1000.0, agent=dict(lr_decay_steps=30_000)),
    Preset("gymnax/*", merge(SMALL, VALUE), return_range=1000.0, agent=dict(lr_decay_steps=30_000)),
    Preset("maze/*", merge(SMALL, VALUE, MAZE), agent=dict(lr_decay_steps=30_000)),
    Preset("antmaze*", MAZE),
    *[Preset(pattern, agent=HANDS) for pattern in ("pen*", "door*", "hammer*", "relocate*")],
    Preset("kitchen*", agent=HANDS),
]
