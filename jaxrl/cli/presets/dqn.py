"""Presets of DQN.

Errors are clipped only in MinAtar, whose rewards are Atari's. In classic control, clipping gains
nothing (four seeds, 500,000 steps: CartPole 500 with and without it, Acrobot -71 and -72,
MountainCar -98 and -99) and biases values.
"""

from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset(
        "*",
        total_steps=500_000,
        num_envs=8,
        num_steps=1,
        num_updates=1,
        batch_size=128,
        buffer_size=100_000,
        learning_starts=5_000,
        n_step=1,
        normalize_obs=False,
        reward_scale=1.0,
        epsilon_fraction=0.2,
        anneal=False,
        agent=dict(
            learning_rate=3e-4, tau=0.01, target_every=1, q_network=dict(hidden_dims=(128, 128))
        ),
    ),
    Preset(
        "gymnax/*",
        n_step=3,
        reward_scale=0.1,
        anneal=True,
        agent=dict(huber=None, q_network=dict(layer_norm=True)),
    ),
    Preset(
        "gymnax/*-MinAtar",
        total_steps=1_000_000,
        num_envs=16,
        num_updates=2,
        batch_size=64,
        n_step=1,
        reward_scale=1.0,
        epsilon_fraction=0.1,
        anneal=False,
        agent=dict(huber=1.0, q_network=dict(layer_norm=False)),
    ),
]
