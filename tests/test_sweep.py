"""Sweeps: what they train, what they say, and that killing them loses nothing."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from shared import EXPERIMENTS, assert_same_bits, plain, run_script, script_module, trainer_of

from jaxrl import (
    PBT,
    PPO,
    TD3,
    Halving,
    OffPolicy,
    OnPolicy,
    Phase,
    Range,
    UsageError,
    Values,
    Variant,
    VectorEnv,
    hyper,
    load_policy,
    make,
    run,
    sweep,
)
from jaxrl.cli import sweeping
from jaxrl.record import checkpoint
from jaxrl.run import lanes, memory, sizing, summary, sweep_driver
from jaxrl.run import pbt as populations
from jaxrl.run.lanes import Lane
from jaxrl.run.legs import Leg, Outcome
from jaxrl.run.session import Session
from jaxrl.run.settings import Settings
from jaxrl.run.sweep_bar import SweepBar

pytestmark = pytest.mark.usefixtures("shared_programs", "without_curves")

STEPS = 16 * 32  # sixteen iterations
SMALL = {"eval_episodes": 2, "checkpoint_every": 128, "devices": 1, "quiet": True}
RATES = Range(1e-3, 1e-1, "log", 4)


TINY = """--env gymnax/CartPole-v1 --num-envs 4 --num-steps 8 --policy.hidden-dims 8
    --critic.hidden-dims 8 --num-minibatches 2 --update-epochs 1 --total-steps 512 --devices 1
    --eval-episodes 2 --num-seeds 2 --quiet"""


@functools.cache
def tiny(envs=4):
    """PPO with networks of 8, as its script composes it."""
    return trainer_of("ppo", f"{TINY} --num-envs {envs} --num-steps {32 // envs}")


def swept(folder, method=None, **options):
    """A sweep of four learning rates x two seeds, in ``folder``."""
    options = SMALL | {"seeds": 2, "max_parallel": 4} | options
    values = options.pop("values", {"learning_rate": RATES})
    steps = options.pop("steps", STEPS)
    return sweep(tiny(), steps, configurations=values, method=method, run_dir=folder, **options)


def population(**options):
    options = {"interval": 128, "resample": 0.5, "quantile": 0.5} | options
    return PBT({"learning_rate": RATES}, **options)


METHODS = {"grid": None, "halving": Halving(2), "pbt": population()}
BEGIN = {"grid": RATES, "halving": RATES, "pbt": Values((1e-3, 1e-2))}  # a population is whole


@pytest.fixture(scope="module")
def without_curves():
    """Parts draw no pictures of their own, which takes longer than training them."""
    with mock.patch.object(summary, "plot_run"):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Sweeps that nothing disturbed, by the name of their method."""
    folder = tmp_path_factory.mktemp("sweeps")
    return {
        name: swept(folder / name, method, values={"learning_rate": BEGIN[name]}, confirm=2)
        for name, method in METHODS.items()
    }


# --- what is trained, and said


def rows_of(part):
    return [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]


def parts_of(folder):
    return sorted(path.name for path in (folder / "parts").iterdir())


def last_state(folder):
    """The last states of a sweep that is one part, by their paths."""
    return checkpoint.restore(folder / "parts" / "part0" / "checkpoints", None).state


def test_a_grid_is_trained_in_parts_and_ranked(finished):
    result = finished["grid"]
    best = RATES.grid().index(result.table[0]["learning_rate"])
    assert parts_of(result.run_dir) == [f"confirm-config{best}", "part0", "part1"]
    assert sorted(row["learning_rate"] for row in result.table) == RATES.grid()
    scores = {}
    for part in ("part0", "part1"):
        rows = rows_of(result.run_dir / "parts" / part)
        played = [row for row in rows if row["kind"] == "eval"][-8:]
        for row in played:
            at = scores.setdefault(row["sweep"]["learning_rate"], {})
            at.setdefault(row["seed"], []).append(row["episode_return"])
    for row in result.table:
        of_seeds = [np.mean(scores[row["learning_rate"]][seed]) for seed in (0, 1)]
        assert row["scores"] == pytest.approx(of_seeds)
        assert row["score"] == pytest.approx(np.mean(of_seeds))
        assert (row["seeds"], row["diverged"], row["steps"]) == (2, 0, STEPS)
    ranked = [row["score"] for row in result.table]
    assert ranked == sorted(ranked, reverse=True)

    best = result.summary["best"]
    assert best["row"]["rank"] == 1 and best["candidates"] == 4
    assert best["confirmed"]["seeds"] == [2, 3] and len(best["confirmed"]["per_seed"]) == 2
    cost = result.summary["cost"]
    assert (cost["members"], cost["legs"], cost["programs"]) == (8, 3, 2)
    assert cost["share_of_grid"] == 1.0 and 0 < cost["train_seconds"] < cost["wall_seconds"]
    table = list(csv.DictReader((result.run_dir / "table.csv").open()))
    assert [float(row["learning_rate"]) for row in table] == [
        row["learning_rate"] for row in result.table
    ]
    assert (result.run_dir / "heat_map.png").stat().st_size > 5_000
    assert len(result.plot().axes) >= 2  # the map and its scale
    assert json.loads((result.run_dir / "summary.json").read_text()) == result.summary
    # A part is a run like any other.
    policy = load_policy(result.run_dir / "parts" / "part1", seed=1, config=1)
    assert policy.agent.learning_rate == pytest.approx(0.1) and policy(jnp.zeros(4)).shape == ()


