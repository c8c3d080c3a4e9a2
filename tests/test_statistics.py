"""Statistics of runs against closed forms, scipy, published tables and rliable."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from shared import script_module

from jaxrl import analysis
from jaxrl.analysis import aggregate
from jaxrl.errors import UsageError

ROOT = Path(__file__).parent.parent


def sample(n, tasks=None, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1.0, n if tasks is None else (tasks, n))


# --- aggregates


def test_aggregates_of_equal_tasks_are_those_of_all_scores():
    scores = sample(7, tasks=5) ** 3
    pooled = stats.trim_mean(scores, 0.25, axis=None)
    np.testing.assert_allclose(analysis.aggregate_iqm(scores), pooled, rtol=1e-12)
    assert analysis.aggregate_mean(scores) == pytest.approx(scores.mean())
    assert analysis.aggregate_median(scores) == np.median(scores.mean(axis=1))
    assert analysis.aggregate_median(scores[0]) == np.median(scores[0])
    assert analysis.optimality_gap([0.5, 2.0, 1.0, -0.5]) == pytest.approx(0.5)
    assert analysis.optimality_gap([[50.0, 150.0], [100.0, 0.0]], gamma=100.0) == 37.5


def test_a_task_counts_the_same_however_many_seeds_it_has():
    few, many = sample(4, seed=1), sample(8, seed=2, shift=3.0)
    for f in (analysis.aggregate_iqm, analysis.aggregate_mean):
        assert f([few, many]) == pytest.approx(f([np.repeat(few, 2), many]), rel=1e-12)
    assert abs(analysis.aggregate_iqm([few, many]) - analysis.iqm([*few, *many])) > 0.1
    tasks = {"a": [0.0] * 2, "b": [1.0] * 6}
    assert analysis.performance_profile(tasks, [0.5])[0] == 0.5


def test_batches_of_tasks_are_aggregated_one_by_one():
    batch = [sample(4, tasks=3, seed=1), sample(6, tasks=3, seed=2)]
    for f in (analysis.aggregate_iqm, analysis.aggregate_mean, analysis.aggregate_median):
        np.testing.assert_allclose(f(batch), [f([a, b]) for a, b in zip(*batch, strict=True)])


@pytest.mark.parametrize(
    "wrong", [3.0, np.array(3.0), [[1.0, 2.0], 3.0], {"a": 1.0, "b": 2.0}, [], {}, [[1.0], []]]
)
def test_scores_that_are_no_tasks_are_refused_in_one_line(wrong):
    for f in (aggregate.as_tasks, analysis.aggregate_mean, analysis.mean_ci):
        with pytest.raises(UsageError, match=r"at least one of every task, as \[1\.0") as caught:
            f(wrong)
        assert "\n" not in str(caught.value)


# --- the bootstrap


def test_recorded_intervals_are_found_again():
    """Those of a run's summary from before the bootstrap had several statistics."""
    found = json.loads((ROOT / "results/ppo_mjx_hopper/summary.json").read_text())["final_return"]
    assert analysis.final_return(found["per_seed"]) == found


def test_bootstrap_of_a_mean_has_the_spread_of_its_closed_form():
    tasks = [sample(6, seed=1), 5.0 * sample(9, seed=2)]
    expected = np.sqrt(sum(task.var() / len(task) for task in tasks)) / 2
    drawn = analysis.bootstrap(tasks, analysis.aggregate_mean, 20_000)
    assert drawn.std() == pytest.approx(expected, rel=0.03)
    assert drawn.mean() == pytest.approx(analysis.aggregate_mean(tasks), abs=0.05)


def test_the_interval_of_a_difference_draws_both_groups():
    x, y = sample(10, seed=1), 2.0 * sample(12, seed=2)
    low, high = analysis.difference_ci(x, y, analysis.aggregate_mean, resamples=20_000)
    spread = np.sqrt(x.var() / 10 + y.var() / 12)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.03)
    assert (high + low) / 2 == pytest.approx(x.mean() - y.mean(), abs=0.1)  # a little skewed
    # Equal scores in every seed: nothing is left to draw.
    assert analysis.difference_ci([3.0] * 4, [1.0] * 5) == (2.0, 2.0)
    assert analysis.improvement_ci([3.0] * 4, [1.0] * 5) == (1.0, 1.0)
    # Each has its own draws: a group less itself would otherwise have an interval of no width.
    low, high = analysis.difference_ci(x, x)
    assert low < 0.0 < high
    tasks = {"a": x, "b": y}
    assert analysis.difference_ci(tasks, {"b": y, "a": x}) == analysis.difference_ci(tasks, tasks)
    with pytest.raises(UsageError, match="scores of b, c"):
        analysis.difference_ci(tasks, {"a": x, "c": y})
    with pytest.raises(UsageError, match="2 and 1 tasks"):
        analysis.improvement_ci([x, y], [x])


