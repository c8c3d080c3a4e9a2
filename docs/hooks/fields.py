"""An extension of griffe, which reads the docstrings of the API's pages.

Declared fields become one table instead of an entry each. Arguments that share a line of a
docstring, as ``width, height: in pixels``, become a line each.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))  # mkdocstrings loads this file by its path
from declared import declared, table

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.M)


class Fields(griffe.Extension):
    """Put the hyper-parameters of a class into its docstring, and part shared arguments."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Replace declared attributes by a table."""
        path = cls.filepath
        fields = declared(path).get(cls.name) if isinstance(path, Path) else None
        if not fields:
            return
        for field in fields:
            cls.members.pop(field.name, None)
        if cls.docstring is not None:
            cls.docstring.value += f"\n\n**Hyper-parameters**\n\n{table(fields)}\n"

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Part the arguments that share a line, everywhere."""
        self._walk(pkg)

    def _walk(self, node: Any) -> None:
        if node.is_alias:
            return
        if node.docstring is not None:
            names = _parameters(node)
            node.docstring.value = SHARED.sub(lambda x: _parted(x, names), node.docstring.value)
        for member in node.members.values():
            self._walk(member)


def _parameters(node: Any) -> dict[str, str]:
    """Return the parameters of a function, or of a class's ``__init__``, with their stars."""
    function = node if node.is_function else node.members.get("__init__")
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    return {x.name: stars.get(x.kind, "") + x.name for x in getattr(function, "parameters", ())}


def _parted(found: re.Match[str], names: dict[str, str]) -> str:
    indent, shared, text = found.groups()
    each = shared.split(", ")
    if not names.keys() >= set(each):
        return found.group(0)
    return "\n".join(f"{indent}{names[name]}: {text}" for name in each)
