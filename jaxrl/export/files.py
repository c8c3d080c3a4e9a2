"""A policy into a folder, in all formats that can hold it."""

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
from jaxrl.export.formats import played_by_jax, write_jax, write_npz, write_onnx
from jaxrl.export.metadata import metadata
from jaxrl.export.trace import trace
from jaxrl.record.policy import Policy, load_policy_and_env
from jaxrl.types import Environment

FORMATS = ("npz", "jax", "onnx")
FOLDER = "export"  # in the run's own
FILES = {"npz": "policy.npz", "jax": "policy.jaxexport", "onnx": "policy.onnx"}
READERS = {"npz": Path(numpy_policy.__file__), "jax": Path(jax_policy.__file__)}
STEPS = 8  # that a policy with a memory is compared on


class Checked(NamedTuple):
    """A file, and how it compares with the policy that it holds."""

    path: Path
    difference: float  # the largest of action elements; the share of other indices if discrete
    microseconds: float  # of one call for one observation


class Export(NamedTuple):
    """What was written; ``notes`` has a line for each format that cannot hold the policy."""

    files: list[Checked]
    notes: list[str]
    discrete: bool
    microseconds: float  # of one call of the policy itself

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
    formats: Sequence[str] | None = None,
    out: str | Path | None = None,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> Export:
    """Write the policy of a run as files that need no jaxrl, with readers beside them.

    They go into the folder ``export`` in the run's own, where they replace those of an earlier
    call, or into ``out``, where nothing is replaced.

    Args:
        run_dir: the folder of the run.
        seed, config, iteration, classes, env: the policy, as for ``load_policy``.
        formats: of ``FORMATS``; default all that can hold the policy.
        out: another folder; it is created if needed.

    Raises:
        UsageError: if ``run_dir`` is not a run folder or lacks the policy, a file in ``out`` would
            be replaced, a format that was asked for cannot hold the policy or is not installed, or
            the policy's actions are not finite.
        RunError: if a file's policy acts otherwise than the run's; that file is not written.
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
        run_dir, seed, "greedy", iteration, config, classes=classes, env=env
    )
    return _export(policy, folder, formats, env, replace)


def export_policy(
    policy: Policy,
    out: str | Path,
    *,
    formats: Sequence[str] | None = None,
    env: Environment | None = None,
) -> Export:
    """Write a policy into the folder ``out``, as ``export_run`` does, replacing nothing.

    ``env`` is the environment that it was trained in; what the metadata say of units is its.
    """
    _require_free(Path(out), _wanted(formats))
    return _export(policy, Path(out), formats, env, replace=False)


def _wanted(formats: Sequence[str] | None) -> list[str]:
    """Return the files of these formats, readers included."""
    for each in formats or ():
        if each not in FORMATS:
            raise UsageError(f"formats has {each!r}; {nearest(each, FORMATS)}")
    chosen = FORMATS if formats is None else formats
    return [FILES[each] for each in chosen] + [READERS[x].name for x in chosen if x in READERS]


def _require_free(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageError if ``folder`` is none, or has a file of one of the names."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out {folder} is not a folder; give another --out")
    taken = [name for name in names if (folder / name).exists()]
    if taken:
        raise UsageError(f"out {folder} has a {taken[0]} already; remove it, or give another --out")


def _export(
    policy: Policy, folder: Path, formats: Sequence[str] | None, env: Any, replace: bool
) -> Export:
    """Write and compare in a folder of drafts, from which only whole sets of files are moved."""
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
        if not replace:  # once more, as some time has passed
            _require_free(folder, [draft.name for draft in drafts])
        for draft in drafts:
            os.replace(draft, folder / draft.name)
    files = [each._replace(path=folder / each.path.name) for each in made.files]
    return Export(files, notes, made.discrete, made.microseconds)


class CannotHold(UsageError):
    """A format that cannot hold a policy, or is not installed."""


class _Writer:
    """Writes one policy's files into a folder, and compares each with the policy."""

    def __init__(self, policy: Policy, folder: Path, env: Any) -> None:
        modes: tuple[Any, ...] = ("greedy", "sample")
        agent, state, spec = policy.agent, policy.state, policy.spec
        self.policies = {mode: Policy(agent, state, spec, mode) for mode in modes}
        self.modes = [Acting(self.policies[mode], mode) for mode in modes]
        self.folder, self.env = folder, env
        self.discrete = not hasattr(spec.action, "low")
        self.files: list[Checked] = []
        self.key = jax.random.key(1)
        self.obs = check.observations(policy)
        self.reads: dict[str, Any] = {acting.mode: acting.reads() for acting in self.modes}
        self.wanted = {mode: self._played(self.policies[mode], mode) for mode in modes}
        check.require_finite(self.wanted["greedy"])
        with jax.default_matmul_precision(PRECISION):
            self.microseconds = check.microseconds(self._single(self.policies["greedy"]), self.obs)

    def write(self, name: str) -> None:
        """Write a format's file, and its reader."""
        path = self.folder / FILES[name]
        if name == "jax":
            self._write_jax(path)
        else:
            try:
                network = trace(self.modes[0])
            except UsageError as error:
                raise CannotHold(
                    f"{path.name} cannot hold this policy, which {error}; "
                    f"{FILES['jax']} can, which --formats jax writes"
                ) from None
            self._write_greedy(name, network, path)
        if name in READERS:
            shutil.copyfile(READERS[name], self.folder / READERS[name].name)

    def _write_greedy(self, name: str, network: Any, path: Path) -> None:
        facts = metadata(self.modes[0], self.env, network.inputs)
        try:
            play = (write_npz if name == "npz" else write_onnx)(network, facts, path)
        except ImportError as error:
            raise CannotHold(
                f"{path.name} needs {error.name}; pip install 'jaxrl[export]'"
            ) from None
        self._checked(path, play, self.wanted["greedy"], play(self.obs))

    def _write_jax(self, path: Path) -> None:
        boxes = self.modes[0].boxes
        read = [name for name in boxes if any(reads[name] for reads in self.reads.values())]
        facts = metadata(self.modes[0], self.env, read or list(boxes))
        facts["memory"] = {mode: reads["memory"] for mode, reads in self.reads.items()}
        try:
            write_jax(self.modes, facts, path)
        except Exception as error:  # whatever an agent of a user's own raises
            text = (str(error).splitlines() or ["no message"])[0]
            raise CannotHold(
                f"{path.name} cannot hold this policy: {type(error).__name__}: {text}"
            ) from None
        sampling = played_by_jax(path, "sample")
        sampled = self._played(sampling, "sample")
        check.compare(path.name, self.policies["sample"], self.wanted["sample"], sampled)
        greedy = played_by_jax(path, "greedy")
        found = self._played(greedy, "greedy")
        self._checked(path, self._single(greedy), self.wanted["greedy"], found)

    def _checked(self, path: Path, play: Any, wanted: Any, found: Any) -> None:
        difference = check.compare(path.name, self.policies["greedy"], wanted, found)
        self.files.append(Checked(path, difference, check.microseconds(play, self.obs)))

    def _played(self, policy: Any, mode: str) -> np.ndarray:
        """Return the actions ``[B, *A]`` for all observations; a memory plays a few steps of each.

        ``policy`` is a ``Policy`` or what has its methods.
        """
        with jax.default_matmul_precision(PRECISION):
            if not self.reads[mode]["memory"]:
                return np.asarray(policy(self.obs, self.key))
            rows = check.ROWS // STEPS
            carry, actions = policy.start(rows), []
            for step in range(STEPS):
                part = slice(step * rows, (step + 1) * rows)
                seen = jax.tree.map(lambda x, part=part: x[part], self.obs)
                action, carry = policy.step(carry, seen, self.key)
                actions.append(np.asarray(action))
            return np.concatenate(actions)

    def _single(self, policy: Any) -> Any:
        """Return a function from one observation ``[*O]`` to its action, at an episode's start."""
        if not self.reads["greedy"]["memory"]:
            return policy
        carry = policy.start(1)
        return lambda obs: policy.step(carry, jax.tree.map(lambda x: x[None], obs))[0]
