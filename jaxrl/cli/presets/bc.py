"""Presets of behaviour cloning: CORL's."""

from jaxrl.cli.presets.offline import PAPER, SMALL_POLICY
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, normalize_obs=True),
    Preset("gymnax/*", SMALL_POLICY),
    Preset("maze/*", SMALL_POLICY),
]
