"""Presets of PQN."""

from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset(
        "*",
        total_steps=500_000,
        num_envs=32,
        num_steps=64,
        normalize_obs=False,
        reward_scale=1.0,
        anneal=True,
        epsilon_fraction=0.2,
        agent={},
    ),
    Preset(
        "gymnax/*",
        reward_scale=0.1,
        agent=dict(
            learning_rate=1e-4, q_lambda=0.95, epsilon_end=0.2, update_epochs=4, num_minibatches=16
        ),
    ),
    # Random actions never reach the flag. Initial values, near 0, are too optimistic, so a nearly
    # greedy policy explores unseen states until its values fall to -1 / (1 - gamma).
    Preset(
        "gymnax/MountainCar-v0",
        reward_scale=1.0,
        agent=dict(
            learning_rate=5e-3, gamma=0.997, q_lambda=0.65, epsilon_start=0.1, epsilon_end=0.0
        ),
    ),
    Preset(
        "gymnax/*-MinAtar",
        total_steps=4_000_000,
        num_envs=128,
        num_steps=32,
        reward_scale=1.0,
        epsilon_fraction=0.1,
        agent=dict(
            learning_rate=5e-4, q_lambda=0.65, epsilon_end=0.05, update_epochs=2, num_minibatches=32
        ),
    ),
]
