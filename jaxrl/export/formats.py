"""Writers of the three formats."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxrl.export.acting import PRECISION, Acting
from jaxrl.export.numpy_policy import NumpyPolicy
from jaxrl.export.operations import Network
from jaxrl.types import Array, Key

PLATFORMS = ("cpu", "cuda", "tpu")

Play = Callable[[Any], Any]  # maps the policy's observations to greedy actions


def write_npz(network: Network, facts: Mapping[str, Any], path: Path) -> Play:
    """Write the network for ``numpy_policy.NumpyPolicy`` and return it."""
    texts = {"metadata": json.dumps(facts), "operations": json.dumps(network.operations)}
    arrays: dict[str, Any] = {**network.arrays, **{k: np.array(v) for k, v in texts.items()}}
    np.savez(path, **arrays)
    return NumpyPolicy(path)


def write_jax(modes: Sequence[Acting], facts: Mapping[str, Any], path: Path) -> None:
    """Write the programs of all modes for ``jax_policy.JaxPolicy``.

    They are lowered for ``PLATFORMS`` and any batch size. All randomness comes from the key.
    """
    (batch,) = export.symbolic_shape("b")
    read = [box["name"] for box in facts["observation"]]
    programs: dict[str, Any] = {acting.mode: exported(acting, read, batch) for acting in modes}
    if modes[0].has_carry:
        key, rows = modes[0].arguments(batch)[2], jax.ShapeDtypeStruct((batch,), jnp.bool_)
        programs["start"] = _export(modes[0].start, key, rows)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("metadata.json", json.dumps(facts, indent=1))
        for name, program in programs.items():
            file.writestr(name, bytes(program.serialize()))


def exported(acting: Acting, read: Sequence[str], batch: Any) -> export.Exported:
    """Return the program ``action, carry = f(obs, carry, key)`` for the observations it reads."""
    obs, carry, key = acting.arguments(batch)
    shapes = dict(zip(acting.boxes, obs, strict=True))

    def act(given: list[Array], carry: list[Any], key: Key) -> tuple[Array, list[Any]]:
        known = dict(zip(read, given, strict=True))
        rows = given[0].shape[0]
        every = [
            known[name] if name in known else jnp.zeros((rows, *like.shape[1:]), like.dtype)
            for name, like in shapes.items()
        ]
        return acting(every, carry, key)

    return _export(act, [shapes[name] for name in read], carry, key)


def _export(function: Callable[..., Any], *args: Any) -> export.Exported:
    with jax.default_matmul_precision(PRECISION):
        return export.export(jax.jit(function), platforms=PLATFORMS)(*args)


def write_onnx(network: Network, facts: Mapping[str, Any], path: Path) -> Play:
    """Write the network as an ONNX model; return it as played by ``onnxruntime`` on one core.

    The metadata are stored as JSON in the model's property ``jaxrl``.

    Raises:
        ImportError: without the extra ``export``.
    """
    import onnx
    import onnxruntime

    from jaxrl.export.onnx_graph import model

    onnx.save(model(network, facts), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    boxes = facts["observation"]

    def play(obs: Any) -> Any:
        rows, leading = {}, ()
        for box in boxes:
            x = np.asarray(obs[box["entry"]] if box["entry"] else obs, box["dtype"])
            leading = x.shape[: x.ndim - len(box["shape"])]
            rows[box["name"]] = x.reshape(-1, *box["shape"])
        (action,) = session.run(["action"], rows)
        return action.reshape((*leading, *action.shape[1:]))

    return play
