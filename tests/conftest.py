"""Settings of all tests."""

import os
from unittest import mock

# Physics that factorises matrices needs a large pool of threads, and the pool is made by whichever
# test computes first (see jaxrl._startup.large_pool).
os.environ.setdefault("NPROC", "8")

import jax
import pytest
from jax._src import compiler  # there is no public setting of compile options for all programs
from shared import QUICK, compiled_once

# Compiling is most of what the tests cost. So XLA compiles their programs quickly, to slower code:
# ten times as quickly as by default. Not those of a test that is marked ``optimized``, because it
# computes for long, or because two different programs must agree to the bit; nor those of scripts
# that tests start. JAXRL_TEST_OPTIMIZED=1 compiles all of them as users do.


def quickly(*args, original=compiler.get_compile_options, env_options_overrides=None, **options):
    overrides = QUICK | dict(env_options_overrides or {})
    return original(*args, env_options_overrides=overrides, **options)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Around the fixtures too, so that those of a module compile as its tests do.

    Both kinds of program must not meet: what one test compiled is forgotten before the other kind.
    """
    if os.environ.get("JAXRL_TEST_OPTIMIZED") == "1":
        return (yield)
    if item.get_closest_marker("optimized"):
        jax.clear_caches()
        result = yield
        jax.clear_caches()
        return result
    with mock.patch.object(compiler, "get_compile_options", quickly):
        return (yield)


@pytest.fixture(scope="module")
def shared_programs():
    """All runs of a file share their programs."""
    with compiled_once():
        yield
