"""Off-policy agents learn: eight seeds of each, all of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxrl import DSACT, SAC, TD3, OffPolicy, VectorEnv, make

RATES = {"critic_learning_rate": 1e-3, "actor_learning_rate": 1e-3}
AGENTS = {
    "SAC": (SAC(**RATES), "uniform"),
    "TD3": (TD3(**RATES), "uniform"),
    "DSACT": (DSACT(alpha_learning_rate=1e-3, **RATES), "agent"),
}


@pytest.mark.parametrize("name", AGENTS)
def test_pendulum_is_solved_by_every_seed_within_20000_steps(name):
    """An untrained policy returns -1200; -200 takes swinging up and staying there."""
    agent, warmup_policy = AGENTS[name]
    narrow = {
        part: dataclasses.replace(getattr(agent, part), hidden_dims=(64, 64))
        for part in ("policy", "critic")
    }
    sizes = {"buffer_size": 20_000, "batch_size": 128, "learning_starts": 1_000}
    trainer = OffPolicy(
        dataclasses.replace(agent, **narrow),
        VectorEnv(make("gymnax/Pendulum-v1"), 1),
        warmup_policy=warmup_policy,
        **sizes,
    )
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
