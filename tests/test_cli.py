"""The command line: wrong input ends in one clear line, before anything is compiled or written."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import EXPERIMENTS, run_script, script_module, trainer_of

from jaxrl import PPO, NormalizeObs, OnPolicy, ScaleReward, UsageError, cli, hyper, make
from jaxrl.cli.presets import lookup, ppo
from jaxrl.cli.presets.preset import merge
from jaxrl.nn.encoders import CNN
from jaxrl.nn.policies import TanhGaussian
from jaxrl.optim import AdamW
from jaxrl.run import session

SCRIPT = EXPERIMENTS / "ppo.py"
CART_POLE = "--env gymnax/CartPole-v1"
SMALL = f"{CART_POLE} --num-envs 2 --num-steps 8 --num-minibatches 2 --update-epochs 1"
SMALL += (
    " --agent.policy.hidden-dims 4 --gamma 0.9 --total-steps 32 --eval-every 16 --eval-episodes 1"
)
SMALL += " --devices 1 --quiet"


@pytest.fixture(scope="module")
def script():
    """``experiments/ppo.py`` as a module; the suites are imported, which may compile, but once."""
    for name in ("gymnax/CartPole-v1", "gymnax/Acrobot-v1", "brax/ant"):
        make(name)
    with script_module("ppo") as module:
        yield module


@pytest.fixture
def call(script, monkeypatch, capsys, tmp_path):
    """The script in this process: its exit code, and what it printed; relative to an own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "prepare", lambda *_: None)

    def call(options):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options.split()])
        with pytest.raises(SystemExit) as exit:
            cli.launch(script.main)
        return exit.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """The folder of a small run of the script, and the options that made it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = f"{SMALL} --run-dir {folder}"
    run_script(script, options.split())
    return folder, options


def contents(folder):
    """Every file below with its bytes and time of change."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), path.read_bytes(), path.stat().st_mtime_ns) for path in files]


