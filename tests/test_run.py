"""``run``: the pure function's bits, its records, and what it does when things go wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits

from jaxrl import (
    PPO,
    NormalizeObs,
    OnPolicy,
    RunError,
    UsageError,
    VectorEnv,
    hyper,
    load_policy,
    make,
    run,
)
from jaxrl.analysis import load
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.record import checkpoint
from jaxrl.record.folder import RunFolder
from jaxrl.run.session import Session

pytestmark = pytest.mark.usefixtures("shared_programs")

CART_POLE = make("gymnax/CartPole-v1")
STEPS = 10 * 32  # ten iterations
SMALL = {"eval_episodes": 2, "eval_every": 160, "log_every": 64, "checkpoint_every": 96}
SMALL |= {"devices": 1, "quiet": True}


def tiny(agent=None):
    agent = agent or ppo()
    env = VectorEnv(CART_POLE, 4)
    return OnPolicy(NormalizeObs(agent), env, num_steps=8)


def ppo(kind=PPO, **options):
    networks = {"policy": AutoPolicy(hidden_dims=(8,)), "critic": ValueFunction(hidden_dims=(8,))}
    return kind(**networks, update_epochs=2, num_minibatches=2, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that ended, with its folder; tests that change the folder copy it."""
    return run(tiny(), STEPS, seeds=[3, 5], run_dir=tmp_path_factory.mktemp("run") / "a", **SMALL)


def copied(result, to):
    """A copy of the run's folder."""
    shutil.copytree(result.run_dir, to)
    return to


@pytest.mark.exact
def test_a_run_is_the_pure_function_bit_for_bit():
    """Of one seed; test_phases.py has two."""
    trainer = tiny()
    one = run(trainer, STEPS, seeds=[3], **SMALL)
    alone, _ = jax.jit(lambda key: trainer.train(key, STEPS))(jax.random.key(3))
    assert_same_bits(jax.tree.map(lambda x: x[0], one.state), alone)


