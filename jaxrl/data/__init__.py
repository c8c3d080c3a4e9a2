"""Data to learn from: the replay buffer, datasets, and samplers for both."""

from jaxrl.data.dataset import Dataset, concatenate
from jaxrl.data.describe import describe
from jaxrl.data.goals import Hindsight, with_goals
from jaxrl.data.replay import ReplayBuffer
from jaxrl.data.samplers import (
    Mixed,
    Pooled,
    UniformDataset,
    UniformReplay,
    WeightedDataset,
)
from jaxrl.data.scores import Reference, d4rl_score, normalized
from jaxrl.data.units import to_agent, to_environment
from jaxrl.data.weights import weighted
from jaxrl.data.windows import Windows

__all__ = [
    "Dataset",
    "Hindsight",
    "Mixed",
    "Pooled",
    "Reference",
    "ReplayBuffer",
    "UniformDataset",
    "UniformReplay",
    "WeightedDataset",
    "Windows",
    "concatenate",
    "d4rl_score",
    "describe",
    "normalized",
    "to_agent",
    "to_environment",
    "weighted",
    "with_goals",
]
