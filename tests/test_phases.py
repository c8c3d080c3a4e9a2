"""Phases: offline, then online, in one run; and the dataset that they learn from."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, killed

from jaxrl import (
    BC,
    DQN,
    Dataset,
    NormalizeObs,
    Offline,
    OffPolicy,
    Phase,
    UsageError,
    VectorEnv,
    load_policy,
    make,
    run,
)
from jaxrl.analysis import load_curves, plot_run
from jaxrl.cli import launching
from jaxrl.counters import counter_value
from jaxrl.data import Mixed
from jaxrl.errors import Interrupted
from jaxrl.nn.critics import QNetwork
from jaxrl.nn.policies import Categorical
from jaxrl.record import checkpoint
from jaxrl.run.devices import Programs
from jaxrl.run.placement import Placement
from jaxrl.run.session import Session

pytestmark = pytest.mark.usefixtures("shared_programs")

ROWS = 509  # of the dataset: a prime, to be found again in programs
SMALL = {"eval_every": 8, "eval_episodes": 2, "log_every": 4, "devices": 1, "quiet": True}


def dataset(seed=0):
    """Steps of random actions in ``probe/both``."""
    rng = np.random.default_rng(seed)
    obs = rng.choice([-1.0, 1.0], (ROWS, 1)).astype(np.float32)
    action = rng.integers(0, 2, ROWS).astype(np.int32)
    reward = np.where(action == (obs[:, 0] > 0), 1.0, -1.0).astype(np.float32)
    return Dataset.of(obs, action, reward, obs, np.ones(ROWS, bool), np.zeros(ROWS, bool))


def agent(width=4, **options):
    return DQN(q_network=QNetwork(hidden_dims=(width,)), **options)


def venv():
    return VectorEnv(make("probe/both"), 2)


def offline(made=None):
    return Offline(made or agent(), venv(), batch_size=8, num_updates=4)


def online(made=None, sampler=None):
    sizes = {"batch_size": 4, "learning_starts": 8, "buffer_size": 64, "cycles": 2}
    return OffPolicy(made or agent(learning_rate=1e-3), venv(), sampler=sampler, **sizes)


def phases(steps=24):
    """Four iterations offline, then four online (with 24 steps)."""
    return [Phase(offline(), 16, "offline"), Phase(online(sampler=Mixed()), steps, "online")]


def train(folder=None, steps=24, data=None, **options):
    data = dataset() if data is None else data
    return run(phases(steps), data=data, seeds=2, run_dir=folder, **SMALL | options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("phases") / "run")


@pytest.mark.exact
def test_phases_are_one_trainer_after_the_other_bit_for_bit():
    data, first, second = jax.device_put(dataset()), offline(), online(sampler=Mixed())

    def member(key, data):
        ts, _ = first.train(key, 16, data)
        ts, _ = second.chunk(second.continue_from(ts, data), data, 4)
        return ts

    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    ts = jax.jit(jax.vmap(member, (0, None)))(keys, data)
    assert_same_bits(train().state, ts)
    assert ts.iterations.tolist() == [4, 4]


def test_rows_go_on_across_the_switch_in_three_counters(finished):
    rows = [json.loads(line) for line in (finished.run_dir / "metrics.jsonl").open()]
    marks = [
        (row["kind"], row["phase"], row["step"], row["env_steps"], row["gradient_steps"])
        for row in rows
        if row["seed"] == 1
    ]
    assert marks == [
        ("eval", "offline", 0, 0, 0),
        ("train", "offline", 4, 0, 4),
        ("train", "offline", 8, 0, 8),
        ("eval", "offline", 8, 0, 8),
        ("train", "offline", 12, 0, 12),
        ("train", "offline", 16, 0, 16),
        ("eval", "offline", 16, 0, 16),
        ("train", "online", 28, 12, 18),  # eight steps before the first gradient step
        ("train", "online", 32, 16, 20),
        ("eval", "online", 32, 16, 20),
        ("train", "online", 36, 20, 22),
        ("train", "online", 40, 24, 24),
        ("eval", "online", 40, 24, 24),
    ]
    assert counter_value(finished.state.env_steps) == 24
    assert counter_value(finished.state.gradient_steps) == 24
    losses = {row["phase"]: row["q_loss"] for row in rows if row["kind"] == "train"}
    assert losses.keys() == {"offline", "online"}

    summary = json.loads((finished.run_dir / "summary.json").read_text())
    counted = [summary[name] for name in ("total_steps", "env_steps", "gradient_steps")]
    assert counted == [40, 24, 24]
    assert summary["steps_per_second"] > summary["gradient_steps_per_second"] > 0
    _, (curve,) = load_curves(finished.run_dir)
    assert curve.steps.tolist() == [0, 8, 16, 32, 40]
    (axes,) = plot_run(finished.run_dir).axes
    assert axes.get_xlabel() == "steps per seed"


def test_the_speed_is_told_in_the_unit_of_the_run(finished):
    for unit, words in [
        ("steps", " steps/s over all seeds"),
        ("gradient_steps", " gradient steps/s over all seeds"),
        ("env_steps", " environment steps/s over all seeds"),
    ]:
        told = dataclasses.replace(finished, summary=finished.summary | {"unit": unit})
        *_, line, _ = launching.describe(told).splitlines()
        assert line.partition(";")[0].lstrip("0123456789,.") == words
    assert finished.summary["unit"] == "steps"


def test_the_configuration_has_every_phase(finished):
    config = json.loads((finished.run_dir / "config.json").read_text())
    first, second = config["phases"]
    assert [(each["name"], each["steps"]) for each in (first, second)] == [
        ("offline", 16),
        ("online", 24),
    ]
    assert first["trainer"]["class"] == "Offline" and first["trainer"]["num_updates"] == 4
    assert second["trainer"]["class"] == config["trainer"]["class"] == "OffPolicy"
    assert second["trainer"]["sampler"]["class"] == "Mixed"
    assert second["agent"]["learning_rate"] == 1e-3 != first["agent"]["learning_rate"]
    assert config["unit"] == "steps" and config["total_steps"] == 40
    assert config["eval_every"] == [8, 8]


def test_checkpoints_are_numbered_by_total_iterations_and_keep_their_phase(finished, tmp_path):
    assert checkpoint.available(finished.run_dir / "checkpoints") == [6, 8]
    train(tmp_path / "run", steps=12)
    metas = {
        number: checkpoint.restore(tmp_path / "run" / "checkpoints", None, number).meta
        for number in (4, 5)
    }
    assert [(metas[4]["phase"], metas[4]["iteration_of_phase"])] == [(0, 4)]
    assert [(metas[5]["phase"], metas[5]["iteration_of_phase"])] == [(1, 1)]
    assert metas[5]["iteration"] == 5
    early, late = (load_policy(tmp_path / "run", iteration=number) for number in (4, 5))
    assert early.agent.learning_rate == agent().learning_rate != late.agent.learning_rate
    assert early(np.ones(1, np.float32)).shape == ()


# --- interruptions


def assert_same_run(folder, result, finished):
    assert_same_bits(result.state, finished.state)
    rows = [(each / "metrics.jsonl").read_bytes() for each in (folder, finished.run_dir)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("method", "call"),
    [("advance", 3), ("save", 4), ("begin", 1), ("advance", 5), ("advance", 7), ("save", 8)],
)
def test_killed_in_any_phase_and_resumed_it_is_the_uninterrupted_run(
    finished, tmp_path, method, call
):
    with killed(method, call):
        train(tmp_path / "run", checkpoint_every=4)
    result = train(tmp_path / "run", resume=True, checkpoint_every=4)
    assert_same_run(tmp_path / "run", result, finished)
    left = checkpoint.available(tmp_path / "run" / "checkpoints")
    assert left == [7, 8]


def test_a_signal_between_two_phases_leaves_the_first_state_of_the_later(
    finished, tmp_path, monkeypatch
):
    def begin(self, *args, original=Session.begin):
        ts = original(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)
        return ts

    with monkeypatch.context() as patch:
        patch.setattr(Session, "begin", begin)
        with pytest.raises(Interrupted, match="stopped by signal 15 at step 16$"):
            train(tmp_path / "run")
    meta = checkpoint.restore(tmp_path / "run" / "checkpoints", None).meta
    assert (meta["iteration"], meta["phase"], meta["iteration_of_phase"]) == (4, 1, 0)
    result = train(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", result, finished)


def test_only_the_last_phase_may_change_its_length(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    longer = train(folder, steps=32, resume=True)
    assert longer.summary["env_steps"] == 32
    other = [Phase(offline(), 20, "offline"), Phase(online(sampler=Mixed()), 32, "online")]
    with pytest.raises(UsageError, match=r"another configuration: phases.0.steps \(16, now 20\)"):
        run(other, data=dataset(), seeds=2, run_dir=folder, resume=True, **SMALL)


# --- what is refused


def test_phases_that_cannot_follow_each_other_are_refused_before_anything_begins(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Session, "train", lambda *_: pytest.fail("training began"))
    off, data = Phase(offline(), 16, "offline"), dataset()
    cloning = BC(policy=Categorical(hidden_dims=(4,)))
    for second, part in [
        (Phase(online(), 8, "online"), "total_steps is 8, and 8 are made before learning starts"),
        (Phase(online(agent(8)), 24, "online"), "agents of different states: q/params/network/"),
        (Phase(online(NormalizeObs(agent())), 24, "online"), "agents of different states: q/"),
        (Phase(offline(cloning), 16, "b"), "phase 'b' trains BC, and phase 'offline' DQN"),
        (Phase(online(), 24), "a phase has no name; give one"),
        (Phase(online(), 24, "offline"), "phases .* repeat a name"),
        (Phase(online(), 0, "online"), "steps of phase 'online' is 0; it must be at least 1"),
        (Phase(online(), 2.5, "online"), "steps of phase 'online' is 2.5; it must be an integer"),
        (Phase(online(agent(gamma=2.0)), 24, "online"), "gamma is 2; it must be .* at most 1"),
    ]:
        with pytest.raises(UsageError, match=part) as error:
            run([off, second], data=data, run_dir=tmp_path / "run", **SMALL)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="total_steps is 100, and every phase has steps"):
        run([off], 100, data=data, **SMALL)
    with pytest.raises(UsageError, match="the run has no phases"):
        run([], **SMALL)
    with pytest.raises(UsageError, match="total_steps is missing"):
        run(offline(), data=data, **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_dataset_is_given_exactly_where_it_is_read():
    missing = "UniformDataset samples from a dataset, and there is none; give one, as data=dataset"
    with pytest.raises(UsageError, match=missing):
        run(offline(), 16, **SMALL)
    with pytest.raises(UsageError, match="Mixed samples from a dataset"):
        run([Phase(online(), 24, "a"), Phase(online(sampler=Mixed()), 24, "b")], **SMALL)
    needless = "UniformReplay samples from no dataset, and one is given; leave it out"
    with pytest.raises(UsageError, match=needless):
        run(online(), 24, data=dataset(), **SMALL)
    with pytest.raises(UsageError, match="the dataset's action has shape"):
        run(offline(), 16, data=dataset()._replace(action=np.zeros(3, np.int32)), **SMALL)


# --- the dataset


def test_another_dataset_is_refused_and_the_same_one_goes_on(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    saved = checkpoint.restore(folder / "checkpoints", None)
    checksum = config["data"]["checksum"]
    assert re.fullmatch("[0-9a-f]{8}", checksum)
    assert saved.meta["config"]["data"] == config["data"]
    assert not any(ROWS in x.shape for x in saved.state.values())
    with pytest.raises(UsageError, match=rf"data.checksum \({checksum}, now \w+\)$") as error:
        train(folder, data=dataset(seed=1), resume=True)
    assert "\n" not in str(error.value)
    again = train(folder, data=jax.device_put(dataset()), resume=True)
    assert_same_bits(again.state, finished.state)


@pytest.mark.parametrize("trainer", [offline(), online(sampler=Mixed())], ids=["offline", "mixed"])
def test_a_dataset_is_one_argument_whatever_the_number_of_seeds(trainer):
    programs, data = Programs(trainer, Placement()), dataset()
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    ts = jax.eval_shape(programs.init, {}, keys, data)
    assert not any(ROWS in x.shape for x in jax.tree.leaves(ts))
    count = jnp.int32(1)
    text = jax.jit(programs.chunk).lower({}, ts, data, count, count).as_text()
    shapes = set(re.findall(rf"tensor<([\dx]*\b{ROWS}x[^>]*)>", text))
    assert shapes == {f"{ROWS}x1xf32", f"{ROWS}xi32", f"{ROWS}xf32", f"{ROWS}xi1"}
    entry = re.search(r"func.func public @main\((.*?)\) ->", text, re.S)[1]
    assert entry.count(f"tensor<{ROWS}x") >= 5
    constants = re.findall(rf"stablehlo.constant dense<\S+> : tensor<{ROWS}x", text)
    assert not constants
