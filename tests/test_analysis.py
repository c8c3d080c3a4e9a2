"""Run folders read back: frames, statistics, curves and the command line."""

import json

import numpy as np
import pytest
from scipy.stats import trim_mean

from jaxrl import analysis
from jaxrl.analysis import aggregate
from jaxrl.analysis.__main__ import main, table_rows
from jaxrl.analysis.heat_map import axes_of, plot_sweep
from jaxrl.errors import UsageError

STEPS = (0, 1000, 2000)


def make_run(
    folder, *, algorithm="PPO", env="probe/two", seeds=4, sweep=(), kinds=("train", "eval"), **more
):
    """A run folder whose return is ``step / 1000 + seed + 10 * configuration``."""
    folder.mkdir(parents=True)
    config = {"algorithm": algorithm, "env": env, "sweep": list(sweep), **more}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {"kind": kind, "seed": seed, **label, "step": step, "episode_return": value}
        for step in STEPS
        for kind in kinds
        for i, swept in enumerate(sweep or [{}])
        for label in [{"config": i, "sweep": swept} if sweep else {}]
        for seed in range(seeds)
        for value in [step / 1000 + seed + 10.0 * i + (100.0 if kind == "train" else 0.0)]
    ]
    write_lines(folder / "metrics.jsonl", rows)
    timing = [{"step": s, "seconds": s / 500, "steps_per_second": 500.0} for s in STEPS[1:]]
    write_lines(folder / "timing.jsonl", timing)
    return folder


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def finish(folder, per_seed=(1.0, 2.0, 3.0, 10.0), **more):
    """Give a run its summary."""
    final = analysis.final_return(per_seed)
    summary = {"total_steps": STEPS[-1], "steps_per_second": 4321.0, "final_return": final, **more}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


# --- loading


def test_frame_has_the_rows_and_swept_values_as_columns(tmp_path):
    sweep = [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
    run = make_run(tmp_path / "run", sweep=sweep, seeds=2)
    frame = analysis.load(run)
    assert len(frame) == len(STEPS) * 2 * 2 * 2
    assert set(frame["sweep.learning_rate"]) == {0.1, 0.2} and "sweep" not in frame
    evaluation = analysis.load(run, "eval")
    assert set(evaluation["kind"]) == {"eval"} and evaluation["episode_return"].max() == 13.0
    assert list(analysis.load_timing(run)["seconds"]) == [2.0, 4.0]


def test_nulls_are_nan_and_a_column_of_nulls_stays(tmp_path):
    run = make_run(tmp_path / "run")
    row = {"kind": "train", "seed": 0, "step": 5, "episode_return": None}
    write_lines(run / "metrics.jsonl", [row])
    column = analysis.load(run, "train")["episode_return"]
    assert column.dtype == float and column.isna().all()
    assert analysis.load(run, "eval").empty


@pytest.mark.parametrize("torn", [b'{"kind": "ev', '{"kind": "é'.encode()[:-1], b"\x00\x00"])
def test_a_torn_last_line_is_passed_over(tmp_path, torn):
    run = make_run(tmp_path / "run")
    whole = len(analysis.load(run))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(torn)
    assert len(analysis.load(run)) == whole


@pytest.mark.parametrize(
    "damage", [b'{"kind": "ev', b"[1, 2]", b"\xff\xfe\xfd", b"", b'{"kind": "eval", "seed": 0}']
)
def test_other_damage_names_file_and_line(tmp_path, damage):
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    lines[2] = damage
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(UsageError, match=r"metrics\.jsonl line 3 is damaged") as caught:
        analysis.load(run)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder_says_so(tmp_path):
    for wrong in (tmp_path, tmp_path / "nowhere", __file__):
        for read in (analysis.load, analysis.load_summary, analysis.load_config, analysis.plot_run):
            with pytest.raises(UsageError, match="is not a run folder"):
                read(wrong)
    run = make_run(tmp_path / "run")
    assert analysis.load_summary(run) is None
    with pytest.raises(UsageError, match="kind is 'evla'"):
        analysis.load(run, "evla")
    (run / "config.json").write_text('{"env": "probe/two"}')
    with pytest.raises(UsageError, match="has no algorithm"):
        analysis.load(run)
    (run / "config.json").write_text('{"env": ')
    with pytest.raises(UsageError, match="not a JSON object"):
        analysis.load(run)


def test_curves_are_steps_by_seeds_and_complete_where_every_seed_is(tmp_path):
    run = make_run(tmp_path / "run", seeds=3)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))  # killed before the last seed's row
    kind, (curve,) = analysis.load_curves(run)
    expected = np.asarray(STEPS)[:, None] / 1000 + np.arange(3.0)
    expected[-1, -1] = np.nan
    assert kind == "eval"
    np.testing.assert_array_equal(curve.returns, expected)
    np.testing.assert_array_equal(curve.complete().steps, STEPS[:-1])


