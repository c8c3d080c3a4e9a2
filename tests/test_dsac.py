"""DSAC and DSAC-T: updates against numpy, each refinement, SAC as a limit, and options."""

from __future__ import annotations

import functools
import math

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import DSAC, DSACT, SAC, UsageError, make
from jaxrl import metrics as m
from jaxrl.cli.presets import dsac_t, lookup
from jaxrl.envs import names
from jaxrl.types import Transition

KEY = jax.random.key(0)
SMALL = {"hidden": (5,), "activation": "tanh", "gamma": 0.9, "tau": 0.3}
RATES = {"learning_rate": 0.02, "actor_learning_rate": 0.03, "alpha_learning_rate": 0.05}
NONE = {"expected_value": False, "twin": False, "adjust": False}


# --- against numpy ------------------------------------------------------------------------------


def huber(x):
    far = np.where(x.real < 0, -x, x)
    return np.where(far.real <= 50, x**2 / 2, 50 * (far - 25))


def distribution(critic, obs, action, agent):
    out = ref.critics(critic, obs, action, agent.activation)
    return out[..., 0], ref.softplus(out[..., 1])


def critic_loss_of(learner, batch, noise, seen):
    """Sections 3.2 and 3.7 of the reference; ``seen`` takes which branches were met."""
    agent, params, slow = learner.agent, learner.params, learner.targets
    refined = isinstance(agent, DSACT)
    alpha = np.exp(params["log_alpha"])
    next_action, log_prob = ref.policy(slow["actor"], batch.next_obs, noise["next"], agent)
    mean, std = distribution(slow["critic"], batch.next_obs, next_action, agent)
    sample = mean + np.clip(noise["return"], -3, 3) * std
    if refined and agent.twin:
        j, rows = mean.argmin(0), np.arange(ref.BATCH)
        seen["other sample is less"] = np.any(sample.argmin(0) != j)
        mean, sample = mean[j, rows], sample[j, rows]
    bootstrap = ref.discount(batch, agent.gamma)
    y_z = batch.reward + bootstrap * (sample - alpha * log_prob)
    y_q = batch.reward + bootstrap * (mean - alpha * log_prob)
    if not (refined and agent.expected_value):
        y_q = y_z
    y_q, y_z = (np.broadcast_to(y, (agent.critics, ref.BATCH)) for y in (y_q, y_z))

    still_q, still_sigma = distribution(params["critic"], batch.obs, batch.action, agent)
    if refined and agent.adjust:
        now = (still_sigma.mean(-1), (still_sigma**2).mean(-1))
        old = learner.running
        tau = agent.tau_bound
        learner.running = (
            now
            if old is None
            else tuple((1 - tau) * a + tau * b for a, b in zip(old, now, strict=True))
        )

    if refined and agent.adjust:
        limits = 3 * learner.running[0][:, None]
    else:
        limits = agent.bound
    errors = y_z - still_q
    seen["clipped"] = seen.get("clipped", 0) + np.sum(np.abs(errors) > limits)
    seen["far"] = seen.get("far", 0) + np.sum(np.abs(still_q - y_q) > 50)
    c = still_q + np.clip(errors, -limits, limits)

    def likelihood(i, q, s):
        by_q = -(y_q[i] - still_q[i]) / (still_sigma[i] ** 2 + 0.1)
        by_s = -((c[i] - still_q[i]) ** 2 - still_sigma[i] ** 2) / (still_sigma[i] ** 3 + 0.1)
        return by_q * q + by_s * s

    def loss_of(i, q, s):
        if not (refined and agent.adjust):
            return likelihood(i, q, s).mean()
        b, omega = (running[i] for running in learner.running)
        if agent.likelihood:
            return (omega * likelihood(i, q, s)).mean()
        weight = b**2 / (still_sigma[i] ** 2 + 0.1)
        seen["weights"] = np.append(seen.get("weights", []), weight)
        w = np.clip(weight, 0.1, 10)
        by_s = (still_sigma[i] ** 2 - huber(still_q[i] - c[i])) / (still_sigma[i] + 0.1)
        return (w * (huber(q - y_q[i]) + s * by_s)).mean()

    def loss(critic):
        q, s = distribution(critic, batch.obs, batch.action, agent)
        return sum(loss_of(i, q[i], s[i]) for i in range(agent.critics))

    return loss


