"""What several tests need: trees compared bit for bit, numerical gradients, scripts as modules."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# XLA compiles in a tenth of the time, to slower code: see conftest.py.
QUICK: dict = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_llvm_disable_expensive_passes": True,
}
# To code that is nearly as quick as users', in a quarter of the time.
BALANCED: dict = {"xla_backend_optimization_level": 1, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # later ones have no other code generator
    QUICK["xla_cpu_use_fusion_emitters"] = BALANCED["xla_cpu_use_fusion_emitters"] = False
QUICK_FLAGS = " ".join(f"--{name}={value}".lower() for name, value in QUICK.items())
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


def rows_of_pendulum(count=40):
    """Random rows of Pendulum's shapes, in episodes of five steps that are truncated."""
    from jaxrl import Dataset  # not every user of this file needs the library

    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, count, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    last, no = np.arange(count) % 5 == 4, np.zeros(count, bool)
    reward = rng.normal(size=count).astype(np.float32)
    return Dataset.of(obs, action, reward, next_obs, no, last)


COMPILED: list[dict] = []  # to be forgotten with JAX's own caches


@contextlib.contextmanager
def compiled_once(known=None):
    """Runs of equal trainers with arguments of the same shapes share their compiled programs.

    ``known`` is a dictionary that holds them from one use to the next.
    """
    from jaxrl.run.devices import Programs  # only tests of runs need the shell
    from jaxrl.run.session import Session

    known, compiled, own = {} if known is None else known, Programs.compiled, Session._once
    COMPILED.append(known)

    def shared(self, *args):
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), args)
        key = f"{self} {shapes}"
        if key not in known:
            known[key] = compiled(self, *args), self  # kept, lest another one get its address
        return known[key][0]

    def once(self, name, make):
        """The jitted functions that make first states, of phases and runs."""
        if name[0] not in ("init", "begin"):
            return own(self, name, make)
        programs = self.programs[name[1] if name[0] == "begin" else 0]
        key = f"{name[0]} {programs}"
        if key not in known:
            known[key] = make(), programs
        return known[key][0]

    with (
        mock.patch.object(Programs, "compiled", shared),
        mock.patch.object(Session, "_once", once),
    ):
        yield


class Killed(BaseException):
    """Ends a run at once, as a kill does: nothing more is written."""


@contextlib.contextmanager
def killed(method, call):
    """Kill the run inside when its session's ``method`` is called for the ``call``-th time."""
    from jaxrl.run.session import Session  # only tests of runs need the shell

    calls, original = [], getattr(Session, method)

    def then(self, *args):
        calls.append(method)
        if len(calls) == call:
            raise Killed
        return original(self, *args)

    with mock.patch.object(Session, method, then), pytest.raises(Killed):
        yield


@contextlib.contextmanager
def script_module(name, folder=EXPERIMENTS):
    """``NAME.py`` of a folder of scripts as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop(spec.name, None)  # it may be loaded twice


def run_script(script, words):
    """Run a script's main function with the words of a command line, in this process."""
    from jaxrl import cli  # only tests of scripts need the shell

    with (
        mock.patch.object(sys, "argv", [script.__name__, *words]),
        mock.patch.object(cli, "prepare"),
    ):
        script.main()


def trainer_of(name, words):
    """The trainer that ``experiments/NAME.py`` composes from the words of a command line."""
    given = mock.Mock(side_effect=InterruptedError)
    with (
        script_module(name) as script,
        mock.patch.object(script, "run", given),
        contextlib.suppress(InterruptedError),
    ):
        run_script(script, words.split())
    return given.call_args.args[0]
