"""DSAC and DSAC-T: updates against numpy, each refinement, SAC as a limit, and options."""

from __future__ import annotations

import functools
import itertools
import math
import operator

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import DSAC, DSACT, SAC, UsageError, make
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.envs import names
from jaxrl.types import Batch, Box, Spec

KEY = jax.random.key(0)
RATES = {"critic_learning_rate": 0.02, "actor_learning_rate": 0.03, "alpha_learning_rate": 0.05}
WITHOUT = {"expected_value": False, "critic.num_critics": 1, "variance_scaling": False}


def small(kind, options=()):
    return ref.small(kind, options, activation="tanh")


# --- against numpy ------------------------------------------------------------------------------


def huber(x):
    far = np.where(x.real < 0, -x, x)
    return np.where(far.real <= 50, x**2 / 2, 50 * (far - 25))


def distribution(critic, obs, action, agent):
    out = ref.critics(critic, obs, action, agent)
    return out[..., 0], ref.softplus(out[..., 1])


def critic_loss_of(learner, batch, noise, seen):
    """The critics' loss; ``seen`` takes which branches were met."""
    agent, params, targets = learner.agent, learner.params, learner.targets
    count, refined = agent.critic.num_critics, isinstance(agent, DSACT)
    alpha = np.exp(params["log_alpha"])
    next_action, log_prob = ref.policy(targets["actor"], batch.next_obs, noise["next"], agent)
    mean, std = distribution(targets["critic"], batch.next_obs, next_action, agent)
    sample = mean + np.clip(noise["return"], -3, 3) * std
    beyond = (np.abs(noise["return"]) > 3) & (batch.discount * std > 0.01)
    seen["sample clipped"] = seen.get("sample clipped", 0) + np.sum(beyond)
    if refined and count == 2:
        j, rows = mean.argmin(0), np.arange(ref.BATCH)
        seen["other sample is less"] = seen.get("other sample is less", False) | np.any(
            sample.argmin(0) != j
        )
        mean, sample = mean[j, rows], sample[j, rows]
    y_z = batch.reward + batch.discount * (sample - alpha * log_prob)
    y_q = batch.reward + batch.discount * (mean - alpha * log_prob)
    if not (refined and agent.expected_value):
        y_q = y_z
    y_q, y_z = (np.broadcast_to(y, (count, ref.BATCH)) for y in (y_q, y_z))

    still_q, still_sigma = distribution(params["critic"], batch.obs, batch.action, agent)
    if refined and agent.variance_scaling:
        now = (still_sigma.mean(-1), (still_sigma**2).mean(-1))
        old = learner.running
        tau = agent.running_tau
        learner.running = (
            now
            if old is None
            else tuple((1 - tau) * a + tau * b for a, b in zip(old, now, strict=True))
        )

    if refined and agent.variance_scaling:
        limits = 3 * learner.running[0][:, None]
    else:
        limits = agent.td_bound
    errors = y_z - still_q
    seen["clipped"] = seen.get("clipped", 0) + np.sum(np.abs(errors) > limits)
    seen["far"] = seen.get("far", 0) + np.sum(np.abs(still_q - y_q) > 50)
    c = still_q + np.clip(errors, -limits, limits)

    def likelihood(i, q, s):
        by_q = -(y_q[i] - still_q[i]) / (still_sigma[i] ** 2 + 0.1)
        by_s = -((c[i] - still_q[i]) ** 2 - still_sigma[i] ** 2) / (still_sigma[i] ** 3 + 0.1)
        return by_q * q + by_s * s

    def loss_of(i, q, s):
        if not (refined and agent.variance_scaling):
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
        return sum(loss_of(i, q[i], s[i]) for i in range(count))

    return loss


