"""Data to learn from: the replay buffer, datasets, and samplers of both."""

from jaxrl.data.dataset import Dataset, concatenate
from jaxrl.data.describe import describe
from jaxrl.data.replay import ReplayBuffer
from jaxrl.data.samplers import (
    Mixed,
    Pooled,
    UniformDataset,
    UniformReplay,
    WeightedDataset,
    Windows,
)
from jaxrl.data.scores import d4rl_score, normalized
from jaxrl.data.weights import weighted

__all__ = [
    "Dataset",
    "Mixed",
    "Pooled",
    "ReplayBuffer",
    "UniformDataset",
    "UniformReplay",
    "WeightedDataset",
    "Windows",
    "concatenate",
    "d4rl_score",
    "describe",
    "normalized",
    "weighted",
]
