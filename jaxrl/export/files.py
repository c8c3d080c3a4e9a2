"""Writes a policy to a folder, in all formats that support it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.errors import UsageError, nearest
from jaxrl.export import check, jax_policy, numpy_policy
from jaxrl.export.acting import PRECISION, Acting
from jaxrl.export.formats import write_jax, write_npz, write_onnx
from jaxrl.export.jax_policy import JaxPolicy
from jaxrl.export.metadata import metadata
from jaxrl.export.trace import trace
from jaxrl.record.policy import Policy, Which, load_policy_and_env
from jaxrl.types import Discrete, Environment, Mode

FORMATS = ("npz", "jax", "onnx")
FOLDER = "export"  # within the run's folder
FILES = {"npz": "policy.npz", "jax": "policy.jaxexport", "onnx": "policy.onnx"}
READERS = {"npz": Path(numpy_policy.__file__), "jax": Path(jax_policy.__file__)}
STEPS = 8  # on which a policy with a memory is compared


class Checked(NamedTuple):
    """A file, and how it compares with the original policy."""

    path: Path
    difference: float  # the largest over action elements; share of different indices if discrete
    microseconds: float  # per call for one observation


class Export(NamedTuple):
    """The files written; ``notes`` has a line for each format that does not support the policy."""

    files: list[Checked]
    notes: list[str]
    discrete: bool
    microseconds: float  # per call of the policy itself

    def __str__(self) -> str:
        measure = "other actions" if self.discrete else "largest difference"
        lines = [
            f"{each.path}: {measure} {each.difference:.2g}, {each.microseconds:,.0f} us"
            for each in self.files
        ]
        return "\n".join(
            [
                *lines,
                f"on {check.ROWS:,} observations; times are of one call for one observation, of "
                f"load_policy {self.microseconds:,.0f} us",
            ]
        )


def export_run(
    run_dir: str | Path,
    *,
    seed: int | None = None,
    config: int = 0,
    iteration: int | None = None,
    checkpoint: Which = "last",
    formats: Sequence[str] | None = None,
    out: str | Path | None = None,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> Export:
    """Write a run's policy as files that need no jaxrl, together with readers.

    They are written to the subfolder ``export`` of the run's folder, replacing those of an earlier
    call, or to ``out``, where nothing is replaced.

    Args:
        run_dir: the folder of the run.
        seed, config, iteration, checkpoint, classes, env: the policy, as in ``load_policy``.
        formats: a selection of ``FORMATS``; default all that support the policy.
        out: an alternative folder; it is created if needed.

    Raises:
        UsageError: if ``run_dir`` is not a run folder or lacks the policy, a file in ``out`` would
            be replaced, a requested format does not support the policy or is not installed, or the
            policy's actions are not finite.
        RunError: if a file's policy acts differently from the run's; that file is not written.
        CheckpointError: if no checkpoint is intact.
        OSError: if the files cannot be written.
    """
    wanted = _wanted(formats)
    own = Path(run_dir) / FOLDER
    folder = own if out is None else Path(out)
    replace = folder.resolve() == own.resolve()
    if not replace:
        _require_free(folder, wanted)
    policy, env = load_policy_and_env(
        run_dir, seed, "greedy", iteration, config, checkpoint=checkpoint, classes=classes, env=env
    )
    return _export(policy, folder, formats, env, replace)


def export_policy(
    policy: Policy,
    out: str | Path,
    *,
    formats: Sequence[str] | None = None,
    env: Environment | None = None,
) -> Export:
    """Write a policy to the folder ``out``, like ``export_run``, replacing nothing.

    ``env`` is the environment that it was trained in; it provides the units in the metadata.
    """
    _require_free(Path(out), _wanted(formats))
    return _export(policy, Path(out), formats, env, replace=False)


def _wanted(formats: Sequence[str] | None) -> list[str]:
    """Return the files of these formats, including readers."""
    for each in formats or ():
        if each not in FORMATS:
            raise UsageError(f"formats has {each!r}; {nearest(each, FORMATS)}")
    chosen = FORMATS if formats is None else formats
    return [FILES[each] for each in chosen] + [READERS[x].name for x in chosen if x in READERS]


def _require_free(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageError if ``folder`` is not a folder, or has a file with one of the names."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out {folder} is not a folder; give another --out")
    taken = [name for name in names if (folder / name).exists()]
    if taken:
        raise UsageError(f"out {folder} has a {taken[0]} already; remove it, or give another --out")


def _export(
    policy: Policy, folder: Path, formats: Sequence[str] | None, env: Any, replace: bool
) -> Export:
    """Write and compare in a draft folder; only complete sets of files are moved out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
        made = _Writer(policy, Path(name), env)
        notes = []
        for each in FORMATS if formats is None else dict.fromkeys(formats):
            try:
                made.write(each)
            except CannotHold as error:
                if formats is not None:
                    raise UsageError(str(error)) from None
                notes.append(str(error))
        drafts = sorted(Path(name).iterdir())
        if not replace:  # again, since some time has passed
            _require_free(folder, [draft.name for draft in drafts])
        for draft in drafts:
            os.replace(draft, folder / draft.name)
    if replace and formats is None:  # the remaining files are another policy's
        for name in set(_wanted(None)) - {draft.name for draft in drafts}:
            (folder / name).unlink(missing_ok=True)
    files = [each._replace(path=folder / each.path.name) for each in made.files]
    discrete = isinstance(policy.spec.action, Discrete)
    return Export(files, notes, discrete, made.microseconds)


