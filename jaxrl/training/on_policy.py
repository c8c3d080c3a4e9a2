"""On-policy training: a rollout, an update on it, and on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import metrics as m
from jaxrl.errors import UsageError
from jaxrl.training.rollout import rollout
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, TrainState, counter_add, counter_zero, learns_from_replay


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