def test_halving_trains_the_best_half_on_with_the_schedule_of_the_whole_run(finished):
    result = finished["halving"]
    folder = result.run_dir / "parts"
    alive = {
        rung: {
            row["sweep"]["learning_rate"]
            for part in sorted(folder.glob(f"{rung}-*"))
            for row in rows_of(part)
        }
        for rung in ("rung0", "rung1", "rung2")
    }
    assert [len(rates) for rates in alive.values()] == [4, 2, 1]
    assert alive["rung2"] < alive["rung1"] < alive["rung0"] == set(RATES.grid())
    steps = {rung: {row["step"] for part in folder.glob(f"{rung}-*") for row in rows_of(part)}
             for rung in alive}  # fmt: skip
    assert max(steps["rung0"]) == STEPS / 4 < min(steps["rung1"])  # it goes on, and not anew
    assert max(steps["rung1"]) == STEPS / 2 < min(steps["rung2"]) and max(steps["rung2"]) == STEPS
    for part in folder.iterdir():
        config = json.loads((part / "config.json").read_text())
        assert config["agent"]["lr_decay_steps"] == 16.0
    assert [row["rung"] for row in result.table] == [2, 1, 0, 0]
    assert result.summary["cost"]["share_of_grid"] == pytest.approx((4 / 4 + 2 / 4 + 1 / 2) / 4)
    kept = checkpoint.restore(folder / "rung2-part0" / "checkpoints", None).state
    assert kept["iterations"].tolist() == [16, 16]


def test_survivors_go_on_with_the_states_they_had(tmp_path):
    """With all kept, two rungs are the whole run: the same program, cut at another place."""
    whole = run(tiny(), STEPS, seeds=2, sweep={"learning_rate": [1e-3, 1e-2]}, **SMALL)
    lane = lane_of(tmp_path, [1e-3, 1e-2])
    first = populations_leg("a", [0, 1], 0, 8)
    second = populations_leg("b", [1, 0], 8, 16)  # in another order
    lane.train(first, lambda: None)
    lane.train(second, lambda: None, origin=lambda: lane.gather([first], second.members))
    kept = lane.states(second, [2, 3, 0, 1])
    assert_same_bits(kept, whole.state)


def lane_of(folder, rates):
    settings = Settings(**SMALL, eval_every=128)
    configurations = [{"learning_rate": rate} for rate in rates]
    lane = Lane(Variant(tiny(), STEPS), configurations, settings, folder, SweepBar("", True))
    lane.check([0, 1])
    return lane


def populations_leg(name, configurations, begins, ends):
    return Leg(name, configurations, [0, 1], begins, ends)


@pytest.mark.parametrize("eta", [2, 3, 8])
def test_halving_over_static_choices_finds_the_best_of_all(monkeypatch, eta):
    """With known scores, and without training: one ladder for the candidates of all variants."""
    goal, trained = {"4": 2.2, "8": 2.7}, []

    def train(lane, leg, interrupted, origin=None, keep=False):
        rates = [lane.configurations[c]["learning_rate"] for c, _ in leg.members]
        scores = -((np.array(rates) * 100 - goal[lane.variant.choices["num-envs"]]) ** 2)
        trained.append((leg.begins, leg.ends, len(leg.members)))
        assert (origin is None) == (leg.begins == 0)
        times = dict.fromkeys(("compile_seconds", "train_seconds", "wall_seconds"), 1.0)
        return Outcome(leg, scores, scores, scores > 0, times, [], [{}] * len(scores))

    monkeypatch.setattr(Lane, "train", train)
    variants = [Variant(tiny(envs), STEPS, {"num-envs": str(envs)}) for envs in (4, 8)]
    values = {"learning_rate": Values(tuple(i / 100 for i in range(1, 9)))}
    options = SMALL | {"seeds": 2, "max_parallel": 6}
    result = sweep(variants, configurations=values, method=Halving(eta), **options)
    best = result.table[0]
    assert (best["num-envs"], best["learning_rate"]) == ("4", 0.02)  # 0.2 from its goal
    assert len(result.table) == 16 and max(size for *_, size in trained) <= 6
    ladder = Halving(eta).ladder(16)
    for rung, end in zip(ladder, sorted({end for _, end, _ in trained}), strict=True):
        assert sum(size for _, e, size in trained if e == end) == 2 * rung.keep
        assert end == int(np.ceil(16 * rung.share - 1e-9))
    with pytest.raises(UsageError, match="the run has no phases; give at least one"):
        sweep([Variant([])], configurations=values, **options)
    with pytest.raises(UsageError, match="variants .* repeat a name"):
        sweep([variants[0]] * 2, configurations=values, **options)


