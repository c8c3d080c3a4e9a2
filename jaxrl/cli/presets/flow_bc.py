"""Presets of cloning with flow policies: ReinFlow's pre-training, i.e. DPPO's with a flow."""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL_POLICY
from jaxrl.cli.presets.preset import Preset, Settings

REINFLOW: Settings = dict(
    batch_size=128,
    normalize_obs=True,
    horizon=4,
    agent=dict(
        learning_rate=1e-3,
        ema_decay=0.995,
        optimizer=dict(weight_decay=1e-6),
        policy=dict(sample_steps=10, hidden_dims=(512, 512, 512)),
    ),
)
SHORT: Settings = dict(batch_size=256, horizon=1, agent=dict(policy=dict(sample_steps=5)))

PRESETS = [
    Preset("*", PAPER, REINFLOW),
    *[Preset(pattern, SMALL_POLICY, SHORT) for pattern in SHIPPED],
]
