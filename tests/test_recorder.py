"""Recorded datasets: whole episodes, unbiased by their length, and the same after round trips."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_formats import same

from jaxrl import SAC, Dataset, RunError, UsageError, VectorEnv
from jaxrl.data.dataset import checksum
from jaxrl.data.formats import load, metadata, reference
from jaxrl.data.replay import Replay, ReplayBuffer
from jaxrl.data.scores import Reference
from jaxrl.envs.vector import rescale
from jaxrl.record import Policy, from_replay, record, write_d4rl, write_minari
from jaxrl.record.recorder import _choose
from jaxrl.types import Box, Discrete, Spec, Step, Transition

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Walk:
    """Walk by the action; the reward is the action in the environment's units. 3 ends it."""

    keyed: bool = False  # observations in a dictionary
    discrete: bool = False
    breaks: bool = False  # with a reward that is not finite
    name: ClassVar[str] = "walk"
    cheap: ClassVar[bool] = True

    @property
    def spec(self):
        box = Box(-99.0, 99.0, (1,))
        obs = {"place": box, "clock": Box(0.0, 99.0, (2,))} if self.keyed else box
        return Spec(obs, Discrete(3) if self.discrete else Box([-1.0], [2.0], (1,)), max_steps=6)

    def observe(self, x):
        return {"place": x[:1], "clock": x[1:]} if self.keyed else x[:1]

    def reset(self, key):
        x = jnp.zeros(3).at[0].set(jax.random.uniform(key))
        return x, self.observe(x)

    def step(self, key, x, action):
        move = action.astype(jnp.float32) - 1.0 if self.discrete else action[0]
        x = x + jnp.stack([move, 1.0, 2.0])
        reward = jnp.where(self.breaks & (x[1] > 2.0), jnp.nan, move)
        return x, Step(self.observe(x), reward, x[0] >= 3.0, jnp.zeros((), bool), {})


class Fixed:
    """An agent that acts by a constant and by the number of its step, which it remembers."""

    learns_from = "batches"

    def bind(self, spec):
        return self

    def init_carry(self, key, n):
        return jnp.zeros((n, 1))

    def act(self, state, carry, obs, key, mode):
        return state + 0.1 * carry, carry + 1.0, {"extra": carry}


jax.tree_util.register_static(Fixed)


@pytest.fixture(scope="module")
def walks():
    """Random walks of 40 episodes, in 8 environments."""
    return record("uniform", VectorEnv(Walk(), 8), KEY, episodes=40)


def test_whole_episodes_are_recorded(walks):
    walks.check()
    walks.check_spec(Walk().spec)
    assert walks.num_episodes == 40 and walks.lengths().max() == 6
    ends = walks.end == np.arange(walks.size) + 1
    np.testing.assert_array_equal(walks.next_obs[:-1][~ends[:-1]], walks.obs[1:][~ends[:-1]])
    np.testing.assert_array_equal(walks.terminated, walks.next_obs[:, 0] >= 3.0)
    assert 0 < walks.terminated.sum() < 40
    # The agent's action, and the environment's reward for it.
    move = rescale(Walk().spec.action, walks.action)
    np.testing.assert_allclose(walks.reward, move[:, 0], atol=1e-6)
    np.testing.assert_allclose(walks.next_obs - walks.obs, move, atol=1e-5)
    assert walks.action.min() < -0.9 and walks.action.max() > 0.9
    assert isinstance(walks.obs, np.ndarray) and walks.extras == {}


def test_steps_are_reached_by_whole_episodes(walks):
    """Of the same key, the same episodes in the same order."""
    wanted = int(walks.lengths()[:21].sum()) - 1
    data = record("uniform", VectorEnv(Walk(), 8), KEY, steps=wanted)
    assert data.num_episodes == 21
    same(data, walks.filter(np.arange(40) < 21))


def test_the_order_of_episodes_does_not_prefer_short_ones():
    """First those that began first: a long one is waited for, whatever the others do meanwhile."""
    short, long = np.ones(6, bool), np.arange(6) == 5
    assert _choose([np.stack([short, long], axis=1)[:4]], 2, None) is None
    chosen = _choose([np.stack([short, long], axis=1)], 3, None)
    assert chosen == [(0, 0, 1), (1, 0, 6), (0, 1, 2)]
    halves = np.split(np.stack([short, long], axis=1), 2)
    assert _choose(halves, None, 7) == chosen[:2]


def test_an_agents_memory_and_clipping():
    """A memory restarts with the episode; actions out of bounds are recorded as they were taken."""
    state = jnp.full((1,), 0.85)
    data = record((Fixed(), state), Walk(), KEY, episodes=3, num_envs=2)
    steps = np.arange(data.size) - data.start
    np.testing.assert_allclose(data.action[:, 0], np.minimum(0.85 + 0.1 * steps, 1.0), atol=1e-6)


