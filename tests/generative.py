"""Tiny agents with generative policies, one of each kind."""

from __future__ import annotations

from jaxrl import BC, DPPO, DSRL, FQL, IDQL, IFQL, PARL, DiffusionQL, EditPolicy, ReinFlow, hyper
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow, NoisyFlow

SIZES = {"hidden_dims": (6,)}
FLOW, DIFFUSION = Flow(**SIZES, sample_steps=2), Diffusion(**SIZES, num_steps=2)
EPOCHS = {"update_epochs": 3, "num_minibatches": 1}
ON_POLICY = {
    "DPPO": DPPO(policy=DIFFUSION.replace(min_std=0.1), **EPOCHS),
    "ReinFlow": ReinFlow(policy=NoisyFlow(**SIZES, sample_steps=2), **EPOCHS),
}
FROM_BATCHES = {
    "BC flow": BC(FLOW, ema_decay=0.9),
    "BC diffusion": BC(DIFFUSION),
    "DiffusionQL": DiffusionQL(policy=DIFFUSION, ema_start=0, ema_every=1),
    "IDQL": IDQL(policy=DIFFUSION.replace(dropout=0.1)),
    "FQL": FQL(policy=FLOW),
    "IFQL": IFQL(policy=FLOW),
    "PARL": PARL(policy=EDM(**SIZES, sample_steps=2), num_actions=2),
    "EditPolicy": EditPolicy(policy=FLOW, num_candidates=2),
    "DSRL": DSRL(policy=FLOW),
}


def small(agent):
    """The agent with narrow networks."""
    names = {name for name in hyper.names(agent) if name.endswith("hidden_dims")}
    parts = {name.split(".")[0]: SIZES for name in names if name.count(".") == 1}
    return hyper.override(agent, parts)


GENERATIVE = {name: small(agent) for name, agent in (FROM_BATCHES | ON_POLICY).items()}
