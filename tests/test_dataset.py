"""Datasets: episodes, choices of them, what follows a row, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import UsageError
from jaxrl.data import Dataset, concatenate, d4rl_score, normalized
from jaxrl.data.scores import d4rl_reference
from jaxrl.data.units import to_agent, to_environment
from jaxrl.envs.vector import rescale
from jaxrl.types import Box, Discrete, Spec

LENGTHS = (1, 4, 2, 7, 3)
D, EPISODES = sum(LENGTHS), len(LENGTHS)
ENDS = np.cumsum(LENGTHS)
SPEC = Spec({"a": Box(-9, 99, (2,)), "b": Box(-9, 99, ())}, Box(-3.0, 1.0, (2,)))


def made(seed=0, **fields):
    """Five episodes; the first and the fourth terminate, and the last has no flag at its end."""
    rng = np.random.default_rng(seed)
    terminated, truncated = np.zeros((2, D), bool)
    terminated[ENDS[[0, 3]] - 1] = True
    truncated[ENDS[[0, 1, 2]] - 1] = True  # the first has both flags
    given = {
        "obs": {"a": np.float32(rng.normal(size=(D, 2))), "b": np.arange(D, dtype=np.float32)},
        "action": np.float32(rng.uniform(-1, 1, (D, 2))),
        "reward": np.float32(rng.normal(size=D)),
        "next_obs": {"a": np.float32(rng.normal(size=(D, 2))), "b": np.float32(np.arange(D) + 1)},
        "terminated": terminated,
        "truncated": truncated,
    }
    return Dataset.of(**given | fields)


def rows_of(data):
    """The row number that every row had in ``made``."""
    return np.asarray(data.obs["b"]).astype(int)


def test_episodes_are_found_from_the_flags():
    data = made()
    starts = np.repeat(ENDS - LENGTHS, LENGTHS)
    np.testing.assert_array_equal(data.start, starts)
    np.testing.assert_array_equal(data.end, np.repeat(ENDS, LENGTHS))
    assert data.start.dtype == data.end.dtype == np.int32
    assert (data.size, data.num_episodes) == (D, EPISODES)
    np.testing.assert_array_equal(data.lengths(), LENGTHS)
    # Terminated wins, and the end of the data is a cut.
    assert data.terminated[0] and not data.truncated[0] and data.truncated[-1]
    pieces = np.split(data.reward.astype(float), ENDS[:-1])
    expected = [piece.sum() for piece in pieces]
    np.testing.assert_allclose(data.returns(), expected)
    data.check()
    jaxed = made(reward=jnp.asarray(data.reward))
    np.testing.assert_array_equal(jaxed.returns(), data.returns())


def test_whole_episodes_are_chosen():
    data = made().with_next_action()
    keep = np.array([False, True, False, True, True])
    kept = data.filter(keep)
    rows = np.flatnonzero(np.repeat(keep, LENGTHS))
    np.testing.assert_array_equal(rows_of(kept), rows)
    np.testing.assert_array_equal(kept.extras["next_action"], data.extras["next_action"][rows])
    np.testing.assert_array_equal(kept.lengths(), np.array(LENGTHS)[keep])
    kept.check()

    best = np.sort(np.argsort(data.returns())[-2:])
    np.testing.assert_array_equal(data.top(0.4).returns(), data.returns()[best])
    assert data.top(0.01).num_episodes == 1 and data.top(1.0).size == D

    train, held = data.split(0.4, seed=3)
    assert (train.num_episodes, held.num_episodes) == (3, 2)
    assert sorted([*rows_of(train), *rows_of(held)]) == list(range(D))
    again = data.split(0.4, seed=3)[1]
    np.testing.assert_array_equal(rows_of(again), rows_of(held))
    others = [tuple(rows_of(data.split(0.4, seed=seed)[1])) for seed in range(8)]
    assert len(set(others)) > 3

    both = concatenate([held, train])
    both.check()
    np.testing.assert_array_equal(rows_of(both), [*rows_of(held), *rows_of(train)])
    np.testing.assert_array_equal(both.lengths(), [*held.lengths(), *train.lengths()])


def test_the_next_action_stays_inside_an_episode():
    data = made().with_next_action()
    action, has = data.extras["next_action"], data.extras["has_next_action"]
    for row in range(D):
        follows = row + 1 not in ENDS
        assert has[row] == follows
        np.testing.assert_array_equal(action[row], data.action[row + 1] if follows else 0)
    assert data.with_next_action() is data


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_the_return_to_go_stops_at_both_flags(gamma):
    data = made().with_return_to_go(gamma)
    expected, following = np.zeros(D), 0.0
    for row in reversed(range(D)):
        following = data.reward[row] + gamma * (0.0 if row + 1 in ENDS else following)
        expected[row] = following
    found = data.extras["return_to_go"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def changed(array, row, value):
    array = np.array(array)
    array[row] = value
    return array


GOOD = made()
MALFORMED = {
    "NaN": (made(reward=changed(GOOD.reward, 5, np.nan)), "reward is not finite at row 5; .*"),
    "infinity": (
        made(next_obs={**GOOD.next_obs, "a": changed(GOOD.next_obs["a"], 3, np.inf)}),
        "the dataset's next_obs.a is not finite at row 3; .*",
    ),
    "length": (
        made(action=GOOD.action[:-1]),
        r"the dataset's action has shape \(16, 2\), and its reward \(17,\); .*",
    ),
    "both flags": (
        GOOD._replace(truncated=changed(GOOD.truncated, 0, True)),
        "the dataset's row 0 is terminated and truncated; .*",
    ),
    "a column of rewards": (
        GOOD._replace(reward=GOOD.reward[:, None]),
        r"the dataset's reward has shape \(17, 1\); it must be \[D\], .*, as reward.reshape\(-1\)",
    ),
    "a column of flags": (
        GOOD._replace(truncated=GOOD.truncated[:, None]),
        r"the dataset's truncated has shape \(17, 1\); it must be \[D\], .*",
    ),
    "a column of returns": (
        GOOD._replace(extras={"return_to_go": GOOD.reward[:, None]}),
        r"the dataset's extras.return_to_go has shape \(17, 1\); it must be \[D\], .*",
    ),
    "next actions": (
        made(extras={"next_action": GOOD.action[:, 0]}),
        r"extras.next_action has shape \(17,\), and its action \(17, 2\); they must be the same.*",
    ),
    "short extras": (
        made(extras={"more": {"weight": GOOD.reward[1:]}}),
        r"the dataset's extras.more.weight has shape \(16,\), and its reward \(17,\); .*",
    ),
    "lists": (
        GOOD._replace(reward=GOOD.reward.tolist()),
        r"the dataset's reward.0 has shape \(\), and its reward \(17,\); .*",
    ),
    "no bools": (
        GOOD._replace(terminated=GOOD.terminated.astype(int)),
        r"the dataset's terminated is int64\[17\]; it must be bool\[D\]",
    ),
    "stale ends": (
        GOOD._replace(terminated=changed(GOOD.terminated, 2, True)),
        "the dataset's start and end differ from its flags at row 2; .*",
    ),
    "stale starts": (
        GOOD._replace(start=changed(GOOD.start, 9, 8)),
        "the dataset's start and end differ from its flags at row 9; .*",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_data_are_refused_with_field_and_row(name):
    data, message = MALFORMED[name]
    with pytest.raises(UsageError, match=message):
        data.check()


def test_shapes_are_checked_while_tracing():
    """As targets, rewards ``[B, 1]`` plus values ``[B]`` would be ``[B, B]``."""
    column = jnp.asarray(GOOD.reward)[:, None]
    for check in (lambda reward: GOOD._replace(reward=reward).check(), lambda x: made(reward=x)):
        with pytest.raises(UsageError, match=r"reward has shape \(17, 1\); it must be \[D\], .*"):
            jax.eval_shape(check, column)
    jax.eval_shape(lambda reward: made(reward=reward).check(), column[:, 0])


def test_lists_become_arrays():
    obs = {name: x.tolist() for name, x in GOOD.obs.items()}
    fields = {name: getattr(GOOD, name).tolist() for name in ("action", "reward", "terminated")}
    data = made(obs=obs, extras={"weight": [1] * D}, **fields)
    data.check()
    for found, known in zip(data[:3], GOOD[:3], strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, known)
    np.testing.assert_array_equal(data.extras["weight"], 1)


UNFIT = {
    "an entry": (
        made(),
        Spec({"a": Box(-1, 1, (2,))}, SPEC.action),
        "obs has the entries a, b, .*",
    ),
    "an array": (made(), Spec(Box(-1, 1, (2,)), SPEC.action), "obs is a dictionary of a, b, .*"),
    "a shape": (
        made(),
        Spec({**SPEC.observation, "a": Box(-1, 1, (3,))}, SPEC.action),
        r"obs.a is floats of shape \(2,\) in each row, and the environment's floats of \(3,\); .*",
    ),
    "a kind": (
        made(),
        Spec({**SPEC.observation, "b": Box(0, 255, (), np.uint8)}, SPEC.action),
        "obs.b is floats .* integers .*",
    ),
    "no index": (
        made(),
        Spec(SPEC.observation, Discrete(3)),
        r"action is floats of shape \(2,\) in each row, and the environment takes indices 0 .. 2",
    ),
    "a great index": (
        made(action=np.arange(D, dtype=np.int32)),
        Spec(SPEC.observation, Discrete(4)),
        "the dataset's action at row 4 is 4; it must be in indices 0 .. 3",
    ),
    "a great action": (
        made(action=changed(GOOD.action, (7, 1), 1.001)),
        SPEC,
        r"the dataset's action at row 7 is .*; it must be in \[-1, 1\] .*",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_data_of_another_environment_are_refused(name):
    made().check_spec(SPEC)
    data, spec, message = UNFIT[name]
    with pytest.raises(UsageError, match=message):
        data.check_spec(spec)


REFUSED = {
    "no episode": (
        lambda: made().filter(np.zeros(EPISODES, bool)),
        "keep is False for all of 5 .*",
    ),
    "no mask": (lambda: made().filter(np.arange(EPISODES)), r"keep is int64\[5\]; .* bool\[5\].*"),
    "no share": (lambda: made().top(0.0), "share is 0; .*"),
    "all": (lambda: made().split(1.0), "share is 1; it must be less than 1.*"),
    "one episode": (
        lambda: made(truncated=np.zeros(D), terminated=np.zeros(D)).split(),
        "the dataset has one episode; .*",
    ),
    "no datasets": (lambda: concatenate([]), "there are no datasets; .*"),
    "other fields": (
        lambda: concatenate([made(), made().with_next_action()]),
        r"extras.has_next_action of dataset 0 is absent, and of dataset 1 bool\[\]; .*",
    ),
    "flags": (lambda: made(terminated=np.zeros((D, 1))), r"terminated has shape \(17, 1\) .*"),
    "rewards": (lambda: made(reward=GOOD.reward[:, None]), r"reward has shape \(17, 1\); .*"),
    "ragged lists": (
        lambda: made(action=[[0.0]] * 16 + [[0.0, 1.0]]),
        "the dataset's action is a list, which is no array of numbers; give a row for each .*",
    ),
    "no numbers": (
        lambda: made(obs={"a": ["x"] * D}),
        "the dataset's obs.a is a list, which is no array of numbers; .*",
    ),
    "gamma": (lambda: made().with_return_to_go(1.1), "gamma is 1.1; .*"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    act, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        act()


def test_units_are_those_of_the_vector_environment():
    """Two bounds are scaled to [-1, 1]; an element with one or none keeps its units."""
    space = Box([-3.0, -0.4, 0.0, -np.inf, 2.0], [1.0, 0.4, np.inf, np.inf, 2.0], (5,))
    action = np.float32(np.random.default_rng(0).uniform(-1.2, 3, (50, 5)))
    there = to_environment(action, space)
    np.testing.assert_allclose(there, rescale(space, action), rtol=1e-6, atol=1e-6)
    back = to_agent(there, space)
    inside = np.clip(action, [-1, -1, 0, -np.inf, 0], [1, 1, np.inf, np.inf, 0])
    np.testing.assert_allclose(back, inside, rtol=1e-6, atol=3e-7)
    np.testing.assert_array_equal(to_environment(back, space), there)
    # Bounds that are powers of two cost no bit.
    even = Box([-1.0, -2.0], [1.0, 2.0], (2,))
    kept = np.float32(np.random.default_rng(1).uniform(-1, 1, (50, 2)))
    np.testing.assert_array_equal(to_agent(to_environment(kept, even), even), kept)


def test_scores():
    """The reference's values; the mean of scores is the score of the mean."""
    assert d4rl_score("halfcheetah-medium-v2", 5000.0) == pytest.approx(42.5300, abs=1e-4)
    assert d4rl_score("mjx/Hopper-v4", 3234.3) == pytest.approx(100.0)
    assert d4rl_score("walker2d-medium-replay-v2", 1.629008) == pytest.approx(0.0)
    assert d4rl_score("Ant-v2", 0.0) == pytest.approx(7.7426, abs=1e-4)
    assert d4rl_score("maze2d-large-v1", 273.99) == pytest.approx(100.0)
    assert d4rl_score("antmaze-large-play-v2", 0.5) == pytest.approx(50.0)
    for task in ("pen-human-v1", "pen-cloned-v0", "pen-expert-v1", "pen-human-longhorizon-v0"):
        assert d4rl_reference(task).expert == 3076.8331017826877
    assert d4rl_reference("antmaze-umaze-v0") == d4rl_reference("antmaze-umaze-diverse-v2")
    assert d4rl_reference("kitchen-mixed-v0").expert == 4.0
    for other in (
        "mjx/Hopper-v5",
        "brax/hopper",
        "hopper",
        "gymnax/Pendulum-v1",
        "maze2d-umaze-v0",
        "door-open-v2",  # Meta-World's
        "door-lock-v2",
        "antmaze-giant-navigate-v0",  # OGBench's
        "antmaze-large-navigate-v0",
        "antmaze-large-navigate-singletask-task1-v0",
        "kitchen-mixed-v1",
    ):
        assert d4rl_reference(other) is None
    with pytest.raises(UsageError, match="D4RL has no score of 'mjx/Hopper-v5', .*"):
        d4rl_score("mjx/Hopper-v5", 1.0)
    returns = np.array([-1200.0, -300.0])
    np.testing.assert_allclose(normalized(returns, -1200.0, -150.0), [0.0, 100 * 900 / 1050])
    with pytest.raises(UsageError, match="expert is 1, and random 1; .*"):
        normalized(0.0, 1.0, 1.0)
