"""Presets of BESO: a small network for the room with several goals."""

from jaxrl.cli.presets.offline import SMALL_POLICY
from jaxrl.cli.presets.preset import Preset

PRESETS = [Preset("maze/*", SMALL_POLICY, agent=dict(learning_rate=1e-3))]
