"""An extension of griffe: declared fields become one table instead of an entry each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))  # mkdocstrings loads this file by its path
from declared import declared, table


class Fields(griffe.Extension):
    """Put the hyper-parameters of a class into its docstring."""

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
