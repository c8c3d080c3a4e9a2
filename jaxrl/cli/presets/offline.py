"""Blocks of settings that the presets of offline agents share.

Patterns match the name of the environment, or that of the dataset: the file's or folder's, such as
``hopper_medium_replay-v2``, or the whole one of a dataset that comes with the library, such as
``mjx/Hopper-v5/medium-replay``. PAPER is a million gradient steps, as in the papers; SMALL is for
the datasets that come with the library, and for toy tasks.
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

# The datasets of D4RL by family, and tasks of the library that are alike.
LOCOMOTION = ("halfcheetah*", "hopper*", "walker2d*", "mjx/HalfCheetah*", "mjx/Hopper*",
              "mjx/Walker2d*")  # fmt: skip
# The datasets that come with the library, and toy tasks.
SHIPPED = ("gymnax/*", "maze/*", "mjx/*/*")
