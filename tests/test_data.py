"""Datasets: what is refused, checksums, and samplers of datasets and of both stores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DQN, SAC, OffPolicy, UsageError, VectorEnv, make
from jaxrl.data import Dataset, Mixed, ReplayBuffer, UniformDataset
from jaxrl.data.dataset import checksum
from jaxrl.data.replay import Replay
from jaxrl.nn.critics import QNetwork
from jaxrl.sharding import reducing_over
from jaxrl.types import Transition

KEY = jax.random.key(0)


def dataset(size=10):
    """Transitions, each with its number in all fields; of five one terminated, one truncated."""
    number = jnp.arange(size, dtype=jnp.float32)
    ends = jnp.arange(size) % 5
    obs = {"state": number[:, None] + jnp.array([0.0, 0.5])}
    next_obs = {"state": obs["state"] + 1000.0}
    action = (number / size)[:, None]
    return Dataset(obs, action, number, next_obs, ends == 2, ends == 3)


# --- datasets -----------------------------------------------------------------------------------


def test_a_dataset_knows_its_size_and_is_checked():
    data = dataset()
    assert data.size == 10
    data.check()
    with pytest.raises(UsageError) as error:
        jax.tree.map(lambda x: x[:0], data).check()
    assert str(error.value) == "the dataset has no transitions; give at least one"
    short = data._replace(next_obs={"state": data.next_obs["state"][:9]})
    with pytest.raises(UsageError) as error:
        short.check()
    assert str(error.value) == (
        "the dataset's next_obs.state has shape (9, 2), and its reward (10,); "
        "both must begin with the number of transitions"
    )


def test_checksums_tell_datasets_apart():
    data = dataset()
    known = checksum(data)
    assert known == checksum(jax.tree.map(np.asarray, data)) and len(known) == 8
    others = [
        data._replace(reward=data.reward.at[3].add(1e-6)),
        data._replace(action=data.action[:, 0]),
        data._replace(terminated=data.truncated, truncated=data.terminated),
        data._replace(reward=data.reward.astype(jnp.int32)),
        jax.tree.map(lambda x: x[::-1], data),
    ]
    assert len({known, *map(checksum, others)}) == 6
    assert checksum(()) is None


# --- samplers -----------------------------------------------------------------------------------


def test_uniform_draws_whole_transitions_of_the_dataset():
    data = dataset()
    sample = jax.jit(lambda data, key: UniformDataset().sample((), data, key, (40, 50), 0.9))
    batch = sample(data, KEY)
    index = batch.reward.astype(int)
    assert index.shape == (40, 50)
    counts = np.bincount(index.ravel(), minlength=10)
    np.testing.assert_allclose(counts / 2000, 0.1, atol=0.03)
    np.testing.assert_array_equal(batch.obs["state"], data.obs["state"][index])
    np.testing.assert_array_equal(batch.next_obs["state"], data.next_obs["state"][index])
    np.testing.assert_array_equal(batch.action, data.action[index])
    np.testing.assert_allclose(batch.discount, np.where(index % 5 == 2, 0.0, 0.9), rtol=1e-6)


def test_shards_draw_different_rows_under_one_key():
    def draw(_):
        with reducing_over("shard"):
            return UniformDataset().sample((), dataset(1000), KEY, (100,), 0.9).reward

    first, second = jax.vmap(draw, axis_name="shard")(jnp.arange(2))
    assert (first != second).mean() > 0.9


@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.5, 8), (0.25, 4), (0.3, 5), (1.0, 16)])
def test_mixed_batches_begin_with_their_share_of_the_dataset(share, rows):
    data, buffer = dataset(), ReplayBuffer(slots=4)
    obs = {"state": jnp.full((4, 3, 2), -1.0)}
    stored = jnp.zeros((4, 3), bool)
    played = Transition(obs, jnp.zeros((4, 3, 1)), -jnp.ones((4, 3)), obs, stored, stored, {})
    store = Replay(buffer, played, 4)
    batch = jax.jit(lambda key: Mixed(share).sample(store, data, key, (7, 16), 0.9))(KEY)
    assert batch.reward.shape == (7, 16) and batch.obs["state"].shape == (7, 16, 2)
    np.testing.assert_array_equal(batch.reward >= 0, np.broadcast_to(np.arange(16) < rows, (7, 16)))
    np.testing.assert_array_equal(batch.obs["state"][..., 0], batch.reward)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_that_cannot_be_are_refused(share):
    env = VectorEnv(make("gymnax/Pendulum-v1"), 2)
    trainer = OffPolicy(SAC(), env, sampler=Mixed(share), batch_size=8, learning_starts=16)
    with pytest.raises(UsageError) as error:
        trainer.check()
    assert str(error.value) == f"share is {share}; it must be at least 0 and at most 1"


# --- training from both -------------------------------------------------------------------------


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
    data = Dataset(obs, action, jnp.full(size, 3.0), obs, ends, ~ends)
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
    # The share counts rows of a batch: without data there is nothing to mix.
    with pytest.raises(UsageError) as error:
        trainer.train(KEY, 4_000)
    assert str(error.value) == (
        "Mixed samples from a dataset, and there is none; give one, as data=dataset"
    )