class CannotHold(UsageError):
    """A format does not support a policy, or is not installed."""


class _Writer:
    """Writes one policy's files to a folder, and compares each with the policy."""

    def __init__(self, policy: Policy, folder: Path, env: Any) -> None:
        self.policy, self.folder, self.env = policy, folder, env
        self.files: list[Checked] = []
        self.greedy, self.acting = self._mode("greedy")
        self.obs = check.observations(policy)
        self.memory = self.acting.reads()["memory"]
        self.wanted = _played(self.greedy, self.obs, self.memory)
        check.require_finite(self.wanted)
        self.microseconds = check.microseconds(_single(self.greedy), self.obs)

    def _mode(self, mode: Mode) -> tuple[Policy, Acting]:
        policy = Policy(self.policy.agent, self.policy.state, self.policy.spec, mode)
        return policy, Acting(policy, mode)

    def write(self, name: str) -> None:
        """Write a format's file and its reader. Raises CannotHold."""
        path = self.folder / FILES[name]
        if name == "jax":
            self._write_jax(path)
        else:
            self._write_operations(write_npz if name == "npz" else write_onnx, path)
        if name in READERS:
            shutil.copyfile(READERS[name], self.folder / READERS[name].name)

    def _write_operations(self, write: Any, path: Path) -> None:
        try:
            network = trace(self.acting)
        except UsageError as error:
            raise CannotHold(
                f"{path.name} cannot hold this policy, which {error}; "
                f"{FILES['jax']} can, which --formats jax writes"
            ) from None
        try:
            play = write(network, metadata(self.acting, self.env, network.inputs), path)
        except ImportError as error:
            raise CannotHold(
                f"{path.name} needs {error.name}; pip install 'jaxrl[export]'"
            ) from None
        self._checked(path, play, play(self.obs))

    def _write_jax(self, path: Path) -> None:
        live, sampling = self._mode("sample")
        reads = {each.mode: each.reads() for each in (self.acting, sampling)}
        boxes = self.acting.boxes
        read = [name for name in boxes if any(each[name] for each in reads.values())]
        facts = metadata(self.acting, self.env, read or list(boxes))
        facts["memory"] = {mode: each["memory"] for mode, each in reads.items()}
        try:
            write_jax([self.acting, sampling], facts, path)
        except OSError:
            raise
        except Exception as error:  # whatever a user's own agent raises
            text = (str(error).splitlines() or ["no message"])[0]
            raise CannotHold(
                f"{path.name} cannot hold this policy: {type(error).__name__}: {text}"
            ) from None
        memory = reads["sample"]["memory"]
        sampled = [_played(each, self.obs, memory) for each in (live, JaxPolicy(path, "sample"))]
        check.compare(path.name, self.policy, *sampled)
        loaded = JaxPolicy(path)
        self._checked(path, _single(loaded), _played(loaded, self.obs, self.memory))

    def _checked(self, path: Path, play: Any, found: Any) -> None:
        difference = check.compare(path.name, self.policy, self.wanted, found)
        self.files.append(Checked(path, difference, check.microseconds(play, self.obs)))


def _played(policy: Any, obs: Any, memory: bool) -> np.ndarray:
    """Return the actions ``[B, *A]`` of a ``Policy`` or an object with its methods.

    A policy with a memory plays a few steps of fewer episodes.
    """
    steps = STEPS if memory else 1
    rows, key, actions = check.ROWS // steps, jax.random.key(1), []
    with jax.default_matmul_precision(PRECISION):
        carry = policy.start(rows)
        for step in range(steps):
            seen = jax.tree.map(lambda x, at=step * rows: x[at : at + rows], obs)
            action, carry = policy.step(carry, seen, key)
            actions.append(np.asarray(action))
    return np.concatenate(actions)


def _single(policy: Any) -> Any:
    """Return a function from one observation ``[*O]`` to its action at an episode's start."""
    carry = policy.start(1)
    return lambda obs: policy.step(carry, jax.tree.map(lambda x: x[None], obs))[0]
