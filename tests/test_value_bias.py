"""The study of the critics' bias: its returns against known sums, and what its agents share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import script_module

from jaxrl import SAC, make
from jaxrl.hyper import to_config

GAMMA = 0.9


@pytest.fixture(scope="module")
def script():
    with script_module("value_bias") as module:
        yield module


def test_all_algorithms_share_every_setting_that_they_have_in_common(script):
    config = script.Config(delay=2, gamma=0.95, tau=0.01, activation="gelu", initial_alpha=0.3)
    agents = {name: to_config(script.agent_of(config, name)) for name in script.AGENTS}
    assert agents["SAC"]["delay"] == 2 and agents["DSAC"]["initial_alpha"] == 0.3
    for other in ("DSAC", "DSAC-T"):
        common = agents["SAC"].keys() & agents[other].keys() - {"class"}
        assert {name for name in common if agents[other][name] != agents["SAC"][name]} == set()
        assert {"tau", "gamma", "activation", "hidden", "log_std_range", "init_kind"} < common


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_soft_returns_are_sums_of_rewards_and_of_the_entropy_after_each(script, scale):
    """Five steps of reward 1 and an end; the policy is the same everywhere, and so its entropy."""
    env, alpha, episodes, steps = make("probe/termination", continuous=True), 0.5, 4000, 8
    agent = SAC(hidden=(4,), gamma=GAMMA, initial_alpha=alpha)
    state = agent.init(jax.random.key(0), env.spec)
    still = jax.tree.map(jnp.zeros_like, state.params["actor"])
    state = state._replace(params=state.params | {"actor": still})
    keys = jax.random.split(jax.random.key(1), episodes)
    value, returns, going = jax.jit(
        lambda: script.soft_returns(agent, state, env, keys, jnp.float32(scale), steps)
    )()
    np.testing.assert_array_equal(going, np.arange(steps)[:, None] < np.full(episodes, 5))

    obs = jnp.arange(5, 0, -1)[:, None] / 5
    rewards = scale * np.asarray(env.value(obs, GAMMA))
    entropy = agent.policy(still, jnp.zeros((20_000, 1))).entropy(jax.random.key(2)).mean()
    # The value of an action does not hold its own bonus: they begin one step later.
    bonuses = alpha * float(entropy) * (np.asarray(env.value(obs, GAMMA)) - 1.0)
    assert np.all(np.abs(bonuses[:3]) > 0.1)
    np.testing.assert_allclose(returns[:5].mean(1), rewards + bonuses, atol=0.05)
    assert np.ptp(np.asarray(returns[4])) == 0.0  # the last step: its reward alone
    assert value.shape == (steps, episodes) and np.isfinite(value).all()
