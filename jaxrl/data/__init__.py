"""Data to learn from: the replay buffer, datasets, and samplers of both."""

from jaxrl.data.dataset import Dataset, concatenate
from jaxrl.data.describe import describe
from jaxrl.data.replay import ReplayBuffer
from jaxrl.data.samplers import Mixed, UniformDataset, UniformReplay
from jaxrl.data.scores import d4rl_score, normalized

__all__ = [
    "Dataset",
    "Mixed",
    "ReplayBuffer",
    "UniformDataset",
    "UniformReplay",
    "concatenate",
    "d4rl_score",
    "describe",
    "normalized",
]
