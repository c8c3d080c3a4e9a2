"""Memory: what an agent carries from step to step, in rollouts, updates and evaluations."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrent import Recurrent
from shared import assert_same_bits

from jaxrl import PPO, NormalizeObs, OnPolicy, VectorEnv, hyper, make
from jaxrl.training.rollout import rollout

KEY = jax.random.key(0)
COMPILER = {"xla_backend_optimization_level": 0}


def trainer_of(agent, env="probe/memory", *, num_envs, num_steps, **options):
    trainer = OnPolicy(agent, VectorEnv(make(env, **options), num_envs), num_steps=num_steps)
    trainer.check()
    return trainer


def one(**options):
    """A recurrent agent that makes one gradient step on a whole rollout."""
    return Recurrent(update_epochs=1, num_minibatches=1, width=8, **options)


# --- what memory is for -------------------------------------------------------------------------


@pytest.mark.parametrize("continuous", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_cue_is_remembered_by_a_recurrent_agent_and_not_by_a_feed_forward_one(continuous):
    """The greedy returns of 256 episodes: the optimum, and chance."""

    def returns(agent, steps):
        trainer = trainer_of(agent, num_envs=32, num_steps=32, continuous=continuous)
        ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, steps)
        evaluate = jax.jit(trainer.evaluate, static_argnums=2)
        done = evaluate(ts, jax.random.key(1), 256)
        np.testing.assert_array_equal(done.lengths, 5)
        return np.asarray(done.returns)

    remembered = returns(Recurrent(learning_rate=1e-2), 30_000)
    assert remembered.min() > 0.9
    forgotten = returns(PPO(learning_rate=3e-3), 15_000)
    if continuous:  # the best blind action earns 3 / 4
        assert forgotten.mean() < 0.8
    else:  # 1 or -1, as the cue has it: four standard deviations around 0
        assert abs(forgotten.mean()) < 0.25


# --- the replay of the recurrence ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "continuous"),
    [(lambda agent: agent, False), (NormalizeObs, True)],
    ids=["discrete", "continuous-normalised"],
)
def test_replayed_log_probabilities_are_those_of_acting(wrap, continuous):
    """On the first rollout, and on those that begin in the middle of episodes."""
    trainer = trainer_of(wrap(one()), num_envs=6, num_steps=7, continuous=continuous)
    iteration = jax.jit(trainer.iteration, compiler_options=COMPILER)
    ts = jax.jit(trainer.init, compiler_options=COMPILER)(KEY)
    for _ in range(3):
        ts, metrics = iteration(ts)
        assert metrics["log_ratio"].value < 1e-5
        assert np.abs(ts.carry).max() > 0

    @functools.partial(jax.jit, compiler_options=COMPILER)
    def log_ratio(ts, factor):
        """Of an update whose replay begins with the memory times ``factor``."""
        arguments = trainer.agent, ts.agent, trainer.env, ts.env, ts.carry, KEY
        _, _, batch, _ = rollout(*arguments, 7)
        batch = batch._replace(carry=factor * batch.carry)
        return trainer.agent.update(ts.agent, batch, KEY)[1]["log_ratio"].value

    assert log_ratio(ts, 1.0) < 1e-5 < 1e-4 < log_ratio(ts, 0.0)


def test_a_rollout_keeps_the_memory_before_its_first_step_and_the_next_goes_on_from_its_end():
    trainer = trainer_of(one(), num_envs=4, num_steps=3)
    ts = trainer.init(KEY)

    @jax.jit
    def play(env, carry):
        return rollout(trainer.agent, ts.agent, trainer.env, env, carry, KEY, 3)[:3]

    env, carry, first = play(ts.env, ts.carry)
    np.testing.assert_array_equal(first.carry, ts.carry)
    _, _, second = play(env, carry)
    np.testing.assert_array_equal(second.carry, carry)
    assert carry.shape == (4, 8) and (carry != ts.carry).all()


# --- restarts -----------------------------------------------------------------------------------


class Clock(NamedTuple):
    """What ``Counting`` carries: steps since the start, and a number drawn there."""

    steps: jax.Array
    drawn: jax.Array


@hyper.dataclass
class Counting:
    """Counts its steps since the memory was started; acts by nothing else, and shows it."""

    learns_from = "rollouts"

    def bind(self, spec):
        return self

    def init(self, key):
        return jnp.zeros(())

    def init_carry(self, key, n):
        return Clock(jnp.zeros(n, jnp.int32), jax.random.uniform(key, (n,)))

    def act(self, state, carry, obs, key, mode):
        action = carry.steps % 2
        return action, carry._replace(steps=carry.steps + 1), {"carry": carry}

    def update(self, state, rollout, key):
        return state + 1.0, {}


@pytest.mark.parametrize("cut", [1, 2, 12])
def test_memory_restarts_where_an_episode_ended_and_nowhere_else(cut):
    """Episodes of every length up to 4 in one rollout of 12 steps, or in several shorter ones."""
    trainer = trainer_of(Counting(), "probe/termination", num_envs=8, num_steps=12 // cut, length=4)
    ts = trainer.init(KEY)
    age = jnp.arange(8) % 4  # how far the environments are into their episodes
    env = ts.env._replace(inner=ts.env.inner - age, steps=age)
    carry, seen = ts.carry._replace(steps=age), []
    for key in jax.random.split(KEY, cut):
        arguments = trainer.agent, ts.agent, trainer.env, env, carry, key
        env, carry, batch, _ = rollout(*arguments, 12 // cut)
        seen.append((batch.extras["carry"], batch.terminated))
    carried, ended = jax.tree.map(lambda *x: np.concatenate(x), *seen)
    np.testing.assert_array_equal(carried.steps, (np.arange(12)[:, None] + age) % 4)
    np.testing.assert_array_equal(ended, carried.steps == 3)
    # A start of its own for every environment and episode, kept as long as the episode lasts.
    changed = carried.drawn[1:] != carried.drawn[:-1]
    np.testing.assert_array_equal(changed, ended[:-1])
    assert len(np.unique(carried.drawn)) == 8 + ended[:-1].sum()


def test_a_time_limit_restarts_memory_too():
    trainer = trainer_of(Counting(), "probe/time_limit", num_envs=2, num_steps=8, max_steps=3)
    ts = trainer.init(KEY)
    _, carry, batch, _ = rollout(trainer.agent, ts.agent, trainer.env, ts.env, ts.carry, KEY, 8)
    assert not batch.terminated.any() and batch.truncated.any()
    np.testing.assert_array_equal(batch.extras["carry"].steps[:, 0], [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(carry.steps, 2)


@dataclasses.dataclass(frozen=True)
class Alternate:
    """Rewards the action that ``Counting`` takes at each step of an episode, for ``length``."""

    env: object
    name = "test/alternate"
    cheap = True

    @property
    def spec(self):
        return self.env.spec

    def reset(self, key):
        return self.env.reset(key)

    def step(self, key, state, action):
        taken = self.env.length - state
        state, step = self.env.step(key, state, action)
        return state, step._replace(reward=jnp.where(action == taken % 2, 1.0, -10.0))


@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_evaluations_begin_with_fresh_memory_and_carry_it_on(mode):
    env = Alternate(make("probe/termination", length=5))
    trainer = OnPolicy(Counting(), VectorEnv(env, 4), num_steps=3)
    ts, _ = trainer.iteration(trainer.init(KEY))
    assert (ts.carry.steps == 3).all()
    done = trainer.evaluate(ts, jax.random.key(1), 6, mode)
    np.testing.assert_array_equal(done.returns, 5.0)
    np.testing.assert_array_equal(done.lengths, 5)


# --- programs -----------------------------------------------------------------------------------


@hyper.dataclass
class EmptyCarry(PPO):
    """PPO that says that it has no memory."""

    def init_carry(self, key, n):
        return ()


@hyper.dataclass
class UnusedCarry(PPO):
    """PPO with a memory that it does not use."""

    def init_carry(self, key, n):
        return jnp.zeros(n)


def test_an_empty_carry_compiles_to_the_same_program_as_none():
    def programs(kind):
        agent = kind(update_epochs=1, num_minibatches=1)
        trainer = trainer_of(NormalizeObs(agent), num_envs=4, num_steps=4)
        ts = jax.eval_shape(trainer.init, KEY)
        evaluate = jax.jit(trainer.evaluate, static_argnums=2)
        lowered = (
            jax.jit(trainer.init).lower(KEY),
            jax.jit(trainer.iteration).lower(ts),
            evaluate.lower(ts, KEY, 4),
        )
        return [program.as_text() for program in lowered]

    none, empty, unused = map(programs, (PPO, EmptyCarry, UnusedCarry))
    assert none == empty
    assert all(a != b for a, b in zip(none, unused, strict=True))  # or nothing was compared


def test_chunks_equal_the_whole_bit_for_bit():
    """Of 4 iterations, which cut episodes: 1 + 3, and 4; the memory is a part of the state."""
    trainer = trainer_of(Recurrent(width=8), num_envs=4, num_steps=7)
    init = jax.jit(jax.vmap(trainer.init))
    chunk = jax.jit(jax.vmap(trainer.chunk, (0, None, None, None)))
    start = init(jax.random.split(KEY, 2))
    whole, _ = chunk(start, (), jnp.int32(4), jnp.int32(0))
    half, _ = chunk(start, (), jnp.int32(1), jnp.int32(0))
    assert np.abs(half.carry).max() > 0
    again, _ = chunk(half, (), jnp.int32(3), jnp.int32(1))
    assert_same_bits(again, whole)
    forgetful, _ = chunk(half._replace(carry=start.carry), (), jnp.int32(3), jnp.int32(1))
    assert not np.array_equal(forgetful.carry, whole.carry)
