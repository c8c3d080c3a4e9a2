"""Presets of PA-RL: the authors' settings for mazes, small networks for shipped datasets."""

from jaxrl.cli.presets.offline import PAPER
from jaxrl.cli.presets.preset import Preset

# The policy and the observation normalisation match diffusion_bc's presets.
SMALL = dict(
    total_steps=30_000,
    buffer_size=100_000,
    normalize_obs=True,
    agent=dict(
        policy=dict(hidden_dims=(128, 128), num_steps=5, schedule="cosine"),
        critic=dict(hidden_dims=(128, 128), num_critics=2),
        value=dict(hidden_dims=(128, 128)),
        improver=dict(num_candidates=8, num_kept=4, num_steps=5),
    ),
)
MAZE = dict(reward_shift=-1.0, agent=dict(expectile=0.9))

PRESETS = [
    Preset("*", PAPER),
    Preset("gymnax/*", SMALL, return_range=100.0),
    Preset("mjx/*/*", SMALL, return_range=100.0),
    Preset("maze/*", SMALL, MAZE),
    Preset("antmaze*", MAZE, agent=dict(critic=dict(hidden_dims=(256, 256, 256, 256)))),
]
