"""The off-policy scripts' options: every family's defaults fit each other, and runs can go on."""

from __future__ import annotations

import fnmatch

import pytest
from shared import script_module

from jaxrl import UsageError, cli, hyper
from jaxrl.cli.presets import dqn, dsac_t, lookup, pqn, sac, td3
from jaxrl.cli.presets.off_policy import SLOW
from jaxrl.envs import names

PRESETS = {each.__name__.rpartition(".")[2]: each.PRESETS for each in (sac, td3, dsac_t, dqn, pqn)}
PATTERNS = [
    (script, preset.pattern)
    for script, presets in PRESETS.items()
    for preset in presets
    if preset not in SLOW  # they differ in their length only
]
CART_POLE = ("--env", "gymnax/CartPole-v1")
TINY = """--env probe/both --env-options continuous=True --num-envs 2 --capacity 200 --prefill 20
    --rounds 4 --batch-size 4 --agent.hidden 4 --eval-episodes 2 --eval-every 40 --quiet
    --devices 1"""


def parsed(script, module, *args):
    """The options of a script, with the presets of the same name."""
    return cli.parse(module.Config, PRESETS[script], type(module.Config().agent), args)


def built(script, *args):
    with script_module(script) as module:
        config = parsed(script, module, *args)
        return config, module.build(config)


@pytest.mark.parametrize(("script", "pattern"), PATTERNS)
def test_the_defaults_of_every_family_fit_each_other(script, pattern):
    known = [name for name in names() if fnmatch.fnmatchcase(name, pattern)]
    assert known
    if pattern.startswith("playground"):
        pytest.importorskip("mujoco_playground")
    env = () if pattern == "*" else ("--env", known[0])
    config, trainer = built(script, *env)
    trainer.check()
    assert trainer.iterations(config.total_steps) > 0


def test_redqs_command_line_is_twenty_gradient_steps_and_one_of_the_actor_per_step():
    words = "--agent.ensemble 10 --agent.subset 2 --agent.policy-value mean"
    _, trainer = built("sac", *words.split(), "--updates", "20", "--agent.delay", "20")
    trainer.check()
    assert (trainer.group, trainer.block, trainer.env.num_envs) == (1, 1, 1)
    assert trainer.updates_per_iteration == 20 * trainer.steps_per_iteration


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
    (_, short), (_, long) = (built(script, "--total-steps", n) for n in ("20000", "3000000"))
    assert short.config() == long.config()


@pytest.mark.parametrize("script", ["dqn", "pqn"])
def test_what_falls_over_a_run_falls_as_before_in_a_longer_one_if_told_so(script):
    """The numbers to give are those that a refused resumption names."""
    _, short = built(script, *CART_POLE, "--total-steps", "200000")
    known = hyper.numbers(short.agent)
    _, long = built(script, *CART_POLE, "--total-steps", "400000")
    assert short.config() != long.config()
    told = [f"--agent.{name}-over={known[f'{name}_over']}" for name in ("epsilon", "anneal")]
    _, long = built(script, *CART_POLE, "--total-steps", "400000", *told)
    assert short.config() == long.config()


def test_a_short_run_goes_on_past_its_end(tmp_path):
    with script_module("sac") as module:
        for total, more in (("60", ()), ("140", ("--resume",))):
            folder = ("--run-dir", str(tmp_path / "run"))
            config = parsed("sac", module, *TINY.split(), "--total-steps", total, *folder, *more)
            result = cli.train(module.build(config), config)
    assert result.summary["total_steps"] == 140
    steps = [row["step"] for row in result.rows if row["kind"] == "eval"]
    assert steps[0] == 20 and steps[-1] == 140 and steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--total-steps 5000", "total_steps is 5000, and the prefill alone makes 10000; give more"),
        ("--agent.delay 0", "delay is 0; it must be at least 1"),
        ("--capacity 5000", "capacity is 5000, less than the prefill of 10000"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_their_names(args, words, tmp_path):
    config, trainer = built("sac", *args.split(), "--run-dir", str(tmp_path / "run"), "--quiet")
    with pytest.raises(UsageError, match=words) as error:
        cli.train(trainer, config)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
