"""Presets of DPPO."""

from jaxrl.cli.presets.fine_tuning import FINE_TUNING, HOPPER, MAZE, PENDULUM, SMALL
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", FINE_TUNING, anneal=False, agent=dict(policy=dict(schedule="cosine"))),
    Preset("gymnax/Pendulum-v1", PENDULUM),
    Preset("mjx/*", SMALL),
    Preset("mjx/Hopper-v[45]", HOPPER, agent=dict(clip_eps=0.05)),
    Preset("maze/*", MAZE),
]