def test_what_does_not_fit_in_memory_is_trained_in_parts(tmp_path, monkeypatch, capsys):
    needed = {}
    monkeypatch.setattr(sizing, "free_over", lambda devices: needed["free"])

    def analysed(*args, original=sizing.analysed):
        compiled, size = original(*args)
        assert size > 1000
        return compiled, 100 * args[2]

    monkeypatch.setattr(lanes, "analysed", analysed)
    monkeypatch.setattr(memory, "free_over", lambda devices: None)
    needed["free"] = 300  # of which 0.8 may be taken: two members of 100
    options = SMALL | {"keep_best": False}  # best agents take memory too
    values = {"learning_rate": Values((1e-3, 1e-2))}
    result = sweep(tiny(), 64, configurations=values, seeds=2, run_dir=tmp_path / "a",
                   **options | {"quiet": False})  # fmt: skip
    assert (
        "4 members train in parts of at most 2 (2 members at once need" in capsys.readouterr().err
    )
    assert result.summary["cost"]["legs"] == 2
    assert json.loads((tmp_path / "a" / "sizes.json").read_text()) == {"0": 2}
    needed["free"] = 10_000  # a resumed sweep has the parts that it had
    again = sweep(tiny(), 64, configurations=values, seeds=2, run_dir=tmp_path / "a", resume=True,
                  **options)  # fmt: skip
    assert again.table == result.table


# --- members that diverge


def test_a_member_that_diverges_is_marked_and_leaves_the_others_as_they_are(tmp_path, capsys):
    options = {"max_skipped": 4}
    lost = swept(tmp_path / "a", values={"learning_rate": Values((1e-2, 1e30))}, **options)
    warned = capsys.readouterr().err
    assert "learning_rate=1e+30" in warned and "training goes on" in warned
    well = swept(tmp_path / "b", values={"learning_rate": Values((1e-2, 1e-3))}, **options)
    states = [last_state(folder) for folder in (tmp_path / "a", tmp_path / "b")]
    for name, first in states[0].items():
        np.testing.assert_array_equal(plain(first)[:2], plain(states[1][name])[:2], err_msg=name)
    assert [row["diverged"] for row in lost.table] == [0, 2]
    assert lost.table[1]["score"] == -np.inf and lost.table[0]["learning_rate"] == 1e-2
    assert well.table[0]["diverged"] == well.table[1]["diverged"] == 0
    table = list(csv.DictReader((tmp_path / "a" / "table.csv").open()))
    assert table[1]["score"] == "" and table[1]["diverged"] == "2"
    only = swept(tmp_path / "c", values={"learning_rate": Values((1e30, 2e30))}, **options)
    assert [row["diverged"] for row in only.table] == [2, 2]  # and the sweep ended


# --- populations


def test_without_a_quantile_a_population_is_independent_runs_bit_for_bit(tmp_path, monkeypatch):
    values = {"learning_rate": BEGIN["pbt"]}
    swept(tmp_path / "a", population(quantile=0.0), values=values)
    # The keys of a population's members are their own; those of a grid's are its seeds'.
    monkeypatch.setattr(Session, "keys", populations.PBTSession.keys)
    swept(tmp_path / "b", eval_every=64, values=values)
    assert_same_bits(*map(last_state, (tmp_path / "a", tmp_path / "b")))
    rows = [rows_of(tmp_path / name / "parts" / "part0") for name in ("a", "b")]
    assert rows[0] == rows[1]


def test_a_population_copies_whole_members_and_says_so(finished):
    result = finished["pbt"]
    (lineage,) = json.loads((result.run_dir / "lineage.json").read_text()).values()
    assert [each["step"] for each in lineage] == [128, 256, 384]
    copied = [np.argwhere(np.array(each["parents"]) != np.arange(2)[:, None]) for each in lineage]
    assert any(len(each) for each in copied)
    rows = rows_of(result.run_dir / "parts" / "part0")
    for each, after in zip(lineage, (256, 384, 512), strict=True):
        played = [row for row in rows if row["kind"] == "eval" and row["step"] == after]
        rates = [row["sweep"]["learning_rate"] for row in played]
        assert rates == np.ravel(each["values"]["learning_rate"]).tolist()
    # Of the last interval, the best is as good as its score says, in its own population.
    assert len(result.table) == 4 and {row["population"] for row in result.table} == {0, 1}
    assert len(result.summary["best"]["populations"]["per_seed"]) == 2
    steps = [each["step"] for each in result.summary["best"]["schedule"]]
    assert steps == [0, 128, 256, 384]
    assert result.summary["best"]["confirmed"]["seeds"] == [2, 3]


