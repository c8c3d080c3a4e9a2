"""Samplers: which rows they draw, how they sum rewards, and what shards have in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import UsageError
from jaxrl.data import (
    Dataset,
    Mixed,
    Pooled,
    ReplayBuffer,
    UniformDataset,
    UniformReplay,
    WeightedDataset,
    Windows,
    weighted,
)
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
    data = Dataset.of(
        obs={"state": obs},
        action=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_obs={"state": obs - 0.5},
        terminated=kind == 1,
        truncated=kind == 2,
    )
    return jax.tree.map(jnp.asarray, data)


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


@pytest.mark.parametrize("n_step", [2, 16])
def test_a_dataset_s_returns_over_several_steps_are_those_of_a_loop(n_step):
    """The last episode is cut by the end of the data, and nothing is read behind it."""
    data = dataset()._replace(extras={"row": jnp.arange(D)})
    sampler = UniformDataset(n_step)
    batch = jax.device_get(jax.jit(lambda: sampler.sample((), data, KEY, (600,), GAMMA))())
    steps = jax.tree.map(lambda x: np.asarray(x)[:, None], data)  # of one environment
    rows = np.rint(-1.0 - batch.obs["state"][..., 0]).astype(int)
    for index, row in enumerate(rows):
        total, last, discount = transcribed(steps, row, 0, n_step)
        assert batch.reward[index] == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert batch.discount[index] == pytest.approx(discount, rel=1e-5)
        assert batch.next_obs["state"][index][0] == steps.next_obs["state"][last, 0, 0]
        assert batch.extras["row"][index] == last
    assert set(rows) == set(range(D))


def test_windows_end_with_the_episode_and_begin_at_every_row():
    data = dataset()
    batch = jax.device_get(Windows(5).sample((), data, KEY, (30, 20), GAMMA))
    rows = np.rint(-1.0 - batch.obs["state"][..., 0]).astype(int)
    assert rows.shape == (30, 20, 5) and set(rows[..., 0].ravel()) == set(range(D))
    expected = np.minimum(rows[..., :1] + np.arange(5), np.asarray(data.end)[rows[..., :1]] - 1)
    np.testing.assert_array_equal(rows, expected)
    valid = batch.extras["valid"]
    np.testing.assert_array_equal(valid, rows == rows[..., :1] + np.arange(5))
    assert valid[..., 0].all() and 0.02 < valid[..., 4].mean() < 0.5
    np.testing.assert_array_equal(batch.action, np.asarray(data.action)[rows])


def test_weights_are_those_of_the_papers_formulae():
    """Rows of episodes are drawn by ``exp(scaled score / temperature)``: RW and AW."""
    rng = np.random.default_rng(1)
    lengths = np.array([1, 4, 2, 8, 5])
    ends = np.isin(np.arange(20), lengths.cumsum() - 1)
    obs = rng.normal(size=(20, 3)).astype(np.float32)
    reward = rng.normal(size=20).astype(np.float32)
    data = Dataset.of(obs, obs, reward, obs, ends, np.zeros(20, bool))
    returns = np.array([x.sum() for x in np.split(reward.astype(float), lengths.cumsum()[:-1])])
    first = obs[lengths.cumsum() - lengths].astype(float)
    # Four coefficients cannot fit five returns.
    design = np.c_[first, np.ones(5)]
    advantage = returns - design @ np.linalg.pinv(design) @ returns
    for by, score in (("return", returns), ("advantage", advantage)):
        scaled = (score - score.min()) / (score.max() - score.min())
        expected = np.repeat(np.exp(scaled / 0.5), lengths)
        expected /= expected.sum()
        made = jax.tree.map(jnp.asarray, weighted(data, by, 0.5))
        batch = jax.device_get(WeightedDataset().sample((), made, KEY, (40_000,), GAMMA))
        drawn = np.bincount([np.flatnonzero(reward == r)[0] for r in batch.reward], minlength=20)
        assert stats.chisquare(drawn, expected * 40_000).pvalue > 1e-3
        assert stats.chisquare(drawn, np.full(20, 2000)).pvalue < 1e-9


def test_weights_of_equal_returns_or_at_high_temperature_are_uniform():
    alike = dataset()._replace(reward=jnp.full(D, 0.1))
    ends = jnp.arange(D) % 4 == 3
    alike = Dataset.of(*alike[:4], ends, ends & False)
    for data in (weighted(alike, "return", 0.01), weighted(dataset(), "advantage", 1e9)):
        np.testing.assert_allclose(np.diff(data.cumulative.astype(float)), 2**32 / D, rtol=1e-5)
    with pytest.raises(UsageError, match="needs a dataset with weights; give weighted"):
        WeightedDataset().sample((), dataset(), KEY, (4,), GAMMA)
    with pytest.raises(UsageError, match="by is 'returns'; did you mean return"):
        weighted(alike, "returns")
    with pytest.raises(UsageError, match="temperature is 0; it must be more than 0"):
        weighted(alike, "return", 0.0)


def test_the_pool_of_dataset_and_buffer_is_drawn_from_uniformly():
    store, _ = replay(10)
    batch = Pooled().sample(store, dataset(), KEY, (70_000,), GAMMA)
    place = np.asarray(batch.obs["state"][..., 0])
    drawn = np.bincount(np.where(place < 0, -1 - place, D + place).astype(int))
    assert len(drawn) == D + 10 * N
    assert stats.chisquare(drawn).pvalue > 1e-3


def test_shards_draw_from_the_pool_as_one_device_does():
    """Every shard has the whole dataset, and its own environments' part of the buffer."""
    store, data = replay(10)[0], dataset()

    def on_shard(rows):
        with reducing_over("shard"):
            part = Replay(store.buffer, rows, store.written)
            return Pooled().sample(part, data, KEY, (20_000,), GAMMA).obs["state"][:, 0] < 0

    halves = jax.tree.map(lambda x: jnp.stack(jnp.split(x[:, :2], 2, axis=1)), store.rows)
    offline = jax.jit(jax.vmap(on_shard, axis_name="shard"))(halves)
    assert offline.shape == (2, 20_000)
    share = data.size / (data.size + 10 * 2)
    assert abs(offline.mean() - share) < 4 * np.sqrt(share * (1 - share) / offline.size)


