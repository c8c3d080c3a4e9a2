"""Off-policy agents learn: eight seeds of each, all of them."""

from __future__ import annotations

import pytest

from jaxrl import DSACT, SAC, TD3, OffPolicy, VectorEnv, make, run
from jaxrl.cli.presets import dsac_t, lookup, sac, td3

AGENTS = {"SAC": (SAC, sac), "TD3": (TD3, td3), "DSACT": (DSACT, dsac_t)}


@pytest.mark.parametrize("name", AGENTS)
def test_pendulum_is_solved_by_every_seed_within_20000_steps(name):
    """An untrained policy returns -1200; -200 takes swinging up and staying there."""
    agent_class, module = AGENTS[name]
    settings = lookup(module.PRESETS, "gymnax/Pendulum-v1")
    agent = agent_class(**settings["agent"])
    env = VectorEnv(make("gymnax/Pendulum-v1"), settings["num_envs"])
    sizes = {key: settings[key] for key in ("batch_size", "prefill", "prefill_policy", "updates")}
    trainer = OffPolicy(agent, env, capacity=20_000, **sizes)
    result = run(trainer, 20_000 - trainer.steps_per_iteration, seeds=8, quiet=True)
    assert result.summary["total_steps"] <= 20_000
    assert min(result.summary["final_return"]["per_seed"]) > -200
