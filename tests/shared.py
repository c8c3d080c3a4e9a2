"""What several tests need: trees compared bit for bit, numerical gradients, scripts as modules."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def plain(x):
    """An array as numpy's, a key as its data."""
    key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)


def bits(tree):
    """The leaves as numpy arrays, keys as their data."""
    return [plain(x) for x in jax.tree.leaves(tree)]


def assert_same_bits(a, b):
    """Every leaf of the one equals the other's; keys are compared by their data."""
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(plain(x), plain(y), err_msg=str(path))


def numerical_gradient(f, params):
    """The gradient's leaves by central differences, the leaves of ``params``, and their tree."""
    leaves, tree = jax.tree.flatten(params)
    gradient = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slot in zip(leaves, gradient, strict=True):
        for index in np.ndindex(leaf.shape):
            center, step = leaf[index], 1e-6
            leaf[index] = center + step
            above = f(tree.unflatten(leaves))
            leaf[index] = center - step
            below = f(tree.unflatten(leaves))
            leaf[index] = center
            slot[index] = (above - below) / (2 * step)
    return gradient, leaves, tree


@contextlib.contextmanager
def script_module(name):
    """``experiments/NAME.py`` as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def trainer_of(name, agent, words):
    """The trainer that ``experiments/NAME.py`` builds from the words of a command line."""
    from jaxrl import cli  # only tests of scripts need the shell

    presets = importlib.import_module(f"jaxrl.cli.presets.{name}").PRESETS
    with script_module(name) as script:
        return script.build(cli.parse(script.Config, presets, agent, words.split()))
