"""The best policies of a run: kept beside the last ones, with the evaluations that chose them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, compiled_once, killed
from test_added_seeds import KNOWN, tiny

from jaxrl import Offline, Phase, UsageError, VectorEnv, load_policy, make, run
from jaxrl.agents import BC
from jaxrl.analysis import __main__ as analysis
from jaxrl.analysis import evaluate_run, evaluation
from jaxrl.nn.policies import AutoPolicy
from jaxrl.record import checkpoint, record
from jaxrl.record.policy import Policy
from jaxrl.run.best import Best
from jaxrl.run.session import Session

pytestmark = pytest.mark.usefixtures("shared_programs", "without_curves")

CART_POLE = make("gymnax/CartPole-v1")
SEEDS, GAMMAS = [3, 5], [0.9, 0.99]
OPTIONS = {
    "seeds": SEEDS,
    "sweep": {"gamma": GAMMAS},
    "eval_every": 16,
    "eval_episodes": 2,
    "checkpoint_every": 48,
    "devices": 1,
    "quiet": True,
}


@pytest.fixture(scope="module")
def shared_programs():
    """Runs share their programs, with those of another file too."""
    with compiled_once(KNOWN):
        yield


@pytest.fixture(scope="module")
def watched(tmp_path_factory, shared_programs, without_curves):
    """A run's folder, and the agents and rows of all its evaluations."""
    folder, seen = tmp_path_factory.mktemp("best") / "run", []
    with evaluated(seen):
        run(tiny(), 144, run_dir=folder, **OPTIONS)
    return folder, seen


@contextlib.contextmanager
def evaluated(seen):
    """Evaluations whose returns go up and down, so that members have their best at other steps."""

    def evaluate(self, compiled, ts, done, original=Session.evaluate):
        rows = original(self, compiled, ts, done)
        for i, row in enumerate(rows):
            row["episode_return"] = float(done * (3 + 2 * i) % 10)
        seen.append((jax.tree.map(np.array, jax.device_get(ts.agent)), rows, done))
        return rows

    with mock.patch.object(Session, "evaluate", evaluate):
        yield


def expected(seen, member):
    """The first evaluation with the highest return of a member, and its agent."""
    returns = [rows[member]["episode_return"] for _, rows, _ in seen]
    agent, rows, done = seen[int(np.argmax(returns))]
    return jax.tree.map(lambda x: x[member], agent), rows[member], done


def test_each_seed_has_the_policy_of_its_own_best_evaluation(watched):
    folder, seen = watched
    kept = json.loads((folder / "summary.json").read_text())["best_checkpoint"]
    steps = set()
    for member, (config, seed) in enumerate((c, s) for c in range(2) for s in SEEDS):
        agent, row, done = expected(seen, member)
        policy = load_policy(folder, seed=seed, config=config, checkpoint="best")
        assert_same_bits(policy.state, agent)
        assert policy.evaluation == {
            "iteration": done,
            "phase": 0,
            "step": row["step"],
            "episode_return": row["episode_return"],
        }
        entry = {name: row[name] for name in ("seed", "config", "sweep", "step", "episode_return")}
        assert kept[member] == entry
        steps.add(row["step"])
        last = load_policy(folder, seed=seed, config=config)
        assert last.evaluation is None
        assert_same_bits(last.state, jax.tree.map(lambda x, i=member: x[i], seen[-1][0]))
    assert len(steps) == 3  # else the test could not fail


def test_the_best_so_far_can_be_read_from_an_earlier_checkpoint(watched):
    folder, seen = watched
    agent, row, _ = expected([each for each in seen if each[2] <= 6], 2)
    policy = load_policy(folder, seed=3, config=1, checkpoint="best", iteration=6)
    newest = load_policy(folder, seed=3, config=1, checkpoint="best")
    assert policy.evaluation["step"] == row["step"] < newest.evaluation["step"]
    assert_same_bits(policy.state, agent)


def test_a_checkpoint_holds_one_more_agent_and_nothing_else(watched):
    folder, _ = watched
    leaves = checkpoint.restore(folder / "checkpoints", None).state
    best = {path.removeprefix("best/") for path in leaves if path.startswith("best/")}
    assert best == {path.removeprefix("agent/") for path in leaves if path.startswith("agent/")}


def test_killed_and_resumed_the_best_are_the_same_bits(watched, tmp_path):
    with evaluated([]):
        with killed("advance", 6):  # after evaluations that no checkpoint holds
            run(tiny(), 144, run_dir=tmp_path / "run", **OPTIONS)
        run(tiny(), 144, run_dir=tmp_path / "run", resume=True, **OPTIONS)
    found, wanted = (
        checkpoint.restore(folder / "checkpoints", None)
        for folder in (tmp_path / "run", watched[0])
    )
    assert found.meta["best"] == wanted.meta["best"]
    assert_same_bits(found.state, wanted.state)


def rows(*returns):
    return [{"step": 1, "episode_return": each} for each in returns]


def test_what_is_not_finite_is_never_better_and_of_equals_the_first_stays():
    best = Best()
    for iteration, returns in enumerate([(math.nan, 1.0), (-2.0, 1.0), (math.nan, math.nan)]):
        best.update({"w": np.full((2, 3), iteration, np.float32)}, rows(*returns), iteration, 0)
    assert [each["iteration"] for each in best.evaluations] == [1, 0]
    np.testing.assert_array_equal(best.agent["w"], [[1, 1, 1], [0, 0, 0]])
    none = Best()
    none.update({"w": np.zeros((1, 1))}, rows(math.nan), 0, 0)
    assert none.evaluations[0]["episode_return"] is None  # JSON has no NaN
    none.update({"w": np.ones((1, 1))}, rows(-1e9), 1, 0)
    assert float(none.agent["w"][0, 0]) == 1.0


