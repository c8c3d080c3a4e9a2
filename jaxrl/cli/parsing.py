"""The command line, parsed into options; any error is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from jaxrl.cli.options import Options
from jaxrl.cli.presets import Preset, lookup
from jaxrl.errors import UsageError, nearest

Config = TypeVar("Config", bound=Options)


def parse(
    config: type[Config],
    presets: Sequence[Preset],
    agent: type,
    args: Sequence[str] | None = None,
) -> Config:
    """Parse the options of a script; the defaults are the presets of its ``--env``.

    Args:
        config: the dataclass of the options, with a field ``agent``.
        presets: the presets of the algorithm.
        agent: the class of the agent.
        args: the words of the command line; default those of this process.

    Raises:
        UsageError: for anything that tyro refuses, in one line.
        SystemExit: after printing ``--help``.
    """
    import tyro

    given = list(sys.argv[1:] if args is None else args)
    settings = lookup(presets, _env_of(given, config.env))
    defaults = config(**{**settings, "agent": agent(**settings.get("agent", {}))})
    if "-h" in given or "--help" in given:
        tyro.cli(config, args=given, default=defaults)

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed, unknown = tyro.cli(
                config, args=given, default=defaults, return_unknown_args=True
            )
    except SystemExit:
        raise UsageError(_complaint(printed.getvalue())) from None
    if unknown and not unknown[0].startswith("-"):
        raise UsageError(f"{unknown[0]!r} belongs to no option; see --help")
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name in _field_names(defaults)]
        raise UsageError(f"unknown option {unknown[0]}; {nearest(unknown[0], flags)}")
    return parsed


def _env_of(args: Sequence[str], default: str) -> str:
    """Return the value of ``--env``, needed before all others: it decides their defaults."""
    found = default
    for i, arg in enumerate(args):
        if arg == "--env" and i + 1 < len(args):
            found = args[i + 1]
        if arg.startswith("--env="):
            found = arg.removeprefix("--env=")
    return found


def _field_names(node: Any) -> list[str]:
    """Return the dotted names of all options."""
    names = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        inner = _field_names(value) if dataclasses.is_dataclass(value) else None
        names += [field.name] if inner is None else [f"{field.name}.{name}" for name in inner]
    return names


def _complaint(text: str) -> str:
    """Extract one line from tyro's box, which holds a title, the message and the option's help."""
    sections = [""]
    for line in text.splitlines():
        content = line.strip(" │")
        if re.match("[─╭╰]|---", content):
            sections.append("")
        else:
            sections[-1] = f"{sections[-1]} {content}".strip()
    message = sections[1] if len(sections) > 1 else sections[0]
    known = re.search(r"\(default: (.*)\)$", sections[2] if len(sections) > 2 else "")
    return f"{message}; the default is {known[1]}" if known else message
