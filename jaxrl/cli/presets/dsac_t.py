"""Presets of DSAC-T.

By default twenty environment steps are made for each gradient step, as the authors' distributed
actors do. They hold an entropy of -1 per element in the units of the environment: where controls
lie in [-c, c], it is -1 - log(c) in the agent's units, which are [-1, 1].
"""

import math

from jaxrl.cli.presets.off_policy import PAPER, PARALLEL, PENDULUM, SLOW, SUITE
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, total_steps=30_000_000, num_envs=20, warmup_policy="agent"),
    Preset("gymnax/Pendulum-v1", PENDULUM, num_envs=1, agent=dict(alpha_learning_rate=1e-3)),
    Preset("brax/*", PARALLEL),
    Preset("playground/*", SUITE),
    *SLOW,
    Preset("mjx/Hopper-v5", agent=dict(gamma=0.999)),
    Preset("mjx/Humanoid-v5", agent=dict(target_entropy=-1.0 - math.log(0.4))),
    Preset("mjx/HumanoidStandup-v5", agent=dict(target_entropy=-1.0 - math.log(0.4))),
    Preset("mjx/InvertedPendulum-v5", agent=dict(target_entropy=-1.0 - math.log(3.0))),
    Preset("mjx/Pusher-v5", agent=dict(target_entropy=-1.0 - math.log(2.0))),
]
