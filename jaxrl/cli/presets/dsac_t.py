"""Presets of DSAC-T.

By default there are twenty environment steps per gradient step, as with the authors' distributed
actors.
"""

from jaxrl.cli.presets.off_policy import PAPER, PARALLEL, PENDULUM, SLOW, SUITE
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, total_steps=30_000_000, num_envs=20, warmup_policy="agent"),
    Preset("gymnax/Pendulum-v1", PENDULUM, num_envs=1, agent=dict(alpha_learning_rate=1e-3)),
    Preset("brax/*", PARALLEL),
    Preset("playground/*", SUITE),
    *SLOW,
    Preset("mjx/Hopper-v[45]", agent=dict(gamma=0.999)),
]