def numpy_step(learner, batch, noise, actor, seen):
    """Section 3.5: all gradients at the same parameters, then steps, then all slow copies."""
    agent, params = learner.agent, learner.params
    critic_loss = critic_loss_of(learner, batch, noise, seen)
    alpha = np.exp(params["log_alpha"])
    _, log_prob = ref.policy(params["actor"], batch.obs, noise["policy"], agent)
    target_entropy = -ref.ACTION

    def actor_loss(actor):
        action, log_prob = ref.policy(actor, batch.obs, noise["policy"], agent)
        q, _ = distribution(params["critic"], batch.obs, action, agent)
        return (alpha * log_prob - ref.least(q)).mean()

    def alpha_loss(log_alpha):
        return -log_alpha * (log_prob + target_entropy).mean()

    losses = {"critic": critic_loss, "actor": actor_loss, "log_alpha": alpha_loss}
    rates = (agent.learning_rate, agent.actor_learning_rate, agent.alpha_learning_rate)
    slopes = {name: ref.gradient(loss, params[name]) for name, loss in losses.items()}
    for name, rate in zip(losses, rates, strict=True):
        if name == "critic" or actor:
            learner.step(name, slopes[name], rate)
    if actor:
        learner.follow()


def various(state):
    """With critics whose standard deviations are of every size."""
    critic = state.params["critic"]
    head = critic["params"]["mlp"]["head"]
    kernel = head["kernel"].at[..., 1].multiply(40.0)
    bias = head["bias"].at[..., 1].add(-10.0)
    mlp = critic["params"]["mlp"] | {"head": {"kernel": kernel, "bias": bias}}
    return state._replace(params=state.params | {"critic": {"params": {"mlp": mlp}}})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DSAC, {}),
        (DSAC, {"max_grad_norm": 0.5, "activation": "relu", "log_std_range": (-1.0, 0.2)}),
        (DSACT, {}),
        (DSACT, {"expected_value": False}),
        (DSACT, {"twin": False}),
        (DSACT, {"adjust": False}),
        (DSACT, {"likelihood": True}),
        (DSACT, {"likelihood": True, "expected_value": False, "twin": False}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else ",".join(x) or "defaults",
)
def test_updates_equal_a_numpy_transcription(kind, options):
    bound = {"tau_bound": 0.7} if kind is DSACT else {}
    agent = kind(**(SMALL | RATES | bound | options))
    assert agent.delay == 2
    seen = {}
    with jax.enable_x64(True):
        state = various(ref.state(agent))
        learner = ref.Learner(agent, state)
        state = learner.assert_follows(state, functools.partial(numpy_step, seen=seen))
    # What was there to be distinguished was distinguished.
    assert 0 < seen["clipped"] < 4 * agent.critics * ref.BATCH
    assert seen["far"] > 0 and seen.get("other sample is less", True)
    if agent.critics == 2 and "weights" in seen:
        assert seen["weights"].min() < 0.1 and seen["weights"].max() > 10
    if learner.running is not None:
        np.testing.assert_allclose(state.running["sigma"], learner.running[0], rtol=1e-9)


# --- refinements and limits ---------------------------------------------------------------------


def test_without_refinements_it_is_version_one_bit_for_bit():
    assert [field for field, value in NONE.items() if getattr(DSACT(), field) is value] == []
    ends, batch = [], ref.narrowed(BATCHES)
    for agent in (DSAC(**SMALL, **RATES), DSACT(**SMALL, **RATES, **NONE)):
        ends.append(ref.update(agent, ref.state(agent), batch, jax.random.key(1)))
    assert jax.tree.structure(ends[0]) == jax.tree.structure(ends[1])
    jax.tree.map(np.testing.assert_array_equal, *ends)


