"""The trainer: states are arrays, chunks add up, and everything vmaps."""

from __future__ import annotations

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared import assert_same_bits, bits

import jaxrl
from jaxrl import (
    BC,
    DQN,
    DSACT,
    PPO,
    PQN,
    SAC,
    TD3,
    NormalizeObs,
    Offline,
    OffPolicy,
    OnPolicy,
    ScaleReward,
    UsageError,
    VectorEnv,
    hyper,
    make,
    memory,
)
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.config import from_config, to_config
from jaxrl.counters import counter_value
from jaxrl.data import Dataset, Mixed, UniformReplay
from jaxrl.envs.probe import Both
from jaxrl.nn.critics import Critic, QNetwork, ValueFunction
from jaxrl.nn.encoders import CNN, Flatten
from jaxrl.nn.policies import AutoPolicy, Categorical, Deterministic, TanhGaussian
from jaxrl.optim import Adam
from jaxrl.record.rows import Member, Position, evaluation_rows
from jaxrl.training.evaluate import evaluate, step_key
from jaxrl.types import Step

DISCRETE = ("DQN", "DiscreteCQL", "PQN")
AGENTS = [
    name
    for name, each in vars(jaxrl).items()
    if hasattr(each, "learns_from") and hasattr(each, "bind") and name != "FQE"
]
SWEPT = {
    "learning_rate": jnp.array([1e-3, 3e-3]),
    "clip_eps": jnp.array([0.1, 0.3]),
    "entropy_coef": jnp.array([0.0, 0.1]),
    "gamma": jnp.array([0.9, 0.99]),
}


def ppo(width=4, epochs=1, minibatches=1, **policy):
    """PPO with networks of one small layer."""
    sizes = {"hidden_dims": (width,), "activation": "tanh", "initializer": "orthogonal"}
    policy = AutoPolicy(head_scale=0.01, **sizes | policy)
    critic = ValueFunction(**sizes)
    return PPO(policy, critic, update_epochs=epochs, num_minibatches=minibatches)


def tiny(agent=None, num_envs=4, num_steps=8):
    agent = agent or NormalizeObs(ScaleReward(ppo(8, epochs=2, minibatches=2), 0.1))
    return OnPolicy(agent, VectorEnv(make("gymnax/CartPole-v1"), num_envs), num_steps=num_steps)


def test_no_array_of_a_first_state_is_two_leaves():
    """It could not be donated."""
    pendulum = VectorEnv(make("gymnax/Pendulum-v1"), 2)
    agents = [DSACT(likelihood=True), SAC(), TD3()]
    states = [agent.bind(pendulum.spec).init(jax.random.key(0)) for agent in agents]
    for state in (tiny().init(jax.random.key(0)), *states):
        is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)]
        leaves = zip(jax.tree.leaves(state), is_key, strict=True)
        where = [x.unsafe_buffer_pointer() for x, key in leaves if x.size and not key]
        assert len(set(where)) == len(where)


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


PQN_AGENT = PQN(
    q_network=QNetwork(hidden_dims=(8,)),
    update_epochs=2,
    num_minibatches=2,
    epsilon_decay_steps=8.0,
    lr_decay_steps=12.0,
)


@pytest.mark.exact
@pytest.mark.parametrize(
    "agent", [None, pytest.param(PQN_AGENT, marks=pytest.mark.slow)], ids=["PPO", "PQN"]
)
def test_chunks_equal_the_whole_bit_for_bit_and_compile_once(agent):
    trainer = tiny(agent)
    whole, history = jax.jit(lambda k: trainer.train(k, 10 * 32))(jax.random.key(0))
    chunk = jax.jit(trainer.chunk)
    ts = jax.jit(trainer.init)(jax.random.key(0))
    episodes = 0.0
    for iterations in (3, 1, 4, 2):
        ts, metrics = chunk(ts, (), jnp.int32(iterations))
        episodes += float(metrics["episodes"].total)
    assert chunk._cache_size() == 1
    assert_same_bits(ts, whole)
    assert episodes == float(history["episodes"].sum()) > 0
    assert counter_value(ts.env_steps) == 320 and ts.iterations == 10
    assert counter_value(ts.gradient_steps) == 10 * 4


