"""Presets of behaviour cloning, from CORL."""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL_POLICY
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, normalize_obs=True),
    *[Preset(pattern, SMALL_POLICY) for pattern in SHIPPED],
]
