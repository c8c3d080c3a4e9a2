"""Presets of EditPolicy: small networks for shipped datasets, and rewards as in the papers."""

from jaxrl.cli.presets.offline import PAPER
from jaxrl.cli.presets.preset import Preset

# The policy and the observation normalisation match flow_bc's presets.
SMALL = dict(
    total_steps=30_000,
    buffer_size=100_000,
    normalize_obs=True,
    agent=dict(
        policy=dict(hidden_dims=(128, 128), sample_steps=5),
        edit=dict(hidden_dims=(128, 128), activation="relu"),
        critic=dict(hidden_dims=(128, 128), activation="relu", num_critics=2),
    ),
)

PRESETS = [
    Preset("*", PAPER),
    Preset("gymnax/*", SMALL, return_range=100.0),
    Preset("mjx/*/*", SMALL, return_range=100.0),
    Preset("maze/*", SMALL, reward_shift=-1.0),
    Preset("antmaze*", reward_shift=-1.0),
]
