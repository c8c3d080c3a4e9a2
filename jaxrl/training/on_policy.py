"""On-policy training: a rollout, an update on it, and on."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import metrics as m
from jaxrl.counters import counter_add, counter_zero
from jaxrl.errors import UsageError
from jaxrl.memory import free_over
from jaxrl.training.rollout import rollout
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, TrainState, learns_from_replay


@struct.dataclass
class OnPolicy(Trainer):
    """Rollout of ``unroll`` steps, ``agent.update`` on it, ``agent.observe``; and again.

    Attributes:
        unroll: steps of every environment per iteration.
    """

    unroll: int = struct.field(pytree_node=False, default=128)

    @property
    def steps_per_iteration(self) -> int:
        """``unroll * num_envs``."""
        return self.unroll * self.env.num_envs

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for sizes that do not fit each other."""
        if self.unroll < 1:
            raise UsageError(f"unroll is {self.unroll}; it must be at least 1")
        Trainer.check(self, shards)
        if learns_from_replay(self.agent):
            raise UsageError(
                f"{self.config()['algorithm']} learns from replayed batches; train it with "
                "OffPolicy, or give another agent, such as PPO"
            )
        self.agent.check(self.steps_per_iteration // shards)

    def check_memory(self, members: int, devices: int) -> None:
        """Refuse rollouts that cannot fit in memory.

        Raises:
            UsageError: with the sizes, and a number of environments that fits.
        """
        total = free_over(devices)
        if total is None:
            return
        needed = members * self._rollout_bytes()
        if needed > total:
            fitting = max(int(0.8 * self.env.num_envs * total / needed), 1)
            raise UsageError(
                f"num_envs is {self.env.num_envs}, whose rollouts of {self.unroll} steps need "
                f"{needed / 2**30:.2f} GiB for all members, and {total / 2**30:.2f} GiB are free; "
                f"{fitting} would fit, or a smaller unroll"
            )

    def _rollout_bytes(self) -> int:
        """The memory of one rollout, and of the fresh starts that are drawn for it, in bytes.

        Shapes alone are traced, and no step of the environment, which may take long.
        """
        spec = self.env.spec

        def step() -> tuple:
            init, act, reset, key = jax.random.split(jax.random.key(0), 4)
            obs = jax.tree.map(lambda box: jnp.zeros(box.shape, box.dtype), spec.observation)
            acted = self.agent.act(self.agent.init(init, spec), obs, act, "explore")
            fresh = self.env.env.reset(reset) if self.env.policy == "fresh" else ()
            return obs, obs, acted, fresh, key, jnp.zeros(()), jnp.zeros((2,), bool)

        row = jax.tree.leaves(jax.eval_shape(step))
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in row)
        return self.unroll * self.env.num_envs * size

    def start(self, key: Key) -> TrainState:
        """Fresh networks and environments."""
        agent_key, env_key, key = jax.random.split(key, 3)
        return TrainState(
            agent=self.agent.init(agent_key, self.env.spec),
            env=self.env.reset(env_key),
            replay=(),
            key=key,
            env_steps=counter_zero(),
            updates=jnp.int32(0),
        )

    def advance(self, ts: TrainState, index: Array) -> tuple[TrainState, m.Metrics]:
        """One rollout and one update."""
        rollout_key, update_key, key = jax.random.split(ts.key, 3)
        env, transitions, episodes = rollout(
            self.agent, ts.agent, self.env, ts.env, rollout_key, self.unroll
        )
        agent, metrics = self.agent.update(ts.agent, transitions, update_key)
        agent = self.agent.observe(agent, transitions)
        ts = TrainState(
            agent=agent,
            env=env,
            replay=ts.replay,
            key=key,
            env_steps=counter_add(ts.env_steps, self.steps_per_iteration),
            updates=ts.updates + 1,
        )
        return ts, episodes | metrics
