"""The leaves of a state by path, and their entries in a checkpoint."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxrl.record import manifest as manifests
from jaxrl.rng import is_key
from jaxrl.types import PyTree


def flatten(tree: PyTree, prefix: str = "") -> tuple[dict[str, Any], Any]:
    """Return leaves by path (``agent/params/Dense_0/kernel``) in tree order, and the structure."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {}
    for path, leaf in flat:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaves["/".join(filter(None, (prefix, name)))] = leaf
    if len(leaves) != len(flat):
        raise ValueError("two leaves of the state have the same path")
    return leaves, treedef


def describe(leaf: Any) -> dict[str, Any]:
    """Return shape and dtype; a key has its own dtype and the shape of its data."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return {"shape": list(np.shape(data)), "dtype": str(dtype)}


def to_host(state: PyTree) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Return the arrays to store and their manifest entries; a key is stored as its data."""
    arrays, leaves = {}, {}
    for name, (leaf, data) in with_data(state).items():
        arrays[name] = np.asarray(jax.device_get(data), order="C")
        leaves[name] = {**entry(leaf), "crc32": manifests.array_checksum(arrays[name])}
    return arrays, leaves


def with_data(state: PyTree) -> dict[str, tuple[Any, Any]]:
    """Return the leaves by path, each with the array stored for it: for a key, its data."""
    leaves = flatten(state)[0]
    return {
        name: (leaf, jax.random.key_data(leaf) if is_key(leaf) else leaf)
        for name, leaf in leaves.items()
    }


def entry(leaf: Any) -> dict[str, Any]:
    """Return a leaf's entry in the manifest, without checksums."""
    return {
        **describe(leaf),
        **({"impl": str(jax.random.key_impl(leaf))} if is_key(leaf) else {}),
    }
