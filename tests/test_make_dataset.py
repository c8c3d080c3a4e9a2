"""The script that makes datasets: what it records, what it checks, and what comes of its files."""

from __future__ import annotations

import json

import h5py
import jax
import numpy as np
import pytest
from shared import rows_of_pendulum, run_script, script_module

from jaxrl import SAC, UsageError, hyper, load_policy, make
from jaxrl.data import concatenate
from jaxrl.data.formats import load, metadata, reference
from jaxrl.data.replay import Replay
from jaxrl.record.recorder import from_replay
from jaxrl.record.writers import write_minari

QUICK = "--eval-episodes 2 --devices 1 --quiet"


@pytest.fixture(scope="module")
def script():
    with script_module("make_dataset") as module:
        yield module


# --- the whole way, in small --------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(script, tmp_path_factory):
    """Pendulum's datasets by an agent that has hardly learnt, with a time limit of 50 steps."""
    folder = tmp_path_factory.mktemp("data")
    words = f"--env gymnax/Pendulum-v1 --out {folder} --rows 600 --total-steps 600 --medium 0"
    words += " --learning-starts 200 --batch-size 8 --policy.hidden-dims 8 --critic.hidden-dims 8"
    run_script(script, f"{words} --max-steps 50".split())
    return folder / "gymnax" / "Pendulum-v1"


def test_from_a_new_dataset_through_minari_offline_and_online_to_a_loaded_policy(made, tmp_path):
    names = {path.stem for path in made.glob("*.hdf5")}
    assert names == {"random", "medium", "medium-replay", "medium-expert", "expert"}
    spec = make("gymnax/Pendulum-v1").spec
    replay = load(made / "medium-replay.hdf5")
    known = reference(made / "random.hdf5")
    folder = write_minari(replay, tmp_path / "pendulum-v0", spec, reference=known)
    common = f"--dataset {folder} {QUICK} --batch-size 8"
    with script_module("iql") as script:
        sizes = "--policy.hidden-dims 8 --critic.hidden-dims 8 --value.hidden-dims 8"
        run_script(
            script, f"{common} {sizes} --total-steps 64 --run-dir {tmp_path / 'iql'}".split()
        )
    summary = json.loads((tmp_path / "iql" / "summary.json").read_text())
    assert summary["scores"]["name"] == "normalized"
    returns = summary["final_return"]["per_seed"]
    expected = 100 * (np.array(returns) - known.random) / (known.expert - known.random)
    np.testing.assert_allclose(summary["scores"]["final"]["per_seed"], expected)

    with script_module("offline_to_online") as script:
        sizes = "--hidden-dims 8 --total-steps 64 --online-steps 300 --learning-starts 100"
        run = tmp_path / "online"
        run_script(script, f"{common} {sizes} --method iql --run-dir {run}".split())
    summary = json.loads((run / "summary.json").read_text())
    assert [switch["phase"] for switch in summary["switches"]] == ["online"]
    policy = load_policy(run)
    assert np.isfinite(policy(replay.obs[:5])).all()


