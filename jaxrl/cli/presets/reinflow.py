"""Presets of ReinFlow."""

from jaxrl.cli.presets.fine_tuning import FINE_TUNING, PENDULUM
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", FINE_TUNING, anneal=True),
    Preset("gymnax/Pendulum-v1", PENDULUM),
]
