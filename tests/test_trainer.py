"""The trainer: states are arrays, chunks add up, and everything vmaps."""

from __future__ import annotations

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, bits

from jaxrl import (
    PPO,
    NormalizeObs,
    OnPolicy,
    ScaleReward,
    UsageError,
    VectorEnv,
    hyper,
    make,
    memory,
)
from jaxrl import metrics as m
from jaxrl.analysis import rollout as play_on_the_host
from jaxrl.counters import counter_value
from jaxrl.envs.probe import Both
from jaxrl.record import Policy
from jaxrl.sharding import reducing_over, shard_key
from jaxrl.training.evaluate import evaluate
from jaxrl.types import Step

SWEPT = {
    "learning_rate": jnp.array([1e-3, 3e-3]),
    "clip": jnp.array([0.1, 0.3]),
    "entropy": jnp.array([0.0, 0.1]),
    "gamma": jnp.array([0.9, 0.99]),
}


def tiny(agent=None, num_envs=4, unroll=8):
    agent = agent or NormalizeObs(ScaleReward(PPO(hidden=(8,), epochs=2, minibatches=2), 0.1))
    return OnPolicy(agent, VectorEnv(make("gymnax/CartPole-v1"), num_envs), unroll=unroll)


def test_every_leaf_is_an_array_and_two_inits_have_equal_trees():
    trainer = tiny()
    first, second = trainer.init(jax.random.key(0)), tiny().init(jax.random.key(1))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    after, _ = trainer.iteration(first)
    assert jax.tree.structure(after) == jax.tree.structure(first)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(first)]
    plain = jax.tree.unflatten(jax.tree.structure(first), bits(first))
    assert_same_bits(pickle.loads(pickle.dumps(plain)), plain)


def test_chunks_equal_the_whole_bit_for_bit_and_compile_once():
    trainer = tiny()
    whole, history = jax.jit(lambda k: trainer.train(k, 10 * 32))(jax.random.key(0))
    chunk = jax.jit(trainer.chunk)
    ts = jax.jit(trainer.init)(jax.random.key(0))
    episodes = 0.0
    for iterations in (3, 1, 4, 2):
        ts, metrics = chunk(ts, jnp.int32(iterations))
        episodes += float(metrics["episodes"].total)
    assert chunk._cache_size() == 1
    assert_same_bits(ts, whole)
    assert episodes == float(history["episodes"].sum()) > 0
    assert counter_value(ts.env_steps) == 320 and ts.updates == 10


def test_metrics_add_up_in_any_grouping_and_know_when_there_was_nothing():
    trainer = tiny()
    ts = trainer.init(jax.random.key(0))
    _, rows = jax.lax.scan(lambda ts, _: trainer.iteration(ts), ts, length=12)
    _, reduced = trainer.chunk(ts, 12)
    found, values = m.values(reduced), m.values(rows)
    weights = rows["episode_return"].weight
    expected = float(np.nansum(np.asarray(values["episode_return"]) * weights) / weights.sum())
    assert found["episode_return"] == pytest.approx(expected, rel=1e-5)
    assert found["kl"] == pytest.approx(float(values["kl"].mean()), rel=1e-4)
    assert np.isnan(values["episode_return"][0]) and values["episodes"][0] == 0


