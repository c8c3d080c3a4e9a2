"""Links of Markdown files, which are written for the repository, as links of the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

# A code block, code in a line, or a link: only the last is changed.
LINK = re.compile(r"(^```.*?^```|``.+?``|`[^`\n]*`)|(\]\()([^)\s]+)(\))", re.S | re.M)
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
    "results": "results/runs.md",
    "docs": "index.md",
    "LICENSE": "index.md",
}


def site_path(path: str) -> str:
    """Return where a file of the repository is on the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    return path


def rewritten(text: str, source: str, page: str) -> str:
    """Return Markdown with its relative links as those of a page of the site.

    Args:
        text: the Markdown.
        source: the file it is from, relative to the repository.
        page: the page it becomes, relative to the site's pages.
    """

    def relative(target: str) -> str:
        path, mark, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return target
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        return posixpath.relpath(site_path(there), posixpath.dirname(page) or ".") + mark + anchor

    return LINK.sub(lambda found: _link(found, relative), text)


def _link(found: re.Match[str], relative: Callable[[str], str]) -> str:
    if found.group(1) is not None:
        return found.group(1)
    return found.group(2) + relative(found.group(3)) + found.group(4)
