"""The parts of sweeps that need no training: spaces, halving, decisions of populations, scores."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PBT, Halving, Range, UsageError, Values
from jaxrl.analysis.heat_map import axes_of, is_grid, plot_sweep
from jaxrl.run.halving import cost, highest, train_rungs
from jaxrl.run.legs import Leg, divide, outcome
from jaxrl.run.pbt import schedule
from jaxrl.run.ranking import (
    configuration_score,
    diverged_members,
    expected_maximum,
    member_scores,
    selection_bias,
)
from jaxrl.run.spaces import draw as drawn
from jaxrl.run.spaces import grid

RATES = Range(1e-4, 1e-2, "log", 5)
GAMMAS = Range(0.9, 0.999, "log1m", 3)


# --- spaces


def test_a_grid_is_even_on_its_scale():
    assert RATES.grid() == [1e-4, 3.1623e-4, 1e-3, 3.1623e-3, 1e-2]
    assert GAMMAS.grid() == [0.9, 0.99, 0.999]
    assert Range(-1.0, 1.0, "linear", 5).grid() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    both = grid({"a": Values((1, 2)), "b": GAMMAS})
    assert len(both) == 6 and both[1] == {"a": 1.0, "b": 0.99} and both[3]["a"] == 2.0


def test_rounded_values_stay_inside_and_the_ends_are_as_given():
    for space in (
        Range(0.9, 0.999999, "linear", 2),
        Range(0.0, 123456.0, "linear", 3),
        Range(1.23454e-4, 1e-2, "log", 3),
        Range(0.9000004, 0.99999994, "log1m", 4),
        Range(-3.0, -1.0, "linear", 3),
        Range(-1.000004, -1.000001, "linear", 5),
    ):
        values = space.grid()
        assert (values[0], values[-1]) == (space.low, space.high) and values == sorted(values)
        values += [each["x"] for each in drawn({"x": space}, 100)]
        assert all(space.low <= value <= space.high for value in values)
        assert {type(value) for value in values} == {float}
        PBT({"x": space}).check([{"x": value} for value in values])


@pytest.mark.parametrize("space", [Range(-3.0, -1.0), Range(-2.0, 3.0), RATES])
def test_an_end_of_a_range_may_be_rounded_and_no_more(space):
    for end, out in ((space.low, -1), (space.high, 1)):
        assert float(np.float32(end)) in space and end in space
        assert end + out * 5e-7 * abs(end) in space
        assert end + out * 1e-5 * abs(end) not in space


@pytest.mark.parametrize("space", [RATES, GAMMAS, Range(-2.0, 3.0), Values((0.1, 0.2, 5.0))])
def test_draws_are_uniform_on_the_scale_inside_and_programs_draw_alike(space):
    values = np.array([each["x"] for each in drawn({"x": space}, 4000, seed=1)])
    assert all(value in space for value in values.tolist())
    again = [each["x"] for each in drawn({"x": space}, 4000, seed=1)]
    assert values.tolist() == again
    inside = np.asarray(space.resample(jax.random.key(0), (4000,)), float)
    if isinstance(space, Values):
        for found in (values, inside):
            seen, counts = np.unique(np.float32(found), return_counts=True)
            assert seen.tolist() == np.float32(sorted(space.values)).tolist()
            np.testing.assert_allclose(counts / 4000, 1 / 3, atol=0.04)
    else:
        assert all(value in space for value in inside.tolist())
        for share in (0.25, 0.5, 0.75):
            assert np.mean(values <= np.quantile(inside, share)) == pytest.approx(share, abs=0.05)
        middle = {"log": 1e-3, "log1m": 0.99, "linear": 0.5}[space.scale]
        for found in (values, inside):
            assert np.mean(found < middle) == pytest.approx(0.5, abs=0.03)


def test_perturbation_is_on_the_scale_and_stays_inside():
    value, up, down = jnp.float32([1e-3, 9e-3]), jnp.float32(1.2), jnp.float32(0.5)
    np.testing.assert_allclose(RATES.perturb(value, up), [1.2e-3, 1e-2], rtol=1e-6)
    np.testing.assert_allclose(RATES.perturb(value, down), [5e-4, 4.5e-3], rtol=1e-6)
    gamma = jnp.float32([0.99, 0.91])
    np.testing.assert_allclose(GAMMAS.perturb(gamma, up), [0.988, 0.9], rtol=1e-6)
    np.testing.assert_allclose(GAMMAS.perturb(gamma, down), [0.995, 0.955], rtol=1e-6)
    listed = Values((3.0, 1.0, 2.0))
    found = listed.perturb(jnp.float32([1.0, 2.0, 3.0]), up)
    assert found.tolist() == [2.0, 3.0, 3.0]
    assert listed.perturb(jnp.float32([1.0, 2.0, 3.0]), down).tolist() == [1.0, 1.0, 2.0]
    for space in (RATES, GAMMAS, listed):
        same = jnp.float32([0.123, 1.0])
        assert space.perturb(same, jnp.float32(1.0)).tolist() == same.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Range(1e-2, 1e-4, "log"), "0 < low < high, both finite, as log:1e-4,1e-2"),
        (lambda: Range(0.0, 1.0, "log"), "0 < low < high"),
        (lambda: Range(0.9, 1.0, "log1m"), "low < high < 1, both finite, as log1m:0.9,0.999"),
        (lambda: Range(0.0, math.inf), "low < high, both finite"),
        (lambda: Range(0.0, 1.0, "cubic"), "scale is 'cubic'; choose one of"),
        (lambda: Range(0.0, 1.0, "linear", 1), "number of values is 1; it must be at least 2"),
        (lambda: Range(1e-4, 1e-2, "log").grid(), "needs; give one, as log:1e-4,1e-2,8"),
        (lambda: Values(()), r"values are \(\); give numbers, as 0.9,0.99"),
        (lambda: drawn({"a": RATES}, 0), "random configurations is 0; it must be at least 1"),
        (lambda: Halving(1.0), "halving is 1; it must be more than 1"),
        (lambda: Halving(4).ladder(3), "by 4 needs at least 4 configurations, and there are 3"),
        (lambda: Halving(2, rungs=1), "rungs is 1; it must be at least 2"),
        (lambda: PBT([0.9]), r"spaces is \[0.9\]; give a dictionary"),
        (lambda: PBT({"a": 0.9}), "spaces has a=0.9; give numbers, as"),
        (lambda: PBT({}, quantile=0.6), "quantile is 0.6; it must be at least 0 and at most 0.5"),
        (lambda: PBT({}, factors=(0.0, 1.0)), r"give two above 0, as 1.2 0.8"),
        (lambda: PBT({}).check([{"a": 1.0}] * 2), "pbt has no range for a; give one, as a=log:"),
        (
            lambda: PBT({"gamma": RATES, "gama": RATES}).check([{"gamma": 1e-3}] * 2),
            r"explore names gama, which is not swept; did you mean gamma\?",
        ),
        (lambda: PBT({"a": RATES}).check([{"a": 1e-3}, {"a": 0.1}]), "a=0.1, which is outside"),
        (lambda: PBT({"a": RATES}).check([{"a": 1e-3}]), "there is one configuration; give more"),
    ],
)
def test_wrong_settings_are_one_line(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# --- halving


def test_the_ladder_and_its_cost():
    """The shares of the full grid's steps are n r + sum n eta^-k (r eta^k - r eta^(k-1))."""
    assert [tuple(rung) for rung in Halving(2).ladder(16)] == [
        (16, 1 / 16), (8, 1 / 8), (4, 1 / 4), (2, 1 / 2), (1, 1.0)
    ]  # fmt: skip
    assert [rung.keep for rung in Halving(3).ladder(20)] == [20, 6, 2]
    assert [rung.keep for rung in Halving(3).ladder(27)] == [27, 9, 3, 1]  # log_3 27 = 3, rounded
    for halving, share in [
        (Halving(2), 3 / 16), (Halving(4), 0.15625), (Halving(2, rungs=4), 0.3125)
    ]:  # fmt: skip
        assert cost(halving.ladder(16)) == pytest.approx(share)


