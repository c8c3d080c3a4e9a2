"""Presets of TD3+BC: the authors' settings."""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, normalize_obs=True),
    *[Preset(pattern, SMALL) for pattern in SHIPPED],
    # The loss divides Q by its mean magnitude; Pendulum's values are large and differ little.
    Preset("gymnax/Pendulum-v1", agent=dict(bc_alpha=400.0)),
]