def test_vmap_over_seeds_hyper_parameters_and_both_and_resume_of_a_swept_population():
    trainer = tiny()
    keys = jax.vmap(jax.random.key)(jnp.arange(3))

    def train(values, key):
        return hyper.replace(trainer, values).train(key, 3 * 32)[0]

    both = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))(SWEPT, keys)
    params = bits(both.agent.agent.params)
    assert all(leaf.shape[:2] == (2, 3) for leaf in params)
    kernels = params[1].reshape(6, -1)
    assert len(np.unique(kernels, axis=0)) == 6  # configurations and seeds all differ

    def go_on(values, ts):
        return hyper.replace(trainer, values).chunk(ts, 2)[0]

    def longer(values, key):
        return hyper.replace(trainer, values).train(key, 5 * 32)[0]

    resumed = jax.jit(jax.vmap(jax.vmap(go_on, (None, 0)), (0, 0)))(SWEPT, both)
    whole = jax.jit(jax.vmap(jax.vmap(longer, (None, 0)), (0, None)))(SWEPT, keys)
    for a, b in zip(bits(resumed), bits(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_vmapped_seed_is_the_same_seed_alone():
    """As far as rounding lets it: the first updates agree, and the environments are the same."""
    trainer = tiny()
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    together = jax.jit(jax.vmap(lambda k: trainer.train(k, 2 * 32)[0]))(keys)
    alone = jax.jit(lambda k: trainer.train(k, 2 * 32)[0])(keys[2])
    for a, b in zip(bits(together), bits(alone), strict=True):
        np.testing.assert_allclose(a[2], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("resets", ["fresh", "bank"])
def test_no_key_is_used_twice(resets):
    """With discrete actions and with squashed ones, in training and in evaluation."""
    squashed = PPO(hidden=(4,), epochs=1, minibatches=1, squash=True, std="dependent")
    agent, env = (None, "CartPole-v1") if resets == "fresh" else (squashed, "Pendulum-v1")
    trainer = tiny(agent)
    venv = VectorEnv(make(f"gymnax/{env}"), 2, resets=resets, bank_size=3)
    trainer = OnPolicy(trainer.agent, venv, unroll=4)
    with jax.debug_key_reuse(True):
        ts = jax.jit(trainer.init)(jax.random.key(0))
        jax.jit(trainer.iteration)(ts)
        for mode in ("greedy", "sample"):
            jax.jit(lambda ts, mode=mode: trainer.evaluate(ts, jax.random.key(1), 2, mode))(ts)


class Splitting(Both):
    """Rewards are 1 where a step's key is drawn from one that the reset had split off its own."""

    def reset(self, key):
        drawn = jax.vmap(jax.random.split)(jax.random.split(key, 64))
        return jax.random.key_data(drawn).reshape(-1, 2), jnp.ones(1)

    def step(self, key, state, action):
        known = jnp.any(jnp.all(state == jax.random.key_data(key), axis=-1))
        no = jnp.bool_(False)
        return state, Step(jnp.ones(1), known.astype(jnp.float32), no, no, {})


def test_the_keys_of_an_evaluations_steps_are_none_that_a_reset_may_have_used():
    """With JAX's threefry ``fold_in(key, i)`` is ``split(key, n)[i]``."""
    key = jax.random.key(3)
    folded, split = jax.random.fold_in(key, 5), jax.random.split(key, 64)[5]
    assert_same_bits(folded, split)
    agent, env = PPO(hidden=(4,)), Splitting()
    state = agent.init(key, env.spec)
    keys = jax.random.split(key, 2)
    found = jax.jit(lambda: evaluate(agent, state, env, keys, max_steps=64))()
    assert found.lengths.tolist() == [64, 64] and found.returns.tolist() == [0, 0]
    policy = Policy(agent, state, dataclasses.replace(env.spec, max_steps=64), "greedy")
    assert play_on_the_host(env, policy, keys[0], 8).episode_return == 0


def test_a_chunk_traces_the_loss_once_and_metrics_are_those_of_the_step(monkeypatch):
    traced = []

    def loss(self, *args, original=PPO.loss):
        traced.append(len(traced))
        return original(self, *args)

    monkeypatch.setattr(PPO, "loss", loss)
    trainer = tiny()
    ts = jax.eval_shape(trainer.init, jax.random.key(0))
    jax.make_jaxpr(trainer.chunk)(ts, jnp.int32(3))
    assert len(traced) == 1

    def train(rate, key):  # with a hyper-parameter that is traced outside of the chunk
        swept = hyper.replace(trainer, {"learning_rate": rate})
        return swept.chunk(swept.init(key), 2)

    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    jax.make_jaxpr(jax.vmap(train))(jnp.array([1e-3, 1e-2]), keys)
    assert len(traced) == 2


def test_double_precision_is_refused():
    with jax.enable_x64(True), pytest.raises(UsageError, match="unset JAX_ENABLE_X64"):
        tiny().check()


def test_rollouts_that_cannot_fit_are_refused(monkeypatch):
    """By the bytes of what a step of an environment keeps, of all members and on all devices."""
    trainer = tiny(PPO(hidden=(4,), epochs=1), num_envs=1000, unroll=64)
    state, obs, action, reward, ends, key = 4 * 4 + 4, 4 * 4, 4, 4, 2, 8  # a state is x and t
    row = 2 * obs + action + (2 * 4) + reward + ends + key + state + obs  # 2 logits; fresh starts
    needed = 3 * 64_000 * row
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    trainer.check_memory(3, 1)
    monkeypatch.setattr(memory, "free_memory", lambda: needed // 2)
    message = "num_envs is 1000, whose rollouts of 64 steps need 0.0. GiB .* 400 would fit, or a"
    with pytest.raises(UsageError, match=message):
        trainer.check_memory(3, 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    trainer.check_memory(3, 2)  # each of two devices has half of it
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    trainer.check_memory(10**9, 1)


def test_the_program_has_no_conditional():
    """Under vmap a ``cond`` on a counter would run both of its branches."""
    trainer = tiny()
    ts = jax.eval_shape(trainer.init, jax.random.key(0))
    jaxpr = str(jax.make_jaxpr(trainer.iteration)(ts))
    assert "cond[" not in jaxpr and "callback" not in jaxpr


def test_evaluation_is_the_same_for_equal_keys_and_counts_whole_episodes():
    trainer = tiny()
    ts = trainer.init(jax.random.key(0))
    first = jax.jit(lambda ts: trainer.evaluate(ts, jax.random.key(1), 8))(ts)
    again = trainer.evaluate(ts, jax.random.key(1), 8)
    np.testing.assert_array_equal(first.lengths, again.lengths)
    np.testing.assert_allclose(first.returns, first.lengths)  # CartPole pays 1 a step
    assert first.lengths.min() >= 1 and first.lengths.max() <= 500


def test_evaluation_stops_at_the_time_limit():
    trainer = OnPolicy(PPO(hidden=(4,)), VectorEnv(make("probe/time_limit"), 2), unroll=4)
    result = trainer.evaluate(trainer.init(jax.random.key(0)), jax.random.key(0), 3)
    np.testing.assert_array_equal(result.lengths, 10)
    np.testing.assert_array_equal(result.returns, 10)


def test_hyper_parameters_are_replaced_wherever_they_live():
    trainer = tiny()
    new = hyper.replace(trainer, {"gamma": 0.5, "reward_scale": 2.0, "obs_clip": 3.0})
    assert new.agent.agent.agent.gamma == 0.5
    assert (new.agent.agent.reward_scale, new.agent.obs_clip) == (2.0, 3.0)
    with pytest.raises(UsageError, match="unknown hyper-parameter 'gama'; did you mean gamma"):
        hyper.replace(trainer, {"gama": 0.5})
    with pytest.raises(UsageError, match="minibatches makes shapes and cannot be swept"):
        hyper.replace(trainer, {"minibatches": 2})
    with pytest.raises(UsageError, match="target_kl is None.* first, as --agent.target-kl"):
        hyper.replace(trainer, {"target_kl": 0.02})


def test_agents_go_to_json_and_back():
    import json

    from jaxrl.record.policy import AGENTS

    agent = NormalizeObs(ScaleReward(PPO(hidden=(8, 4), target_kl=0.02), 0.1))
    config = json.loads(json.dumps(hyper.to_config(agent)))
    assert hyper.from_config(config, AGENTS) == agent
    with pytest.raises(UsageError, match="unknown agent class 'PPOO'; did you mean PPO"):
        hyper.from_config(config | {"class": "PPOO"}, AGENTS)
    with pytest.raises(UsageError, match="NormalizeObs has no hyper-parameter 'obs_clipp'; did"):
        hyper.from_config(config | {"obs_clipp": 3.0}, AGENTS)
    for lacking, message in ({}, "class None"), ({"class": "NormalizeObs"}, "needs 'agent'"):
        with pytest.raises(UsageError, match=message):
            hyper.from_config(lacking, AGENTS)


def test_outside_of_shards_the_reductions_are_the_identity():
    key = jax.random.key(0)
    with reducing_over(None):
        assert shard_key(key) == key


def test_an_agent_is_a_frozen_pytree():
    agent = PPO()
    assert len(jax.tree.leaves(agent)) == len(hyper.numbers(agent))
    with pytest.raises(dataclasses.FrozenInstanceError):
        agent.gamma = 0.5
