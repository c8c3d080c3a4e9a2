"""DSAC (Duan et al. 2021, "Distributional Soft Actor-Critic") and DSAC-T (Duan et al. 2025,
"Distributional Soft Actor-Critic with Three Refinements")."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import optim
from jaxrl.agents.actor_critic import Stochastic
from jaxrl.agents.replayed import ReplayedState
from jaxrl.hyper import require
from jaxrl.losses import huber
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.networks import Activation
from jaxrl.sharding import shard_key, shard_mean
from jaxrl.types import Array, Key, PyTree, Spec, Transition

VARIANCE_FLOOR = 0.1  # added to variances that are divided by
NOISE_CLIP = 3.0  # samples of returns stay within so many standard deviations


class Targets(NamedTuple):
    """What the critics' distributions learn: ``mean[E, B]`` and a ``sample[E, B]``."""

    mean: Array  # moves the mean
    sample: Array  # moves the standard deviation


@struct.dataclass
class DSAC(Stochastic):
    """DSAC, version 1: a critic that learns mean ``Q`` and deviation ``sigma`` of the return.

    The target is a sample of the successor's return, which is kept within ``bound`` of ``Q`` where
    it moves ``sigma``. It needs rewards of the right scale, which DSAC-T does not.

    The defaults are those of the authors' code: an actor, temperature and slow copies that move on
    every second step, a slow copy of the policy for the successors' actions, and all gradients of a
    step taken at the same parameters. Their networks start from torch's initialisation, the
    temperature from e. Where the rewards of several steps are summed (``n_step``), the entropy of
    the actions between them is left out, as in SAC.

    Attributes:
        bound: half-width of the interval around ``Q``, in units of the (scaled) return; > 0.
    """

    learning_rate: float = 1e-4
    actor_learning_rate: float = 1e-4
    initial_alpha: float = 2.718281828
    bound: float = 20.0
    delay: int = struct.field(pytree_node=False, default=2)
    hidden: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256, 256))
    activation: Activation = struct.field(pytree_node=False, default="gelu")
    log_std_range: tuple[float, float] = struct.field(pytree_node=False, default=(-20.0, 0.5))

    outputs = 2

    @property
    def critics(self) -> int:
        """One."""
        return 1

    def distribution(self, params: PyTree, obs: PyTree, action: Array) -> tuple[Array, Array]:
        """Of each critic, mean and standard deviation of the return: ``[E, ...]`` both."""
        out = self.critic_values(params, obs, action)
        return out[..., 0], jax.nn.softplus(out[..., 1])

    def init(self, key: Key, spec: Spec) -> ReplayedState:
        """Fresh networks for ``spec``."""
        return self.fresh(self.init_params(key, spec), ("actor", "critic"))

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        Stochastic.check(self, transitions)
        require("bound", self.bound, 0, above=True)

    # Losses

    def target(self, state: ReplayedState, batch: Transition, noise: PyTree) -> Targets:
        """``y = r + gamma (1 - d) (Z'(s', a') - alpha log pi'(a' | s'))``, with slow copies."""
        mean, std, log_prob = self.successor(state, batch, noise)
        y = self.bellman(state, batch, mean + noise["return"] * std, log_prob)
        return Targets(y, y)

    def successor(
        self, state: ReplayedState, batch: Transition, noise: PyTree
    ) -> tuple[Array, Array, Array]:
        """The slow critics' mean and standard deviation ``[E, B]``, and ``log pi'(a' | s')``."""
        dist = self.policy(state.targets["actor"], batch.next_obs)
        action, log_prob = dist.sample_and_log_prob(noise["next"])
        return *self.distribution(state.targets["critic"], batch.next_obs, action), log_prob

    def bellman(
        self, state: ReplayedState, batch: Transition, value: Array, log_prob: Array
    ) -> Array:
        """``r + gamma (1 - d) (value - alpha log_prob)``: ``[E, B]``."""
        soft = value - self.temperature(state) * log_prob
        return batch.reward + self.discount(batch) * soft

    def critic_loss(
        self, params: PyTree, batch: Transition, target: Any, running: Any = None
    ) -> tuple[Array, Any]:
        """A loss of the authors' gradients, and mean and standard deviation ``[E, B]``.

        They are ``-(y - Q) / (sigma^2 + 0.1)`` for ``Q`` and, with ``C = Q + clip(y - Q, -b, b)``,
        ``-((C - Q)^2 - sigma^2) / (sigma^3 + 0.1)`` for ``sigma``.
        """
        q, sigma = self.distribution(params, batch.obs, batch.action)
        still_q, still_sigma = jax.lax.stop_gradient((q, sigma))
        error = jnp.clip(target.sample - still_q, -self.bound, self.bound)
        by_q = -(target.mean - still_q) / (still_sigma**2 + VARIANCE_FLOOR)
        by_sigma = -(error**2 - still_sigma**2) / (still_sigma**3 + VARIANCE_FLOOR)
        loss = jnp.sum(jnp.mean(by_q * q + by_sigma * sigma, axis=-1))
        return loss, (still_q, still_sigma)

    # Update

    def draw_update(self, state: ReplayedState, key: Key, shape: tuple[int, ...]) -> PyTree:
        """Normal noise of both actions ``[..., B, A]`` and of the returns ``[..., E, B]``."""
        next_key, policy_key, return_key = jax.random.split(key, 3)
        noise = self.actor_noise(state, next_key, policy_key, shape)
        size = (*shape[:-1], self.critics, shape[-1])
        sample = jax.random.normal(shard_key(return_key), size)
        return noise | {"return": jnp.clip(sample, -NOISE_CLIP, NOISE_CLIP)}

    def track(self, state: ReplayedState, batch: Transition) -> ReplayedState:
        """Running statistics of the critics, before they are used; version 1 has none."""
        return state

    def gradient_step(
        self, state: ReplayedState, batch: Transition, noise: PyTree, actor: bool
    ) -> tuple[ReplayedState, Metrics]:
        """All gradients at the same parameters; the critics step always, the rest if ``actor``."""
        state = self.track(state, batch)
        before = state
        target = self.target(state, batch, noise)
        gradient: Any = jax.grad(self.critic_loss, has_aux=True)
        grads, (q, sigma) = gradient(state.params["critic"], batch, target, state.running)
        state, metrics = self.stepped(state, "critic", grads, self.learning_rate)
        metrics |= {"q": mean_of(q), "q_std": mean_of(sigma)}
        state = state._replace(updates=state.updates + 1)
        if not actor:
            return state, metrics

        state, more = self.actor_step(state, before, batch, noise["policy"])
        return self.followed(state), merged(metrics, more)


