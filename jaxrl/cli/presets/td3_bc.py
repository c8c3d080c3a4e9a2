"""Presets of TD3+BC: the authors'."""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, normalize_obs=True),
    *[Preset(pattern, SMALL) for pattern in SHIPPED],
    # Its values are far from zero, and differ little: what they are divided by is their size.
    Preset("gymnax/Pendulum-v1", agent=dict(bc_alpha=400.0)),
]
