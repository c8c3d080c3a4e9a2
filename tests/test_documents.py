"""What the documents say can be run: their Python blocks, and the notebooks."""

import ast
import importlib
import os
import re
import sys

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from blocks import MARKDOWN, ROOT, blocks, python_blocks, run_blocks
from nbclient import NotebookClient
from shared import QUICK_FLAGS

import jaxrl
from jaxrl.envs.vector import VectorEnv

SHOWN = [path for path in MARKDOWN if blocks(path, "python")]
COLUMNS = 100
REINFORCE_LINES = 40
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def train(agent, env, steps):
    """The mean return of evaluation episodes after training on ``env``."""
    trainer = jaxrl.OnPolicy(agent, VectorEnv(env, 8), num_steps=64)
    state, _ = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), steps)
    return trainer.evaluate(state, jax.random.key(1))


def test_contributing_describes_classes_of_a_users_own(tmp_path, monkeypatch):
    """The agent learns, the part trains, the environment steps, and the run is read again."""
    monkeypatch.chdir(tmp_path)
    said = run_blocks(ROOT / "CONTRIBUTING.md")
    returns = np.asarray(said["metrics"]["episode_return"])
    assert np.nanmean(returns[-20:]) > 3 * np.nanmean(returns[:5])

    corridor = said["Corridor"]()
    found = train(jaxrl.PPO(policy=said["LaplacePolicy"](), learning_rate=1e-3), corridor, 30_000)
    assert found.finite.all() and found.returns.max() <= 10.0
    assert found.lengths.mean() < 20  # ten steps are the fewest, the time limit is 100

    action = said["policy"](jnp.array([[0.5], [9.0]]))
    assert action.shape == (2, 1) and jnp.isfinite(action).all()
    assert (tmp_path / "runs" / "corridor" / "episode.npz").exists()


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_of_the_documents_compiles_and_imports_what_exists(path):
    """All blocks, whether they run or not; names of the library are looked up."""
    for block in blocks(path, "python", "setup"):
        for node in ast.walk(ast.parse(block.text, block.where)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxrl"):
                module = importlib.import_module(str(node.module))
                missing = [each.name for each in node.names if not hasattr(module, each.name)]
                assert not missing, f"{block.where}: {node.module} has no {missing}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jaxrl":
                assert hasattr(jaxrl, node.attr), f"{block.where}: jaxrl.{node.attr}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in SHOWN if path.parent != ROOT and python_blocks(path)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_python_of_the_documents_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    run_blocks(path)


def test_reinforce_is_short():
    """The agent of CONTRIBUTING, imports included."""
    texts = [block.text for block in python_blocks(ROOT / "CONTRIBUTING.md")]
    block = next(text for text in texts if "class Reinforce:" in text)
    assert block.startswith("import")
    assert sum(bool(line.strip()) for line in block.splitlines()) <= REINFORCE_LINES


@pytest.mark.balanced
def test_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run_blocks(ROOT / "README.md")
    assert said["state"].env_steps.shape[0] == 4
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "cartpole",
        "offline_to_online",
    }


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_markdown_fit_the_page(path):
    lines = enumerate(path.read_text().splitlines(), start=1)
    assert [f"{n}: {line}" for n, line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_files_that_exist(path):
    linked = re.findall(r"\]\((?!https?://|#)([^)#\s]+)[^)\s]*\)", path.read_text())
    assert not [target for target in linked if not (path.parent / target).exists()]


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all notebooks, as each start and its imports take seconds.

    Its process compiles quickly, as the tests do: what notebooks run to is not looked at.
    """
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=600, kernel_name="python3")
    with client.setup_kernel(env={**os.environ, "JAXRL_SMOKE": "1", "XLA_FLAGS": QUICK_FLAGS}):
        yield client


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_is_committed_with_its_outputs(path, kernel):
    """With its sizes cut, and none of the names of the notebook before."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs) >= 3
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    kernel.nb = notebook
    for index, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, index)