BATCHES = ref.batches(4)


def test_with_a_huge_variance_the_means_gradient_is_sacs_times_a_known_factor():
    """SAC's is ``2 (Q - y)``, the likelihood's ``(Q - y) / (sigma^2 + 0.1)``."""
    raw = 300.0
    agent = DSACT(**SMALL, adjust=False, bound=1e-6)
    with jax.enable_x64(True):
        state = ref.state(agent)
        actor = {"actor": state.params["actor"]}
        params, targets = (
            tree | actor | {"critic": widened(tree["critic"], raw)}
            for tree in (state.params, state.targets)
        )
        state = state._replace(params=params, targets=targets)
        batch = jax.tree.map(lambda x: x[0], BATCHES)
        noise = jax.tree.map(lambda x: x[0], ref.noise(agent, state, 1))

        sac = SAC(**SMALL, log_std_range=agent.log_std_range)
        plain = ref.state(sac)._replace(
            params=params | {"critic": means(params["critic"])},
            targets={"critic": means(targets["critic"])},
        )
        target = agent.target(state, batch, noise)
        y = sac.target(plain, batch, noise)
        np.testing.assert_allclose(target.mean, jnp.broadcast_to(y, target.mean.shape), rtol=1e-9)
        assert np.std(target.sample - target.mean) > raw / 2
        found = jax.grad(lambda p: agent.critic_loss(p, batch, target, {})[0])(params["critic"])
        expected = jax.grad(lambda p: sac.critic_loss(p, batch, y)[0])(plain.params["critic"])
        factor = 1.0 / (2.0 * (raw**2 + 0.1))
        scaled = jax.tree.map(lambda x: factor * x, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), means(found), scaled)


def widened(critic, raw):
    """Critics of which every standard deviation is ``softplus(raw)``, whatever they see."""
    head = critic["params"]["mlp"]["head"]
    new = {"kernel": head["kernel"].at[..., 1].set(0), "bias": head["bias"].at[..., 1].set(raw)}
    return {"params": {"mlp": critic["params"]["mlp"] | {"head": new}}}


def means(critic):
    """What of the critics makes the mean: SAC's critics."""
    head = jax.tree.map(lambda x: x[..., :1], critic["params"]["mlp"]["head"])
    return {"params": {"mlp": critic["params"]["mlp"] | {"head": head}}}


@pytest.mark.parametrize(("likelihood", "expected"), [(False, 2**-0.5), (True, 1.0)])
def test_the_deviation_settles_at_the_error_of_the_return(likelihood, expected):
    """One state and action, normal rewards: their root-mean-square error, or it over sqrt(2)."""
    steps, size, spread = 3000, 64, 0.5
    agent = DSACT(hidden=(4,), learning_rate=1e-2, likelihood=likelihood)
    shape = (steps, size)
    obs, action = jnp.zeros((*shape, ref.OBS)), jnp.zeros((*shape, ref.ACTION))
    reward = 3.0 + spread * jax.random.normal(KEY, shape)
    ends = jnp.ones(shape, bool)
    batch = Transition(obs, action, reward, obs, ends, ~ends, {})
    state, _ = ref.without_actor(agent, ref.narrowed(ref.state(agent)), batch, KEY)
    q, sigma = agent.distribution(
        state.params["critic"], jnp.zeros((1, ref.OBS)), jnp.zeros((1, ref.ACTION))
    )
    np.testing.assert_allclose(q, 3.0, atol=0.1)
    np.testing.assert_allclose(sigma, expected * spread, rtol=0.1)


