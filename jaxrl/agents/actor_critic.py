"""What agents with a policy and an ensemble of critics ``Q(s, a)`` share."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents.replayed import Replayed, ReplayedState
from jaxrl.errors import UsageError
from jaxrl.hyper import require
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.distributions import Noise, TanhNormal
from jaxrl.nn.networks import MLP, Ensemble, Policy, flat_input, flatten_to
from jaxrl.sharding import shard_key
from jaxrl.types import Array, Box, Extras, Key, Mode, PyTree, Spec, Transition


@struct.dataclass
class ActorCritic(Replayed):
    """The networks: a policy, and critics of all of which one batched product computes a layer.

    Attributes:
        actor_learning_rate: of Adam, of the policy; > 0.
    """

    actor_learning_rate: float = 3e-4

    # Networks

    @property
    def critics(self) -> int:
        """The number of critics."""
        raise AssertionError("an agent says how many critics it has")

    outputs = 1  # of a critic

    def critic_net(self) -> Ensemble:
        """The critics' networks."""
        mlp = MLP(
            self.hidden,
            self.outputs,
            self.activation,
            self.init_kind,
            head_scale=1.0,
            layer_norm=self.layer_norm,
        )
        return Ensemble(mlp, self.critics)

    def critic_values(self, params: PyTree, obs: PyTree, action: Array) -> Array:
        """What the critics put out at ``obs[..., *O]`` and ``action[..., A]``: ``[E, ..., K]``."""
        width = params["params"]["mlp"]["layer_0" if self.hidden else "head"]["kernel"].shape[-2]
        flat = flatten_to(self.seen_by_critics(obs), width - action.shape[-1])
        value: Any = self.critic_net().apply(params, jnp.concatenate([flat, action], axis=-1))
        return value

    def q(self, params: PyTree, obs: PyTree, action: Array) -> Array:
        """Of each critic, the expected return ``[E, ...]``."""
        return self.critic_values(params, obs, action)[..., 0]

    def q_values(self, state: ReplayedState, obs: PyTree, action: Array) -> Array:
        """The learnt critics' values of ``action[..., A]`` at ``obs[..., *O]``: ``[E, ...]``."""
        return self.q(state.params["critic"], obs, action)

    def init_params(self, key: Key, spec: Spec, policy: Any) -> dict[str, PyTree]:
        """Fresh parameters of ``policy`` (a module) and of the critics.

        Raises:
            UsageError: for actions that are not continuous.
        """
        if not isinstance(spec.action, Box):
            raise UsageError(
                f"{type(self).__name__} needs continuous actions, and the environment has "
                f"{spec.action.n} discrete ones; choose another agent, such as DQN or PPO"
            )
        actor_key, critic_key = jax.random.split(key)
        critic_obs = flat_input(self.seen_by_critics(spec.observation))
        critic_input = jnp.concatenate([critic_obs, jnp.zeros(math.prod(spec.action.shape))])
        return {
            "actor": policy.init(actor_key, flat_input(self.seen_by_policy(spec.observation))),
            "critic": self.critic_net().init(critic_key, critic_input),
        }

    def critic_loss(self, params: PyTree, batch: Transition, target: Any) -> tuple[Array, Any]:
        """``sum_i mean (Q_i(s, a) - y)^2`` for ``y = target[B]``, and the values ``[E, B]``."""
        q = self.q(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), q

    def critic_step(
        self, state: ReplayedState, batch: Transition, target: Array
    ) -> tuple[ReplayedState, Metrics]:
        """The critics, a step closer to ``target[B]``."""
        gradient: Any = jax.value_and_grad(self.critic_loss, has_aux=True)
        (loss, q), grads = gradient(state.params["critic"], batch, target)
        state, metrics = self.stepped(state, "critic", grads, self.learning_rate)
        return state, metrics | {"critic_loss": mean_of(loss), "q": mean_of(q)}

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        Replayed.check(self, transitions)
        require("actor_learning_rate", self.actor_learning_rate, 0, above=True)


@struct.dataclass
class Ensembled(ActorCritic):
    """As many critics as are asked for, and targets of the smallest of their values, or of some.

    Attributes:
        ensemble: critics.
        subset: so many of them, drawn for each gradient step, make the target; None: all.
    """

    ensemble: int = struct.field(pytree_node=False, default=2)
    subset: int | None = struct.field(pytree_node=False, default=None)

    @property
    def critics(self) -> int:
        """``ensemble``."""
        return self.ensemble

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        ActorCritic.check(self, transitions)
        require("ensemble", self.ensemble, 1)
        if self.subset is not None and not 1 <= self.subset <= self.ensemble:
            raise UsageError(
                f"subset is {self.subset}; of an ensemble of {self.ensemble} it must be at least 1 "
                f"and at most {self.ensemble}"
            )

    def subset_noise(self, key: Key, shape: tuple[int, ...]) -> dict[str, Array]:
        """The order of the critics for batches of ``shape[..., B]``: ``[..., E]``, if it matters.

        ``key`` must be that of all shards: they step the same critics, and so need one subset.
        """
        if self.subset is None:
            return {}
        return {"critics": jax.random.bits(key, (*shape[:-1], self.ensemble))}

    def least(self, q: Array, noise: PyTree) -> Array:
        """Of values ``q[E, B]``, the smallest of those that make the target: ``[B]``."""
        if self.subset is not None:
            q = q[jnp.argsort(noise["critics"])[: self.subset]]
        return jnp.min(q, axis=0)


