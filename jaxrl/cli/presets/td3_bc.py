"""Presets of TD3+BC: the authors'."""

from jaxrl.cli.presets.offline import PAPER, SMALL
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, normalize_obs=True),
    Preset("gymnax/*", SMALL),
    Preset("maze/*", SMALL),
]