def test_datasets_hold_what_they_were_made_of(made):
    known = metadata(made / "medium.hdf5")
    assert known["env"] == "gymnax/Pendulum-v1" and known["seed"] == 0
    assert known["command"].startswith("make_dataset_script --env gymnax/Pendulum-v1 --out ")
    medium, expert = (load(made / f"{name}.hdf5") for name in ("medium", "expert"))
    mixed = load(made / "medium-expert.hdf5")
    halves = concatenate(
        [x.filter(np.arange(x.num_episodes) < x.num_episodes // 2) for x in (medium, expert)]
    )
    for name in ("obs", "action", "reward"):
        np.testing.assert_array_equal(getattr(mixed, name), getattr(halves, name))
    assert not np.array_equal(medium.obs, expert.obs)
    assert load(made / "medium-replay.hdf5").size <= 600


def test_all_datasets_and_their_reference_have_the_time_limit_of_the_training(made):
    for path in made.glob("*.hdf5"):
        with h5py.File(path) as file:
            ends = np.flatnonzero(file["timeouts"][:] | file["terminals"][:])
        assert np.diff(ends, prepend=-1).max() <= 50 and metadata(path)["max_steps"] == 50
    # Pendulum's random policy has about -6 for a step.
    assert -500 < reference(made / "expert.hdf5").random < -100


# --- the replay buffer --------------------------------------------------------------------------

TINY = hyper.override(SAC(), {part: {"hidden_dims": (4,)} for part in ("policy", "critic")})


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_replay_of_every_moment_is_the_first_experience(script, num_envs):
    config = script.Config(
        total_steps=600,
        learning_starts=200,
        batch_size=4,
        num_envs=num_envs,
        agent=TINY,
        quiet=True,
    )
    trainer = script.trainer_of(make("gymnax/Pendulum-v1"), config)
    moments, last = script.train(trainer, config)
    first = trainer.schedule.warmup_steps
    begun = jax.jit(lambda key: trainer.init(key).store.obs)(jax.random.key(config.seed))[:first]
    assert len(moments) > 2 and moments[-1].written == trainer.buffer.slots
    for moment in moments:
        data = from_replay(Replay(trainer.buffer, last.store, moment.written), trainer.env.spec)
        inside = ~(data.terminated | data.truncated)[:-1]
        np.testing.assert_array_equal(data.next_obs[:-1][inside], data.obs[1:][inside])
        rows = data.obs.reshape(num_envs, moment.written, -1)
        np.testing.assert_array_equal(np.swapaxes(rows[:, :first], 0, 1), begun)


def test_the_newest_episodes_are_those_of_all_environments(script):
    data = rows_of_pendulum(20)  # of two environments, each with two episodes of five steps
    rows = np.asarray(data.reward).reshape(4, 5)
    for count, kept in ((10, [1, 3]), (15, [0, 1, 3]), (1, [1])):
        found = script.newest(data, count, 10)
        np.testing.assert_array_equal(found.reward.reshape(-1, 5), rows[kept])


# --- options ------------------------------------------------------------------------------------


def test_options_of_training_reach_the_trainer(script):
    words = "--n-step 3 --warmup-policy agent --cycles 4 --precision half --num-steps 2"
    config = script.parsed([*words.split(), "--normalize-obs", "--reward-scale", "2"])
    trainer = script.trainer_of(make("gymnax/Pendulum-v1"), config)
    assert (trainer.n_step, trainer.warmup_policy, trainer.cycles) == (3, "agent", 4)
    assert (trainer.precision, trainer.num_steps, config.total_steps) == ("half", 2, 20_000)
    assert trainer.agent.agent.reward_scale == 2


UNUSED = ["--num-seeds 2", "--sweep gamma=0.9,0.99", "--render", "--run-dir x", "--log wandb"]
UNUSED += [
    "--buffer-size 9",
    "--resume",
    "--eval-every 9",
    "--eval-episodes 9",
    "--eval-mode sample",
]
UNUSED += ["--log-every 9", "--checkpoint-every 9", "--devices 1", "--max-skipped 9"]
UNUSED += ["--max-nonfinite 0.1", "--no-keep-best", "--distributed"]
MAZE = "--env maze/Stitch-v0"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        *((words, f"unknown option {words.split()[0]}; ") for words in UNUSED),
        ("--rows 0", "rows is 0; it must be at least 1"),
        ("--medium 1.5", "medium is 1.5; it must be at least 0 and at most 1"),
        ("--max-steps 0", "max_steps is 0; it must be at least 1"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--total-steps 500", "total_steps is 500, and 1000 are made before learning starts"),
        ("--policy-delay 4 --cycles 2", "cycles is 2; the actor is updated every 4 cycles"),
        ("--out file", "out is file, which cannot hold the datasets: Not a directory; give anoth"),
        (
            "--out there",
            "there/gymnax/Pendulum-v1/medium.hdf5 exists; give another folder, such as",
        ),
        ("--env gymnax/CartPole-v1", "SAC needs continuous actions"),
        (f"{MAZE} --rows 0", "rows is 0; it must be at least 1"),
        (f"{MAZE} --total-steps=9", "total_steps is for training, and a maze's dataset is script"),
        (f"{MAZE} --gamma 0.9", "gamma is for training, and a maze's dataset is scripted; omit it"),
        (f"{MAZE} --no-normalize-obs", "no_normalize_obs is for training, and a maze's dataset"),
        (f"{MAZE} --out there", "there/maze/Stitch-v0/stitch.hdf5 exists; give another folder"),
    ],
)
def test_what_cannot_be_made_is_refused_before_training(script, words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task, name in (("gymnax/Pendulum-v1", "medium"), ("maze/Stitch-v0", "stitch")):
        (tmp_path / "there" / task).mkdir(parents=True)
        (tmp_path / "there" / task / f"{name}.hdf5").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name in ("train", "record"):
        monkeypatch.setattr(script, name, lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(UsageError, match=line) as error:
        run_script(script, words.split())
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_observations_with_entries_are_refused_before_training(script):
    with pytest.raises(UsageError, match="env is a/b, whose observations have entries"):
        script.trained(make("maze/Goals-v0"), script.Config(env="a/b"))


@pytest.mark.parametrize(
    ("gain", "line", "known"),
    [
        (3.0, r"no policy reached 0.5; give more --total-steps, and another --out", True),
        (-1.0, r"the expert's return is -1.5, and a random policy's -0.5; give more --t", False),
    ],
)
def test_without_a_medium_policy_random_and_expert_are_written(
    script, gain, line, known, tmp_path, monkeypatch, capsys
):
    data = rows_of_pendulum()

    def recorded(policy, *_, **__):
        """Episodes of five steps whose returns are -0.5, and those of the expert higher or not."""
        value = -0.1 if policy == "uniform" else -0.1 + gain / 5
        return data._replace(reward=np.full(data.size, value, np.float32))

    moments = [script.Moment((), 200, -9.0)] * 3
    monkeypatch.setattr(script, "record", recorded)
    monkeypatch.setattr(script, "train", lambda *_: (moments, None))
    with pytest.raises(UsageError, match=line):
        run_script(script, ["--quiet", "--out", str(tmp_path)])
    folder = tmp_path / "gymnax" / "Pendulum-v1"
    assert {path.name for path in folder.iterdir()} == {"random.hdf5", "expert.hdf5"}
    assert (reference(folder / "expert.hdf5") is not None) == known
    assert capsys.readouterr().out == ""