def numpy_step(learner, batch, noise, update_actor, seen):
    """All gradients at the same parameters, then their steps, then all target networks."""
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
    rates = (agent.critic_learning_rate, agent.actor_learning_rate, agent.alpha_learning_rate)
    slopes = {name: ref.gradient(loss, params[name]) for name, loss in losses.items()}
    for name, rate in zip(losses, rates, strict=True):
        if name == "critic" or update_actor:
            learner.step(name, slopes[name], rate)
    if update_actor:
        learner.update_targets()


def various(state):
    """``state`` with critics whose standard deviations are of every size."""
    critic = state.critic.params
    head = critic["network"]["head"]
    kernel = head["kernel"].at[..., 1].multiply(40.0)
    bias = head["bias"].at[..., 1].add(-10.0)
    network = critic["network"] | {"head": {"kernel": kernel, "bias": bias}}
    return ref.with_params(state, critic=critic | {"network": network})


def seed_with_clipped_noise(agent):
    """A seed of two gradient steps, one of which bootstraps from a return beyond 3 deviations."""

    def largest(seed):
        keys = jax.random.split(jax.random.key(seed), 2)
        noise = np.stack([ref.noise(agent, key)["return"] for key in keys])
        bootstraps = ref.batches(2, seed=seed).discount > 0
        return np.abs(noise * bootstraps[:, None]).max()

    return next(seed for seed in itertools.count(1) if largest(seed) > 3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DSAC, {}),
        (
            DSAC,
            {"optimizer.max_grad_norm": 0.5, "policy.log_std_range": (-1.0, 0.2)}
            | {"policy.activation": "relu", "critic.activation": "relu"},
        ),
        (DSACT, {}),
        (DSACT, {"variance_scaling": False}),
        (DSACT, {"likelihood": True, "expected_value": False, "critic.num_critics": 1}),
        *(
            pytest.param(DSACT, options, marks=pytest.mark.slow)
            for options in (
                {"expected_value": False},
                {"critic.num_critics": 1},
                {"likelihood": True},
            )
        ),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else ",".join(x) or "defaults",
)
def test_update_matches_numpy(kind, options):
    running = {"running_tau": 0.7} if kind is DSACT else {}
    agent = small(kind, RATES | running | options)
    assert agent.policy_delay == 2
    seen, count = {}, agent.critic.num_critics
    with jax.enable_x64(True):
        state = various(ref.state(agent))
        learner = ref.Learner(agent, state)
        step = functools.partial(numpy_step, seen=seen)
        state = learner.assert_matches(state, step, (seed_with_clipped_noise(agent), 0))
    # What was there to be distinguished was distinguished.
    assert 0 < seen["clipped"] < 4 * count * ref.BATCH
    assert seen["far"] > 0 and seen["sample clipped"] > 0 and seen.get("other sample is less", True)
    if count == 2 and "weights" in seen:
        assert seen["weights"].min() < 0.1 and seen["weights"].max() > 10
    assert (learner.running is not None) == (kind is DSACT and agent.variance_scaling)
    if learner.running is not None:
        np.testing.assert_allclose(state.running["std"], learner.running[0], rtol=1e-9)
    if learner.running is not None and agent.likelihood:
        np.testing.assert_allclose(state.running["variance"], learner.running[1], rtol=1e-9)


# --- refinements and limits ---------------------------------------------------------------------


