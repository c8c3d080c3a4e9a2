"""Notebooks as pages: their text, code and outputs, as they were committed."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours of terminals


def page_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by their paths on the site."""
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif cell["cell_type"] == "code" and text.strip():
            parts.append(f"```python\n{text}\n```")
            for output in cell["outputs"]:
                parts.append(_shown(output, path, pictures))
    note = f"*The notebook `notebooks/{path.name}`, with its outputs.*"
    head, _, rest = "\n\n".join(filter(None, parts)).partition("\n")
    return f"{head}\n\n{note}\n{rest}\n", pictures


def _shown(output: dict[str, Any], path: Path, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {})
    for kind in ("png", "gif", "jpeg"):
        if f"image/{kind}" in data:
            name = f"notebooks/{path.stem}_{len(pictures)}.{kind}"
            pictures[name] = base64.b64decode("".join(data[f"image/{kind}"]))
            return f"![Output of the cell]({posixpath.basename(name)})"
    markup = "".join(data.get("text/html", ""))
    if "<video" in markup or "<img" in markup:
        return markup
    text = "".join(output.get("text", data.get("text/plain", "")))
    if not text.strip() or output.get("name") == "stderr":
        return ""
    return f"```text\n{ESCAPES.sub('', text).rstrip()}\n```"
