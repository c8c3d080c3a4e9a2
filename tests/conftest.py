"""Settings of all tests."""

import os
from unittest import mock

# Physics that factorises matrices needs a large pool of threads, and the pool is made by whichever
# test computes first (see jaxrl._startup.large_pool).
os.environ.setdefault("NPROC", "8")

import jax
import pytest
from jax._src import compiler  # there is no public setting of compile options for all programs
from shared import BALANCED, COMPILED, QUICK, compiled_once

# Compiling is most of what the tests cost. So XLA compiles their programs quickly, to slower code:
# ten times as quickly as by default. Three kinds of test are marked for other options: ``balanced``
# ones compute for longer than they compile; ``optimized`` ones compute for minutes, and compile as
# users do; of ``exact`` ones two different programs must agree to the bit, which is not so of XLA's
# old code generator. Scripts that tests start compile as users' do. JAXRL_TEST_OPTIMIZED=1 compiles
# everything so.
OPTIONS = {
    "balanced": BALANCED,
    "optimized": {},
    "exact": {"xla_backend_optimization_level": 0},
}


# They take longest, and begin first, so that two workers end at about the same time.
LONG = [
    *("test_devices", "test_interruption", "test_off_policy", "test_documents", "test_trainer"),
    *("test_ppo", "test_mjx", "test_off_policy_probes", "test_programs", "test_dsac", "test_sac"),
]


def pytest_collection_modifyitems(items):
    """Put long files first, and within a file tests of one kind together."""
    files = list(dict.fromkeys(item.path.stem for item in items))
    order = {name: i for i, name in enumerate(dict.fromkeys([*LONG, *files]))}
    items.sort(key=lambda item: (order[item.path.stem], str(chosen(item))))


def chosen(item):
    """The compile options of a test."""
    if os.environ.get("JAXRL_TEST_OPTIMIZED") == "1":
        return {}
    return next(
        (options for name, options in OPTIONS.items() if item.get_closest_marker(name)), QUICK
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem, original=compiler.get_compile_options):
    """Around the fixtures too, so that those of a module compile as its tests do.

    Programs of two kinds must not meet: what has been compiled is forgotten before the next kind.
    """
    options = chosen(item)

    def compile_options(*args, env_options_overrides=None, **others):
        overrides = options | dict(env_options_overrides or {})
        return original(*args, env_options_overrides=overrides, **others)

    with mock.patch.object(compiler, "get_compile_options", compile_options):
        result = yield
    if nextitem is not None and chosen(nextitem) != options:
        jax.clear_caches()
        for known in COMPILED:
            known.clear()
    return result


@pytest.fixture(scope="module")
def shared_programs():
    """All runs of a file share their programs."""
    with compiled_once():
        yield


@pytest.fixture(scope="module")
def without_curves():
    """Runs draw no pictures, which takes longer than training them."""
    with mock.patch("jaxrl.run.summary.plot_run"):
        yield
