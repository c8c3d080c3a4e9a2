"""The replay buffer and its sampler against a plain deque."""

from __future__ import annotations

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import UsageError, memory
from jaxrl.data import ReplayBuffer, UniformReplay, replay
from jaxrl.data.replay import Replay
from jaxrl.types import Transition

N, SLOTS, T = 3, 12, 2
GAMMA = 0.9


def transitions(step, ends=0.3):
    """``T`` steps of ``N`` environments; observations tell which step and environment it is."""
    rng = np.random.default_rng(step)
    t = np.arange(step * T, (step + 1) * T)[:, None]
    obs = np.stack(np.broadcast_arrays(t, np.arange(N)), axis=-1).astype(np.float32)
    kind = rng.choice(3, (T, N), p=[1 - ends, ends / 2, ends / 2])
    return Transition(
        obs={"state": obs, "privileged_state": 0.5 * obs[..., :1]},
        action=rng.integers(0, 5, (T, N)),
        reward=rng.normal(size=(T, N)).astype(np.float32),
        next_obs={"state": obs + [1, 0], "privileged_state": 0.5 * obs[..., :1] + 0.5},
        terminated=kind == 1,
        truncated=kind == 2,
        extras={"dropped": obs},
    )


def filled(buffer, writes):
    """The buffer after so many writes, and each environment's rows in a deque as long."""
    example = jax.tree.map(lambda x: x[0], transitions(0))
    rows = buffer.empty(example)
    write = jax.jit(buffer.write)
    held = [deque(maxlen=buffer.slots) for _ in range(N)]
    for i in range(writes):
        new = transitions(i)
        rows = write(rows, new, jnp.int32(i * T))
        for t in range(T):
            for n in range(N):
                held[n].append(jax.tree.map(lambda x, t=t, n=n: x[t, n], new))
    return rows, held


def expected(held, n_step):
    """Every transition that can be drawn, by the step and environment where it begins."""
    found = {}
    for n, rows in enumerate(held):
        rows = list(rows)
        for i in range(len(rows) - n_step + 1):
            total, row = 0.0, rows[i]
            for k in range(n_step):
                total += GAMMA**k * rows[i + k].reward
                row = rows[i + k]
                if row.terminated or row.truncated:
                    break
            first = rows[i]
            found[int(first.obs["state"][0]), n] = (first, total, row, k + 1)
    return found


def sampled(buffer, rows, writes, n_step, key, shape):
    """A batch ``[*shape]`` as numpy arrays."""

    def sample(rows, written):
        store = Replay(buffer, rows, written)
        return UniformReplay(n_step).sample(store, (), key, shape, GAMMA)

    return jax.device_get(jax.jit(sample)(rows, jnp.int32(writes * T)))


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("writes", [2, 5, 6, 7, 17])
def test_what_is_drawn_is_what_a_deque_holds(n_step, writes):
    buffer = ReplayBuffer(SLOTS)
    rows, held = filled(buffer, writes)
    batch = sampled(buffer, rows, writes, n_step, jax.random.key(writes), (4, 500))
    batch = jax.tree.map(lambda x: x.reshape(2000, *x.shape[2:]), batch)
    known = expected(held, n_step)
    drawn = {}
    for i in range(2000):
        row = jax.tree.map(lambda x, i=i: x[i], batch)
        place = int(row.obs["state"][0]), int(row.obs["state"][1])
        first, total, last, steps = known[place]
        drawn[place] = drawn.get(place, 0) + 1
        np.testing.assert_array_equal(row.obs["privileged_state"], first.obs["privileged_state"])
        np.testing.assert_array_equal(row.action, first.action)
        np.testing.assert_allclose(row.reward, total, rtol=1e-5)
        np.testing.assert_array_equal(row.next_obs["state"], last.next_obs["state"])
        # A termination has nothing behind it; from a time limit on, the value stands in.
        discount = 0.0 if last.terminated else GAMMA**steps
        assert row.discount == pytest.approx(discount, rel=1e-6)
    # All of them, about equally often: 5 standard deviations of a binomial.
    mean = 2000 / len(known)
    assert drawn.keys() == known.keys()
    assert all(abs(count - mean) < 5 * np.sqrt(mean) for count in drawn.values())


