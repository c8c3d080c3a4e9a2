"""The commands that the documents show: the program they start has these options.

Each is parsed by the program itself, in this process, and stopped there. Nothing is trained.
"""

import argparse
import contextlib
import inspect
import re
import runpy
import shlex
import sys
import tomllib
from functools import wraps
from unittest import mock

import pytest
import tyro
from blocks import MARKDOWN, ROOT, commands

from jaxrl import cli

SETTING = re.compile(r"^(?:[A-Z_]+=\S+ )+")  # of the environment, before a command
OTHERS = ("python -m venv", "source", "python -m pytest", "ruff", "mypy", "mkdocs", "apt-get")


class Parsed(BaseException):
    """The command line was parsed; nothing more is to happen."""


def stop(*args, **kwargs):
    raise Parsed


def only_parse(function, *args, real=tyro.cli, **options):
    """``tyro.cli`` that stops behind the options, but for the scripts that look at them."""
    if inspect.isfunction(function):
        function = wraps(function)(stop)
    found = real(function, *args, **options)
    if not options.get("return_unknown_args"):
        raise Parsed
    return found


def stopping(method):
    """A method of ``ArgumentParser`` that stops behind the options."""

    def parse(self, *args, **options):
        method(self, *args, **options)
        raise Parsed

    return parse


def parse(words):
    """Start ``python WORDS``, up to where its options are parsed."""
    parser = argparse.ArgumentParser
    with contextlib.ExitStack() as stack:
        for owner, name, instead in (
            (cli, "prepare", stop),
            (tyro, "cli", only_parse),
            (parser, "parse_args", stopping(parser.parse_args)),
            (parser, "parse_intermixed_args", stopping(parser.parse_intermixed_args)),
        ):
            stack.enter_context(mock.patch.object(owner, name, instead))
        module = words[1] if words[0] == "-m" else None
        given = words[2:] if module else words[1:]
        stack.enter_context(mock.patch.object(sys, "argv", [module or words[0], *given]))
        with pytest.raises(Parsed):
            if module:
                runpy.run_module(module, run_name="__main__")
            else:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def extras_exist(line):
    """Whether ``pip install`` names extras that there are."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"\[([\w,]+)\]", line)
    return set(",".join(named).split(",")) <= {"", *known["optional-dependencies"]}


@pytest.mark.parametrize(
    "path",
    [path for path in MARKDOWN if commands(path)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_commands_have_options_that_exist(path, capsys):
    for where, line in commands(path):
        line = SETTING.sub("", line.split(" | ")[0])
        if line.startswith("pip install"):
            assert extras_exist(line), f"{where}: {line}"
            continue
        if line.startswith(OTHERS):
            continue
        words = shlex.split(line, comments=True)
        assert words[0] == "python", f"{where}: {line} is of no known program; mark it as not run"
        try:
            parse(words[1:])
        except (Exception, SystemExit) as error:
            said = capsys.readouterr().err
            pytest.fail(f"{where}: {line}\n{error!r} {said}")


def test_an_option_that_does_not_exist_is_found():
    with pytest.raises(SystemExit):
        parse(["experiments/ppo.py", "--no-such-option", "1"])
    with pytest.raises(SystemExit):
        parse(["-m", "jaxrl.analysis", "compare", "a", "--no-such-option"])
