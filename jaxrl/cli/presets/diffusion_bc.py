"""Presets of behaviour cloning with diffusion policies.

These are the settings of DPPO's pre-training on locomotion, with chunks of four actions, and of
IDQL's actor on mazes. Differences: plain layers instead of DPPO's residual ones, and constant
instead of decaying learning rates.
"""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL_POLICY
from jaxrl.cli.presets.preset import Preset, Settings

DPPO: Settings = dict(
    batch_size=128,
    normalize_obs=True,
    horizon=4,
    agent=dict(
        learning_rate=1e-3,
        ema_decay=0.995,
        optimizer=dict(weight_decay=1e-6),
        policy=dict(num_steps=20, schedule="cosine", hidden_dims=(512, 512, 512)),
    ),
)
IDQL: Settings = dict(
    batch_size=512,
    normalize_obs=False,
    horizon=1,
    agent=dict(
        learning_rate=3e-4,
        ema_decay=0.999,
        optimizer=dict(weight_decay=0.0),
        policy=dict(
            num_steps=5,
            schedule="vp",
            clip="samples",
            variance="forward",
            hidden_dims=(256, 256, 256),
            residual=True,
            dropout=0.1,
            time_embedding="fourier",
            time_features=64,
        ),
    ),
)
SHORT: Settings = dict(batch_size=256, horizon=1, agent=dict(policy=dict(num_steps=5)))

PRESETS = [
    Preset("*", PAPER, DPPO),
    Preset("antmaze*", IDQL),
    *[Preset(pattern, SMALL_POLICY, SHORT) for pattern in SHIPPED],
]