@pytest.mark.parametrize("eta", [1.5, 2, 3, 4, 16])
@pytest.mark.parametrize("count", [16, 23])
def test_halving_returns_the_argmax_of_scores_that_do_not_change(eta, count):
    x = np.random.default_rng(0).permutation(count)
    scores, calls = -((x - 5.2) ** 2), []

    def train(k, alive):
        calls.append(len(alive))
        return scores[alive], None

    ladder = Halving(eta).ladder(count)
    rungs = train_rungs(ladder, train)
    alive, found, _ = rungs[-1]
    assert calls == [rung.keep for rung in ladder]
    assert alive[int(np.argmax(found))] == int(np.argmax(scores))
    for (_, _, _), (kept, _, _) in zip(rungs, rungs[1:], strict=False):
        assert kept == sorted(kept)


def test_diverged_candidates_drop_out_first_and_ties_keep_the_first():
    assert highest([1.0, -np.inf, np.nan, 1.0, 0.5], 2) == [0, 3]
    assert highest([1.0, 1.0, 1.0], 2) == [0, 1]
    assert highest([np.nan, -np.inf, -5.0], 2) == [0, 2]
    assert highest([(5.0, 1.0), (5.0, 3.0), (4.0, 9.0), (5.0, 2.0)], 2) == [1, 3]


