"""Records of runs and of sweeps: what is wrong in the input or on disk is told, never hidden."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from shared import compiled_once

from jaxrl import (
    PBT,
    PPO,
    Halving,
    NormalizeObs,
    OnPolicy,
    Phase,
    RunError,
    UsageError,
    Values,
    Variant,
    VectorEnv,
    load_policy,
    make,
    run,
    sweep,
)
from jaxrl.data.scores import Reference
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.run.session import Session
from jaxrl.run.sweep_driver import LONGEST, slugs
from jaxrl.types import Box, Discrete, Environment, Spec, Step

pytestmark = pytest.mark.usefixtures("shared_programs", "without_curves")

CART_POLE = make("gymnax/CartPole-v1")
SMALL = {"eval_episodes": 2, "devices": 1, "quiet": True}
EVENTS = SMALL | {"eval_every": 32, "log_every": 32}


@pytest.fixture(scope="module")
def shared_programs():
    """All runs of this file share their programs."""
    with compiled_once():
        yield


def tiny(env: Environment = CART_POLE, **options) -> OnPolicy:
    networks = {"policy": AutoPolicy(hidden_dims=(4,)), "critic": ValueFunction(hidden_dims=(4,))}
    agent = PPO(**networks, update_epochs=1, num_minibatches=1, **options)
    return OnPolicy(agent, VectorEnv(env, 2), num_steps=8)


# --- the folders of variants


def test_variants_with_names_of_equal_letters_have_folders_of_their_own(tmp_path):
    variants = [
        Variant(tiny(make(f"probe/{task}")), 32, {"task": name})
        for task, name in (("constant", "a b"), ("observation", "a,b"))
    ]
    options = SMALL | {"configurations": [{"gamma": 0.9}], "max_parallel": 1}
    tables = [sweep(variants, run_dir=folder, **options).table for folder in (tmp_path / "a", None)]
    scores = [{row["task"]: row["score"] for row in table} for table in tables]
    assert scores[0] == scores[1] and scores[0]["a b"] != scores[0]["a,b"]
    parts = sorted(path.name for path in (tmp_path / "a" / "parts").iterdir())
    assert parts == ["task=a-b+0_part0", "task=a-b+1_part0"]


def test_only_equal_and_long_names_of_variants_get_an_index():
    assert slugs([""]) == [""]
    assert slugs(["x=1 y=2", "x=1,y=2", "x=1 y=3"]) == ["x=1-y=2+0", "x=1-y=2+1", "x=1-y=3"]
    first, second = slugs(["é" * 300 + "1", "é" * 300 + "2"])
    assert first != second and max(len(x.encode()) for x in (first, second)) <= LONGEST + 2


# --- policies of PBT


def test_a_policy_of_pbt_has_the_values_that_were_in_force(tmp_path, monkeypatch):
    """Both populations change after 2 and 4 iterations; in each, the first member is the worst.

    The best evaluation of one is just before the first change, and that of the other after it.
    """

    def evaluate(self, *args, original=Session.evaluate):
        rows = original(self, *args)
        for row in rows:
            best = row["step"] == {3: 32, 5: 48}[row["seed"]]
            row["episode_return"] = 10.0 * row["config"] + best
        return rows

    monkeypatch.setattr(Session, "evaluate", evaluate)
    space = {"obs_clip": Values((0.01, 0.1, 10.0))}
    trainer = OnPolicy(NormalizeObs(tiny().agent), VectorEnv(CART_POLE, 2), num_steps=8)
    options = SMALL | {"method": PBT(space, interval=32, resample=0.0), "seeds": [3, 5]}
    sweep(trainer, 96, configurations=space, run_dir=tmp_path / "a", **options)
    (part,) = (tmp_path / "a" / "parts").iterdir()
    rows = [json.loads(line) for line in (part / "metrics.jsonl").open()]
    at = {(x["seed"], x["config"], x["step"]): x["sweep"]["obs_clip"] for x in rows}
    for seed, peak in ((3, 32), (5, 48)):
        assert at[seed, 0, 32] == 0.01 and at[seed, 0, 48] > 0.01
        for config in range(3):
            for iteration, step in ((4, 80), (6, 96)):  # a checkpoint comes after its change
                policy = load_policy(part, seed, config=config, iteration=iteration)
                assert policy.agent.obs_clip == at[seed, config, step]
            policy = load_policy(part, seed, config=config, checkpoint="best")
            assert policy.evaluation["step"] == peak
            assert policy.agent.obs_clip == at[seed, config, peak]


# --- references


WRONG = {
    "reversed": (
        Reference(10.0, 5.0, "mine"),
        "reference.expert is 5, and random 10; .* must be greater",
    ),
    "equal": (
        Reference(5.0, 5.0, "mine"),
        "reference.expert is 5, and random 5; .* must be greater",
    ),
    "missing": (Reference(None, 5.0, "mine"), "reference.random is None; it must be a number"),  # type: ignore[arg-type]
    "infinite": (Reference(0.0, np.inf, "mine"), "reference.expert is inf; it must be finite"),
    "a tuple": ((10.0, 200.0), r"reference is \(10.0, 200.0\); give .* as Reference\(20.0, 500"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reference_that_gives_no_scores_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(Session, "start", lambda self: pytest.fail("training began"))
    given, message = WRONG[name]
    for train in (
        lambda: run(tiny(), 32, reference=given, run_dir=tmp_path / "run", **SMALL),
        lambda: sweep(tiny(), 32, reference=given, run_dir=tmp_path / "run", **SMALL,
                      configurations=[{}]),
        lambda: sweep([Variant(tiny(), 32, reference=given)], run_dir=tmp_path / "run", **SMALL,
                      configurations=[{}]),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message) as caught:
            train()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_reference_may_have_numpys_numbers_and_change_on_resume(tmp_path):
    options = EVENTS | {"run_dir": tmp_path / "run"}
    given = Reference(np.float32(1.5), np.float32(100.0), "mine")  # type: ignore[arg-type]
    first = run(tiny(), 32, reference=given, **options).summary["scores"]
    other = Reference(0.0, 50.0, "measured")
    second = run(tiny(), 32, reference=other, resume=True, **options).summary["scores"]
    assert first["reference"] == given._asdict() and second["reference"] == other._asdict()
    assert first["final"] != second["final"]


# --- rows that were lost


def without(path, *numbers):
    """Take lines out of the file of rows."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number in sorted((n % len(lines) for n in numbers), reverse=True):
        del lines[number]
    path.write_bytes(b"".join(lines))


