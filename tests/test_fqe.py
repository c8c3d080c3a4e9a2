"""FQE: updates against numpy, a tabular problem solved exactly, and what it evaluates."""

from __future__ import annotations

import dataclasses

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import BC, DQN, FQE, PPO, SAC, TD3, NormalizeObs, Offline, UsageError, VectorEnv
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.agents.fqe import FQEState
from jaxrl.nn.critics import AutoCritic, QNetwork
from jaxrl.nn.policies import AutoPolicy
from jaxrl.optim import Adam
from jaxrl.types import Batch, Box, Discrete, Spec, Step

KEY = jax.random.key(0)
SIZES = {"learning_rate": 0.02, "gamma": 0.9, "tau": 0.3}
CRITIC = AutoCritic(hidden_dims=(5,), num_critics=2)


def of_sac(seed=0, **options):
    """FQE of SAC with random weights."""
    sac = ref.small(SAC)
    return FQE(sac, ref.state(sac, seed), critic=CRITIC, **SIZES | options).bind(ref.SPEC)


# --- against numpy ------------------------------------------------------------------------------


def test_update_matches_numpy():
    with jax.enable_x64(True):
        agent = of_sac()
        evaluated = agent.evaluated_state
        like = ref.state(agent, seed=3)
        state = FQEState(like.critic, like.target_critic, evaluated)
        learner = ref.Learner(agent, state)
        actor = jax.tree.map(np.asarray, evaluated.actor.params)
        for seed in range(2):
            batch = ref.row(ref.batches(1, seed=seed), 0)
            state, metrics = ref.update(agent, state, batch, KEY)
            rows = jax.tree.map(np.asarray, batch)
            out = ref.mlp(actor["network"], rows.next_obs, "relu")
            action = np.tanh(out[:, : ref.ACTION])
            next_q = ref.critics(learner.targets["critic"], rows.next_obs, action, agent)[..., 0]
            y = rows.reward + rows.discount * next_q  # each critic has its own

            def loss(critic, rows=rows, y=y):
                q = ref.critics(critic, rows.obs, rows.action, agent)[..., 0]
                return ((q - y) ** 2).mean(-1).sum()

            learner.norms = {"critic": []}
            learner.step("critic", ref.gradient(loss, learner.params["critic"]), 0.02)
            learner.update_targets()
            learner.assert_equals(state, m.values(metrics))
        jax.tree.map(np.testing.assert_array_equal, state.evaluated, evaluated)


# --- a tabular problem --------------------------------------------------------------------------

STATES, ACTIONS, GAMMA = 4, 3, 0.8
TABLE = np.random.default_rng(1)
NEXT = TABLE.integers(0, STATES, (STATES, ACTIONS))
REWARD = TABLE.normal(size=(STATES, ACTIONS))
ENDS = TABLE.random((STATES, ACTIONS)) < 0.2
SPEC = Spec(Box(0.0, 1.0, (STATES,)), Discrete(ACTIONS), 20)


@dataclasses.dataclass(frozen=True)
class Table:
    """The problem as an environment, and its whole table as every batch."""

    name: str = "test/table"
    cheap: bool = True
    needs_replay: bool = False
    needs_data: bool = False

    @property
    def spec(self):
        return SPEC

    def reset(self, key):
        state = jnp.int32(0)
        return state, jnp.eye(STATES)[state]

    def step(self, key, state, action):
        after, ends = (jnp.asarray(x)[state, action] for x in (NEXT, ENDS))
        no = jnp.zeros((), bool)
        reward = jnp.float32(REWARD)[state, action]
        return after, Step(jnp.eye(STATES)[after], reward, ends, no, {})

    def check(self):
        pass

    def sample(self, store, data, key, shape, gamma):
        state, action = (x.ravel() for x in np.indices((STATES, ACTIONS)))
        one_hot = np.eye(STATES, dtype=np.float32)
        discount = jnp.where(ENDS.ravel(), 0.0, gamma)
        rows = (one_hot[state], action, np.float32(REWARD.ravel()))
        batch = Batch(*map(jnp.asarray, rows), discount, jnp.asarray(one_hot[NEXT.ravel()]), {})
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (shape[0], *x.shape)), batch)


def solved(policy):
    """``Q[S, A]`` of a policy ``[S, A]``, by linear equations."""
    value = np.linalg.solve(
        np.eye(STATES)
        - GAMMA * np.einsum("sa,sat->st", policy, ~ENDS[..., None] * np.eye(STATES)[NEXT]),
        (policy * REWARD).sum(-1),
    )
    return REWARD + GAMMA * ~ENDS * value[NEXT]


