"""``python -m jaxrl.analysis compare``: groups, tables, files and what it says."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxrl import analysis
from jaxrl.analysis.__main__ import main
from jaxrl.analysis.sources import read_csv, read_run
from jaxrl.errors import UsageError

STEPS = (0, 500, 1000)
REFERENCE = {"random": 0.0, "expert": 200.0, "source": "measured"}


def make_run(
    folder, final, *, algorithm="PPO", env="probe/two", sweep=(), first=0, kind="eval", **more
):
    """A finished run; every seed's return rises linearly from 0 to its ``final[seeds]``.

    With a sweep, ``final`` is ``[configurations, seeds]``.
    """
    folder.mkdir(parents=True)
    config = {"algorithm": algorithm, "env": env, "unit": "env_steps", "sweep": list(sweep)}
    (folder / "config.json").write_text(json.dumps(config | more))
    table = np.reshape(final, (len(sweep) or 1, -1))
    rows = [
        {"kind": kind, "seed": first + i, "step": s, "episode_return": _json(value * s / STEPS[-1])}
        | ({"config": c, "sweep": sweep[c]} if sweep else {})
        for s in STEPS
        for c, values in enumerate(table)
        for i, value in enumerate(values)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    summary = {"total_steps": STEPS[-1], "steps_per_second": 1.0}
    summary["final_return"] = analysis.final_return(table.ravel())
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _json(value):
    return float(value) if np.isfinite(value) else None


def sample(n, seed, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, n)


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Run the command in a new folder; return its code, its output and its error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["compare", *map(str, words)])
        return (code, *capsys.readouterr())

    return run


def records(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- what it finds


def test_planted_difference_is_found_and_written_everywhere(tmp_path, compare):
    a = make_run(tmp_path / "a", sample(10, 1, shift=2.0))
    b = make_run(tmp_path / "b", sample(9, 2), algorithm="SAC_2")
    files = ("--out", "x.png", "--out-csv", "x.csv", "--out-latex", "x.tex")
    code, printed, _ = compare(a, "--", b, *files, "--threshold", "1")
    assert code == 0 and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "PPO and SAC_2 on probe/two: a difference, p " in printed
    assert "few seeds" not in printed

    x, y = sample(10, 1, shift=2.0), sample(9, 2)
    first, second, pair = records(tmp_path / "x.csv")
    assert [row["kind"] for row in (first, second, pair)] == ["group", "group", "pair"]
    assert float(first["iqm"]) == pytest.approx(analysis.iqm(x))
    low, high = analysis.bootstrap_ci(x)
    assert float(first["iqm_low"]) == pytest.approx(low)
    assert float(first["iqm_high"]) == pytest.approx(high)
    assert float(second["mean_low"]) == pytest.approx(analysis.mean_ci(y)[0])
    assert float(first["area"]) == pytest.approx(analysis.iqm(x / 2))
    assert float(first["area_high"]) == pytest.approx(high / 2)
    assert int(first["reached"]) == np.sum(x >= 1.0) and first["against"] == ""
    assert first["optimality_gap"] == ""  # there is no reference
    expected = analysis.difference_ci(x, y)
    assert float(pair["iqm_difference_low"]) == pytest.approx(expected[0])
    assert float(pair["probability_of_improvement"]) == pytest.approx(
        analysis.probability_of_improvement(x, y)
    )
    assert float(pair["p"]) == float(pair["p_holm"]) == analysis.permutation_test(x, y)
    needed = analysis.separation(x, y)
    assert float(pair["d"]) == pytest.approx(needed.d)
    assert int(pair["seeds_needed"]) == needed.seeds
    assert f"d {needed.d:.2f} needs {needed.seeds} seeds ({needed.seeds_high})" in printed
    latex = (tmp_path / "x.tex").read_text()
    assert r"SAC\_2 & probe/two & 9" in latex and r"P(left $>$ right)" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    for part in (rows[:3], rows[3:]):
        assert len({row.count("&") for row in part}) == 1


def test_halves_of_the_same_runs_do_not_differ(tmp_path, compare):
    whole = sample(16, 3)
    make_run(tmp_path / "a", whole[:8])
    make_run(tmp_path / "b", whole[8:], first=8)
    code, printed, _ = compare("a", "--", "b")
    assert code == 0 and "no difference was found" in printed and "picture: comp" in printed
    assert "PPO (a) and PPO (b) on probe/two" in printed
    code, _, error = compare("a", "--", "b")
    assert code == 2 and "comparison.png exists" in error


def test_few_seeds_are_named_as_such(tmp_path, compare):
    make_run(tmp_path / "a", sample(3, 1, shift=9.0))
    make_run(tmp_path / "b", sample(3, 2))
    make_run(tmp_path / "c", [1.0], algorithm="DQN")
    make_run(tmp_path / "d", sample(5, 4), algorithm="PQN")
    _, printed, _ = compare("a", "--", "b", "--names", "left, right")
    assert printed.count("(few seeds)") == 4 and "with fewer than 5 seeds" in printed
    # Three above three others: p is 2 in 20 however far they are apart.
    assert "left and right on probe/two: no difference was found, p 0.1" in printed
    assert "(with 3 and 3 seeds it cannot be below 0.1);" in printed
    _, printed, _ = compare("c", "--", "d", "--out", "x.png")
    assert "- (one seed)" in printed and "nan" not in printed.lower()
    groups = analysis.read_groups([["c"], ["d"]])
    (row, _), (pair,) = analysis.compare_groups(groups)[2:4]
    assert np.isnan(row.iqm.low) and np.isnan(pair.difference.low) and pair.seeds == (1, 5)


# --- groups


def test_runs_of_one_side_are_one_sample_and_tasks_are_environments(tmp_path):
    for i, env in enumerate(("probe/one", "probe/two", "probe/two")):
        make_run(tmp_path / f"a{i}", [10.0 * i + 1, 10.0 * i + 2], env=env, first=2 * i)
    make_run(tmp_path / "b0", [5.0, 6.0], algorithm="SAC")
    make_run(tmp_path / "b1", [7.0, 8.0], algorithm="SAC", env="probe/three")
    sides = [[tmp_path / f"a{i}" for i in range(3)], [tmp_path / f"b{i}" for i in range(2)]]
    groups = analysis.read_groups(sides)
    assert [group.name for group in groups.groups] == ["PPO", "SAC"]
    assert groups.tasks == ["probe/two"] and not groups.scaled
    np.testing.assert_array_equal(
        groups.groups[0].tasks["probe/two"].final, [11.0, 12.0, 21.0, 22.0]
    )
    assert any("not every group has it: probe/one, probe/three" in note for note in groups.notes)
    with pytest.raises(UsageError, match="no task is common"):
        analysis.read_groups([[tmp_path / "a0"], [tmp_path / "b0"]])


def test_scores_are_normalised_where_runs_have_references(tmp_path):
    for name, shift in (("a", 20.0), ("b", 0.0)):
        for env in ("probe/one", "probe/two"):
            final = 100.0 + shift + np.arange(6.0)
            make_run(tmp_path / name / env[-3:], final, env=env, reference=REFERENCE)
    sides = [sorted((tmp_path / name).iterdir()) for name in "ab"]
    comparison = analysis.compare_groups(analysis.read_groups(sides), threshold=30.0)
    assert comparison.groups.scaled
    assert [view.name for view in comparison.views] == ["probe/one", "probe/two", "all tasks"]
    whole = [row for row in comparison.rows if row.task == "all tasks"]
    assert whole[0].iqm.value == pytest.approx(50.0 + 20 / 2 + 2.5 / 2)
    assert whole[1].gap == pytest.approx(100.0 - whole[1].mean.value)
    assert whole[0].reached is None and comparison.rows[0].reached == 6
    assert [row.steps_to.value for row in comparison.rows[:2]] == [500.0, 1000.0]
    pair = comparison.pairs[-1]
    assert pair.task == "all tasks" and pair.difference.value == pytest.approx(10.0)
    assert pair.separation.seeds is not None
    # Another scale changes scores and no rank; both tasks need one.
    other = {"probe/one": (100.0, 200.0), "probe/two": (100.0, 300.0)}
    rescaled = analysis.compare_groups(analysis.read_groups(sides, references=other))
    assert rescaled.rows[0].iqm.value == pytest.approx(22.5)
    assert rescaled.pairs[-1].p == pair.p
    config = sides[0][0] / "config.json"
    config.write_text(config.read_text().replace("200.0", "300.0"))
    with pytest.raises(UsageError, match="2 different references"):
        analysis.read_groups(sides)


def test_returns_of_several_tasks_are_not_averaged(tmp_path):
    for name, shift in (("a", 3.0), ("b", 0.0)):
        for i, env in enumerate(("probe/one", "probe/two")):
            final = 1000.0**i * sample(6, ord(name) + i, shift=shift)
            make_run(tmp_path / name / env[-3:], final, env=env)
    groups = analysis.read_groups([sorted((tmp_path / name).iterdir()) for name in "ab"])
    comparison = analysis.compare_groups(groups)
    assert "all tasks" not in {row.task for row in comparison.rows}
    pair = comparison.pairs[-1]
    assert pair.task == "all tasks" and pair.difference is None and pair.p_holm < 0.01
    assert pair.improvement.value > 0.9
    assert any("give --reference 'probe/one=RANDOM,EXPERT'" in note for note in groups.notes)
    with pytest.raises(UsageError, match="threshold 1 would be a return of 2 tasks"):
        analysis.compare_groups(groups, threshold=1.0)


def test_configurations_of_a_sweep_are_all_compared_and_none_is_chosen(tmp_path, compare):
    sweep = [{"gamma": 0.9}, {"gamma": 0.99}, {"gamma": 0.999}]
    final = [sample(8, i, shift=i) for i in range(3)]
    make_run(tmp_path / "a", final, sweep=sweep)
    make_run(tmp_path / "b", sample(8, 9), algorithm="SAC")
    _, printed, _ = compare("a", "--", "b", "--out-csv", "x.csv", "--out", "x.png")
    pairs = [row for row in records("x.csv") if row["kind"] == "pair"]
    assert [row["group"] for row in pairs] == [f"PPO gamma={g}" for g in ("0.9", "0.99", "0.999")]
    p = analysis.holm([float(row["p"]) for row in pairs])
    np.testing.assert_allclose([float(row["p_holm"]) for row in pairs], p)
    assert (
        "every configuration of a sweep is its own group" in printed
        and "(Holm, 3 comparisons)" in printed
    )
    _, printed, _ = compare("a", "--", "b", "--where", "gamma=0.99", "--out", "x.png")
    assert "selected by --where gamma=0.99" in printed and "gamma=0.999" not in printed
    # Of one sweep alone, configurations are compared with each other.
    comparison = analysis.compare_groups(analysis.read_groups([["a"]]))
    assert len(comparison.pairs) == 3
    for word, reason in (
        ("gama=0.9", "did you mean gamma"),
        ("gamma=0.5", "a has gamma=0.9; gamma=0.99"),
        ("gamma", "give NAME=VALUE"),
        ("gamma=x", "'x' must be a number"),
    ):
        code, _, error = compare("a", "--", "b", "--where", word, "--out", "x.png")
        assert code == 2 and reason in error and error.count("\n") == 1


def test_configurations_that_differ_late_in_their_digits_are_groups_of_their_own(tmp_path):
    sweep = [{"gamma": 0.9999995}, {"gamma": 0.9999999}]
    a = make_run(tmp_path / "a", [[1.0, 2.0], [5.0, 6.0]], sweep=sweep)
    b = make_run(tmp_path / "b", [3.0, 4.0], algorithm="SAC")
    names = ["PPO gamma=0.9999995", "PPO gamma=0.9999999", "SAC"]
    assert [group.name for group in analysis.read_groups([[a], [b]]).groups] == names
    for i, swept in enumerate(sweep):
        groups = analysis.read_groups([[a], [b]], where=swept)
        assert [group.name for group in groups.groups] == [names[i], "SAC"]
        assert any(f"--where gamma={swept['gamma']};" in note for note in groups.notes)
    # Equal values are one group: in another order, or with another rounding error.
    first, second = {"x": 0.3, "y": 1e6}, {"y": 1e6, "x": 0.1 + 0.2}
    c = make_run(tmp_path / "c", [1.0, 2.0], sweep=[first])
    d = make_run(tmp_path / "d", [3.0, 4.0], sweep=[second])
    pooled = analysis.read_groups([[c, d], [b]], where={"x": 0.3}).groups[0]
    assert pooled.name == "PPO x=0.3 y=1000000" and len(pooled.tasks["probe/two"].final) == 4


def test_datasets_are_tasks_of_their_own_where_one_side_has_several(tmp_path):
    for name in "ab":
        for data in ("d1", "d2"):
            folder = tmp_path / name / data
            make_run(folder, sample(4, ord(name)), algorithm=name, data={"checksum": data})
    sides = [sorted((tmp_path / name).iterdir()) for name in "ab"]
    assert analysis.read_groups(sides).tasks == ["probe/two from d1", "probe/two from d2"]
    assert analysis.read_groups([sides[0][:1], sides[1][:1]]).tasks == ["probe/two"]


def test_options_of_the_environment_that_differ_are_noted(tmp_path):
    def made(name, **config):
        return make_run(tmp_path / name, [1.0 + len(name), 2.0], **config)

    plain, old = made("a", max_steps=100, env_options={"engine": "c"}), made("old")
    other = made("engine", max_steps=100, env_options={"engine": "mjx", "randomize": None})
    chunks = made("chunks", max_steps=25, env_options={"execute": 4})
    for second in (old, other):
        assert not [n for n in analysis.read_groups([[plain], [second]]).notes if "differ in" in n]
    notes = analysis.read_groups([[plain], [chunks]]).notes
    assert "the runs on probe/two differ in execute: the default and 4" in notes
    assert "the runs on probe/two differ in max_steps: 100 and 25" in notes


def test_what_is_no_sample_is_refused(tmp_path):
    a = make_run(tmp_path / "a", [1.0, 2.0])
    copy = make_run(tmp_path / "copy", [1.0, 2.0])
    other = make_run(tmp_path / "other", [3.0, 4.0], agent={"gamma": 0.5})
    sac = make_run(tmp_path / "sac", [3.0, 4.0], algorithm="SAC")
    for sides, reason in (
        ([[a], [a]], "given twice"),
        ([[a, copy], [sac]], "same returns of seed 0"),
        ([[a, sac], [copy]], "PPO and SAC are on one side"),
        ([[a], []], "no run on one side"),
        ([[a]], "one group of runs cannot be compared"),
        ([], "one group of runs cannot be compared"),
    ):
        with pytest.raises(UsageError, match=reason):
            analysis.read_groups(sides)
    with pytest.raises(UsageError, match="names has 1 different ones; give one for each of the 2"):
        analysis.read_groups([[a], [sac]], names=["x"])
    with pytest.raises(UsageError, match="reference names probe/to; did you mean probe/two"):
        analysis.read_groups([[a], [sac]], references={"probe/to": (0.0, 1.0)})
    groups = analysis.read_groups([[a, other], [sac]])  # asked for, and said
    assert any("different hyper-parameters" in note for note in groups.notes)


# --- returns


def unequal(path):
    """Write a CSV file of seeds whose returns are their steps, but one ends at 100 of 1,000."""
    ends = {"X": (1000, 100, 1000), "Y": (1000, 1000, 1000)}
    rows = [
        f"{name},env,{seed},{step},{step}"
        for name, seeds in ends.items()
        for seed, end in enumerate(seeds)
        for step in range(0, end + 1, 100)
    ]
    return write_csv(path, rows)


def test_a_seed_that_ends_early_hides_none_that_ends_late(tmp_path):
    groups = analysis.read_groups([], [unequal(tmp_path / "x.csv")])
    scores = groups.groups[0].tasks["env"]
    assert scores.ends == (100, 1000) and groups.groups[1].tasks["env"].ends == (1000, 1000)
    np.testing.assert_array_equal(scores.final, [1000.0, 100.0, 1000.0])
    np.testing.assert_array_equal(scores.curve.steps, [0, 100])
    assert analysis.compare_groups(groups).rows[0].steps == (100, 1000)
    write_csv(tmp_path / "y.csv", [f"{x},env,{s},0,{s}" for x in "XY" for s in range(2)])
    with open(tmp_path / "y.csv", "a") as file:
        file.write("".join(f"{x},env,1,500,2\n" for x in "XY"))
    for name, low, high in (("x", 100, "1,000"), ("y", 0, "500")):
        notes = analysis.read_groups([], [tmp_path / f"{name}.csv"]).notes
        assert f"runs on env end at {low} to {high} steps; to compare" in " ".join(notes)


def test_steps_to_a_threshold_are_those_of_every_seeds_whole_curve(tmp_path):
    groups = analysis.read_groups([], [unequal(tmp_path / "x.csv")])
    x, y = analysis.compare_groups(groups, threshold=650.0).rows
    assert (x.reached, x.steps_to.value) == (2, 700.0) and np.isinf(x.steps_to.high)
    assert (y.reached, y.steps_to) == (3, (700.0, 700.0, 700.0))
    # Runs of other lengths are one sample too, with scores as with returns.
    runs = [make_run(tmp_path / name, [200.0, 210.0], reference=REFERENCE) for name in "ab"]
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs[1] / "metrics.jsonl").write_text("".join(lines[:-2]).replace("100.0", "110.0"))
    sac = make_run(tmp_path / "sac", [50.0, 60.0], algorithm="SAC", reference=REFERENCE)
    first, _ = analysis.compare_groups(analysis.read_groups([runs, [sac]]), threshold=90.0).rows
    assert first.steps == (500, 1000) and first.reached == 2 and first.seeds == (4, 4)


def test_failed_seeds_are_named_and_never_left_out(tmp_path):
    a = make_run(tmp_path / "a", [1.0, np.nan, 3.0])
    b = make_run(tmp_path / "b", [1.0, 2.0, 2.5], algorithm="SAC")
    with pytest.raises(UsageError, match="no finite return of seed 1 at step 1,000.*--failed 0"):
        analysis.read_groups([[a], [b]])
    groups = analysis.read_groups([[a], [b]], failed=-5.0)
    np.testing.assert_array_equal(groups.groups[0].tasks["probe/two"].final, [1.0, -5.0, 3.0])


def test_unfinished_runs_are_compared_where_every_seed_is(tmp_path):
    a = make_run(tmp_path / "a", [1.0, 2.0])
    (a / "summary.json").unlink()
    lines = (a / "metrics.jsonl").read_text().splitlines(keepends=True)
    (a / "metrics.jsonl").write_text("".join(lines[:-1]))  # killed before the last seed's row
    (source,) = read_run(a)
    np.testing.assert_array_equal(source.final, [0.5, 1.0])
    b = make_run(tmp_path / "b", [4.0, 8.0], algorithm="SAC")
    groups = analysis.read_groups([[a], [b]])
    assert any("end at 500 to 1,000 steps" in note for note in groups.notes)
    groups = analysis.read_groups([[a], [b]], steps=300)  # linear between evaluations
    np.testing.assert_allclose(groups.groups[0].tasks["probe/two"].final, [0.3, 0.6])
    scores = groups.groups[1].tasks["probe/two"]
    np.testing.assert_allclose(scores.final, [1.2, 2.4])
    assert list(scores.curve.steps) == [0, 300] and not groups.notes
    groups = analysis.read_groups([[a], [b]], steps=500)
    np.testing.assert_array_equal(groups.groups[1].tasks["probe/two"].final, [2.0, 4.0])
    for steps in (-1, 501):
        with pytest.raises(UsageError, match="a has returns from step 0 to 500; give one of these"):
            analysis.read_groups([[a], [b]], steps=steps)
    # A seed that diverged has a row: it counts, as in a finished run.
    diverged = lines[-1].replace("2.0}", "null}")
    (a / "metrics.jsonl").write_text("".join([*lines[:-1], diverged]))
    with pytest.raises(UsageError, match="no finite return of seed 1 at step 1,000"):
        read_run(a)
    with pytest.raises(UsageError, match="no returns yet"):
        (a / "metrics.jsonl").write_text("")
        analysis.read_groups([[a], [b]])


def test_records_with_evaluations_alone_and_returns_in_training(tmp_path):
    a = make_run(tmp_path / "a", [1.0, 2.0])
    (a / "metrics.jsonl").rename(a / "evaluations.jsonl")
    b = make_run(tmp_path / "b", [3.0, 4.0], algorithm="SAC", kind="train")
    rows = (b / "metrics.jsonl").read_text().splitlines()
    rows[0] = rows[0].replace("0.0}", "null}")  # no episode has ended yet
    (b / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    groups = analysis.read_groups([[a], [b]])
    np.testing.assert_array_equal(groups.groups[0].tasks["probe/two"].final, [1.0, 2.0])
    np.testing.assert_array_equal(groups.groups[1].tasks["probe/two"].final, [3.0, 4.0])
    assert any("those in training" in note for note in groups.notes)


# --- CSV


def write_csv(path, rows, head="algorithm,env,seed,step,return"):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_curves_of_other_libraries_join_in(tmp_path, compare):
    make_run(tmp_path / "a", sample(6, 1, shift=3.0))
    rows = [
        f"{name},probe/two,s{seed},{step},{value * step / 1000}"
        for name, shift in (("Other", 0.0), ("Third", 1.0))
        for seed, value in enumerate(sample(5, 7, shift=shift))
        # Each seed was evaluated at steps of its own.
        for step in (0, 400 + seed, 1000)
    ]
    write_csv(tmp_path / "other.csv", ["", *rows, ""])
    sources = read_csv("other.csv")
    assert [(s.algorithm, s.task) for s in sources] == [
        ("Other", "probe/two"),
        ("Third", "probe/two"),
    ]
    np.testing.assert_allclose(sources[0].final, sample(5, 7))
    assert sources[0].curve.seeds == tuple(f"s{i}" for i in range(5))
    middle = sources[0].curve.returns[1]  # linear between a seed's own steps
    np.testing.assert_allclose(middle, sample(5, 7) * sources[0].curve.steps[1] / 1000)
    files = ("--out", "x.svg", "--out-csv", "x.csv")
    code, printed, _ = compare("a", "--csv", "other.csv", *files)
    assert code == 0 and "PPO and Other on probe/two: a difference" in printed
    assert sum(row["kind"] == "pair" for row in records("x.csv")) == 3
    code, _, error = compare("a", "--csv", "other.csv", "--out", "x.svg", "--out-csv", "other.csv")
    assert code == 2 and "out-csv other.csv is read by --csv" in error
    files = ("--out", "x.svg", "--out-latex", "other.csv")
    code, _, error = compare("a", "--csv", "other.csv", *files)
    assert code == 2 and "out-latex other.csv is read by --csv" in error
    assert read_csv("other.csv")


@pytest.mark.parametrize(
    ("rows", "head", "reason"),
    [
        (["1,2"], "step,return", "no column seed, env, algorithm; its first line must name"),
        (["A,e,0,0,1", "A,e,0,1.5,1"], None, "line 3: step is '1.5'; give a whole number"),
        (["A,e,0,0,1", "", "A,e,0,5,x"], None, "line 4: return is 'x'; give a number"),
        (["A,e,0,0,1", "A,e,0,0,1"], None, "line 3 repeats the step of its seed"),
        (["A,e,0,0,1", "A,e,0,5,nan"], None, "no finite return of seed 0 at step 5"),
        ([], None, "has no rows"),
        (["0,20,0,e,a,", "9,5,0,e,a,"], "step,return,seed,env,algorithm", "more fields than its"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(tmp_path, rows, head, reason):
    path = write_csv(tmp_path / "x.csv", rows, *([head] if head else []))
    with pytest.raises(UsageError, match=reason) as caught:
        read_csv(path)
    assert "\n" not in str(caught.value)


def test_csv_of_the_documents_is_read(tmp_path):
    text = (Path(__file__).parent.parent / "docs/statistics.md").read_text()
    head, *rows = re.findall(r"```csv\n(.*?)\n```", text, re.S)[0].splitlines()
    (source,) = read_csv(write_csv(tmp_path / "x.csv", rows, head))
    assert (source.algorithm, source.final) == ("Other PPO", [312.0])


def test_no_csv_at_all(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(UsageError, match="not a CSV file"):
        read_csv(tmp_path / "x.csv")
    with pytest.raises(OSError):
        read_csv(tmp_path / "nowhere.csv")


# --- the command line


def test_wrong_usage_is_one_line_before_anything_is_written(tmp_path, compare):
    make_run(tmp_path / "a", sample(5, 1))
    make_run(tmp_path / "b", sample(5, 2), algorithm="SAC")
    for words, reason in (
        ((), "one group of runs cannot be compared; give two"),
        (("a",), "one group of runs cannot be compared"),
        (("a", "--"), "no run on one side"),
        (("a", "--", "nowhere"), "is not a run folder"),
        (("a", "--", "b", "--out", "x.abc"), "end it in .png"),
        (("a", "--", "b", "--reference", "x"), "give TASK=RANDOM,EXPERT"),
        (("a", "--", "b", "--reference", "probe/two=5,1"), "expert's return must be greater"),
        (("a", "--", "b", "--steps", "x"), "invalid int value"),
        (
            ("a", "--", "b", "--where", "gamma=0.9", "--where", "gamma=0.99"),
            "where gamma=0.99 repeats gamma; give one value, as --where 'gamma=0.99'",
        ),
        (
            ("a", "--", "b", "--reference", "probe/two=0,1", "--reference", "probe/two=0,2"),
            "reference probe/two=0,2 repeats probe/two; give one value, as --reference",
        ),
        (("a", "--", "b", "--out-csv", "x", "--out-latex", "x"), "name two files"),
        (("a", "--", "b", "--threshold", "inf"), "threshold is inf"),
    ):
        code, printed, error = compare(*words)
        assert code == 2 and reason in error and error.count("\n") == 1, words
        assert not printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_figure_has_a_row_per_task_and_a_panel_per_statistic(tmp_path):
    for name in "ab":
        make_run(tmp_path / name / "1", sample(6, ord(name)), env="probe/one", algorithm=name)
        make_run(tmp_path / name / "2", sample(6, ord(name)), env="probe/$2", algorithm=name)
    groups = analysis.read_groups([sorted((tmp_path / name).iterdir()) for name in "ab"])
    axes = analysis.plot_groups(analysis.compare_groups(groups)).axes
    assert len(axes) == 8 and [axes[0].get_title(), axes[4].get_title()] == groups.tasks
    intervals, profile, chance, curves = axes[:4]
    scores = groups.groups[0].tasks["probe/one"].final
    np.testing.assert_allclose(intervals.get_lines()[0].get_xdata(), analysis.bootstrap_ci(scores))
    assert [text.get_text() for text in intervals.get_yticklabels()] == ["a", "b"]
    first = profile.get_lines()[0]
    np.testing.assert_allclose(
        first.get_ydata(), analysis.performance_profile(scores, first.get_xdata())
    )
    assert chance.get_yticklabels()[0].get_text() == "a > b"
    np.testing.assert_array_equal(curves.get_lines()[0].get_xdata(), STEPS)
    assert curves.get_lines()[0].get_ydata()[-1] == pytest.approx(analysis.iqm(scores))


def test_tasks_without_common_steps_leave_a_panel_empty(tmp_path, compare):
    rows = [
        f"{name},{env},{seed},{step},{step * (seed + shift)}"
        for name, shift in (("X", 1), ("Y", 3))
        for env, steps in (("short", (100, 1000)), ("long", (2000, 10_000)))
        for seed in range(3)
        for step in steps
    ]
    write_csv(tmp_path / "x.csv", rows)
    words = ["--csv", "x.csv", "--reference", "short=0,1000", "--reference", "long=0,10000"]
    tables = ["--out-csv", "out.csv", "--out-latex", "out.tex"]
    code, printed, _ = compare(*words, *tables, "--out", "x.png")
    assert code == 0 and "picture: x.png" in printed and (tmp_path / "x.png").exists()
    assert [row["task"] for row in records("out.csv")].count("all tasks") == 3
    references = {"short": (0.0, 1000.0), "long": (0.0, 10_000.0)}
    groups = analysis.read_groups([], ["x.csv"], references=references)
    panels = analysis.plot_groups(analysis.compare_groups(groups)).axes[3::4]
    assert [len(panel.get_lines()) for panel in panels] == [2, 2, 0]
    assert [text.get_text() for text in panels[2].texts] == ["no common steps"]


def test_tables_are_written_before_the_figure(tmp_path, compare):
    make_run(tmp_path / "a", sample(5, 1))
    make_run(tmp_path / "b", sample(5, 2), algorithm="SAC")
    files = ("--out-csv", "x.csv", "--out-latex", "x.tex", "--out", "not/there.png")
    code, _, error = compare("a", "--", "b", *files)
    assert code == 2 and "No such file" in error
    assert len(records("x.csv")) == 3 and (tmp_path / "x.tex").read_text().count("tabular") == 4
