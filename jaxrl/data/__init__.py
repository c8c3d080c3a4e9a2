"""Data to learn from: the replay buffer, datasets, and samplers of both."""

from jaxrl.data.dataset import Dataset
from jaxrl.data.replay import ReplayBuffer
from jaxrl.data.samplers import Mixed, UniformDataset, UniformReplay

__all__ = ["Dataset", "Mixed", "ReplayBuffer", "UniformDataset", "UniformReplay"]
