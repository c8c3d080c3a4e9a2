"""TD3 (Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods")."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents.actor_critic import Ensembled
from jaxrl.agents.replayed import ReplayedState
from jaxrl.hyper import require, require_choice
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.distributions import is_key
from jaxrl.nn.networks import MLP, action_size
from jaxrl.sharding import shard_key
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition

PolicyValue = Literal["first", "min", "mean"]


@struct.dataclass
class TD3(Ensembled):
    """Twin delayed deep deterministic policy gradient.

    The defaults are those of the authors' code, which differ from the paper's in sizes and rates
    alone: two critics and the smaller of their values, noise on the successors' actions, an actor
    and slow copies that move on every second step, and an actor that climbs the first critic.

    For thousands of environments (Seo et al. 2025, "FastTD3"): ``exploration_max`` gives every
    environment a standard deviation of its own, ``target_actor=False`` takes the successors'
    actions from the learnt policy and lets the slow critics move on every step,
    ``policy_value="min"`` climbs the smaller value, ``tau=0.1``. Their deviations are drawn when an
    episode ends, ours for every iteration; their critics are distributions over fixed atoms, ours
    are not.

    Attributes:
        exploration: standard deviation of the noise on explored actions, in units of [-1, 1].
        exploration_max: if given, standard deviations lie uniformly between the two.
        policy_noise: standard deviation of the noise on the successors' actions.
        noise_clip: which is clipped to ``[-noise_clip, noise_clip]``.
        policy_value: the policy climbs the "first" critic, or their "min" or "mean".
        target_actor: take the successors' actions from a slow copy of the policy, which moves with
            it and with the slow critics; without, these move on every step.
    """

    exploration: float = 0.1
    exploration_max: float | None = None
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    delay: int = struct.field(pytree_node=False, default=2)
    policy_value: PolicyValue = struct.field(pytree_node=False, default="first")
    target_actor: bool = struct.field(pytree_node=False, default=True)

    def policy_net(self, spec: Spec | None = None) -> MLP:
        """The policy's network; ``spec`` is needed to initialise it."""
        outputs = 0 if spec is None else action_size(spec.action)
        return MLP(self.hidden, outputs, self.activation, self.init_kind, head_scale=1.0)

    def policy(self, params: PyTree, obs: PyTree) -> Array:
        """The action at ``obs[..., *O]``: ``[..., A]`` in [-1, 1]."""
        raw: Any = self.policy_net().apply(params, self.seen_by_policy(obs))
        return jnp.tanh(raw)

    def init(self, key: Key, spec: Spec) -> ReplayedState:
        """Fresh networks for ``spec``."""
        params = self.init_params(key, spec, self.policy_net(spec))
        return self.fresh(params, ("actor", "critic") if self.target_actor else ("critic",))

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        Ensembled.check(self, transitions)
        for name in ("exploration", "exploration_max", "policy_noise", "noise_clip"):
            require(name, getattr(self, name), 0)
        if self.exploration_max is not None:
            require("exploration_max", self.exploration_max, self.exploration)
        require_choice("policy_value", self.policy_value, PolicyValue)

    # Losses

    def target(self, state: ReplayedState, batch: Transition, noise: PyTree) -> Array:
        """``y = r + gamma (1 - d) min_i Q'_i(s', clip(pi'(s') + clip(epsilon)))``: ``[B]``."""
        actor = (state.targets if self.target_actor else state.params)["actor"]
        epsilon = jnp.clip(self.policy_noise * noise["next"], -self.noise_clip, self.noise_clip)
        action = jnp.clip(self.policy(actor, batch.next_obs) + epsilon, -1.0, 1.0)
        q = self.q(state.targets["critic"], batch.next_obs, action)
        return batch.reward + self.discount(batch) * self.least(q, noise)

    def actor_loss(self, params: PyTree, critic: PyTree, obs: PyTree) -> Array:
        """``-mean Q_1(s, pi(s))``."""
        if self.policy_value == "first":
            critic = jax.tree.map(lambda x: x[:1], critic)
        q = self.q(critic, obs, self.policy(params, obs))
        return -jnp.mean(jnp.min(q, axis=0) if self.policy_value == "min" else q)

    # Update

    def draw_update(self, state: ReplayedState, key: Key, shape: tuple[int, ...]) -> PyTree:
        """Normal noise of the successors' actions ``[..., B, A]``; what draws subsets of critics.

        Each shard draws noise of its own.
        """
        width = state.params["actor"]["params"]["head"]["bias"].shape[-1]
        next_key, subset_key = jax.random.split(key)
        normal = jax.random.normal(shard_key(next_key), (*shape, width))
        return {"next": normal} | self.subset_noise(subset_key, shape)

    def gradient_step(
        self, state: ReplayedState, batch: Transition, noise: PyTree, actor: bool
    ) -> tuple[ReplayedState, Metrics]:
        """Critics; if ``actor``, the policy; then, unless they wait for it, the slow copies."""
        state, metrics = self.critic_step(state, batch, self.target(state, batch, noise))
        state = state._replace(updates=state.updates + 1)
        if not actor:
            return (state if self.target_actor else self.followed(state)), metrics

        loss, grads = jax.value_and_grad(self.actor_loss)(
            state.params["actor"], state.params["critic"], batch.obs
        )
        state, more = self.stepped(state, "actor", grads, self.actor_learning_rate)
        more["actor_loss"] = mean_of(loss)
        return self.followed(state), merged(metrics, more)

    # Acting

    def draw(self, state: ReplayedState, obs: PyTree, key: Key, steps: int) -> Array:
        """The noise of ``steps`` calls of ``act`` at such ``obs``: ``[steps, ..., A]``.

        With ``exploration_max``, the rows of ``obs`` have standard deviations of their own.
        """
        shape = jax.eval_shape(self.policy, state.params["actor"], obs).shape
        if self.exploration_max is None:
            return self.exploration * jax.random.normal(key, (steps, *shape))
        noise_key, std_key = jax.random.split(key)
        uniform = jax.random.uniform(std_key, (*shape[:-1], 1))
        std = self.exploration + (self.exploration_max - self.exploration) * uniform
        return std * jax.random.normal(noise_key, (steps, *shape))

    def act(
        self, state: ReplayedState, obs: PyTree, key: Array, mode: Mode
    ) -> tuple[Array, Extras]:
        """The policy's action at ``obs[..., *O]``, with noise unless ``greedy``.

        ``key`` may be noise that ``draw`` drew.
        """
        action = self.policy(state.params["actor"], obs)
        if mode == "greedy":
            return action, {}
        noise = self.draw(state, obs, key, 1)[0] if is_key(key) else key
        return jnp.clip(action + noise, -1.0, 1.0), {}