def test_training_returns_stand_in_and_carry_over_chunks_without_an_episode(tmp_path):
    run = make_run(tmp_path / "run", seeds=2, kinds=("train",))
    returns = [[None, 1.0], [2.0, None], [3.0, 4.0]]
    rows = [
        {"kind": "train", "seed": seed, "step": step, "episode_return": value}
        for step, values in enumerate(returns)
        for seed, value in enumerate(values)
    ]
    write_lines(run / "metrics.jsonl", rows)
    kind, (curve,) = analysis.load_curves(run)
    assert kind == "train"
    np.testing.assert_array_equal(curve.complete().returns, [[2.0, 1.0], [3.0, 4.0]])
    (axes,) = analysis.plot_run(run).axes
    assert axes.get_ylabel() == "return in training (IQM, 95% interval)"


# --- statistics


@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_is_scipys_trimmed_mean(n):
    scores = np.random.default_rng(n).standard_cauchy((5, n))
    np.testing.assert_allclose(analysis.iqm(scores), trim_mean(scores, 0.25, axis=1), rtol=1e-13)
    np.testing.assert_allclose(analysis.iqm(scores.T, axis=0), analysis.iqm(scores), rtol=0)


def test_iqm_of_known_scores():
    assert analysis.iqm([0.0, 1.0, 2.0, 1000.0]) == 1.5
    assert analysis.iqm([7.0]) == 7.0
    assert np.isnan(analysis.iqm([0.0, 1.0, 2.0, np.nan]))
    with pytest.raises(UsageError):
        analysis.iqm([])


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = analysis.bootstrap_ci(rng.normal(3.0, 2.0, 20), confidence=0.9, resamples=400)
        hits += low <= 3.0 <= high
    # Binomial noise is 0.017, and the percentile bootstrap of 20 scores is a little narrow.
    assert 0.83 <= hits / 300 <= 0.95


def test_many_scores_are_resampled_piece_by_piece_to_the_same_interval(monkeypatch):
    scores = np.random.default_rng(0).normal(size=30)
    whole = analysis.bootstrap_ci(scores, resamples=100)
    monkeypatch.setattr(aggregate, "_BLOCK", 7 * 30)
    assert analysis.bootstrap_ci(scores, resamples=100) == whole


def test_bootstrap_is_stratified_and_keeps_to_its_seed():
    # Within a task there is no spread, so there is none at all; pooled draws would have some.
    scores = {"a": [0.0] * 5, "b": [10.0] * 5}
    assert analysis.bootstrap_ci(scores, np.mean) == (5.0, 5.0)
    assert analysis.bootstrap_ci([0.0] * 5 + [10.0] * 5, np.mean) != (5.0, 5.0)
    uneven = [[1.0, 2.0, 3.0], np.array([4.0, 9.0])]
    assert analysis.bootstrap_ci(uneven, seed=1) == analysis.bootstrap_ci(uneven, seed=1)
    wide, narrow = (analysis.bootstrap_ci(uneven, confidence=c) for c in (0.99, 0.5))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    for wrong in ([], [np.nan, 1.0], {"a": [1.0], "b": []}):
        with pytest.raises(UsageError):
            analysis.bootstrap_ci(wrong)
    with pytest.raises(UsageError, match="confidence is 95"):
        analysis.bootstrap_ci([1.0], confidence=95)


def test_final_return_is_ready_for_json():
    final = analysis.final_return([1.0, 2.0, 3.0, 10.0])
    assert final["mean"] == 4.0 and final["iqm"] == 2.5
    low, high = final["ci95"]
    assert 1.0 <= low < 2.5 < high <= 10.0
    assert json.loads(json.dumps(final, allow_nan=False)) == final
    assert analysis.final_return([5.0])["ci95"] == [5.0, 5.0]
    nothing = {"mean": None, "iqm": None, "ci95": [None, None]}
    for lost in (float("nan"), float("inf"), None):
        assert analysis.final_return([1.0, lost]) == {"per_seed": [1.0, None], **nothing}
    assert analysis.final_return([]) == {"per_seed": [], **nothing}


