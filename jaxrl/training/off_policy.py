"""Off-policy training: steps into a replay ring, gradient steps on batches out of it, and on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import hyper
from jaxrl import metrics as m
from jaxrl.counters import counter_add, counter_zero
from jaxrl.data.replay import Ring, check_memory
from jaxrl.envs.vector import Draws, VectorState
from jaxrl.sharding import shard_count, shard_key
from jaxrl.training.rollout import play
from jaxrl.training.rounds import Rounds
from jaxrl.types import (
    Array,
    Discrete,
    Extras,
    Key,
    PyTree,
    TrainState,
    Transition,
)

UNTOLD = "nonfinite"  # beside the ring: non-finite steps [1, N] of the prefill, until reported


@struct.dataclass
class OffPolicy(Rounds):
    """Rounds of ``unroll`` steps of every environment and ``updates`` gradient steps.

    With one environment, ``unroll=1`` and ``updates=1`` this is the schedule of the papers; with
    thousands of environments and large batches it is the massively parallel one. An iteration is
    several rounds, whose random numbers are drawn at once. Before the first, ``prefill`` steps fill
    the ring. Agents whose actor steps less often than their critics (``agent.delay``) do so on a
    schedule that is part of the program: ``updates`` must be a multiple of the delay or divide it.
    Rounds between which the policy stays the same are made as one: all steps, then all updates.
    The sizes are documented where they are, in ``jaxrl.training.rounds.Rounds``.
    """

    def check_memory(self, members: int, devices: int) -> str:
        """The rings' memory, in words.

        Raises:
            UsageError: if it cannot fit.
        """
        needed = members * self.replay.nbytes(self._example())
        check_memory(needed, self.capacity, devices)
        return f"replay: {members} x {self.capacity:,} transitions in {needed / 2**30:.2f} GiB"

    def _example(self) -> Any:
        """The shapes of one step's transitions ``[N, ...]``."""

        def one(key: Key) -> Transition:
            keys = jax.random.split(key, 5)
            state = self.agent.init(keys[0], self.env.spec)
            env_state = self.env.reset(keys[1])
            draws, noise = self.env.draw(keys[2], 1), self._uniform(keys[3], 1)
            _, transitions, _ = play(self._random, self.env, env_state, noise, draws)
            action, _ = self.agent.act(state, env_state.obs, keys[4], "explore")
            return jax.tree.map(lambda x: x[0], transitions._replace(action=action[None]))

        return jax.eval_shape(one, jax.random.key(0))

    # Training

    def start(self, key: Key) -> TrainState:
        """Fresh networks and environments, and a ring with the prefill."""
        agent_key, env_key, fill_key, key = jax.random.split(key, 4)
        agent = self.agent.init(agent_key, self.env.spec)
        env = self.env.reset(env_key)
        ring = self.replay.empty(self._example())
        agent, env, ring, nonfinite = self._fill(agent, env, ring, fill_key)
        untold = jnp.zeros((1, self.env.local_envs)).at[0, 0].set(nonfinite)
        return TrainState(
            agent=agent,
            env=env,
            replay=ring._replace(extras={UNTOLD: untold}),
            key=key,
            env_steps=counter_add(counter_zero(), self.first_step),
            updates=jnp.int32(0),
        )

    def _fill(
        self, agent: PyTree, env: VectorState, ring: Ring, key: Key
    ) -> tuple[PyTree, VectorState, Ring, Array]:
        """The prefill, piece by piece; and how many of its steps were not finite."""
        pieces, rounds = self.prefill_pieces
        steps = rounds * self.unroll

        def piece(carry: tuple, x: tuple[Key, Array]) -> tuple[tuple, Array]:
            (agent, env, ring), (key, written) = carry, x
            act_key, env_key = jax.random.split(key)
            if self.prefill_policy == "uniform":
                act: Any = self._random
                noise = self._uniform(shard_key(act_key), steps)
            else:
                act = self._exploring(agent)
                noise = self.agent.draw(agent, env.obs, shard_key(act_key), steps)
            draws = self.env.draw(env_key, steps)
            env, transitions, metrics = play(act, self.env, env, noise, draws)
            ring = self.replay.write(ring, transitions, written)
            nonfinite = m.values(metrics)["nonfinite_steps"]
            return (self.agent.observe(agent, transitions), env, ring), nonfinite

        xs = (jax.random.split(key, pieces), jnp.arange(pieces) * steps)
        (agent, env, ring), nonfinite = jax.lax.scan(piece, (agent, env, ring), xs)
        return agent, env, ring, jnp.sum(nonfinite)

    def _exploring(self, agent: PyTree) -> Any:
        def act(obs: PyTree, noise: PyTree) -> tuple[Array, Extras]:
            return self.agent.act(agent, obs, noise, "explore")

        return act

    def _random(self, obs: PyTree, noise: Array) -> tuple[Array, Extras]:
        return noise, {}

    def _uniform(self, key: Key, steps: int) -> Array:
        """Uniform actions ``[steps, N, *A]``."""
        space, shape = self.env.spec.action, (steps, self.env.local_envs)
        if isinstance(space, Discrete):
            return jax.random.randint(key, shape, 0, space.n)
        return jax.random.uniform(key, (*shape, *space.shape), minval=-1.0)

    def advance(self, ts: TrainState, index: Array) -> tuple[TrainState, m.Metrics]:
        """Rounds; each acts, writes, samples and learns."""
        rounds = self.rounds_per_iteration // self.group
        act_key, env_key, sample_key, update_key, key = jax.random.split(ts.key, 5)
        batch = (self.updates * self.group, self.batch_size // shard_count())
        steps = rounds * self.block

        def by_round(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda x: x.reshape(rounds, self.block, *x.shape[1:]), tree)

        draws = self.env.draw(env_key, steps)
        written = self.prefill_rounds * self.unroll + index * steps
        xs = (
            by_round(self.agent.draw(ts.agent, ts.env.obs, shard_key(act_key), steps)),
            by_round(draws._replace(bank=())),
            jax.random.bits(shard_key(sample_key), (rounds, 2, *batch)),
            self.agent.draw_update(ts.agent, update_key, (rounds, *batch)),
            written + jnp.arange(rounds) * self.block,
        )

        def round(carry: tuple, x: tuple) -> tuple[tuple, m.Metrics]:
            return self._round(carry, x, draws.bank)

        untold = ts.replay.extras[UNTOLD]
        (agent, env, ring), metrics = m.scan(round, (ts.agent, ts.env, ts.replay), xs)
        metrics = m.merged(metrics, {"nonfinite_steps": m.Sum(jnp.sum(untold))})
        ring = ring._replace(extras={UNTOLD: jnp.zeros_like(untold)})
        ts = TrainState(
            agent=agent,
            env=env,
            replay=ring,
            key=key,
            env_steps=counter_add(ts.env_steps, self.steps_per_iteration),
            updates=ts.updates + 1,
        )
        return ts, metrics

    def _round(self, carry: tuple, xs: tuple, bank: PyTree) -> tuple[tuple, m.Metrics]:
        (agent, env, ring), (noise, draws, bits, learning, written) = carry, xs
        draws = Draws(draws.keys, draws.resets, bank)
        env, transitions, metrics = play(self._exploring(agent), self.env, env, noise, draws)
        ring = self.replay.write(ring, transitions, written)
        gamma = hyper.numbers(self.agent)["gamma"]
        batch = self.replay.sample(ring, bits, written + self.block, gamma)
        agent, learnt = self.agent.update(agent, batch, learning)
        agent = self.agent.observe(agent, transitions)
        return (agent, env, ring), metrics | learnt
