"""The bandit with eight modes: what samplers reach if predictions are exact, and what clones do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow

PATH = Path(__file__).parent.parent / "benchmarks" / "modes.py"
EXACT = 1.0 - np.exp(-4.5)  # of two normals, the share within three deviations


@pytest.fixture(scope="module")
def modes() -> Any:
    spec = importlib.util.spec_from_file_location("modes", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["modes"] = module
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("modes")


def measured(modes: Any, samples: Any) -> tuple[float, float]:
    found = modes.measure(np.asarray(samples)[None])
    return found["near"]["mean"], found["distance"]["mean"]


def test_the_data_are_near_their_modes_in_the_shares_of_the_weights(modes: Any) -> None:
    near, distance = measured(modes, modes.bandit().action)
    assert abs(near - EXACT) < 0.01 and distance < 0.02


@pytest.mark.parametrize(
    ("policy", "least", "most"),
    [
        (Diffusion(num_steps=50, schedule="cosine"), 0.97, 1.0),
        (EDM(sample_steps=20, solver="heun"), 0.97, 1.0),
        (Flow(sample_steps=20, solver="midpoint"), 0.97, 1.0),
        # Few steps leave samples between the modes, however good the network is.
        (Diffusion(num_steps=11, schedule="cosine"), 0.85, 0.94),
        (Flow(sample_steps=5), 0.7, 0.85),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, float) else "",
)
def test_samplers_reach_the_modes_if_they_take_enough_steps(
    modes: Any, policy: Any, least: float, most: float
) -> None:
    generate = jax.jit(lambda key: policy.generate(modes.exact(policy), key, (4_000, 2)))
    near, distance = measured(modes, generate(jax.random.key(0)))
    assert least < near <= most
    assert distance < 0.1


def test_exact_predictions_are_the_regressions_of_samples(modes: Any) -> None:
    """Of many actions and noises, the mean of those that lead to about the same point."""
    rng = np.random.default_rng(0)
    action = modes.MODES[rng.choice(8, 400_000, p=modes.WEIGHTS)]
    action = action + modes.STD * rng.normal(size=action.shape)
    noise = rng.normal(size=action.shape)
    for signal, spread in ((0.5, 0.5), (0.9, 0.2)):
        x = signal * action + spread * noise
        point = np.array([0.3, -0.35])
        close = np.linalg.norm(x - point, axis=-1) < 0.03
        assert close.sum() > 200
        found = modes.expected(jnp.array([point]), jnp.array([signal]), jnp.array([spread]))
        error = action[close].std(0) / close.sum() ** 0.5
        assert np.all(np.abs(action[close].mean(0) - np.asarray(found[0])) < 4 * error + 0.01)


@pytest.mark.slow
def test_a_flow_clones_all_modes_and_a_gaussian_does_not(modes: Any) -> None:
    data, made = modes.bandit(), modes.agents()

    def found(name: str, steps: int) -> tuple[float, float]:
        states = modes.trained(made[name], modes.SPEC, data, 1, steps)
        return measured(modes, modes.samples_of(*states)[0])

    near, distance = found("flow_bc", 6_000)
    assert near > 0.93 and distance < 0.1
    assert found("gaussian_bc", 1_000)[0] < 0.5
