"""Goals: hindsight in datasets, mazes with several goals, and guidance towards them."""

from __future__ import annotations

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import BC, IQL, ScaleReward, UsageError, make
from jaxrl.data import Dataset, Hindsight, UniformDataset, Windows, with_goals
from jaxrl.envs.contract import check_contract
from jaxrl.nn.edm import EDM
from jaxrl.nn.encoders import Flatten
from jaxrl.training.sampling import sample
from jaxrl.types import Batch

KEY = jax.random.key(0)
LENGTHS = (1, 4, 7, 12)
ENV = make("maze/Goals-v0")
POLICY = EDM(
    hidden_dims=(8,), time_features=4, encoder=Flatten(("state", "goal")), guided_by=("goal",)
)


def dataset():
    """Observations are the numbers of rows."""
    rows = sum(LENGTHS)
    obs = np.arange(rows, dtype=np.float32)[:, None]
    ends = np.isin(np.arange(rows), np.cumsum(LENGTHS) - 1)
    action = np.zeros((rows, 2), np.float32)
    return Dataset.of(obs, action, obs[:, 0], obs + 0.5, ends, ends & False)


def test_goals_of_several_steps_are_later_than_the_first():
    """They may lie within the steps."""
    data = jax.tree.map(jnp.asarray, with_goals(dataset()))
    batch = Hindsight(UniformDataset(3)).sample((), data, KEY, (2_000,), 0.9)
    row, goal = (np.asarray(batch.obs[name][..., 0], int) for name in ("state", "goal"))
    behind = np.asarray(data.end)[row] - 1 - row
    assert set(goal[behind > 2] - row[behind > 2]) >= {1, 2, 3}
    np.testing.assert_array_equal(goal[behind == 0], row[behind == 0])


def test_only_agents_that_imitate_learn_from_other_goals():
    """Rewards are those of the dataset's own goals."""
    data = jax.tree.map(jnp.asarray, with_goals(dataset()))
    assert sample(BC(), Hindsight(), (), data, KEY, (4,)).obs["goal"].shape == (4, 1)
    line = "Hindsight changes goals but not rewards, and IQL learns from rewards; give Uniform"
    with pytest.raises(UsageError, match=line):
        sample(ScaleReward(IQL()), Hindsight(), (), data, KEY, (4,))


@pytest.mark.parametrize("horizon", [None, 3])
def test_goals_are_later_states_of_the_episode_and_all_as_likely(horizon):
    data = jax.tree.map(jnp.asarray, with_goals(dataset()))
    sampler = Hindsight(goal_horizon=horizon)
    batch = jax.jit(lambda data: sampler.sample((), data, KEY, (30, 1_000), 0.9))(data)
    row, goal = (np.asarray(batch.obs[name][..., 0], int).ravel() for name in ("state", "goal"))
    np.testing.assert_array_equal(batch.next_obs["goal"], batch.obs["goal"])
    np.testing.assert_array_equal(batch.next_obs["state"], batch.obs["state"] + 0.5)
    assert batch.extras == {}
    end = np.asarray(data.end)
    counts = Counter(zip(row.tolist(), goal.tolist(), strict=True))
    found, expected = [], []
    for first in range(data.size):
        last = end[first] - 1
        most = last if horizon is None else min(last, first + horizon)
        behind = range(first + 1, most + 1) if first < last else [first]
        found += [counts.pop((first, each), 0) for each in behind]
        expected += [30_000 / data.size / len(behind)] * len(behind)
    assert not counts  # no others
    assert stats.chisquare(found, expected).pvalue > 1e-3


def test_all_steps_of_a_window_have_the_same_goal():
    data = with_goals(dataset()._replace(extras={"colour": np.arange(sum(LENGTHS))}))
    batch = Hindsight(Windows(3)).sample((), data, KEY, (500,), 0.9)
    state, goal = (np.asarray(batch.obs[name][..., 0], int) for name in ("state", "goal"))
    assert goal.shape == (500, 3) and (np.ptp(goal, axis=1) == 0).all()
    end = np.asarray(data.end)[state[:, 0]]
    assert ((goal[:, 0] > state[:, 0]) | (state[:, 0] == end - 1)).all() and (
        goal[:, 0] < end
    ).all()
    np.testing.assert_array_equal(batch.extras["colour"], state)
    seen = Hindsight(Windows(3, 2)).sample((), data, KEY, (50,), 0.9)
    assert seen.obs["goal"].shape == seen.next_obs["goal"].shape == (50, 2, 1)


def test_the_dataset_s_own_goals_are_where_episodes_end():
    data = with_goals(dataset())
    np.testing.assert_array_equal(data.obs["goal"][:, 0], np.asarray(data.end) - 1)
    data.check()
    parts = with_goals(dataset().split(0.5))
    assert {part.obs.keys() == {"state", "goal"} for part in parts} == {True}
    with pytest.raises(UsageError, match="observations have the entries state, goal already; go"):
        with_goals(data)
    with pytest.raises(UsageError, match=r"needs observations with the entries .*; give with_goal"):
        Hindsight().sample((), dataset(), KEY, (2,), 0.9)
    with pytest.raises(UsageError, match="goal_horizon is 0; it must be at least 1"):
        Hindsight(UniformDataset(), 0).check()


