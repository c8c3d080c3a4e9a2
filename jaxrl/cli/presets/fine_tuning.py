"""Presets of fine-tuning by PPO on chains: those of the authors for locomotion, and of Pendulum."""

from jaxrl.cli.presets.preset import Settings, networks

FINE_TUNING: Settings = dict(
    total_steps=2_000_000,
    num_envs=40,
    num_steps=500,
    normalize_obs=True,
    reward_scale=1.0,
    agent={},
)
# With one action element, a mean over elements is as large as the sum that PPO clips at 0.2: the
# authors' range of 0.01 hardly moved a clone in 120,000 steps.
PENDULUM: Settings = dict(
    total_steps=300_000,
    num_envs=16,
    num_steps=256,
    reward_scale=0.1,
    agent=dict(
        gamma=0.95, clip_eps=0.1, actor_learning_rate=1e-3, **networks(hidden_dims=(128, 128))
    ),
)
# Rollouts of the authors' size would make fifteen updates of 300,000 steps. The policy's sizes are
# those of clones of the datasets that come with the library.
HOPPER: Settings = dict(
    total_steps=300_000,
    num_envs=32,
    num_steps=128,
    reward_scale=0.1,
    agent=dict(
        gamma=0.997,
        num_minibatches=16,
        actor_learning_rate=3e-4,
        **networks(hidden_dims=(128, 128)),
    ),
)
MAZE: Settings = dict(
    total_steps=300_000,
    num_envs=16,
    num_steps=256,
    agent=dict(clip_eps=0.05, actor_learning_rate=3e-4, **networks(hidden_dims=(128, 128))),
)