def test_the_second_chunk_compiles_nothing(monkeypatch):
    compiled, after_chunks = [], []

    def count(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    def advance(self, *args, original=Session.advance):
        result = original(self, *args)
        after_chunks.append(len(compiled))
        return result

    monkeypatch.setattr(Session, "advance", advance)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        run(tiny(), STEPS, **SMALL)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(after_chunks) > 4
    assert after_chunks[0] > 0 and len(set(after_chunks)) == 1


def test_rows_and_summary_say_what_happened(finished):
    rows = [json.loads(line) for line in (finished.run_dir / "metrics.jsonl").open()]
    known = [
        {n: None if isinstance(x, float) and not np.isfinite(x) else x for n, x in row.items()}
        for row in finished.rows
    ]
    assert rows == known
    train = [row for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in evals] == [0, 0, 160, 160, 320, 320]
    assert [row["step"] for row in train[::2]] == [64, 96, 128, 160, 192, 256, 288, 320]
    for row in rows:
        assert row["env_steps"] == row["step"]
        assert row["gradient_steps"] == row["step"] / 32 * 4 and "phase" not in row
    for row in train:
        assert row["seed"] in (3, 5) and row["nonfinite_steps"] == 0 and row["skipped_updates"] == 0
        names = {"episodes", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction"}
        assert names | {"grad_norm", "explained_variance"} <= row.keys()
        assert (row["episode_return"] is None) == (row["episodes"] == 0)
    for row in evals:
        assert row["episode_return"] == pytest.approx(np.mean(row["returns"]))
    assert len(finished.frame("eval")) == 6 and len(finished.frame()) == len(rows)

    summary = json.loads((finished.run_dir / "summary.json").read_text())
    final = summary["final_return"]
    assert final["per_seed"] == [row["episode_return"] for row in evals[-2:]]
    assert final["mean"] == pytest.approx(np.mean(final["per_seed"]))
    assert final["ci95"][0] <= final["iqm"] <= final["ci95"][1]
    assert summary["seeds"] == [3, 5] and summary["total_steps"] == STEPS
    assert (summary["env_steps"], summary["gradient_steps"]) == (STEPS, 40)
    assert summary["steps_per_second"] > 0 and summary["gradient_steps_per_second"] > 0
    assert {"algorithm", "env", "compile_seconds", "train_seconds", "device"} <= summary.keys()
    config = json.loads((finished.run_dir / "config.json").read_text())
    assert config["agent"]["agent"]["policy"]["hidden_dims"] == [8] and config["versions"]["jax"]
    assert config["unit"] == "env_steps" and config["data"] == {"checksum": None}
    assert (finished.run_dir / "curves.png").stat().st_size > 10_000


def critic_head(ts):
    """The head of the value function of every member ``[M, 8]``."""
    params = ts.agent.agent.networks.params
    return np.asarray(params["critic"]["network"]["head"]["kernel"])[..., 0]


def test_a_sweep_is_trained_and_summed_up_by_configuration(tmp_path):
    sweep = {"learning_rate": [1e-4, 1e-2], "gamma": [0.5, 0.99]}
    result = run(tiny(), 64, seeds=2, sweep=sweep, run_dir=tmp_path / "run", **SMALL)
    configurations = result.summary["configurations"]
    assert [c["sweep"] for c in configurations] == [
        {"learning_rate": rate, "gamma": gamma} for rate in (1e-4, 1e-2) for gamma in (0.5, 0.99)
    ]
    assert all(len(c["final_return"]["per_seed"]) == 2 for c in configurations)
    assert set(result.frame().columns) >= {"sweep.learning_rate", "sweep.gamma", "episode_return"}
    assert set(result.frame().columns) == set(load(result.run_dir).columns)
    head = critic_head(result.state)
    assert head.shape == (8, 8) and len(np.unique(head[:, 0])) == 8

    first = jax.vmap(tiny().init)(jax.vmap(jax.random.key)(jnp.array([0, 1] * 4)))
    # Adam's first steps are as long as its rate.
    moved = np.abs(head - critic_head(first)).max(axis=1)
    assert moved[:4].max() < 0.2 * moved[4:].min()
    assert result.policy(member=6).agent.agent.learning_rate == 1e-2


def test_a_finished_run_resumes_to_its_end_at_once(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    before = (folder / "metrics.jsonl").read_bytes()
    again = run(tiny(), STEPS, seeds=[3, 5], run_dir=folder, resume=True, **SMALL)
    assert_same_bits(again.state, finished.state)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert again.summary["final_return"] == finished.summary["final_return"]


def test_a_run_is_extended_but_not_shortened(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    longer = run(tiny(), 2 * STEPS, seeds=[3, 5], run_dir=folder, resume=True, **SMALL)
    whole = run(tiny(), 2 * STEPS, seeds=[3, 5], **SMALL)
    assert_same_bits(longer.state, whole.state)
    assert longer.summary["total_steps"] == 2 * STEPS
    with pytest.raises(UsageError, match=r"total-steps is 320, .* at step 640 already"):
        run(tiny(), STEPS, seeds=[3, 5], run_dir=folder, resume=True, **SMALL)


def flip(path):
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_told_and_the_older_one_used(finished, tmp_path, capsys, damage):
    folder = copied(finished, tmp_path / "run")
    newest, older = sorted(checkpoint.available(folder / "checkpoints"), reverse=True)
    files = [p for p in (folder / "checkpoints" / str(newest) / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    if damage == "flipped":
        flip(largest)
    elif damage == "truncated":
        largest.write_bytes(largest.read_bytes()[:-7])
    else:
        largest.unlink()
    again = run(tiny(), STEPS, seeds=[3, 5], run_dir=folder, resume=True, **SMALL)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("warning: checkpoint") and f"{newest} is damaged" in line
    assert line.endswith(f"trying {older}")
    assert_same_bits(again.state, finished.state)
    rows = (folder / "metrics.jsonl").read_bytes()
    assert rows == (finished.run_dir / "metrics.jsonl").read_bytes()


def test_without_an_intact_checkpoint_nothing_is_lost_or_begun_anew(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    for step in checkpoint.available(folder / "checkpoints"):
        flip(folder / "checkpoints" / str(step) / "manifest.json")
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="no intact one is left"):
        run(tiny(), STEPS, seeds=[3, 5], run_dir=folder, resume=True, **SMALL)
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("failing", ["one save", "the last save"])
def test_a_full_disk_is_told_at_once_and_training_goes_on(tmp_path, monkeypatch, capsys, failing):
    saves = []

    def write(folder, arrays, original=checkpoint.write_arrays):
        saves.append(folder)
        if (len(saves) == 2) if failing == "one save" else (len(saves) >= 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(folder, arrays)

    monkeypatch.setattr(checkpoint, "write_arrays", write)
    folder = tmp_path / "run"
    if failing == "one save":
        run(tiny(), STEPS, run_dir=folder, **SMALL)
        assert checkpoint.available(folder / "checkpoints") == [9, 10]
    else:
        with pytest.raises(RunError, match="its last state is not saved: .*No space left"):
            run(tiny(), STEPS, run_dir=folder, **SMALL)
        assert checkpoint.available(folder / "checkpoints") == [3]
        assert (folder / "summary.json").exists()
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == (1 if failing == "one save" else 3)
    assert "checkpoints/6 could not be saved" in warnings[0]
    assert warnings[0].endswith("training goes on")
    monkeypatch.undo()
    resumed = run(tiny(), STEPS, run_dir=folder, resume=True, **SMALL)
    assert_same_bits(resumed.state, run(tiny(), STEPS, **SMALL).state)


@hyper.dataclass
class Failing(PPO):
    """Its rewards are infinite in the updates from ``first`` to before ``last``."""

    first: float = 6.0
    last: float = 1e9

    def update(self, state, rollout, key):
        bad = (state.updates >= self.first) & (state.updates < self.last)
        reward = jnp.where(bad, jnp.inf, rollout.reward)
        return PPO.update(self, state, rollout._replace(reward=reward), key)


def test_gradients_that_are_not_finite_are_skipped_counted_and_stop_the_run(tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(RunError, match=r"step 256: 8 gradients in a row .* iteration 6 is kept"):
        run(tiny(ppo(Failing)), STEPS, run_dir=folder, max_skipped=8, **SMALL)
    kept = checkpoint.restore(folder / "checkpoints", None).state
    assert all(np.isfinite(x).all() for path, x in kept.items() if "params" in path)

    # Of several members, all have to be lost; those that are not alone are named, once.
    sweep = {"gamma": [0.9], "first": [6.0, 1e9]}
    some = run(tiny(ppo(Failing)), STEPS, seeds=[4, 5], sweep=sweep, max_skipped=8, **SMALL)
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "gradients" in each]
    assert line.startswith("warning: 8 gradients in a row of seed 4 with gamma=0.9 first=6, seed 5")
    assert "seed 5 with gamma=0.9 first=6 were not finite (max-skipped is 8)" in line
    assert "first=1e+09" not in line
    skipped = [row["skipped_updates"] for row in some.rows[-8:-4]]
    assert skipped[0] == skipped[1] > 0 == skipped[2] == skipped[3]
    both = {"first": [5.0, 6.0]}
    with pytest.raises(
        RunError, match="step 256: 8 .* of seed 0 with first=5, seed 0 with first=6"
    ):
        run(tiny(ppo(Failing)), STEPS, sweep=both, max_skipped=8, **SMALL)

    passing = run(tiny(ppo(Failing, last=8.0)), STEPS, max_skipped=9, **SMALL)
    skipped = [row["skipped_updates"] for row in passing.rows if row["kind"] == "train"]
    assert sum(skipped) == 8 and skipped[-1] == 0
    params = jax.tree.leaves(passing.state.agent.agent.networks.params)
    assert all(jnp.isfinite(x).all() for x in params)


def test_a_configuration_that_describes_no_policy_is_one_line(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    path, config = folder / "config.json", json.loads((folder / "config.json").read_text())
    wrapped = config["agent"]
    inner = wrapped["agent"]
    for changed, message in [
        ({}, "config.json lacks 'agent'; it describes no policy"),
        (config | {"agent": wrapped | {"gama": 0.9}}, "NormalizeObs has no hyper-parameter 'gama'"),
        (
            config | {"agent": wrapped | {"agent": inner | {"gama": 0.9}}},
            "PPO has no hyper-parameter 'gama'; did you mean gamma",
        ),
        (config | {"agent": {}}, "unknown agent class None"),
        (config | {"agent": {"class": "NormalizeObs"}}, "NormalizeObs needs 'agent'"),
    ]:
        path.write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=message) as error:
            load_policy(folder)
        assert "\n" not in str(error.value)


def killed_in_its_first_write(folder):
    """What a process leaves that is killed before ``config.json`` stands."""
    folder.mkdir()
    (folder / ".lock").write_text("123")
    (folder / ".config.json-abcdefgh").write_text('{"seeds": [0')


def test_a_folder_whose_first_process_was_killed_at_once_can_be_used(tmp_path):
    folder = tmp_path / "run"
    killed_in_its_first_write(folder)
    with pytest.raises(UsageError, match="nothing to resume; start it without --resume"):
        RunFolder(folder, {"seeds": [0]}, resume=True)
    RunFolder(folder, {"seeds": [0]}, resume=False).close()
    assert {path.name for path in folder.iterdir()} == {".lock", "config.json"}


def test_a_full_disk_at_the_very_start_is_one_line_and_the_folder_stays_free(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UsageError, match=r"/run cannot be used \(No space left on device\)"):
            run(tiny(), STEPS, run_dir=tmp_path / "run", **SMALL)
    RunFolder(tmp_path / "run", {}, resume=False).close()


def test_a_folder_in_use_is_refused(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    held = RunFolder(folder, config, resume=True)
    with pytest.raises(RunError, match="in use by process"):
        run(tiny(), STEPS, seeds=[3, 5], run_dir=folder, resume=True, **SMALL)
    held.close()
    run(tiny(), STEPS, seeds=[3, 5], run_dir=folder, resume=True, **SMALL)


def test_another_environment_is_refused(finished):
    env = VectorEnv(make("gymnax/CartPole-v1", gravity=3.0), 4)
    other = OnPolicy(tiny().agent, env, num_steps=8)
    with pytest.raises(UsageError, match=r"env_options.gravity \(absent, now 3.0\)"):
        run(other, STEPS, seeds=[3, 5], run_dir=finished.run_dir, resume=True, **SMALL)


def test_another_version_is_noted_and_recorded(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["versions"]["jax"], config["device"] = "0.0.1", "abacus: wood"
    (folder / "config.json").write_text(json.dumps(config))
    loud = SMALL | {"quiet": False}
    run(tiny(), STEPS, seeds=[3, 5], run_dir=folder, resume=True, **loud)
    said = capsys.readouterr().err
    assert "versions.jax (0.0.1, now" in said and "device (abacus: wood, now" in said
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["versions"]["jax"] == jax.__version__
