"""Sessions: their messages to the user, and the order in which they open things."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits

from jaxrl import (
    DQN,
    PPO,
    Offline,
    OffPolicy,
    OnPolicy,
    RunError,
    UsageError,
    VectorEnv,
    cli,
    make,
    run,
)
from jaxrl.cli import launching
from jaxrl.errors import Interrupted
from jaxrl.nn.critics import QNetwork, ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.record import checkpoint
from jaxrl.record.folder import RunFolder
from jaxrl.record.metrics_file import MetricsFile
from jaxrl.run import logs, records, session, summary
from jaxrl.types import Box, Environment, Spec, Step

pytestmark = pytest.mark.usefixtures("shared_programs")

CART_POLE = make("gymnax/CartPole-v1")
SMALL = {"eval_every": 64, "eval_episodes": 1, "log_every": 16, "devices": 1, "quiet": True}


def tiny(env: Environment | None = None) -> OnPolicy:
    networks = {"policy": AutoPolicy(hidden_dims=(4,)), "critic": ValueFunction(hidden_dims=(4,))}
    agent = PPO(**networks, update_epochs=1, num_minibatches=1)
    return OnPolicy(agent, VectorEnv(env or CART_POLE, 2), num_steps=8)


def test_wrong_input_of_the_function_is_refused_too():
    for options, part in [
        ({"seeds": [1, 2, 1]}, "seeds repeat 1; give every seed once"),
        ({"seeds": []}, "num_seeds is 0; it must be at least 1"),
        ({"sweep": {"gamma": []}}, "gamma has no values"),
        (
            {"sweep": {"hidden_dims": [4]}},
            "'hidden_dims' is ambiguous; choose one of critic",
        ),
        (
            {"sweep": {"optimizer.eps": [1e-8], "eps": [1e-8]}},
            "optimizer.eps and eps are one hyper-parameter; sweep it once",
        ),
        (
            {"sweep": {"obs_clip": [5.0]}},
            "obs_clip is not in use, .*wrap the agent in Norm",
        ),
        ({"seeds": 10**12}, "num_seeds is 1000000000000; .* give at most 65536"),
        ({"seeds": range(10**6)}, "num_seeds is 1000000; .* give at most 65536"),
        (
            {"sweep": {"gamma": np.linspace(0, 1, 300), "gae_lambda": np.linspace(0, 1, 300)}},
            "num_seeds is 1 for each of 90000 configurations; .*sweep less",
        ),
        ({"seeds": 2.0}, "seeds is 2.0; it must be an integer, or integers, as"),
        ({"seeds": "12"}, "seeds is '12'; it must be an integer, or integers, as"),
        ({"seeds": [0, 1.5]}, "seed is 1.5; it must be an integer"),
        ({"seeds": [0, 2**31]}, "seed is 2147483648; it must be at least 0 and at most 21474"),
        ({"resume": True}, "resume needs the run-dir"),
        ({"log": ["tensorboard"]}, "log tensorboard needs a run-dir"),
        ({"eval_mode": "stochastic"}, "eval_mode is 'stochastic'; choose one of explore, greedy"),
        ({"max_nonfinite": 1.5}, "max_nonfinite is 1.5; it must be at least 0 and at most 1"),
    ]:
        with pytest.raises(UsageError, match=part):
            run(tiny(), 32, quiet=True, **options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 10**9}, "batch_size is 1000000000 and num_updates 1, .* would fit"),
        ({"num_updates": 10**9}, "at most 16777216, so lower num_updates .1000000000.$"),
        ({"cycles": 10**9}, "at most 16777216, so lower cycles .1000000000., num_updates .1.$"),
        ({"num_steps": 10**9}, "buffer_size is 1000000, less than the 1000000000 transitions"),
        ({"learning_starts": 10**9}, "buffer_size is 1000000, less than the 1000000000 tran"),
        ({"n_step": 10**9}, "learning_starts is 5000; n_step 1000000000 needs"),
        ({"buffer_size": 2 * 10**9}, "buffer_size is 2000000000, which needs .* fits"),
    ],
)
def test_sizes_that_cannot_fit_are_refused_before_anything_is_built(monkeypatch, sizes, message):
    monkeypatch.setattr(session.Session, "start", lambda self: pytest.fail("training began"))
    env = VectorEnv(make("gymnax/CartPole-v1"), 1)
    agent = DQN(q_network=QNetwork(hidden_dims=(4,)))
    with pytest.raises(UsageError, match=message):
        run(OffPolicy(agent, env, **sizes), 10**6, quiet=True)
    if "batch_size" in sizes:
        with pytest.raises(UsageError, match=message):
            Offline(agent, env, **{"num_updates": 1} | sizes).check_memory(1, 1)


@pytest.mark.parametrize("integer", [np.int64, jnp.int32])
def test_lengths_and_limits_of_a_run_may_be_numbers_of_numpy_and_jax(tmp_path, integer):
    periods = {name: integer(16) for name in ("eval_every", "log_every", "checkpoint_every")}
    limits = {"eval_episodes": integer(1), "max_skipped": integer(9)}
    limits |= {"max_nonfinite": np.float32(0.5), "devices": 1, "quiet": True}
    run(tiny(), integer(32), run_dir=tmp_path / "run", **periods, **limits)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["total_steps"], config["log_every"], config["max_nonfinite"]) == (32, 16, 0.5)


def test_a_run_too_long_to_count_is_refused():
    """Writes into the buffer are counted in 32 bits, for each environment."""
    env = VectorEnv(make("gymnax/CartPole-v1"), 2)
    agent = DQN(q_network=QNetwork(hidden_dims=(4,)))
    trainer = OffPolicy(agent, env, cycles=1, learning_starts=2)
    assert trainer.iterations(2 * (2**31 - 1)) == 2**31 - 2
    with pytest.raises(UsageError, match="total_steps is 4294967295; .* at most 4294967294$"):
        trainer.iterations(2 * (2**31 - 1) + 1)


# --- evaluation


@dataclasses.dataclass(frozen=True)
class Alike:
    """Three steps that pay the action: every episode begins alike, and nothing is random."""

    name: ClassVar[str] = "mine/alike"
    cheap: ClassVar[bool] = True

    @property
    def spec(self):
        return Spec(Box(0.0, 3.0, (1,)), Box(-1.0, 1.0, (1,)), 3)

    def reset(self, key):
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, key, state, action):
        ends = state[0] < -1.0
        return state + 1, Step(state + 1, action[0], ends, jnp.zeros_like(ends), {})


def test_identical_episodes_are_told_and_a_stochastic_evaluation_has_others(tmp_path):
    options = SMALL | {"eval_episodes": 4}
    greedy = run(tiny(Alike()), 32, run_dir=tmp_path / "greedy", **options)
    assert all(len(set(row["returns"])) == 1 for row in greedy.rows if row["kind"] == "eval")
    assert greedy.summary["identical_episodes"] and greedy.summary["eval_mode"] == "greedy"
    told = [
        line for line in launching.describe(greedy).splitlines() if "--eval-mode sample" in line
    ]
    assert len(told) == 1

    options |= {"resume": True, "eval_mode": "sample", "run_dir": tmp_path / "greedy"}
    more = run(tiny(Alike()), 64, **options)  # it may change on resume
    assert not more.summary["identical_episodes"] and more.summary["eval_mode"] == "sample"
    assert len(set(more.rows[-1]["returns"])) == 4
    assert "--eval-mode" not in launching.describe(more)


# --- signals


def sends_itself(monkeypatch, where, signum=signal.SIGTERM, call=1):
    """Have the process get a signal at the end of so many calls of a method of the session."""
    calls, original = [], getattr(session.Session, where)

    def then(self, *args):
        result = original(self, *args)
        calls.append(where)
        if len(calls) == call:
            os.kill(os.getpid(), signum)
        return result

    monkeypatch.setattr(session.Session, where, then)


@pytest.mark.parametrize(
    ("where", "signum"), [("start", signal.SIGINT), ("compile", signal.SIGHUP)]
)
def test_a_signal_before_the_first_chunk_leaves_a_run_that_goes_on_as_if_nothing_had_been(
    tmp_path, monkeypatch, request, where, signum
):
    before = signal.signal(signum, signal.default_int_handler)  # nohup ignores SIGHUP
    request.addfinalizer(lambda: signal.signal(signum, before))
    whole = run(tiny(), 64, run_dir=tmp_path / "whole", **SMALL)
    with monkeypatch.context() as patch:
        sends_itself(patch, where, signum)
        with pytest.raises(Interrupted, match=f"stopped by signal {signum} at step 0$"):
            run(tiny(), 64, run_dir=tmp_path / "run", **SMALL)
    assert checkpoint.available(tmp_path / "run" / "checkpoints") == [0]
    resumed = run(tiny(), 64, run_dir=tmp_path / "run", resume=True, **SMALL)
    assert_same_bits(resumed.state, whole.state)
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert rows[0] == rows[1]


def test_a_run_made_to_end_where_it_was_stopped_is_evaluated_there(tmp_path, monkeypatch):
    """The signal came between two evaluations, and the policy is not that of the former."""
    whole, folder = run(tiny(), 32, run_dir=tmp_path / "whole", **SMALL), tmp_path / "run"
    with monkeypatch.context() as patch:
        sends_itself(patch, "advance", call=2)
        with pytest.raises(Interrupted, match="at step 32$"):
            run(tiny(), 64, run_dir=folder, **SMALL)
    for _ in range(2):  # the second session finds the evaluation
        resumed = run(tiny(), 32, run_dir=folder, resume=True, **SMALL)
        rows = [(path / "metrics.jsonl").read_bytes() for path in (folder, tmp_path / "whole")]
        assert rows[0] == rows[1] and resumed.rows[-1] == whole.rows[-1]
        for name in ("final_return", "best_checkpoint"):
            assert resumed.summary[name] == whole.summary[name]
    metas = [checkpoint.restore(path / "checkpoints", None).meta for path in
             (folder, tmp_path / "whole")]  # fmt: skip
    assert metas[0]["metrics_bytes"] == metas[1]["metrics_bytes"]
    assert metas[0]["best"] == metas[1]["best"]


def no_space(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("saves", [0, 1])
def test_a_signal_on_a_full_disk_says_since_when_nothing_is_saved(
    tmp_path, monkeypatch, capsys, saves
):
    sends_itself(monkeypatch, "advance", call=saves + 1)
    written = []

    def write(folder, arrays, original=checkpoint.write_arrays):
        written.append(folder)
        (original if len(written) <= saves else no_space)(folder, arrays)

    monkeypatch.setattr(checkpoint, "write_arrays", write)
    options = SMALL | {"run_dir": tmp_path / "run", "checkpoint_every": 16}
    options |= {} if saves else {"checkpoint_every": 64}
    with pytest.raises(SystemExit) as exit:
        cli.launch(lambda: run(tiny(), 64, **options))
    *_, line = capsys.readouterr().err.splitlines()
    assert exit.value.code == 143
    assert f"at step {16 * (saves + 1)}, but checkpoint" in line
    assert line.endswith("nothing is saved since step 16" if saves else "nothing is saved")
    assert "No space left on device" in line


# --- a full disk


def test_without_a_summary_the_exit_code_is_not_zero_and_a_resumed_run_writes_it(
    tmp_path, monkeypatch, capsys
):
    options, folder = SMALL | {"run_dir": tmp_path / "run"}, tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(summary, "write_json", no_space)
        patch.setattr(summary, "plot_run", no_space)
        with pytest.raises(SystemExit) as exit:
            cli.launch(lambda: run(tiny(), 32, **options))
    drawing, line = capsys.readouterr().err.splitlines()
    assert exit.value.code == 1
    assert "the run ended, but" in line and "summary.json could not be written: No space" in line
    assert drawing.startswith("warning: curves.png was not drawn") and "No space" in drawing
    assert not (folder / "summary.json").exists()
    run(tiny(), 32, resume=True, **options)
    assert (folder / "summary.json").exists() and (folder / "curves.png").exists()


def test_rows_that_a_full_disk_refused_are_written_once_there_is_room(
    tmp_path, monkeypatch, capsys
):
    whole, folder = run(tiny(), 64, run_dir=tmp_path / "whole", **SMALL), tmp_path / "run"
    flush, full = MetricsFile._flush, []

    def flush_or_fail(self):
        full.append(self.path.name)
        if 2 < len(full) < 7:
            no_space()
        flush(self)

    monkeypatch.setattr(MetricsFile, "_flush", flush_or_fail)
    result = run(tiny(), 64, run_dir=folder, **SMALL)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 4 == len([line for line in warnings if "No space left" in line])
    assert {"metrics.jsonl", "timing.jsonl"} == set(full[2:6])
    assert_same_bits(result.state, whole.state)
    rows = [(path / "metrics.jsonl").read_bytes() for path in (folder, tmp_path / "whole")]
    assert rows[0] == rows[1]
    assert len((folder / "timing.jsonl").read_text().splitlines()) == 4


def test_rows_that_never_find_room_fail_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MetricsFile, "_flush", no_space)
    with pytest.raises(RunError, match="its last state is not saved: .*No space left"):
        run(tiny(), 32, run_dir=tmp_path / "run", **SMALL)


@pytest.mark.parametrize("resume", [False, True])
def test_files_that_cannot_be_opened_are_one_line(tmp_path, monkeypatch, capsys, resume):
    if resume:
        RunFolder(tmp_path / "run", run_config(tmp_path), resume=False).close()
    monkeypatch.setattr(records, "MetricsFile", no_space)
    with pytest.raises(SystemExit) as exit:
        options = SMALL | {"run_dir": tmp_path / "run", "resume": resume}
        cli.launch(lambda: run(tiny(), 32, **options))
    (line,) = capsys.readouterr().err.splitlines()
    assert exit.value.code == 1 and "cannot be written in: No space left" in line


def run_config(tmp_path):
    """What ``config.json`` of ``run(tiny(), 32, **SMALL)`` holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Session, "start", no_space)
        with pytest.raises(OSError):
            run(tiny(), 32, run_dir=tmp_path / "other", **SMALL)
    return json.loads((tmp_path / "other" / "config.json").read_text())


