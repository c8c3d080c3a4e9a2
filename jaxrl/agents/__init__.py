"""Agents: one algorithm per file, and the wrappers that compose with them."""

from jaxrl.agents.bc import BC
from jaxrl.agents.chunks import Chunks
from jaxrl.agents.cql import CQL, CalQL
from jaxrl.agents.discrete_cql import DiscreteCQL
from jaxrl.agents.dqn import DQN
from jaxrl.agents.dsac import DSAC, DSACT
from jaxrl.agents.edac import EDAC
from jaxrl.agents.fqe import FQE
from jaxrl.agents.iql import IQL
from jaxrl.agents.ppo import PPO
from jaxrl.agents.pqn import PQN
from jaxrl.agents.rebrac import ReBRAC
from jaxrl.agents.sac import SAC
from jaxrl.agents.td3 import TD3
from jaxrl.agents.td3_bc import TD3BC
from jaxrl.agents.wrappers import NormalizeObs, ScaleReward

__all__ = [
    "BC",
    "DQN",
    "DSAC",
    "DSACT",
    "EDAC",
    "CQL",
    "FQE",
    "IQL",
    "PPO",
    "PQN",
    "SAC",
    "TD3",
    "TD3BC",
    "NormalizeObs",
    "ReBRAC",
    "CalQL",
    "Chunks",
    "DiscreteCQL",
    "ScaleReward",
]
