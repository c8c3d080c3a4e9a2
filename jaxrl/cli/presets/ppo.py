"""Presets of PPO."""

from jaxrl.cli.presets.preset import Preset, Settings, networks

# Standing still, as the untrained policy does, earns a point per step, and exploring makes these
# agents fall within twenty steps: with a horizon of 33 steps, leaping and falling beats standing.
BALANCE: Settings = dict(
    num_envs=128,
    num_steps=64,
    reward_scale=0.1,
    agent=dict(
        learning_rate=5e-4, gamma=0.997, entropy_coef=0.002, update_epochs=8, num_minibatches=32
    ),
)

PRESETS = [
    Preset(
        "*",
        total_steps=500_000,
        num_envs=8,
        num_steps=128,
        normalize_obs=False,
        reward_scale=1.0,
        anneal=True,
        agent={},
    ),
    Preset(
        "gymnax/*",
        num_steps=64,
        agent=dict(learning_rate=1e-3, entropy_coef=0.01, update_epochs=4, num_minibatches=4),
    ),
    Preset(
        "gymnax/*-MinAtar",
        total_steps=4_000_000,
        num_envs=64,
        num_steps=128,
        agent=dict(
            learning_rate=2e-3, entropy_coef=0.1, num_minibatches=8, **networks(activation="relu")
        ),
    ),
    Preset(
        "gymnax/Pendulum-v1",
        num_envs=16,
        num_steps=256,
        normalize_obs=True,
        reward_scale=0.1,
        agent=dict(
            learning_rate=1e-3, entropy_coef=0.0, gamma=0.95, update_epochs=10, num_minibatches=32
        ),
    ),
    Preset(
        "brax/*",
        total_steps=4_000_000,
        num_envs=1024,
        num_steps=10,
        normalize_obs=True,
        agent=dict(
            learning_rate=1e-3,
            gamma=0.97,
            entropy_coef=0.005,
            num_minibatches=16,
            **networks(hidden_dims=(128, 128)),
        ),
    ),
    Preset("brax/hopper", BALANCE),
    Preset("brax/walker2d", BALANCE),
    Preset("brax/reacher", total_steps=20_000_000, agent=dict(entropy_coef=0.01)),
    Preset(
        "brax/inverted_pendulum",
        total_steps=2_000_000,
        num_envs=256,
        num_steps=20,
        agent=dict(learning_rate=3e-4, entropy_coef=0.0, **networks(hidden_dims=(64, 64))),
    ),
    Preset(
        "playground/*",
        total_steps=2_000_000,
        num_envs=64,
        num_steps=64,
        normalize_obs=True,
        agent=dict(learning_rate=1e-3, gamma=0.99, update_epochs=4, num_minibatches=8),
    ),
    Preset(
        "mjx/*",
        total_steps=5_000_000,
        num_envs=64,
        num_steps=64,
        normalize_obs=True,
        agent=dict(
            learning_rate=5e-4,
            update_epochs=8,
            num_minibatches=16,
            **networks(hidden_dims=(64, 64)),
        ),
    ),
    Preset("mjx/Hopper-v[45]", reward_scale=0.1, agent=dict(gamma=0.997)),
    Preset(
        "mjx/Swimmer-v5",
        total_steps=1_000_000,
        num_envs=16,
        num_steps=256,
        reward_scale=0.1,
        agent=dict(gamma=0.9999, gae_lambda=0.98),
    ),
]
