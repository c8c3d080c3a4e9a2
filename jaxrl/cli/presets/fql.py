"""Presets of flow Q-learning: the authors' settings, by dataset family.

The authors have no settings for locomotion. There, values are divided by their magnitude, as by
default. Pendulum's ``alpha`` is the best of 0.03, 0.1, 0.3 and 1 on its medium-replay data.
"""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL
from jaxrl.cli.presets.preset import Preset

ONE_STEP = dict(agent=dict(one_step=dict(hidden_dims=(128, 128))))
MAZE = dict(reward_shift=-1.0, agent=dict(normalize_q_loss=False, alpha=10.0))
HAND = dict(normalize_q_loss=False, target_q="min")

PRESETS = [
    Preset("*", PAPER, total_steps=500_000),
    Preset("antmaze*", MAZE),
    Preset("antmaze-large*", agent=dict(alpha=3.0)),
    Preset("pen*", agent=dict(HAND, alpha=1e4)),
    Preset("pen[_-]expert-v*", agent=dict(alpha=3e3)),
    Preset("door*", agent=dict(HAND, alpha=3e4)),
    Preset("hammer*", agent=dict(HAND, alpha=3e4)),
    Preset("hammer[_-]cloned-v*", agent=dict(alpha=1e4)),
    Preset("relocate*", agent=dict(HAND, alpha=3e4)),
    Preset("relocate[_-]human-v*", agent=dict(alpha=1e4)),
    *[Preset(pattern, SMALL, ONE_STEP) for pattern in SHIPPED],
    # The loss divides Q by its mean magnitude; Pendulum's values are large and differ little.
    Preset("gymnax/Pendulum-v1", agent=dict(alpha=0.03)),
]
