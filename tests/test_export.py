"""Policies as files: each plays as the policy does, knows what it is, or says why it cannot be."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from recurrent import Recurrent

from jaxrl import (
    BC,
    DPPO,
    DQN,
    PPO,
    PQN,
    SAC,
    TD3,
    TD3BC,
    Chunks,
    DiscreteCQL,
    NormalizeObs,
    OnPolicy,
    RunError,
    ScaleReward,
    UsageError,
    VectorEnv,
    hyper,
    load_policy,
    make,
    run,
)
from jaxrl.analysis.__main__ import main
from jaxrl.export import JaxPolicy, NumpyPolicy, export_policy, export_run, numpy_policy
from jaxrl.export.acting import Acting
from jaxrl.export.formats import write_onnx
from jaxrl.export.metadata import metadata
from jaxrl.export.onnx_graph import model
from jaxrl.export.trace import trace
from jaxrl.nn.critics import QNetwork
from jaxrl.nn.encoders import CNN, Flatten
from jaxrl.nn.policies import AutoPolicy, Categorical, Deterministic, Gaussian, TanhGaussian
from jaxrl.record import Policy
from jaxrl.types import Box, Discrete, Spec

# One element with one bound, one with none: they are not scaled.
ACTIONS = Box([-2.0, -np.inf, 0.0], [3.0, np.inf, np.inf], (3,))
VECTOR = Spec(Box(-np.inf, np.inf, (5,)), ACTIONS)
BOUNDED = Spec(Box(-np.inf, np.inf, (5,)), Box(-2.0, 3.0, (3,)))
CHOICE = Spec(Box(-1.0, 2.0, (5,)), Discrete(4))
PIXELS = Spec(Box(0, 255, (7, 6, 2), np.uint8), Discrete(4))
KEY = jax.random.key(0)


def random_policy(agent: Any, spec: Spec, mode: str = "greedy") -> Policy:
    """A policy whose parameters and statistics are random; nothing is compiled for them."""
    agent = agent.bind(spec)
    rng = np.random.default_rng(1)

    def draw(like):
        if jnp.issubdtype(like.dtype, jnp.floating):
            wide = np.sqrt(like.shape[0]) if len(like.shape) > 1 else 2.0
            return rng.normal(size=like.shape).astype(np.float32) / np.float32(wide)
        return np.ones(like.shape, like.dtype)

    state = jax.tree.map(draw, jax.eval_shape(agent.init, KEY))
    if hasattr(state, "statistics"):
        some = jax.tree.map(lambda x: np.abs(x) * 40 + 1, state.statistics.m2)
        state = state._replace(statistics=state.statistics._replace(size=np.float32(64), m2=some))
    return Policy(agent, state, spec, mode)


def wide(family, **options):
    return family(hidden_dims=(8, 6), **options)


CNN_OF_TWO = CNN(filters=(3, 4), kernels=(3, 2), strides=(2, 1))
NETWORKS = {
    "gaussian-tanh": (NormalizeObs(PPO(policy=wide(AutoPolicy, activation="tanh"))), VECTOR),
    "state-std-relu": (PPO(policy=wide(Gaussian, std="softplus", activation="relu")), VECTOR),
    "squashed-mean": (PPO(policy=wide(Gaussian, squash_mean=True, layer_norm=True)), BOUNDED),
    "tanh-gaussian-gelu": (SAC(policy=wide(TanhGaussian, activation="gelu")), BOUNDED),
    "deterministic-elu": (TD3(policy=wide(Deterministic, activation="elu")), BOUNDED),
    "norms-behind-mish": (
        NormalizeObs(ScaleReward(TD3BC(policy=wide(Deterministic, activation="mish", post_norm=True)))),
        BOUNDED,
    ),
    "categorical-swish": (BC(policy=wide(Categorical, activation="swish", dropout=0.1)), CHOICE),
    "moving-average": (BC(policy=wide(AutoPolicy), ema_decay=0.9), BOUNDED),
    "q": (DQN(q_network=wide(QNetwork)), CHOICE),
    "dueling": (DiscreteCQL(q_network=wide(QNetwork, dueling=True)), CHOICE),
    "pixels": (NormalizeObs(PQN(q_network=wide(QNetwork, encoder=CNN_OF_TWO))), PIXELS),
    "pixels-of-a-policy": (PPO(policy=wide(AutoPolicy, encoder=CNN_OF_TWO)), PIXELS),
    "history": (Chunks(BC(policy=wide(AutoPolicy)), horizon=1, obs_horizon=1), BOUNDED),
}  # fmt: skip


def played(policy: Policy, obs: Any) -> np.ndarray:
    return np.asarray(policy(obs))


def assert_equal_actions(found, wanted, spec):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    if isinstance(spec.action, Discrete):
        assert np.mean(found != wanted) <= 0.001
        assert len(np.unique(wanted)) == spec.action.n
    else:
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
        assert np.all(np.std(wanted, axis=0) > 0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_play_in_numpy_and_onnx_as_they_do_in_jax(name, tmp_path):
    agent, spec = NETWORKS[name]
    policy = random_policy(agent, spec)
    network = trace(Acting(policy, "greedy"))
    facts = metadata(Acting(policy, "greedy"), None, network.inputs)
    obs = check.observations(policy)
    wanted = np.asarray(policy(obs))
    for play in (
        write_npz(network, facts, tmp_path / "policy.npz"),
        write_onnx(network, facts, tmp_path / "policy.onnx"),
    ):
        assert_equal_actions(play(obs), wanted, spec)
        for part in (obs[3], obs[:1], obs[:0], obs[:6].reshape(2, 3, *obs.shape[1:])):
            assert np.asarray(play(part)).shape == (
                *part.shape[: part.ndim - len(obs.shape) + 1],
                *spec.action.shape,
            )
        np.testing.assert_allclose(play(obs[3]), wanted[3], rtol=2e-5, atol=2e-5)
    names = {operation.name for operation in network.operations}
    assert "einsum" not in names and "matmul" not in names, "a dense layer is one operation"
    inner = agent
    while hasattr(inner, "agent"):
        inner = inner.agent
    part = getattr(inner, "policy", None) or inner.q_network
    assert part.activation in names and ("layer_norm" in names) == (part.layer_norm or part.post_norm)
    assert ("conv" in names) == (spec is PIXELS)
