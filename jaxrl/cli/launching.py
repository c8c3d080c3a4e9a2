"""Starting a script, printing its results, and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxrl import _startup, envs, processes
from jaxrl._output import joined, lasting_output, one_line, sweep_label
from jaxrl.analysis.curves import step_label
from jaxrl.cli.options import Options
from jaxrl.errors import Interrupted, RunError, UsageError
from jaxrl.record.rebuild import classes_of
from jaxrl.run import Run, distributed


def launch(script: Callable[[], Any]) -> NoReturn:
    """Run a script's main function and exit: 0 on success, 2 on bad usage, 1 on failure.

    If a signal ended a run after its checkpoint, the exit code is 128 + the signal's number. A
    script continues even if nobody reads its output any more, as with ``| head -n 1``.
    """
    with lasting_output():
        code = _exit_code(script)
    sys.exit(code)


def _exit_code(script: Callable[[], Any]) -> int:
    try:
        script()
    except UsageError as error:
        return _complain(error, 2)
    except Interrupted as error:
        return _complain(error, 128 + error.signum)
    except RunError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return 0


def prepare(devices: int | None = None, words: Sequence[str] | None = None) -> None:
    """Set up JAX for a script, before its first computation, from ``--devices, --distributed``.

    Raises:
        UsageError, RunError: if the processes of a distributed run cannot connect.
    """
    _startup.prepare(devices)
    if words is not None:
        distributed.from_words(words)


def _complain(error: Exception | str, code: int) -> int:
    name = Path(sys.argv[0]).name
    if processes.several():
        name += f": process {processes.index()} of {processes.count()}"
    line = one_line(f"{name}: {error}")
    if code in (1, 2, 130):
        distributed.end(code, line)
    print(line, file=sys.stderr)
    return code


def report(result: Run, options: Options) -> None:
    """Print the result of a run, unless ``quiet``; with ``render``, draw an episode."""
    if not processes.is_first():
        return
    if not options.quiet:
        print(describe(result))
    if options.render and result.run_dir is not None:
        _render(result, result.run_dir, options.quiet)


def describe(result: Run) -> str:
    """Describe the result of a run in a few lines."""
    summary = result.summary
    lines = []
    for entry in summary.get("configurations", [summary]):
        final = entry["final_return"]
        if final["iqm"] is None:
            evaluated = (
                "not all returns are finite" if result.trainer.evaluates else "no environment"
            )
            lines.append(f"no final return: {evaluated}")
            continue
        low, high = final["ci95"]
        name = sweep_label(entry.get("sweep", {}))
        lines.append(
            f"{name + ': ' if name else ''}final return {final['iqm']:.1f} "
            f"(IQM of {len(final['per_seed'])} seeds, 95% interval {low:.1f} to {high:.1f})"
        )
        if "scores" in entry:
            lines.append(_scores(entry["scores"]))
    for switch in summary.get("switches", ()):
        values = [switch[name]["iqm"] for name in ("before", "dip", "area")]
        if None not in values:
            text = "phase {}: from {:.1f}, dip {:.1f}, mean over its evaluations {:.1f}"
            lines.append(text.format(switch["phase"], *values))
    if summary["identical_episodes"]:
        lines.append(
            "in every evaluation, all episodes of a seed had the same return, so they may be "
            "identical; --eval-mode sample plays them stochastically"
        )
    lines.append(
        f"{summary['steps_per_second']:,.0f} {step_label([summary])}/s over all seeds; "
        f"{summary['train_seconds']:.0f} s training, {summary['compile_seconds']:.0f} s compiling"
    )
    if result.run_dir is not None:
        lines.append(f"record: {result.run_dir}")
    return "\n".join(lines)


def _scores(scores: dict[str, Any]) -> str:
    """Return a line of normalised scores, each with its evaluation protocol."""
    shown = [
        f"{protocol.replace('_', ' ')} {scores[protocol]['iqm']:.1f}"
        for protocol in ("final", "last_ten", "best")
        if scores[protocol]["iqm"] is not None
    ]
    return f"{scores['name']} score: {', '.join(shown)}"


def _render(result: Run, folder: Path, quiet: bool) -> None:
    """Draw an episode of the newest checkpoint; the run is saved, so a failure is a warning."""
    from jaxrl.analysis import render_run

    if not quiet:
        print("drawing an episode", flush=True)  # without a GPU, physics takes a minute or more
    trainer: Any = result.trainer
    env = trainer.env.env
    known = env.name in envs.names()
    try:
        rendering = render_run(
            folder, classes=classes_of(trainer.agent), env=None if known else env
        )
    except Exception as error:
        print(f"warning: no episode was drawn: {joined(error)}", file=sys.stderr)
        return
    for note in rendering.notes:
        print(f"warning: {note}", file=sys.stderr)
    if not quiet:
        print(rendering)
