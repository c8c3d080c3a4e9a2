"""Blocks of settings that the presets of off-policy actor-critics share.

PAPER is one environment and a gradient step for each of its steps, as in the papers. PARALLEL and
SUITE are for families whose environments come by the hundred: a few dozen gradient steps for each
step of all environments. These are the settings that Brax and Playground tuned for their SAC; those
of Brax were tuned on hopper and walker2d, so they are untuned for its other tasks, and both are
untuned for other agents. The size of the buffer does not depend on the length of a run, so that
a run can be extended.
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

# The tasks of Playground that train for twice as many steps.
SLOW = [
    Preset(f"playground/{task}", total_steps=10_000_000)
    for task in (
        *("Acrobot*", "Swimmer*", "Finger*", "Hopper*"),
        *("CheetahRun", "HumanoidWalk", "PendulumSwingup", "WalkerRun"),
    )
]