def test_probability_of_improvement_and_profile():
    assert analysis.probability_of_improvement([2.0, 3.0], [1.0, 0.0, -1.0]) == 1.0
    assert analysis.probability_of_improvement([1.0, 2.0], [1.0, 2.0]) == 0.5
    assert analysis.probability_of_improvement([1.0], [0.0, 1.0, 2.0, 3.0]) == 0.375
    profile = analysis.performance_profile([[0.0, 1.0], [2.0, 3.0]], [-1.0, 0.0, 1.5, 3.0])
    np.testing.assert_array_equal(profile, [1.0, 0.75, 0.5, 0.0])
    with pytest.raises(UsageError):
        analysis.probability_of_improvement([], [1.0])
    with pytest.raises(UsageError):
        analysis.performance_profile([np.nan], [0.0])


# --- curves


def test_plot_has_every_seed_the_iqm_and_its_band(tmp_path):
    run = make_run(tmp_path / "run", seeds=4)
    figure = analysis.plot_run(run, tmp_path / "curves.png")
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    (axes,) = figure.axes
    *seeds, middle = axes.get_lines()
    assert [line.get_ydata()[0] for line in seeds] == [0.0, 1.0, 2.0, 3.0]
    np.testing.assert_array_equal(middle.get_xdata(), STEPS)
    np.testing.assert_array_equal(middle.get_ydata(), [1.5, 2.5, 3.5])
    band = axes.collections[0].get_paths()[0].vertices
    last = band[band[:, 0] == STEPS[-1], 1]
    assert (last.min(), last.max()) == analysis.bootstrap_ci([2.0, 3.0, 4.0, 5.0])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    formatter = axes.xaxis.get_major_formatter()
    assert [formatter(x) for x in (0, 2500, 1_000_000)] == ["0", "2.5k", "1M"]


def test_swept_run_has_a_colour_for_each_configuration(tmp_path):
    for count in (2, 12):
        sweep = [{"gamma": 0.9 + i / 1000, "clip": 0.2} for i in range(count)]
        run = make_run(tmp_path / str(count), sweep=sweep, seeds=2)
        (axes,) = analysis.plot_run(run, tmp_path / "swept.png").axes
        handles, labels = axes.get_legend_handles_labels()
        assert labels[1] == "gamma=0.901 clip=0.2"
        assert len({handle.get_color() for handle in handles}) == count


def test_a_long_legend_leaves_room_for_the_curves(tmp_path):
    """Of 40 entries 16 are named, the first and the last among them; 40 would leave no axes."""
    sweep = [{"gamma": 0.9 + i / 1000, "clip": 0.2} for i in range(40)]
    figure = analysis.plot_run(make_run(tmp_path / "run", sweep=sweep, seeds=2))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 16 and axes.get_legend().get_title().get_text() == "16 of 40"
    assert (labels[0], labels[-1]) == ("gamma=0.9 clip=0.2", "gamma=0.939 clip=0.2")
    assert axes.get_position().height > 0.5


def test_comparison_has_a_panel_per_environment_and_telling_labels(tmp_path):
    runs = [
        make_run(tmp_path / "x" / "first", env="probe/one"),
        make_run(tmp_path / "x" / "second", env="probe/one"),
        make_run(tmp_path / "y" / "second", env="probe/one", algorithm="SAC", seeds=1),
        make_run(tmp_path / "z", env="probe/two", algorithm="SAC"),
    ]
    (runs[1] / "metrics.jsonl").unlink()
    one, two = analysis.plot_comparison(runs, tmp_path / "comparison.pdf").axes
    handles, labels = one.get_legend_handles_labels()
    assert labels[0] == "PPO (first), 4 seeds" and labels[2] == "SAC, 1 seed"
    assert labels[1] == f"PPO ({runs[1]}): no returns yet"
    assert [one.get_title(), two.get_title()] == ["probe/one", "probe/two"]
    assert two.get_lines()[0].get_color() == handles[2].get_color()
    assert (tmp_path / "comparison.pdf").stat().st_size > 1000


