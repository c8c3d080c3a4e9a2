"""Samplers: which rows they draw, how they sum rewards, and what shards have in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import UsageError
from jaxrl.data import Dataset, Mixed, ReplayBuffer, UniformDataset, UniformReplay
from jaxrl.data.dataset import checksum
from jaxrl.data.replay import Replay
from jaxrl.sharding import reducing_over
from jaxrl.types import Transition

SLOTS, N, D, GAMMA = 16, 3, 40, 0.9
KEY = jax.random.key(0)


def dataset(rows=D, seed=0):
    """Observations tell which row it is; negative ones, that it is the dataset's."""
    rng = np.random.default_rng(seed)
    obs = -1.0 - np.arange(rows, dtype=np.float32)[:, None]
    kind = rng.choice(3, rows, p=[0.6, 0.2, 0.2])
    return Dataset.of(
        obs={"state": jnp.array(obs)},
        action=jnp.array(rng.uniform(-1, 1, (rows, 2)), jnp.float32),
        reward=jnp.array(rng.normal(size=rows), jnp.float32),
        next_obs={"state": jnp.array(obs - 0.5)},
        terminated=jnp.array(kind == 1),
        truncated=jnp.array(kind == 2),
    )


def replay(written, seed=0):
    """A buffer of 16 slots after ``written`` steps, and its rows in the order of time."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, (written, N), p=[0.6, 0.2, 0.2])
    obs = np.arange(written * N, dtype=np.float32).reshape(written, N, 1)
    steps = Transition(
        obs={"state": obs},
        action=rng.uniform(-1, 1, (written, N, 2)).astype(np.float32),
        reward=rng.normal(size=(written, N)).astype(np.float32),
        next_obs={"state": obs + 0.5},
        terminated=kind == 1,
        truncated=kind == 2,
        extras={},
    )
    buffer = ReplayBuffer(SLOTS)
    rows = buffer.empty(jax.tree.map(lambda x: x[0], steps))
    write = jax.jit(buffer.write)
    for t in range(written):
        rows = write(rows, jax.tree.map(lambda x, t=t: x[t : t + 1], steps), t)
    return Replay(buffer, rows, jnp.int32(written)), steps


def transcribed(steps, t, n, n_step):
    """The n-step return from step ``t`` of environment ``n``, where it ends, and its discount."""
    total, discount = 0.0, 1.0
    for last in range(t, t + n_step):
        total += discount * steps.reward[last, n]
        discount *= GAMMA
        if steps.terminated[last, n]:
            return total, last, 0.0
        if steps.truncated[last, n]:
            break
    return total, last, discount


@pytest.mark.parametrize("n_step", [1, 2, 5, 16])
@pytest.mark.parametrize("written", [16, 21, 40])
def test_returns_over_several_steps_are_those_of_a_loop(n_step, written):
    """They stop at the ends of episodes; only terminations have a discount of zero."""
    store, steps = replay(written)
    sampler = UniformReplay(n_step)
    batch = jax.device_get(jax.jit(lambda: sampler.sample(store, (), KEY, (8, 64), GAMMA))())
    assert batch.reward.shape == batch.discount.shape == (8, 64) and batch.extras == {}
    drawn = set()
    for index in np.ndindex(8, 64):
        place = int(batch.obs["state"][index][0])
        t, n = divmod(place, N)
        total, last, discount = transcribed(steps, t, n, n_step)
        assert batch.reward[index] == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert batch.discount[index] == pytest.approx(discount, rel=1e-5)
        assert batch.next_obs["state"][index][0] == steps.next_obs["state"][last, n, 0]
        np.testing.assert_array_equal(batch.action[index], steps.action[t, n])
        drawn.add(t)
    assert drawn == set(range(written - SLOTS, written - n_step + 1))
    assert steps.terminated.any() and steps.truncated.any()


def test_rows_of_a_dataset_are_drawn_uniformly_and_whole():
    data = dataset()
    batch = jax.device_get(UniformDataset().sample((), data, KEY, (50, 80), GAMMA))
    rows = np.rint(-1.0 - batch.obs["state"][..., 0]).astype(int)
    np.testing.assert_array_equal(batch.action, np.asarray(data.action)[rows])
    np.testing.assert_array_equal(batch.reward, np.asarray(data.reward)[rows])
    np.testing.assert_array_equal(batch.next_obs["state"], data.next_obs["state"][rows])
    ended = np.asarray(data.terminated)[rows]
    np.testing.assert_allclose(batch.discount, np.where(ended, 0.0, GAMMA), rtol=1e-6)
    assert 0 < ended.mean() < 1
    assert stats.chisquare(np.bincount(rows.ravel(), minlength=D)).pvalue > 1e-3


@pytest.mark.parametrize(("share", "rows"), [(0.5, 5), (0.25, 3), (0.0, 0), (1.0, 10), (0.04, 0)])
def test_a_mixed_batch_has_its_share_of_the_dataset_in_front(share, rows):
    store, steps = replay(21)
    sampler, data = Mixed(share, UniformReplay(3)), dataset()
    batch = jax.device_get(jax.jit(lambda: sampler.sample(store, data, KEY, (6, 10), GAMMA))())
    offline = batch.obs["state"][..., 0] < 0
    np.testing.assert_array_equal(offline, np.tile(np.arange(10) < rows, (6, 1)))
    for index in zip(*np.nonzero(~offline), strict=True):
        total, _, discount = transcribed(steps, *divmod(int(batch.obs["state"][index][0]), N), 3)
        assert batch.reward[index] == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert batch.discount[index] == pytest.approx(discount, rel=1e-5)
    online = batch.obs["state"][..., 0][~offline]
    assert offline.all() or len(np.unique(online)) > 5


@pytest.mark.parametrize("sampler", [UniformReplay(2), UniformDataset(), Mixed()])
def test_shards_draw_rows_of_their_own_from_a_common_key(sampler):
    store, data = replay(21)[0], dataset()

    def on_shard(_):
        with reducing_over("shard"):
            return sampler.sample(store, data, KEY, (64,), GAMMA).obs["state"]

    first, second = jax.jit(jax.vmap(on_shard, axis_name="shard"))(jnp.arange(2))
    assert np.mean(first != second) > 0.5
    for half in (slice(0, 32), slice(32, 64)):  # of the mixed one, both parts
        assert np.any(first[half] != second[half])


def test_what_samplers_refuse():
    with pytest.raises(UsageError, match="n_step is 0; it must be at least 1"):
        UniformReplay(0).check()
    with pytest.raises(UsageError, match="share is 1.5; it must be at least 0 and at most 1"):
        Mixed(1.5).check()
    with pytest.raises(UsageError, match="n_step is -1"):
        Mixed(online=UniformReplay(-1)).check()


def test_datasets_are_checked_and_have_a_checksum():
    data = dataset()
    data.check()
    assert data.size == D
    with pytest.raises(UsageError, match=r"obs.state has shape \(39, 1\).* reward \(40,\)"):
        data._replace(obs={"state": data.obs["state"][1:]}).check()
    with pytest.raises(UsageError, match="no transitions"):
        jax.tree.map(lambda x: x[:0], data).check()
    assert checksum(data) == checksum(jax.device_get(data)) and checksum(()) is None
    changed = data._replace(reward=data.reward.at[3].add(1e-3))
    reshaped = data._replace(action=data.action.reshape(D, 1, 2))
    assert len({checksum(x) for x in (data, changed, reshaped, dataset(seed=1))}) == 4