@pytest.mark.exact
def test_metrics_add_up_in_any_grouping_and_know_when_there_was_nothing():
    trainer = tiny()
    ts = trainer.init(jax.random.key(0))
    _, rows = jax.lax.scan(lambda ts, _: trainer.iteration(ts), ts, length=12)
    _, reduced = trainer.chunk(ts, (), 12)
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
    params = both.agent.agent.networks.params
    assert all(leaf.shape[:2] == (2, 3) for leaf in jax.tree.leaves(params))
    kernels = params["policy"]["network"]["layer_0"]["kernel"].reshape(6, -1)
    assert len(np.unique(kernels, axis=0)) == 6  # configurations and seeds all differ

    def go_on(values, ts):
        return hyper.replace(trainer, values).chunk(ts, (), 2)[0]

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


@pytest.mark.parametrize("reset_mode", ["fresh", "pool"])
def test_no_key_is_used_twice(reset_mode):
    """With discrete actions and with squashed ones, in training and in evaluation."""
    squashed = ppo(squash=True, std="softplus")
    discrete = NormalizeObs(ScaleReward(ppo(8, epochs=2, minibatches=2), 0.1))
    fresh = reset_mode == "fresh"
    agent, env = (discrete, "CartPole-v1") if fresh else (squashed, "Pendulum-v1")
    venv = VectorEnv(make(f"gymnax/{env}"), 2, reset_mode, pool_size=3)
    trainer = OnPolicy(agent, venv, num_steps=4)
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
    env = Splitting()
    agent = ppo().bind(env.spec)
    state = agent.init(key)
    keys = jax.random.split(key, 2)
    found = jax.jit(lambda: evaluate(agent, state, env, keys, max_steps=64))()
    assert found.lengths.tolist() == [64, 64] and found.returns.tolist() == [0, 0]
    inner, _ = env.reset(key)
    for t in range(8):
        act_key, env_key = jax.random.split(step_key(key, jnp.int32(t)))
        for each in (act_key, env_key, step_key(key, jnp.int32(t))):
            assert env.step(each, inner, jnp.int32(0))[1].reward == 0
    assert env.step(jax.random.fold_in(key, 3), inner, jnp.int32(0))[1].reward == 0
    assert env.step(jax.random.split(split)[1], inner, jnp.int32(0))[1].reward == 1


class Breaking(Both):
    """Pays 1 a step and ends after five; the third step of some episodes is not finite."""

    def reset(self, key):
        return (jnp.int32(0), jax.random.bernoulli(key)), jnp.ones(1)

    def step(self, key, state, action):
        t, breaks = state
        reward = jnp.where(breaks & (t == 2), jnp.nan, 1.0)
        return (t + 1, breaks), Step(jnp.ones(1), reward, t == 4, jnp.bool_(False), {})


def test_an_evaluation_episode_that_is_not_finite_ends_there_without_that_reward():
    env = Breaking()
    agent = ppo().bind(env.spec)
    state, keys = agent.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 64)
    found = jax.jit(lambda: evaluate(agent, state, env, keys, max_steps=9))()
    breaks = np.asarray(jax.vmap(env.reset)(keys)[0][1])
    assert 0 < breaks.sum() < 64
    np.testing.assert_array_equal(found.finite, ~breaks)
    np.testing.assert_array_equal(found.returns, np.where(breaks, 2.0, 5.0))
    np.testing.assert_array_equal(found.lengths, np.where(breaks, 3, 5))
    one = jax.tree.map(lambda x: np.asarray(x)[None], found)
    (row,) = evaluation_rows([Member(0, {}, 0)], one, Position(0, 0, 0))
    assert row["nonfinite_episodes"] == breaks.sum()


def test_a_chunk_traces_the_loss_once_and_metrics_are_those_of_the_step(monkeypatch):
    traced = []

    def loss(self, *args, original=PPO.loss):
        traced.append(len(traced))
        return original(self, *args)

    monkeypatch.setattr(PPO, "loss", loss)
    trainer = tiny()
    ts = jax.eval_shape(trainer.init, jax.random.key(0))
    jax.make_jaxpr(trainer.chunk)(ts, (), jnp.int32(3))
    assert len(traced) == 1

    def train(rate, key):  # with a hyper-parameter that is traced outside of the chunk
        swept = hyper.replace(trainer, {"learning_rate": rate})
        return swept.chunk(swept.init(key), (), 2)

    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    jax.make_jaxpr(jax.vmap(train))(jnp.array([1e-3, 1e-2]), keys)
    assert len(traced) == 2


