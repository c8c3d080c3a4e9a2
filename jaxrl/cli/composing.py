"""Find out what a script trains: call its ``main`` up to ``run`` and capture the arguments."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from jaxrl.errors import UsageError, nearest
from jaxrl.run import run

# Script options without a meaning when many configurations are trained.
REFUSED = {
    "--sweep": "name what is swept with --grid or --random",
    "--render": "draw the best one afterwards, with python -m jaxrl.analysis render",
    "--max-nonfinite": "a sweep goes on whatever diverges, so leave it out",
}


class _Reached(BaseException):
    """``run`` was reached; no script catches this."""


class Script:
    """A script whose ``main`` composes a trainer and passes it to ``run``.

    Args:
        name: the name of a script in ``folder`` without ``.py``, or the path of a file.
        folder: the folder of the library's scripts.

    Raises:
        UsageError: if there is no such script, or it does not call ``run`` from its ``main``.
    """

    def __init__(self, name: str, folder: Path) -> None:
        known = {path.stem: path for path in sorted(folder.glob("*.py"))}
        path = Path(name) if name.endswith(".py") else known.get(name)
        if path is None or not path.is_file():
            raise UsageError(f"there is no script {name!r}; {nearest(name, known)}")
        self.path = path
        own = path.is_absolute() and path.resolve().parent == folder.resolve()
        self.shown = f"{folder.name}/{path.name}" if own else str(path)  # on a command line
        self._module = _loaded(path)
        if not callable(getattr(self._module, "main", None)) or not hasattr(self._module, "run"):
            raise UsageError(
                f"{name} cannot be swept: it has no main() that calls run; give another script, "
                "such as ppo"
            )

    def compose(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the arguments that ``main`` passes to ``run`` for the words of a command line.

        Raises:
            UsageError: for words that the script or sweeps refuse.
            SystemExit: after printing ``--help``.
        """
        for word in words:
            option = word.partition("=")[0].replace("_", "-")
            if option in REFUSED:
                raise UsageError(f"{option} is no option of a sweep: {REFUSED[option]}")
        reached: dict[str, Any] = {}

        def keep(*args: Any, **options: Any) -> None:
            reached.update(inspect.signature(run).bind(*args, **options).arguments)
            raise _Reached

        with (
            mock.patch.object(self._module, "run", keep),
            mock.patch.object(sys, "argv", [str(self.path), *words]),
            contextlib.suppress(_Reached),
        ):
            self._module.main()
        if not reached:
            raise UsageError(f"{self.path.name} trains nothing with these options; see its --help")
        if reached.pop("sweep", None):
            raise UsageError(f"{self.path.name} sweeps by itself; give another script, such as ppo")
        return reached


def _loaded(path: Path) -> ModuleType:
    """Import a script as a module, under a name by which its dataclasses can be found."""
    name = f"jaxrl_script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