@pytest.mark.parametrize("likelihood", [False, True])
def test_what_is_not_finite_leaves_no_trace_in_the_running_statistics(likelihood):
    """Neither at first, when the next batch begins them, nor later."""
    agent = DSACT(**SMALL, likelihood=likelihood)
    state, batch = ref.state(agent), ref.narrowed(BATCHES)
    good, bad = jax.tree.map(lambda x: x[:1], batch), jax.tree.map(lambda x: x[1:2], batch)
    bad = bad._replace(obs=bad.obs.at[0, 0, 0].set(jnp.nan))
    known, _ = ref.update(agent, state, good, KEY)
    assert all(np.all(x > 0) for x in known.running.values())
    for before, after in ((state, state), (known, known)):
        found, metrics = ref.update(agent, before, bad, KEY)
        assert m.values(metrics)["skipped_updates"] > 0
        jax.tree.map(np.testing.assert_array_equal, found.running, after.running)
    late, _ = ref.update(agent, ref.update(agent, state, bad, KEY)[0], good, KEY)
    jax.tree.map(np.testing.assert_array_equal, late.running, known.running)


def test_samples_of_returns_are_normal_within_three_deviations_and_independent():
    agent = DSACT(**SMALL)
    noise = agent.draw_update(ref.state(agent), KEY, (400, 50))
    assert noise["return"].shape == (400, 2, 50)
    assert noise["next"].shape == noise["policy"].shape == (400, 50, ref.ACTION)
    assert np.abs(noise["return"]).max() == 3.0 and np.abs(noise["next"]).max() > 3.0
    inside = np.ravel(noise["return"])[np.abs(np.ravel(noise["return"])) < 3]
    assert stats.kstest(inside, stats.truncnorm(-3, 3).cdf).pvalue > 1e-4
    first, second = np.moveaxis(np.asarray(noise["return"]), 1, 0).reshape(2, -1)
    columns = [first, second, *np.reshape(noise["next"], (-1, 2)).T]
    columns += [*np.reshape(noise["policy"], (-1, 2)).T]
    off_diagonal = np.corrcoef(columns) - np.eye(6)
    assert np.abs(off_diagonal).max() < 5 / len(first) ** 0.5


def test_the_temperature_starts_at_e():
    agents = (DSAC(**SMALL), DSACT(**SMALL))
    states = jax.jit(lambda key: [agent.init(key, ref.SPEC) for agent in agents])(KEY)
    assert [float(s.params["log_alpha"]) for s in states] == pytest.approx([1.0, 1.0])


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [name for name in names() if name.startswith("mjx/")])
def test_presets_hold_the_authors_entropy_in_the_units_of_the_environment(env):
    """-1 per element, of actions in ``[low, high]``; it is another of actions in [-1, 1]."""
    space = make(env).spec.action
    agent = DSACT(**lookup(dsac_t.PRESETS, env)["agent"])
    in_units = agent.target_entropy + np.log((space.high - space.low) / 2)
    np.testing.assert_allclose(in_units, -1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DSAC, {"bound": 0.0}, "bound is 0; it must be more than 0"),
        (DSAC, {"bound": math.inf}, "bound is inf; it must be more than 0 and finite"),
        (DSAC, {"alpha_learning_rate": -1.0}, "alpha_learning_rate is -1; it must be at least 0"),
        (DSACT, {"tau_bound": 1.5}, "tau_bound is 1.5; it must be at least 0 and at most 1"),
        (DSACT, {"learning_rate": 0.0}, "learning_rate is 0; it must be more than 0"),
        (DSACT, {"bound": -1.0}, "bound is -1; it must be more than 0"),
        (DSACT, {"log_std_range": (0.5, 0.5)}, r"log_std_range is \(0.5, 0.5\); .*low and high"),
    ],
)
def test_hyper_parameters_that_cannot_work_are_refused(kind, options, message):
    kind().check(256)
    with pytest.raises(UsageError, match=message) as error:
        kind(**options).check(256)
    assert "\n" not in str(error.value)
