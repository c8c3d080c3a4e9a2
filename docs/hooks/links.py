"""Links of Markdown files, which are written for the repository, as links of the site."""

from __future__ import annotations

import posixpath
import re

# A code block, code in a line, or a link: only the last is changed.
LINK = re.compile(r"(^```.*?^```|``.+?``|`[^`\n]*`(?!\]))|(\[[^\[\]]*\])\(([^)\s]+)\)", re.S | re.M)
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
    "results": "results/runs.md",
    "docs": "index.md",
    "notebooks": "notebooks/index.md",
}


def site_path(path: str) -> str | None:
    """Return where a file of the repository is on the site; None if it is not there."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("notebooks/"):
        return path.replace(".ipynb", ".md")
    folder, _, name = path.partition("/")
    if folder == "results" and "." not in name:
        return f"results/runs.md#{name}"
    return path if folder == "results" else None


def rewritten(text: str, source: str, page: str) -> str:
    """Return Markdown with its relative links as those of a page of the site.

    A link to a file that is not on the site becomes its text.

    Args:
        text: the Markdown.
        source: the file it is from, relative to the repository.
        page: the page it becomes, relative to the site's pages.
    """

    def link(found: re.Match[str]) -> str:
        code, shown, target = found.groups()
        if code is not None:
            return str(code)
        path, mark, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return found.group(0)
        there = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if there is None:
            return str(shown[1:-1])
        here = posixpath.dirname(page) or "."
        return f"{shown}({posixpath.relpath(there, here)}{mark}{anchor})"

    return LINK.sub(link, text)
