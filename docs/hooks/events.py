"""What the site has beside the files of ``docs/``: results, notebooks, tables, formulae.

Directives are comments, so that the pages can be read on a plain Git host too:

    <!-- run: ppo_cartpole -->       the curves, result and command of a run in results/
    <!-- options: ppo.py PPO -->     the hyper-parameters of a class in jaxrl/agents/
    <!-- speeds: speed_ant.json -->  a table of speeds in results/
    <!-- scores: bc bc10 -->         the rows of algorithms in results/offline.json
    <!-- fine_tuning: dppo -->       the rows of methods in results/fine_tuning*.json
    <!-- generative: latency -->     a part of results/generative_speed.json
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import recorded
from declared import declared, table
from links import rewritten
from mathml import as_mathml
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from notebooks import page_of

ROOT = Path(__file__).parent.parent.parent
MADE = {
    "run": recorded.figure,
    "speeds": recorded.speeds,
    "scores": recorded.scores,
    "fine_tuning": recorded.fine_tuning,
    "generative": recorded.generative,
}
DIRECTIVE = re.compile(rf"^<!-- ({'|'.join(MADE)}|options): (.+?) -->$", re.M)
COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
NOTEBOOKS = """\
# Notebooks

They are in `notebooks/`, with their outputs. `pip install -e '.[notebooks]'` brings what runs them.

"""


def on_config(config: Any) -> Any:
    """Put guides that are not listed, notebooks and tables of results into the navigation."""
    listed = [f"notebooks/{path.stem}.md" for path in _notebooks()]
    tables = [f"results/{path.name}" for path in sorted((ROOT / "results").glob("*.md"))]
    guides = [path.name for path in sorted((ROOT / "docs").glob("*.md"))]
    known = set(_leaves(config.nav))
    added = {
        "Guides": [name for name in guides if name not in known],
        "Notebooks": ["notebooks/index.md", *listed],
        "Results": ["results/runs.md", *tables],
    }
    for entry in config.nav:
        for name in set(entry) & set(added):
            entry[name] = [*entry[name], *added[name]]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add generated pages, notebooks and results."""
    for source, page in COPIED.items():
        _add(files, config, page, content=(ROOT / source).read_text())
    _add(files, config, "results/runs.md", content=recorded.table())
    listed = []
    for path in _notebooks():
        text, pictures = page_of(path)
        _add(files, config, f"notebooks/{path.stem}.md", content=text)
        for name, data in pictures.items():
            _add(files, config, name, content=data)
        listed.append(f"- [{_title(text)}]({path.stem}.md): `{path.name}`")
    _add(files, config, "notebooks/index.md", content=NOTEBOOKS + "\n".join(listed) + "\n")
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in (".md", ".png", ".json", ".jsonl", ".csv"):
            _add(files, config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
    return files


def on_page_markdown(text: str, *, page: Any, config: Any, files: Files) -> str:
    """Replace the directives, and make links those of the site."""
    name = page.file.src_uri
    text = rewritten(text, _source_of(name), name)
    text = DIRECTIVE.sub(_replacement, text)
    up = posixpath.relpath(".", posixpath.dirname(name) or ".")
    return text.replace("](/results/", f"]({up}/results/")


def on_page_content(page_html: str, *, page: Any, config: Any, files: Files) -> str:
    """Draw the formulae."""
    return as_mathml(page_html)


def _add(files: Files, config: Any, name: str, **source: Any) -> None:
    files.append(File.generated(config, name, **source))


def _source_of(page: str) -> str:
    for source, name in COPIED.items():
        if name == page:
            return source
    if page == "results/runs.md":
        return "docs/results/runs.md"  # its links are those of the site already
    return page if page.startswith(("results/", "notebooks/")) else f"docs/{page}"


def _leaves(nav: Any) -> list[str]:
    """Return the pages of a part of the navigation."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in _leaves(entry)]


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _replacement(found: re.Match[str]) -> str:
    kind, words = found.groups()
    try:
        if kind in MADE:
            return MADE[kind](words)
        file, name = words.split()
        return table(declared(ROOT / "jaxrl" / "agents" / file)[name])
    except (KeyError, ValueError, OSError, json.JSONDecodeError) as error:
        raise PluginError(f"{found.group(0)}: {type(error).__name__} {error}") from error
