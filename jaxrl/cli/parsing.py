"""Parsing of the command line into options, with one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxrl import hyper
from jaxrl.cli.options import Options
from jaxrl.cli.presets import Preset, lookup
from jaxrl.cli.resuming import value_of, with_recorded
from jaxrl.data.shipped import default_of, shipped
from jaxrl.errors import UsageError

Config = TypeVar("Config", bound=Options)
Parsed = TypeVar("Parsed")


def parse(
    config: type[Config], presets: Sequence[Preset], args: Sequence[str] | None = None
) -> Config:
    """Parse the options of a script; the defaults are the presets for its ``--env``.

    In scripts with a ``--dataset``, presets may also depend on its name: the file name, or the full
    name of a dataset shipped with the library. A resumed run keeps its original options unless they
    are given again.

    Args:
        config: the dataclass of the options, possibly with a field ``agent``.
        presets: the presets of the algorithm.
        args: the words of the command line; default this process's.

    Raises:
        UsageError: for anything that cannot be parsed, in one line.
        SystemExit: after printing ``--help``.
    """
    given = with_recorded(sys.argv[1:] if args is None else args)
    if args is None:
        sys.argv[1:] = given  # so that they are recorded for the next resume
    bare: Any = config()
    names = [value_of(given, "env", bare.env)]
    if hasattr(bare, "dataset"):
        dataset = value_of(given, "dataset", "") or default_of(names[0]) or ""
        names.append(dataset if dataset in shipped() else Path(dataset).stem)
    settings = lookup(presets, *names)
    if hasattr(bare, "agent"):
        settings["agent"] = hyper.override(bare.agent, settings.get("agent", {}))
    defaults = dataclasses.replace(bare, **settings)
    return parse_words(config, defaults, given)


def parse_words(config: type[Parsed], defaults: Parsed, given: Sequence[str]) -> Parsed:
    """Parse the words of a command line into a dataclass of options with these defaults.

    Raises:
        UsageError: for anything that cannot be parsed, in one line.
        SystemExit: after printing ``--help``.
    """
    import tyro

    from jaxrl.cli.constructors import registry

    if "-h" in given or "--help" in given:
        tyro.cli(config, args=given, default=defaults, registry=registry())

    flags = option_flags(defaults)
    words = [_expanded(word, flags) if word.startswith("--") else word for word in given]
    words = [_folder(word, before) for before, word in itertools.pairwise(["", *words])]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed, unknown = tyro.cli(
                config,
                args=words,
                default=defaults,
                return_unknown_args=True,
                registry=registry(),
            )
    except SystemExit:
        raise UsageError(f"{_complaint(printed.getvalue())}{_dashed(words)}") from None
    if unknown and not unknown[0].startswith("-"):
        raise UsageError(f"{unknown[0]!r} belongs to no option; see --help")
    if unknown:
        raise UsageError(f"unknown option {unknown[0]}; {_nearest_flags(unknown[0], flags)}")
    hyper.check_fields(parsed)
    result: Parsed = parsed
    return result


def refuse(names: Sequence[str], reason: str) -> None:
    """Raise UsageError for options without a use that the parsed command line gives.

    Presets may set them nevertheless.
    """
    for name in names:
        value = value_of(sys.argv[1:], name.replace("_", "-"), "")
        if value:
            raise UsageError(f"{name} is {value}, and {reason}; leave it out")


def option_flags(node: Any, path: str = "") -> list[str]:
    """Return all options as written on the command line, incl. ``--agent.critic.no-layer-norm``."""
    flags = []
    for field in filter(hyper.is_option, dataclasses.fields(node)):
        value, name = getattr(node, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += option_flags(value, f"{path}{name}.")
            continue
        flags.append(f"--{path}{name}")
        if isinstance(value, bool):
            flags.append(f"--{path}no-{name}")
    return flags


def _expanded(word: str, flags: Sequence[str]) -> str:
    """Expand an option that is the unique suffix of one of the agent's options.

    Raises:
        UsageError: for the suffix of several options.
    """
    written, equals, value = word.partition("=")
    name = written.removeprefix("--").replace("_", "-")
    known = [flag.removeprefix("--") for flag in flags]
    if name in known:
        return word
    end = name.removeprefix("agent.")
    found = [f"--{each}" for each in hyper.matches(f"agent.{end}", known)]
    found = found or [f"--{each}" for each in hyper.matches(end, known)]
    if len(found) > 1:
        raise UsageError(f"{written} is ambiguous; choose one of {', '.join(found)}")
    return f"{found[0]}{equals}{value}" if found else word


def _nearest_flags(unknown: str, flags: Sequence[str]) -> str:
    """Name the options whose last part shares words with, or resembles, the unknown option's."""

    def last(flag: str) -> str:
        return flag.partition("=")[0].removeprefix("--").rpartition(".")[2].replace("_", "-")

    name = last(unknown)
    shown = [flag for flag in flags if name.startswith("no-") or not last(flag).startswith("no-")]
    ends = {last(flag) for flag in shown}
    near = sorted(end for end in ends if {*name.split("-")} <= {*end.split("-")})
    near = near or difflib.get_close_matches(name, ends, cutoff=0.55)
    found = [flag for each in near for flag in shown if last(flag) == each]
    return f"did you mean {', '.join(found)}?" if found else "see --help"


def _folder(word: str, before: str) -> str:
    """Return a word of the command line; ``--run-dir None`` means a folder with that name."""
    if (before, word) == ("--run-dir", "None"):
        return "./None"
    return "--run-dir=./None" if word == "--run-dir=None" else word


def _dashed(words: Sequence[str]) -> str:
    """Return how to write a value of ``--run-dir`` that begins with "-" like an option."""
    for option, value in itertools.pairwise(words):
        if option == "--run-dir" and value.startswith("-"):
            return f"; if it is {value!r}, write {option}={value}"
    return ""


def _complaint(text: str) -> str:
    """Extract one line from tyro's box of title, message and option help."""
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