def test_double_precision_is_refused():
    trainer = tiny()
    for refuse in (trainer.check, lambda: trainer.init(jax.random.key(0))):
        with jax.enable_x64(True), pytest.raises(UsageError, match="unset JAX_ENABLE_X64"):
            refuse()


def test_rollouts_that_cannot_fit_are_refused(monkeypatch):
    """By the bytes of what a step of an environment keeps, of all members and on all devices."""
    trainer = tiny(ppo(), num_envs=1000, num_steps=64)
    state, obs, action, reward, ends, key = 4 * 4 + 4, 4 * 4, 4, 4, 2, 8  # a state is x and t
    trace = 4 + 4  # the index again, and its log-probability
    row = 2 * obs + action + trace + reward + ends + key + state + obs  # with fresh starts
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
    jaxpr = str(jax.make_jaxpr(lambda ts: trainer.iteration(ts))(ts))
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
    trainer = OnPolicy(ppo(), VectorEnv(make("probe/time_limit"), 2), num_steps=4)
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
    with pytest.raises(UsageError, match="num_minibatches is static and cannot be swept"):
        hyper.replace(trainer, {"num_minibatches": 2})
    with pytest.raises(UsageError, match="target_kl is None.* first, as --agent.target-kl"):
        hyper.replace(trainer, {"target_kl": 0.02})


def test_agents_go_to_json_and_back():
    import json

    parts = (NormalizeObs, ScaleReward, PPO, AutoPolicy, ValueFunction, Flatten, Adam)
    classes = {each.__name__: each for each in parts}
    agent = NormalizeObs(ScaleReward(dataclasses.replace(ppo(8), target_kl=0.02), 0.1))
    config = json.loads(json.dumps(to_config(agent)))
    assert from_config(config, classes) == agent
    spec = make("gymnax/CartPole-v1").spec
    bound = PPO(policy=Categorical()).bind(spec)  # what ``bind`` finds out is not recorded
    again = from_config(to_config(bound), classes | {"Categorical": Categorical})
    assert again == PPO(policy=Categorical()) and again.bind(spec) == bound
    with pytest.raises(UsageError, match="unknown agent class 'PPOO'; did you mean PPO"):
        from_config(config | {"class": "PPOO"}, classes)
    with pytest.raises(UsageError, match="NormalizeObs has no hyper-parameter 'obs_clipp'; did"):
        from_config(config | {"obs_clipp": 3.0}, classes)
    for lacking, message in ({}, "class None"), ({"class": "NormalizeObs"}, "needs 'agent'"):
        with pytest.raises(UsageError, match=message):
            from_config(lacking, classes)


def test_an_agent_is_a_frozen_pytree():
    agent = PPO()
    assert len(jax.tree.leaves(agent)) == len(hyper.numbers(agent))
    with pytest.raises(dataclasses.FrozenInstanceError):
        agent.gamma = 0.5


# --- counters and phases ------------------------------------------------------------------------

SMALL = {"policy": TanhGaussian(hidden_dims=(8,)), "critic": Critic(hidden_dims=(8,))}


def pendulum(num_envs=2):
    return VectorEnv(make("gymnax/Pendulum-v1"), num_envs, max_steps=7)


def offline(agent=None, **options):
    return Offline(agent or SAC(**SMALL), pendulum(), batch_size=8, **{"num_updates": 4} | options)


def online(agent=None, **options):
    sizes = {"buffer_size": 120, "batch_size": 8, "learning_starts": 20, "cycles": 6}
    return OffPolicy(agent or SAC(**SMALL), pendulum(), **sizes | options)


def dataset(rows=20):
    """Of random numbers."""
    rng = np.random.default_rng(0)
    obs, next_obs = jnp.array(rng.normal(size=(2, rows, 3)), jnp.float32)
    action = jnp.array(rng.uniform(-1, 1, (rows, 1)), jnp.float32)
    ends = jnp.arange(rows) % 7 == 6
    return Dataset.of(
        obs, action, jnp.array(rng.normal(size=rows), jnp.float32), next_obs, ends, ~ends
    )


def counts(ts):
    return counter_value(ts.env_steps), counter_value(ts.gradient_steps), int(ts.iterations)


