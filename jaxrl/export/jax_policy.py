"""Play policy.jaxexport with JAX alone: copy this file and policy.jaxexport where needed.

    policy = JaxPolicy("policy.jaxexport")            # or mode="sample"
    action = policy(obs)                              # with mode="sample": policy(obs, key)

    carry = policy.start(n)                           # policies with a memory: n episodes
    action, carry = policy.step(carry, obs, key)

``obs[..., *O]`` is an observation as returned by the environment, or a dictionary of its entries;
``action[..., *A]`` is in the environment's units. ``policy.metadata`` describes both. Policies that
denoise draw noise from their key in both modes; without a key, the noise is always the same.
"""

from __future__ import annotations

import json
import math
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
from jax import export


class JaxPolicy:
    """A policy from ``policy.jaxexport``, on a CPU, a CUDA GPU or a TPU."""

    def __init__(self, path: Any, mode: str = "greedy") -> None:
        with zipfile.ZipFile(path) as file:
            self.metadata = json.loads(file.read("metadata.json"))
            self.mode = mode
            names = [mode, "start"] if "start" in file.namelist() else [mode]
            made = [export.deserialize(bytearray(file.read(name))).call for name in names]
        self._act, self._start = jax.jit(made[0]), jax.jit(made[-1]) if made[1:] else None

    def __call__(self, obs: Any, key: Any = None) -> Any:
        """Return actions ``[..., *A]`` for ``obs[..., *O]``, for a policy without memory."""
        if self.metadata["memory"][self.mode]:
            raise ValueError(
                "the policy has a memory: carry = start(n), then step(carry, obs, key)"
            )
        rows, leading = self._rows(obs)
        action, _ = self._act(rows, self.start(len(rows[0])), self._key(key))
        return action.reshape((*leading, *action.shape[1:]))

    def start(self, n: int = 1, key: Any = None) -> Any:
        """Return the initial memory of ``n`` episodes."""
        if self._start is None:
            return []
        key = jax.random.key(0) if key is None else key
        return self._start(key, jnp.zeros(n, bool))

    def step(self, carry: Any, obs: Any, key: Any = None) -> Any:
        """Return actions ``[n, *A]`` for ``obs[n, *O]``, and the memory for the next step."""
        return self._act(self._rows(obs)[0], carry, self._key(key))

    def _rows(self, obs: Any) -> Any:
        """Return the program's inputs, ``[B, *O]``, and the axes that B stands for."""
        rows: list[Any] = []
        leading: tuple[int, ...] = ()
        for box in self.metadata["observation"]:
            x, shape = jnp.asarray(obs[box["entry"]] if box["entry"] else obs), tuple(box["shape"])
            leading = x.shape[: x.ndim - len(shape)]
            if x.shape[len(leading) :] != shape:
                raise ValueError(f"{box['name']} has shape {x.shape}; it must end with {shape}")
            rows.append(x.astype(box["dtype"]).reshape(math.prod(leading), *shape))
        return rows, leading

    def _key(self, key: Any) -> Any:
        if key is None and self.mode == "sample":
            raise ValueError("a policy that samples needs a key, as jax.random.key(0)")
        return jax.random.key(0) if key is None else key
