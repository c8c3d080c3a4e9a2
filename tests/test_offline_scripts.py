"""The scripts that learn from datasets: the whole way in small, their presets, and their errors."""

from __future__ import annotations

import dataclasses
import importlib
from fnmatch import fnmatchcase

import numpy as np
import pytest
from shared import rows_of_pendulum, run_script, script_module, trainer_of

from jaxrl import SAC, CalQL, NormalizeObs, ScaleReward, UsageError, cli, load_policy, make
from jaxrl.agents.protocol import discount_factor
from jaxrl.cli.presets import lookup, sac
from jaxrl.data import Mixed, Pooled, UniformReplay, with_goals
from jaxrl.data.dataset import Split
from jaxrl.data.describe import describe
from jaxrl.data.formats import load, metadata, reference
from jaxrl.data.samplers import UniformDataset, WeightedDataset
from jaxrl.data.shipped import FOLDER, shipped, shipped_path
from jaxrl.data.weights import weighted
from jaxrl.record.writers import write_d4rl
from jaxrl.run.configurations import check_configurations
from jaxrl.run.session import Session

ALGORITHMS = ["bc", "td3_bc", "iql", "rebrac", "cql", "edac", "offline_to_online"]
ALGORITHMS += ["fql", "diffusion_ql", "idql", "ifql", "pa_rl", "dsrl", "edit"]
ALGORITHMS += ["diffusion_bc", "flow_bc", "beso"]
QUICK = "--eval-episodes 2 --devices 1 --quiet"


def presets_of(algorithm):
    return importlib.import_module(f"jaxrl.cli.presets.{algorithm}").PRESETS


# --- the whole way, in small --------------------------------------------------------------------


def test_a_policy_of_chunks_is_loaded_with_its_queue(tmp_path):
    """With a moving average, and normalised observations; two of three actions are played."""
    run = tmp_path / "run"
    words = (
        f"--horizon 3 --execute 2 --obs-horizon 2 --policy.hidden-dims 8 {QUICK} --run-dir {run}"
    )
    with script_module("flow_bc") as script:
        run_script(script, f"{words} --total-steps 64 --batch-size 8 --normalize-obs".split())
    policy = load_policy(run)
    obs = load(shipped_path("gymnax/Pendulum-v1/expert")).obs[:4]
    first, carry = policy.step(policy.start(4), obs)
    second, later = policy.step(carry, 2.0 * obs)
    queue = carry.queue[:, 0]
    np.testing.assert_allclose(second, 2.0 * queue, rtol=1e-6)  # Pendulum's torques are twice it
    assert np.abs(second - policy.step(policy.start(4), 2.0 * obs)[0]).max() > 0
    assert first.shape == (4, 1) and (later.left == 0).all()
    with pytest.raises(UsageError, match="BC has a memory; play it with carry = policy.start"):
        policy(obs)


# --- shipped datasets ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_shipped_datasets_are_whole_and_of_their_task(name):
    env, _, quality = name.rpartition("/")
    data = load(shipped_path(name))
    data.check()
    spec = make(env).spec
    data = with_goals(data) if isinstance(spec.observation, dict) else data
    data.check_spec(spec)
    known = reference(shipped_path(name))
    assert known.random < known.expert and known.name == "normalized"
    found = describe(data, references=known)
    at_least = {"expert": 0.9, "medium-expert": 0.5, "medium": 0.25}.get(quality, -0.1)
    assert found["tq"] >= at_least
    assert " /" not in metadata(shipped_path(name))["command"]  # no path of a machine


def test_shipped_datasets_are_small_and_named():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.hdf5")) < 7e6
    assert {"gymnax/Pendulum-v1/medium-replay", "maze/Stitch-v0/stitch"} <= {*shipped()}
    with pytest.raises(UsageError, match="no dataset 'gymnax/Pendulum-v1/best'; did you mean gymn"):
        shipped_path("gymnax/Pendulum-v1/best")


def test_no_walk_of_the_maze_goes_from_start_to_goal():
    data = load(shipped_path("maze/Stitch-v0/stitch"))
    first = (np.asarray(data.obs)[data.first_rows()] + 1) * [4.5, 3.0]
    returns, left = data.returns(), first[:, 0] < 4.5
    assert left.sum() > 200 and (returns[left] == 0).all()
    assert returns[first[:, 0] > 5.5].mean() > 0.9
    cells = {tuple(x) for x in np.floor((np.asarray(data.obs) + 1) * [4.5, 3.0]).astype(int)}
    assert len(cells) == 25  # every free one


# --- presets and options ------------------------------------------------------------------------