@struct.dataclass
class DSACT(DSAC):
    """DSAC-T, also known as DSAC-v2: DSAC with three refinements, each of which can be left out.

    - ``expected_value``: the mean learns from the successor's mean instead of a sample;
    - ``twin``: two critics; the target is that of the one whose mean is smaller;
    - ``adjust``: the sample is kept within three running standard deviations ``b`` of ``Q``, and
      gradients are weighted by ``b^2 / (sigma^2 + 0.1)``, so that rewards may have any scale.

    Without all three it is ``DSAC``. Paper and code differ in the third; the default is the code,
    which clips the weight to [0.1, 10] and puts Huber's loss, of width 50, for squares. It halves
    the square, so that ``sigma`` settles at the root-mean-square error divided by sqrt(2).
    ``likelihood=True`` is the paper's form: gradients of the normal log-likelihood, times the
    running mean of ``sigma^2``.

    SAC's ``ensemble`` and ``subset`` are no options: the number of critics is what ``twin`` says,
    and a larger one would be another algorithm, since the target's sample is that of the one critic
    with the smallest mean, and each critic has a running deviation of its own.

    Attributes:
        tau_bound: step of the running statistics; in [0, 1].
        expected_value: the first refinement.
        twin: the second.
        adjust: the third.
        likelihood: take the third in the paper's form.
    """

    tau_bound: float = 0.005
    expected_value: bool = struct.field(pytree_node=False, default=True)
    twin: bool = struct.field(pytree_node=False, default=True)
    adjust: bool = struct.field(pytree_node=False, default=True)
    likelihood: bool = struct.field(pytree_node=False, default=False)

    @property
    def critics(self) -> int:
        """Two if ``twin``, else one."""
        return 2 if self.twin else 1

    def init(self, key: Key, spec: Spec) -> ReplayedState:
        """Fresh networks for ``spec``, and running statistics of nothing yet."""
        state = DSAC.init(self, key, spec)
        if not self.adjust:
            return state
        names = ("sigma", "variance") if self.likelihood else ("sigma",)
        return state._replace(running={name: jnp.zeros(self.critics) for name in names})

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        DSAC.check(self, transitions)
        require("tau_bound", self.tau_bound, 0, 1)

    def target(self, state: ReplayedState, batch: Transition, noise: PyTree) -> Targets:
        """``Q`` learns from ``Q'``, ``sigma`` from a sample ``Z'`` of the same critic."""
        mean, std, log_prob = self.successor(state, batch, noise)
        sample = mean + noise["return"] * std
        if self.twin:
            least = jnp.argmin(mean, axis=0, keepdims=True)
            mean, sample = (jnp.take_along_axis(x, least, axis=0) for x in (mean, sample))
        y_z = self.bellman(state, batch, sample, log_prob)
        y_q = self.bellman(state, batch, mean, log_prob) if self.expected_value else y_z
        return Targets(y_q, y_z)

    def track(self, state: ReplayedState, batch: Transition) -> ReplayedState:
        """Running means over batches, per critic ``[E]``; the first finite one begins.

        A mean that is not finite changes nothing, as its gradient does not (``optim.Adam``).
        """
        if not self.adjust:
            return state
        _, sigma = self.distribution(state.params["critic"], batch.obs, batch.action)
        moments = {"sigma": sigma, "variance": sigma**2}

        def moved(name: str) -> Array:
            old, new = state.running[name], shard_mean(jnp.mean(moments[name], axis=-1))
            step = jnp.where(old > 0, self.tau_bound, 1.0)  # deviations are positive
            return jnp.where(jnp.isfinite(new), optim.polyak(old, new, step), old)

        return state._replace(running={name: moved(name) for name in state.running})

    def critic_loss(
        self, params: PyTree, batch: Transition, target: Any, running: Any = None
    ) -> tuple[Array, Any]:
        """With ``adjust``, a loss of the refined gradients, which are, times the weight ``w``,

        ``h'(Q - y_q)`` for ``Q`` and ``(sigma^2 - h(Q - C)) / (sigma + 0.1)`` for ``sigma``, where
        ``C = Q + clip(y_z - Q, -3 b, 3 b)``.
        """
        if not self.adjust:
            return DSAC.critic_loss(self, params, batch, target, running)
        q, sigma = self.distribution(params, batch.obs, batch.action)
        still_q, still_sigma = jax.lax.stop_gradient((q, sigma))
        b, variance = running["sigma"][:, None], still_sigma**2
        error = jnp.clip(target.sample - still_q, -NOISE_CLIP * b, NOISE_CLIP * b)
        if self.likelihood:
            by_q = -(target.mean - still_q) / (variance + VARIANCE_FLOOR)
            by_sigma = -(error**2 - variance) / (still_sigma**3 + VARIANCE_FLOOR)
            losses = running["variance"][:, None] * (by_q * q + by_sigma * sigma)
        else:
            weight = jnp.clip(b**2 / (variance + VARIANCE_FLOOR), 0.1, 10.0)
            by_sigma = (variance - huber(error)) / (still_sigma + VARIANCE_FLOOR)
            losses = weight * (huber(q - target.mean) + by_sigma * sigma)
        return jnp.sum(jnp.mean(losses, axis=-1)), (still_q, still_sigma)
