"""The scripts that go on from a policy that imitates: steered, edited, improved, and composed."""

from __future__ import annotations

import json
from unittest import mock

import jax
import numpy as np
import pytest
from shared import assert_same_bits, run_script, script_module

from jaxrl import (
    BC,
    NormalizeObs,
    Offline,
    OffPolicy,
    UsageError,
    VectorEnv,
    load_policy,
    make,
    run,
)
from jaxrl.data.formats import load
from jaxrl.data.shipped import shipped_path
from jaxrl.nn.flow import Flow
from jaxrl.training.evaluate import EVALUATION_SEED, evaluate

ENV = "gymnax/Pendulum-v1"
LIMIT = 50  # the environment's own is 200
FLOW = Flow(hidden_dims=(8,), sample_steps=2, time_embedding="sinusoidal")
SMALL = "--policy.hidden-dims 8 --policy.sample-steps 2 --critic.hidden-dims 8 --batch-size 8"
QUICK = "--eval-episodes 1 --devices 1 --quiet --total-steps 20"


@pytest.fixture(scope="module")
def clones(tmp_path_factory, shared_programs):
    """Two runs of a flow policy that has hardly learnt, with a time limit of their own."""
    folder = tmp_path_factory.mktemp("clones")
    data = load(shipped_path(f"{ENV}/medium-replay"))
    env = VectorEnv(make(ENV), 1, max_steps=LIMIT)
    trainer = Offline(NormalizeObs(BC(policy=FLOW), frozen=True), env, batch_size=8, num_updates=10)
    sizes = {"eval_episodes": 1, "devices": 1, "quiet": True}
    run(trainer, 10, data=data, seeds=[0, 1], run_dir=folder / "one", **sizes)
    run(trainer, 20, data=data, seeds=[1, 2], run_dir=folder / "other", **sizes)
    return folder


def test_dsrl_steers_a_clone_offline_and_online_and_leaves_it_as_it_is(clones, tmp_path):
    words = f"--policy-from {clones / 'one'} {SMALL} {QUICK} --actor.hidden-dims 8 --seed 1"
    words += f" --online-steps 40 --learning-starts 20 --run-dir {tmp_path / 'dsrl'}"
    with script_module("dsrl") as script:
        run_script(script, words.split())
    steered, clone = load_policy(tmp_path / "dsrl"), load_policy(clones / "one", seed=1)
    state = steered.state  # with statistics
    assert_same_bits(state.agent.policy, clone.state.agent.policy.params)
    assert_same_bits(state.statistics, clone.state.statistics)
    assert np.isfinite(steered(np.ones((4, 3), np.float32))).all()
    summary = json.loads((tmp_path / "dsrl" / "summary.json").read_text())
    assert [switch["phase"] for switch in summary["switches"]] == ["online"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("pa_rl", "--critic-learning iql"), ("edit", "--frozen --edit-scale 0.5"), ("dsrl", "")],
)
def test_scripts_compose_an_offline_phase_and_an_online_one(name, words):
    given = mock.Mock(side_effect=InterruptedError)
    with script_module(name) as script, mock.patch.object(script, "run", given):
        for more, kinds in (("", [Offline]), ("--online-steps 9", [Offline, OffPolicy])):
            with pytest.raises(InterruptedError):
                run_script(script, f"{words} {more} --policy-from x --run-dir y --quiet".split())
            assert [type(phase.trainer) for phase in given.call_args.args[0]] == kinds
    assert given.call_args.kwargs["policy_from"] == "x"
    inner = given.call_args.args[0][0].trainer.agent.agent.agent
    if name == "pa_rl":
        assert inner.critic_learning == "iql" and inner.policy.schedule == "cosine"
    if name == "edit":
        assert inner.frozen and inner.edit_scale == 0.5


def test_the_search_over_weights_reports_other_episodes_than_it_chose_by(clones, tmp_path):
    runs = f"{clones / 'one'} {clones / 'other'} --seed 1"
    out = tmp_path / "found"
    with script_module("compose") as script:
        run_script(script, f"{runs} --num-weights 3 --episodes 2 --out {out}".split())
        with pytest.raises(UsageError, match="which exists; give another folder"):
            run_script(script, f"{runs} --out {out}".split())
        first, other = (load_policy(clones / name, seed=1) for name in ("one", "other"))
        moved = other.state.statistics._replace(mean=other.state.statistics.mean + 1.0)
        other.state = other.state._replace(statistics=moved)
        with pytest.raises(UsageError, match="by different statistics; give two runs on one data"):
            script.composition(first, other)
    found = json.loads((out / "compose.json").read_text())
    assert [row["weight"] for row in found["rows"]] == [0.0, 0.5, 1.0]
    assert found["chosen"]["selection"] == max(row["selection"] for row in found["rows"])
    assert (out / "compose.png").stat().st_size > 5_000
    assert len({row["report"] for row in found["rows"]}) == 3
    keys = jax.random.split(jax.random.key(EVALUATION_SEED), 4)
    world = make(ENV)
    played = jax.jit(
        lambda state, keys: evaluate(first.agent, state, world, keys, max_steps=LIMIT).returns
    )
    expected = [float(played(first.state, half).mean()) for half in (keys[:2], keys[2:])]
    last = found["rows"][-1]
    np.testing.assert_allclose([last["selection"], last["report"]], expected, rtol=1e-3)
