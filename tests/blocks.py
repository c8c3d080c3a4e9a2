"""Code blocks of Markdown files, and the markers in front of them.

A block runs unless a comment in front of it says why not, ``<!-- not run: REASON -->``. What a
block needs beside what the page says comes in a comment: ``<!-- setup``, Python, ``-->``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# Every Markdown file of the tree; tools keep theirs in other folders.
FOLDERS = ["docs", "experiments", "benchmarks", "jaxrl", "notebooks", "results", "tests"]
MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
BLOCK = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->"
    r"|(?:^<!-- not run: (?P<reason>.+?) -->\n\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```",
    re.S | re.M,
)


class Block(NamedTuple):
    """A block: its language ("setup" for hidden Python), its text, and why it does not run."""

    path: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def where(self) -> str:
        """The file and the line, as error messages give them."""
        return f"{self.path}:{self.line}"


def blocks(path: Path, *languages: str) -> list[Block]:
    """The blocks of a document in these languages, in order."""
    text, name = path.read_text(), str(path.relative_to(ROOT))
    found = []
    for each in BLOCK.finditer(text):
        language = each["language"] if each["setup"] is None else "setup"
        inner = "code" if each["setup"] is None else "setup"
        line = text.count("\n", 0, each.start(inner)) + 1
        found.append(Block(name, line, language, each[inner], each["reason"]))
    return [block for block in found if block.language in languages]


def python_blocks(path: Path) -> list[Block]:
    """The Python of a document, hidden and shown, that runs."""
    return [block for block in blocks(path, "python", "setup") if block.reason is None]


def run_blocks(path: Path) -> dict:
    """The names that the Python blocks of a document define, one block after another."""
    said: dict = {}
    found = python_blocks(path)
    assert found
    for block in found:
        code = "\n" * (block.line - 1) + block.text  # so that errors name the document's line
        exec(compile(code, block.path, "exec"), said)
    return said


def commands(path: Path) -> list[tuple[str, str]]:
    """The command lines of a document's ``bash`` blocks that run, each with where it is."""
    found = []
    for block in blocks(path, "bash"):
        if block.reason is None:
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [(block.where, each.strip()) for line in lines for each in line.split("&&")]
    return [(where, line) for where, line in found if line and not line.startswith("#")]
