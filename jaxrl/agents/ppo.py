"""PPO (Schulman et al. 2017, "Proximal Policy Optimization Algorithms")."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import losses, optim
from jaxrl.agents import minibatches as mb
from jaxrl.hyper import require, require_choice
from jaxrl.metrics import Metrics, Sum, mean_of
from jaxrl.nn import networks
from jaxrl.nn.distributions import Distribution, Noise, TanhNormal
from jaxrl.nn.networks import MLP, Activation, Init, Policy, Std, flat_input
from jaxrl.sharding import shard_count, shard_mean
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition


class PPOState(NamedTuple):
    """Parameters of the policy and of the value function, the optimiser, and finished updates."""

    params: dict[str, PyTree]
    optim: optim.OptimState
    updates: Array  # int32, finished calls of ``update``


class Samples(NamedTuple):
    """What a minibatch is made of: a rollout's rows ``[T, N, ...]``, or ``[B, ...]`` of them."""

    obs: PyTree
    raw: Array
    log_prob: Array
    value: Array
    advantage: Array
    target: Array


@struct.dataclass
class PPO:
    """PPO with a clipped surrogate, for discrete and continuous actions.

    The defaults are the widespread continuous-control variant: separate tanh networks with
    orthogonal initialisation, a normal whose log-std does not depend on the observation,
    minibatches of single transitions, advantages normalised per minibatch, Adam with eps 1e-5, and
    the global norm of the gradient clipped at 0.5. Departures from it: GAE is computed once per
    rollout, with the value of the *true* successor at a time limit, and the value loss is not
    clipped. The variant of Brax (tanh-squashed actions, ``std="dependent"``, ``init_kind="lecun"``,
    swish) is within reach of the options, but for its advantages, whose first step lacks the factor
    lambda.

    Attributes:
        learning_rate: of Adam; > 0.
        gamma: discount in [0, 1].
        gae_lambda: in [0, 1].
        clip: half-width of the trust interval of the probability ratio; > 0.
        entropy: weight of the entropy bonus; >= 0.
        value: weight of the value loss (half the mean squared error); >= 0.
        max_grad_norm: the gradient's global norm is clipped to it; > 0.
        anneal_over: updates over which the learning rate falls linearly to 0; 0 keeps it constant.
        target_kl: once a minibatch's estimated KL divergence from the acting policy exceeds it,
            the rest of the update is a no-op; None never stops.
        epochs: passes over a rollout.
        minibatches: per epoch; must divide the number of transitions.
        clip_value: clip the value loss with ``clip``, in units of the (scaled) reward.
        hidden: widths of the hidden layers of both networks.
        activation: of both networks.
        init_kind: "orthogonal" or "lecun" (uniform).
        std: "independent" of the observation, or "dependent" on it.
        squash: pass continuous actions through tanh; the entropy is then a one-sample estimate.
        initial_std: of continuous actions, which live in [-1, 1]; > 0.
        policy_obs: of observations that are dictionaries, the part that the policy sees.
        value_obs: the value function's part; without a "privileged_state", it is the policy's.
    """

    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0
    value: float = 0.5
    max_grad_norm: float = 0.5
    anneal_over: float = 0.0
    target_kl: float | None = None
    epochs: int = struct.field(pytree_node=False, default=4)
    minibatches: int = struct.field(pytree_node=False, default=4)
    clip_value: bool = struct.field(pytree_node=False, default=False)
    hidden: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: Activation = struct.field(pytree_node=False, default="tanh")
    init_kind: Init = struct.field(pytree_node=False, default="orthogonal")
    std: Std = struct.field(pytree_node=False, default="independent")
    squash: bool = struct.field(pytree_node=False, default=False)
    initial_std: float = struct.field(pytree_node=False, default=1.0)
    policy_obs: str = struct.field(pytree_node=False, default="state")
    value_obs: str = struct.field(pytree_node=False, default=networks.PRIVILEGED)

    # Networks

    def policy_net(self, spec: Spec | None = None) -> Policy:
        """The policy's network; ``spec`` is needed to initialise it."""
        action = None if spec is None else spec.action
        return Policy(
            hidden=self.hidden,
            action=action,
            activation=self.activation,
            init_kind=self.init_kind,
            std=self.std,
            squash=self.squash,
            initial_std=self.initial_std,
        )

    def value_net(self) -> MLP:
        """The value function's network."""
        return MLP(self.hidden, 1, self.activation, self.init_kind, head_scale=1.0)

    def policy(self, params: PyTree, obs: PyTree) -> Distribution:
        """The policy at ``obs[..., *O]``."""
        seen = networks.policy_part(obs, self.policy_obs)
        dist: Any = self.policy_net().apply(params["policy"], seen)
        return dist

    def values(self, params: PyTree, obs: PyTree) -> Array:
        """State values of ``obs[..., *O]``: ``[...]``."""
        seen = networks.value_part(obs, self.value_obs, self.policy_obs)
        value: Any = self.value_net().apply(params["value"], seen)
        return value[..., 0]

    @property
    def optimiser(self) -> optim.Adam:
        """Of both networks together."""
        return optim.Adam(self.max_grad_norm, eps=1e-5)

    def init(self, key: Key, spec: Spec) -> PPOState:
        """Fresh networks for ``spec``."""
        policy_key, value_key = jax.random.split(key)
        acts_on = flat_input(networks.policy_part(spec.observation, self.policy_obs))
        values = flat_input(networks.value_part(spec.observation, self.value_obs, self.policy_obs))
        params = {
            "policy": self.policy_net(spec).init(policy_key, acts_on),
            "value": self.value_net().init(value_key, values),
        }
        return PPOState(params, self.optimiser.init(params), jnp.int32(0))

    # Losses

    def policy_loss(self, dist: Distribution, batch: Samples) -> tuple[Array, Metrics]:
        """The clipped surrogate ``-mean min(r A, clip(r, 1 - eps, 1 + eps) A)`` over ``[B]``."""
        log_ratio = dist.log_prob(batch.raw) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        advantage = losses.normalised(batch.advantage)
        loss = jnp.mean(losses.clipped_surrogate(ratio, advantage, self.clip))
        metrics: Metrics = {
            "policy_loss": mean_of(loss),
            "kl": mean_of(ratio - 1.0 - log_ratio),
            "clip_fraction": mean_of(jnp.abs(ratio - 1.0) > self.clip),
        }
        return loss, metrics

    def value_loss(self, value: Array, batch: Samples) -> Array:
        """``mean (R - V)^2 / 2`` over ``[B]``, with clipping if asked for."""
        if self.clip_value:
            error = losses.clipped_value_loss(value, batch.value, batch.target, self.clip)
        else:
            error = jnp.square(value - batch.target)
        return 0.5 * jnp.mean(error)

    def loss(self, params: PyTree, batch: Samples, key: Key) -> tuple[Array, Metrics]:
        """``L = L_policy + c_v L_value - c_e H`` of a minibatch."""
        dist = self.policy(params, batch.obs)
        policy_loss, metrics = self.policy_loss(dist, batch)
        value_loss = self.value_loss(self.values(params, batch.obs), batch)
        entropy = jnp.mean(dist.entropy(key))
        metrics |= {"value_loss": mean_of(value_loss), "entropy": mean_of(entropy)}
        return policy_loss + self.value * value_loss - self.entropy * entropy, metrics

    # Update

    def samples(self, state: PPOState, batch: Transition) -> Samples:
        """Advantages and targets of a rollout ``[T, N]``: two value passes and one GAE."""
        value = self.values(state.params, batch.obs)
        next_value = self.values(state.params, batch.next_obs)
        advantage = losses.gae(
            batch.reward,
            value,
            next_value,
            batch.terminated,
            batch.truncated,
            self.gamma,
            self.gae_lambda,
        )
        raw = batch.extras.get("raw", batch.action)
        log_prob = batch.extras["dist"].log_prob(raw)
        return Samples(batch.obs, raw, log_prob, value, advantage, advantage + value)

    def check(self, transitions: int) -> None:
        """Raise UsageError for what cannot work with ``transitions`` per update."""
        for name in ("learning_rate", "clip", "max_grad_norm", "initial_std"):
            require(name, getattr(self, name), 0, above=True)
        for name in ("gamma", "gae_lambda"):
            require(name, getattr(self, name), 0, 1)
        for name in ("entropy", "value", "anneal_over"):
            require(name, getattr(self, name), 0)
        for name in ("epochs", "minibatches"):
            require(name, getattr(self, name), 1)
        require("target_kl", self.target_kl, 0, above=True)
        for width in self.hidden:
            require("hidden", width, 1)
        for name, kinds in {"activation": Activation, "init_kind": Init, "std": Std}.items():
            require_choice(name, getattr(self, name), kinds)
        mb.check_divides(self.minibatches, transitions)

    def update(self, state: PPOState, batch: Transition, key: Key) -> tuple[PPOState, Metrics]:
        """Epochs of minibatch steps on a rollout ``[T, N]``. Each shard shuffles its own rows."""
        samples = self.samples(state, batch)
        rate = self.learning_rate * optim.linear_decay(state.updates, self.anneal_over)

        def step(carry: tuple, minibatch: Samples, key: Key) -> tuple[tuple, Metrics]:
            params, opt, going = carry
            *new, metrics = self.step(params, opt, going, minibatch, key, rate)
            return tuple(new), metrics

        start = (state.params, state.optim, jnp.bool_(True))
        end, metrics = mb.learn(step, start, samples, key, self.epochs, self.minibatches)

        target_variance = losses.variance(samples.target)
        unexplained = losses.variance(samples.target - samples.value) / (target_variance + 1e-8)
        metrics["explained_variance"] = mean_of(1.0 - unexplained)
        return PPOState(*end[:2], state.updates + 1), metrics

    def step(
        self,
        params: PyTree,
        opt: optim.OptimState,
        going: Array,
        batch: Samples,
        key: Key,
        rate: Array,
    ) -> tuple[PyTree, optim.OptimState, Array, Metrics]:
        """One gradient step on a minibatch ``[B]``; none once ``going`` is false.

        Returns the parameters, the optimiser's state, whether to go on, and the metrics.
        """
        grads, metrics = jax.grad(self.loss, has_aux=True)(params, batch, key)
        new_params, new_opt, step_metrics = self.optimiser.step(grads, opt, params, rate)
        metrics |= step_metrics
        if self.target_kl is None:
            return new_params, new_opt, going, metrics
        kl = shard_mean(metrics["kl"].total / metrics["kl"].weight)
        going = going & ~(kl > self.target_kl)  # a NaN is the optimiser's to skip and to count
        new, old = (new_params, new_opt), (params, opt)
        kept = jax.tree.map(lambda a, b: jnp.where(going, a, b), new, old)
        made = going & (step_metrics["skipped_updates"][0] == 0)
        metrics["minibatch_steps"] = Sum(made / shard_count())  # all shards make the same ones
        return *kept, going, metrics

    def observe(self, state: PPOState, transitions: Transition) -> PPOState:
        """PPO keeps no statistics."""
        return state

    # Acting

    def draw(self, state: PPOState, obs: PyTree, key: Key, steps: int) -> Array:
        """The noise of ``steps`` calls of ``act`` at such ``obs``: ``[steps, ...]``."""
        return jax.eval_shape(self.policy, state.params, obs).noise(key, (steps,))

    def act(self, state: PPOState, obs: PyTree, key: Noise, mode: Mode) -> tuple[Array, Extras]:
        """Sample from the policy, or take its mode if ``greedy``. ``obs[..., *O]``.

        ``key`` may be noise that ``draw`` drew. The extras keep the distribution (and the sample
        before squashing): log-probabilities are computed from it in one batch, after the rollout.
        """
        dist = self.policy(state.params, obs)
        if mode == "greedy":
            return dist.mode(), {}
        raw = dist.sample(key)
        extras = {"dist": dist} | ({"raw": raw} if isinstance(dist, TanhNormal) else {})
        return dist.emit(raw), extras
