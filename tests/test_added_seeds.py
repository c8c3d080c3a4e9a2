"""Seeds that are added to a recorded run: they join it as if they had been there from the start."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from unittest import mock

import numpy as np
import pytest
from shared import Killed, assert_same_bits, compiled_once, killed, plain

from jaxrl import (
    DQN,
    PPO,
    OffPolicy,
    OnPolicy,
    Phase,
    UsageError,
    VectorEnv,
    load_policy,
    make,
    run,
)
from jaxrl.analysis import load, load_curves, load_timing
from jaxrl.errors import Interrupted, RunError
from jaxrl.nn.critics import QNetwork, ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.record import checkpoint, folder, joining, leaves
from jaxrl.run import extension
from jaxrl.run.session import Session

pytestmark = pytest.mark.usefixtures("shared_programs", "without_curves")

CART_POLE = make("gymnax/CartPole-v1")
ALL, OLD, NEW = [4, 0, 7, 2], [0, 2], [4, 7]
OPTIONS = {
    "sweep": {"gamma": [0.9, 0.99]},
    "eval_every": 32,
    "eval_episodes": 2,
    "log_every": 16,
    "checkpoint_every": 48,
    "devices": 1,
    "quiet": True,
}
ENDS = 128
KNOWN: dict = {}  # programs, which other files with these trainers use too


@pytest.fixture(scope="module")
def shared_programs():
    """All runs of these trainers share their programs."""
    with compiled_once(KNOWN):
        yield


def tiny() -> OnPolicy:
    networks = {"policy": AutoPolicy(hidden_dims=(4,)), "critic": ValueFunction(hidden_dims=(4,))}
    agent = PPO(**networks, update_epochs=1, num_minibatches=1, learning_rate=0.1)
    return OnPolicy(agent, VectorEnv(CART_POLE, 2), num_steps=8)


def train(path, seeds, steps=ENDS, **options):
    return run(tiny(), steps, run_dir=path, seeds=seeds, **OPTIONS | options)


@pytest.fixture(scope="module")
def old(tmp_path_factory, shared_programs, without_curves):
    """A finished run of two seeds; to be copied."""
    path = tmp_path_factory.mktemp("old") / "run"
    train(path, OLD)
    return path


@pytest.fixture(scope="module")
def joined(old, tmp_path_factory):
    """That run, with two seeds that joined it undisturbed."""
    path = shutil.copytree(old, tmp_path_factory.mktemp("joined") / "run")
    train(path, ALL, resume=True)
    return path


@pytest.fixture
def copied(old, tmp_path):
    return shutil.copytree(old, tmp_path / "run")


def assert_same_record(path, wanted_path):
    """Equal to the last bit, but for times; nothing is left of the joining."""
    found, wanted = (checkpoint.restore(each / "checkpoints", None) for each in (path, wanted_path))
    assert found.iteration == wanted.iteration
    assert_same_bits(found.state, wanted.state)
    assert found.state.keys() == wanted.state.keys()
    for name in ("best", "phase", "iteration_of_phase", "metrics_bytes"):
        assert found.meta[name] == wanted.meta[name]
    metrics = [(each / "metrics.jsonl").read_bytes() for each in (path, wanted_path)]
    assert metrics[0] == metrics[1]
    configs = [json.loads((each / "config.json").read_text()) for each in (path, wanted_path)]
    assert configs[0]["seeds"] == configs[1]["seeds"]
    summaries = [json.loads((each / "summary.json").read_text()) for each in (path, wanted_path)]
    for name in ("final_return", "configurations", "best_checkpoint", "seeds", "total_steps"):
        assert summaries[0].get(name) == summaries[1].get(name)
    assert load_timing(path)["step"].tolist() == load_timing(wanted_path)["step"].tolist()
    own = {each.name for each in path.iterdir()}
    assert own == {each.name for each in wanted_path.iterdir()}


def test_joined_seeds_are_what_runs_of_their_own_make_of_them(old, joined, tmp_path):
    """The same program trains the new seeds here, so the bits are the same."""
    train(tmp_path / "new", NEW)
    runs = old, tmp_path / "new"
    states = [checkpoint.restore(each / "checkpoints", None) for each in (*runs, joined)]
    seeds = [*OLD, *NEW]
    order = [4 * (seed in NEW) + 2 * c + seeds.index(seed) % 2 for c in (0, 1) for seed in ALL]
    *parts, found = ({path: plain(x) for path, x in each.state.items()} for each in states)
    assert found.keys() == parts[0].keys()
    for path, leaf in found.items():
        wanted = np.concatenate([part[path] for part in parts])[order]
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)
    best = [entry for each in states[:2] for entry in each.meta["best"]]
    assert states[2].meta["best"] == [best[i] for i in order]

    rows = [(each / "metrics.jsonl").read_bytes().splitlines() for each in (*runs, joined)]
    events = [[lines[i : i + 4] for i in range(0, len(lines), 4)] for lines in rows[:2]]
    together = [a + b for a, b in zip(*events, strict=True)]
    assert rows[2] == [event[i] for event in together for i in order]
    seconds = [load_timing(each)["seconds"].iloc[-1] for each in (*runs, joined)]
    assert load_timing(joined)["step"].tolist() == load_timing(old)["step"].tolist()
    assert seconds[2] > seconds[0]


def test_the_record_is_read_as_that_of_all_seeds(joined):
    found = checkpoint.restore(joined / "checkpoints", None, prefix="agent").state
    for config in range(2):
        for i, seed in enumerate(ALL):
            policy = load_policy(joined, seed=seed, config=config)
            own = leaves.flatten(policy.state, "agent")[0]
            assert_same_bits(
                own, {path: np.asarray(x)[4 * config + i] for path, x in found.items()}
            )
    summary = json.loads((joined / "summary.json").read_text())
    final = load(joined, "eval").groupby(["config", "seed"])["episode_return"].last()
    for config, entry in enumerate(summary["configurations"]):
        assert entry["final_return"]["per_seed"] == [final[config, seed] for seed in ALL]
    assert summary["seeds"] == ALL == json.loads((joined / "config.json").read_text())["seeds"]
    assert [curve.seeds for curve in load_curves(joined)[1]] == [(0, 2, 4, 7)] * 2
    result = train(joined, ALL, resume=True)
    assert [(m.config, m.seed) for m in result.members] == [(c, s) for c in (0, 1) for s in ALL]
    with pytest.raises(UsageError, match="seed 3 is not in .*; it has 4, 0, 7, 2"):
        load_policy(joined, seed=3)


# --- the same record as that of a run which had all seeds from the start

# These are programs of other widths, which must round alike.


def in_order(tmp_path, *sessions):
    """The folder of a run of several sessions, each with its seeds and options, and of one that
    had all seeds in each of them."""
    folders = tmp_path / "run", tmp_path / "fresh"
    for i, (seeds, steps, options) in enumerate(sessions):
        train(folders[0], seeds, steps, resume=i > 0, **options)
        train(folders[1], ALL, steps, resume=i > 0, **options)
    return folders


@pytest.mark.slow
@pytest.mark.exact
def test_seeds_join_a_finished_run_as_if_they_had_been_there(tmp_path):
    assert_same_record(*in_order(tmp_path, (OLD, ENDS, {}), (ALL, ENDS, {})))


@pytest.mark.slow
@pytest.mark.exact
def test_a_run_that_was_stopped_is_joined_where_it_is_and_goes_on(tmp_path):
    with killed("advance", 5):
        train(tmp_path / "run", OLD)
    assert checkpoint.available(tmp_path / "run" / "checkpoints") == [3]
    train(tmp_path / "run", ALL, resume=True)
    train(tmp_path / "fresh", ALL)
    assert_same_record(tmp_path / "run", tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.exact
def test_the_recorded_chunks_are_repeated_whatever_the_periods_are_now(tmp_path):
    """The run was made longer once, and logs otherwise since."""
    changed = {"log_every": 32, "checkpoint_every": 64}
    sessions = (OLD, ENDS, {}), (OLD, 192, changed), (ALL, 256, changed | {"log_every": 64})
    assert_same_record(*in_order(tmp_path, *sessions))


def test_a_stopped_run_goes_on_with_all_seeds(joined, tmp_path):
    path = tmp_path / "run"
    with killed("advance", 5):
        train(path, OLD)
    train(path, ALL, resume=True)
    frames = [load(each) for each in (path, joined)]
    marks = [frame[["kind", "seed", "config", "step"]].values.tolist() for frame in frames]
    assert marks[0] == marks[1]
    before = [frame[frame["step"] <= 48].reset_index(drop=True) for frame in frames]
    assert before[0].equals(before[1])  # the programs of four members; then it is one of eight


def test_seeds_join_a_run_made_to_end_where_it_was_stopped(tmp_path):
    """All are evaluated there, the new ones only once they have joined."""
    path = tmp_path / "run"
    with killed("advance", 5):
        train(path, OLD)
    with mock.patch.object(extension, "join", side_effect=Killed), pytest.raises(Killed):
        train(path, ALL, 48, resume=True)
    found = train(path, ALL, 48, resume=True)
    wanted = train(None, ALL, 48)
    marks = [[(row["kind"], row["config"], row["seed"], row["step"]) for row in each.rows]
             for each in (found, wanted)]  # fmt: skip
    assert marks[0] == marks[1] and found.rows[-1]["step"] == 48
    last = [row["episode_return"] for row in found.rows[-8:]]
    assert [
        x for c in found.summary["configurations"] for x in c["final_return"]["per_seed"]
    ] == last


# --- killed on the way


def test_killed_while_they_train_nothing_is_lost(copied, old, joined):
    for call in (2, 5, 3):
        with killed("advance", call):
            train(copied, ALL, resume=True)
        assert_untouched(copied, old)
    train(copied, ALL, resume=True)
    assert_same_record(copied, joined)


def assert_untouched(path, old):
    """The run of the old seeds is whole, and can be read."""
    for name in ("metrics.jsonl", "config.json", "summary.json", "timing.jsonl"):
        assert (path / name).read_bytes() == (old / name).read_bytes()
    found, wanted = (checkpoint.restore(each / "checkpoints", None) for each in (path, old))
    assert_same_bits(found.state, wanted.state)


@pytest.fixture(scope="module")
def trained(old, tmp_path_factory):
    """The run with its new seeds trained, before they are joined; to be copied."""
    path = shutil.copytree(old, tmp_path_factory.mktemp("trained") / "run")
    with mock.patch.object(extension, "join", side_effect=Killed), pytest.raises(Killed):
        train(path, ALL, resume=True)
    return path


class Dying:
    """A module whose functions that write end the process for good at the given call."""

    def __init__(self, module, calls, at):
        self.module, self.calls, self.at = module, calls, at

    def __getattr__(self, name):
        original = getattr(self.module, name)
        if name not in ("rename", "replace", "rmtree", "fsync", "save"):
            return original

        def function(*args, **options):
            self.calls.append(name)
            if len(self.calls) >= self.at:  # a dead process writes nothing more
                raise Killed
            return original(*args, **options)

        return function


@contextlib.contextmanager
def dying(at):
    """End the process at a call that writes, counted over all that joining makes."""
    calls = []
    with contextlib.ExitStack() as stack:
        for module, name in [(joining, "os"), (joining, "shutil"), (joining, "checkpoint"),
                             (folder, "os"), (folder, "shutil")]:  # fmt: skip
            dead = Dying(getattr(module, name), calls, at)
            stack.enter_context(mock.patch.object(module, name, dead))
        yield calls


def test_killed_while_they_are_joined_nothing_is_lost(trained, old, joined, tmp_path):
    """At every call that writes: the run is as it was, or the joining is finished later."""
    config = json.loads((joined / "config.json").read_text())
    at, finished, wanted = 0, False, None
    states = set()
    while not finished:
        at += 1
        path = shutil.copytree(trained, tmp_path / str(at))
        with dying(at) as calls, contextlib.suppress(Killed):
            joining.join(path, path / "added", config, 8)
            finished = True
        valid = (path / "joined").is_dir()
        states.add(valid)
        if valid:
            folder.finish_joining(path)
        elif not finished:
            assert_untouched(path, old)
            if at % 3:  # what is left of the draft is in nobody's way
                continue
            joining.join(path, path / "added", config, 8)
        found = {each: each.read_bytes() for each in map(path.joinpath, FILES)}
        found = {each.name: content for each, content in found.items()}
        wanted = wanted or found
        assert found == wanted
        assert checkpoint.available(path / "checkpoints") == [6, 8]
        kept = [each.name for each in path.iterdir() if each.name not in (".lock", *FILES)]
        assert kept == ["checkpoints"]
    assert len(calls) > 12 and states == {True, False}
    train(path, ALL, resume=True)
    assert_same_record(path, joined)


FILES = ("metrics.jsonl", "timing.jsonl", "config.json")


def test_a_joining_that_was_cut_short_is_finished_by_the_next_session(trained, joined, tmp_path):
    path = shutil.copytree(trained, tmp_path / "run")
    dead = Dying(shutil, [], 1)
    with mock.patch.object(folder, "shutil", dead), pytest.raises(Killed):
        train(path, ALL, resume=True)
    assert (path / "joined").is_dir() and (path / "added").is_dir()
    train(path, ALL, resume=True)
    assert_same_record(path, joined)


def test_a_damaged_checkpoint_is_told_and_the_run_goes_on_without_the_new_seeds(
    trained, old, tmp_path
):
    path = shutil.copytree(trained, tmp_path / "run")
    (path / "added" / "checkpoints" / "8" / "manifest.json").write_text("{}")
    damaged = pytest.raises(RunError, match="checkpoint .*added/checkpoints/8 is damaged")
    with mock.patch.object(extension.Extension, "_train"), damaged:
        train(path, ALL, resume=True)
    assert_untouched(path, old)
    train(path, OLD, resume=True)


# --- other trainers and phases


def learner(**options):
    agent = DQN(q_network=QNetwork(hidden_dims=(4,)))
    sizes = {"learning_starts": 8, "batch_size": 4, "cycles": 4, "buffer_size": 32}
    return OffPolicy(agent, VectorEnv(CART_POLE, 2, **options), **sizes)


@pytest.mark.slow
@pytest.mark.exact
def test_replay_buffers_and_phases_are_joined_too(tmp_path, monkeypatch):
    """The old seeds were stopped where the second phase begins, and so were the new ones."""
    phases = [Phase(learner(), 40, "first"), Phase(learner(max_steps=20), 40, "second")]
    options = OPTIONS | {"sweep": None, "eval_every": 16, "checkpoint_every": 16}
    path, begin = tmp_path / "run", Session.begin
    run(phases, seeds=ALL, run_dir=tmp_path / "fresh", **options)

    def stopped(self, stage, ts):
        ts = begin(self, stage, ts)
        os.kill(os.getpid(), signal.SIGTERM)
        return ts

    with monkeypatch.context() as patch:
        patch.setattr(Session, "begin", stopped)
        with pytest.raises(Interrupted):
            run(phases, seeds=OLD, run_dir=path, **options)
    with killed("begin", 1):
        run(phases, seeds=ALL, run_dir=path, resume=True, **options)
    run(phases, seeds=ALL, run_dir=path, resume=True, **options)
    assert_same_record(path, tmp_path / "fresh")


def test_a_signal_leaves_new_seeds_that_go_on(copied, joined, monkeypatch):
    advance = Session.advance

    def stopped(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "advance", stopped)
        with pytest.raises(Interrupted, match="at step 16 of seeds 4, 7, which are being added"):
            train(copied, ALL, resume=True)
    train(copied, ALL, resume=True)
    assert_same_record(copied, joined)


# --- what is refused


def test_what_cannot_be_joined_is_refused_in_one_line(copied, tmp_path):

    def files():
        inside = (each for each in copied.rglob("*") if each.is_file() and each.name != ".lock")
        return {each: each.read_bytes() for each in inside}

    before = files()

    def refused(message, seeds=ALL, **options):
        with pytest.raises(UsageError, match=message) as caught:
            train(copied, seeds, resume=True, **options)
        assert "\n" not in str(caught.value)

    refused("has seeds 0, 2, and those asked for lack 2; seeds can be added", [0])
    refused("has seeds 0, 2, and those asked for lack 0", [2, 4])
    refused("configuration: sweep", sweep={"gamma": [0.9, 0.8]})
    refused("another eval_episodes .2, now 3.*; new seeds are evaluated as", eval_episodes=3)
    refused("total-steps is 64, but the run .* is at step 128 already", steps=64)
    assert files() == before
    with killed("advance", 1):
        train(copied, ALL, resume=True)
    refused("seeds 4, 7 are being added in .*, and not 9; let them join first", [0, 2, 9])
    with killed("advance", 1):
        train(tmp_path / "other", OLD)
    with pytest.raises(UsageError, match="has no trained checkpoint yet; go on with its own"):
        train(tmp_path / "other", ALL, resume=True)


def test_rows_that_were_lost_are_told_before_anything_is_trained(copied):
    path = copied / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(RunError, match="has lost rows, so no seeds can be added"):
        train(copied, ALL, resume=True)
    assert not (copied / "added").exists()


def test_a_new_seed_that_diverges_joins_all_the_same(copied):
    def all_skipped(self, *args, original=Session.advance):
        ts, done = original(self, *args)
        self.guard._check_gradients([{"step": 1, "skipped_in_a_row": 1000}] * len(self.members))
        return ts, done

    with mock.patch.object(Session, "advance", all_skipped):
        train(copied, ALL, resume=True)
    assert json.loads((copied / "summary.json").read_text())["seeds"] == ALL
