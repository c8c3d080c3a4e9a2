"""Composed policies: their parents at the ends, and the normals that their mixtures make."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import script_module

from jaxrl import (
    BC,
    DPPO,
    DQN,
    DSRL,
    FQL,
    IDQL,
    IFQL,
    PARL,
    Chunks,
    DiffusionQL,
    EditPolicy,
    NormalizeObs,
    ReinFlow,
    hyper,
    make,
)
from jaxrl.errors import UsageError
from jaxrl.nn.composition import Composed, composed
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.encoders import Flatten
from jaxrl.nn.flow import Flow, NoisyFlow, OneStep
from jaxrl.nn.policies import Gaussian
from jaxrl.types import Box, Spec

SPEC = Spec(Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)), 10)
SMALL = {"hidden_dims": (8,)}
FAMILIES = {
    "diffusion": (Diffusion(**SMALL, num_steps=3), Diffusion(hidden_dims=(4,), num_steps=3)),
    "edm": (EDM(**SMALL), EDM(hidden_dims=(4,), sigma_loc=-1.0)),
    "flow": (
        Flow(**SMALL, sample_steps=2),
        Flow(hidden_dims=(4,), sample_steps=2, time_distribution="beta"),
    ),
}


@pytest.mark.parametrize(
    ("first", "second"),
    [(Diffusion(), Diffusion(min_std=0.1)), (NoisyFlow(), NoisyFlow(std_min=0.05, std_max=0.3))],
)
def test_a_fine_tuned_policy_is_composed_with_its_clone(first, second) -> None:
    """They differ in the noise of exploring, which compositions do not use."""
    Composed(first, second).bind(SPEC)


def acting(agent, seed=0, spec=SPEC):
    """What a script knows of a run: its agent and state."""
    agent = agent.bind(spec)
    return SimpleNamespace(agent=agent, state=agent.init(jax.random.key(seed)), spec=spec)


@pytest.mark.parametrize(
    "agent",
    [
        DPPO(policy=Diffusion(**SMALL, num_steps=2, min_std=0.1), fine_tuned_steps=2),
        ReinFlow(policy=NoisyFlow(**SMALL, std_hidden_dims=(4,), sample_steps=2)),
    ],
)
def test_fine_tuned_agents_act_with_their_composition(agent) -> None:
    """At the ends as their own, with the same noise."""
    first, second = acting(agent, 0), acting(agent, 1)
    with script_module("compose") as script:
        composition, state = script.composition(first, second)
    obs, key = jnp.ones((4, 3)), jax.random.key(2)

    def at(weight: jax.Array) -> jax.Array:
        each = hyper.replace(composition, {"policy.weight": weight})
        return each.act(state, (), obs, key, "greedy")[0]

    found = jax.jit(jax.vmap(at))(jnp.array([1.0, 0.5, 0.0]))
    for row, parent in ((0, first), (2, second)):
        alone = parent.agent.act(parent.state, (), obs, key, "greedy")[0]
        np.testing.assert_allclose(found[row], alone, atol=1e-5)
    assert float(jnp.abs(found[1] - found[0]).max()) > 1e-3


@pytest.mark.parametrize("kind", [DSRL, FQL, IDQL, IFQL, PARL, DiffusionQL, EditPolicy, DQN])
def test_agents_that_act_with_more_than_the_policy_are_not_composed(kind) -> None:
    """At weight 0 the other parts of the first run would act, and not those of the second."""
    clone, other = (SimpleNamespace(agent=NormalizeObs(each)) for each in (BC(), kind()))
    with script_module("compose") as script:
        for runs, name in (((clone, other), "second"), ((other, clone), "first")):
            line = f"^the {name} run is of {kind.__name__}, .* give a run of BC, DPPO or ReinFlow"
            with pytest.raises(UsageError, match=line) as error:
                script.composition(*runs)
            assert "\n" not in str(error.value)


def test_policies_that_do_not_act_alike_are_not_composed() -> None:
    clone = BC(policy=FAMILIES["flow"][0])
    chunks = [acting(Chunks(clone, 2, 1, obs_horizon=n)) for n in (1, 2)]
    limits = [acting(clone, spec=dataclasses.replace(SPEC, max_steps=n)) for n in (10, 5)]
    worlds = [make("probe/both", continuous=continuous) for continuous in (False, True)]
    with script_module("compose") as script:
        with pytest.raises(UsageError, match=r"are \(2, 1, 1\) and \(2, 1, 2\); give two runs"):
            script.composition(*chunks)
        with pytest.raises(UsageError, match="has max_steps 10, and the second 5; give two runs"):
            script.composition(*limits)
        script.require_one_environment(worlds[1], make("probe/both", continuous=True))
        line = "has env_options {}, and the second {'continuous': True}; give two runs with the sam"
        with pytest.raises(UsageError, match=line):
            script.require_one_environment(*worlds)
        with pytest.raises(UsageError, match="is of probe/both, and the second of probe/memory"):
            script.require_one_environment(worlds[0], make("probe/memory"))


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_ends_it_is_a_parent_bit_for_bit(name: str) -> None:
    """Operation by operation, as programs differ in the products that they fuse."""
    policy = Composed(*FAMILIES[name]).bind(SPEC)
    params = policy.init(jax.random.key(0))
    obs, key = jnp.ones((4, 3)), jax.random.key(1)
    noise = jax.random.normal(key, (4, 2))
    with jax.disable_jit():
        for weight, parent in ((1.0, "first"), (0.0, "second")):
            each, one = dataclasses.replace(policy, weight=weight), getattr(policy, parent)
            for found, expected in (
                (each.sample(params, obs, key)[0], one.sample(params[parent], obs, key)[0]),
                (each.from_noise(params, obs, noise), one.from_noise(params[parent], obs, noise)),
            ):
                np.testing.assert_array_equal(found, expected)


def test_the_weight_is_swept_by_vmap() -> None:
    """In between it is neither parent."""
    policy = Composed(*FAMILIES["flow"]).bind(SPEC)
    params = policy.init(jax.random.key(0))
    obs, key = jnp.ones((4, 3)), jax.random.key(1)

    def at(weight: jax.Array) -> jax.Array:
        return dataclasses.replace(policy, weight=weight).mode(params, obs, key)

    swept = jax.jit(jax.vmap(at))(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(swept[1], jax.jit(at)(jnp.float32(0.5)), atol=1e-6)
    apart = jnp.abs(swept[1] - swept[jnp.array([0, 2])]).max(axis=(1, 2))
    assert float(apart.min()) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_parents_give_the_parent_for_every_weight(name: str) -> None:
    family = FAMILIES[name][0]
    policy = Composed(family, family).bind(SPEC)
    own = policy.first.init(jax.random.key(0))
    obs, key = jnp.ones((4, 3)), jax.random.key(1)

    def at(weight: jax.Array) -> jax.Array:
        each = dataclasses.replace(policy, weight=weight)
        return each.mode({"first": own, "second": own}, obs, key)

    found = jax.jit(jax.vmap(at))(jnp.linspace(0.0, 1.0, 5))
    expected = jax.jit(policy.first.mode)(own, obs, key)
    np.testing.assert_allclose(found, jnp.broadcast_to(expected, found.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "mean", "std"),
    [((-1.0, 0.5), (2.0, 0.5), 0.5, 0.5), ((-1.0, 0.3), (2.0, 1.0), -0.07, 0.55)],
    ids=["equal deviations", "unequal deviations"],
)
def test_composed_normals(
    first: tuple[float, float], second: tuple[float, float], mean: float, std: float
) -> None:
    """Of known denoisers. With unequal deviations it is not the product, N(-0.75, 0.41^2)."""
    policy = EDM(sample_steps=2000, sigma_max=20.0, sigma_min=1e-3, sigma_schedule="karras")

    def network(m: float, s: float):
        def predict(scaled: jax.Array, time: jax.Array) -> jax.Array:
            sigma = jnp.exp(4.0 * time)[..., None]
            skip, out, into = policy.scales(sigma)
            x = scaled / into
            return (m + s**2 / (s**2 + sigma**2) * (x - m) - skip * x) / out

        return predict

    # The way from noise to action is linear for normals, so three noises show it whole.
    noise = jnp.array([[-1.0], [0.0], [1.0]])
    zeros = jnp.zeros((2000, 3, 1))
    predict = composed(network(*first), network(*second), 0.5)
    low, middle, high = policy.chain(predict, noise, zeros)[:, -1, 0]
    assert middle == pytest.approx(mean, abs=0.03)
    assert (high - low) / 2 == pytest.approx(std, abs=0.03)
    alone = policy.chain(composed(network(*first), network(*second), 1.0), noise, zeros)[:, -1, 0]
    assert alone[1] == pytest.approx(first[0], abs=0.03)
    assert (alone[2] - alone[0]) / 2 == pytest.approx(first[1], abs=0.03)


def test_parents_may_see_different_entries() -> None:
    observation = {"state": Box(-np.inf, np.inf, (3,)), "goal": Box(-np.inf, np.inf, (2,))}
    spec = Spec(observation, Box(-1.0, 1.0, (2,)), 10)
    seeing = Flow(**SMALL, sample_steps=2, encoder=Flatten(obs_keys=("state", "goal")))
    policy = Composed(Flow(**SMALL, sample_steps=2), seeing, weight=0.0).bind(spec)
    params = policy.init(jax.random.key(0))
    obs = {"state": jnp.ones((4, 3)), "goal": jnp.ones((4, 2))}
    key = jax.random.key(1)
    np.testing.assert_allclose(
        policy.mode(params, obs, key), policy.second.mode(params["second"], obs, key), atol=1e-6
    )


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (Flow(), Diffusion(), "first is a Flow and second a Diffusion; .* two of one family"),
        (Gaussian(), Flow(), "first is a Gaussian, which does not denoise; give a Flow"),
        (Flow(), OneStep(), "second is a OneStep, which does not denoise"),
        (Diffusion(), Diffusion(num_steps=10), "first.num_steps is 5 and second.num_steps is 10"),
        (
            Diffusion(),
            Diffusion(prediction="v"),
            "first.prediction is epsilon and second.prediction is v; .* give both the same",
        ),
        (EDM(), EDM(sigma_max=2.0), "first.sigma_max is 1.0 and second.sigma_max is 2.0"),
        (Flow(), Flow(solver="midpoint"), "first.solver is euler and second.solver is midpoint"),
    ],
)
def test_policies_of_different_processes_are_refused(first, second, line) -> None:
    with pytest.raises(UsageError, match=line) as error:
        Composed(first, second).bind(SPEC)
    assert "\n" not in str(error.value)
