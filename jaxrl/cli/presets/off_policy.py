"""Blocks of settings shared by the presets of off-policy actor-critics.

PAPER is one environment with one gradient step per environment step, as in the papers. PARALLEL and
SUITE are for families that run hundreds of environments: a few dozen gradient steps per step of all
environments. Brax and Playground tuned these settings for their SAC. Brax tuned on hopper and
walker2d, so its settings are untuned for its other tasks; both are untuned for other agents. The
buffer size does not depend on the run length, so that a run can be extended.
"""

from jaxrl.cli.presets.preset import Preset, Settings, networks

PAPER: Settings = dict(
    total_steps=1_000_000,
    num_envs=1,
    num_steps=1,
    num_updates=1,
    batch_size=256,
    buffer_size=1_000_000,
    learning_starts=10_000,
    warmup_policy="uniform",
    normalize_obs=False,
    reward_scale=1.0,
    agent={},
)
PENDULUM: Settings = dict(
    total_steps=20_000,
    buffer_size=100_000,
    learning_starts=1_000,
    batch_size=128,
    agent=dict(
        actor_learning_rate=1e-3, critic_learning_rate=1e-3, **networks(hidden_dims=(64, 64))
    ),
)
PARALLEL: Settings = dict(
    total_steps=4_000_000,
    num_envs=128,
    num_updates=32,
    buffer_size=1_048_576,
    learning_starts=8_192,
    normalize_obs=True,
    agent=dict(actor_learning_rate=6e-4, critic_learning_rate=6e-4),
)
SUITE: Settings = dict(
    total_steps=5_000_000,
    num_envs=128,
    num_updates=8,
    batch_size=512,
    buffer_size=4_194_304,
    learning_starts=8_192,
    normalize_obs=True,
    agent=dict(actor_learning_rate=1e-3, critic_learning_rate=1e-3, critic=dict(layer_norm=True)),
)

# Playground tasks that train for twice as many steps.
SLOW = [
    Preset(f"playground/{task}", total_steps=10_000_000)
    for task in (
        *("Acrobot*", "Swimmer*", "Finger*", "Hopper*"),
        *("CheetahRun", "HumanoidWalk", "PendulumSwingup", "WalkerRun"),
    )
]
