"""Settings of all tests."""

import os

# Physics that factorises matrices needs a large pool of threads, and the pool is made by whichever
# test computes first (see jaxrl._startup.large_pool).
os.environ.setdefault("NPROC", "8")

import jax
import pytest
from shared import compiled_once

# Compiling is most of what the tests cost, and LLVM's passes are most of that. So a test's programs
# are compiled without them unless it is marked ``optimized``: where it computes for long, or where
# two different programs must agree to the bit. This process alone is meant: scripts that tests
# start compile as users' do. JAX_DISABLE_MOST_OPTIMIZATIONS decides for all tests.
CHOSEN = "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Before the fixtures of a module are made, so that they compile as its tests do."""
    if not CHOSEN:
        plain = item.get_closest_marker("optimized") is None
        jax.config.update("jax_disable_most_optimizations", plain)
    return (yield)


@pytest.fixture(scope="module")
def shared_programs():
    """All runs of a file share their programs."""
    with compiled_once():
        yield
