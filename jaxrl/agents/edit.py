"""EditPolicy: a small Gaussian edit of an expressive policy's actions (Dong et al. 2025,
"EXPO: Stable Reinforcement Learning with Expressive Policies")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.agents.improvement import best, candidates
from jaxrl.hyper import choice, flag, number, part, size
from jaxrl.losses import OverCritics, over_critics
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.encoders import WithAction
from jaxrl.nn.flow import Flow
from jaxrl.nn.policies import TanhGaussian
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Box, Extras, Key, Mode, PyTree, Spec

_SIZES: dict[str, Any] = {"hidden_dims": (512, 512, 512, 512), "activation": "gelu"}


class EditState(NamedTuple):
    """The trained networks (for a frozen policy, its parameters), temperature, target critics."""

    policy: PyTree  # Trained; only the parameters if frozen
    edit: Trained
    critic: Trained
    log_alpha: Trained
    target_critic: PyTree


@hyper.dataclass
class EditPolicy:
    """An expressive policy that imitates, and a Gaussian that edits its actions.

    ``a = clip(b + edit_scale e)``, where ``b`` is a sample of the policy and ``e`` is a sample of a
    tanh-squashed normal that sees the observation and ``b``. The policy, of any family, imitates
    the actions of its batches, or is ``frozen``. The edit maximises Q with an entropy bonus, as in
    SAC. The edit is small, so actions stay near the policy's, and no gradient runs through the
    policy.

    With one candidate this is FEdit, and the defaults follow the code of Li and Levine 2026
    ("Q-learning with Adjoint Matching"). With more it is EXPO's on-the-fly policy: acting and
    targets use the best, by the mean over critics, of several samples and their edits.
    """

    learns_from: ClassVar = "batches"

    policy: Any = part(Flow(**_SIZES), help="policy family that is edited")
    edit: Any = part(
        TanhGaussian(**_SIZES), help="policy family of edits; its encoder gets the action too"
    )
    critic: Any = part(
        Critic(**_SIZES, layer_norm=True, num_critics=10), help="ensemble of critics"
    )
    optimizer: Any = part(Adam(max_grad_norm=1.0), help="optimiser of each network")
    policy_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    edit_learning_rate: float = number(3e-4, above=0, help="step size of the edit")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    alpha_learning_rate: float = number(3e-4, 0, help="step size of log alpha; 0 keeps alpha")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    edit_scale: float = number(0.1, 0, help="the largest edit of an action element; 0: no edit")
    frozen: bool = flag(False, help="keep the policy fixed, instead of imitating batches")
    num_candidates: int = size(
        1, help="policy samples to edit; if several, the best sample or edit is used"
    )
    target_q: OverCritics = choice("mean", OverCritics, help="how targets combine the critics")
    pessimism: float = number(0.5, 0, help="standard deviations over critics subtracted in targets")
    initial_alpha: float = number(1.0, above=0, help="initial temperature")
    target_entropy: float = number(-0.5, help="entropy per element of edits, in nats")
    policy_delay: int = size(1, help="gradient steps from one update of policies to the next")

    @property
    def imitates(self) -> tuple[str, ...]:
        """The parts with an imitation loss."""
        return () if self.frozen else ("policy",)

    @property
    def policy_at(self) -> tuple[str, ...]:
        """The path of the policy's parameters in the state."""
        return ("policy",) if self.frozen else ("policy.params",)

    def bind(self, spec: Spec) -> EditPolicy:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, or if a part does.
        """
        protocol.require_continuous(self, spec)
        needed = ["sample"] if self.frozen else ["sample", "fit_loss"]
        protocol.require_methods(self, "policy", needed, "Flow")
        protocol.require_methods(self, "edit", ["dist"], "TanhGaussian")
        policy = self.policy.bind(spec)
        box = Box(-1.0, 1.0, (policy.action_dim,))
        pair: Any = (spec.observation, box)
        seen = dataclasses.replace(spec, observation=pair, action=box)
        encoder = self.edit.encoder
        encoder = encoder if isinstance(encoder, WithAction) else WithAction(encoder)
        edit = dataclasses.replace(self.edit, encoder=encoder).bind(seen)
        protocol.require_bounded(edit, "edit")
        critic = self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, edit=edit, critic=critic)

    def init(self, key: Key) -> EditState:
        """Return fresh networks."""
        policy_key, edit_key, critic_key = jax.random.split(key, 3)
        policy, critic = self.policy.init(policy_key), self.critic.init(critic_key)
        start = self.optimizer.start
        return EditState(
            policy=policy if self.frozen else start(policy),
            edit=start(self.edit.init(edit_key)),
            critic=start(critic),
            log_alpha=start(jnp.log(jnp.float32(self.initial_alpha))),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    def policy_params(self, state: EditState) -> PyTree:
        """Return the parameters of the edited policy."""
        return state.policy if self.frozen else state.policy.params

    # Losses

    def critic_loss(
        self, params: PyTree, state: EditState, batch: Batch, next_action: Array
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where ``y = r + discount Q'(s', a')``.

        ``Q'`` is pessimistic over the target critics; ``a'`` are the edited actions ``[B, A]``.
        """
        next_q = self.critic(state.target_critic, batch.next_obs, next_action)
        next_value = over_critics(next_q, self.target_q, self.pessimism)
        target = batch.reward + batch.discount * next_value
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    def policy_loss(self, params: PyTree, batch: Batch, key: Key) -> tuple[Array, None]:
        """The mean of the family's ``fit_loss`` over ``[B]``."""
        return jnp.mean(self.policy.fit_loss(params, batch.obs, batch.action, key)), None

    def edit_loss(
        self, params: PyTree, state: EditState, obs: PyTree, action: Array, key: Key
    ) -> tuple[Array, Array]:
        """``mean (alpha log p(e | s, b) - mean_i Q_i(s, clip(b + edit_scale e)))``, and entropy.

        ``b`` is ``action[B, A]``, a sample of the policy.
        """
        edit, trace = self.edit.dist(params, (obs, action)).sample(key)
        q = self.critic(state.critic.params, obs, self.edited(action, edit))
        alpha = jnp.exp(state.log_alpha.params)
        loss = jnp.mean(alpha * trace.log_prob - jnp.mean(q, axis=0))
        return loss, -jnp.mean(trace.log_prob)

    def alpha_loss(self, log_alpha: Array, entropy: Array) -> tuple[Array, None]:
        """``alpha (H - H_target)``."""
        target = self.target_entropy * self.edit.action_dim
        return jnp.exp(log_alpha) * (entropy - target), None

    def edited(self, action: Array, edit: Array) -> Array:
        """Return ``clip(b + edit_scale e)`` for ``[..., A]``."""
        return jnp.clip(action + self.edit_scale * edit, -1.0, 1.0)

    def actions(self, state: EditState, obs: PyTree, key: Key, greedy: bool = False) -> Array:
        """Return edited actions ``[..., A]``, or the best of several candidates and their edits.

        If ``greedy``, edits are the mode.
        """
        policy_key, edit_key = jax.random.split(key)
        params = self.policy_params(state)
        base = candidates(self.policy, params, obs, policy_key, self.num_candidates)
        dist = self.edit.dist(state.edit.params, (obs, base))
        edited = self.edited(base, dist.mode() if greedy else dist.sample(edit_key)[0])
        if self.num_candidates == 1:
            return edited[0]
        every = jnp.concatenate([base, edited])
        return best(every, jnp.mean(self.critic(state.critic.params, obs, every), axis=0))

    # Update

    def update(
        self, state: EditState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[EditState, Metrics]:
        """One gradient step on ``[B]``: critics; policy, edit and temperature; target critics.

        Each step uses the networks updated before it.
        """
        next_key, fit_key, sample_key, edit_key = jax.random.split(key, 4)
        minimize = self.optimizer.minimize
        next_action = self.actions(state, batch.next_obs, next_key)
        critic, aux, metrics = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, state, batch, next_action
        )
        state, metrics = state._replace(critic=critic), metrics | aux
        if update_actor:
            if not self.frozen:
                policy, _, more = minimize(
                    self.policy_loss, state.policy, self.policy_learning_rate, batch, fit_key
                )
                state, metrics = state._replace(policy=policy), merged(metrics, more)
            base, _ = self.policy.sample(self.policy_params(state), batch.obs, sample_key)
            base = jnp.clip(base, -1.0, 1.0)
            edit, entropy, more = minimize(
                self.edit_loss, state.edit, self.edit_learning_rate, state, batch.obs, base,
                edit_key,
            )  # fmt: skip
            log_alpha, _, last = minimize(
                self.alpha_loss, state.log_alpha, self.alpha_learning_rate, entropy
            )
            state = state._replace(edit=edit, log_alpha=log_alpha)
            alpha = mean_of(jnp.exp(log_alpha.params))
            metrics = merged(merged(metrics, more), last)
            metrics |= {"entropy": mean_of(entropy), "alpha": alpha}
        target = optim.polyak(state.target_critic, state.critic.params, self.tau)
        return state._replace(target_critic=target), metrics

    # Acting

    def act(
        self, state: EditState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an edited sample ``[..., A]``; if ``greedy``, the edit is the mode."""
        return self.actions(state, obs, key, greedy=mode == "greedy"), carry, {}