@pytest.mark.filterwarnings("ignore:.*its last rows are lost")
@pytest.mark.parametrize("lost", [(-1,), (-1, -2, -3)])
def test_a_run_that_lost_its_last_rows_goes_on_with_whole_events(tmp_path, lost):
    options = EVENTS | {"seeds": 2, "run_dir": tmp_path / "run"}
    path = tmp_path / "run" / "metrics.jsonl"
    whole = run(tiny(), 64, **options)
    for steps in (64, 96):
        without(path, *lost)
        found = run(tiny(), steps, resume=True, **options)
        rows = [json.loads(line) for line in path.open()]
        assert [row["seed"] for row in rows] == [0, 1] * (len(rows) // 2)
        assert [row["step"] for row in rows[-2:]] == [steps] * 2 and len(rows) == len(found.rows)
        last = [row["episode_return"] for row in rows[-2:]]
        assert found.summary["final_return"]["per_seed"] == last
        if steps == 64:  # the policy is evaluated again
            assert found.summary["final_return"] == whole.summary["final_return"]


@pytest.mark.filterwarnings("ignore:.*its last rows are lost")
def test_rows_lost_earlier_are_told_before_anything_is_trained(tmp_path, monkeypatch):
    options = EVENTS | {"seeds": 2, "run_dir": tmp_path / "run"}
    run(tiny(), 32, **options)
    without(tmp_path / "run" / "metrics.jsonl", 1)
    monkeypatch.setattr(Session, "advance", lambda *args: pytest.fail("training began"))
    with pytest.raises(RunError, match="metrics.jsonl lacks rows of some seeds, .*another run-dir"):
        run(tiny(), 64, resume=True, **options)


@pytest.mark.parametrize("name", ["warm\u2028up", "nächste\x85"])
def test_names_of_phases_may_hold_any_separator_of_lines(tmp_path, name):
    options = EVENTS | {"run_dir": tmp_path / "run"}
    run([Phase(tiny(), 32, name)], **options)
    found = run([Phase(tiny(), 64, name)], resume=True, **options)
    assert {row["phase"] for row in found.rows} == {name} and len(found.rows) == 5
    if name[0] == "w":
        options = SMALL | {"run_dir": tmp_path / "sweep", "configurations": [{"gamma": 0.9}]}
        tables = [
            sweep([Phase(tiny(), 32, name)], resume=resume, max_parallel=1, **options).table
            for resume in (False, True)
        ]
        assert tables[0] == tables[1]


# --- wrong input


@dataclasses.dataclass(frozen=True)
class Own:
    """An environment that pays 1, with options of its own."""

    options: Any
    name: ClassVar[str] = "own/env"
    cheap: ClassVar[bool] = True
    spec: ClassVar[Spec] = Spec(Box(-1.0, 1.0, (1,)), Discrete(2), 5)

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, key, state, action):
        no = jnp.zeros((), bool)
        return state, Step(jnp.zeros(1), jnp.ones(()), no, no, {})


