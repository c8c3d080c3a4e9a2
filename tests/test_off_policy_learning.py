"""SAC, TD3 and DSAC-T with the settings of their scripts on Pendulum."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxrl import DSACT, SAC, TD3, OffPolicy, VectorEnv, hyper, make
from jaxrl.cli.presets import dsac_t, lookup, sac, td3

AGENTS = {"SAC": (SAC, sac), "TD3": (TD3, td3), "DSACT": (DSACT, dsac_t)}
SIZES = ("batch_size", "learning_starts", "warmup_policy", "num_updates")


@pytest.mark.slow  # test_off_policy_probes.py shows learning in less time
@pytest.mark.optimized
@pytest.mark.parametrize("name", AGENTS)
def test_pendulum_is_solved_by_every_seed_within_20000_steps(name):
    """An untrained policy returns -1200; -200 takes swinging up and staying there."""
    kind, module = AGENTS[name]
    settings = lookup(module.PRESETS, "gymnax/Pendulum-v1")
    agent = hyper.override(kind(), settings["agent"])
    env = VectorEnv(make("gymnax/Pendulum-v1"), settings["num_envs"])
    sizes = {key: settings[key] for key in SIZES}
    trainer = OffPolicy(agent, env, buffer_size=20_000, **sizes)
    steps = 20_000 - trainer.steps_per_iteration
    made = trainer.first_step + trainer.iterations(steps) * trainer.steps_per_iteration
    assert made <= 20_000

    @jax.jit
    @jax.vmap
    def final_returns(key):
        ts, _ = trainer.train(key, steps)
        return trainer.evaluate(ts, jax.random.key(1)).returns.mean()

    found = np.asarray(final_returns(jax.vmap(jax.random.key)(np.arange(8))))
    assert found.min() > -200, found