def test_the_lineage_replays_to_the_same_parameters(finished, tmp_path, monkeypatch):
    (lineage,) = json.loads((finished["pbt"].run_dir / "lineage.json").read_text()).values()
    decisions = populations.decisions_of(lineage)

    def replay(self, done, scores):
        return decisions[done]

    monkeypatch.setattr(populations.PBTSession, "_decide", replay)
    swept(tmp_path / "b", population(seed=7), values={"learning_rate": BEGIN["pbt"]})
    assert_same_bits(*map(last_state, (finished["pbt"].run_dir, tmp_path / "b")))
    assert sorted(decisions) == [4, 8, 12]


# --- killed and resumed


class Killed(BaseException):
    """A kill, as the process that is killed sees it."""


def contents(folder):
    """All that a sweep's folder says, without times."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("metrics.jsonl", "table.csv", "lineage.json", "sizes.json"):
            found[name] = path.read_bytes()
        if path.parent.name == "checkpoints":
            state = checkpoint.restore(path.parent, None, int(path.name)).state
            found[name] = {leaf: plain(array).tobytes() for leaf, array in state.items()}
    best = json.loads((folder / "summary.json").read_text())["best"]
    return found | {"best": json.dumps(best)}


@pytest.mark.parametrize("name", METHODS)
def test_killed_at_random_moments_and_resumed_it_is_the_same_sweep(
    finished, tmp_path, monkeypatch, name
):
    """Inside of chunks, behind them, and between legs, again and again."""
    rng, alive = random.Random(name), {"left": 0}

    def dying(original):
        def call(*args, **options):
            alive["left"] -= 1
            if alive["left"] == 0:
                raise Killed
            return original(*args, **options)

        return call

    monkeypatch.setattr(Session, "advance", dying(Session.advance))
    monkeypatch.setattr(Session, "save", dying(Session.save))
    monkeypatch.setattr(Lane, "train", dying(Lane.train))
    deaths = 0
    while True:
        alive["left"] = rng.randint(3, 24)
        resume = (tmp_path / "a" / "config.json").exists()
        try:
            values = {"learning_rate": BEGIN[name]}
            swept(tmp_path / "a", METHODS[name], values=values, confirm=2, resume=resume)
            break
        except Killed:
            deaths += 1
    assert deaths > 1
    assert contents(tmp_path / "a") == contents(finished[name].run_dir)


@pytest.mark.slow
def test_processes_killed_for_good_at_random_moments_lose_nothing(tmp_path):
    """What the test above does with exceptions, SIGKILL does to processes."""
    words = f"ppo {TINY} {GRID} --halving 2 --max-parallel 4 --total-steps 96000".split()

    def start(folder, resume):
        given = ["--resume"] if resume else words
        script = str(EXPERIMENTS / "sweep.py")
        return subprocess.Popen([sys.executable, script, *given, "--run-dir", str(folder)])

    whole, killed, rng, deaths = tmp_path / "whole", tmp_path / "killed", random.Random(0), 0
    for folder in (whole, tmp_path / "again"):  # the second one finds the programs compiled
        began = time.monotonic()
        assert start(folder, False).wait(300) == 0
    seconds = time.monotonic() - began
    while True:
        child = start(killed, (killed / "config.json").exists())
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert child.wait(rng.uniform(0.5, 1.0) * seconds) == 0
            break
        child.kill()
        child.wait()
        deaths += 1
        assert deaths < 40
    assert deaths and contents(killed) == contents(whole)


@pytest.mark.parametrize("name", ["grid", "pbt"])
def test_seeds_are_added_to_a_finished_sweep(finished, tmp_path, name):
    """They are further parts; what was trained before stays as it was, to the byte."""
    whole = finished[name].run_dir
    folder, values = shutil.copytree(whole, tmp_path / "run"), {"learning_rate": BEGIN[name]}
    added = swept(folder, METHODS[name], values=values, seeds=4, resume=True, confirm=2)
    alone = swept(tmp_path / "alone", METHODS[name], values=values, seeds=[2, 3])
    for part in (whole / "parts").iterdir():
        kept = folder / "parts" / part.name / "metrics.jsonl"
        assert kept.read_bytes() == (part / "metrics.jsonl").read_bytes()
    by = {"grid": ["learning_rate"], "pbt": ["population", "member"]}[name]

    def scores(*results):
        found = {}
        for row in (row for result in results for row in result.table):
            own = found.setdefault(tuple(row[each] for each in by), [])
            own += row.get("scores", [row["score"]])
        return found

    assert scores(added) == scores(finished[name], alone)
    assert added.summary["seeds"] == [0, 1, 2, 3]
    assert added.summary["best"]["confirmed"]["seeds"] == [4, 5]
    assert json.loads((folder / "config.json").read_text())["cohorts"] == [[0, 1], [2, 3]]
    with mock.patch.object(Session, "train", side_effect=AssertionError("it trains")):
        again = swept(folder, METHODS[name], values=values, seeds=4, resume=True, confirm=2)
    assert again.table == added.table


def test_seeds_that_a_sweep_cannot_get_are_refused(finished, tmp_path):
    folder = finished["grid"].run_dir
    with pytest.raises(UsageError, match="seeds 0, 1, and those asked for lack 1; seeds can be"):
        swept(folder, seeds=1, resume=True, confirm=2)
    with pytest.raises(UsageError, match="another configuration: max_parallel"):
        swept(folder, seeds=4, resume=True, confirm=2, max_parallel=8)
    assert json.loads((folder / "config.json").read_text())["seeds"] == [0, 1]
    with pytest.raises(UsageError, match="was halved by the scores of its seeds, so 2, 3 cannot"):
        swept(finished["halving"].run_dir, Halving(2), seeds=4, resume=True, confirm=2)


def test_a_grid_that_is_extended_confirms_its_new_winner_and_resumes_its_old_one(
    finished, tmp_path, monkeypatch
):
    old = RATES.grid().index(finished["grid"].table[0]["learning_rate"])
    new = (old + 1) % 4
    folder = shutil.copytree(finished["grid"].run_dir, tmp_path / "run")
    before = (folder / "parts" / f"confirm-config{old}" / "metrics.jsonl").read_bytes()

    def extended(winner):
        monkeypatch.setattr(sweep_driver, "highest", lambda *_: [winner])
        result = swept(folder, confirm=2, resume=True, steps=2 * STEPS)
        part = folder / "parts" / f"confirm-config{winner}"
        rows = rows_of(part)
        assert rows[-1]["step"] == 2 * STEPS
        assert {row["sweep"]["learning_rate"] for row in rows} == {RATES.grid()[winner]}
        final = [row["episode_return"] for row in rows if row["kind"] == "eval"][-2:]
        assert result.summary["best"]["confirmed"]["per_seed"] == pytest.approx(final)
        return (part / "metrics.jsonl").read_bytes()

    extended(new)
    assert parts_of(folder) == sorted(
        [f"confirm-config{old}", f"confirm-config{new}", "part0", "part1"]
    )
    assert extended(old).startswith(before)  # the longer run evaluates at other steps


def test_a_confirmation_is_read_in_the_folder_that_older_sweeps_gave_it(
    finished, tmp_path, monkeypatch
):
    old = RATES.grid().index(finished["grid"].table[0]["learning_rate"])
    folder = shutil.copytree(finished["grid"].run_dir, tmp_path / "run")
    (folder / "parts" / f"confirm-config{old}").rename(folder / "parts" / "confirm")
    with mock.patch.object(Session, "train", side_effect=AssertionError("it trains")):
        again = swept(folder, confirm=2, resume=True)
    assert again.summary["best"] == finished["grid"].summary["best"]
    monkeypatch.setattr(sweep_driver, "highest", lambda *_: [(old + 1) % 4])
    swept(folder, confirm=2, resume=True)
    assert parts_of(folder) == ["confirm", f"confirm-config{(old + 1) % 4}", "part0", "part1"]


def test_a_finished_sweep_trains_nothing_and_another_one_is_refused(finished, monkeypatch):
    folder = finished["halving"].run_dir
    monkeypatch.setattr(Session, "advance", lambda *_: pytest.fail("it trains"))
    again = swept(folder, Halving(2), confirm=2, resume=True)
    assert again.table == finished["halving"].table
    with pytest.raises(UsageError, match=r"another configuration: .*method.eta \(2, now 4"):
        swept(folder, Halving(4), confirm=2, resume=True)
    with pytest.raises(UsageError, match="already holds a run; continue it with --resume"):
        swept(folder, Halving(2), confirm=2)


# --- the command


@pytest.fixture(scope="module")
def script():
    with script_module("sweep") as module:
        yield module


GRID = "--grid learning_rate=log:1e-3,1e-1,4"


def test_the_command_sweeps_a_script_and_the_best_is_a_command_line(script, tmp_path):
    words = f"ppo {TINY} {GRID} --max-parallel 4 --run-dir {tmp_path / 'a'} --time-one"
    words += " --static num-minibatches=2"
    run_script(script, words.split())
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    program, path, *rest = summary["best"]["command"].split()
    assert (program, path) == ("python", "experiments/ppo.py") and "--run-dir" not in rest
    trainer = trainer_of("ppo", " ".join(rest))
    assert trainer.agent.learning_rate == summary["best"]["row"]["learning_rate"]
    assert trainer.agent.policy.hidden_dims == (8,) and trainer.agent.lr_decay_steps == 16.0
    assert summary["cost"]["one_run_alone"]["train_seconds"] > 0
    assert summary["cost"]["wall_seconds_over_one_run"] > 0


BEST = {
    "ppo --env gymnax/CartPole-v1 --grid head_scale=1,2": "ppo.py --env gymnax/CartPole-v1 "
    "--head-scale=2.0",
    "td3 --env gymnax/Pendulum-v1 --reward-scale 2 --grid reward_scale=2,1": "td3.py --env "
    "gymnax/Pendulum-v1 --reward-scale 2 --reward-scale=1.0",  # adds no wrapper, as the last value
    "iql --quiet --grid reward_scale=0.5,2": "iql.py --reward-scale=2.0 --return-range None",
    "ppo --env gymnax/CartPole-v1 --pbt --grid gamma=0.9,0.99": None,
    "offline_to_online --quiet --grid expectile=0.7,0.9": None,
    "td3_bc --quiet --grid obs_clip=5,10": None,
    "dqn --env gymnax/CartPole-v1 --reward-scale 2 --grid reward_shift=0,1": None,
}


@pytest.mark.parametrize("line", BEST)
def test_the_best_is_a_command_line_if_that_trains_the_same(script, monkeypatch, line):
    asked = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(script, "sweep", asked)
    with pytest.raises(InterruptedError):
        run_script(script, line.split())
    (variant,), given = asked.call_args.args[0], asked.call_args.kwargs
    if BEST[line] is None:
        assert given["command"] is None
        return
    last = given["configurations"][-1]
    written = given["command"](variant, last)
    assert written == f"python experiments/{BEST[line]}"
    trainer = trainer_of(line.split()[0], written.partition(".py ")[2])
    none = {"reward_scale": 1.0, "reward_shift": 0.0}
    wanted = hyper.numbers(hyper.replace(variant.trainer, last))
    assert none | hyper.numbers(trainer) == none | wanted


OWN = """
import argparse
from jaxrl import PPO, OnPolicy, VectorEnv, make, run

