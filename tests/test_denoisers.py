"""Diffusion and flow policies against closed forms: for normal data every network is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.nn.denoisers import run_chain
from jaxrl.nn.diffusion import Diffusion, betas
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow, NoisyFlow, OneStep
from jaxrl.types import Box, Spec

MEAN, STD = jnp.array([0.2, -0.3]), jnp.array([0.1, 0.2])  # of the data
SPEC = Spec(Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)), 10)
SMALL: dict[str, Any] = {"hidden_dims": (8,), "time_features": 4}
FAMILIES = {
    "ddpm": Diffusion(**SMALL),
    "residual": Diffusion(**SMALL, residual=True, time_embedding="fourier", clip="samples"),
    "edm": EDM(**SMALL),
    "flow": Flow(**SMALL, sample_steps=3),
    "noisy flow": NoisyFlow(**SMALL, std_hidden_dims=(4,)),
}


def bound(family: Any) -> Any:
    return family.bind(SPEC)


# What the best network predicts for normal data


def epsilon(policy: Diffusion, x: jax.Array, time: jax.Array) -> jax.Array:
    a = jnp.asarray(policy.alpha_bars, jnp.float32)[time.astype(jnp.int32)][..., None]
    return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)


def diffusion_output(policy: Diffusion, x: jax.Array, time: jax.Array) -> jax.Array:
    a = jnp.asarray(policy.alpha_bars, jnp.float32)[time.astype(jnp.int32)][..., None]
    noise = epsilon(policy, x, time)
    action = (x - jnp.sqrt(1 - a) * noise) / jnp.sqrt(a)
    outputs = {"epsilon": noise, "x0": action, "v": jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * action}
    return outputs[policy.prediction]


def edm_output(policy: EDM, x: jax.Array, time: jax.Array) -> jax.Array:
    sigma = jnp.exp(4 * time)[..., None]
    skip, out, into = policy.scales(sigma)
    noised = x / into
    action = (STD**2 * noised + sigma**2 * MEAN) / (STD**2 + sigma**2)
    return (action - skip * noised) / out


def velocity(x: jax.Array, time: jax.Array) -> jax.Array:
    t = time[..., None]
    variance = (1 - t) ** 2 + t**2 * STD**2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


@pytest.mark.parametrize(
    ("schedule", "eta", "prediction"),
    [("vp", 1.0, "epsilon"), ("vp", 0.0, "x0"), ("cosine", 1.0, "v"), ("cosine", 0.0, "epsilon")],
)
def test_diffusion_samples_normal_data(schedule: Any, eta: float, prediction: Any) -> None:
    policy = Diffusion(schedule=schedule, num_steps=600, eta=eta, prediction=prediction)
    first, *noise = jax.random.normal(jax.random.key(0), (601, 4_000, 2))
    predict = lambda x, t: diffusion_output(policy, x, t)  # noqa: E731
    sample = policy.chain(predict, first, jnp.stack(noise), False)[:, -1]
    np.testing.assert_allclose(sample.mean(0), MEAN, atol=0.015)
    np.testing.assert_allclose(sample.std(0), STD, rtol=0.06)


@pytest.mark.parametrize(
    ("solver", "schedule"),
    [
        ("euler", "linear"),
        ("heun", "exponential"),
        ("ancestral", "karras"),
        ("ancestral", "linear"),
    ],
)
def test_edm_samples_normal_data(solver: Any, schedule: Any) -> None:
    policy = EDM(solver=solver, sigma_schedule=schedule, sample_steps=400, sigma_max=2.0)
    first, *noise = jax.random.normal(jax.random.key(0), (401, 4_000, 2))
    first = (MEAN + jnp.sqrt(STD**2 + 4.0) * first) / 2.0  # data with the largest noise
    predict = lambda x, t: edm_output(policy, x, t)  # noqa: E731
    sample = policy.chain(predict, first, jnp.stack(noise))[:, -1]
    np.testing.assert_allclose(sample.mean(0), MEAN, atol=0.015)
    np.testing.assert_allclose(sample.std(0), STD, rtol=0.06)


@pytest.mark.parametrize("solver", ["euler", "heun", "ancestral"])
def test_edm_from_given_noise_keeps_the_deviation(solver: Any) -> None:
    """Ancestral steps remove noise to add it anew, so without new noise they are Euler steps."""
    policy = EDM(solver=solver, sample_steps=100)
    first = jax.random.normal(jax.random.key(0), (4_000, 2))
    sample = policy.generate_from(lambda x, t: edm_output(policy, x, t), first)
    np.testing.assert_allclose(sample.std(0), STD, rtol=0.1)


def test_ancestral_step_is_the_posterior_of_ddpm() -> None:
    """Ho et al. 2020, eq. 7, from the expected action."""
    policy = Diffusion(num_steps=5)
    beta, steps = betas("vp", 5), policy.steps()
    alpha_bar = np.cumprod(1 - beta)
    x, action = jnp.array([0.4, -1.2]), jnp.array([0.3, 0.9])
    for i, k in enumerate(range(4, -1, -1)):
        before = alpha_bar[k - 1] if k else 1.0
        mean = beta[k] * before**0.5 / (1 - alpha_bar[k]) * action
        mean += (1 - before) * (1 - beta[k]) ** 0.5 / (1 - alpha_bar[k]) * x
        std = (beta[k] * (1 - before) / (1 - alpha_bar[k])) ** 0.5
        step = jax.tree.map(lambda table, i=i: table[i], steps)
        noise = (x - step.alpha_bar**0.5 * action) / (1 - step.alpha_bar) ** 0.5
        np.testing.assert_allclose(policy.mean(lambda x, t: noise, x, step), mean, atol=2e-5)  # noqa: B023
        np.testing.assert_allclose(step.noise_std, std, atol=1e-6)


def test_schedules_have_their_published_values() -> None:
    np.testing.assert_allclose(betas("vp", 5), [0.1959, 0.4588, 0.6358, 0.7549, 0.8350], atol=5e-5)
    cosine = [0.1013, 0.2795, 0.4736, 0.7241, 0.999]
    np.testing.assert_allclose(betas("cosine", 5), cosine, atol=5e-5)
    for steps in (5, 50):
        np.testing.assert_allclose(np.prod(1 - betas("vp", steps)), np.exp(-5.05), rtol=1e-6)


def orders(errors: list[float]) -> list[float]:
    """The order of convergence between runs of doubled steps."""
    return [float(np.log2(a / b)) for a, b in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
def test_flows_converge_at_their_order(solver: Any, order: int) -> None:
    noise = jax.random.normal(jax.random.key(0), (64, 2))
    exact, errors = MEAN + STD * noise, []
    for steps in (40, 80, 160):
        points = Flow(sample_steps=steps, solver=solver).chain(velocity, noise)
        errors.append(float(jnp.abs(points[:, -1] - exact).max()))
    assert min(orders(errors)) > order - 0.25
    assert errors[0] < 0.1


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_edm_converges_at_its_order(solver: Any, order: int) -> None:
    """Towards the exact solution at the least noise level."""
    noise, errors = jax.random.normal(jax.random.key(0), (64, 2)), []
    for steps in (20, 40, 80):
        policy = EDM(solver=solver, sample_steps=steps, sigma_min=0.02)
        points = policy.chain(
            lambda x, t, policy=policy: edm_output(policy, x, t), noise, jnp.zeros((steps, 64, 2))
        )
        ratio = jnp.sqrt((STD**2 + 0.02**2) / (STD**2 + 1.0))
        errors.append(float(jnp.abs(points[:, -2] - (MEAN + (noise - MEAN) * ratio)).max()))
    np.testing.assert_allclose(orders(errors), order, atol=0.3)


def test_ddim_is_the_probability_flow() -> None:
    """Deterministic and not clipped, it approaches the exact map from noise to action."""
    noise, errors = jax.random.normal(jax.random.key(0), (64, 2)), []
    for steps in (100, 200, 400):
        policy = Diffusion(num_steps=steps, eta=0.0, clip="last", schedule="cosine")
        zeros = jnp.zeros((steps, 64, 2))
        points = policy.chain(
            lambda x, t, policy=policy: epsilon(policy, x, t), noise, zeros, False
        )
        last = policy.alpha_bars[-1]
        exact = MEAN + STD * (noise - last**0.5 * MEAN) / jnp.sqrt(last * STD**2 + 1 - last)
        errors.append(float(jnp.abs(points[:, -1] - exact).max()))
    assert errors[-1] < 0.01
    np.testing.assert_allclose(orders(errors), 1, atol=0.3)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_least_at_the_best_network(name: str) -> None:
    """At the exact network the mean error is the conditional variance; moved, it is greater."""
    policy = bound(FAMILIES[name])
    exact: Any = {
        Diffusion: lambda x, t: diffusion_output(policy, x, t),
        EDM: lambda x, t: edm_output(policy, x, t),
    }.get(type(policy), velocity)
    keys = jax.random.split(jax.random.key(0), 4)
    action = MEAN + STD * jax.random.normal(keys[0], (50_000, 2))
    noise = jax.random.normal(keys[1], (1, 50_000, 2))
    time = policy.times(keys[2], jax.random.uniform(keys[3], (1, 50_000)))

    def loss(shift: jax.Array) -> jax.Array:
        moved = lambda x, t: exact(x, t) + shift  # noqa: E731
        return jnp.mean(policy.noised_errors(moved, time, action, noise))

    slope = jax.grad(loss)(jnp.zeros(2))
    np.testing.assert_allclose(slope, 0.0, atol=0.01)
    assert loss(jnp.array([0.1, 0.1])) > loss(jnp.zeros(2)) + 0.005


def test_times_to_learn_at() -> None:
    uniform = (jnp.arange(10_000) + 0.5) / 10_000
    key = jax.random.key(0)
    edm = EDM()
    logs = np.log(edm.times(key, uniform))
    logistic = stats.logistic(-0.6, 1.6)
    low, high = logistic.cdf(np.log([edm.sigma_min, edm.sigma_max]))
    expected = logistic.ppf(low + np.asarray(uniform) * (high - low))
    np.testing.assert_allclose(logs, expected, atol=2e-3)
    beta = np.sort(Flow(time_distribution="beta").times(key, uniform))
    quantiles = 0.999 * (1 - stats.beta(1.5, 1).ppf(1 - np.asarray(uniform)))
    np.testing.assert_allclose(beta, np.sort(quantiles), atol=1e-3)
    normal = stats.norm.ppf(np.asarray(uniform))
    logit = Flow(time_distribution="logit_normal").times(key, uniform)
    np.testing.assert_allclose(logit, 1 / (1 + np.exp(-normal)), atol=1e-4)
    steps = np.bincount(Diffusion(num_steps=4).times(key, uniform))
    np.testing.assert_array_equal(steps, [2500] * 4)


# Families with networks


@pytest.mark.parametrize("name", FAMILIES)
def test_families_sample_and_learn(name: str) -> None:
    policy = bound(FAMILIES[name])
    params = policy.init(jax.random.key(0))
    obs, action = jnp.ones((4, 3)), jnp.full((4, 2), 0.5)
    key = jax.random.key(1)
    sampled, _ = jax.jit(policy.sample)(params, obs, key)
    assert sampled.shape == (4, 2) and float(jnp.abs(sampled).max()) <= 1.0
    assert len({tuple(row) for row in np.asarray(sampled)}) > 1  # each row has noise of its own
    single, _ = policy.sample(params, obs[0], key)
    assert single.shape == (2,)
    loss = jax.jit(jax.grad(lambda p: policy.fit_loss(p, obs, action, key).sum()))
    gradient = loss(params)
    norms = jax.tree.map(lambda x: float(jnp.linalg.norm(x)), gradient["network"])
    assert all(np.isfinite(norm) for norm in jax.tree.leaves(norms))
    assert sum(jax.tree.leaves(norms)) > 0


def test_many_noises_are_the_mean_of_each() -> None:
    """Their times are spread evenly, and one encoding serves them all."""
    policy = bound(Flow(**SMALL, noise_samples=4))
    params = policy.init(jax.random.key(0))
    obs, action = jnp.ones((5, 3)), jnp.zeros((5, 2))
    keys = jax.random.split(jax.random.key(1), 3)
    uniform = (jnp.arange(4)[:, None] + jax.random.uniform(keys[0], (4, 5))) / 4
    noise = jax.random.normal(keys[1], (4, 5, 2))
    predict = policy.predictor(params, obs)
    each = [
        policy.noised_errors(predict, uniform[m : m + 1], action, noise[m : m + 1])[0]
        for m in range(4)
    ]
    errors = policy.errors(params, obs, action, jax.random.key(1))
    np.testing.assert_allclose(errors, jnp.stack(each).mean(0), rtol=1e-5)


def test_checkpointed_gradients_agree() -> None:
    """Of an action through the chain, by the parameters."""
    obs, key = jnp.ones((4, 3)), jax.random.key(1)
    for family in (Diffusion(**SMALL, num_steps=11), Flow(**SMALL, sample_steps=2)):
        plain = bound(family)
        params = plain.init(jax.random.key(0))
        kept, recomputed = (
            jax.grad(lambda p, policy=policy: policy.mode(p, obs, key).sum())(params)
            for policy in (plain, dataclasses.replace(plain, checkpoint=True))
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, recomputed)


def test_chains_have_the_density_of_their_steps() -> None:
    """The sum of the normals by hand; the noise of each step is drawn before the chain."""
    obs, key = jnp.ones((4, 3)), jax.random.key(1)
    for family in (Diffusion(**SMALL, min_std=0.1), NoisyFlow(**SMALL, std_hidden_dims=(4,))):
        policy = bound(family)
        params = policy.init(jax.random.key(0))
        action, trace = policy.sample(params, obs, key)
        predict, total = policy.predictor(params, obs), np.zeros(4)
        for k in range(trace.points.shape[-2] - 1):
            before, after = trace.points[:, k], trace.points[:, k + 1]
            if isinstance(policy, Diffusion):
                step = jax.tree.map(lambda table, k=k: table[k], policy.steps(exploring=True))
                mean, std = policy.mean(predict, before, step), float(step.noise_std)
                assert std >= 0.1 - 1e-7
            else:
                time = jnp.full(4, k / policy.sample_steps)
                mean = before + predict(before, time) / policy.sample_steps
                std = np.asarray(policy.stds(params, obs)[k])
                assert (std > 0.1).all() and (std < 0.24).all()
            total += stats.norm(mean, std).logpdf(np.asarray(after)).sum(-1)
        np.testing.assert_allclose(trace.log_prob, total, rtol=1e-4)
        each = policy.step_log_probs(params, obs, trace.points)
        assert each.shape == (4, trace.points.shape[-2] - 1, 2)
        np.testing.assert_allclose(each.sum((-1, -2)), total, rtol=1e-4)
        np.testing.assert_allclose(action, jnp.clip(trace.points[:, -1], -1, 1))


def test_noisy_flow_without_noise_is_the_flow() -> None:
    noisy = bound(NoisyFlow(**SMALL, std_min=1e-9, std_max=2e-9))
    params = noisy.init(jax.random.key(0))
    obs, key = jnp.ones((4, 3)), jax.random.key(1)
    _, trace = noisy.sample(params, obs, key)
    flow = bound(Flow(**SMALL, sample_steps=4))
    np.testing.assert_allclose(
        noisy.sample(params, obs, key)[0],
        flow.from_noise(params, obs, trace.points[:, 0]),
        atol=1e-5,
    )


def test_one_euler_step_adds_the_velocity_at_the_noise() -> None:
    points = Flow(sample_steps=1).chain(velocity, jnp.array([[0.5, -0.5]]))
    expected = points[0, 0] + velocity(points[:, 0], jnp.zeros(1))[0]
    np.testing.assert_allclose(points[0, 1], expected)


def test_fewer_steps_than_in_training() -> None:
    """Steps are the last of equal parts; one step goes from the noisiest level to the action."""
    for count, expected in ((5, [4, 3, 2, 1, 0]), (2, [4, 1]), (1, [4])):
        steps = Diffusion(num_steps=5, sample_steps=count).steps()
        np.testing.assert_array_equal(steps.time, expected)
        assert float(steps.next_alpha_bar[-1]) == 1.0
    with pytest.raises(UsageError, match="sample_steps is 6, .* at most 5"):
        bound(Diffusion(num_steps=5, sample_steps=6))


def test_the_last_level_is_nearly_pure_noise() -> None:
    for steps in (1, 2, 5, 100):
        for schedule in ("vp", "cosine"):
            bound(Diffusion(num_steps=steps, schedule=schedule))
    bound(Diffusion(num_steps=1000, schedule="linear"))
    line = "schedule is linear, whose last of 20 levels keeps 82% of the action's variance"
    with pytest.raises(UsageError, match=line):
        bound(Diffusion(num_steps=20, schedule="linear"))


def test_guidance() -> None:
    """1 is the conditional prediction, 0 the one without, and others are on their line."""
    observation = {"state": Box(-np.inf, np.inf, (3,)), "goal": Box(-np.inf, np.inf, (2,))}
    spec = Spec(observation, Box(-1.0, 1.0, (2,)), 10)
    policy = Flow(**SMALL, guided_by=("goal",))
    policy = dataclasses.replace(
        policy, encoder=dataclasses.replace(policy.encoder, obs_keys=("state", "goal"))
    ).bind(spec)
    params = policy.init(jax.random.key(0))
    obs = {"state": jnp.ones((4, 3)), "goal": jnp.ones((4, 2))}
    x, time = jnp.ones((4, 2)), jnp.full(4, 0.5)

    def predicted(guidance: jax.Array) -> jax.Array:
        return dataclasses.replace(policy, guidance=guidance).predictor(params, obs)(x, time)

    none, plain, strong = jax.vmap(predicted)(jnp.array([0.0, 1.0, 3.0]))
    without = dataclasses.replace(policy, guided_by=()).predictor(
        params, obs | {"goal": jnp.zeros((4, 2))}
    )(x, time)
    np.testing.assert_allclose(none, without, atol=1e-6)
    np.testing.assert_allclose(strong, none + 3 * (plain - none), rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(plain - none).max()) > 1e-3
    share = jnp.array([True, False, True, False])
    np.testing.assert_array_equal(policy.without(obs, share)["goal"][:, 0], [0, 1, 0, 1])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"hidden_dims is \(8, 4\); residual blocks have one"):
        bound(Flow(hidden_dims=(8, 4), residual=True))
    with pytest.raises(UsageError, match="layer_norm is True, and residual blocks have norms of"):
        bound(Flow(residual=True, hidden_dims=(8,), layer_norm=True))
    with pytest.raises(UsageError, match="sigma_max is 0.001; it must be at least 0.005"):
        hyper.check(EDM(**SMALL, sigma_max=0.001))
    with pytest.raises(UsageError, match=r"the agent is not bound; call agent.bind\(env.spec\)"):
        Flow().init(jax.random.key(0))
    with pytest.raises(UsageError, match="time_features is 5; it must be even, as 6"):
        bound(Flow(time_features=5))
    with pytest.raises(UsageError, match="observations are no dictionary"):
        bound(Flow(guided_by=("goal",)))


def test_long_chains_are_loops_with_the_same_values() -> None:
    xs = jnp.arange(12.0)
    points = run_chain(lambda x, y: x + y, jnp.zeros((3, 1)), xs)
    assert points.shape == (3, 13, 1)
    np.testing.assert_allclose(points[0, :, 0], np.concatenate([[0], np.cumsum(xs)]))
    np.testing.assert_allclose(points[:, -1], 66.0)


def test_one_step_policy() -> None:
    policy = bound(OneStep(hidden_dims=(8,)))
    params = policy.init(jax.random.key(0))
    obs, noise = jnp.ones((4, 3)), jax.random.normal(jax.random.key(1), (4, 2))
    action = policy.from_noise(params, obs, noise)
    np.testing.assert_allclose(action, jnp.clip(policy(params, obs, noise), -1, 1))
    assert policy.mode(params, obs, jax.random.key(0)).shape == (4, 2)