@pytest.mark.exact
def test_dsac_t_without_refinements_is_dsac_bit_for_bit():
    defaults = {name: operator.attrgetter(name)(DSACT()) for name in WITHOUT}
    assert all(defaults[name] != value for name, value in WITHOUT.items())
    ends, batches = [], ref.batches(4)
    for agent in (small(DSAC, RATES), small(DSACT, RATES | WITHOUT)):
        ends.append(ref.learn(agent, ref.state(agent), batches, jax.random.key(1)))
    assert jax.tree.structure(ends[0]) == jax.tree.structure(ends[1])
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_gradient_of_the_mean_is_sacs_times_a_factor_if_the_variance_is_huge():
    """SAC's is ``2 (Q - y)``, the likelihood's ``(Q - y) / (sigma^2 + 0.1)``."""
    raw, key = 300.0, jax.random.key(1)
    agent = small(DSACT, {"variance_scaling": False, "td_bound": 1e-6})
    sac = small(SAC, {"policy.log_std_range": agent.policy.log_std_range})
    with jax.enable_x64(True):
        state, batch = ref.state(agent), ref.row(ref.batches(4), 0)
        actor, critic = state.actor.params, with_deviation(state.critic.params, raw)
        target = with_deviation(state.target_critic, raw)
        state = ref.with_params(state, critic=critic)
        state = state._replace(target_actor=actor, target_critic=target)
        plain = ref.with_params(ref.state(sac), actor=actor, critic=means(critic))
        plain = plain._replace(target_critic=means(target))

        targets = agent.targets(state, batch, key)
        noise = (targets.sample - targets.mean)[0][batch.discount > 0]
        assert np.std(noise / batch.discount[batch.discount > 0]) > raw / 2
        found, _ = jax.grad(agent.critic_loss, has_aux=True)(critic, state, batch, key)
        key, _ = jax.random.split(key)  # of next actions; DSAC-T draws returns too
        expected, _ = jax.grad(sac.critic_loss, has_aux=True)(means(critic), plain, batch, key)
        factor = 1.0 / (2.0 * (raw**2 + 0.1))
        scaled = jax.tree.map(lambda x: factor * x, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), means(found), scaled)

        # Targets are equal too: the loss of two critics that return 0 is ``2 mean y^2``.
        zeros = jax.tree.map(jnp.zeros_like, means(critic))
        loss, _ = sac.critic_loss(zeros, plain, batch, key)
        np.testing.assert_allclose(2 * np.mean(targets.mean**2), loss, rtol=1e-9)


def with_deviation(critic, raw):
    """Critics whose standard deviations are ``softplus(raw)``, whatever they see."""
    head = critic["network"]["head"]
    new = {"kernel": head["kernel"].at[..., 1].set(0), "bias": head["bias"].at[..., 1].set(raw)}
    return critic | {"network": critic["network"] | {"head": new}}


def means(critic):
    """The part of the critics that returns the mean: SAC's critics."""
    head = jax.tree.map(lambda x: x[..., :1], critic["network"]["head"])
    return critic | {"network": critic["network"] | {"head": head}}


@pytest.mark.parametrize(("likelihood", "expected"), [(False, 2**-0.5), (True, 1.0)])
def test_deviation_settles_at_the_error_of_the_return(likelihood, expected):
    """One state and action, normal rewards: their root-mean-square error, or it over sqrt(2)."""
    steps, size, spread = 3000, 64, 0.5
    options = {"critic.hidden_dims": (4,), "policy.hidden_dims": (4,), "likelihood": likelihood}
    agent = ref.agent_of(DSACT, options | {"critic_learning_rate": 1e-2}).bind(ref.SPEC)
    shape = (steps, size)
    obs, action = jnp.zeros((*shape, ref.OBS)), jnp.zeros((*shape, ref.ACTION))
    reward = 3.0 + spread * jax.random.normal(KEY, shape)
    batches = Batch(obs, action, reward, jnp.zeros(shape), obs, {})

    @functools.partial(jax.jit, compiler_options=ref.QUICKLY)
    def learn(agent, state):
        def step(key, state, batch):
            return agent.update(state, batch, key, False)

        return m.scan(step, state, jax.random.split(KEY, steps), batches)

    state, _ = learn(agent, ref.state(agent))
    zeros = jnp.zeros((1, ref.OBS)), jnp.zeros((1, ref.ACTION))
    q, sigma = agent.distribution(state.critic.params, *zeros)
    np.testing.assert_allclose(q, 3.0, atol=0.1)
    np.testing.assert_allclose(sigma, expected * spread, rtol=0.1)