def main():
    argparse.ArgumentParser().parse_args()
    run(OnPolicy(PPO(), VectorEnv(make("gymnax/CartPole-v1"), 4)), 512)
"""


def test_an_own_script_without_options_has_no_command_line(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    asked = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(script, "sweep", asked)
    with pytest.raises(InterruptedError):
        run_script(script, [str(tmp_path / "mine.py"), "--grid", "gamma=0.9,0.99"])
    assert asked.call_args.kwargs["command"] is None
    assert capsys.readouterr() == ("", "")


def test_the_path_of_an_own_script_is_left_as_it_is(script, tmp_path, monkeypatch):
    asked = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(script, "sweep", asked)
    mine = tmp_path / "x" / "mine.py"
    mine.parent.mkdir()
    shutil.copy(EXPERIMENTS / "ppo.py", mine)
    monkeypatch.chdir(tmp_path)
    for name, shown in [
        (str(mine), str(mine)),
        ("x/mine.py", "x/mine.py"),
        (str(EXPERIMENTS / "ppo.py"), "experiments/ppo.py"),
        ("ppo", "experiments/ppo.py"),
    ]:
        with pytest.raises(InterruptedError):
            run_script(script, [name, "--env", "gymnax/CartPole-v1", "--grid", "gamma=0.9,0.99"])
        variants, given = asked.call_args.args[0], asked.call_args.kwargs
        assert given["command"](variants[0], {"gamma": 0.9}).split()[:2] == ["python", shown]


def test_a_resumed_sweep_may_be_given_its_options_again(script, tmp_path, monkeypatch):
    """They override the recorded ones, which precede them."""
    asked = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(script, "sweep", asked)
    recorded = f"{script.__name__} ppo {TINY} {GRID} --confirm 2 --run-dir elsewhere"
    (tmp_path / "config.json").write_text(json.dumps({"command": recorded}))
    again = f"--resume --run-dir {tmp_path} --grid gamma=0.9,1 --confirm 3"
    with pytest.raises(InterruptedError):
        run_script(script, again.split())
    assert asked.call_args.kwargs["configurations"] == [{"gamma": 0.9}, {"gamma": 1.0}]
    assert asked.call_args.kwargs["confirm"] == 3
    with pytest.raises(UsageError, match="--confirm is given twice; give it once"):
        run_script(script, [*again.split(), "--confirm=4"])


def test_words_become_values_static_choices_and_options():
    line = "--env a --grid x=1,2 y=log:1,2,3 --num-seeds 3 --halving=2 --hidden-dims 8 8"
    own, others = sweeping.divided(line.split())
    assert own == ["--grid", "x=1,2", "y=log:1,2,3", "--halving=2"]
    assert others == ["--env", "a", "--num-seeds", "3", "--hidden-dims", "8", "8"]
    choices = sweeping.static_choices(["num_envs=8,16", "hidden-dims=64 64,8", "critic.norm=True"])
    assert len(choices) == 4
    assert sweeping.static_words(choices[1]) == [
        "--num-envs", "8", "--hidden-dims", "8", "--critic.norm"
    ]  # fmt: skip
    assert sweeping.static_words({"critic.norm": "False"}) == ["--critic.no-norm"]
    found = sweeping.spaces(["a=1,2.5", "b-c=log1m:0.9,0.99"], "--random")
    assert found == {"a": Values((1.0, 2.5)), "b_c": Range(0.9, 0.99, "log1m")}


def test_static_choices_change_what_variants_have_of_their_own(script):
    """Their folders are named by the time, and no argument of ``run`` is shared but the same."""
    options = sweeping.SweepOptions(static=("num-envs=4,8", "total-steps=512,1024"))
    ppo = sweeping.Script("ppo", EXPERIMENTS)
    found, settings = sweeping.variants(ppo, TINY.split(), options, {"gamma": 0.9})
    sizes = [(each.trainer.env.num_envs, each.total_steps) for each in found]
    assert sizes == [(4, 512), (4, 1024), (8, 512), (8, 1024)]
    assert settings["seeds"] == range(2) and "max_nonfinite" not in settings


WRONG = {
    "": "the script is missing; name it first, as sweep.py ppo --grid",
    "ppoo": "there is no script 'ppoo'; did you mean ppo",
    "minimal_ppo --grid gamma=0.9,1": "minimal_ppo cannot be swept: it has no main() that calls",
    "ppo": "a sweep needs --grid or --random, and neither is given; as --grid learning_rate=log",
    f"ppo {GRID} --random 3 gamma=0.9,1": "and both are given",
    "ppo --grid gamma": "--grid 'gamma' is not NAME=VALUES, as learning_rate=log:1e-4,1e-2,8",
    "ppo --grid gamma=0.9,high": "--grid gamma=0.9,high is not a list of numbers",
    "ppo --grid gamma=0.9 gamma=0.8": "--grid gamma is given twice; once is enough",
    "ppo --grid gamma=lag:0.9,0.99,3": "unknown scale 'lag'; did you mean log",
    "ppo --grid gamma=log:0.9": "is not LOW,HIGH or LOW,HIGH,COUNT, as log:1e-4,1e-2,8",
    "ppo --grid gamma=log:0.9,0.99,2.5": "is not LOW,HIGH or LOW,HIGH,COUNT",
    "ppo --grid gamma=log:0.9,0.99,inf": "--grid gamma=log:0.9,0.99,inf is not a list of numbers",
    "ppo --grid gamma=0.9,nan": "--grid gamma=0.9,nan is not a list of numbers",
    "ppo --grid gamma=log:0.9,0.99": "has no number of values, which a grid needs; give one",
    "ppo --random learning_rate=log:1e-4,1e-2": "is not a number and what to draw, as --random 32",
    f"ppo {GRID} --grid gamma=0.9,1": "--grid is given twice; give all names after one --grid",
    f"ppo {GRID} --max_parallel 2 --max-parallel=3": "--max-parallel is given twice; give it once",
    f"ppo {GRID} --sweep gamma=0.9,1": "--sweep is no option of a sweep: name what is swept with",
    f"ppo {GRID} --render": "--render is no option of a sweep: draw the best one afterwards",
    f"ppo {GRID} --max-nonfinite 1": "--max-nonfinite is no option of a sweep",
    f"ppo {GRID} --pbt --halving 2": "--pbt and --halving exclude each other",
    f"ppo {GRID} --random-seed 2": "--random-seed belongs to --random; leave it out of a grid",
    f"ppo {GRID} --seed 2147483600 --confirm 99": "confirm is 99, and 2147483601 is a seed; fresh",
    f"ppo {GRID} --rungs 2": "--rungs belongs to --halving; add --halving 2",
    f"ppo {GRID} --interval 100": "--interval belongs to --pbt; add --pbt, or leave it out",
    f"ppo {GRID} --halvin 2": "unknown option --halvin",
    f"ppo {GRID} --halving two": "could not convert string to float: 'two'",
    f"ppo {GRID} --static num-envs": "--static 'num-envs' is not NAME=VALUES, as num-envs=8,16",
    f"ppo {GRID} --static num-env=2": "unknown option --num-env; did you mean --num-envs",
    f"ppo {GRID} --static num-envs=2 num_envs=4": "--static num-envs is given twice; once is",
    f"ppo {GRID} --static num-seeds=1,4 num-envs=4,8": "--static num-seeds=4 changes seeds, which "
    "all variants of a sweep share; give one value without --static, as --num-seeds 1",
    f"ppo {GRID} --static num-envs=4,8 eval-mode=greedy,sample": "--static eval-mode=sample changes"
    " eval_mode, which all variants of a sweep share; give one value",
    f"ppo {GRID} --static eval-episodes=2,4": "--static eval-episodes=4 changes eval_episodes",
    f"ppo {GRID} --static devices=1,2": "--static devices=2 changes devices, which all variants",
    f"ppo {GRID} --static keep-best=True,False": "changes keep_best, which all variants of a sweep "
    "share; give one value without --static, as --keep-best",
    f"ppo {GRID} --static run_dir=a,b": "--static run-dir=b changes run_dir, which all variants",
    f"ppo {GRID} --confirm -1": "confirm is -1; it must be at least 0",
    f"ppo {GRID} --max-parallel 0": "max_parallel is 0; it must be at least 1",
    f"ppo {GRID} --devices 99": "devices is 99; this machine has 1 to",
    f"ppo {GRID} --halving 8": "halving by 8 needs at least 8 configurations, and there are 4",
    f"ppo {GRID} --halving 2 --total-steps 64": "too few for 3 rungs; give more steps, or fewer",
    f"ppo {GRID} --pbt --interval 9999": "interval is 9984 steps, and the run has 512",
    f"ppo {GRID} --pbt --eval-every 32": "eval-every cannot be chosen with pbt",
    f"ppo {GRID} --pbt --explore learning_rate=log:1e-2,1": "begins with learning_rate=0.001",
    f"ppo {GRID} --pbt --explore learnin_rate=log:1e-4,1": "explore names learnin_rate, which is "
    "not swept; did you mean learning_rate?",
    f"ppo {GRID} --pbt --max-parallel 3": "4 members must train at once, and only 3 can",
    "ppo --grid gama=0.9,1": "unknown hyper-parameter 'gama'; did you mean gamma?",
    "ppo --grid num_envs=2,4": "swept as --static num_envs=",
    "ppo --grid update_epochs=1,2": "update_epochs is static: each value compiles anew, and is",
    "td3 --env gymnax/Pendulum-v1 --quiet --grid reward_scale=1,2": "reward_scale is not in use, "
    "and so cannot be swept; wrap the agent in ScaleReward, or give a --reward-scale other than 1",
    "ppo --grid gamma=0.9,1.5": "gamma is 1.5; it must be at least 0 and at most 1",
    "offline_to_online --grid tau=0.1,0.2 --halving 2 --quiet": "and this one has several; leave",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input_is_one_line_before_anything_compiles(script, monkeypatch, tmp_path, words):
    monkeypatch.setattr(Lane, "train", lambda *_, **__: pytest.fail("it trains"))
    monkeypatch.chdir(tmp_path)
    more = TINY.split() if words.startswith("ppo ") else []
    with pytest.raises(UsageError) as error:
        run_script(script, [*words.split()[:1], *more, *words.split()[1:]])
    assert WRONG[words] in str(error.value) and "\n" not in str(error.value)


UNSIZED = {
    "cycles": (
        lambda: OffPolicy(TD3(), VectorEnv(make("gymnax/Pendulum-v1"), 4), cycles=1),
        "cycles is 1; the actor is updated every 2 cycles, so it must be a multiple, as 2",
    ),
    "num_steps": (
        lambda: OnPolicy(PPO(), VectorEnv(make("gymnax/CartPole-v1"), 4), num_steps=0),
        "num_steps is 0; it must be at least 1",
    ),
}


@pytest.mark.parametrize("method", [None, Halving(2)], ids=["grid", "halving"])
@pytest.mark.parametrize("name", UNSIZED)
def test_sizes_are_checked_before_the_sweep_divides_by_them(name, method):
    """With the words that ``run`` has for them."""
    trainer, message = UNSIZED[name][0](), UNSIZED[name][1]
    values = {"gamma": Values((0.9, 0.99))}
    for phases, steps in ((trainer, 1000), ([Phase(trainer, 1000, "a")], None)):
        for train in (
            functools.partial(run, sweep={"gamma": [0.9, 0.99]}),
            functools.partial(sweep, configurations=values, method=method),
        ):
            with pytest.raises(UsageError) as error:
                train(phases, steps, quiet=True)
            assert str(error.value) == message
