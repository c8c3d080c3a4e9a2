"""The command line: wrong input ends in one clear line, before anything is compiled or written."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxrl import PPO, OnPolicy, UsageError, VectorEnv, make, presets, run
from jaxrl.run import cli, session

SCRIPT = Path(__file__).parent.parent / "experiments" / "ppo.py"
CART_POLE = "--env gymnax/CartPole-v1"
SMALL = f"{CART_POLE} --num-envs 2 --unroll 8 --agent.minibatches 2 --agent.epochs 1"
SMALL += " --agent.hidden 4 --total-steps 32 --eval-every 16 --eval-episodes 1 --devices 1 --quiet"


@pytest.fixture(scope="module")
def script():
    """``experiments/ppo.py`` as a module; the suites are imported, which may compile, but once."""
    for name in ("gymnax/CartPole-v1", "gymnax/Acrobot-v1", "brax/ant"):
        make(name)
    spec = importlib.util.spec_from_file_location("ppo_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ppo_script"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ppo_script"]


@pytest.fixture
def call(script, monkeypatch, capsys, tmp_path):
    """The script in this process: its exit code, and what it printed; relative to an own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "prepare", lambda devices: None)

    def call(options):
        words = options.split() if isinstance(options, str) else options
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        with pytest.raises(SystemExit) as exit:
            cli.launch(script.main)
        return exit.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """The folder of a small run of the script, and the options that made it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = f"{SMALL} --run-dir {folder}"
    config = cli.parse(script.Config, presets.PPO, PPO, options.split())
    cli.train(script.build(config), config)
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


DEFAULT = presets.lookup(presets.PPO, cli.Options.env)
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
    f"{CART_POLE} --env-options masspole=heavy": ["masspole is 'heavy'", "a float"],
    f"{CART_POLE} --env-options max_steps=abc": ["max_steps is 'abc'", "integer of at least 1"],
    f"{CART_POLE} --env-options gravity": ["env-options 'gravity'", "NAME=VALUE"],
    f"{CART_POLE} --env-options =3": ["env-options '=3'", "NAME=VALUE"],
    f"{CART_POLE} --env-options gravity=1 gravity=2": ["env-options gravity", "twice"],
    "--totl-steps 5": ["unknown option --totl-steps", "--total-steps"],
    "--agent.learning-rat 0.1": ["--agent.learning-rat;", "did you mean --agent.learning-rate"],
    "--learning-rate 0.1": ["--learning-rate;", "did you mean --agent.learning-rate"],
    "--quiet please": ["'please'", "--help"],
    "--total-steps abc": ["--total-steps", "'abc'", f"the default is {DEFAULT['total_steps']}"],
    "--total-steps 1e6": ["--total-steps", "'1e6'", f"the default is {DEFAULT['total_steps']}"],
    "--total-steps": ["'--total-steps'", "Expected 1 value"],
    "--agent.epochs 1.5": ["--agent.epochs", "'1.5'", "the default is"],
    "--agent.gamma high": [
        "--agent.gamma",
        "'high'",
        f"the default is {DEFAULT['agent']['gamma']}",
    ],
    "--agent.activation tanhh": ["'tanhh'", "--agent.activation", "'tanh', 'relu'"],
    "--resets sometimes": ["'sometimes'", "--resets", "'bank'"],
}
ON_CART_POLE = {
    "--num-envs 8 --unroll 64 --agent.minibatches 7": [
        "minibatches is 7",
        "512 transitions",
        "8 would",
    ],
    "--num-envs 8 --unroll 1 --agent.minibatches 4 --devices 4": ["minibatches is 4", "2 would"],
    "--num-envs 6 --devices 4": ["num_envs is 6", "over 4 devices", "8 would"],
    "--num-envs 8 --num-seeds 2 --devices 3": ["num_envs is 8", "over 3 devices", "9 would"],
    "--devices 9": ["devices is 9", "1 to 4"],
    "--devices 0": ["devices is 0", "1 to 4"],
    "--devices -1": ["devices is -1", "1 to 4"],
    "--seed -1": ["seed is -1", "at least 0 and at most 2147483647"],
    "--seed 2147483647 --num-seeds 2": ["seed is 2147483648", "at most 2147483647"],
    "--agent.gamma 1.5": ["gamma is 1.5", "at least 0 and at most 1"],
    "--agent.gamma nan": ["gamma is nan", "at least 0 and at most 1"],
    "--agent.gae-lambda -0.1": ["gae_lambda is -0.1", "at least 0 and at most 1"],
    "--agent.clip -1": ["clip is -1", "more than 0"],
    "--agent.learning-rate 0": ["learning_rate is 0", "more than 0"],
    "--agent.entropy -1": ["entropy is -1", "at least 0"],
    "--agent.value -1": ["value is -1", "at least 0"],
    "--agent.max-grad-norm 0": ["max_grad_norm is 0", "more than 0"],
    "--agent.initial-std 0": ["initial_std is 0", "more than 0"],
    "--agent.target-kl 0": ["target_kl is 0", "more than 0"],
    "--agent.anneal-over -1": ["anneal_over is -1", "at least 0"],
    "--agent.hidden 8 0": ["hidden is 0", "at least 1"],
    "--reward-scale -2": ["reward_scale is -2", "more than 0"],
    "--sweep gama=0.9": ["unknown hyper-parameter 'gama'", "did you mean gamma?"],
    "--sweep epochs=2,4": ["epochs makes shapes", "sweep one of", "gamma", "learning_rate"],
    "--sweep gamma": ["sweep 'gamma'", "NAME=VALUE, as gamma=0.9,0.99"],
    "--sweep gamma=0.9,high": ["gamma=0.9,high", "list of numbers, as gamma=0.9,0.99"],
    "--sweep gamma=()": ["gamma=()", "list of numbers, as gamma=0.9,0.99"],
    "--sweep gamma=0.9 gamma=0.99": ["sweep gamma", "twice", "as gamma=0.9,0.99"],
    "--sweep gamma=0.9,1.5": ["gamma is 1.5", "at most 1"],
    "--log tensorbord": ["'tensorbord'", "did you mean tensorboard?"],
    "--resume": ["resume needs", "--run-dir"],
    "--resume --run-dir new": ["/new holds nothing to resume", "without --resume"],
}
COUNTS = "total-steps num-envs unroll num-seeds eval-every eval-episodes log-every"
COUNTS += " checkpoint-every max-skipped max-steps agent.epochs agent.minibatches"
for option in COUNTS.split():
    for value in (0, -3):
        name = option.rpartition(".")[2]
        ON_CART_POLE[f"--{option} {value}"] = [f"{name} is {value};", "at least 1"]
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
    refused(f"{SMALL} --run-dir file/run", "/file/run cannot be made (Not a directory)")


def test_a_resumed_run_has_the_options_it_had(refused, finished):
    folder, options = finished
    line = refused(
        f"{options} --resume --agent.gamma 0.5 --num-envs 4 --seed 7",
        f"{folder} holds a run with another configuration",
        "agent.gamma (0.99, now 0.5)",
        "num_envs (2, now 4)",
        "seeds ([0], now [7])",
    )
    assert "learning_rate" not in line and "unroll" not in line
    refused(f"{options} --resume --env gymnax/Acrobot-v1", "env (gymnax/CartPole-v1, now gymnax/A")


def test_wrong_input_of_the_function_is_refused_too():
    trainer = OnPolicy(PPO(hidden=(4,)), VectorEnv(make("gymnax/CartPole-v1"), 2), unroll=8)
    for options, part in [
        ({"seeds": [1, 2, 1]}, r"seeds \[1, 2, 1\] repeat; give every seed once"),
        ({"seeds": []}, "num_seeds is 0; it must be at least 1"),
        ({"sweep": {"gamma": []}}, "gamma has no values"),
        ({"resume": True}, "resume needs the run-dir"),
        ({"log": ["tensorboard"]}, "log tensorboard needs a run-dir"),
    ]:
        with pytest.raises(UsageError, match=part):
            run(trainer, 32, quiet=True, **options)


# --- what is right


@pytest.mark.parametrize("env", ["brax/reacher", "gymnax/CartPole-v1", "gymnax/Breakout-MinAtar"])
def test_defaults_are_those_of_the_family_and_the_command_line_wins(script, env):
    settings = presets.lookup(presets.PPO, env)
    for given in (["--env", env], [f"--env={env}"]):
        config = dataclasses.asdict(cli.parse(script.Config, presets.PPO, PPO, given))
        assert config["env"] == env
        assert {name: config["agent"][name] for name in settings["agent"]} == settings["agent"]
        others = settings.keys() - {"agent"}
        assert {name: config[name] for name in others} == {name: settings[name] for name in others}
    words = f"--env {env} --num-envs 77 --agent.learning-rate 0.125 --agent.entropy 0.5 --no-anneal"
    changed = dataclasses.asdict(cli.parse(script.Config, presets.PPO, PPO, words.split()))
    assert (changed["num_envs"], changed["anneal"]) == (77, False)
    own = {"learning_rate": 0.125, "entropy": 0.5}
    assert changed["agent"] == config["agent"] | own
    rest = {"num_envs", "anneal", "agent"}
    assert {k: v for k, v in changed.items() if k not in rest} == {
        k: v for k, v in config.items() if k not in rest
    }


def test_families_differ(script):
    """Else the comparison with the table shows nothing."""
    envs = ("brax/reacher", "gymnax/CartPole-v1", "gymnax/Breakout-MinAtar")
    parsed = [cli.parse(script.Config, presets.PPO, PPO, ["--env", env]) for env in envs]
    assert len({(c.num_envs, c.agent.learning_rate, c.total_steps) for c in parsed}) == 3


def test_annealing_lasts_the_run_unless_told_otherwise(script):
    words = f"{SMALL} --total-steps 100 --anneal".split()
    for more, updates in [([], 7.0), (["--agent.anneal-over", "5"], 5.0), (["--no-anneal"], 0.0)]:
        config = cli.parse(script.Config, presets.PPO, PPO, words + more)
        assert script.build(config).agent.anneal_over == updates


# --- as a program


def program(*words, **environment):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
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
    assert "--agent.learning-rate" in line and "'fast'" in line and "the default is 0.0" in line


def test_help_lists_every_option_with_the_defaults_of_the_environment(script):
    result = program("--help", "--env", "gymnax/Breakout-MinAtar", COLUMNS="200")
    assert (result.returncode, result.stderr) == (0, "")
    for node, prefix in ((script.Config, ""), (PPO, "agent.")):
        for field in dataclasses.fields(node):
            if field.name != "agent":
                assert f"--{prefix}{field.name.replace('_', '-')}" in result.stdout
    settings = presets.lookup(presets.PPO, "gymnax/Breakout-MinAtar")
    assert settings["total_steps"] != DEFAULT["total_steps"]
    assert f"(default: {settings['total_steps']})" in result.stdout
