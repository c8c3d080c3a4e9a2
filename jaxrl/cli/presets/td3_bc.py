"""Presets of TD3+BC: the authors' settings."""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, normalize_obs=True),
    *[Preset(pattern, SMALL) for pattern in SHIPPED],
    # Values are far from zero and differ little, but are divided by their magnitude.
    Preset("gymnax/Pendulum-v1", agent=dict(bc_alpha=400.0)),
]
