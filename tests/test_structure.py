"""The structure of the package, read off the syntax trees of its files."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "jaxrl"
SHELL = {"record", "analysis", "run", "cli"}
# Each package of the shell may import the core and the packages to its left.
LAYERS = ["record", "analysis", "run", "cli"]


def module_name(path):
    """``jaxrl.run.session`` for ``jaxrl/run/session.py``."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(name):
    """The modules of jaxrl that a module imports, at its top and inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            # ``from jaxrl.run import devices`` imports a module, ``... import run`` a function.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {each for each in found if each in MODULES and each != name}


def package(name):
    """``run`` for ``jaxrl.run.session``; a module beside the packages is its own package."""
    return name.split(".")[1] if "." in name else "jaxrl"


IMPORTS = {name: imports(name) for name in MODULES}


def packages():
    """The imports between packages: ``{package: {imported packages}}``."""
    graph = {package(name): set() for name in MODULES}
    for name, found in IMPORTS.items():
        graph[package(name)] |= {package(each) for each in found} - {package(name)}
    return graph


def test_imports_are_found():
    """Else the tests below show nothing."""
    assert {"jaxrl.record.policy", "jaxrl.run.devices"} <= IMPORTS["jaxrl.run.runner"]
    assert packages()["cli"] >= {"run", "analysis"} and "jaxrl.errors" in MODULES


def test_packages_have_no_import_cycle():
    TopologicalSorter(packages()).prepare()  # raises CycleError, which names the cycle


def test_modules_of_the_shell_have_no_import_cycle():
    shell = {name: found for name, found in IMPORTS.items() if package(name) in SHELL}
    # Importing a module also runs its package's __init__, which is no dependence on its contents.
    TopologicalSorter(shell).prepare()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_shell_imports_only_the_layers_below(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert not packages()[layer] & above


def test_the_core_imports_nothing_of_the_shell():
    core = {name for name in MODULES if package(name) not in SHELL and name != "jaxrl"}
    wrong = {name: IMPORTS[name] for name in core if {package(x) for x in IMPORTS[name]} & SHELL}
    assert not wrong
    assert all("jaxrl" not in IMPORTS[name] for name in MODULES)  # it exports what it imports


def test_agents_and_environments_do_not_import_each_other():
    graph = packages()
    assert "envs" not in graph["agents"] and "agents" not in graph["envs"]