def test_three_counters():
    """Environment steps, gradient steps and iterations, of all trainers."""
    key = jax.random.key(0)
    on = tiny()
    assert counts(jax.jit(lambda: on.train(key, 3 * 32)[0])()) == (96, 3 * 2 * 2, 3)
    off = online(TD3(**SMALL | {"policy": TD3().policy}), num_steps=2, num_updates=4)
    assert counts(jax.jit(off.init)(key)) == (off.first_step, 0, 0) == (20, 0, 0)
    done = jax.jit(lambda: off.train(key, 21)[0])()
    assert counts(done) == (20 + 6 * 2 * 2, 6 * 4, 1)
    data, clone = dataset(), offline(BC())
    assert counts(jax.jit(clone.init)(key, data)) == (0, 0, 0)
    ts, metrics = jax.jit(lambda data: clone.train(key, 9, data))(data)  # of gradient steps
    assert counts(ts) == (0, 12, 3) and metrics["policy_loss"].shape == (3,)
    assert (clone.unit, clone.units_per_iteration, clone.iterations(9)) == ("gradient_steps", 4, 3)
    assert (off.unit, off.units_per_iteration) == ("env_steps", 24)


@pytest.mark.exact
def test_offline_training_depends_on_its_data_and_chunks_equal_the_whole():
    trainer, data, key = offline(), dataset(), jax.random.key(1)
    train = jax.jit(lambda data: trainer.train(key, 5 * 4, data)[0])
    whole = train(data)
    chunk = jax.jit(trainer.chunk)
    ts = jax.jit(trainer.init)(key, data)
    for count in (2, 3):
        ts, _ = chunk(ts, data, jnp.int32(count))
    assert chunk._cache_size() == 1
    assert_same_bits(ts, whole)
    other = train(data._replace(reward=data.reward + 1.0))
    critics = (jax.tree.leaves(ts.agent.critic.params)[0] for ts in (whole, other))
    assert np.any(np.not_equal(*critics))


@pytest.mark.parametrize("sampler", [None, Mixed()])
def test_a_second_phase_goes_on_with_agent_key_and_counters(sampler):
    """Environments, carry and buffer begin anew, and their content is that phase's alone."""
    first, second, data = offline(), online(sampler=sampler), dataset()
    before = jax.jit(lambda: first.train(jax.random.key(0), 12, data)[0])()
    needed = data if sampler else ()
    ts = jax.jit(second.continue_from)(before, needed)
    assert counts(before) == (0, 12, 3) and counts(ts) == (20, 12, 0)
    assert_same_bits(ts.agent, before.agent)
    assert np.any(jax.random.key_data(ts.key) != jax.random.key_data(before.key))
    fresh = jax.jit(second.init)(jax.random.key(0), needed)
    assert jax.tree.structure(ts) == jax.tree.structure(fresh)
    assert (ts.store.reward[:10] != 0).all() and (ts.store.reward[10:] == 0).all()
    iteration = jax.jit(second.iteration)
    for index in range(2):
        ts, metrics = iteration(ts, needed)
        held = 10 + 6 * (index + 1)
        assert (ts.store.reward[:held] != 0).all() and (ts.store.reward[held:] == 0).all()
    assert counts(ts) == (20 + 24, 12 + 12, 2)
    assert np.isfinite(m.values(metrics)["critic_loss"])
    # Another agent state, other bits; the same state and key, the same.
    again = jax.jit(second.continue_from)(before, needed)
    assert_same_bits(jax.jit(second.continue_from)(before, needed), again)


def test_a_phase_of_environments_after_another_adds_its_warm_up():
    trainer = online()
    ts = jax.jit(trainer.init)(jax.random.key(0))
    ts, _ = jax.jit(trainer.iteration)(ts)
    again = jax.jit(trainer.continue_from)(ts)
    assert counts(ts) == (32, 6, 1) and counts(again) == (52, 6, 0)
    assert (again.store.reward[10:] == 0).all() and np.any(again.env.obs != ts.env.obs)


