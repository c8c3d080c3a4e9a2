"""What the scripts in ``experiments/`` share: their options, and how they begin and end."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from jaxrl import presets
from jaxrl._startup import cpu_devices
from jaxrl.errors import Interrupted, RunError, UsageError, nearest
from jaxrl.run.runner import Run, run
from jaxrl.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every script."""

    env: str = "brax/ant"
    """The environment, "<suite>/<task>"; a wrong name is answered with the nearest right ones."""
    env_options: tuple[str, ...] = ()
    """Options of the environment, as in: backend=mjx"""
    total_steps: int = 500_000
    """Environment steps of each seed, rounded up to whole iterations."""
    seed: int = 0
    """The first seed."""
    num_seeds: int = 1
    """So many seeds (seed, seed + 1, ...), trained together in one program."""
    num_envs: int = 8
    """Environments of each seed."""
    run_dir: str | None = None
    """The run's folder; default runs/ALGORITHM_ENV_TIME."""
    resume: bool = False
    """Continue the run in --run-dir from its newest intact checkpoint."""
    eval_every: int | None = None
    """Steps between evaluations; default a tenth of the run."""
    eval_episodes: int = 32
    """Greedy episodes per evaluation and seed."""
    log_every: int | None = None
    """Steps between rows of metrics.jsonl; default a fifth of --eval-every."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default --eval-every."""
    devices: int | None = None
    """Local devices to use; default all that the sizes divide over (on a CPU: one per core)."""
    sweep: tuple[str, ...] = ()
    """Hyper-parameters to sweep in one program, as in: learning_rate=1e-4,3e-4 gamma=0.97,0.99"""
    max_skipped: int = 100
    """Stop once so many gradient steps in a row were not finite, of every member."""
    max_nonfinite: float = 0.5
    """Stop once more than this part of a chunk's environment steps was not finite."""
    log: tuple[str, ...] = ()
    """Further places to log to: tensorboard, wandb."""
    render: bool = False
    """At the end draw an episode of the first seed, as python -m jaxrl.analysis render does."""
    quiet: bool = False
    """No progress bar, no notes."""


Config = TypeVar("Config", bound=Options)


def parse(
    config: type[Config],
    table: Mapping[str, presets.Settings],
    agent: type,
    args: Sequence[str] | None = None,
) -> Config:
    """The options of a script from its command line; defaults are ``table``'s for its ``--env``.

    Raises:
        UsageError: for anything that tyro refuses, in one line.
        SystemExit: after printing ``--help``.
    """
    import tyro

    given = list(sys.argv[1:] if args is None else args)
    settings = presets.lookup(table, _env_of(given, config.env))
    defaults = config(**{**settings, "agent": agent(**settings["agent"])})
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
    """The value of ``--env``, needed before all others: it decides their defaults."""
    found = default
    for i, arg in enumerate(args):
        if arg == "--env" and i + 1 < len(args):
            found = args[i + 1]
        if arg.startswith("--env="):
            found = arg.removeprefix("--env=")
    return found


def _field_names(node: Any) -> list[str]:
    names = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        inner = _field_names(value) if dataclasses.is_dataclass(value) else None
        names += [field.name] if inner is None else [f"{field.name}.{name}" for name in inner]
    return names


def _complaint(text: str) -> str:
    """What tyro says in its box of several lines: a title, the message, the option's help."""
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


