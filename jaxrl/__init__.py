"""jaxrl: reinforcement learning in JAX, from environment step to gradient step inside ``jit``."""

from jaxrl._startup import configure

configure()

from jaxrl.agents import (  # noqa: E402
    BC,
    CQL,
    DPPO,
    DQN,
    DSAC,
    DSACT,
    DSRL,
    EDAC,
    FQE,
    FQL,
    IDQL,
    IFQL,
    IQL,
    PARL,
    PPO,
    PQN,
    SAC,
    TD3,
    TD3BC,
    Ascent,
    BestOf,
    CalQL,
    Chunks,
    DiffusionQL,
    DiscreteCQL,
    EditPolicy,
    NormalizeObs,
    ReBRAC,
    ReinFlow,
    ScaleReward,
    Softmax,
)
from jaxrl.data import Dataset  # noqa: E402
from jaxrl.data.formats import load as load_dataset  # noqa: E402
from jaxrl.envs import ChunkActions, VectorEnv, make  # noqa: E402
from jaxrl.envs.randomize import Randomize  # noqa: E402
from jaxrl.errors import RunError, UsageError  # noqa: E402
from jaxrl.record import load_policy  # noqa: E402
from jaxrl.run import (  # noqa: E402
    PBT,
    Halving,
    Phase,
    Range,
    Run,
    Values,
    Variant,
    run,
    sweep,
)
from jaxrl.training import Offline, OffPolicy, OnPolicy  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "BC",
    "CQL",
    "DPPO",
    "DQN",
    "DSAC",
    "DSACT",
    "DSRL",
    "EDAC",
    "FQE",
    "FQL",
    "IDQL",
    "IFQL",
    "IQL",
    "PARL",
    "PBT",
    "PPO",
    "PQN",
    "SAC",
    "TD3",
    "TD3BC",
    "Ascent",
    "BestOf",
    "CalQL",
    "ChunkActions",
    "Chunks",
    "Dataset",
    "DiffusionQL",
    "DiscreteCQL",
    "EditPolicy",
    "Halving",
    "NormalizeObs",
    "OffPolicy",
    "Offline",
    "OnPolicy",
    "Phase",
    "Randomize",
    "Range",
    "ReBRAC",
    "ReinFlow",
    "Run",
    "RunError",
    "ScaleReward",
    "Softmax",
    "UsageError",
    "Values",
    "Variant",
    "VectorEnv",
    "load_dataset",
    "load_policy",
    "make",
    "run",
    "sweep",
]
