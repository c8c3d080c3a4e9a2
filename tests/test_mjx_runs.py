"""Runs on mjx/*: their placement, resuming them, and their policies in Gymnasium itself."""

from __future__ import annotations

import gymnasium
import jax
import numpy as np
import pytest

from jaxrl import PPO, NormalizeObs, OnPolicy, VectorEnv, load_policy, make, run
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.run.placement import Placement, choose


def trainer_of(task, engine="c"):
    policy, critic = AutoPolicy(hidden_dims=(32, 32)), ValueFunction(hidden_dims=(32, 32))
    agent = NormalizeObs(PPO(policy=policy, critic=critic, learning_rate=1e-3))
    return OnPolicy(agent, VectorEnv(make(f"mjx/{task}", engine=engine), 32), num_steps=32)


def test_environments_that_use_all_cores_are_not_sharded(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    native, mjx = trainer_of("Hopper-v5"), trainer_of("Hopper-v5", engine="mjx")
    assert choose([native], 1) == Placement(1, 1)
    assert choose([native], 2) == Placement(2, 1)
    assert choose([mjx], 1) == Placement(1, 2)


def test_a_resumed_run_on_the_native_engine_is_the_uninterrupted_one(tmp_path, shared_programs):
    trainer = trainer_of("Hopper-v5")
    whole = run(trainer, 4096, seeds=2, run_dir=tmp_path / "whole", eval_every=2048, quiet=True)
    run(trainer, 2048, seeds=2, run_dir=tmp_path / "half", eval_every=2048, quiet=True)
    resumed = run(
        trainer, 4096, seeds=2, run_dir=tmp_path / "half", eval_every=2048, quiet=True, resume=True
    )
    plain = [x.state._replace(key=jax.random.key_data(x.state.key)) for x in (whole, resumed)]
    jax.tree.map(np.testing.assert_array_equal, *plain)
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "half")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_trained_policy_gets_the_same_return_in_gymnasium(tmp_path):
    """A pole that is not yet balanced for good: returns that differ between starts."""
    trained = run(
        trainer_of("InvertedPendulum-v5"), 24 * 1024, run_dir=tmp_path / "run", quiet=True
    )
    ts = jax.tree.map(lambda x: x[0], trained.state)
    evaluate = jax.jit(trained.trainer.evaluate, static_argnums=2)
    ours = np.asarray(evaluate(ts, jax.random.key(5), 100).returns)
    policy = load_policy(tmp_path / "run")
    theirs = gymnasium.make("InvertedPendulum-v5")
    returns = []
    for seed in range(100):
        (obs, _), done, total = theirs.reset(seed=seed), False, 0.0
        while not done:
            action = np.asarray(policy(obs.astype(np.float32)))
            obs, reward, terminated, truncated, _ = theirs.step(action)
            total, done = total + reward, terminated or truncated
        returns.append(total)
    assert 30 < ours.mean() < 990
    error = (ours.var(ddof=1) / 100 + np.var(returns, ddof=1) / 100) ** 0.5
    assert abs(ours.mean() - np.mean(returns)) < 3 * error