def test_members_share_the_place_of_writing():
    """Under vmap a write stays one copy in place: no scatter, and no index of each member's own."""
    buffer = ReplayBuffer(SLOTS)
    example = jax.tree.map(lambda x: x[0], transitions(0))
    several = jax.tree.map(lambda x: jnp.stack([x, x]), buffer.empty(example))
    first = transitions(0)
    second = first._replace(reward=2 * first.reward)
    new = jax.tree.map(lambda *x: jnp.stack(x), first, second)
    write = jax.jit(jax.vmap(buffer.write, (0, 0, None)))
    after = write(several, new, jnp.int32(4))
    np.testing.assert_array_equal(after.reward[0, 4:6], first.reward)
    np.testing.assert_array_equal(after.reward[1], 2 * after.reward[0])
    program = write.lower(several, new, jnp.int32(4)).compile().as_text()
    assert "dynamic-update-slice" in program and "scatter(" not in program


def test_half_precision_takes_less_and_returns_floats():
    example = jax.tree.map(lambda x: x[0], transitions(0))
    full, half = ReplayBuffer(SLOTS), ReplayBuffer(SLOTS, precision="half")
    rows, _ = filled(half, 3)
    assert rows.obs["state"].dtype.itemsize == 2 and rows.reward.dtype == jnp.float32
    whole, _ = filled(full, 3)
    batch, exact = (
        sampled(buffer, rows, 3, 2, jax.random.key(0), (50,))
        for buffer, rows in ((half, rows), (full, whole))
    )
    assert np.any(batch.obs["state"] != 0) and batch.obs["state"].dtype == np.float32
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(exact), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2**-8)
    floats = 2 * 3  # of obs and next_obs
    assert full.nbytes(example) - half.nbytes(example) == 2 * floats * SLOTS * N
    held = jax.tree.leaves(full.empty(example))
    assert full.nbytes(example) == sum(x.nbytes for x in held)


def test_half_precision_is_refused_where_bits_would_be_mistaken():
    """Stored in 16 bits are floats alone; integers of that size could not be told from them."""
    example = jax.tree.map(lambda x: x[0], transitions(0))
    ticks = {"state": jnp.zeros((N, 1), jnp.uint16)}
    integers = example._replace(obs=ticks, next_obs=ticks)
    assert ReplayBuffer(SLOTS).empty(integers).obs["state"].dtype == jnp.uint16
    half = ReplayBuffer(SLOTS, precision="half")
    for make in (half.empty, half.nbytes):
        with pytest.raises(UsageError, match="precision is 'half', .*uint16 .*; give full"):
            make(integers)


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**30)
    replay.check_memory(int(0.8 * 2**30), 1000)
    with pytest.raises(UsageError, match="1000, which needs 0.90 GiB .*; 888 fits"):
        replay.check_memory(int(0.9 * 2**30), 1000)
    with pytest.raises(UsageError) as error:
        replay.check_memory(2**32, 1000)
    assert str(error.value) == (
        "buffer_size is 1000, which needs 4.00 GiB for all members, and 0.80 of 1.00 free GiB may "
        "be taken; 199 fits, and precision 'half' takes less"
    )
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    replay.check_memory(2**60, 1000)
    assert memory.free_memory() is None


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (("max", 0, 0), None, None),
        ((1000, 400, 0), None, 600),
        ((1000, 400, 150), ("max", 300, 0), 750),  # what files hold is given up for others
        ((1000, 400, 0), (500, 300, 0), 200),  # the tightest counts
        ((1000, 400, 0), (500, 600, 0), 0),
    ],
)
def test_limits_of_containers_are_free_memory(outer, inner, expected, tmp_path):
    folders = [tmp_path, tmp_path / "job"]
    folders[1].mkdir()
    for folder, sizes in zip(folders, (outer, inner), strict=True):
        if sizes is not None:
            limit, used, files = sizes
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")
    (tmp_path / "self").write_text("0::/job\n")
    assert memory.free_of_group(tmp_path, str(tmp_path / "self")) == expected
    assert memory.free_of_group(tmp_path / "none", str(tmp_path / "absent")) is None
