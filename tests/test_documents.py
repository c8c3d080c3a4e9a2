"""What the documents say can be run: their Python blocks, and the notebooks."""

import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import jaxrl
from jaxrl.envs.vector import VectorEnv

ROOT = Path(__file__).parent.parent


def python_blocks(path: str) -> list[str]:
    """The fenced Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / path).read_text(), re.S | re.M)


def test_contributing_describes_an_agent_that_learns_and_an_environment_that_steps():
    said: dict = {}
    for block in python_blocks("CONTRIBUTING.md"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), said)
    returns = np.asarray(said["metrics"]["episode_return"])
    assert np.nanmean(returns[-20:]) > 3 * np.nanmean(returns[:5])

    trainer = jaxrl.OnPolicy(said["Reinforce"](), VectorEnv(said["Corridor"](), 8), unroll=32)
    before = trainer.evaluate(trainer.init(said["jax"].random.key(0)), said["jax"].random.key(1))
    assert before.returns.max() <= 10.0 and before.finite.all()


def test_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said: dict = {}
    blocks = python_blocks("README.md")
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), said)


def test_readme_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text)
    assert linked
    for target in linked:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs_and_is_committed_with_its_outputs(path, monkeypatch):
    monkeypatch.setitem(os.environ, "JAXRL_SMOKE", "1")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs) >= 3
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