# --- populations


def decided(pbt, scores, values, seed=0):
    out = jax.jit(pbt.decide)(jax.random.key(seed), jnp.float32(scores), values)
    return np.asarray(out.parents), {name: np.asarray(x) for name, x in out.values.items()}


def test_the_lowest_copy_the_highest_and_all_others_are_left_alone():
    pbt = PBT({"rate": RATES}, factors=(1.2, 0.8), resample=0.0)
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(8.0)[:, None], (1, 50)), axis=0)  # [C, P]
    rates = jnp.asarray(rng.uniform(1e-3, 2e-3, (8, 50)), jnp.float32)
    parents, values = decided(pbt, scores, {"rate": rates})
    slots = np.arange(8)[:, None]
    copied = parents != slots
    assert (copied == (scores < 2)).all()
    of_parent = np.take_along_axis(scores, parents, axis=0)
    assert (of_parent[copied] >= 6).all() and set(of_parent[copied]) == {6.0, 7.0}
    assert (values["rate"][~copied] == np.asarray(rates)[~copied]).all()
    ratio = values["rate"][copied] / np.take_along_axis(np.asarray(rates), parents, 0)[copied]
    assert {round(float(r), 3) for r in ratio} == {1.2, 0.8}
    assert 0.3 < np.mean(ratio > 1) < 0.7


def test_nothing_is_copied_without_gain_and_nothing_from_the_lost():
    pbt = PBT({"rate": RATES}, quantile=0.5)
    rates = {"rate": jnp.full((4, 1), 1e-3, jnp.float32)}
    for scores in ([5.0] * 4, [-np.inf] * 4):
        parents, values = decided(pbt, np.array(scores)[:, None], rates)
        assert parents[:, 0].tolist() == [0, 1, 2, 3] and (values["rate"] == rates["rate"]).all()
    for seed in range(5):
        lost = np.array([-np.inf, 1.0, -np.inf, -np.inf])[:, None]
        parents, _ = decided(pbt, lost, rates, seed)
        assert set(parents[:, 0]) <= {0, 1, 2, 3} and parents[1, 0] == 1
        assert all(p in (i, 1) or lost[p, 0] > lost[i, 0] for i, p in enumerate(parents[:, 0]))


def test_without_a_quantile_or_without_exploring_no_value_is_new():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9, 20))
    values = {
        "rate": jnp.asarray(rng.uniform(1e-4, 1e-2, (9, 20)), jnp.float32),
        "gamma": jnp.asarray(rng.uniform(0.9, 0.999, (9, 20)), jnp.float32),
        "listed": jnp.asarray(rng.choice([1.0, 2.0, 3.0], (9, 20)), jnp.float32),
    }
    spaces = {"rate": RATES, "gamma": GAMMAS, "listed": Values((1.0, 2.0, 3.0))}
    parents, same = decided(PBT(spaces, quantile=0.0), scores, values)
    assert (parents == np.arange(9)[:, None]).all()
    assert all((same[name] == x).all() for name, x in values.items())

    still = PBT(spaces, factors=(1.0, 1.0), resample=0.0, quantile=0.4)
    parents, moved = decided(still, scores, values)
    assert (parents != np.arange(9)[:, None]).sum(axis=0).tolist() == [4] * 20
    for name, x in values.items():
        inherited = np.take_along_axis(np.asarray(x), parents, axis=0)
        assert (moved[name] == inherited).all()


def test_a_schedule_is_traced_through_the_copies():
    lineage = [
        {"iteration": 10, "parents": [[0], [2], [2]], "values": {"a": [[1.0], [5.0], [3.0]]}},
        {"iteration": 20, "parents": [[1], [1], [2]], "values": {"a": [[7.0], [5.0], [3.0]]}},
    ]
    first = [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}]
    found = schedule(lineage, first, slot=0, population=0)
    assert found.slot == 2 and found.first == {"a": 3.0}
    assert found.later == {10: {"a": 5.0}, 20: {"a": 7.0}}
    repeated = found.decisions(3)[20]
    assert repeated.parents.shape == (1, 3) and repeated.values["a"].tolist() == [[7.0] * 3]


# --- scores, sizes, pictures


