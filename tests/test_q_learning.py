"""What DQN and PQN have in common: epsilon-greedy actions, and discrete ones only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import trainer_of

from jaxrl import DQN, PQN, OffPolicy, OnPolicy, UsageError, VectorEnv, make
from jaxrl.nn.critics import QNetwork
from jaxrl.sharding import reducing_over

KEY = jax.random.key(0)
SPEC = make("gymnax/Acrobot-v1").spec
ACTIONS = 3

# The agent, its trainer, and what its epsilon counts.
AGENTS = {
    "dqn": (DQN, OffPolicy, "gradient_steps"),
    "pqn": (PQN, OnPolicy, "updates"),
}
every_agent = pytest.mark.parametrize("name", AGENTS)

act = jax.jit(
    lambda agent, state, obs, key, mode: agent.act(state, (), obs, key, mode), static_argnums=4
)


def agent_after(name, count, **options):
    """The agent, and its fresh state with that many steps counted."""
    kind, _, counter = AGENTS[name]
    agent = kind(q_network=QNetwork(hidden_dims=(8,)), **options).bind(SPEC)
    return agent, agent.init(KEY)._replace(**{counter: jnp.int32(count)})


@every_agent
def test_epsilon_falls_linearly_and_stays(name):
    counts = (0, 1, 2, 3, 4, 5, 1000)
    falling = {"epsilon_start": 0.9, "epsilon_end": 0.1, "epsilon_decay_steps": 4.0}
    for count, expected in zip(counts, (0.9, 0.7, 0.5, 0.3, 0.1, 0.1, 0.1), strict=True):
        agent, state = agent_after(name, count, **falling)
        assert agent.epsilon(state) == pytest.approx(expected)
        agent, state = agent_after(name, count, epsilon_start=0.3)
        assert agent.epsilon(state) == pytest.approx(0.3)


@every_agent
@pytest.mark.parametrize("mode", ["explore", "sample"])
def test_it_acts_at_random_with_probability_epsilon(name, mode):
    schedule = {"epsilon_start": 0.9, "epsilon_end": 0.3, "epsilon_decay_steps": 6.0}
    agent, state = agent_after(name, 5, **schedule)  # epsilon 0.4
    obs = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (6,)), (100_000, 6))
    best, _, _ = act(agent, state, obs, KEY, "greedy")
    values = agent.q_network(state.q.params, obs[0])
    assert values.shape == (ACTIONS,) and (best == np.argmax(values)).all()
    action, carry, extras = act(agent, state, obs, jax.random.key(3), mode)
    assert action.dtype == best.dtype == jnp.int32 and carry == () and extras == {}
    expected = np.full(ACTIONS, 0.4 / ACTIONS)
    expected[best[0]] += 0.6
    shares = np.bincount(action, minlength=ACTIONS) / len(action)
    np.testing.assert_allclose(shares, expected, atol=0.01)


@every_agent
def test_shards_explore_differently_under_one_key(name):
    agent, state = agent_after(name, 0, epsilon_start=1.0)

    def shard(obs):
        with reducing_over("shard"):
            return agent.act(state, (), obs, KEY, "explore")[0]

    obs = jnp.zeros((2, 100, 6))
    first, second = jax.jit(jax.vmap(shard, axis_name="shard"))(obs)
    assert 0.5 < (first != second).mean() < 0.85  # 2/3


@every_agent
def test_continuous_actions_are_refused(name):
    kind, trainer, _ = AGENTS[name]
    with pytest.raises(UsageError) as error:
        trainer(kind(), VectorEnv(make("gymnax/Pendulum-v1"), 4))
    assert str(error.value) == (
        f"{kind.__name__} needs discrete actions, and the environment has continuous ones; choose "
        "another agent, such as SAC or PPO, or another environment, such as gymnax/CartPole-v1"
    )


@every_agent
def test_the_script_refuses_in_one_line_before_anything_is_compiled(name, monkeypatch):
    kind, trainer, _ = AGENTS[name]
    monkeypatch.setattr(trainer, "init", lambda *_: pytest.fail("training began"))
    for words, message in {
        "--env gymnax/Pendulum-v1": f"{kind.__name__} needs discrete actions, and the environment "
        "has continuous ones; choose another agent, such as SAC or PPO, or another environment, "
        "such as gymnax/CartPole-v1",
        "--epsilon-fraction 1.5": "epsilon_fraction is 1.5; it must be at least 0 and at most 1",
        "--num-envs 0": "num_envs is 0; it must be at least 1",
    }.items():
        with pytest.raises(UsageError) as error:
            trainer_of(name, words)
        assert str(error.value) == message