@pytest.fixture
def refused(call, finished, monkeypatch, tmp_path):
    """``call`` of wrong input: its one line; nothing may be compiled, begun or written."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(session.Session, "start", lambda self: pytest.fail("training began"))

    def refused(options, *parts):
        compiled, before = [], (contents(tmp_path), contents(finished[0]))
        listener = lambda event, *_, **__: compiled.append(event)  # noqa: E731
        jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            code, out, err = call(options)
        finally:
            jax.monitoring.unregister_event_duration_listener(listener)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert err.startswith("ppo.py: ")
        for part in parts:
            assert part in err
        assert not [event for event in compiled if "backend_compile" in event]
        assert (contents(tmp_path), contents(finished[0])) == before
        assert not (tmp_path / "runs").exists() and not (tmp_path / "new").exists()
        return err

    return refused


CONTINUOUS = "--env probe/action --env-options continuous=True"
HIDDEN = ("--agent.policy.hidden-dims", "--agent.critic.hidden-dims")
DEFAULT = lookup(ppo.PRESETS, cli.Options.env)
WRONG = {  # options: what the line must say
    "--env brax/antt": ["'brax/antt'", "did you mean brax/ant"],
    "--env brx/ant": ["'brx/ant'", "did you mean brax/ant?"],
    "--env=nothing/like-it": ["'nothing/like-it'", "choose one of", "brax/ant", "probe/"],
    "--env brax/ant --env-options backend=warp": ["backend is 'warp'", "mjx, positional, spring"],
    "--env brax/ant --env-options bakend=mjx": ["no option 'bakend'", "did you mean backend?"],
    "--env brax/ant --env-options n_frames=2.5": ["n_frames is 2.5", "integer of at least 1"],
    "--env brax/ant --env-options terminate_when_unhealthy=7": ["_unhealthy is 7", "like True"],
    "--env brax/ant --env-options healthy_z_range=3": ["healthy_z_range is 3", "like (0.2, 1.0)"],
    "--env brax/ant --env-options reset_noise_scale=abc": ["scale is 'abc'", "like 0.1"],
    f"{CART_POLE} --env-options gravty=9": ["no option 'gravty'", "did you mean gravity"],
    f"{CART_POLE} --env-options masspole=heavy": ["masspole is 'heavy'", "a finite float"],
    f"{CART_POLE} --env-options max_steps=abc": ["max_steps is 'abc'", "integer of at least 1"],
    f"{CART_POLE} --env-options gravity={{[]:1}}": ["gravity is '{[]:1}'", "a finite float"],
    f"{CART_POLE} --env-options name=x": ["no option 'name'", "choose one of"],
    "--env brax/ant --env-options task=x": ["no option 'task'", "choose one of", "backend"],
    "--env probe/action --env-options task=x": ["no option 'task'", "continuous"],
    "--env gymnax/Catch-bsuite --env-options rows=0": ["'rows': 0", "refused by gymnax"],
    f"{CART_POLE} --env-options gravity": ["env-options 'gravity'", "NAME=VALUE"],
    f"{CART_POLE} --env-options gravity=1 gravity=2": ["env-options gravity", "twice"],
    "--totl-steps 5": ["unknown option --totl-steps", "--total-steps"],
    "--agent.learning-rat 0.1": ["--agent.learning-rat;", "did you mean --agent.learning-rate"],
    "--learning-rat=0.1": ["--learning-rat=0.1;", "did you mean --agent.learning-rate"],
    "--agent.clip 0.1": ["unknown option --agent.clip;", "did you mean --agent.clip-eps"],
    "--agent.epochs 2": ["unknown option --agent.epochs;", "did you mean --agent.update-epochs"],
    "--agent.hidden 8": ["--agent.hidden;", "--agent.policy.hidden-dims, --agent.critic.hidden"],
    "--hidden-dims 8": ["--hidden-dims is ambiguous; choose one of", *HIDDEN],
    "--agent.hidden_dims 8": ["--agent.hidden_dims is ambiguous; choose one of", *HIDDEN],
    "--no-layer-norm": ["--no-layer-norm is ambiguous", "--agent.critic.no-layer-norm"],
    f"{CONTINUOUS} --initial-std 0": ["initial_std is 0;", "more than 0"],
    "--unroll 8": ["unknown option --unroll; see --help"],
    "--quiet please": ["'please'", "--help"],
    "--total-steps abc": ["--total-steps", "'abc'", f"the default is {DEFAULT['total_steps']}"],
    "--total-steps": ["'--total-steps'", "Expected 1 value"],
    "--run-dir -a": ["'--run-dir'", "Expected 1 value", "if it is '-a', write --run-dir=-a"],
    "--agent.gamma high": ["--agent.gamma", "'high'", f"default is {DEFAULT['agent']['gamma']}"],
    "--agent.policy.activation tanhh": ["'tanhh'", "--agent.policy.act", "'tanh', 'relu'"],
    "--std dependent": ["'dependent'", "--agent.policy.std", "'softplus'"],
    "--agent.policy.hidden-dims wide": ["--agent.policy.hidden-dims", "'wide'"],
    "--reset-mode sometimes": ["'sometimes'", "--reset-mode", "'pool'"],
}
ON_CART_POLE = {
    "--num-envs 8 --num-steps 64 --num-minibatches 7": ["minibatches is 7", "512 tr", "8 would"],
    "--num-envs 8 --num-steps 1 --num-minibatches 4 --devices 4": ["tches is 4", "1 would"],
    "--num-envs 6 --devices 4": ["num_envs is 6", "over 4 devices", "8 would"],
    "--num-envs 8 --num-seeds 2 --devices 3": ["num_envs is 8", "over 3 devices", "9 would"],
    "--devices 9": ["devices is 9", "1 to 4"],
    "--devices 0": ["devices is 0", "1 to 4"],
    "--devices -1": ["devices is -1", "1 to 4"],
    "--seed -1": ["seed is -1", "at least 0 and at most 2147483647"],
    "--seed 2147483647 --num-seeds 2": ["seed is 2147483648", "at most 2147483647"],
    "--agent.critic.hidden-dims 8 0": ["critic.hidden_dims is 0", "at least 1"],
    "--max-steps 2147483648": ["max_steps is 2147483648", "at most 2147483647"],
    "--env-options max_steps=2147483648": ["max_steps is 2147483648", "at most 2147483647"],
    "--entropy-coef inf": ["entropy_coef is inf", "at least 0 and finite"],
    "--sweep learning_rate=1e400": ["learning_rate is inf", "more than 0 and finite"],
    "--reward-scale -2": ["reward_scale is -2", "more than 0"],
    "--sweep target_kl=0.01,0.02": ["target_kl is None", "first, as --agent.target-kl"],
    "--sweep reward_scale=0.1,2": ["reward_scale is not in use", "ScaleReward, or give a --rew"],
    "--sweep obs_clip=5,10": ["obs_clip is not in use", "NormalizeObs, or give --normalize-obs,"],
    "--num-envs 1000000000": ["num_envs is 1000000000, whose rollouts of 64", "would fit"],
    "--num-seeds 65537": ["num_seeds is 65537; a run has at most 65536", "give at most 65536"],
    f"--num-seeds {10**30}": [f"num_seeds is {10**30}", "at most 65536"],
    "--num-seeds 40000 --sweep gamma=0.9,0.99": ["each of 2 configurations", "at most 32768"],
    "--num-seeds 65536 --agent.policy.hidden-dims 4096 4096": ["networks and opt", "of them fit"],
    "--agent.policy.hidden-dims 9000000 9000000": ["of 1 members need", "free; smaller networks"],
    f"--update-epochs {10**9}": [
        "gradient steps",
        "so lower update_epochs (1000000000), num_m",
    ],
    f"--eval-episodes {10**12}": [f"eval_episodes is {10**12}", "GiB are free", "would fit"],
    f"--total-steps {10**20}": [f"total_steps is {10**20}", "can count at most 1099511627264"],
    "--max-nonfinite 2": ["max_nonfinite is 2", "at least 0 and at most 1"],
    "--sweep gama=0.9": ["unknown hyper-parameter 'gama'", "did you mean gamma?"],
    "--sweep update_epochs=2,4": [
        "update_epochs is static",
        "sweep one of",
        "gamma",
        "learning_rate",
    ],
    "--sweep gamma": ["sweep 'gamma'", "NAME=VALUE, as gamma=0.9,0.99"],
    "--sweep gamma=0.9,high": ["gamma=0.9,high", "list of numbers, as gamma=0.9,0.99"],
    "--sweep gamma=()": ["gamma=()", "list of numbers, as gamma=0.9,0.99"],
    "--sweep gamma=0.9 gamma=0.99": ["sweep gamma", "twice", "as gamma=0.9,0.99"],
    "--sweep gamma=0.9,1.5": ["gamma is 1.5", "at most 1"],
    "--log tensorbord": ["'tensorbord'", "did you mean tensorboard?"],
    "--resume": ["resume needs", "--run-dir"],
    "--resume --run-dir new": ["/new holds nothing to resume", "without --resume"],
}
COUNTS = "total-steps num-envs num-steps num-seeds eval-every eval-episodes log-every"
COUNTS += " checkpoint-every max-skipped max-steps agent.update-epochs agent.num-minibatches"
POSITIVE = "agent.learning-rate agent.clip-eps agent.optimizer.max-grad-norm"
POSITIVE += " agent.target-kl"
RANGES = {
    COUNTS: ((0, -3), "at least 1"),
    "agent.gamma agent.gae-lambda": ((-0.1, 1.5, "nan"), "at least 0 and at most 1"),
    POSITIVE: ((0, -1), "more than 0"),
    "agent.entropy-coef agent.value-coef agent.lr-decay-steps": ((-1,), "at least 0"),
}
for options, (values, needed) in RANGES.items():
    for option, value in itertools.product(options.split(), values):
        parts = [f"{option.removeprefix('agent.')} is {value};", needed]
        ON_CART_POLE[f"--{option} {value}"] = parts
WRONG |= {f"{CART_POLE} {options}": parts for options, parts in ON_CART_POLE.items()}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_input_is_one_line_and_nothing_else(refused, options):
    line = refused(options).replace("_", "-")
    for part in WRONG[options]:
        assert part.replace("_", "-") in line


def test_every_count_is_in_the_table(script):
    """A new option that counts something must be refused zero too."""
    counts = {f.name for f in dataclasses.fields(script.Config) if "int" in str(f.type)}
    tested = {word.replace("-", "_") for word in COUNTS.split()}
    assert counts - tested == {"seed", "devices"}  # with ranges of their own


@pytest.mark.parametrize("name, package", [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
@pytest.mark.parametrize("where", ["new", "finished"])
def test_a_missing_package_is_told_before_the_folder_is_touched(
    refused, monkeypatch, finished, name, package, where
):
    monkeypatch.setitem(sys.modules, package, None)
    options = f"{SMALL} --run-dir new" if where == "new" else f"{finished[1]} --resume"
    refused(f"{options} --log {name}", f"'{name}'", package, "pip install 'jaxrl[log]'")


def test_a_taken_folder_is_left_as_it_is(refused, finished, tmp_path):
    folder, options = finished
    refused(options, f"{folder} already holds a run", "--resume", "another --run-dir")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for name in ("file", "full"):
        refused(f"{SMALL} --run-dir {name}", f"/{name} is not an empty folder", "another --run-dir")
        refused(f"{SMALL} --run-dir {name} --resume", f"/{name} holds nothing to resume")
    refused(f"{SMALL} --run-dir file/run", "/file/run cannot be used (Not a directory)")


def test_a_resumed_run_has_the_options_it_had(refused, finished):
    folder, options = finished
    line = refused(
        f"{options} --resume --agent.gamma 0.5 --num-envs 4",
        f"{folder} holds a run with another configuration",
        "agent.gamma (0.9, now 0.5)",
        "num_envs (2, now 4)",
    )
    assert "learning_rate" not in line and "num_steps" not in line
    refused(f"{options} --resume --seed 7", "has seeds 0, and those asked for lack 0")
    line = refused(
        f"--run-dir {folder} --resume --env brax/ant --num-steps 16 --num-minibatches 4 --gamma 1 "
        "--update-epochs 2 --policy.hidden-dims 8 --num-envs 4 --entropy-coef 0.1",
        "another configuration: env (gymnax/CartPole-v1, now brax/ant);",
        "it was started as: ",
    )
    assert len(line) < 1000
    refused(f"{options} --resume --env gymnax/Acrobot-v1", "env (gymnax/CartPole-v1, now gymnax/A")


def test_a_folder_is_enough_to_resume(script, monkeypatch, tmp_path):
    """The options are those of the recorded command; new ones override, some are not kept."""

    def parsed(*words):
        return cli.parse(script.Config, ppo.PRESETS, [*words, "--run-dir", str(tmp_path)])

    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    started = [*SMALL.split(), "--sweep", "learning_rate=1e-3,1e-2", "gae_lambda=0.9"]
    started += ["--no-anneal", "--env-options", "max_steps=50", "--render"]
    command = shlex.join(["ppo.py", *started, "--run-dir", "elsewhere", "--distributed"])
    (tmp_path / "config.json").write_text(json.dumps({"command": command}))
    whole, found = parsed(*started), parsed("--resume")
    assert found == dataclasses.replace(whole, resume=True, devices=None, render=False, quiet=False)
    more = parsed("--resume", "--anneal", "--total-steps=64", "--sweep", "gamma=0.5")
    assert more == dataclasses.replace(found, anneal=True, total_steps=64, sweep=("gamma=0.5",))

    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--resume", f"--run-dir={tmp_path}"])
    assert cli.parse(script.Config, ppo.PRESETS) == found
    assert cli.parse(script.Config, ppo.PRESETS, ["--resume", f"--run_dir={tmp_path}"]) == found
    assert sys.argv[-2:] == ["--resume", f"--run-dir={tmp_path}"]
    again = shlex.join(["ppo.py", *sys.argv[1:]])  # what is recorded now
    (tmp_path / "config.json").write_text(json.dumps({"command": again}))
    assert parsed("--resume") == found

    for command in ("dqn.py --seed 7", "", "ppo.py 'quoted", None):
        (tmp_path / "config.json").write_text(json.dumps({"command": command}))
        assert parsed("--resume") == dataclasses.replace(parsed(), resume=True)


def test_a_run_that_cannot_be_shortened_is_left_as_it_is(call, finished):
    folder, options = finished
    before = [(path, content) for path, content, _ in contents(folder)]
    code, _, err = call(f"{options} --resume --total-steps 16 --lr-decay-steps 2")
    assert code == 2 and "total-steps is 16" in err and "is at step 32 already" in err
    assert [(path, content) for path, content, _ in contents(folder)] == before


# --- what is right

FAMILIES = ("brax/reacher", "gymnax/CartPole-v1", "gymnax/Breakout-MinAtar")


@pytest.mark.parametrize("env", FAMILIES)
def test_defaults_are_those_of_the_family_and_the_command_line_wins(script, env):
    def parsed(*words):
        return dataclasses.asdict(cli.parse(script.Config, ppo.PRESETS, words))

    settings = lookup(ppo.PRESETS, env)
    bare = dataclasses.asdict(script.Config(env=env))
    wanted = merge(bare, settings)
    assert parsed("--env", env) == parsed("--env", "brax/ant", f"--env={env}") == wanted

    given = f"--num-envs 77 --agent.learning-rate 0.125 --entropy-coef=0.5 --no-anneal --env {env}"
    given += " --agent.critic.hidden_dims 8 4 --max-grad-norm None --policy.layer-norm"
    agent = {"learning_rate": 0.125, "entropy_coef": 0.5}
    agent |= {"critic": {"hidden_dims": (8, 4)}, "policy": {"layer_norm": True}}
    agent |= {"optimizer": {"max_grad_norm": None}}
    changed = {"num_envs": 77, "anneal": False, "agent": agent}
    assert parsed(*given.split()) == merge(wanted, changed)


@pytest.mark.parametrize("words", [["--run-dir", "None"], ["--run-dir=None"]])
def test_a_folder_may_have_the_name_of_no_folder(script, words):
    assert cli.parse(script.Config, ppo.PRESETS, words).run_dir == "./None"


def test_families_differ():
    """Else the comparison with the table shows nothing."""
    settings = [lookup(ppo.PRESETS, env) for env in FAMILIES]
    assert len({(s["num_envs"], s["num_steps"], s["total_steps"]) for s in settings}) == 3


@dataclasses.dataclass(frozen=True)
class Convolutional(cli.OnPolicyOptions):
    """A script whose agent has other parts, and numbers that are arrays."""

    agent: PPO = PPO(
        gamma=np.float64(0.5),
        learning_rate=jnp.float32(0.25),
        policy=TanhGaussian(encoder=CNN(filters=(4, 8), kernels=(3, 3), strides=(1, 1))),
        optimizer=AdamW(weight_decay=0.5, rectified=np.bool_(True)),
    )


def test_options_are_those_of_the_parts_that_there_are():
    parsed = cli.parse(Convolutional, [], ["--filters", "2", "2", "--weight-decay=0.125"])
    agent = parsed.agent
    assert type(agent.policy) is TanhGaussian and type(agent.optimizer) is AdamW
    assert (agent.policy.encoder.filters, agent.policy.encoder.kernels) == ((2, 2), (3, 3))
    assert agent.optimizer == AdamW(weight_decay=0.125, rectified=True)
    assert (agent.gamma, agent.learning_rate) == (0.5, 0.25)
    with pytest.raises(UsageError, match="unknown option --squash; did you mean --agent.policy.sq"):
        cli.parse(Convolutional, [], ["--squash"])  # of the policy that is no longer there


def test_numbers_that_may_be_none_can_be_set_to_it():
    trainer = trainer_of("dqn", "--huber None --max-grad-norm 3")
    agent = trainer.agent.agent  # in a ScaleReward
    assert agent.huber is None and agent.optimizer.max_grad_norm == 3.0


def test_annealing_lasts_the_run_unless_told_otherwise():
    words = f"{SMALL} --total-steps 100 --anneal"
    for more, updates in [("", 7.0), (" --agent.lr-decay-steps 5", 5.0), (" --no-anneal", 0.0)]:
        assert trainer_of("ppo", words + more).agent.lr_decay_steps == updates


def test_wrappers_are_there_if_asked_for():
    for more, kinds in {
        "--reward-scale 1 --no-normalize-obs": [PPO],
        "--reward-scale 2 --no-normalize-obs": [ScaleReward, PPO],
        "--reward-scale 2 --normalize-obs": [NormalizeObs, ScaleReward, PPO],
    }.items():
        agent, found = trainer_of("ppo", f"{SMALL} {more}").agent, []
        while agent is not None:
            found.append(type(agent))
            agent = getattr(agent, "agent", None)
        assert found == kinds


# --- as a program


def program(*words, **environment):
    command, environment = [sys.executable, str(SCRIPT), *words], os.environ | environment
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_the_program_refuses_a_taken_folder(finished):
    folder, options = finished
    before = contents(folder)
    result = program(*options.split())
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"ppo.py: run-dir {folder} already holds a run")
    assert contents(folder) == before


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_program_tells_a_wrong_value_in_one_line(encoding):
    result = program("--agent.learning-rate", "fast", PYTHONIOENCODING=encoding, COLUMNS="40")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    rate = DEFAULT["agent"]["learning_rate"]
    assert "--agent.learning-rate: could" in line and f"'fast'; the default is {rate}" in line


def test_the_program_refuses_double_precision():
    result = program(*CART_POLE.split(), JAX_ENABLE_X64="1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "ppo.py: jax_enable_x64 is on, and training is in float32; unset JAX_ENABLE_X64\n"
    )


def test_help_lists_every_option_with_the_defaults_of_the_environment(script):
    result = program("--help", "--env", "gymnax/Breakout-MinAtar", COLUMNS="110")
    assert (result.returncode, result.stderr) == (0, "")
    shown = set(re.findall(r"--[\w.-]+", result.stdout))
    names = {field.name for field in dataclasses.fields(script.Config)} - {"agent"}
    names |= {f"agent.{name}" for name in hyper.names(PPO())}
    assert {"agent.critic.encoder.obs_keys", "agent.optimizer.eps"} < names
    assert {f"--{name.replace('_', '-')}" for name in names} <= shown
    assert not [option for option in shown if "action-dim" in option or "shapes" in option]
    settings = lookup(ppo.PRESETS, "gymnax/Breakout-MinAtar")
    assert settings["num_envs"] != DEFAULT["num_envs"]
    text = re.sub(r"[\s│]+", " ", result.stdout).lower()
    for field in [*dataclasses.fields(PPO), *dataclasses.fields(OnPolicy)]:
        declared = hyper.declaration(field)
        if declared is not None:
            assert re.sub(r"\s+", " ", declared.help).lower() in text, field.name
    envs = settings["num_envs"]
    assert re.search(rf"--num-envs INT[^-]*\(default: {envs}\)", result.stdout)