def test_it_is_exact_on_a_tabular_problem():
    """Through ``Offline``, for two greedy policies in one program."""
    dqn = DQN(q_network=QNetwork(hidden_dims=())).bind(SPEC)
    states = jax.vmap(dqn.init)(jax.random.split(KEY))
    linear = AutoCritic(hidden_dims=(), num_critics=2)
    steady = Adam(eps=0.1)  # near the solution it descends along the gradient as it is
    options = {"optimizer": steady, "learning_rate": 0.1, "gamma": GAMMA, "tau": 0.2}

    def evaluate(state, key):
        fqe = FQE(dqn, state, critic=linear, **options)
        trainer = Offline(fqe, VectorEnv(Table(), 1), num_updates=100, sampler=Table())
        ts, _ = trainer.train(key, 1_500)
        agent = trainer.agent
        every = agent.critic.values(ts.agent.critic.params, jnp.eye(STATES))
        return every, agent.estimate(ts.agent, jnp.eye(STATES)[:2], key)

    q, estimate = jax.jit(jax.vmap(evaluate))(states, jax.random.split(KEY))
    every = jnp.eye(STATES)
    acts = jax.vmap(lambda state: dqn.act(state, (), every, KEY, "greedy")[0])(states)
    policies = np.eye(ACTIONS)[np.asarray(acts)]
    assert (policies[0] != policies[1]).any()
    for i, policy in enumerate(policies):
        expected = solved(policy)
        np.testing.assert_allclose(q[i], np.broadcast_to(expected, q[i].shape), atol=1e-4)
        value = (policy * expected).sum(-1)[:2].mean()
        np.testing.assert_allclose(estimate[i], [value, value], atol=1e-4)


def test_samples_average_over_the_policy():
    clone = BC(policy=AutoPolicy(hidden_dims=())).bind(SPEC)
    state = clone.init(KEY)
    fqe = FQE(clone, state, critic=AutoCritic(hidden_dims=()), acts="sample", num_actions=20_000)
    fqe = fqe.bind(SPEC)
    mine = fqe.init(jax.random.key(1))
    obs = jnp.eye(STATES)
    found = fqe.values(mine.critic.params, mine, obs, KEY)
    pi = jax.nn.softmax(clone.policy.output(state.policy.params, obs))
    expected = (pi * fqe.critic.values(mine.critic.params, obs)).sum(-1)
    np.testing.assert_allclose(found, expected, atol=0.02)


# --- what it evaluates --------------------------------------------------------------------------


def test_it_acts_and_counts_as_itself_and_not_as_what_it_evaluates():
    """An on-policy agent with statistics is evaluated from batches, with a discount of FQE's."""
    ppo = NormalizeObs(PPO(gamma=0.5)).bind(ref.SPEC)
    state = ppo.init(KEY)
    fqe = FQE(ppo, state, critic=CRITIC).bind(ref.SPEC)
    assert protocol.learns_from(fqe) == "batches" and protocol.policy_delay(fqe) is None
    assert protocol.discount_factor(fqe) == 0.99
    protocol.check(fqe, 8)
    obs = jax.random.normal(KEY, (4, ref.OBS))
    mine = fqe.init(KEY)
    action, _, _ = fqe.act(mine, (), obs, KEY, "greedy")
    expected = ppo.act(state, (), obs, KEY, "greedy")[0]
    np.testing.assert_array_equal(action, expected)
    q = fqe.critic(mine.critic.params, obs, expected)
    np.testing.assert_allclose(fqe.values(mine.critic.params, mine, obs, KEY), q, rtol=1e-6)
    np.testing.assert_allclose(fqe.estimate(mine, obs, KEY), q.mean(-1), rtol=1e-6)


def test_what_cannot_work_is_refused():
    def refused(agent, message):
        with pytest.raises(UsageError, match=message) as error:
            protocol.check(agent.bind(ref.SPEC), 8)
        assert "\n" not in str(error.value)

    sac = ref.small(SAC)
    protocol.check(of_sac(), 8)
    wrong = "^evaluated_state is not a state of SAC with these networks; give one of a single seed"
    refused(FQE(sac), wrong)
    refused(FQE(sac, jax.tree.map(lambda x: x[None], sac.init(KEY))), wrong)
    refused(FQE(sac, SAC().bind(ref.SPEC).init(KEY)), wrong)
    td3 = ref.small(TD3, {"exploration_noise_max": 0.4})
    refused(FQE(td3, td3.init(KEY)), "^FQE evaluates agents without memory, and TD3 has one")
    refused(of_sac(num_actions=2), "^num_actions is 2, and a greedy policy has one action")
    with pytest.raises(UsageError, match="NormalizeObs around FQE would normalise what the evalua"):
        NormalizeObs(of_sac()).bind(ref.SPEC)
