"""Chunks of actions and histories of observations: windows, masks, queues, and the environment."""

from __future__ import annotations

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits

from jaxrl import (
    BC,
    IQL,
    TD3BC,
    ChunkActions,
    Chunks,
    NormalizeObs,
    Offline,
    UsageError,
    VectorEnv,
    make,
)
from jaxrl.agents import protocol
from jaxrl.chunked import chunked
from jaxrl.data import Dataset, Hindsight, UniformDataset, WeightedDataset, Windows, weighted
from jaxrl.data.dataset import Split
from jaxrl.envs import make_recorded
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.flow import Flow
from jaxrl.nn.policies import Categorical, Deterministic, Gaussian, TanhGaussian
from jaxrl.training.evaluate import evaluate
from jaxrl.training.rollout import exploring, play, rollout
from jaxrl.types import Box, Spec, Step

KEY = jax.random.key(0)
HORIZON, EXECUTE, SEEN = 4, 3, 2
LIMIT = 10  # no multiple of EXECUTE


@dataclasses.dataclass(frozen=True)
class Drift:
    """A point on a line, pushed by actions in [-1, 2]; the episode ends where it leaves [-1, 1]."""

    name: str = "test/drift"
    cheap: bool = True

    @property
    def spec(self):
        return Spec(Box(-np.inf, np.inf, (2,)), Box(-1.0, 2.0, (1,)), LIMIT)

    def reset(self, key):
        state = jax.random.uniform(key, (2,), minval=-0.8, maxval=0.8)
        return state, state

    def step(self, key, state, action):
        speed = 0.5 * state[1] + 0.2 * (action[0] - 0.5)
        state = jnp.stack([state[0] + speed, speed])
        out = jnp.abs(state[0]) > 1.0
        return state, Step(state, state[0] + 10.0 * action[0] ** 2, out, out & ~out, {})


DRIFT = Drift()
SMALL = {"hidden_dims": (8,)}
AGENT = Chunks(BC(policy=Deterministic(**SMALL)), HORIZON, EXECUTE, SEEN).bind(DRIFT.spec)


@pytest.fixture(scope="module")
def state():
    """Of a policy whose actions are not small."""
    return jax.tree.map(lambda x: 2.0 * x, AGENT.init(KEY))


def dataset(rows=60, seed=0):
    """Observations tell the row; episodes of 1 to 9 steps."""
    rng = np.random.default_rng(seed)
    obs = np.float32(np.arange(rows)[:, None] + [0.0, 0.25])
    kind = rng.choice(3, rows, p=[0.7, 0.2, 0.1])
    action = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    reward = rng.normal(size=rows).astype(np.float32)
    data = Dataset.of(obs, action, reward, obs + 0.5, kind == 1, kind == 2)
    return jax.tree.map(jnp.asarray, data)


def windows(rows=12, **options):
    sampler = Windows(HORIZON, SEEN, **options)
    return jax.jit(lambda data: sampler.sample((), data, KEY, (rows,), 0.9))(dataset())


# --- windows and masks --------------------------------------------------------------------------


def test_windows_have_the_observations_before_them_and_those_after():
    """Before an episode's start its first one is repeated; actions are the window's."""
    batch, data = jax.device_get((windows(300), dataset()))
    row = np.floor(batch.obs[:, -1, 0]).astype(int)
    assert set(row) == set(range(60))
    start, end = np.asarray(data.start)[row], np.asarray(data.end)[row]
    for k in range(SEEN):
        back = row - (SEEN - 1 - k)
        np.testing.assert_array_equal(batch.obs[:, k], data.obs[np.maximum(back, start)])
        np.testing.assert_array_equal(batch.extras["observed"][:, k], back >= start)
    final = np.minimum(row + HORIZON, end) - 1
    np.testing.assert_array_equal(batch.next_obs[:, -1], data.next_obs[final])
    np.testing.assert_array_equal(batch.next_obs[:, 0], data.obs[np.maximum(final, start)])
    steps = row[:, None] + np.arange(HORIZON)
    np.testing.assert_array_equal(batch.extras["valid"], steps < end[:, None])
    rows = np.minimum(steps, end[:, None] - 1)
    np.testing.assert_array_equal(batch.action, np.asarray(data.action)[rows])
    assert not batch.extras["valid"].all() and not batch.extras["observed"].all()