def ran(env: Environment = CART_POLE, **options):
    return lambda folder: run(tiny(env), 32, run_dir=folder, **SMALL | options)


def swept(**options):
    options = {"configurations": [{"gamma": 0.9}, {"gamma": 0.99}]} | options
    return lambda folder: sweep(tiny(), 32, run_dir=folder, **SMALL | options)


INPUT = {
    "one number": (swept(configurations={"gamma": 0.9}), "configurations has gamma=0.9; give num"),
    "text": (swept(configurations={"gamma": "0.9"}), "configurations has gamma='0.9'; give num"),
    "None in a list": (swept(configurations=[{"gamma": None}]), "sweep of gamma has None; give"),
    "a method's name": (swept(method="halving"), "method is 'halving'; give .* Halving.2."),
    "a method's class": (swept(method=Halving), "method is <class .*Halving'>; give .* Halving"),
    "a swept number": (ran(sweep={"gamma": 0.9}), r"sweep of gamma is 0.9; give .* \[0.9, 0.99\]"),
    "swept text": (ran(sweep={"gamma": "0.9,0.99"}), "sweep of gamma is '0.9,0.99'; give numbers"),
    "swept None": (ran(sweep={"gamma": [0.9, None]}), "sweep of gamma has None; give numbers"),
    "swept names": (ran(sweep=["gamma"]), r"sweep is \['gamma'\]; give values by name, as"),
    "nothing swept": (ran(sweep=[{}, {}]), "sweep has 2 configurations without hyper-parameters"),
    "no episodes": (ran(eval_episodes=None), "eval_episodes is None; it must be an integer"),
    "no limit": (ran(max_skipped=None), "max_skipped is None; it must be an integer"),
    "no fraction": (ran(max_nonfinite=None), "max_nonfinite is None; .* at most 1, as 0.5"),
    "a writer's number": (ran(log=3), r"log is 3; give names, as \['tensorboard'\]"),
    "an unknown writer": (ran(log="tensorbord"), "unknown log writer 'tensorbord'; did you mean t"),
    "a half device": (ran(devices=1.0), "devices is 1.0; it must be an integer"),
    "a true device": (swept(devices=True), "devices is True; it must be an integer"),
    "a function": (ran(Own({"f": jnp.tanh})), "env own/env has options .*; give what JSON can"),
    "no dictionary": (ran(Own(3)), "env own/env has options 3; give what JSON can hold"),
}


@pytest.mark.parametrize("name", INPUT)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Session, "start", lambda self: pytest.fail("training began"))
    train, message = INPUT[name]
    with pytest.raises(UsageError, match=message) as caught:
        train(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_can_be_understood_is_accepted(tmp_path):
    """Lists as values of a sweep, one event writer's name, and numpy's numbers as options."""
    seen = swept(configurations={"gamma": [0.9, np.float32(0.5)]}, max_parallel=2)(None).table
    assert sorted(row["gamma"] for row in seen) == [0.5, 0.9]
    options = {"g": np.float32(0.5), "at": np.arange(2), "deep": {"on": np.bool_(True)}}
    pytest.importorskip("tensorboardX")
    ran(Own(options), log="tensorboard", devices=np.int64(1))(tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["env_options"] == {"g": 0.5, "at": [0, 1], "deep": {"on": True}}
    assert stored["log"] == ["tensorboard"] and (tmp_path / "run" / "tensorboard").is_dir()
    for config in ("0", None, 1.0, True):
        with pytest.raises(UsageError, match=f"config is {config!r}; it must be an integer"):
            load_policy(tmp_path / "run", config=config, env=Own(options))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="iteration is '2'; it must be an integer"):
        load_policy(tmp_path / "run", iteration="2", env=Own(options))  # type: ignore[arg-type]
