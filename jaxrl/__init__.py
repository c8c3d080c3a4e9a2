"""jaxrl: reinforcement learning in JAX, from environment step to gradient step inside ``jit``."""

from jaxrl._startup import configure

configure()

from jaxrl.agents import DQN, DSAC, DSACT, PPO, PQN, SAC, TD3, NormalizeObs, ScaleReward  # noqa: E402
from jaxrl.envs import VectorEnv, make  # noqa: E402
from jaxrl.envs.randomize import Randomize  # noqa: E402
from jaxrl.errors import RunError, UsageError  # noqa: E402
from jaxrl.record import load_policy  # noqa: E402
from jaxrl.run import Run, run  # noqa: E402
from jaxrl.training import OffPolicy, OnPolicy  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "DQN",
    "DSAC",
    "DSACT",
    "PPO",
    "PQN",
    "SAC",
    "TD3",
    "NormalizeObs",
    "OffPolicy",
    "OnPolicy",
    "Randomize",
    "Run",
    "RunError",
    "ScaleReward",
    "UsageError",
    "VectorEnv",
    "load_policy",
    "make",
    "run",
]