def test_bands_of_profiles_and_pieces_of_the_bootstrap(monkeypatch):
    scores, taus = sample(8), np.linspace(-2.0, 2.0, 9)
    low, high = analysis.profile_ci(scores, taus)
    profile = analysis.performance_profile(scores, taus)
    assert (low <= profile).all() and (profile <= high).all()
    assert (high - low).max() > 0.4
    spread = np.sqrt(profile * (1 - profile) / 8)  # of a share
    assert np.all(np.abs((high - low) / 2 - 1.96 * spread) < 0.1)
    monkeypatch.setattr(aggregate, "_BLOCK", 1000)
    np.testing.assert_array_equal(analysis.profile_ci(scores, taus), (low, high))


def test_a_profile_takes_a_single_level():
    scores = sample(8)
    for f in (analysis.performance_profile, analysis.profile_ci):
        np.testing.assert_array_equal(f(scores, 0.5), f(scores, [0.5]))
    assert analysis.performance_profile([0.0, 1.0], 0.5).tolist() == [0.5]


def test_interval_of_a_mean_is_students_and_welchs():
    x, y = sample(5, seed=1), 3.0 * sample(9, seed=2)
    one = stats.ttest_1samp(x, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose(analysis.mean_ci(x, 0.9), one)
    two = stats.ttest_ind(x, -y, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(2 * np.array(analysis.mean_ci([x, y])), two)
    assert np.isnan(analysis.mean_ci([1.0])).all() and analysis.mean_ci([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("value", [0.1, 0.7, -1.1, 1e9 / 3, 1e-9 / 3, 0.0])
def test_constants_have_no_spread_whatever_their_rounding(value):
    nothing = (None, None, None)
    for n in range(2, 9):
        same = [value] * n
        assert analysis.separation(same, [value] * (n + 1)) == nothing
        assert analysis.separation(same, [2.0 * value] * 3) == nothing
        assert analysis.separation([same, [3.0] * 2], [same, [5.0] * 2]) == nothing
        low, high = analysis.mean_ci(same)
        assert low == high == pytest.approx(value)
    # A small spread is still one.
    x, y = [1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0 + 2e-9]
    assert analysis.separation(x, y).d == pytest.approx(-np.sqrt(2), rel=1e-5)
    assert np.ptp(analysis.mean_ci(x)) > 1e-9


# --- two groups


def test_improvement_and_its_permutation_test_are_mann_and_whitneys():
    for seed in range(5):
        x, y = np.round(sample(6, seed=seed), 1), np.round(sample(7, seed=seed + 50, shift=0.8), 1)
        known = stats.mannwhitneyu(x, y)
        chance = analysis.probability_of_improvement(x, y)
        assert chance == pytest.approx(known.statistic / 42)
    x, y = sample(6), sample(7, seed=50, shift=0.8)  # without ties scipy knows the exact p
    exact = stats.mannwhitneyu(x, y, method="exact").pvalue
    assert analysis.permutation_test(x, y) == pytest.approx(exact, abs=0.015)
    assert analysis.permutation_test(y, x) == pytest.approx(exact, abs=0.015)
    # All of four seeds above all of four others happens 2 times in 70.
    assert analysis.permutation_test([5.0, 6, 7, 8], [1.0, 2, 3, 4]) == pytest.approx(
        2 / 70, abs=0.006
    )
    assert analysis.permutation_test([1.0] * 5, [1.0] * 5) == 1.0


def test_improvement_over_tasks_needs_no_common_scale():
    x = {"a": [1.0, 2.0, 3.0], "b": [1000.0, 3000.0]}
    y = {"b": [2000.0], "a": [0.0, 2.5]}
    assert analysis.probability_of_improvement(x, y) == pytest.approx((4 / 6 + 1 / 2) / 2)
    # Four tasks on which the first is better by a little each find what one alone does not.
    a = [1000.0**k * (sample(4, seed=k) + 2.0) for k in range(4)]
    b = [1000.0**k * sample(4, seed=k + 10) for k in range(4)]
    assert analysis.permutation_test(a, b) < 0.002


def test_holm_is_the_step_down_correction():
    np.testing.assert_allclose(
        analysis.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], rtol=1e-12
    )
    np.testing.assert_array_equal(analysis.holm([0.9, 0.8]), [1.0, 1.0])
    assert analysis.holm([]).shape == (0,)
    with pytest.raises(UsageError, match=r"in \[0, 1\]"):
        analysis.holm([1.2])


def test_a_planted_difference_is_found_and_none_between_halves_of_the_same_runs():
    found = {"p": [0, 0], "interval": [0, 0]}
    for seed in range(150):
        whole = sample(16, seed=seed)
        for planted in (0, 1):
            x, y = whole[:8] + 2.0 * planted, whole[8:]
            low, high = analysis.difference_ci(x, y, resamples=400)
            found["p"][planted] += analysis.permutation_test(x, y, resamples=400) <= 0.05
            found["interval"][planted] += not low <= 0.0 <= high
    # The test errs in 5% at most, the interval of eight seeds in about 6%; noise is 2%.
    assert found["p"][0] <= 15 and found["interval"][0] <= 18
    assert found["p"][1] >= 135 and found["interval"][1] >= 135


# --- power


def test_seeds_needed_are_those_of_the_published_tables():
    """Cohen's, and the rule 15.7 / d^2 + 1."""
    published = {0.2: 394, 0.5: 64, 0.8: 26, 1.0: 17, 1.25: 12, 1.5: 9, 2.0: 6, 3.0: 4}
    assert {d: analysis.seeds_needed(d) for d in published} == published
    nine = {0.5: 86, 0.8: 34, 1.0: 23, 1.25: 15, 1.5: 11, 2.0: 7, 3.0: 4}
    assert {d: analysis.seeds_needed(-d, power=0.9) for d in nine} == nine
    assert analysis.seeds_needed(0.0) is None and analysis.seeds_needed(1e-3) is None
    assert analysis.seeds_needed(1e6) == 2
    smallest = {3: 3.1, 4: 2.4, 5: 2.0, 8: 1.5, 10: 1.3, 20: 0.9, 30: 0.7}
    for n, d in smallest.items():
        assert analysis.detectable_difference(n) == pytest.approx(d, abs=0.06)
        assert analysis.power_of(n, analysis.detectable_difference(n)) == pytest.approx(0.8)


def test_power_grows_with_seeds_and_difference_and_is_a_number_everywhere():
    seeds, differences = (2, 3, 5, 10, 100, 1000, 10_000), (0.0, 0.1, 0.5, 1.0, 3.0, 10.0, 1e4)
    table = np.array([[analysis.power_of(n, d) for d in differences] for n in seeds])
    assert np.isfinite(table).all()
    np.testing.assert_allclose(table[:, 0], 0.05, atol=1e-6)
    assert (np.diff(table, axis=0) >= -1e-9).all() and (np.diff(table, axis=1) >= -1e-9).all()
    assert analysis.power_of(5, 1.0, m=20) == analysis.power_of(20, 1.0, m=5)


def test_power_is_how_often_the_test_finds_the_difference():
    rng = np.random.default_rng(0)
    p = stats.ttest_ind(rng.normal(1.5, 1.0, (4000, 5)), rng.normal(size=(4000, 8)), axis=1).pvalue
    assert np.mean(p <= 0.05) == pytest.approx(analysis.power_of(5, 1.5, m=8), abs=0.02)


def test_separation_has_the_standardised_difference_and_a_limit_of_the_spread():
    x, y = [1.0, 2.0, 3.0], [0.0, 2.0, 4.0, 2.0]
    found = analysis.separation(x, y)
    assert found.d == 0.0 and found.seeds is None and found.seeds_high is None
    x = [3.0, 4.0, 5.0]
    d = 2.0 / np.sqrt((2.0 + 8.0) / 5)  # squares over degrees of freedom
    limit = d * np.sqrt(stats.chi2.ppf(0.2, 5) / 5)
    expected = (d, analysis.seeds_needed(d), analysis.seeds_needed(limit))
    assert analysis.separation(x, y) == pytest.approx(expected)
    # The mean of two equal tasks has half the variance.
    assert analysis.separation([x, x], [y, y]).d == pytest.approx(d * np.sqrt(2))
    assert analysis.separation([1.0], [2.0]).d is None
    assert analysis.separation([1.0, 1.0], [2.0, 2.0]).d is None
    with pytest.raises(UsageError, match="n is 1"):
        analysis.power_of(1, 1.0)
    with pytest.raises(UsageError, match="power is 80"):
        analysis.seeds_needed(1.0, power=80)


# --- curves


def test_a_draw_has_one_seed_index_for_all_times():
    curves = sample(6, tasks=9).cumsum(axis=0)  # [T, seeds]
    middle, low, high = analysis.curve_ci([curves])
    np.testing.assert_allclose(middle, analysis.iqm(curves))
    for t in (0, 4, 8):  # pointwise it is the interval of the scores at that time
        np.testing.assert_allclose((low[t], high[t]), analysis.bootstrap_ci(curves[t]))
    drawn = analysis.bootstrap([curves], analysis.aggregate_mean)
    area = analysis.bootstrap(curves.mean(axis=0), analysis.aggregate_mean)
    np.testing.assert_allclose(drawn.mean(axis=0), area)
    with pytest.raises(UsageError, match="one T"):
        analysis.curve_ci([curves, curves[1:]])


def test_area_and_steps_to_a_threshold():
    steps = np.array([0, 10, 30])
    returns = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    np.testing.assert_allclose(analysis.area_under_curve(steps, returns), [(10 + 60) / 30, 5.0])
    np.testing.assert_array_equal(analysis.area_under_curve([7], [[1.0, 2.0]]), [1.0, 2.0])
    for threshold, expected in ((2.0, [10, 0]), (4.5, [np.inf, 0]), (6.0, [np.inf, np.inf])):
        found = analysis.steps_to_threshold(steps, returns, threshold)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(UsageError, match="increasing"):
        analysis.area_under_curve([1, 1, 2], returns)


# --- coverage


def test_coverage_is_what_the_documents_say():
    """And the benchmark's short cut is ``bootstrap_ci`` itself."""
    recorded = json.loads((ROOT / "results/coverage.json").read_text())
    assert recorded["draws"] == 10_000
    with script_module("coverage", ROOT / "benchmarks") as script:
        for n, trim, f in ((8, 2, analysis.iqm), (4, 1, analysis.iqm), (5, 0, np.mean)):
            x, y = np.sort(sample(n, tasks=2), axis=1)
            ours = script.intervals(x[None], script.weights(n, trim))[:, 0]
            np.testing.assert_allclose(ours, analysis.bootstrap_ci(x, f), rtol=1e-12)
        both = x @ script.weights(n, 1) - y @ script.weights(n, 1, column=1)
        np.testing.assert_allclose(np.percentile(both, [2.5, 97.5]), analysis.difference_ci(x, y))
        lognormal = np.exp(script.SIGMA * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000))
        assert script.truth("lognormal", "iqm") == pytest.approx(analysis.iqm(lognormal), rel=1e-4)
        assert script.truth("lognormal", "mean") == pytest.approx(lognormal.mean(), rel=1e-3)
        for name, kinds in recorded["coverage"]["8"].items():
            assert 0.91 <= kinds["iqm"] <= 0.97
            found = script.cover(name, 8, 1000, np.random.default_rng(1))
            for kind in ("iqm", "mean_t", "iqm_difference"):
                assert found[kind] == pytest.approx(kinds[kind], abs=0.03)


def test_the_documents_program_runs():
    text = (ROOT / "docs/statistics.md").read_text()
    said: dict = {}
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    exec(compile(block, "docs/statistics.md", "exec"), said)
    assert said["low"] < said["a"].mean() - said["b"].mean() < said["high"] and said["d"] > 0
    for n, found in json.loads((ROOT / "results/coverage.json").read_text())["coverage"].items():
        row = " / ".join(f"{100 * kinds['iqm']:.1f}" for kinds in found.values())
        assert f"| {n} | {row} |" in text


# --- rliable


def test_rliable_agrees():
    try:
        from rliable import library, metrics
    except Exception as error:  # beside pandas 3 it raises others than ImportError
        pytest.skip(f"rliable cannot be imported: {error}")
    x, y = sample(8, tasks=3, seed=1), sample(6, tasks=3, seed=2)  # rliable has [runs, tasks]
    ours = [analysis.aggregate_iqm, analysis.aggregate_mean, analysis.aggregate_median]
    theirs = [metrics.aggregate_iqm, metrics.aggregate_mean, metrics.aggregate_median]
    ours.append(analysis.optimality_gap)
    theirs.append(metrics.aggregate_optimality_gap)
    np.random.seed(0)  # rliable draws its indices from here  # noqa: NPY002
    for f, g in zip(ours, theirs, strict=True):
        estimate, edges = library.get_interval_estimates(
            {"x": x.T}, lambda scores, g=g: np.array([g(scores)]), reps=4000
        )
        assert f(x) == pytest.approx(estimate["x"][0], rel=1e-12)
        low, high = analysis.interval(analysis.bootstrap(x, f, 20_000))
        np.testing.assert_allclose((low, high), edges["x"][:, 0], atol=0.04)
    chance, edges = library.get_interval_estimates(
        {"xy": (x.T, y.T)},
        lambda a, b: np.array([metrics.probability_of_improvement(a, b)]),
        reps=2000,
    )
    assert analysis.probability_of_improvement(x, y) == pytest.approx(chance["xy"][0])
    np.testing.assert_allclose(analysis.improvement_ci(x, y), edges["xy"][:, 0], atol=0.03)
    taus = np.linspace(-1.5, 1.5, 5)
    profile, bands = library.create_performance_profile({"x": x.T}, taus)
    np.testing.assert_allclose(analysis.performance_profile(x, taus), profile["x"])
    np.testing.assert_allclose(analysis.profile_ci(x, taus), bands["x"], atol=0.05)