TASKS = [
    *(f"{task}-{quality}-v2" for task in ("halfcheetah", "hopper", "walker2d")
      for quality in ("random", "medium", "expert", "medium-expert", "medium-replay",
                      "full-replay")),
    *(f"antmaze-{maze}-v2" for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse",
                                        "large-play", "large-diverse")),
    "maze2d-umaze-v1",
    *(f"{task}-{quality}-v1" for task in ("pen", "door", "hammer", "relocate")
      for quality in ("human", "cloned", "expert")),
    *("kitchen-partial-v0", "gymnax/Pendulum-v1", "maze/Stitch-v0"),
    *(f"mjx/{task}-v4" for task in ("HalfCheetah", "Hopper", "Walker2d")),
    *(f"mjx/{task}-v5/medium-{kind}" for task in ("Hopper", "Reacher")
      for kind in ("replay", "expert")),
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_pattern_matches_a_dataset_and_changes_something(algorithm):
    presets = presets_of(algorithm)
    for index, preset in enumerate(presets):
        matching = [name for name in TASKS if fnmatchcase(name, preset.pattern)]
        without = presets[:index] + presets[index + 1 :]
        assert any(lookup(presets, name) != lookup(without, name) for name in matching), preset


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_name_is_an_option(algorithm):
    from test_presets import unknown

    with script_module(algorithm) as script:
        for preset in presets_of(algorithm):
            assert unknown(preset.settings, script.Config()) == [], preset.pattern


def test_every_name_of_sac_but_the_buffer_s_size_is_an_option_of_make_dataset():
    from test_presets import unknown

    with script_module("make_dataset") as script:
        for preset in sac.PRESETS:
            found = unknown(preset.settings, script.Config())
            assert set(found) <= {"buffer_size"}, preset.pattern


def test_the_dataset_s_name_decides_too(tmp_path):
    found = lookup(presets_of("rebrac"), "mjx/Hopper-v4", "hopper_medium_replay-v2")
    assert (found["agent"]["actor_bc"], found["agent"]["critic_bc"]) == (0.05, 0.5)
    assert found["batch_size"] == 1024 and found["agent"]["critic_learning_rate"] == 1e-3
    assert lookup(presets_of("rebrac"), "mjx/Ant-v4", "mine")["batch_size"] == 256
    assert lookup(presets_of("edac"), "x", "walker2d-medium-expert-v2")["agent"] == {
        "diversity_coef": 5.0
    }


@pytest.mark.parametrize(
    ("algorithm", "dataset", "expected"),
    [
        ("rebrac", "pen-human-v1", {"actor_bc": 0.1, "critic_bc": 0.5}),
        ("rebrac", "hammer_cloned-v1", {"actor_bc": 0.1, "critic_bc": 0.5}),
        ("rebrac", "relocate-expert-v1", {"actor_bc": 0.05, "critic_bc": 0.01}),
        ("edac", "pen-human-v1", {"critic": {"num_critics": 20}, "diversity_coef": 1000.0}),
        ("edac", "pen-cloned-v1", {"critic": {"num_critics": 20}, "diversity_coef": 10.0}),
        ("edac", "door-human-v1", {"critic": {"num_critics": 50}, "diversity_coef": 200.0}),
        ("cql", "antmaze-umaze-v2", {"cql_alpha": 5.0, "max_target_backup": True}),
    ],
)
def test_presets_hold_the_authors_values(algorithm, dataset, expected):
    found = lookup(presets_of(algorithm), "x", dataset)["agent"]
    assert {name: found[name] for name in expected} == expected


def test_shipped_datasets_are_known_by_their_whole_names():
    for words in ("", "--dataset mjx/Hopper-v5/medium-replay"):
        with script_module("rebrac") as script:
            words = f"--env mjx/Hopper-v5 {words}".split()
            config = cli.parse(script.Config, presets_of("rebrac"), words)
        assert config.batch_size == 256 and config.total_steps == 30_000
        assert (config.agent.actor_bc, config.agent.critic_bc) == (0.05, 0.5)


def test_options_cut_split_and_weigh_the_dataset():
    options = {"top": 0.5, "validation": 0.25, "sampling": "advantage", "quiet": True}
    config = cli.OfflineOptions("gymnax/Pendulum-v1", sampling_temperature=0.3, **options)
    path = shipped_path("gymnax/Pendulum-v1/medium-replay")
    (train, held), known = cli.load_dataset(config, make(config.env).spec)
    chosen = load(path).top(0.5).split(0.25)
    expected = weighted(chosen.train, "advantage", 0.3)
    np.testing.assert_array_equal(train.obs, expected.obs)
    np.testing.assert_array_equal(train.cumulative, expected.cumulative)
    np.testing.assert_array_equal(held.obs, chosen.validation.obs)
    assert held.cumulative == () and known == reference(path)


