"""Presets of PPO."""

from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset(
        "*",
        total_steps=500_000,
        num_envs=8,
        unroll=128,
        normalize_obs=False,
        reward_scale=1.0,
        anneal=True,
        agent={},
    ),
    Preset(
        "gymnax/*",
        unroll=64,
        agent=dict(learning_rate=1e-3, entropy=0.01, epochs=4, minibatches=4),
    ),
    Preset(
        "gymnax/*-MinAtar",
        total_steps=4_000_000,
        num_envs=64,
        unroll=128,
        agent=dict(learning_rate=2e-3, entropy=0.1, minibatches=8, activation="relu"),
    ),
    Preset(
        "gymnax/Pendulum-v1",
        num_envs=16,
        unroll=256,
        normalize_obs=True,
        reward_scale=0.1,
        agent=dict(learning_rate=1e-3, entropy=0.0, gamma=0.95, epochs=10, minibatches=32),
    ),
    Preset(
        "brax/*",
        total_steps=4_000_000,
        num_envs=1024,
        unroll=10,
        normalize_obs=True,
        agent=dict(
            learning_rate=1e-3, gamma=0.97, entropy=0.005, minibatches=16, hidden=(128, 128)
        ),
    ),
    Preset("brax/reacher", total_steps=20_000_000, agent=dict(entropy=0.01)),
    Preset(
        "brax/inverted_pendulum",
        total_steps=2_000_000,
        num_envs=256,
        unroll=20,
        agent=dict(learning_rate=3e-4, entropy=0.0, hidden=(64, 64)),
    ),
    Preset(
        "playground/*",
        total_steps=2_000_000,
        num_envs=64,
        unroll=64,
        normalize_obs=True,
        agent=dict(learning_rate=1e-3, gamma=0.99, epochs=4, minibatches=8),
    ),
    Preset(
        "mjx/*",
        total_steps=5_000_000,
        num_envs=64,
        unroll=64,
        normalize_obs=True,
        agent=dict(learning_rate=5e-4, epochs=8, minibatches=16, hidden=(64, 64)),
    ),
    Preset("mjx/Hopper-v5", reward_scale=0.1, agent=dict(gamma=0.997)),
    Preset(
        "mjx/Swimmer-v5",
        total_steps=1_000_000,
        num_envs=16,
        unroll=256,
        reward_scale=0.1,
        agent=dict(gamma=0.9999, gae_lambda=0.98),
    ),
]