CARTPOLE = VectorEnv(make("gymnax/CartPole-v1"), 4)
REFUSED = {
    "no dataset": (offline, {}, (), "UniformDataset samples from a dataset, and there is none; .*"),
    "no dataset online": (
        online,
        {"sampler": Mixed()},
        (),
        "Mixed samples from a dataset, and there.*",
    ),
    "no transitions": (offline, {}, dataset(0), "the dataset has no transitions; .*"),
    "no Dataset": (
        offline,
        {},
        {"obs": jnp.zeros(3)},
        "data is a dict; give a jaxrl.data.Dataset",
    ),
    "no buffer": (
        offline,
        {"sampler": UniformReplay()},
        dataset(),
        "UniformReplay samples from a replay buffer, and Offline has none; give UniformDataset",
    ),
    "a mixture offline": (
        offline,
        {"sampler": Mixed()},
        dataset(),
        "Mixed samples from a replay .*",
    ),
    "two n_steps": (
        online,
        {"n_step": 3, "sampler": Mixed()},
        dataset(),
        "n_step is 3, and Mixed says itself how many rewards it sums; leave n_step out",
    ),
    "too few steps before learning": (
        online,
        {"learning_starts": 2, "sampler": Mixed(online=UniformReplay(4))},
        dataset(),
        "learning_starts is 2; n_step 4 needs 8",
    ),
    "part of a reward": (
        online,
        {"sampler": Mixed(online=UniformReplay(1.5))},
        dataset(),
        "n_step is 1.5; it must be an integer",
    ),
    "a delay that does not divide": (
        offline,
        {"agent": SAC(policy_delay=3)},
        dataset(),
        "num_updates is 4, and policy_delay 3; it must be a multiple, as 6",
    ),
    "minibatches": (
        tiny,
        {"agent": ppo(minibatches=5)},
        (),
        "num_minibatches is 5, .* 32 transitions",
    ),
    "a number": (
        tiny,
        {"agent": dataclasses.replace(ppo(), gamma=1.5)},
        (),
        "gamma is 1.5; it must be",
    ),
    "a size": (tiny, {"num_steps": 0}, (), "num_steps is 0; it must be at least 1"),
}


@pytest.mark.parametrize(("make", "options", "data", "words"), REFUSED.values(), ids=REFUSED)
def test_init_and_train_refuse_what_cannot_work_in_one_line(make, options, data, words):
    trainer, key = make(**options), jax.random.key(0)
    for attempt in (
        lambda: trainer.init(key, data),
        lambda: trainer.train(key, 10_000, data),
        lambda: jax.jit(trainer.init)(key, data),
    ):
        with pytest.raises(UsageError, match=words) as error:
            attempt()
        assert "\n" not in str(error.value)


REFUSED_WHEN_MADE = {
    "SAC on policy": (OnPolicy, SAC(), "SAC learns from batches .* OffPolicy"),
    "a wrapped one": (
        OnPolicy,
        NormalizeObs(ScaleReward(DQN())),
        "DQN learns from batches of transitions; train it with OffPolicy or Offline",
    ),
    "PPO off policy": (OffPolicy, PPO(), "PPO learns from its own rollouts; .*"),
    "PQN offline": (Offline, PQN(), "PQN learns from its own rollouts; .*"),
    "a class": (OnPolicy, PPO, r"agent is the class PPO; give an instance, as PPO\(\)"),
    "a wrapped class": (OnPolicy, NormalizeObs(ScaleReward(PPO)), "agent is the class PPO; give"),
    "widths": (
        OnPolicy,
        PPO(policy=AutoPolicy(hidden_dims=8)),
        "policy.hidden_dims is 8; it must be a tuple of integers, as",
    ),
    "filters": (
        OnPolicy,
        PPO(policy=AutoPolicy(encoder=CNN(filters=None))),
        "policy.encoder.filters is None; it must be a tuple of integers, as",
    ),
    "no part": (OnPolicy, PPO(critic=None), r"critic is a NoneType; .* as ValueFunction\(\)"),
    "a critic of actions": (
        OnPolicy,
        PPO(critic=Critic()),
        r"critic is a Critic; .* called with \(params, obs\), as ValueFunction\(\)",
    ),
    "a critic of states": (
        OffPolicy,
        SAC(critic=ValueFunction()),
        r"critic is a ValueFunction; .* with \(params, obs, action\), as Critic\(\)",
    ),
    "a policy as critic": (OffPolicy, TD3(critic=Deterministic()), "critic is a Deterministic; .*"),
    "a class as part": (OnPolicy, PPO(policy=AutoPolicy), r"policy is a class; .* AutoPolicy\(\)"),
    "optax": (
        OnPolicy,
        PPO(optimizer=optax.adam(1e-3)),
        r"optimizer is a GradientTransformation.*; it must be a part, as Adam\(\)",
    ),
}


