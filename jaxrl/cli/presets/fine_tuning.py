"""Presets of fine-tuning by PPO on denoising chains: the authors' for locomotion, and small tasks.

The policies are those with which ``diffusion_bc.py`` and ``flow_bc.py`` clone the shipped datasets.
"""

from jaxrl.cli.presets.preset import Settings, merge, networks

FINE_TUNING: Settings = dict(
    total_steps=2_000_000,
    num_envs=40,
    num_steps=500,
    normalize_obs=True,
    reward_scale=1.0,
    agent={},
)
SMALL: Settings = dict(agent=networks(hidden_dims=(128, 128)))
# With one action element, the mean over elements equals the sum, which PPO clips at 0.2: the
# authors' range of 0.01 hardly changed a cloned policy in 120,000 steps.
PENDULUM: Settings = merge(
    SMALL,
    dict(
        total_steps=300_000,
        num_envs=16,
        num_steps=256,
        reward_scale=0.1,
        agent=dict(gamma=0.95, clip_eps=0.1, actor_learning_rate=1e-3),
    ),
)
# With the authors' rollout size, 300,000 steps would give only fifteen updates.
HOPPER: Settings = dict(
    total_steps=300_000,
    num_envs=32,
    num_steps=128,
    reward_scale=0.1,
    agent=dict(gamma=0.997, num_minibatches=16, actor_learning_rate=3e-4),
)
MAZE: Settings = merge(
    SMALL,
    dict(
        total_steps=300_000,
        num_envs=16,
        num_steps=256,
        agent=dict(clip_eps=0.05, actor_learning_rate=3e-4),
    ),
)
