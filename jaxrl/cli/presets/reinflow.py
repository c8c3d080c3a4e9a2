"""Presets of ReinFlow."""

from jaxrl.cli.presets.fine_tuning import FINE_TUNING, HOPPER, MAZE, PENDULUM, SMALL
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", FINE_TUNING, anneal=True, agent=dict(policy=dict(time_embedding="sinusoidal"))),
    Preset("gymnax/Pendulum-v1", PENDULUM),
    Preset("mjx/*", SMALL),
    Preset("mjx/Hopper-v[45]", HOPPER, agent=dict(clip_eps=0.02)),
    Preset("maze/*", MAZE),
]