def test_options_become_samplers_wrappers_and_parts_of_the_data():
    small = "--policy.hidden-dims 8 --critic.hidden-dims 8 --quiet --run-dir x"
    trainer = trainer_of("td3_bc", f"{small} --sampling advantage --n-step 3 --reward-shift -1")
    assert trainer.sampler == WeightedDataset(3)
    assert isinstance(trainer.agent, NormalizeObs) and trainer.agent.frozen
    assert trainer.agent.agent.reward_shift == -1
    trainer = trainer_of("iql", f"{small} --value.hidden-dims 8")
    assert trainer.sampler == UniformDataset() and isinstance(trainer.agent, ScaleReward)
    returns = load(shipped_path("gymnax/Pendulum-v1/medium-replay")).returns()
    assert trainer.agent.reward_scale == pytest.approx(1000 / np.ptp(returns))
    trainer = trainer_of("rebrac", f"{small} --normalize-obs --reward-clip 2")
    assert trainer.agent.agent.reward_clip == 2


def test_returns_to_go_are_of_the_rewards_and_the_discount_that_the_agent_learns_from():
    """The rewards themselves stay as they are, since they are transformed when they are drawn."""
    data = rows_of_pendulum()
    data = data._replace(extras={"colour": np.arange(data.size)})
    agent = NormalizeObs(ScaleReward(CalQL(gamma=0.9), 2.0, -0.5, 1.5), frozen=True)
    learnt, following = np.clip(2.0 * data.reward - 0.5, -1.5, 1.5), 0.0
    expected = np.zeros(data.size)
    for row in reversed(range(data.size)):
        following = learnt[row] + 0.9 * (0.0 if row + 1 == data.end[row] else following)
        expected[row] = following
    for found in (cli.with_extras(data, agent), *cli.with_extras(Split(data, data), agent)):
        assert set(found.extras) == {"return_to_go"}
        np.testing.assert_allclose(found.extras["return_to_go"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.reward, data.reward)
    assert cli.with_extras(data, SAC()).extras == {}


REPLAY = UniformReplay(3)
ONLINE = {
    "offline_to_online --method iql": Pooled(REPLAY, WeightedDataset(3)),
    "offline_to_online --method cal_ql": Mixed(0.5, REPLAY, WeightedDataset(3)),
    "offline_to_online --method rlpd": Mixed(0.5, REPLAY, WeightedDataset(3)),
    "offline_to_online --method wsrl": UniformReplay(3, ("return_to_go",)),
    "pa_rl --online-steps 9": Mixed(0.5, REPLAY, WeightedDataset(3)),
    "dsrl --online-steps 9 --policy-from x": Mixed(0.5, REPLAY, WeightedDataset(3)),
    "edit --online-steps 9": Mixed(0.5, REPLAY, WeightedDataset(3)),
}


@pytest.mark.parametrize("script", ONLINE)
def test_n_step_and_sampling_hold_offline_and_online(script):
    name, _, words = script.partition(" ")
    words += " --n-step 3 --sampling return --quiet --run-dir x"
    *offline, online = [phase.trainer for phase in trainer_of(name, words)]
    assert online.sampling == ONLINE[script]
    assert [each.sampling for each in offline] == [WeightedDataset(3)] * ("rlpd" not in script)
    online.check()


def test_num_actions_reaches_the_conservative_term_of_both_phases():
    words = "--num-actions 4 --quiet --run-dir x --method"
    calibrated = trainer_of("offline_to_online", f"{words} cal_ql")
    assert [phase.trainer.agent.num_actions for phase in calibrated] == [4, 4]
    warm = trainer_of("offline_to_online", f"{words} wsrl")
    assert [phase.trainer.agent.num_actions for phase in warm] == [4, 1]


@pytest.mark.parametrize("method", ["iql", "cal_ql", "rlpd", "wsrl"])
def test_gamma_reaches_the_agents_of_both_phases_as_the_advice_for_sweeps_says(method):
    words = f"--method {method} --gamma 0.9 --quiet --run-dir x"
    phases = trainer_of("offline_to_online", words)
    assert [discount_factor(phase.trainer.agent) for phase in phases] == [0.9] * len(phases)
    if method == "cal_ql":
        with pytest.raises(UsageError, match=r"give sweep.py --static gamma=0.95,\.\.\."):
            check_configurations(phases[0].trainer, [{"gamma": 0.95}])


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("offline_to_online --method rlpd --total-steps 500", "total_steps is 500, and rlpd has"),
        ("offline_to_online --method rlpd --num_updates=64", "num_updates is 64, and rlpd has"),
        ("offline_to_online --method rlpd --validation 0.5", "validation is 0.5, and rlpd has"),
        ("offline_to_online --method iql --num-actions 4", "num_actions is 4, and iql does not"),
        ("offline_to_online --method cal_ql --validation 0.5", "CalQL has no validation loss;"),
        ("pa_rl --validation 0.5", "PARL has no validation loss; give it the whole dataset"),
        ("dsrl --learning-starts 9", "learning_starts is 9, and online_steps is 0; leave it out"),
        ("edit --buffer-size 99", "buffer_size is 99, and online_steps is 0; leave it out"),
        ("dsrl", "policy_from is None, and DSRL steers a trained policy; give the run folder"),
        ("edit --frozen", "policy_from is None, and a frozen policy is not trained here; give"),
        (
            "idql --total-steps 40000",
            "total_steps is 40000, and the policy stops learning after lr_decay_steps 30000; give "
            "--agent.lr-decay-steps 40000",
        ),
        ("iql --validation 0.1", "IQL has no validation loss; give it the whole dataset, without"),
    ],
)
def test_options_that_a_method_cannot_use_are_refused_before_anything_is_written(
    script, line, tmp_path, monkeypatch
):
    monkeypatch.setattr(Session, "train", lambda *_: pytest.fail("training began"))
    name, _, words = script.partition(" ")
    words += f" {QUICK} --run-dir {tmp_path / 'run'}"
    with script_module(name) as script, pytest.raises(UsageError, match=line) as error:
        run_script(script, words.split())
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--env gymnax/MountainCar-v0", "no dataset of gymnax/MountainCar-v0 comes with the libr"),
        ("--dataset nothing.hdf5", "nothing.hdf5 cannot be read: No such file or directory"),
        (
            "--env mjx/Hopper-v5 --dataset gymnax/Pendulum-v1/expert",
            "which is of gymnax/Pendulum-v1, and env is mjx/Hopper-v5; give --env gymnax/Pendulum",
        ),
        (  # whose shapes fit
            "--env maze/Stitch-v0 --dataset maze/Goals-v0/goals",
            "dataset is maze/Goals-v0/goals, which is of maze/Goals-v0, and env is maze/Stitch-v0",
        ),
        ("--sampling best", "best"),
        ("--top 0", "top is 0; it must be more than 0"),
    ],
)
def test_wrong_input_is_one_line(words, line):
    with script_module("td3_bc") as script, pytest.raises(UsageError, match=line) as error:
        run_script(script, f"{words} --quiet --run-dir x".split())
    assert "\n" not in str(error.value)