@pytest.mark.parametrize("n_step", [1, 3])
def test_returns_to_go_of_a_dataset_are_those_of_the_first_step(n_step):
    data = dataset()._replace(extras={"number": np.arange(D)}).with_return_to_go(GAMMA)
    numbered = data._replace(extras=data.extras | {"first_row": np.arange(D)})
    extras = UniformDataset(n_step).sample((), numbered, KEY, (500,), GAMMA).extras
    row, last = np.asarray(extras["first_row"]), np.asarray(extras["number"])
    np.testing.assert_array_equal(last, np.minimum(row + n_step - 1, np.asarray(data.end)[row] - 1))
    np.testing.assert_array_equal(extras["return_to_go"], data.extras["return_to_go"][row])


def to_go(steps, t, n):
    """The discounted rewards to the end of the episode, -inf where it has not ended."""
    total, factor = 0.0, 1.0
    for k in range(t, len(steps.reward)):
        total, factor = total + factor * steps.reward[k, n], factor * GAMMA
        if steps.terminated[k, n] or steps.truncated[k, n]:
            return total
    return -np.inf


@pytest.mark.parametrize("n_step", [1, 3])
def test_online_rows_have_the_extras_of_the_dataset(n_step):
    """The next action is that of the step after the last one, unless the episode or time ended.

    The return-to-go is the first step's, since it bounds values at the first observation.
    """
    written = 21
    store, steps = replay(written)
    data = dataset().with_next_action().with_return_to_go(GAMMA)
    sampler = Mixed(0.5, UniformReplay(n_step))
    batch = jax.device_get(jax.jit(lambda: sampler.sample(store, data, KEY, (400,), GAMMA))())
    assert set(batch.extras) == {"next_action", "has_next_action", "return_to_go"}
    seen = set()
    for index in range(200, 400):
        t, n = divmod(int(batch.obs["state"][index][0]), N)
        _, last, _ = transcribed(steps, t, n, n_step)
        ended = steps.terminated[last, n] or steps.truncated[last, n] or last == written - 1
        assert batch.extras["has_next_action"][index] == (not ended)
        expected = to_go(steps, t, n)
        np.testing.assert_allclose(batch.extras["return_to_go"][index], expected, rtol=1e-5)
        if not ended:
            following = steps.action[last + 1, n]
            np.testing.assert_array_equal(batch.extras["next_action"][index], following)
        seen.add((bool(ended), last == written - 1))
    assert len(seen) == 3
    unknown = data._replace(extras={"colour": jnp.zeros(D)})
    with pytest.raises(UsageError, match="'colour', which a replay buffer does not hold; it has n"):
        sampler.sample(store, unknown, KEY, (4,), GAMMA)


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


@pytest.mark.parametrize("sampler", [UniformReplay(2), UniformDataset(), Mixed(), Pooled()])
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
