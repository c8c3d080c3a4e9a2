"""SAC (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications")."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents.actor_critic import Ensembled, Stochastic
from jaxrl.agents.replayed import ReplayedState
from jaxrl.hyper import require_choice
from jaxrl.metrics import Metrics, merged
from jaxrl.types import Array, Key, PyTree, Spec, Transition

Reduction = Literal["min", "mean"]


@struct.dataclass
class SAC(Stochastic, Ensembled):
    """Soft actor-critic with an ensemble of critics and automatic temperature.

    The defaults are the paper's: two critics and the smaller of their values, entropy ``-|A|`` per
    action, a gradient step of critics, actor and temperature in this order, then of the slow
    copies. Three departures of others are options: half that entropy (``target_entropy=-0.5``), an
    actor on every second step (``delay=2``), and larger ensembles of which the target takes a
    random ``subset`` (REDQ: Chen et al. 2021, "Randomized Ensembled Double Q-Learning", with
    ``ensemble=10, subset=2, policy_value="mean", delay=20`` and 20 gradient steps per environment
    step; RLPD adds ``layer_norm=True``). The loss of the critics is the squared error, not its
    half, summed over them. That of the temperature is in ``alpha``, whose fixed point is that of
    the loss in ``log alpha``. Where the rewards of several steps are summed (``n_step``), the
    entropy of the actions between them is left out; that of the last successor's counts.

    Attributes:
        policy_value: the policy climbs the critics' "min" or "mean".
    """

    policy_value: Reduction = struct.field(pytree_node=False, default="min")

    def init(self, key: Key, spec: Spec) -> ReplayedState:
        """Fresh networks for ``spec``."""
        return self.fresh(self.init_params(key, spec), ("critic",))

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        Stochastic.check(self, transitions)
        Ensembled.check(self, transitions)
        require_choice("policy_value", self.policy_value, Reduction)

    # Losses

    def target(self, state: ReplayedState, batch: Transition, noise: PyTree) -> Array:
        """``y = r + gamma (1 - d) (min_i Q'_i(s', a') - alpha log pi(a' | s'))``: ``[B]``."""
        dist = self.policy(state.params["actor"], batch.next_obs)
        action, log_prob = dist.sample_and_log_prob(noise["next"])
        q = self.q(state.targets["critic"], batch.next_obs, action)
        value = self.least(q, noise) - self.temperature(state) * log_prob
        return batch.reward + self.discount(batch) * value

    def climbed(self, q: Array) -> Array:
        """Of the critics' values ``[E, ...]``, what the policy climbs: ``[...]``."""
        return jnp.min(q, axis=0) if self.policy_value == "min" else jnp.mean(q, axis=0)

    def temperature_gradient(self, state: ReplayedState, surplus: Array) -> Array:
        """By ``log alpha``, of ``alpha (H - H_target)``; ``surplus`` is what is in brackets."""
        return self.temperature(state) * surplus

    # Update

    def draw_update(self, state: ReplayedState, key: Key, shape: tuple[int, ...]) -> PyTree:
        """Normal noise of both actions ``[..., B, A]``, and what draws subsets of critics."""
        next_key, policy_key, subset_key = jax.random.split(key, 3)
        noise = self.actor_noise(state, next_key, policy_key, shape)
        return noise | self.subset_noise(subset_key, shape)

    def gradient_step(
        self, state: ReplayedState, batch: Transition, noise: PyTree, actor: bool
    ) -> tuple[ReplayedState, Metrics]:
        """Critics; policy and temperature if ``actor``; then the slow copies."""
        state, metrics = self.critic_step(state, batch, self.target(state, batch, noise))
        if actor:
            state, more = self.actor_step(state, state, batch, noise["policy"])
            metrics = merged(metrics, more)
        return self.followed(state)._replace(updates=state.updates + 1), metrics