def test_tasks_of_one_name_whose_scores_do_not_compare_are_told_apart(tmp_path):
    """Old contact margins, and Brax's back-ends: in panels, titles and tables."""
    given = {
        "mjx/Hopper-v5": [{}, {"margin": "current", "engine": "c"}, {"margin": "legacy"}],
        "brax/ant": [{"backend": "spring"}, {"backend": "mjx"}],
        "probe/one": [None],
    }
    runs = [
        make_run(tmp_path / str(i), env=env, env_options=options)
        for i, (env, options) in enumerate((env, x) for env in given for x in given[env])
    ]
    expected = [
        *("mjx/Hopper-v5", "mjx/Hopper-v5 margin=legacy", "brax/ant", "brax/ant backend=mjx"),
        "probe/one",
    ]
    figure = analysis.plot_comparison(runs)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == expected
    assert list(dict.fromkeys(table_rows(run)[0][2] for run in runs)) == expected
    (axes,) = analysis.plot_run(runs[2]).axes
    assert axes.get_title() == "PPO on mjx/Hopper-v5 margin=legacy"


def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match=r"end it in \.png"):
        analysis.plot_run(run, tmp_path / "curves.xyz")
    with pytest.raises(UsageError, match="no run to compare"):
        analysis.plot_comparison([])
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="no returns yet"):
        analysis.plot_run(run)


# --- the command line


def test_table_of_a_finished_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finish(make_run(tmp_path / "run"))
    before = sorted(run.iterdir())
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out
    low, high = analysis.final_return([1.0, 2.0, 3.0, 10.0])["ci95"]
    for cell in ("PPO", "probe/two", "2,000", "2.50", f"{low:.2f} to {high:.2f}", "4.00", "4,321"):
        assert cell in printed
    assert "unfinished" not in printed
    assert sorted(run.iterdir()) == before and [p.name for p in tmp_path.iterdir()] == ["run"]


def test_swept_run_has_a_row_per_configuration(tmp_path):
    sweep = [{"gamma": 0.9}, {"gamma": 0.99}]
    configurations = [
        {"sweep": s, "final_return": analysis.final_return([10.0 * i + 10.0])}
        for i, s in enumerate(sweep)
    ]
    run = finish(make_run(tmp_path / "run", sweep=sweep, seeds=1), configurations=configurations)
    rows = [row[3:] for row in table_rows(run)]
    assert rows == [
        ["gamma=0.9", "1", "2,000", "10.00", "10.00 to 10.00", "10.00", "4,321"],
        ["gamma=0.99", "1", "2,000", "20.00", "20.00 to 20.00", "20.00", ""],
    ]


def test_unfinished_runs_are_shown_as_far_as_they_are(tmp_path):
    run = make_run(tmp_path / "run")
    final = analysis.final_return([2.0, 3.0, 4.0, 5.0])
    low, high = (f"{x:.3f}" for x in final["ci95"])
    so_far = ["", "4", "2,000", "3.500", f"{low} to {high}", "3.500", "2,000"]
    assert [row[3:] for row in table_rows(run)] == [so_far]
    assert table_rows(run)[0][0] == f"{run} (unfinished)"
    # Finished at 1000 steps, then resumed for longer: that summary is old.
    finish(run, total_steps=1000)
    assert table_rows(run)[0][0] == f"{run} (unfinished)"
    assert [row[3:] for row in table_rows(run)] == [so_far]
    swept = make_run(tmp_path / "swept", sweep=[{"gamma": 0.9}, {"gamma": 0.5}], seeds=1)
    assert [row[3:7] for row in table_rows(swept)] == [
        ["gamma=0.9", "1", "2,000", "2.000"],
        ["gamma=0.5", "1", "2,000", "12.00"],
    ]
    for name in ("metrics.jsonl", "timing.jsonl"):
        (swept / name).unlink()
    assert table_rows(swept)[0][3:] == ["", "0", "0", "-", "-", "-", "-"]


def test_a_failed_seed_leaves_the_statistics_open(tmp_path):
    run = finish(make_run(tmp_path / "run", seeds=2), per_seed=[1.0, float("nan")])
    assert table_rows(run)[0][4:] == ["2", "2,000", "-", "-", "-", "4,321"]


@pytest.mark.parametrize("since", [1000, 2000])
def test_an_unfinished_run_with_a_failed_seed_shows_no_earlier_score(tmp_path, since):
    run = make_run(tmp_path / "run", seeds=2)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["seed"] == 0 and row["step"] >= since:
            row["episode_return"] = None
    write_lines(run / "metrics.jsonl", rows)
    assert table_rows(run)[0][4:8] == ["2", "2,000", "-", "-"]
    write_lines(run / "metrics.jsonl", rows[:-1])  # killed before the row of the last seed
    score = "-" if since == 1000 else "1.500"
    assert table_rows(run)[0][4:7] == ["2", "1,000", score]


