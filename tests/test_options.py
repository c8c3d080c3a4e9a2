"""The off-policy scripts' options: every family's defaults fit each other, and runs can go on."""

from __future__ import annotations

import fnmatch
import json

import pytest
from shared import run_script, script_module, trainer_of

from jaxrl import UsageError, cli, hyper
from jaxrl.cli.presets import dqn, dsac_t, lookup, ppo, pqn, sac, td3
from jaxrl.cli.presets.off_policy import SLOW
from jaxrl.envs import names

MODULES = (sac, td3, dsac_t, dqn, ppo, pqn)
PRESETS = {each.__name__.rpartition(".")[2]: each.PRESETS for each in MODULES}
PATTERNS = [
    (script, preset.pattern)
    for script, presets in PRESETS.items()
    for preset in presets
    if preset not in SLOW  # they differ in their length only
]
CART_POLE = "--env gymnax/CartPole-v1"
DECAYING = ("epsilon", "lr")
TINY = """--env probe/both --env-options continuous=True --num-envs 2 --buffer-size 200
    --learning-starts 20 --cycles 4 --batch-size 4 --agent.policy.hidden-dims 4 --eval-episodes 2
    --agent.critic.hidden-dims 4 --eval-every 40 --quiet --devices 1"""


def steps_of(script, words):
    """The length of the run that a script's words ask for."""
    with script_module(script) as module:
        return cli.parse(module.Config, PRESETS[script], words.split()).total_steps


@pytest.mark.parametrize(("script", "pattern"), PATTERNS)
def test_the_defaults_of_every_family_fit_each_other(script, pattern):
    known = [name for name in names() if fnmatch.fnmatchcase(name, pattern)]
    assert known
    if pattern.startswith("playground"):
        pytest.importorskip("mujoco_playground")
    env = "" if pattern == "*" else f"--env {known[0]}"
    trainer = trainer_of(script, env)
    trainer.check()
    assert trainer.iterations(steps_of(script, env)) > 0


def test_redqs_command_line_is_twenty_gradient_steps_and_one_of_the_actor_per_step():
    words = "--num-critics 10 --num-min-critics 2 --actor-q mean --num-updates 20"
    trainer = trainer_of("sac", f"{words} --policy-delay 20")
    trainer.check()
    assert trainer.agent.critic.num_critics == 10 and trainer.agent.num_min_critics == 2
    assert (trainer.schedule.merged, trainer.schedule.block, trainer.env.num_envs) == (1, 1, 1)
    assert trainer.gradient_steps_per_iteration == 20 * trainer.steps_per_iteration


def test_some_tasks_of_playground_take_twice_as_long():
    for slow in SLOW:
        known = [name for name in names() if fnmatch.fnmatchcase(name, slow.pattern)]
        assert known, slow.pattern
        for presets in (sac.PRESETS, td3.PRESETS, dsac_t.PRESETS):
            family = lookup(presets, "playground/CartpoleBalance")
            for name in known:
                longer = {"total_steps": 2 * family["total_steps"]}
                assert lookup(presets, name) == family | longer


@pytest.mark.parametrize("script", ["sac", "td3", "dsac_t"])
def test_nothing_but_its_length_depends_on_the_length_of_a_run(script):
    short, long = (trainer_of(script, f"--total-steps {n}") for n in (20_000, 3_000_000))
    assert short.config() == long.config()


@pytest.mark.parametrize("script", ["dqn", "pqn"])
def test_what_falls_over_a_run_falls_as_before_in_a_longer_one_if_told_so(script):
    """The numbers to give are those that a refused resumption names."""
    short = trainer_of(script, f"{CART_POLE} --total-steps 200000")
    known = hyper.numbers(short.agent)
    long = trainer_of(script, f"{CART_POLE} --total-steps 400000")
    assert short.config() != long.config()
    told = [f"--agent.{kind}-decay-steps={known[f'{kind}_decay_steps']}" for kind in DECAYING]
    long = trainer_of(script, f"{CART_POLE} --total-steps 400000 {' '.join(told)}")
    assert short.config() == long.config()


def test_a_short_run_goes_on_past_its_end(tmp_path, shared_programs):
    folder = tmp_path / "run"
    with script_module("sac") as module:
        for more in ("--total-steps 60", "--total-steps 140 --resume"):
            run_script(module, f"{TINY} --run-dir {folder} {more}".split())
    assert json.loads((folder / "summary.json").read_text())["total_steps"] == 140
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    steps = [row["step"] for row in rows if row["kind"] == "eval"]
    assert steps[0] == 20 and steps[-1] == 140 and steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--total-steps 5000", "total_steps is 5000, and 10000 are made before learning starts"),
        ("--policy-delay 0", "policy_delay is 0; it must be at least 1"),
        ("--buffer-size 5000", "buffer_size is 5000, less than the 10000 transitions before"),
        ("--num-steps 0", "num_steps is 0; it must be at least 1"),
        ("--reward-scale 0", "reward_scale is 0; it must be more than 0"),
        ("--num-min-critics 3", "num_min_critics is 3, and there are 2 critics; it must be at m"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_their_names(args, words, tmp_path):
    with script_module("sac") as module, pytest.raises(UsageError, match=words) as error:
        run_script(module, f"{args} --run-dir {tmp_path / 'run'} --quiet".split())
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