# --- numbers that are not finite


@dataclasses.dataclass(eq=False)
class Exploding:
    """A cart and pole whose reward is not finite once the cart drives fast to the right."""

    env: Any
    at: float = 0.3

    def __getattr__(self, name):
        return getattr(self.env, name)

    def step(self, key, state, action):
        state, step = self.env.step(key, state, action)
        return state, step._replace(reward=jnp.where(step.obs[1] > self.at, jnp.nan, step.reward))


def test_physics_that_is_not_finite_is_told_once(tmp_path, capsys):
    env = Exploding(CART_POLE)
    result = run(tiny(env), 64, run_dir=tmp_path / "run", **SMALL)
    rows = [row for row in result.rows if row["kind"] == "train"]
    bad = [row for row in rows if row["nonfinite_steps"]]
    assert len(rows) == 4 and len(bad) > 1
    (line,) = capsys.readouterr().err.splitlines()
    count, step = f"{bad[0]['nonfinite_steps']:.0f}", bad[0]["step"]
    assert line.startswith(f"warning: {count} environment steps before step {step} were not finite")
    assert "nonfinite_steps in metrics.jsonl" in line


@pytest.mark.parametrize("trainer", ["on-policy", "off-policy"])
def test_physics_that_is_hardly_ever_finite_stops_the_run(tmp_path, trainer):
    env = Exploding(CART_POLE, at=-jnp.inf)
    if trainer == "on-policy":
        made = tiny(env)
    else:
        replay = {"learning_starts": 8, "batch_size": 4, "cycles": 8, "buffer_size": 64}
        agent = DQN(q_network=QNetwork(hidden_dims=(4,)))
        made = OffPolicy(agent, VectorEnv(env, 2), **replay)
    expected = r"\d+ of the last \d+ environment steps .*is 0.5 of them\); there is no checkpoint"
    with pytest.raises(RunError, match=expected):
        run(made, 64, run_dir=tmp_path / "run", **SMALL | {"checkpoint_every": 64})
    run(made, 64, max_nonfinite=1.0, **SMALL)  # all may be so


MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nBufferAssignment OOM Debugging."


@pytest.mark.parametrize("where", ["start", "compile", "advance"])
@pytest.mark.parametrize("text", [MEMORY, "INTERNAL: Out of memory while trying to allocate"])
def test_too_little_memory_is_one_line_that_names_the_sizes(
    tmp_path, monkeypatch, capsys, where, text
):
    def fail(self, *args):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(session.Session, where, fail)
    if where == "advance":  # without compiling
        monkeypatch.setattr(session.Session, "start", lambda self: (None, 0))
        monkeypatch.setattr(session.Session, "compile", lambda self, ts: None)
        monkeypatch.setattr(session.Session, "evaluate", lambda *args: [])
    elif where == "compile":
        monkeypatch.setattr(session.Session, "start", lambda self: (None, 0))
    folder = tmp_path / "run"
    options = SMALL | {"run_dir": folder, "seeds": [5, 6, 7], "sweep": {"gamma": [0.9, 0.99]}}
    with pytest.raises(SystemExit) as exit:
        cli.launch(lambda: run(tiny(), 64, **options))
    (line,) = capsys.readouterr().err.splitlines()
    assert exit.value.code == 1
    assert "memory is too small" in line and text.splitlines()[0][:40] in line
    for part in ("num-envs (2)", "num-steps (8)", "num-seeds (3)", "of the sweep (2)"):
        assert part in line
    stored = json.loads((folder / "config.json").read_text())
    RunFolder(folder, stored, resume=True).close()  # it is not locked


