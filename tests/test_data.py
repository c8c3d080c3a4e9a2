"""Training from a dataset and the replay buffer at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DQN, OffPolicy, VectorEnv, make
from jaxrl.data import Dataset, Mixed
from jaxrl.nn.critics import QNetwork

KEY = jax.random.key(0)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75])
def test_off_policy_training_learns_from_the_dataset_and_the_buffer(share):
    """Rewards of 3 in the dataset and of 1 in the environment: the value is their mixture's."""
    agent = DQN(
        q_network=QNetwork(hidden_dims=(8,)),
        learning_rate=1e-2,
        lr_decay_steps=1_000,
        huber=None,
        tau=0.1,
        target_every=5,
    )
    size = 50
    obs, ends = jnp.zeros((size, 1)), jnp.ones(size, bool)
    action = jnp.arange(size, dtype=jnp.int32) % 2
    data = Dataset.of(obs, action, jnp.full(size, 3.0), obs, ends, ~ends)
    trainer = OffPolicy(
        agent,
        VectorEnv(make("probe/constant"), 4),
        batch_size=64,
        buffer_size=1_000,
        learning_starts=100,
        sampler=Mixed(share),
    )
    ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, 4_000, data)
    q = trainer.agent.q_network(ts.agent.q.params, jnp.zeros(1))
    np.testing.assert_allclose(q, 3.0 * share + 1.0 * (1.0 - share), atol=0.05)
    # What was played is in the buffer, and the dataset is not.
    np.testing.assert_array_equal(ts.store.reward, 1.0)