def test_swept_values_are_printed_with_all_their_digits(tmp_path):
    sweep = [{"gamma": 0.9999995}, {"gamma": 0.9999999}]
    run = make_run(tmp_path / "run", sweep=sweep, seeds=1)
    assert [row[3] for row in table_rows(run)] == ["gamma=0.9999995", "gamma=0.9999999"]
    _, curves = analysis.load_curves(run)
    assert [curve.label for curve in curves] == ["gamma=0.9999995", "gamma=0.9999999"]


# --- sweeps


@pytest.mark.parametrize(
    ("rows", "axes", "panels"),
    [
        ([{}], [], ["configuration"]),
        ([{}, {}], [], ["configuration"]),
        ([{"a": "1", "x": 0.9}, {"b": "2", "x": 0.9}], ["a", "b"], ["a", "b"]),
        ([{"x": 0.9}, {"b": "2", "x": 0.99}], ["x", "b"], ["x", "b"]),
        ([{"b": "2", "x": 0.9}, {"x": 0.9}], ["b"], ["b"]),
        ([{"x": 0.9, "y": 1.0}, {"x": 0.99}, {"y": 3.0}], ["x", "y"], ["x", "y"]),
    ],
)
def test_a_sweep_is_drawn_where_rows_lack_names_of_others(tmp_path, rows, axes, panels):
    results = {"score": 1.0, "seeds": 2, "scores": [1.0, 2.0]}
    table = [{**row, **results} for row in rows]
    assert axes_of(table) == axes
    figure = plot_sweep(table, {"best": {}, "seeds": [0, 1]}, tmp_path / "sweep.png")
    drawn = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert [axes.get_xlabel() for axes in drawn] == panels
    ticks = {text.get_text() for text in drawn[-1].get_xticklabels()}
    assert "default" in ticks and (tmp_path / "sweep.png").exists()


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.99, 0.9968377, 0.999, 0.99968377, 0.9999], "0.99 0.996838 0.999 0.999684 0.9999"),
        ([0.9999999, 0.99999999, 0.999999999], "0.9999999 0.99999999 0.999999999"),
        ([1e-5, 3e-4, 1e3], "1e-05 0.0003 1000"),
    ],
)
def test_labels_of_swept_values_are_right_and_those_of_seeds_are_the_seeds(values, labels):
    table = [{"gamma": value, "score": 1.0, "scores": [1.0, 2.0]} for value in values]
    axes = plot_sweep(table, {"best": {}, "seeds": [100, 101]}).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == labels.split()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["100", "101"]
    assert axes.get_ylabel() == "seed"
    # Also on an axis that has a text too, and in a map of two names.
    mixed = [*table, {"score": 1.0}, {"a": 1.0, "gamma": values[0], "score": 1.0}]
    axes = plot_sweep(mixed, {"best": {}, "seeds": [100, 101]}).axes[0]
    assert {*labels.split(), "default"} == {text.get_text() for text in axes.get_xticklabels()}
    two = [row | {"a": a} for row in table for a in (1.0, 2.0)]
    axes = plot_sweep(two, {"best": {}, "seeds": [100, 101]}).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == labels.split()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "2"]


def test_a_schedule_is_drawn_for_the_names_that_it_has(tmp_path):
    """Choices of a variant stay the same, and are not in it."""
    table = [{"num-envs": n, "rate": r, "score": 1.0} for n, r in (("8", 0.1), ("16", 0.2))]
    schedule = [{"step": 0, "rate": 0.1}, {"step": 10, "rate": 0.2}]
    figure = plot_sweep(table, {"best": {"schedule": schedule, "row": {"steps": 20}}})
    assert [axes.get_ylabel() for axes in figure.axes] == ["rate"]


def test_pictures_are_drawn_where_asked_and_replace_nothing_unasked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [str(finish(make_run(tmp_path / name))) for name in ("a", "b")]
    assert main(runs) == 0 and (tmp_path / "comparison.png").exists()
    (tmp_path / "comparison.png").write_text("mine")
    capsys.readouterr()
    assert main(runs) == 2
    assert "comparison.png exists" in capsys.readouterr().err
    assert (tmp_path / "comparison.png").read_text() == "mine"
    assert main([*runs, "--out", "comparison.png"]) == 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert main([runs[0], "--out", "one.svg"]) == 0 and (tmp_path / "one.svg").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "required: RUN"),
        (["nowhere"], "nowhere is not a run folder"),
        (["run", "--out", "folder/that/is/not/there.png"], "No such file"),
        (["run", "--out", "picture"], "end it in .png"),
        (["run", "--size", "3"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(tmp_path, capsys, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    finish(make_run(tmp_path / "run"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
