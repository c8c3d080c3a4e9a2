"""The command line of a resumed run: ``--resume --run-dir DIR`` is enough."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxrl.record.folder import CONFIG

# Options that are specific to a process, and the maximum number of words after each.
OWN = {
    "--run-dir": 1,
    "--resume": 0,
    "--quiet": 0,
    "--render": 0,
    "--devices": 1,
    "--distributed": 3,
}


def without_own(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without process-specific options."""
    kept, skipped = [], 0
    for word in words:
        name, equals, _ = word.partition("=")
        if name.replace("_", "-") in OWN:
            skipped = 0 if equals else OWN[name.replace("_", "-")]
        elif skipped and not word.startswith("--"):
            skipped -= 1
        else:
            skipped = 0
            kept.append(word)
    return kept


def value_of(args: Sequence[str], option: str, default: str) -> str:
    """Return the value of an option needed before the others are parsed."""
    found = default
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") != f"--{option}":
            continue
        if equals:
            found = value
        elif i + 1 < len(args):
            found = args[i + 1]
    return found


def with_recorded(given: Sequence[str]) -> list[str]:
    """Return the words of a command line; with ``--resume``, preceded by the run's original words.

    Later words override earlier ones. If this script has not started a run in the folder, only the
    given words are returned.
    """
    if "--resume" not in given:
        return list(given)
    try:
        config = json.loads((Path(value_of(given, "run-dir", "")) / CONFIG).read_text())
        script, *recorded = shlex.split(config["command"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return list(given)  # ``run`` reports what is wrong with the folder
    if script != Path(sys.argv[0]).name:
        return list(given)
    return [*without_own(recorded), *given]