OPTIONS = {"engine": "warp", "g": [1, 2]}


@pytest.mark.parametrize(
    ("metadata", "env", "note"),
    [
        ({"env": "mjx/Hopper-v5"}, "mjx/Hopper-v5", ""),
        ({"env": "mjx/Hopper-v4"}, "mjx/Hopper-v5", "is of mjx/Hopper-v4, another version of mjx"),
        ({"env": "mine/Hopper"}, "mjx/Hopper-v5", ""),
        ({"env": ["x"]}, "mjx/Hopper-v5", ""),
        ({"seed": 3}, "mjx/Hopper-v5", ""),
        ({"env": "mjx/Walker2d-v5"}, "mjx/HalfCheetah-v5", None),
        ({"env": "brax/hopper"}, "mjx/Hopper-v5", None),
        ({"env": "mjx/Hopper-v5", "env_options": OPTIONS}, "mjx/Hopper-v5 g=(1,2)", ""),
        (
            {"env": "mjx/Hopper-v5", "env_options": OPTIONS},
            "mjx/Hopper-v5 g=(1,3)",
            "env_options {'engine': 'warp', 'g': [1, 2]}, and those of this run are {'g': (1, 3)}",
        ),
    ],
)
def test_a_dataset_of_another_task_is_refused_and_another_version_noted(
    metadata, env, note, tmp_path, capsys
):
    """All have the shapes of Pendulum; only the names in their metadata differ."""
    spec = make("gymnax/Pendulum-v1").spec
    path = write_d4rl(rows_of_pendulum(), tmp_path / "data.hdf5", spec, metadata)
    name, *words = env.split()
    config = cli.OfflineOptions(env=name, env_options=tuple(words), dataset=str(path))
    if note is None:
        with pytest.raises(UsageError, match=f"which is of {metadata['env']}, and env is {name}"):
            cli.load_dataset(config, spec)
        return
    cli.load_dataset(config, spec)
    printed = capsys.readouterr().out
    assert note in printed and ("note: " in printed) == bool(note)
    cli.load_dataset(dataclasses.replace(config, quiet=True), spec)
    assert not capsys.readouterr().out
