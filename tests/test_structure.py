"""The structure of the package, read off the syntax trees of its files."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "jaxrl"
SHELL = {"record", "export", "analysis", "run", "cli"}
# Each package of the shell may import the core and the packages to its left.
LAYERS = ["record", "export", "analysis", "run", "cli"]


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
    assert {"jaxrl.record.policy", "jaxrl.run.placement"} <= IMPORTS["jaxrl.run.runner"]
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


def test_only_the_shell_reads_files_of_data():
    inside = ("jaxrl.data.formats", "jaxrl.data.__main__")
    outside = {name for name in MODULES if not name.startswith(inside) and name != "jaxrl"}
    core = {name for name in outside if package(name) not in SHELL}
    assert not any(found.startswith(inside) for name in core for found in IMPORTS[name])


def test_agents_and_environments_do_not_import_each_other():
    graph = packages()
    assert "envs" not in graph["agents"] and "agents" not in graph["envs"]


# --- agents -------------------------------------------------------------------------------------


def classes(name):
    """The classes of a module: ``{name: node}``."""
    tree = ast.parse(MODULES[name].read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def is_algorithm(name):
    """Whether a module defines an agent class."""
    methods = ("bind", "init", "act", "update")
    found = [{each.name for each in ast.walk(c) if isinstance(each, ast.FunctionDef)}
             for c in classes(name).values()]  # fmt: skip
    return package(name) == "agents" and any(set(methods) <= each for each in found)


ALGORITHMS = sorted(filter(is_algorithm, MODULES))


def test_all_algorithms_are_found():
    names = {name.rpartition(".")[2] for name in ALGORITHMS}
    assert names == {
        "bc",
        "chunks",
        "cql",
        "discrete_cql",
        "diffusion_ql",
        "dppo",
        "dqn",
        "dsac",
        "dsrl",
        "edac",
        "edit",
        "fqe",
        "fql",
        "idql",
        "iql",
        "pa_rl",
        "ppo",
        "pqn",
        "rebrac",
        "reinflow",
        "sac",
        "td3",
        "td3_bc",
        "wrappers",
    }


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_agent_has_a_base_class(name):
    """A published refinement may extend its original in the same file: DSAC-T, Cal-QL and IFQL."""
    bases = {c.name: [ast.unparse(base) for base in c.bases] for c in classes(name).values()}
    agents = {each: found for each, found in bases.items() if found != ["NamedTuple"]}
    assert agents.pop("DSACT", ["DSAC"]) == ["DSAC"]
    assert agents.pop("CalQL", ["CQL"]) == ["CQL"]
    assert agents.pop("IFQL", ["IDQL"]) == ["IDQL"]
    assert not any(agents.values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_algorithm_imports_another(name):
    assert not IMPORTS[name] & set(ALGORITHMS)


def test_sac_is_whole_and_short():
    lines = MODULES["jaxrl.agents.sac"].read_text().splitlines()
    methods = {each.name for each in ast.walk(classes("jaxrl.agents.sac")["SAC"])
               if isinstance(each, ast.FunctionDef)}  # fmt: skip
    assert {"critic_loss", "actor_loss", "alpha_loss"} <= methods
    assert len(lines) <= 160


def functions():
    """The public functions and methods of all modules, by module and name."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield f"{name}.{node.name}", node


def test_no_public_signature_mentions_noise():
    """Agents and trainers draw what they need from keys. Families that denoise start from noise."""
    for name, node in functions():
        if name.startswith("jaxrl.nn."):
            continue
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert not any("noise" in arg.arg or "Noise" in ast.dump(arg) for arg in every), name


def test_agents_read_no_size_from_a_parameter():
    """No ``.shape`` of ``params`` or of a state's leaves; sizes come from ``bind``."""
    for name in MODULES:
        if package(name) not in ("agents", "nn"):
            continue
        for node in ast.walk(ast.parse(MODULES[name].read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "shape":
                source = ast.unparse(node.value)
                assert "params" not in source and "state" not in source, f"{name}: {source}.shape"
