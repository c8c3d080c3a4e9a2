"""Blocks of settings shared by the presets of offline agents.

Patterns match the name of the environment or of the dataset. A dataset's name is its file or folder
name, such as ``hopper_medium_replay-v2``, or the full name of a shipped dataset, such as
``mjx/Hopper-v5/medium-replay``. PAPER is a million gradient steps, as in the papers; SMALL is for
the shipped datasets and toy tasks.
"""

from jaxrl.cli.presets.preset import Settings, networks

PAPER: Settings = dict(
    total_steps=1_000_000,
    batch_size=256,
    n_step=1,
    normalize_obs=False,
    reward_scale=1.0,
    reward_shift=0.0,
    agent={},
)
SMALL: Settings = dict(total_steps=30_000, agent=networks(hidden_dims=(128, 128)))
SMALL_POLICY: Settings = dict(total_steps=30_000, agent=dict(policy=dict(hidden_dims=(128, 128))))

# D4RL's datasets by family, and similar tasks of the library.
LOCOMOTION = ("halfcheetah*", "hopper*", "walker2d*", "mjx/HalfCheetah*", "mjx/Hopper*",
              "mjx/Walker2d*")  # fmt: skip
# The shipped datasets, and toy tasks.
SHIPPED = ("gymnax/*", "maze/*", "mjx/*/*")