def assignments(words: Sequence[str], option: str, example: str = "backend=mjx") -> dict[str, Any]:
    """``["backend=mjx", "max_steps=500"]`` as a dictionary; values are Python literals or text.

    Raises:
        UsageError: for a word without "=", or a name that is given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{option} {word!r} is not NAME=VALUE, as {example}")
        if name in found:
            raise UsageError(f"{option} {name} is given twice; once is enough, as {example}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):  # TypeError: of {[]: 1}, whose key is a list
            found[name] = value
    return found


def swept(words: Sequence[str]) -> dict[str, tuple[float, ...]] | None:
    """``["gamma=0.9,0.99"]`` as values to sweep.

    Raises:
        UsageError: for what is not numbers.
    """
    sweep = {}
    for name, value in assignments(words, "sweep", "gamma=0.9,0.99").items():
        values = value if isinstance(value, tuple) else (value,)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not (values and numbers):
            raise UsageError(f"sweep {name}={value} is not a list of numbers, as gamma=0.9,0.99")
        sweep[name] = tuple(float(v) for v in values)
    return sweep or None


def train(trainer: Trainer, options: Options) -> Run:
    """``run`` with the options of a script; the result is printed, and drawn with ``render``."""
    folder = options.run_dir
    if folder is None:
        if options.resume:
            raise UsageError("resume needs the folder of the run to continue: --run-dir DIR")
        config = trainer.config()
        task = config["env"].replace("/", "-")
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")  # runs may begin in the same second
        folder = str(Path("runs") / f"{config['algorithm'].lower()}_{task}_{stamp}")
    hidden = {"env", "env_options", "seed", "num_seeds", "num_envs", "run_dir", "sweep", "render"}
    shared = {f.name for f in dataclasses.fields(Options)} - hidden
    if options.num_seeds < 1:
        raise UsageError(f"num-seeds is {options.num_seeds}; it must be at least 1")
    result = run(
        trainer,
        run_dir=folder,
        seeds=range(options.seed, options.seed + options.num_seeds),
        sweep=swept(options.sweep),
        **{name: getattr(options, name) for name in shared},
    )
    if not options.quiet:
        print(describe(result))
    if options.render:
        _render(folder, options.quiet)
    return result


def _render(folder: str, quiet: bool) -> None:
    """An episode of the newest checkpoint. The run is over and saved; no failure here spoils it."""
    from jaxrl.analysis import render_run

    if not quiet:
        print("drawing an episode", flush=True)  # without a GPU, physics takes a minute or more
    try:
        rendering = render_run(folder)
    except Exception as error:
        reason = " ".join(str(error).split())
        print(f"warning: no episode was drawn: {reason}", file=sys.stderr)
        return
    for note in rendering.notes:
        print(f"warning: {note}", file=sys.stderr)
    if not quiet:
        print(rendering)


def describe(result: Run) -> str:
    """A few lines on how a run ended."""
    summary = result.summary
    lines = []
    for entry in summary.get("configurations", [summary]):
        final = entry["final_return"]
        low, high = final["ci95"]
        name = " ".join(f"{k}={v:g}" for k, v in entry.get("sweep", {}).items())
        lines.append(
            f"{name + ': ' if name else ''}final return {final['iqm']:.1f} "
            f"(IQM of {len(final['per_seed'])} seeds, 95% interval {low:.1f} to {high:.1f})"
        )
    lines.append(
        f"{summary['steps_per_second']:,.0f} environment steps/s over all seeds; "
        f"{summary['train_seconds']:.0f} s training, {summary['compile_seconds']:.0f} s compiling"
    )
    if result.run_dir is not None:
        lines.append(f"record: {result.run_dir}")
    return "\n".join(lines)


def prepare(devices: int | None) -> None:
    """Settings of JAX for a script: its CPU devices, and the persistent compilation cache."""
    if devices is not None and devices > 1:
        cpu_devices(devices)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "jaxrl" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def launch(script: Callable[[], Any]) -> NoReturn:
    """Run a script's main function, and exit: 0 on success, 2 on bad usage, 1 on failure.

    A signal that ended a run after its checkpoint gives 128 + its number.
    """
    code = 0
    try:
        script()
    except UsageError as error:
        code = _complain(error, 2)
    except Interrupted as error:
        code = _complain(error, 128 + error.signum)
    except RunError as error:
        code = _complain(error, 1)
    except KeyboardInterrupt:
        code = _complain("interrupted", 130)
    sys.exit(code)


def _complain(error: Exception | str, code: int) -> int:
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    return code
