"""What the documents say can be run: their Python blocks, and the notebooks."""

import importlib
import os
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from shared import QUICK_FLAGS, script_module

import jaxrl
from jaxrl import cli
from jaxrl.envs.vector import VectorEnv

ROOT = Path(__file__).parent.parent
# Every Markdown file of the tree; tools keep theirs in other folders.
FOLDERS = ["docs", "experiments", "benchmarks", "jaxrl", "notebooks", "results", "tests"]
MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
COLUMNS = 100
REINFORCE_LINES = 40
# The others compile more programs, or steps of MuJoCo, which no cache keeps.
QUICK_NOTEBOOKS = ("01_quickstart", "04_write_your_own_agent")


def python_blocks(path: str) -> list[str]:
    """The fenced Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / path).read_text(), re.S | re.M)


def run_blocks(path: str) -> dict:
    """The names that the Python blocks of a document define, one block after another."""
    said: dict = {}
    blocks = python_blocks(path)
    assert blocks
    for block in blocks:
        exec(compile(block, path, "exec"), said)
    return said


def train(agent, env, steps):
    """The mean return of evaluation episodes after training on ``env``."""
    trainer = jaxrl.OnPolicy(agent, VectorEnv(env, 8), num_steps=64)
    state, _ = jax.jit(trainer.train, static_argnums=1)(jax.random.key(0), steps)
    return trainer.evaluate(state, jax.random.key(1))


def test_contributing_describes_classes_of_a_users_own(tmp_path, monkeypatch):
    """The agent learns, the part trains, the environment steps, and the run is read again."""
    monkeypatch.chdir(tmp_path)
    said = run_blocks("CONTRIBUTING.md")
    returns = np.asarray(said["metrics"]["episode_return"])
    assert np.nanmean(returns[-20:]) > 3 * np.nanmean(returns[:5])

    corridor = said["Corridor"]()
    found = train(jaxrl.PPO(policy=said["LaplacePolicy"](), learning_rate=1e-3), corridor, 30_000)
    assert found.finite.all() and found.returns.max() <= 10.0
    assert found.lengths.mean() < 20  # ten steps are the fewest, the time limit is 100

    action = said["policy"](jnp.array([[0.5], [9.0]]))
    assert action.shape == (2, 1) and jnp.isfinite(action).all()
    assert (tmp_path / "runs" / "corridor" / "episode.npz").exists()


def test_reinforce_is_short():
    """The agent of CONTRIBUTING, imports included."""
    block = next(block for block in python_blocks("CONTRIBUTING.md") if "class Reinforce:" in block)
    assert block.startswith("import")
    assert sum(bool(line.strip()) for line in block.splitlines()) <= REINFORCE_LINES


def test_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run_blocks("README.md")
    assert said["state"].env_steps.shape[0] == 4
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "cartpole",
        "offline_to_online",
    }


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_markdown_fit_the_page(path):
    lines = enumerate(path.read_text().splitlines(), start=1)
    assert [f"{n}: {line}" for n, line in lines if len(line) > COLUMNS] == []


def test_commands_of_the_documents_have_options_that_exist():
    """Of the scripts that parse them with presets; nothing is trained."""
    parsed = 0
    for path in ("README.md", "docs/mjx.md", "docs/offline.md"):
        text = (ROOT / path).read_text().replace("\\\n", " ")
        for script, words in re.findall(r"python experiments/(\w+)\.py([^\n`#|]*)", text):
            if not (ROOT / "jaxrl" / "cli" / "presets" / f"{script}.py").exists():
                continue
            presets = importlib.import_module(f"jaxrl.cli.presets.{script}").PRESETS
            with script_module(script) as module:
                cli.parse(module.Config, presets, shlex.split(words))
            parsed += 1
    assert parsed >= 10


def test_readme_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text)
    assert linked
    for target in linked:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem not in QUICK_NOTEBOOKS))
        for p in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ],
)
def test_notebook_runs_and_is_committed_with_its_outputs(path, monkeypatch):
    """Its process compiles quickly, as the tests do: what it runs to is not looked at."""
    for name, value in {"JAXRL_SMOKE": "1", "XLA_FLAGS": QUICK_FLAGS}.items():
        monkeypatch.setitem(os.environ, name, value)
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs) >= 3
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
