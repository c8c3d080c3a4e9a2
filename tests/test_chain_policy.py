"""A policy family of one's own, here a chain of two normal steps, trains under PPO unchanged.

An action is what a chain ends in, as with a diffusion policy: its density has no closed form, that
of the whole chain has.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import BC, PPO, NormalizeObs, Offline, OnPolicy, UsageError, VectorEnv, hyper, make
from jaxrl import metrics as m
from jaxrl.data import Dataset
from jaxrl.hyper import bound, number, part, size
from jaxrl.nn.encoders import POLICY_KEYS, Flatten
from jaxrl.nn.networks import MLP, apply_network, init_network
from jaxrl.nn.policies import vector_size
from jaxrl.rng import row_key
from jaxrl.training import rollout

KEY = jax.random.key(0)
STEPS = 2

update = jax.jit(lambda agent, state, batch, key: agent.update(state, batch, key))


class ChainTrace(NamedTuple):
    """What the steps of a chain arrived at ``[..., 2, A]``, and their log-probability ``[...]``."""

    chain: jax.Array
    log_prob: jax.Array


class ChainDistribution(NamedTuple):
    """Where each step goes from where it stands: ``policy.mean(params, features, x, step)``."""

    policy: Any
    params: Any
    features: jax.Array

    def steps(self, noise):
        """The chain ``[..., 2, A]`` that this noise of the same shape makes."""
        x, chain = jnp.zeros_like(noise[..., 0, :]), []
        for step in range(STEPS):
            mean = self.policy.mean(self.params, self.features, x, step)
            x = mean + jnp.exp(self.params["log_std"][step]) * noise[..., step, :]
            chain.append(x)
        return jnp.stack(chain, axis=-2)

    def mode(self):
        shape = (*self.features.shape[:-1], STEPS, self.policy.action_dim)
        return self.steps(jnp.zeros(shape))[..., -1, :]

    def sample(self, key):
        shape = (*self.features.shape[:-1], STEPS, self.policy.action_dim)
        chain = self.steps(jax.random.normal(row_key(key), shape))
        return chain[..., -1, :], ChainTrace(chain, self.density(chain))

    def log_prob(self, trace):
        return self.density(trace.chain)

    def density(self, chain):
        """``log N(x_1; mean_1(0), std_1) + log N(x_2; mean_2(x_1), std_2)``: ``[...]``."""
        x, total = jnp.zeros_like(chain[..., 0, :]), 0.0
        for step in range(STEPS):
            mean = self.policy.mean(self.params, self.features, x, step)
            x = chain[..., step, :]
            total += jax.scipy.stats.norm.logpdf(
                x, mean, jnp.exp(self.params["log_std"][step])
            ).sum(-1)
        return total

    def entropy(self, key):
        """Of the chain: no step's deviation depends on the one before."""
        per_element = self.params["log_std"] + 0.5 + 0.5 * jnp.log(2 * jnp.pi)
        return jnp.broadcast_to(per_element.sum(), self.features.shape[:-1])


@hyper.dataclass
class Chain:
    """Two normal steps from 0, the second of which depends on where the first arrived."""

    hidden_dims: tuple[int, ...] = size((32,), help="widths of the hidden layers")
    initial_std: float = number(0.4, above=0, help="standard deviation of each step")
    encoder: Any = part(Flatten(), help="encoder of observations")
    action_dim: int = bound(0)

    @property
    def network(self):
        return MLP(self.hidden_dims, self.action_dim, head_scale=0.1)

    def bind(self, spec):
        encoder = self.encoder.bind(spec.observation, POLICY_KEYS)
        return dataclasses.replace(self, encoder=encoder, action_dim=vector_size(self, spec))

    def init(self, key):
        inputs = self.encoder.features + self.action_dim + STEPS
        return {
            "network": init_network(self.network, key, inputs),
            "log_std": jnp.full((STEPS, self.action_dim), jnp.log(self.initial_std)),
        }

    def mean(self, params, features, x, step):
        """Where step ``step`` goes from ``x[..., A]``."""
        one_hot = jnp.broadcast_to(jax.nn.one_hot(step, STEPS), (*x.shape[:-1], STEPS))
        inputs = jnp.concatenate([features, x, one_hot], axis=-1)
        return x + apply_network(self.network, params["network"], inputs)

    def dist(self, params, obs):
        return ChainDistribution(self, params, self.encoder({}, obs))

    def sample(self, params, obs, key):
        return self.dist(params, obs).sample(key)

    def mode(self, params, obs, key=None):
        return self.dist(params, obs).mode()

    def fit_loss(self, params, obs, action, key):
        """``-log`` of the density of a chain through a noisy copy of the action."""
        noise = jax.random.normal(row_key(key), action.shape)
        copy = 0.5 * action + self.initial_std * noise
        return -self.dist(params, obs).density(jnp.stack([copy, action], axis=-2))


def chain_ppo(**options):
    sizes = {"hidden_dims": (32,)}
    critic = PPO().critic.replace(**sizes)
    return PPO(policy=Chain(**sizes), critic=critic, **options)


