"""An agent with memory, written as a user would: PPO's surrogate on the returns, with a GRU."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl import hyper, losses
from jaxrl.agents.minibatches import minibatch_epochs
from jaxrl.envs.vector import select
from jaxrl.metrics import Max
from jaxrl.nn.policies import AutoPolicy
from jaxrl.optim import Adam
from jaxrl.types import Box


@hyper.dataclass
class Recurrent:
    """The carry is the GRU's state ``[n, width]``. Minibatches are cut along N."""

    learns_from: ClassVar = "rollouts"
    policy: Any = hyper.part(AutoPolicy(hidden_dims=(), head_scale=0.01, initializer="orthogonal"))
    optimizer: Any = hyper.part(Adam(max_grad_norm=0.5))
    learning_rate: float = hyper.number(3e-3, above=0)
    gamma: float = hyper.number(0.99, 0, 1)
    width: int = hyper.size(32)
    update_epochs: int = hyper.size(4)
    num_minibatches: int = hyper.size(2)
    inputs: int = hyper.bound(0)

    def bind(self, spec):
        policy = self.policy.bind(dataclasses.replace(spec, observation=Box(-1, 1, (self.width,))))
        return dataclasses.replace(self, policy=policy, inputs=spec.observation.shape[0])

    def init_carry(self, key, n):
        return jnp.zeros((n, self.width))

    @property
    def cell(self):
        return nn.GRUCell(self.width, recurrent_kernel_init=nn.initializers.lecun_normal())

    def init(self, key):
        cell_key, policy_key = jax.random.split(key)
        cell = self.cell.init(cell_key, self.init_carry(key, 1), jnp.zeros((1, self.inputs)))
        return self.optimizer.start({"cell": cell, "policy": self.policy.init(policy_key)})

    def act(self, state, carry, obs, key, mode):
        carry, seen = self.cell.apply(state.params["cell"], carry, obs)
        if mode == "greedy":
            return self.policy.mode(state.params["policy"], seen), carry, {}
        action, trace = self.policy.sample(state.params["policy"], seen, key)
        return action, carry, {"trace": trace}

    def loss(self, params, batch, key):
        obs, ended, trace, returns = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch[1:])

        def replay(carry, row):
            carry, seen = self.cell.apply(params["cell"], carry, row[0])
            return select(row[1], self.init_carry(key, len(row[1])), carry), seen

        dist = self.policy.dist(params["policy"], jax.lax.scan(replay, batch[0], (obs, ended))[1])
        log_ratio = dist.log_prob(trace) - trace.log_prob
        gain = losses.clipped_surrogate(jnp.exp(log_ratio), losses.normalised(returns), 0.2)
        return jnp.mean(gain), {"log_ratio": Max(jnp.max(jnp.abs(log_ratio)))}

    def update(self, state, rollout, key):
        ended = rollout.terminated | rollout.truncated
        returns = losses.discounted_sums(rollout.reward, self.gamma * ~ended, 0.0 * ended[0])
        rows = rollout.obs, ended, rollout.extras["trace"], returns
        rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[None], rows)  # [1, N, T]

        def step(key, state, batch):
            rate = self.learning_rate
            state, aux, metrics = self.optimizer.minimize(self.loss, state, rate, batch, key)
            return state, metrics | aux

        rows, counts = (rollout.carry[None], *rows), (self.update_epochs, self.num_minibatches)
        return minibatch_epochs(step, state, rows, key, *counts)
