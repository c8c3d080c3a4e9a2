"""Off-policy training: steps into a replay ring, gradient steps on batches out of it, and on."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import hyper
from jaxrl import metrics as m
from jaxrl.axes import shard_count, shard_key
from jaxrl.data.replay import Precision, Replay, Ring, check_memory
from jaxrl.envs.vector import Draws, VectorState
from jaxrl.errors import UsageError
from jaxrl.hyper import require, require_choice
from jaxrl.training.rollout import play
from jaxrl.training.trainer import Trainer
from jaxrl.types import (
    Array,
    Discrete,
    Extras,
    Key,
    PyTree,
    ReplayAgent,
    TrainState,
    Transition,
    counter_add,
    counter_zero,
)

Prefill = Literal["uniform", "agent"]


@struct.dataclass
class OffPolicy(Trainer):
    """Rounds of ``unroll`` steps of every environment and ``updates`` gradient steps.

    With one environment, ``unroll=1`` and ``updates=1`` this is the schedule of the papers; with
    thousands of environments and large batches it is the massively parallel one. An iteration is
    several rounds, whose random numbers are drawn at once. Before the first, ``prefill`` steps fill
    the ring. Agents whose actor steps less often than their critics (``agent.delay``) do so on a
    schedule that is part of the program: ``updates`` must be a multiple of the delay or divide it.
    Rounds between which the policy stays the same are made as one: all steps, then all updates.

    Attributes:
        capacity: transitions that the ring holds, of all environments together; rounded up to whole
            rounds.
        batch_size: transitions of a gradient step, over all shards.
        prefill: transitions made before the first gradient step, rounded up to whole rounds.
        prefill_policy: "uniform" actions, or those of the untrained "agent".
        unroll: steps of every environment per round.
        updates: gradient steps per round.
        rounds: per iteration; the default lets an iteration's random numbers fit in a cache.
        n_step: rewards of so many steps are summed before the bootstrap.
        precision: "half" keeps the floats of observations in the ring as bfloat16.
    """

    capacity: int = struct.field(pytree_node=False, default=1_000_000)
    batch_size: int = struct.field(pytree_node=False, default=256)
    prefill: int = struct.field(pytree_node=False, default=5_000)
    prefill_policy: Prefill = struct.field(pytree_node=False, default="uniform")
    unroll: int = struct.field(pytree_node=False, default=1)
    updates: int = struct.field(pytree_node=False, default=1)
    rounds: int | None = struct.field(pytree_node=False, default=None)
    n_step: int = struct.field(pytree_node=False, default=1)
    precision: Precision = struct.field(pytree_node=False, default="full")

    # Sizes

    @property
    def group(self) -> int:
        """Rounds from one step of the actor to the next, made as one."""
        return max(self.agent.delay // self.updates, 1)

    @property
    def block(self) -> int:
        """Steps of every environment that are made, and written, at once."""
        return self.unroll * self.group

    @property
    def rounds_per_iteration(self) -> int:
        """``rounds``, or enough for 64 steps of every environment unless batches are large."""
        if self.rounds is not None:
            return self.rounds
        fitting = min(64 // self.unroll, 2**18 // (self.updates * self.batch_size))
        return max(fitting // self.group, 1) * self.group

    @property
    def steps_per_iteration(self) -> int:
        """``rounds * unroll * num_envs``."""
        return self.rounds_per_iteration * self.unroll * self.env.num_envs

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps of an iteration."""
        return self.rounds_per_iteration * self.updates

    @property
    def prefill_rounds(self) -> int:
        """Rounds without gradient steps, before the first iteration."""
        return -(-self.prefill // (self.block * self.env.num_envs)) * self.group

    @property
    def first_step(self) -> int:
        """The environment steps of the prefill."""
        return self.prefill_rounds * self.unroll * self.env.num_envs

    @property
    def shares_environments(self) -> bool:
        """Not by itself: batches of a few hundred rows gain nothing by being shared out."""
        return False

    @property
    def replay(self) -> Replay:
        """The ring's dimensions; its slots are a multiple of ``block``."""
        blocks = -(-self.capacity // (self.block * self.env.num_envs))
        return Replay(blocks * self.block, self.n_step, self.precision)

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for sizes that do not fit each other."""
        for name in ("capacity", "batch_size", "prefill", "unroll", "updates", "n_step"):
            require(name, getattr(self, name), 1)
        require("rounds", self.rounds, 1)
        require_choice("prefill_policy", self.prefill_policy, Prefill)
        require_choice("precision", self.precision, Precision)
        Trainer.check(self, shards)
        replayed = isinstance(self.agent, ReplayAgent)
        if not replayed:
            raise UsageError(
                f"{self.config()['algorithm']} learns from its own rollouts alone; train it with "
                "OnPolicy, or give another agent, such as SAC"
            )
        self._check_schedule()
        if self.batch_size % shards:
            raise UsageError(
                f"batch_size is {self.batch_size}, which does not divide over {shards} devices; "
                f"{-(-self.batch_size // shards) * shards} would"
            )
        self.agent.check(self.batch_size // shards)

    def _check_schedule(self) -> None:
        delay, rounds = self.agent.delay, self.rounds_per_iteration
        if self.updates % delay and delay % self.updates:
            raise UsageError(
                f"updates is {self.updates}, and the actor's delay {delay}; one must divide the "
                f"other, as {delay} would"
            )
        if rounds % self.group:
            raise UsageError(
                f"rounds is {rounds}; the actor steps every {self.group} rounds, so it must be a "
                f"multiple, as {-(-rounds // self.group) * self.group}"
            )
        least = self.n_step * self.env.num_envs
        if self.first_step < least:
            raise UsageError(f"prefill is {self.prefill}; n_step {self.n_step} needs {least}")
        if self.capacity < self.first_step:
            raise UsageError(
                f"capacity is {self.capacity}, less than the prefill of {self.first_step}; "
                f"give at least that"
            )

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
        agent, env, ring = self._fill(agent, env, ring, fill_key)
        return TrainState(
            agent=agent,
            env=env,
            replay=ring,
            key=key,
            env_steps=counter_add(counter_zero(), self.first_step),
            updates=jnp.int32(0),
        )

    def _fill(
        self, agent: PyTree, env: VectorState, ring: Ring, key: Key
    ) -> tuple[PyTree, VectorState, Ring]:
        """All rounds of the prefill as one rollout."""
        steps = self.prefill_rounds * self.unroll
        act_key, env_key = jax.random.split(key)
        if self.prefill_policy == "uniform":
            act: Any = self._random
            noise = self._uniform(shard_key(act_key), steps)
        else:
            act = self._exploring(agent)
            noise = self.agent.draw(agent, env.obs, shard_key(act_key), steps)
        env, transitions, _ = play(act, self.env, env, noise, self.env.draw(env_key, steps))
        ring = self.replay.write(ring, transitions, 0)
        return self.agent.observe(agent, transitions), env, ring

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
            self.agent.draw_update(ts.agent, shard_key(update_key), (rounds, *batch)),
            written + jnp.arange(rounds) * self.block,
        )

        def round(carry: tuple, x: tuple) -> tuple[tuple, m.Metrics]:
            return self._round(carry, x, draws.bank)

        (agent, env, ring), metrics = m.scan(round, (ts.agent, ts.env, ts.replay), xs)
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