def test_scores_are_means_of_two_evaluations_and_the_lost_are_lowest():
    returns = np.array([[9.0, 9.0, 9.0], [1.0, 2.0, np.nan], [3.0, 2.0, 5.0]])
    scores = member_scores(returns, np.array([False, True, False]))
    assert scores.tolist() == [2.0, -np.inf, -np.inf]
    one = np.array([-np.inf, 1.0, 2.0, 3.0])  # a quarter is trimmed
    found = configuration_score(one)
    assert found == {"score": 1.5, "ci_low": None, "ci_high": None, "mean": -np.inf}
    assert configuration_score(np.array([-np.inf, 1.0, 2.0]))["score"] == -np.inf
    found = configuration_score(np.arange(8.0))
    assert found["ci_low"] < found["score"] == 3.5 < found["ci_high"]


@pytest.mark.parametrize(
    ("begins", "returns", "score"),
    [(0, [9.0, 3.0], 3.0), (0, [9.0, 3.0, 5.0], 4.0), (0, [9.0], 9.0), (1, [9.0, 3.0], 6.0)],
)
def test_no_score_has_the_evaluation_before_training(begins, returns, score):
    """Only a leg that begins at 0 has one; the run's summary stays as it is."""
    rows = [{"kind": "eval", "episode_return": x, "nonfinite_episodes": 0} for x in returns]
    found = outcome(Leg("part0", [0], [0], begins, 2), rows, {}, {}, 100)
    assert (found.scores.tolist(), found.final.tolist()) == ([score], returns[-1:])


def test_members_that_skip_in_the_last_chunk_or_leave_the_finite_numbers_have_diverged():
    def train(skipped):
        return {"kind": "train", "skipped_in_a_row": skipped, "episode_return": 1.0}

    def played(value=1.0, bad=0):
        return {"kind": "eval", "episode_return": value, "nonfinite_episodes": bad}

    rows = [train(200), train(0), played(), played(), train(0), train(99), played(), played()]
    assert diverged_members(rows, 2, 100).tolist() == [False, False]
    rows += [train(100), train(0), played(), played(math.nan)]
    assert diverged_members(rows, 2, 100).tolist() == [True, True]
    assert diverged_members([played(), played(bad=1)], 2, 100).tolist() == [False, True]


def test_the_bias_of_the_best_is_that_of_the_maximum_of_normals():
    draws = np.random.default_rng(0).normal(size=(40_000, 16)).max(axis=1)
    assert expected_maximum(16) == pytest.approx(draws.mean(), abs=0.02)
    assert expected_maximum(1) == 0.0
    entry = {"ci_low": 10.0 - 1.96, "ci_high": 10.0 + 1.96}
    assert selection_bias(entry, 16) == pytest.approx(expected_maximum(16), rel=1e-4)
    assert selection_bias({"ci_low": None, "ci_high": None}, 16) is None


@pytest.mark.parametrize("most", [1, 3, 7, 8, 100])
def test_parts_are_even_and_hold_every_member_once(most):
    parts = divide(list(range(5)), [10, 11, 12, 13], most)
    members = [(c, s) for configurations, seeds in parts for c in configurations for s in seeds]
    assert sorted(members) == [(c, s) for c in range(5) for s in (10, 11, 12, 13)]
    assert max(len(c) * len(s) for c, s in parts) <= most
    sizes = {len(c) * len(s) for c, s in parts}
    assert len(sizes) <= 2  # of which each compiles once


def test_pictures_of_all_kinds_are_drawn(tmp_path):
    summary = {"best": {}, "seeds": [0, 1]}
    one = [{"rank": 1, "rate": r, "score": s, "scores": [s, -np.inf]}
           for r, s in [(1e-3, 2.0), (1e-2, -np.inf)]]  # fmt: skip
    two = [{"rate": r, "num-envs": n, "score": r} for r in (1.0, 2.0) for n in ("8", "16")]
    three = [row | {"gamma": g} for row in two for g in (0.9, 0.99)]
    random = [{"rate": 10.0**-i, "gamma": i / 9, "score": 1.0 * i, "rung": i % 2} for i in range(9)]
    assert axes_of(three) == ["rate", "num-envs", "gamma"] and is_grid(three, axes_of(three))
    assert not is_grid(random, axes_of(random))
    path = {"schedule": [{"step": 0, "rate": 1e-4}, {"step": 10, "rate": 1e-2}]}
    path = {"best": path | {"row": {"steps": 20}}}
    tables = {"one": one, "two": two, "three": three, "random": random}
    for name, table in tables.items():
        plot_sweep(table, summary, tmp_path / f"{name}.png")
    plot_sweep([{"rate": 1.0, "first_rate": 2.0, "score": 1.0}], path, tmp_path / "pbt.png")
    assert all(each.stat().st_size > 5_000 for each in tmp_path.iterdir())