def one_rollout(agent, env, key=KEY):
    """The bound agent, its state, and a rollout ``[16, 8]``."""
    venv = VectorEnv(make(env), 8, max_steps=11)
    agent = agent.bind(venv.spec)
    state = agent.init(key)

    @jax.jit
    def play(state):
        return rollout(agent, state, venv, venv.reset(key), (), jax.random.key(1), 16)[2]

    return agent, state, play(state)


def test_the_trace_s_log_probability_is_the_sum_of_its_steps():
    agent, state, batch = one_rollout(chain_ppo(), "gymnax/Pendulum-v1")
    params = jax.tree.map(np.asarray, state.networks.params["policy"])
    trace = jax.tree.map(np.asarray, batch.extras["trace"])
    assert trace.chain.shape == (16, 8, 2, 1)
    np.testing.assert_array_equal(trace.chain[..., -1, :], batch.action)

    def mean(x, step):
        layer, head = params["network"]["layer_0"], params["network"]["head"]
        one_hot = np.broadcast_to(np.eye(2)[step], (16, 8, 2))
        inputs = np.concatenate([batch.obs, x, one_hot], axis=-1)
        return x + np.tanh(inputs @ layer["kernel"] + layer["bias"]) @ head["kernel"] + head["bias"]

    first, second = trace.chain[..., 0, :], trace.chain[..., 1, :]
    by_hand = 0.0
    for x, center, std in (
        (first, mean(np.zeros_like(first), 0), np.exp(params["log_std"][0])),
        (second, mean(first, 1), np.exp(params["log_std"][1])),
    ):
        by_hand -= (0.5 * ((x - center) / std) ** 2 + np.log(std * np.sqrt(2 * np.pi))).sum(-1)
    np.testing.assert_allclose(trace.log_prob, by_hand, rtol=1e-4, atol=1e-4)
    assert by_hand.std() > 0.5


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_ratio_is_one_before_the_first_step(wrapped):
    agent = chain_ppo(update_epochs=1, num_minibatches=1)
    agent, state, batch = one_rollout(
        NormalizeObs(agent) if wrapped else agent, "gymnax/Pendulum-v1"
    )
    after, metrics = update(agent, state, batch, jax.random.key(2))
    values = m.values(metrics)
    assert values["kl"] == pytest.approx(0.0, abs=1e-6) and values["clip_fraction"] == 0
    assert values["policy_loss"] == pytest.approx(0.0, abs=1e-5)
    inner, before = (agent.agent, state.agent) if wrapped else (agent, state)
    obs = agent.seen(state, batch.obs) if wrapped else batch.obs
    now = inner.policy.dist(before.networks.params["policy"], obs).log_prob(batch.extras["trace"])
    np.testing.assert_allclose(now, batch.extras["trace"].log_prob, atol=1e-5)
    # and is not one after it
    new = (after.agent if wrapped else after).networks.params["policy"]
    later = inner.policy.dist(new, obs).log_prob(batch.extras["trace"])
    assert np.abs(later - now).max() > 1e-3


def test_it_solves_the_probe_of_actions_under_ppo():
    env = make("probe/both", continuous=True)
    agent = chain_ppo(learning_rate=3e-3, gamma=0.9, lr_decay_steps=40_000 / 512)
    trainer = OnPolicy(agent, VectorEnv(env, 16), num_steps=32)
    ts, metrics = jax.jit(trainer.train, static_argnums=1)(KEY, 40_000)
    obs = jnp.array([[-1.0], [1.0]])
    action, _, _ = trainer.agent.act(ts.agent, (), obs, KEY, "greedy")
    np.testing.assert_allclose(action, env.best_action(obs), atol=0.15)
    # The last step narrows most: it can mend what the first one missed.
    first, last = ts.agent.networks.params["policy"]["log_std"][:, 0]
    assert last < first < jnp.log(0.4) and last < jnp.log(0.2)
    returns = metrics["episode_return"]
    assert returns[-5:].mean() > 0.9 > 0.6 > returns[0]


def test_it_is_cloned_unchanged_too():
    rng = np.random.default_rng(0)
    obs = np.float32(rng.choice([-1.0, 1.0], (512, 1)))
    ends = np.ones(512, bool)
    data = Dataset.of(obs, 0.5 * obs, np.zeros(512, np.float32), obs, ends, ~ends)
    env = make("probe/both", continuous=True)
    trainer = Offline(BC(policy=Chain(), learning_rate=1e-2), VectorEnv(env, 1), batch_size=64)
    ts, _ = jax.jit(trainer.train, static_argnums=1)(KEY, 640, jax.tree.map(jnp.asarray, data))
    assert trainer.evaluate(ts, KEY, 16).returns.mean() > 0.97


def test_hyper_parameters_of_the_part_are_checked_and_named():
    agent = chain_ppo()
    assert {"policy.hidden_dims", "policy.initial_std"} <= set(hyper.names(agent))
    with pytest.raises(UsageError, match=r"^policy.initial_std is 0; it must be more than 0$"):
        hyper.check(agent.replace(policy=Chain(initial_std=0.0)))
    with pytest.raises(UsageError, match="^Chain needs continuous actions, and the environment"):
        OnPolicy(agent, VectorEnv(make("gymnax/CartPole-v1"), 2))