# --- the maze -----------------------------------------------------------------------------------


def test_a_goal_is_drawn_for_each_episode_and_observed():
    check_contract(ENV)
    assert ENV.name == "maze/Goals-v0"
    states, obs = jax.vmap(ENV.reset)(jax.random.split(KEY, 600))
    cells = {(x, y) for x in (1.5, 4.5, 7.5) for y in (1.5, 5.5)}
    drawn = Counter(map(tuple, states.goal.tolist()))
    assert set(drawn) == cells and stats.chisquare([*drawn.values()]).pvalue > 1e-3
    in_cells = (np.asarray(obs["goal"]) + 1) * np.array([9, 7]) / 2
    np.testing.assert_allclose(in_cells, states.goal, atol=1e-5)
    assert (np.floor(states.position) == [4, 3]).all()


def test_only_the_drawn_goal_pays_and_ends_the_episode():
    state, _ = ENV.reset(KEY)
    state = state._replace(position=jnp.array([2.2, 1.5]), goal=jnp.array([1.5, 1.5]))
    step = jax.jit(ENV.step)
    after, out = step(KEY, state, jnp.array([-1.0, 0.0]))
    np.testing.assert_allclose(after.position, [1.95, 1.5])
    assert out.reward == 1.0 and out.terminated
    _, out = step(KEY, state._replace(goal=jnp.array([4.5, 1.5])), jnp.array([-1.0, 0.0]))
    assert out.reward == 0.0 and not out.terminated
    frames = [ENV.picture(state), ENV.picture(state._replace(goal=jnp.array([4.5, 1.5])))]
    assert frames[0].shape == (7 * 32, 9 * 32, 3) and (frames[0] != frames[1]).any()


# --- guidance -----------------------------------------------------------------------------------


def test_guidance_is_swept_and_extrapolates():
    """A weight of 0 ignores the goal; others go on in a line, before clipping."""
    agent = BC(policy=POLICY, ema_decay=0.9).bind(ENV.spec)
    state = agent.init(KEY)
    _, obs = jax.vmap(ENV.reset)(jax.random.split(KEY, 6))

    @jax.jit
    def act(weights, obs):
        def one(weight):
            guided = dataclasses.replace(agent.policy, guidance=weight)
            return dataclasses.replace(agent, policy=guided).act(state, (), obs, KEY, "greedy")[0]

        return jax.vmap(one)(weights)

    weights = jnp.array([0.0, 1.0, 3.0])
    found, moved = act(weights, obs), act(weights, obs | {"goal": -obs["goal"]})
    plain = agent.act(state, (), obs, KEY, "greedy")[0]
    np.testing.assert_allclose(found[1], plain, atol=1e-5)
    np.testing.assert_allclose(found[0], moved[0], atol=1e-6)
    assert np.abs(found[1] - moved[1]).max() > 1e-3 < np.abs(found[2] - found[1]).max()
    params = state.ema
    predict = [
        dataclasses.replace(agent.policy, guidance=weight).predictor(params, obs)
        for weight in (0.0, 1.0, 3.0)
    ]
    x, time = jnp.ones((6, 2)), jnp.full(6, 0.1)
    none, full, more = (each(x, time) for each in predict)
    np.testing.assert_allclose(more, none + 3.0 * (full - none), rtol=1e-4, atol=1e-5)


def test_learning_leaves_goals_out_of_some_rows():
    """With a share of 1 the loss does not depend on goals; with 0 all rows do."""
    rng = np.random.default_rng(0)
    state, goal, action = (jnp.float32(x) for x in rng.uniform(-1, 1, (3, 16, 2)))
    none = jnp.zeros(16)

    def loss(share, goal):
        policy = dataclasses.replace(POLICY, unguided_share=share)
        agent = BC(policy=policy).bind(ENV.spec)
        obs = {"state": state, "goal": goal}
        params = agent.init(KEY).policy.params
        return agent.policy_loss(params, Batch(obs, action, none, none, obs, {}), KEY)[0]

    loss = jax.jit(loss)
    assert loss(1.0, goal) == loss(1.0, -goal)
    assert loss(0.0, goal) != loss(0.0, -goal)


def test_guidance_by_what_the_policy_does_not_see_is_refused():
    policy = dataclasses.replace(POLICY, encoder=Flatten())
    with pytest.raises(
        UsageError, match=r"guided_by is \('goal',\), and the encoder sees state; g"
    ):
        policy.bind(ENV.spec)
    with pytest.raises(UsageError, match=r"guidance is 2.0, and guided_by names no entry"):
        dataclasses.replace(POLICY, guided_by=(), guidance=2.0).check_numbers()
    with pytest.raises(UsageError, match=r"guidance is 2, and guided_by names no entry"):
        dataclasses.replace(POLICY, guided_by=(), guidance=2).check_numbers()
