"""Programs as operations: what a user's agent computes plays in numpy and ONNX, or is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrl import UsageError
from jaxrl.export import check, numpy_policy, onnx_graph, rules
from jaxrl.export.acting import Acting
from jaxrl.export.formats import write_npz, write_onnx
from jaxrl.export.metadata import metadata
from jaxrl.export.trace import trace
from jaxrl.record import Policy
from jaxrl.types import Box, Spec


class Function(NamedTuple):
    """An agent that acts by a function of the observation, and knows no parameters."""

    act_on: Any

    def bind(self, spec):
        return self

    def act(self, state, carry, obs, key, mode):
        return self.act_on(obs, key), carry, {}


def network_of(function, size=3):
    spec = Spec(Box(-np.inf, np.inf, (5,)), Box(-np.inf, np.inf, (size,)))
    policy = Policy(Function(function), (), spec, "greedy")
    return policy, trace(Acting(policy, "greedy"))


@jax.jit
def relu(x):
    """Not what its name says."""
    return 2.0 * x + 1.0


WEIGHTS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
DENSE = nn.Dense(3)
PLAIN = nn.Dense(3, use_bias=False)
SCALED = nn.LayerNorm(use_bias=False)


@jax.custom_jvp
def doubled(x):
    return 2.0 * x


@doubled.defjvp
def _doubled_jvp(primals, tangents):
    return doubled(*primals), 2.0 * tangents[0]


def powers(x):
    return x[:, :3] ** 3 + jnp.abs(x[:, :3]) ** 1.7 + 1.0 / jnp.sqrt(x[:, :3] ** 2 + 1)


def logs(x):
    return jnp.expm1(x[:, :3]) + jnp.log1p(jnp.square(x[:, 2:])) + jax.lax.rsqrt(1 + x[:, :3] ** 2)


def dots(x):
    turned = jnp.sum(x * x[:, ::-1], axis=-1, keepdims=True)
    return turned + (x[:, None, :] @ x[..., None])[:, 0] * x[:, :3]


def own_layers(x):
    """Not as the operations are: without bias, and under a ``vmap`` over other rows."""
    plain = PLAIN.apply({"params": {"kernel": WEIGHTS[0]}}, x)
    dense = {"params": {"kernel": WEIGHTS[0], "bias": WEIGHTS[1, 0]}}
    mapped = jax.vmap(lambda row: DENSE.apply(dense, row), 1, 1)(jnp.stack([x, 2.0 * x], 1))
    scaled = SCALED.apply({"params": {"scale": WEIGHTS[0, :, 0]}}, x)[:, :3]
    return plain + scaled + mapped[:, 1]


OWN = {
    "softmax": lambda x: jax.nn.softmax(x)[:, 1:4] + jax.nn.log_softmax(x)[:, ::2],
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=-1, keepdims=True) * x[..., :3],
    "columns": lambda x: jnp.stack([x[:, 0], x[..., -1], x[:, 1] * x[:, 2]], axis=-1),
    "taken": lambda x: x[:, np.array([4, 0, 2])] - x[:, jnp.array([1, 1, 3])],
    "split": lambda x: sum(jnp.split(x[:, :4], 2, axis=1))[:, :1] * x[:, 2:],
    "powers": powers,
    "logs": logs,
    "rounded": lambda x: jnp.floor(x[:, :3]) + jnp.ceil(x[:, 2:]) + jnp.sign(x[:, 1:4]),
    "cases": lambda x: jnp.where((x > 0) & ~(x > 1) | (x < -1), jnp.sin(x), jnp.arctan(x))[:, :3],
    "finite": lambda x: jnp.where(jnp.isfinite(x[:, :3]) & (x[:, :3] != 0.5), x[:, :3], 0.0),
    "clamped": lambda x: jax.lax.clamp(-0.5, x[:, :3], 0.7) + jnp.clip(x[:, 2:], None, 0.1),
    "reduced": lambda x: jnp.max(x, -1, keepdims=True) - jnp.min(x, -1)[:, None] + x[:, :3],
    "ensemble": lambda x: jnp.min(jax.vmap(lambda w: x @ w)(WEIGHTS), axis=0),
    "outer": lambda x: jnp.einsum("bi,bj->bij", x, x).reshape(-1, 25)[:, 3:6],
    "dots": dots,
    "turned": lambda x: jnp.transpose(x.reshape(-1, 5, 1), (0, 2, 1))[:, 0, 1:4],
    "one-hot": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), 3) + jnp.argmin(x, -1)[:, None],
    "counted": lambda x: x[:, :3] * jnp.sum((x > 0).astype(jnp.int32), -1, keepdims=True),
    "named-otherwise": lambda x: relu(x[:, :3]) + doubled(x[:, 2:]),
    "sigmoids": lambda x: jax.nn.sigmoid(x[:, :3]) + jax.nn.softplus(x[:, 2:]),
    "own-layers": own_layers,
    "integers": lambda x: (x[:, :3] * 10).astype(jnp.int32).astype(jnp.float32),
    "static": lambda x: x[:, :3] + jnp.cumsum(jnp.arange(3.0)) * jnp.linalg.norm(jnp.ones(2)),
    "swapped": lambda x: jnp.swapaxes(jnp.stack([x, -x]), 0, 1).reshape(-1, 10)[:, 4:7],
}


def test_what_a_user_computes_is_exported_too(tmp_path):
    """All at once, so that one program is compiled."""

    def every(obs, key):
        return jnp.concatenate([function(obs) for function in OWN.values()], axis=-1)

    policy, network = network_of(every, 3 * len(OWN))
    facts = metadata(Acting(policy, "greedy"), None, network.inputs)
    obs = check.observations(policy)
    obs = np.clip(obs, -4.0, 4.0)
    wanted = np.asarray(policy(obs))
    for play in (
        write_npz(network, facts, tmp_path / "policy.npz"),
        write_onnx(network, facts, tmp_path / "policy.onnx"),
    ):
        found = np.asarray(play(obs))
        for i, name in enumerate(OWN):
            part = slice(3 * i, 3 * i + 3)
            np.testing.assert_allclose(
                found[:, part], wanted[:, part], rtol=1e-4, atol=1e-4, err_msg=name
            )
    names = [operation.name for operation in network.operations]
    assert "relu" not in names, "a function is known by its values, not by its name"
    assert "einsum" in names and "sigmoid" in names


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, key: x[:, :3] - jnp.mean(x), "computes with the rows of a batch together"),
        (lambda x, key: x[:, :3] + jax.random.normal(key, (3,)), "draws random numbers as it acts"),
        (
            lambda x, key: x[:, :3] + jax.random.normal(jax.random.key(3), (x.shape[0], 3)),
            "draws random numbers as it acts",
        ),
        (lambda x, key: x[:, :3] - x[:1, :3], "computes with the rows of a batch together"),
        (lambda x, key: x[:-1, :3], "computes with the rows of a batch together"),
        (
            lambda x, key: jnp.take_along_axis(x, jnp.argsort(x)[:, :3], -1),
            "computes 'sort', for which there is no operation",
        ),
        (
            lambda x, key: jnp.take_along_axis(x, x[:, :3].astype(jnp.int32) % 2, -1),
            "computes 'rem', for which there is no operation",
        ),
        (lambda x, key: jnp.sort(x, -1)[:, :3], "computes 'sort', for which there is no operation"),
        (lambda x, key: jnp.ones((x.shape[0], 3)), "does not depend on the observation alone"),
        (
            lambda x, key: (x[:, :3].astype(jnp.bfloat16) * 2).astype(jnp.float32),
            "computes in bfloat16",
        ),
        (
            lambda x, key: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y), x[:, :3]),
            "computes 'scan', for which there is no operation",
        ),
    ],
)
def test_what_no_operation_computes_is_refused_in_one_line(function, reason):
    with pytest.raises(UsageError) as error:
        network_of(function)
    assert str(error.value) == reason


def test_every_operation_is_one_of_both_back_ends():
    known = set(numpy_policy.OPERATIONS)
    graph = {name.removeprefix("_") for name in vars(onnx_graph._Graph)}
    assert known <= {*onnx_graph._NODES, *onnx_graph._REDUCTIONS, *onnx_graph._EXTREMES} | graph
    assert set(rules.FUNCTIONS.values()) | set(rules._ELEMENTWISE.values()) <= known


def test_a_file_can_call_nothing_but_operations():
    with pytest.raises(KeyError, match="load"):
        numpy_policy.run([("load", [], "x", {"file": "x.npy", "allow_pickle": True})], {})


def test_random_numbers_that_no_action_depends_on_do_not_matter():
    def act(x, key):
        jax.random.normal(key, x.shape)  # drawn and not used
        jnp.sort(x)
        return x[:, :3]

    _, network = network_of(act)
    assert network.operations[0].name == "slice" and network.output == "action"