def test_other_errors_of_xla_keep_their_traceback(monkeypatch):
    def fail(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(session.Session, "start", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(tiny(), 64, **SMALL)


def test_writers_come_after_the_lock_and_get_the_configuration(tmp_path, monkeypatch):
    made, folder = [], tmp_path / "run"

    def make_writer(run_dir, config, resume, whole):
        assert whole is None  # the folder is not a part of another run
        with pytest.raises(RunError, match="in use by process"):
            RunFolder(folder, config, resume=True)
        made.append((run_dir, config, resume))
        return types.SimpleNamespace(write=lambda rows: None, close=lambda: made.append("closed"))

    def stop(self):
        raise RunError("far enough")

    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.setitem(logs.WRITERS, "wandb", make_writer)
    monkeypatch.setattr(session.Session, "start", stop)
    for resume in (False, True):
        with pytest.raises(RunError, match="far enough"):
            run(tiny(), 64, run_dir=folder, resume=resume, log=["wandb"], **SMALL)
    first, closed, second, again = made
    assert closed == again == "closed"
    for (run_dir, config, resume), wanted in ((first, False), (second, True)):
        assert run_dir == folder and resume is wanted
        assert config["agent"]["gamma"] == 0.99 and config["env"] == "gymnax/CartPole-v1"
        assert config["seeds"] == [0] and config["log"] == ["wandb"]


def test_a_folder_in_use_sees_no_writer(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.setitem(logs.WRITERS, "wandb", lambda *_: pytest.fail("a writer was made"))
    held = RunFolder(folder, {}, resume=False)
    (folder / "config.json").unlink()
    with pytest.raises(RunError, match="in use by process"):
        run(tiny(), 64, run_dir=folder, log=["wandb"], **SMALL)
    held.close()


def test_the_bar_shows_the_speed_of_all_members_without_their_evaluations(monkeypatch):
    ticks, shown = iter(range(10_000)), []

    class Bar:
        def __init__(self, *args):
            pass

        def update(self, step, speed, episode_return):
            shown.append((step, speed))

        def close(self):
            pass

    monkeypatch.setattr(session, "ProgressBar", Bar)
    clock = types.SimpleNamespace(monotonic=lambda: float(next(ticks)))  # a chunk takes 1 s
    monkeypatch.setattr(session, "time", clock)
    result = run(tiny(), 64, seeds=3, **SMALL)
    assert shown == [(step, 3 * 16.0) for step in (16, 32, 48, 64)]
    assert result.summary["steps_per_second"] == 3 * 16.0