@struct.dataclass
class Stochastic(ActorCritic):
    """A tanh-squashed normal policy, and a temperature ``alpha`` that holds its entropy.

    Actions live in [-1, 1], and so does their entropy: it differs by ``sum log((high - low) / 2)``
    from that in the environment's units.

    Attributes:
        alpha_learning_rate: of Adam, of ``log alpha``; >= 0, and 0 keeps the temperature.
        initial_alpha: > 0.
        target_entropy: in nats per action element; the default holds ``H = -|A|``.
        log_std_range: the policy's log standard deviations are clipped to it.
    """

    alpha_learning_rate: float = 3e-4
    initial_alpha: float = 1.0
    target_entropy: float = -1.0
    log_std_range: tuple[float, float] = struct.field(pytree_node=False, default=(-20.0, 2.0))

    def policy_net(self, spec: Spec | None = None) -> Policy:
        """The policy's network; ``spec`` is needed to initialise it."""
        return Policy(
            hidden=self.hidden,
            action=None if spec is None else spec.action,
            activation=self.activation,
            init_kind=self.init_kind,
            std="clipped",
            squash=True,
            log_std_range=self.log_std_range,
            head_scale=1.0,
        )

    def policy(self, params: PyTree, obs: PyTree) -> TanhNormal:
        """The policy at ``obs[..., *O]``."""
        dist: Any = self.policy_net().apply(params, self.seen_by_policy(obs))
        return dist

    def init_params(self, key: Key, spec: Spec, policy: Any = None) -> dict[str, PyTree]:
        """Fresh parameters of all networks, and ``log alpha``."""
        params = ActorCritic.init_params(self, key, spec, policy or self.policy_net(spec))
        return params | {"log_alpha": jnp.log(jnp.float32(self.initial_alpha))}

    def entropy_goal(self, action: Array) -> Array:
        """The entropy that the temperature holds for ``action[..., A]``, in nats."""
        return jnp.asarray(self.target_entropy) * action.shape[-1]

    def temperature(self, state: ReplayedState) -> Array:
        """``alpha``."""
        return jnp.exp(state.params["log_alpha"])

    def action_width(self, state: ReplayedState) -> int:
        """``A``."""
        head = state.params["actor"]["params"]["normal"]["head"]["bias"]
        return int(head.shape[-1]) // 2

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        ActorCritic.check(self, transitions)
        require("alpha_learning_rate", self.alpha_learning_rate, 0)
        require("initial_alpha", self.initial_alpha, 0, above=True)
        if self.log_std_range[0] >= self.log_std_range[1]:
            raise UsageError(
                f"log_std_range is {self.log_std_range}; it must be low and high, as (-20.0, 2.0)"
            )

    # Losses

    def climbed(self, q: Array) -> Array:
        """Of the critics' values ``[E, ...]``, what the policy climbs: the smallest ``[...]``."""
        return jnp.min(q, axis=0)

    def actor_loss(
        self, params: PyTree, state: ReplayedState, obs: PyTree, noise: Array
    ) -> tuple[Array, Array]:
        """``mean (alpha log pi(a | s) - min_i Q_i(s, a))``, and the entropy's estimate."""
        action, log_prob = self.policy(params, obs).sample_and_log_prob(noise)
        value = self.climbed(self.q(state.params["critic"], obs, action))
        return jnp.mean(self.temperature(state) * log_prob - value), -jnp.mean(log_prob)

    def temperature_gradient(self, state: ReplayedState, surplus: Array) -> Array:
        """By ``log alpha``, of ``log alpha (H - H_target)``; ``surplus`` is what is in brackets."""
        return surplus

    # Update

    def actor_noise(
        self, state: ReplayedState, next_key: Key, policy_key: Key, shape: tuple[int, ...]
    ) -> dict[str, Array]:
        """Normal noise of the successors' actions and of the policy's: ``[..., B, A]`` each.

        Each shard draws its own.
        """
        size = (*shape, self.action_width(state))
        keys = {"next": shard_key(next_key), "policy": shard_key(policy_key)}
        return {name: jax.random.normal(key, size) for name, key in keys.items()}

    def actor_step(
        self, state: ReplayedState, at: ReplayedState, batch: Transition, noise: Array
    ) -> tuple[ReplayedState, Metrics]:
        """The policy and the temperature of ``state``, by gradients at the parameters of ``at``."""
        gradient: Any = jax.value_and_grad(self.actor_loss, has_aux=True)
        (loss, entropy), grads = gradient(at.params["actor"], at, batch.obs, noise)
        by_log_alpha = self.temperature_gradient(at, entropy - self.entropy_goal(noise))
        state, metrics = self.stepped(state, "actor", grads, self.actor_learning_rate)
        state, more = self.stepped(state, "log_alpha", by_log_alpha, self.alpha_learning_rate)
        metrics = merged(metrics, more) | {
            "actor_loss": mean_of(loss),
            "entropy": mean_of(entropy),
            "alpha": mean_of(self.temperature(state)),
        }
        return state, metrics

    # Acting

    def draw(self, state: ReplayedState, obs: PyTree, key: Key, steps: int) -> Array:
        """The noise of ``steps`` calls of ``act`` at such ``obs``: ``[steps, ..., A]``."""
        return jax.eval_shape(self.policy, state.params["actor"], obs).noise(key, (steps,))

    def act(
        self, state: ReplayedState, obs: PyTree, key: Noise, mode: Mode
    ) -> tuple[Array, Extras]:
        """Sample from the policy, or take ``tanh`` of its mean if ``greedy``. ``obs[..., *O]``.

        ``key`` may be noise that ``draw`` drew.
        """
        dist = self.policy(state.params["actor"], obs)
        action = dist.mode() if mode == "greedy" else dist.emit(dist.sample(key))
        return action, {}