@pytest.mark.parametrize(
    ("kind", "agent", "words"), REFUSED_WHEN_MADE.values(), ids=REFUSED_WHEN_MADE
)
def test_trainers_refuse_agents_that_they_cannot_train_when_made(kind, agent, words):
    """Before ``run``, ``train``, ``init`` or a loop over ``iteration`` could begin."""
    with pytest.raises(UsageError, match=words) as error:
        kind(agent, CARTPOLE)
    assert "\n" not in str(error.value)


def test_an_environment_that_is_no_vector_of_them_is_refused():
    words = r"env is a _?\w+; give a vector of them, as VectorEnv\(env, 8\)"
    with pytest.raises(UsageError, match=words):
        OnPolicy(PPO(), make("gymnax/CartPole-v1"))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (1e4, "steps is 10000.0; it must be an integer"),
        (True, "steps is True; it must be an integer"),
        (None, "steps is None; it must be an integer"),
        ("100", "steps is '100'; it must be an integer"),
        (0, "steps is 0; it must be at least 1"),
        (-5, "steps is -5; it must be at least 1"),
    ],
)
def test_train_counts_in_whole_steps(steps, words):
    with pytest.raises(UsageError, match=words):
        tiny().train(jax.random.key(0), steps)


def test_train_refuses_what_cannot_fit_in_memory_even_once(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000)
    for trainer, words in [(tiny(), "num_envs is 4, whose"), (online(), "buffer_size is 120, ")]:
        with pytest.raises(UsageError, match=words):
            trainer.train(jax.random.key(0), 1_000)


def test_evaluations_are_of_whole_episodes():
    with pytest.raises(UsageError, match="episodes is 2.0; it must be an integer"):
        tiny().evaluate(None, jax.random.key(0), 2.0)
    with pytest.raises(UsageError, match="mode is 'Greedy'; did you mean greedy"):
        tiny().evaluate(None, jax.random.key(0), 2, "Greedy")


@pytest.mark.parametrize("key", [0, jax.random.PRNGKey(0)], ids=["integer", "untyped"])
def test_keys_are_typed(key):
    for trainer in (tiny(), online()):
        with pytest.raises(UsageError, match=r"key is .*; give a typed key, as jax.random.key"):
            trainer.train(key, 1_000)


@pytest.mark.parametrize("name", AGENTS)
def test_trainers_are_trees_of_whatever_jax_puts_there(name):
    """Stacks of trainers for ``vmap``, axes of its arguments, and shapes."""
    agent = getattr(jaxrl, name)()
    env = VectorEnv(make("gymnax/CartPole-v1" if name in DISCRETE else "gymnax/Pendulum-v1"), 2)
    on_policy = protocol.learns_from(agent) == "rollouts"
    trainer = OnPolicy(agent, env) if on_policy else OffPolicy(agent, env)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), trainer, trainer)
    jax.tree.map(lambda _: 0, trainer)
    jax.tree.map(lambda _: None, trainer)
    assert jax.tree.structure(jax.eval_shape(lambda x: x, stacked)) == jax.tree.structure(trainer)


def test_a_stack_of_trainers_trains():
    one = online(SAC(policy=TanhGaussian(hidden_dims=(4,)), critic=Critic(hidden_dims=(4,))))
    other = hyper.replace(one, {"policy.initial_std": 0.5})
    both = jax.tree.map(lambda *x: jnp.stack(x), one, other)
    _, metrics = jax.jit(jax.vmap(lambda each: each.train(jax.random.key(0), 60)))(both)
    assert np.isfinite(metrics["critic_loss"][:, -1]).all()
    assert metrics["critic_loss"][0, -1] != metrics["critic_loss"][1, -1]


def test_a_swept_lower_bound_of_another_number_is_traced():
    """The check that the one does not exceed the other is for concrete numbers."""
    agent = TD3(exploration_noise_max=0.4, policy=Deterministic(hidden_dims=(8,)))

    def init(noise):
        return online(dataclasses.replace(agent, exploration_noise=noise)).init(jax.random.key(0))

    jax.eval_shape(jax.vmap(init), jnp.array([0.1, 0.2]))