def test_a_policy_is_recorded_in_its_mode():
    agent = SAC(policy=dataclasses.replace(SAC().policy, hidden_dims=(8,))).bind(Walk().spec)
    state = jax.jit(agent.init)(KEY)
    policy = Policy(agent, state, Walk().spec, "greedy")
    data = record(policy, Walk(), KEY, episodes=4)
    action = rescale(Walk().spec.action, data.action)
    np.testing.assert_allclose(action, policy(data.obs), atol=1e-5)
    sampled = record((agent, state), Walk(), KEY, episodes=4, mode="sample")
    assert np.abs(rescale(Walk().spec.action, sampled.action) - policy(sampled.obs)).max() > 0.1
    with pytest.raises(UsageError, match="the policy is of an environment with other .*"):
        record(policy, Walk(keyed=True), KEY, episodes=1)


REFUSED = {
    "neither": ({}, "give either episodes or steps, .*"),
    "both": ({"episodes": 1, "steps": 1}, "give either episodes or steps, .*"),
    "none": ({"episodes": 0}, "episodes is 0; it must be at least 1"),
    "mode": ({"episodes": 1, "mode": "best"}, "mode is 'best'; .*"),
    "policy": ({"episodes": 1, "policy": 3}, "policy is a int; give a Policy of load_policy, .*"),
    "copies": (
        {"episodes": 1, "env": VectorEnv(Walk(), 2), "num_envs": 3},
        "num_envs is 3, and .*",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recorded_is_refused(name):
    options, message = REFUSED[name]
    given = {"policy": "uniform", "env": Walk(), "key": KEY} | options
    with pytest.raises(UsageError, match=message):
        record(given.pop("policy"), given.pop("env"), given.pop("key"), **given)


def test_physics_that_breaks_is_not_recorded():
    with pytest.raises(RunError, match="walk produced non-finite numbers while recording; .*"):
        record("uniform", VectorEnv(Walk(breaks=True), 2), KEY, episodes=4)


def test_a_replay_buffer_becomes_a_dataset():
    """Of each environment's rows, in the order of time, also behind the buffer's end."""
    slots, written, envs = 5, 7, 2
    t = np.arange(written)[:, None] + 100 * np.arange(envs)
    rows = [np.zeros((slots, envs), np.float32) for _ in range(2)]
    ended = np.zeros((slots, envs), bool)
    for step in range(written):
        rows[0][step % slots], rows[1][step % slots] = t[step], t[step] + 1
        ended[step % slots] = [step == 4, step == 6]
    obs, after = (x[..., None] for x in rows)
    none = np.zeros_like(ended)
    made = Transition(obs, 2.0 * obs, rows[0], after, ended, none, {})
    data = from_replay(Replay(ReplayBuffer(slots), made, written), Walk().spec)
    order = [2, 3, 4, 5, 6, 102, 103, 104, 105, 106]
    np.testing.assert_array_equal(data.obs[:, 0], order)
    np.testing.assert_array_equal(data.lengths(), [3, 2, 5])
    np.testing.assert_array_equal(np.flatnonzero(data.terminated), [2, 9])
    np.testing.assert_array_equal(np.flatnonzero(data.truncated), [4])
    assert data.action.max() == 1.0


# --- round trips --------------------------------------------------------------------------------

TWO = Reference(-3.0, 4.0, "measured over 100 episodes")


def even_bounds():
    """The spec of ``Walk`` with bounds that are powers of two, which cost no bit."""
    return dataclasses.replace(Walk().spec, action=Box([-2.0], [2.0], (1,)))


@pytest.mark.parametrize("options", [{}, {"keyed": True}, {"discrete": True}])
def test_minari_returns_what_was_written(tmp_path, walks, options):
    env = Walk(**options)
    data = record("uniform", VectorEnv(env, 8), KEY, episodes=12) if options else walks
    folder = write_minari(data, tmp_path / "walk" / "random-v3", env.spec, reference=TWO)
    back = load(tmp_path / "walk" / "random-v3")
    if not env.discrete:  # bounds of -1 and 2 round
        np.testing.assert_allclose(back.action, data.action, atol=2e-7)
        data = data._replace(action=back.action)
    same(back, data)
    found = metadata(folder)
    assert found["checksum"] == checksum(back) and found["dataset_id"] == "random-v3"
    assert found["max_steps"] == 6 and found["versions"]["jaxrl"] and "command" in found
    assert reference(folder) == TWO

    minari = pytest.importorskip("minari")
    theirs = minari.MinariDataset(folder)
    assert (theirs.total_episodes, theirs.total_steps) == (data.num_episodes, data.size)
    first = 0
    for episode in theirs.iterate_episodes():
        rows = slice(first, first + len(episode))
        for name in data.obs if env.keyed else [None]:
            obs, after, observed = data.obs, data.next_obs, episode.observations
            if name:
                obs, after, observed = obs[name], after[name], observed[name]
            np.testing.assert_array_equal(observed[:-1], obs[rows])
            np.testing.assert_array_equal(observed[1:], after[rows])
        action = data.action[rows] if env.discrete else rescale(env.spec.action, data.action[rows])
        np.testing.assert_allclose(episode.actions, action, atol=1e-6)
        assert all(theirs.action_space.contains(each) for each in episode.actions)
        np.testing.assert_array_equal(episode.rewards, data.reward[rows])
        np.testing.assert_array_equal(episode.terminations, data.terminated[rows])
        np.testing.assert_array_equal(episode.truncations, data.truncated[rows])
        first = rows.stop
    assert first == data.size


def test_even_bounds_cost_no_bit(tmp_path, walks):
    write_minari(walks, tmp_path / "even", even_bounds())
    same(load(tmp_path / "even"), walks)


def test_d4rls_layout_is_read_by_h5py_alone(tmp_path, walks):
    spec = even_bounds()
    path = write_d4rl(walks, tmp_path / "hopper-medium-v2.hdf5", spec, {"seed": 3}, reference=TWO)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["observations"], walks.obs)
        np.testing.assert_array_equal(file["actions"], 2.0 * walks.action)
        np.testing.assert_array_equal(file["rewards"], walks.reward)
        np.testing.assert_array_equal(file["terminals"], walks.terminated)
        np.testing.assert_array_equal(file["timeouts"], walks.truncated)
        np.testing.assert_array_equal(file["next_observations"], walks.next_obs)
        described = json.loads(file.attrs["jaxrl"])
    assert described["seed"] == 3 and described["checksum"] == checksum(walks)
    # Read as D4RL's own extraction does; but its constants are not for a file of ours.
    kept = ~walks.truncated
    kept[-1] = False
    back = load(path, action_space=spec.action)
    np.testing.assert_array_equal(back.obs, walks.obs[kept])
    np.testing.assert_array_equal(back.action, walks.action[kept])
    assert reference(path) == TWO
    other = write_d4rl(walks, tmp_path / "hopper-expert-v2.hdf5", spec)
    assert reference(other) is None


def small(**fields):
    obs = np.arange(4.0, dtype=np.float32)[:, None]
    ends = np.array([False, True, False, True])
    made = Dataset.of(obs, 0.1 * obs, obs[:, 0], obs + 1, ends, ~ends & False)
    return made._replace(**fields)


WRITES = {
    "another spec": (lambda p: write_minari(small(), p, Walk(True).spec), "obs is an array, .*"),
    "a break": (
        lambda p: write_minari(small(next_obs=np.zeros((4, 1), np.float32)), p, Walk().spec),
        "next_obs at row 0 is not obs at row 1 of the same episode; .*",
    ),
    "no JSON": (
        lambda p: write_minari(small(), p, Walk().spec, {"a": {1}}),
        "metadata are no JSON: .*",
    ),
    "a name": (
        lambda p: write_minari(small(), p, Walk().spec, {"total_steps": 3}),
        "metadata has 'total_steps', which the writer sets; leave it out",
    ),
    "NaN": (
        lambda p: write_minari(small(), p, Walk().spec, {"x": float("nan")}),
        "metadata are no JSON: .*",
    ),
    "a size": (
        lambda p: write_minari(small(), p, Walk().spec, {"dataset_size": 3}),
        "metadata has 'dataset_size', which the writer sets; leave it out",
    ),
    "a reference": (
        lambda p: write_minari(small(), p, Walk().spec, reference=Reference(2.0, 1.0, "mine")),
        "reference.expert is 1, and random 2; the expert's return must be greater",
    ),
    "an id": (
        lambda p: write_minari(small(), p, Walk().spec, {"dataset_id": "walk"}),
        "dataset_id is 'walk'; it must be like pendulum/medium-v0",
    ),
    "a dictionary": (
        lambda p: write_d4rl(
            small(**{k: {"place": x, "clock": np.repeat(x, 2, 1)}
                     for k, x in (("obs", small().obs), ("next_obs", small().next_obs))}),
            p, Walk(True).spec),
        "D4RL's layout has one array of observations; use write_minari",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name):
    act, message = WRITES[name]
    with pytest.raises(UsageError, match=message):
        act(tmp_path / "there")
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(tmp_path):
    for write in (write_minari, write_d4rl):
        write(small(), tmp_path / write.__name__, Walk().spec)
        with pytest.raises(UsageError, match="exists; give a .* that does not"):
            write(small(), tmp_path / write.__name__, Walk().spec)
    assert len(list(tmp_path.iterdir())) == 2