def test_runs_that_keep_none_say_so(tmp_path, monkeypatch):
    folder, line = tmp_path / "run", "run has kept no best policy; load the last, as checkpoint="
    options = OPTIONS | {"run_dir": folder}
    run(tiny(), 48, keep_best=False, **options)
    assert "best_checkpoint" not in json.loads((folder / "summary.json").read_text())
    with pytest.raises(UsageError, match=line):
        load_policy(folder, checkpoint="best")
    run(tiny(), 96, resume=True, **options)  # the best may be one that was not kept
    with pytest.raises(UsageError, match=line):
        load_policy(folder, checkpoint="best")
    with pytest.raises(UsageError, match="checkpoint is 'newest'; did you mean best"):
        load_policy(folder, checkpoint="newest")


@pytest.mark.slow
def test_a_best_policy_of_an_earlier_phase_is_played_as_that_phase_did(tmp_path):
    """The second phase unlearns: its agent clones actions of a random policy."""
    env, key = CART_POLE, jax.random.key(0)
    agent = BC(policy=AutoPolicy(hidden_dims=(4,)), learning_rate=0.1)
    first = Offline(agent, VectorEnv(env, 1, max_steps=30), batch_size=4, num_updates=1)
    wild = Offline(agent.replace(learning_rate=1e3), VectorEnv(env, 1, max_steps=9), batch_size=4)
    state = first.agent.init(key)
    data = record(Policy(agent, state, env.spec, "sample"), env, key, episodes=2)
    phases = [Phase(first, 2, "first"), Phase(wild, 2, "second")]
    options = OPTIONS | {"sweep": None, "eval_every": None, "checkpoint_every": None}
    run(phases, data=data, run_dir=tmp_path / "run", **options)
    best = load_policy(tmp_path / "run", checkpoint="best")
    assert best.evaluation["phase"] == 0 and best.spec.max_steps == 30
    assert load_policy(tmp_path / "run").spec.max_steps == 9


def test_seeds_whose_best_are_of_different_phases_are_played_each_by_its_limit(monkeypatch):
    def loaded(run_dir, seed, *_, **__):
        spec = dataclasses.replace(CART_POLE.spec, max_steps=10 * seed)
        return Policy(BC(), 0, spec, "greedy"), CART_POLE

    def played(agent, state, env, keys, mode, limit):
        return SimpleNamespace(returns=jnp.full(len(keys), float(limit)))

    monkeypatch.setattr(evaluation, "load_policy_and_env", loaded)
    monkeypatch.setattr(evaluation, "evaluate", played)
    monkeypatch.setattr(evaluation, "read_config", lambda _: {"seeds": [1, 2]})
    assert evaluate_run("x", episodes=2).returns.tolist() == [[10, 10], [20, 20]]


# --- fresh evaluations, and the commands


def test_fresh_episodes_are_those_of_the_chosen_policies(watched, capsys):
    folder, _ = watched
    played = evaluate_run(folder, config=1, checkpoint="best", episodes=3, key=4)
    assert played.returns.shape == (2, 3) and played.seeds == SEEDS
    again = evaluate_run(folder, config=1, checkpoint="best", seeds=[5], episodes=3, key=4)
    np.testing.assert_array_equal(again.returns[0], played.returns[1])
    other = evaluate_run(folder, config=1, checkpoint="best", episodes=3, key=5)
    assert (other.returns != played.returns).any()
    assert played.summary["per_seed"] == played.returns.mean(axis=1, dtype=np.float64).tolist()
    with pytest.raises(UsageError, match="seeds is empty; give at least one, or None for all"):
        evaluate_run(folder, seeds=[])
    with pytest.raises(UsageError, match="key is 2147483647, that of evaluations in training"):
        evaluate_run(folder, key=2**31 - 1)

    words = ["evaluate", str(folder), "--checkpoint", "best", "--episodes", "3", "--config", "1"]
    assert analysis.main([*words, "--key", "4"]) == 0
    said = capsys.readouterr().out
    policy = load_policy(folder, config=1, checkpoint="best")
    assert "fresh mean" in said and "best at step" in said
    cells = map(str.split, said.splitlines())
    (row,) = (each for each in cells if each[:1] == ["3"] and each[1] != "fresh")
    score = f"{policy.evaluation['episode_return']:,.2f}"
    mean = f"{played.returns[0].mean():,.2f}"
    assert [row[i] for i in (1, 3, 4)] == [mean, str(policy.evaluation["step"]), score]
    assert "\n3 fresh episodes of each of 2 seeds: IQM " in said


def test_commands_take_the_best_checkpoint(watched, tmp_path, capsys):
    folder, _ = watched
    words = [str(folder), "--seed", "5", "--checkpoint", "best", "--out", str(tmp_path)]
    assert analysis.main(["export", *words, "--formats", "npz"]) == 0
    with np.load(tmp_path / "policy.npz") as file:
        arrays = [file[name] for name in file.files]
    best, last = (load_policy(folder, seed=5, checkpoint=which) for which in ("best", "last"))
    params = [each.state.networks.params["policy"] for each in (best, last)]
    kernels = [[x for x in jax.tree.leaves(each) if x.ndim == 2] for each in params]
    assert not any((x == y).all() for x, y in zip(*kernels, strict=True))
    for each in kernels[0]:
        assert any(x.shape == each.shape and (x == each).all() for x in arrays)
    assert analysis.main(["render", *words, "--steps", "3"]) == 0
    assert (tmp_path / "episode.npz").exists()