@pytest.mark.parametrize("likelihood", [False, True])
def test_nonfinite_batches_leave_the_running_statistics_alone(likelihood):
    """Neither at first, when the next batch starts them, nor later."""
    agent = small(DSACT, {"likelihood": likelihood})
    state, batches = ref.state(agent), ref.batches(2)
    good, bad = ref.row(batches, 0), ref.row(batches, 1)
    bad = bad._replace(obs=bad.obs.at[0, 0].set(jnp.nan))
    known, _ = ref.update(agent, state, good, KEY)
    assert known.running.keys() == ({"std", "variance"} if likelihood else {"std"})
    assert all(np.all(x > 0) for x in known.running.values())
    for before in (state, known):
        found, metrics = ref.update(agent, before, bad, KEY)
        assert m.values(metrics)["skipped_updates"] > 0
        jax.tree.map(np.testing.assert_array_equal, found.running, before.running)
    late, _ = ref.update(agent, ref.update(agent, state, bad, KEY)[0], good, KEY)
    jax.tree.map(np.testing.assert_array_equal, late.running, known.running)


def test_sampled_returns_are_normal_within_three_deviations_and_independent():
    """Independent between critics, and of next actions and of the actor's actions."""
    size, agent = 20_000, small(DSACT)
    with jax.enable_x64(True):
        state = ref.state(agent)
        one = jax.tree.map(lambda x: x[:1], ref.row(ref.batches(1), 0))
        batch = jax.tree.map(lambda x: jnp.repeat(x, size, axis=0), one)
        critic_key, actor_key = jax.random.split(KEY)  # as ``update`` does
        mean, sample, log_prob = agent.next_returns(state, batch, critic_key)
        assert mean.shape == sample.shape == (2, size) and log_prob.shape == (size,)
        drawn = ref.noise(agent, KEY, size)
        next_action, expected = ref.policy(
            jax.tree.map(np.asarray, state.target_actor), batch.next_obs, drawn["next"], agent
        )
        np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
        _, std = agent.distribution(state.target_critic, batch.next_obs, next_action)
        returns = np.asarray((sample - mean) / std)
        action, _ = agent.policy.sample(state.actor.params, batch.obs, actor_key)
    assert np.abs(returns).max() == pytest.approx(3.0) and np.abs(drawn["next"]).max() > 3.0
    inside = returns[np.abs(returns) < 3 - 1e-9]
    assert stats.kstest(inside, stats.truncnorm(-3, 3).cdf).pvalue > 1e-4
    outside = stats.binomtest(returns.size - inside.size, returns.size, 2 * stats.norm.sf(3.0))
    assert outside.pvalue > 1e-4
    columns = [*returns, *next_action.T, *np.asarray(action).T]
    assert np.abs(np.corrcoef(columns) - np.eye(6)).max() < 5 / size**0.5


def test_initial_temperature_is_e():
    agents = (small(DSAC), small(DSACT))
    states = jax.jit(lambda key: [agent.init(key) for agent in agents])(KEY)
    assert [float(s.log_alpha.params) for s in states] == pytest.approx([1.0, 1.0])


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [name for name in names() if name.startswith("mjx/")])
def test_presets_hold_the_authors_target_entropy_in_the_units_of_the_environment(env):
    """-1 per element, of actions in ``[low, high]``; it is another of actions in [-1, 1]."""
    from jaxrl.cli.presets import dsac_t, lookup

    spec = make(env).spec
    agent = ref.agent_of(DSACT, flat(lookup(dsac_t.PRESETS, env)["agent"])).bind(spec)
    size = spec.action.shape[0]
    assert agent.alpha_loss(jnp.float32(1.0), -1.0 * size)[0] == 0.0
    scale = np.log((spec.action.high - spec.action.low) / 2).sum()
    assert agent.log_scale == pytest.approx(scale, abs=1e-5)
    if env == "mjx/Humanoid-v5":
        assert scale == pytest.approx(17 * math.log(0.4)) == pytest.approx(-15.577, abs=1e-3)


