"""Agents: one algorithm per file, and the wrappers that compose with them."""

from jaxrl.agents.bc import BC
from jaxrl.agents.chunks import Chunks
from jaxrl.agents.cql import CQL, CalQL
from jaxrl.agents.diffusion_ql import DiffusionQL
from jaxrl.agents.discrete_cql import DiscreteCQL
from jaxrl.agents.dppo import DPPO
from jaxrl.agents.dqn import DQN
from jaxrl.agents.dsac import DSAC, DSACT
from jaxrl.agents.dsrl import DSRL
from jaxrl.agents.edac import EDAC
from jaxrl.agents.edit import EditPolicy
from jaxrl.agents.fqe import FQE
from jaxrl.agents.fql import FQL
from jaxrl.agents.idql import IDQL, IFQL
from jaxrl.agents.improvement import Ascent, BestOf, Softmax
from jaxrl.agents.iql import IQL
from jaxrl.agents.pa_rl import PARL
from jaxrl.agents.ppo import PPO
from jaxrl.agents.pqn import PQN
from jaxrl.agents.rebrac import ReBRAC
from jaxrl.agents.reinflow import ReinFlow
from jaxrl.agents.sac import SAC
from jaxrl.agents.td3 import TD3
from jaxrl.agents.td3_bc import TD3BC
from jaxrl.agents.wrappers import NormalizeObs, ScaleReward

__all__ = [
    "BC",
    "DPPO",
    "DQN",
    "DSAC",
    "DSACT",
    "DSRL",
    "EDAC",
    "CQL",
    "FQE",
    "FQL",
    "IDQL",
    "IFQL",
    "IQL",
    "PARL",
    "PPO",
    "PQN",
    "SAC",
    "TD3",
    "TD3BC",
    "EditPolicy",
    "Ascent",
    "BestOf",
    "NormalizeObs",
    "ReBRAC",
    "ReinFlow",
    "CalQL",
    "Chunks",
    "DiffusionQL",
    "DiscreteCQL",
    "ScaleReward",
    "Softmax",
]