FAMILIES = {
    "gaussian": Gaussian(**SMALL),
    "tanh": TanhGaussian(**SMALL),
    "deterministic": Deterministic(**SMALL),
    "diffusion": Diffusion(**SMALL, time_features=4),
    "flow": Flow(**SMALL, noise_samples=2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_behind_an_episode_s_end_are_not_learnt_from(family):
    """Whatever they hold, loss and gradient are the same; without any, it is the plain loss."""
    agent = Chunks(BC(policy=FAMILIES[family]), HORIZON, EXECUTE, SEEN).bind(DRIFT.spec)
    params = agent.init(KEY).policy.params
    batch = windows()
    valid = batch.extras["valid"]
    assert 0.2 < valid.mean() < 0.9

    def loss(params, batch):
        return agent.agent.policy_loss(params, agent.seen(batch), KEY)[0]

    both = jax.jit(jax.value_and_grad(loss))
    expected = both(params, batch)

    def changed(where):
        action = jnp.where(where[..., None], 0.37, batch.action)
        reward = jnp.where(where, 9.0, batch.reward)
        return both(params, batch._replace(action=action, reward=reward))

    assert_same_bits(changed(~valid), expected)
    assert not np.allclose(changed(valid)[0], expected[0], rtol=1e-3)

    whole = batch._replace(extras=batch.extras | {"valid": jnp.ones_like(valid)})
    seen = agent.seen(whole)
    plain = jnp.mean(agent.agent.policy.fit_loss(params, seen.obs, seen.action, KEY))
    assert both(params, whole)[0] == pytest.approx(float(plain), rel=1e-5)
    np.testing.assert_array_equal(seen.action, batch.action.reshape(12, HORIZON))
    assert seen.obs.shape == (12, SEEN, 2)


def test_a_chunk_is_one_transition_of_the_steps_there_are():
    batch = windows()
    seen = jax.device_get(AGENT.seen(batch))
    for i, valid in enumerate(batch.extras["valid"]):
        total, discount = 0.0, 1.0
        for k in range(int(valid.sum())):
            total += discount * float(batch.reward[i, k])
            discount *= float(batch.discount[i, k])
        assert seen.reward[i] == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert seen.discount[i] == pytest.approx(discount, rel=1e-5)
    assert 0 < np.mean(seen.discount == 0) < 1
    np.testing.assert_array_equal(seen.next_obs, batch.next_obs)


def test_training_on_windows_and_evaluating_with_queues():
    """A clone of an action that depends on the observation before the last one."""
    rng = np.random.default_rng(0)
    obs = np.float32(rng.uniform(-0.9, 0.9, (400, 2)))
    before = np.roll(obs[:, :1], 1, axis=0)
    ends = np.arange(400) % 20 == 19
    before[::20] = obs[::20, :1]
    data = Dataset.of(obs, before, np.zeros(400, np.float32), obs, ends, ends & False)
    agent = Chunks(BC(policy=Deterministic(hidden_dims=(32,)), learning_rate=1e-2), 2, None, 2)
    env, sampler = VectorEnv(DRIFT, 2), Windows(2, 2)
    trainer = Offline(NormalizeObs(agent), env, batch_size=64, num_updates=50, sampler=sampler)
    ts, metrics = jax.jit(trainer.train, static_argnums=1)(KEY, 400, data)
    # The actions have a variance of 0.27 each, and nothing but the history tells the first.
    assert metrics["policy_loss"][-1] < 0.02
    assert trainer.evaluate(ts, KEY, 4).finite.all()
    ahead = dataclasses.replace(trainer, sampler=UniformDataset())
    with pytest.raises(UsageError, match="BC reads 'valid' from its batches, and UniformDataset g"):
        ahead.train(KEY, 50, data)
    single = Offline(TD3BC(), env, sampler=Windows(3))
    with pytest.raises(UsageError, match=r"Windows draws windows of steps, and TD3BC learns from"):
        single.check_learning(data)
    other = dataclasses.replace(trainer, sampler=Windows(3, 2))
    with pytest.raises(UsageError, match=r"have 3 actions and 2 observations.*=Windows\(2, 2\)"):
        other.train(KEY, 50, data)


# --- acting -------------------------------------------------------------------------------------


def test_queues_and_histories_restart_with_the_episode(state):
    """Actions of a rollout are those of the chunk that was made at its episode's last refill."""
    steps, num_envs = 14, 6
    env = VectorEnv(DRIFT, num_envs)
    start = env.reset(KEY)
    carry = protocol.init_carry(NormalizeObs(AGENT), KEY, num_envs)  # found inside of wrappers
    run = jax.jit(lambda carry: rollout(AGENT, state, env, start, carry, KEY, steps)[2])
    rows = run(carry)
    ended = np.asarray(rows.terminated | rows.truncated)
    assert rows.terminated.any() and rows.truncated.any()
    mode = jax.jit(AGENT.agent.policy.mode)
    for n in range(num_envs):
        age = 0
        for t in range(steps):
            if age % EXECUTE == 0:
                last = [rows.obs[max(t - k, t - age), n] for k in reversed(range(SEEN))]
                chunk = mode(state.policy.params, jnp.stack(last)[None])[0]
            np.testing.assert_allclose(rows.action[t, n, 0], chunk[age % EXECUTE], atol=1e-5)
            age = 0 if ended[t, n] else age + 1


@pytest.mark.exact
def test_a_run_goes_on_in_the_middle_of_a_chunk(state):
    env = VectorEnv(DRIFT, 3)
    act = exploring(AGENT, state)

    @jax.jit
    def once(running, key):
        running = play(act, AGENT, env, *running, key, 1, ())
        return running[:2], running[2]

    keys = jax.random.split(KEY, 7)
    running = env.reset(KEY), protocol.init_carry(AGENT, KEY, 3)
    rows = []
    for t, key in enumerate(keys):
        if t == 4:
            saved = pickle.dumps(jax.device_get(running))
            assert (np.asarray(running[1].left) % EXECUTE).any()
        running, row = once(running, key)
        rows.append(row)
    again = pickle.loads(saved)
    for key, row in zip(keys[4:], rows[4:], strict=True):
        again, found = once(again, key)
        assert_same_bits(found, row)
    assert_same_bits(again, running)


@pytest.mark.parametrize("sizes", [(HORIZON, EXECUTE, SEEN), (4, 4, 1)])
def test_queues_and_chunked_environments_act_alike(sizes):
    """Equal returns from equal starts; episodes end inside of chunks, and at the time limit."""
    agent = Chunks(BC(policy=Deterministic(**SMALL)), *sizes).bind(DRIFT.spec)
    state = jax.tree.map(lambda x: 2.0 * x, agent.init(KEY))
    horizon, execute, seen = sizes
    env = ChunkActions(DRIFT, execute, horizon, seen)
    assert env.spec == dataclasses.replace(
        chunked(DRIFT.spec, horizon, seen), max_steps=-(-LIMIT // execute)
    )
    keys = jax.random.split(KEY, 24)
    alone = jax.jit(lambda: evaluate(agent, state, DRIFT, keys))()
    inner = agent.agent.bind(env.spec)
    together = jax.jit(lambda: evaluate(inner, state, env, keys))()
    np.testing.assert_allclose(alone.returns, together.returns, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(-(-alone.lengths // execute), together.lengths)
    lengths = np.asarray(alone.lengths)
    assert lengths.max() == LIMIT and len(np.unique(lengths)) > 3


def test_a_policy_that_plays_one_action_at_a_time_has_no_memory():
    agent = Chunks(BC(policy=Deterministic(**SMALL)), HORIZON, 1).bind(DRIFT.spec)
    state, obs = agent.init(KEY), jnp.ones((3, 2))
    carry = agent.init_carry(KEY, 3)
    assert not jax.tree.leaves(carry)
    action, carry, _ = agent.act(state, carry, obs, KEY, "greedy")
    expected = agent.agent.policy.mode(state.policy.params, obs)[:, :1]
    np.testing.assert_allclose(action, expected, rtol=1e-5)
    assert not jax.tree.leaves(carry)


# --- the environment ----------------------------------------------------------------------------


def test_a_chunk_stops_where_its_episode_ends():
    """Rewards are discounted, and what follows an end or the time limit is not played."""
    env = ChunkActions(DRIFT, 3, obs_horizon=2, gamma=0.5)
    first, obs = env.reset(KEY)
    np.testing.assert_array_equal(obs[0], obs[1])
    step = jax.jit(env.step)
    actions = jnp.array([0.5, 0.6, 0.4])
    state = first._replace(inner=jnp.array([0.2, 0.0]))
    after, out = step(KEY, state, actions)
    inner, total, seen = state.inner, 0.0, []
    for k, action in enumerate(actions):
        inner, one = DRIFT.step(KEY, inner, action[None])
        total += 0.5**k * one.reward
        seen.append(one.obs)
    assert out.reward == pytest.approx(float(total), rel=1e-5)
    np.testing.assert_allclose(out.obs, jnp.stack(seen[1:]), rtol=1e-5)
    assert (int(after.steps), int(out.info["played"])) == (3, 3)
    assert not out.terminated and not out.truncated

    outside, out = step(KEY, state._replace(inner=jnp.array([0.9, 0.0])), jnp.array([0.5, 2, 9]))
    assert out.terminated and not out.truncated and out.info["played"] == 2
    assert float(outside.inner[0]) == pytest.approx(0.9 + 0.3)
    assert out.reward == pytest.approx(0.9 + 2.5 + 0.5 * (1.2 + 40.0))

    late, out = step(KEY, state._replace(steps=jnp.int32(9)), actions)
    assert out.truncated and out.info["played"] == 1 and late.steps == LIMIT
    assert out.reward == pytest.approx(0.2 + 2.5)


def test_its_vector_truncates_where_the_environment_inside_would():
    env = VectorEnv(ChunkActions(DRIFT, 4), 2)
    state = env.reset(KEY)
    state = state._replace(inner=state.inner._replace(inner=jnp.zeros((2, 2))))
    step, still = jax.jit(env.step), jnp.zeros((2, 4))
    for expected in (4, 4, 2):
        state, out = step(KEY, state, still)
        np.testing.assert_array_equal(out.info["played"], [expected] * 2)
    assert out.truncated.all() and (out.info["episode_length"] == 3).all()
    np.testing.assert_allclose(out.info["episode_return"], [25.0] * 2, rtol=1e-5)  # ten of 2.5
    assert (state.inner.steps == 0).all()
    assert VectorEnv(ChunkActions(DRIFT, 4), 2, max_steps=2).spec.max_steps == 2


def test_chunked_environments_have_names_and_records_and_pictures():
    env = make("maze/Stitch-v0", anywhere=True, execute=4, obs_horizon=2)
    assert isinstance(env, ChunkActions) and env.name == "maze/Stitch-v0"
    again = make_recorded(env.name, env.options)
    assert again == env and again.options == env.options
    assert env.spec.max_steps == 38 and env.spec.action.shape == (8,)
    state, _ = env.reset(KEY)
    assert env.picture(state).shape == (192, 288, 3)
    assert not hasattr(env, "mj_model") and env.cheap and not env.threaded


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_it", "line"),
    [
        (lambda: Chunks(IQL()).bind(DRIFT.spec), "which IQL does not; give another, such as BC"),
        (lambda: Chunks(BC(), 2, 3).bind(DRIFT.spec), "execute is 3, and horizon 2; give at most"),
        (
            lambda: Chunks(NormalizeObs(BC())).bind(DRIFT.spec),
            r"is a NormalizeObs; wrap it in turn, as NormalizeObs\(Chunks\(agent\)\)",
        ),
        (
            lambda: Chunks(BC(policy=Categorical())).bind(make("gymnax/CartPole-v1").spec),
            "chunks are of continuous actions that are vectors, and these have 2 choices; leave",
        ),
        (
            lambda: ChunkActions(make("gymnax/CartPole-v1"), 2),
            "chunks are of continuous actions that are vectors, and these have 2 choices",
        ),
        (lambda: ChunkActions(DRIFT, 0), "execute is 0; it must be at least 1"),
        (
            lambda: VectorEnv(ChunkActions(DRIFT, 4), 2, max_steps=9),
            "max_steps is 9, and the environment ends its episodes after 3 chunks; give at most",
        ),
        (lambda: ChunkActions(DRIFT, 3, 2), "execute is 3, and horizon 2; give at most 2"),
        (lambda: ChunkActions(DRIFT, 2, gamma=1.5), "gamma is 1.5; it must be"),
        (lambda: Windows(2, 0).check(), "obs_horizon is 0; it must be at least 1"),
        (lambda: Windows(2, first=UniformDataset(3)).check(), "n_step is 3, and windows keep ev"),
    ],
)
def test_what_cannot_work_is_one_line(make_it, line):
    with pytest.raises(UsageError, match=line) as error:
        make_it()
    assert "\n" not in str(error.value)


def test_windows_are_validated_on_too():
    """Of held-out episodes, every window as likely, whatever weights the others are drawn by."""
    sampler = Windows(HORIZON, SEEN, WeightedDataset())
    assert sampler.uniform() == Windows(HORIZON, SEEN)
    assert Hindsight(sampler, 3).uniform() == Hindsight(Windows(HORIZON, SEEN), 3)
    trainer = Offline(AGENT, DRIFT.spec, batch_size=8, num_updates=2, sampler=sampler)
    data = Split(weighted(dataset(), "return"), dataset(seed=1))
    _, metrics = jax.eval_shape(lambda data: trainer.train(KEY, 2, data), data)
    assert metrics["validation_loss"].shape == (1,)