@pytest.mark.parametrize("kind", [DSAC, DSACT])
def test_soft_rewards_and_entropies_are_of_actions_in_the_environments_units(kind):
    """Of ``a = low + (tanh(u) + 1) (high - low) / 2``; scales of 0.4 and 3, another without."""
    low, high = np.array([-0.4, 2.0, -np.inf, 1.0]), np.array([0.4, 8.0, np.inf, 1.0])
    agent = ref.agent_of(kind, {f"{part}.hidden_dims": (5,) for part in ("policy", "critic")})
    spec = Spec(ref.SPEC.observation, Box(low, high, (4,)))
    with pytest.warns(UserWarning, match="element 2 of the actions has the bounds -inf and inf"):
        agent = agent.bind(spec)
    obs, zeros = np.random.default_rng(0).normal(size=(6, ref.OBS)), np.zeros(6)
    batch = Batch(obs, np.zeros((6, 4)), zeros, zeros + 0.9, obs, {})

    @jax.jit
    def found(key):
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), agent.init(key))
        state = state._replace(log_alpha=state.log_alpha._replace(params=jnp.log(0.5)))
        params, dist = state.target_actor, agent.policy.dist(state.target_actor, obs)
        drawn = (
            (*agent.policy.mean_and_std(params, obs), dist.sample(k)[1].raw)
            for k in (key, jax.random.split(key)[0])  # of the actor's loss, and of the targets
        )
        _, entropy = agent.actor_loss(params, state, batch, key)
        target = agent.targets(state, batch, key).mean
        return target, agent.next_returns(state, batch, key), entropy, tuple(drawn)

    def density(mean, std, u):
        """The normal's, that of tanh, and those of each element's scale, one after the other."""
        normal = stats.norm.logpdf(u, mean, std).sum(-1) - np.log(1 - np.tanh(u) ** 2).sum(-1)
        return normal - np.log(0.4) - np.log(3.0)

    with jax.enable_x64(True):
        target, (mean, sample, log_prob), entropy, (acted, followed) = found(KEY)
    expected = density(*map(np.asarray, followed))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    np.testing.assert_allclose(entropy, -density(*map(np.asarray, acted)).mean(), rtol=1e-6)
    next_value = np.min(sample if kind is DSAC else mean, axis=0)
    soft = 0.9 * (next_value - 0.5 * expected)
    np.testing.assert_allclose(np.min(np.atleast_2d(target), axis=0), soft, rtol=1e-6, atol=1e-6)


def flat(settings, prefix=""):
    """Nested settings by dotted names."""
    found = {}
    for name, value in settings.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {}
        found |= inner or {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DSAC, {"td_bound": 0.0}, "td_bound is 0; it must be more than 0"),
        (DSAC, {"td_bound": math.inf}, "td_bound is inf; it must be more than 0 and finite"),
        (DSAC, {"alpha_learning_rate": -1.0}, "alpha_learning_rate is -1; it must be at least 0"),
        (DSAC, {"critic.num_critics": 2}, "critic.num_critics is 2; DSAC has at most 1"),
        (DSACT, {"critic.num_critics": 3}, "critic.num_critics is 3; DSACT has at most 2"),
        (DSACT, {"running_tau": 1.5}, "running_tau is 1.5; it must be at least 0 and at most 1"),
        (DSACT, {"critic_learning_rate": 0.0}, "critic_learning_rate is 0; it must be more than 0"),
        (DSACT, {"td_bound": -1.0}, "td_bound is -1; it must be more than 0"),
        (
            DSACT,
            {"policy.log_std_range": (0.5, 0.5)},
            r"policy.log_std_range is \(0.5, 0.5\); .*low and high",
        ),
    ],
)
def test_invalid_hyperparameters_are_refused(kind, options, message):
    protocol.check(ref.agent_of(kind).bind(ref.SPEC), 256)
    with pytest.raises(UsageError, match=message) as error:
        protocol.check(ref.agent_of(kind, options).bind(ref.SPEC), 256)
    assert "\n" not in str(error.value)
