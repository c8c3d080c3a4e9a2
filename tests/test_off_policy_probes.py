"""Every agent that learns from replay on every continuous probe: values, and the best action."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DSAC, DSACT, SAC, TD3, OffPolicy, VectorEnv, make
from jaxrl.envs.probe import TASKS
from jaxrl.types import Box, Spec, Step

pytestmark = pytest.mark.balanced
GAMMA, STEPS, LIMIT = 0.9, 40_000, 10
KINDS = {kind.__name__: kind for kind in (SAC, TD3, DSAC, DSACT)}
# A program of all probes takes half a minute. Of TD3's and DSAC's updates other tests hold every
# number against numpy, and their trainer, targets and samplers are those of SAC and DSAC-T.
SLOW = ("TD3", "DSAC")
TRAINED = [
    pytest.param(kind, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name, kind in KINDS.items()
]
PROBES = {name: make(f"probe/{name}", continuous=True) for name in TASKS if name != "memory"}
PARTS = ("policy", "critic")
# Where episodes go on, entropy counts: so a temperature of next to nothing there.
SEVERAL_STEPS = ("delayed", "time_limit", "termination")


class Probe:
    """The probe with the number ``which``, traced: so that one program trains on all of them.

    It steps every one of them with the same action. All are observed as dictionaries; all but one
    show policy and critics the same.
    """

    name: ClassVar[str] = "probe"
    cheap: ClassVar[bool] = True
    spec = Spec(
        {"state": Box(-1, 1, (1,)), "privileged_state": Box(-1, 1, (1,))}, Box(-1, 1, (1,)), LIMIT
    )

    def __init__(self, which):
        self.which = which

    def chosen(self, each):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[self.which], *each)

    def reset(self, key):
        each = [probe.reset(key) for probe in PROBES.values()]
        return [state for state, _ in each], self.chosen([parts(obs) for _, obs in each])

    def step(self, key, states, action):
        each = [p.step(key, s, action) for p, s in zip(PROBES.values(), states, strict=True)]
        steps = [Step(parts(out.obs), *out[1:]) for _, out in each]
        return [state for state, _ in each], self.chosen(steps)


def parts(obs: Any) -> dict:
    return obs if isinstance(obs, dict) else {"state": obs, "privileged_state": obs}


def agent_of(kind, alpha):
    options = {} if kind is TD3 else {"alpha_learning_rate": 0.0, "initial_alpha": alpha}
    rates = {"critic_learning_rate": 2e-3, "actor_learning_rate": 1e-3}
    agent = kind(gamma=GAMMA, tau=0.1, **rates, **options)
    sizes = {"hidden_dims": (32,), "activation": "gelu"}
    parts = {name: dataclasses.replace(getattr(agent, name), **sizes) for name in PARTS}
    return dataclasses.replace(agent, **parts).bind(Probe.spec)


@functools.cache
def trained(kind):
    """The agents' states after training, one for each probe.

    The seed matters to one test. Where critics do not see what the policy sees, a policy that
    follows it by chance early on teaches them to read it off the actions: one DSAC run in twenty
    stays there, with one action near its bound.
    """

    def train(which, alpha, key):
        env = VectorEnv(Probe(which), 16)
        sizes = {"buffer_size": STEPS, "batch_size": 64, "learning_starts": 2048}
        trainer = OffPolicy(agent_of(kind, alpha), env, num_updates=2, **sizes)
        ts, _ = trainer.train(key, STEPS)
        return ts.agent

    alpha = np.array([1e-4 if name in SEVERAL_STEPS else 0.03 for name in PROBES])
    keys = jax.random.split(jax.random.key(1), len(PROBES))
    return jax.jit(jax.vmap(train))(np.arange(len(PROBES)), alpha, keys)


def learnt(kind, name):
    """The agent and its state for a probe."""
    index = list(PROBES).index(name)
    return agent_of(kind, 1.0), jax.tree.map(lambda x: x[index], trained(kind))


def q_values(agent, state, obs, action):
    """The critics' values ``[E, ...]``; of distributions, their means."""
    found = agent.critic(state.critic.params, obs, action)
    return found[..., 0] if isinstance(agent, DSAC) else found


def best(agent, state, obs):
    """The greedy action."""
    return agent.act(state, (), obs, jax.random.key(0), "greedy")[0]


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("name", ["constant", "observation", "delayed", "action", "both"])
def test_solves_the_probes(kind, name):
    seen = {"constant": [0.0], "delayed": [0.0, 1.0], "action": [1.0]}
    obs = jnp.array(seen.get(name, [-1.0, 1.0]))[:, None]
    agent, state = learnt(kind, name)
    expected = PROBES[name].best_action(obs)
    found = q_values(agent, state, parts(obs), expected).min(0)
    np.testing.assert_allclose(found, PROBES[name].value(obs, GAMMA), atol=0.03)
    if name in ("action", "both"):
        action = best(agent, state, parts(obs))
        np.testing.assert_allclose(action, expected, atol=0.1)


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize(("name", "seen"), [("time_limit", 1), ("termination", 5)])
def test_a_termination_is_an_end_and_a_time_limit_is_none(kind, name, seen):
    """The learnt values are those of the finite sums, or of going on for ever, within 2 %."""
    obs = jnp.arange(1, seen + 1)[:, None] / seen if seen > 1 else jnp.zeros((1, 1))
    agent, state = learnt(kind, name)
    found = q_values(agent, state, parts(obs), best(agent, state, parts(obs)))
    expected = np.broadcast_to(PROBES[name].value(obs, GAMMA), found.shape)
    np.testing.assert_allclose(found, expected, rtol=0.02)


@pytest.mark.parametrize("kind", TRAINED)
def test_critics_see_the_privileged_part_and_the_policy_does_not(kind):
    """These critics see the bonus alone, and so the mean of ``(a - s / 2)^2``: ``a^2 + 1 / 4``."""
    agent, state = learnt(kind, "privileged")
    grid = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    obs = {"state": grid[:, :1], "privileged_state": grid[:, 1:]}
    action = best(agent, state, obs)
    np.testing.assert_allclose(action, 0.0, atol=0.1)
    alone = best(agent, state, {"state": grid[:, :1]})
    np.testing.assert_array_equal(alone, action)
    found = q_values(agent, state, obs, action).min(0)
    np.testing.assert_allclose(found, 0.75 + grid[:, 1], atol=0.15)
