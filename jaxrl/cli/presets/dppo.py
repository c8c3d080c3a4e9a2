"""Presets of DPPO."""

from jaxrl.cli.presets.fine_tuning import FINE_TUNING, PENDULUM
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", FINE_TUNING, anneal=False),
    Preset("gymnax/Pendulum-v1", PENDULUM),
]
