"""Datasets: recorded transitions, with one copy on the device for all seeds."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.data import fitting
from jaxrl.data.rows import first_nonfinite, name_of, on_host
from jaxrl.errors import UsageError
from jaxrl.require import INT32_MAX, require, require_integer
from jaxrl.types import Array, PyTree, Spec


class Dataset(NamedTuple):
    """``D`` transitions in whole episodes, one after another; every field has a leading ``[D]``.

    ``action`` is in the agent's units: [-1, 1], or an index. ``next_obs`` is the true next
    observation. ``terminated`` and ``truncated`` are never both true, and exactly one is true in an
    episode's last row. ``start`` and ``end`` (int32) are the first row of the row's episode and the
    row after its last. ``extras`` holds further arrays ``[D, ...]``, which sampled batches include.

    A dataset is an argument of the compiled programs: never part of a run's state, and never a
    constant in a program. ``Dataset.of`` computes ``start`` and ``end``. The operations that select
    episodes run on the host, and return numpy arrays.
    """

    obs: PyTree
    action: Array
    reward: Array
    next_obs: PyTree
    terminated: Array
    truncated: Array
    start: Array
    end: Array
    extras: dict[str, Any] = {}
    cumulative: PyTree = ()  # uint32[D], set by ``jaxrl.data.weighted``

    @classmethod
    def of(
        cls,
        obs: PyTree,
        action: Any,
        reward: Any,
        next_obs: PyTree,
        terminated: Any,
        truncated: Any,
        extras: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Return the dataset of these rows ``[D, ...]``, with episodes marked by the flags.

        Lists become arrays. If both flags are true, ``terminated`` wins. If neither is true in the
        last row, it is truncated.

        Raises:
            UsageError: unless flags and rewards are ``[D]``, and lists are arrays of numbers.
        """
        dead, cut = np.asarray(terminated, bool), np.asarray(truncated, bool)
        if dead.ndim != 1 or dead.shape != cut.shape:
            raise UsageError(
                f"terminated has shape {dead.shape} and truncated {cut.shape}; both must be [D], "
                "one flag for each transition"
            )
        rows = fitting.as_arrays(
            obs=obs, action=action, reward=reward, next_obs=next_obs, extras=dict(extras or {})
        )
        fitting.check_one_a_row("reward", rows["reward"])
        cut = cut & ~dead
        cut[-1:] |= ~dead[-1:]
        start, end = bounds(dead | cut)
        return cls(**rows, terminated=dead, truncated=cut, start=start, end=end)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """The number of transitions ``D``."""
        return int(self.reward.shape[0])

    @property
    def num_episodes(self) -> int:
        """The number of episodes."""
        return len(self.first_rows())

    def first_rows(self) -> np.ndarray:
        """Return the first row of each episode: ``int64[episodes]``."""
        return np.flatnonzero(np.asarray(self.start) == np.arange(self.size))

    def lengths(self) -> np.ndarray:
        """Return the number of rows of each episode: ``int64[episodes]``."""
        return np.diff(self.first_rows(), append=self.size)

    def returns(self) -> np.ndarray:
        """Return the undiscounted return of each episode: ``float64[episodes]``."""
        reward = np.asarray(self.reward, np.float64)
        return np.add.reduceat(reward, self.first_rows())

    # Checks

    def check(self) -> None:
        """Raise UsageError unless the fields are as described in this class, and finite.

        For traced arrays, only shapes are checked.
        """
        fitting.check_rows(self)
        if self.size < 1:
            raise UsageError("the dataset has no transitions; give at least one")
        if self.size > INT32_MAX:
            raise UsageError(f"the dataset has {self.size} transitions; at most {INT32_MAX} work")
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            self._check_values()

    def _check_values(self) -> None:
        for path, leaf in jax.tree.leaves_with_path(self):
            row = first_nonfinite(np.asarray(leaf))
            if row is not None:
                raise UsageError(
                    f"the dataset's {name_of(path)} is not finite at row {row}; every value must be"
                )
        dead, cut = np.asarray(self.terminated), np.asarray(self.truncated)
        for name, flags in (("terminated", dead), ("truncated", cut)):
            if flags.dtype != bool:
                raise UsageError(
                    f"the dataset's {name} is {flags.dtype}{list(flags.shape)}; it must be bool[D]"
                )
        if np.any(dead & cut):
            row = int(np.argmax(dead & cut))
            raise UsageError(
                f"the dataset's row {row} is terminated and truncated; make it terminated alone"
            )
        start, end = np.asarray(self.start), np.asarray(self.end)
        rows = np.arange(self.size)
        known = bounds((end == rows + 1) | (rows == self.size - 1))
        wrong = (start != known[0]) | (end != known[1]) | ((dead | cut) != (end == rows + 1))
        if np.any(wrong):
            raise UsageError(
                f"the dataset's start and end differ from its flags at row {np.argmax(wrong)}; "
                "make it with Dataset.of(...), which finds them"
            )

    def check_spec(self, spec: Spec) -> None:
        """Raise UsageError unless observations and actions fit an environment.

        Shapes, kinds of dtypes, and the ranges of actions are compared. For traced actions, only
        shape and dtype are compared.
        """
        fitting.check_observations("obs", self.obs, spec.observation)
        fitting.check_observations("next_obs", self.next_obs, spec.observation)
        fitting.check_actions(self.action, spec.action)

    # Choices of whole episodes

    def filter(self, keep: Any) -> Dataset:
        """Return the episodes where ``keep`` (``bool[episodes]``) is true.

        Raises:
            UsageError: for another shape or dtype, or if no episode remains.
        """
        chosen, lengths = np.asarray(keep), self.lengths()
        if chosen.dtype != bool or chosen.shape != lengths.shape:
            raise UsageError(
                f"keep is {chosen.dtype}{list(chosen.shape)}; it must be bool[{len(lengths)}], one "
                "for each episode"
            )
        if not chosen.any():
            raise UsageError(f"keep is False for all of {len(lengths)} episodes; keep at least one")
        rows = np.repeat(chosen, lengths)
        kept = jax.tree.map(lambda x: np.asarray(x)[rows], self)
        start, end = bounds(kept.terminated | kept.truncated)
        return kept._replace(start=start, end=end, cumulative=())

    def top(self, share: float) -> Dataset:
        """Return the best ``share`` of the episodes by return, at least one, in their order.

        Among equal returns, earlier episodes are preferred.

        Raises:
            UsageError: for a share outside (0, 1].
        """
        require("share", share, 0, 1, above=True)
        returns = self.returns()
        count = max(round(share * len(returns)), 1)
        keep = np.zeros(len(returns), bool)
        keep[np.argsort(-returns, kind="stable")[:count]] = True
        return self.filter(keep)

    def split(self, share: float = 0.1, seed: int = 0) -> Split:
        """Return ``train, validation``, with a random ``share`` of the episodes in validation.

        Raises:
            UsageError: for a share outside (0, 1), or with fewer than two episodes.
        """
        require("share", share, 0, above=True)
        require_integer("seed", seed, 0)
        episodes = self.num_episodes
        if share >= 1:
            raise UsageError(f"share is {share:g}; it must be less than 1, such as 0.1")
        if episodes < 2:
            raise UsageError("the dataset has one episode; a split needs at least two")
        count = min(max(round(share * episodes), 1), episodes - 1)
        held = np.zeros(episodes, bool)
        held[np.random.default_rng(seed).permutation(episodes)[:count]] = True
        return Split(self.filter(~held), self.filter(held))

    # Further arrays

    def with_next_action(self) -> Dataset:
        """Return the dataset with extras ``next_action`` and ``has_next_action`` (bool[D]).

        ``next_action`` is the action of the next row. In an episode's last row it is zero, and
        ``has_next_action`` is False. A dataset that already has both keeps them: readers know the
        actions of rows that they drop.
        """
        if {"next_action", "has_next_action"} <= self.extras.keys():
            return self
        ends = np.asarray(self.terminated) | np.asarray(self.truncated)
        following = next_actions(np.asarray(self.action), ends)
        return self._replace(
            extras={**self.extras, "next_action": following, "has_next_action": ~ends}
        )

    def with_return_to_go(self, gamma: float) -> Dataset:
        """Return the dataset with the extra ``return_to_go`` (float32[D]).

        It is ``sum_k gamma^k r_(t+k)`` over the rows to the end of the episode. The sum stops at
        ``truncated`` as at ``terminated``: rewards after a time limit count as 0. So before a time
        limit it is too low if the missing rewards are positive, and too high if they are negative;
        in the latter case it is not a lower bound on the value (Cal-QL).

        Cal-QL needs the sums of the rewards that it learns from. If those are transformed
        (``ScaleReward``), ``jaxrl.cli.with_extras(dataset, agent)`` sums the right ones.

        Raises:
            UsageError: for a gamma outside [0, 1].
        """
        require("gamma", gamma, 0, 1)
        total = np.array(self.reward, np.float64)
        left = np.asarray(self.end) - np.arange(self.size)  # rows to the end, including this one
        step, factor = 1, float(gamma)
        # After each pass, total[t] sums the episode's next 2 * step rewards.
        while step < left.max(initial=0):
            beyond = np.where(left[:-step] > step, total[step:], 0.0)
            total[:-step] += factor * beyond
            step, factor = 2 * step, factor * factor
        return self._replace(extras={**self.extras, "return_to_go": total.astype(np.float32)})


class Split(NamedTuple):
    """A dataset to learn from, and a dataset of other episodes for a validation loss."""

    train: Dataset
    validation: Dataset

    def check(self) -> None:
        """Raise UsageError if either dataset does."""
        for data in self:
            data.check()

    def check_spec(self, spec: Spec) -> None:
        """Raise UsageError if either dataset does."""
        for data in self:
            data.check_spec(spec)


def bounds(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``start`` and ``end`` (int32[D]) of each row's episode; ``ends[D]`` marks last rows.

    The final row must be marked.
    """
    last = np.flatnonzero(ends)
    lengths = np.diff(last, prepend=-1)
    start = np.repeat(last + 1 - lengths, lengths).astype(np.int32)
    return start, np.repeat(last + 1, lengths).astype(np.int32)


def next_actions(action: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the next row's action for each row of ``action[D, *A]``, zero where ``ends[D]``."""
    following = np.empty_like(action)
    following[:-1] = action[1:]
    following[ends] = 0
    return following


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """Return the episodes of several datasets, one after another.

    Raises:
        UsageError: without datasets, or if their fields differ in names, shapes or dtypes.
    """
    if not datasets:
        raise UsageError("there are no datasets; give at least one")
    hosted = [on_host(data._replace(cumulative=())) for data in datasets]
    first = _described(hosted[0])
    for number, data in enumerate(hosted[1:], start=1):
        other = _described(data)
        for name in sorted(first.keys() | other.keys()):
            a, b = first.get(name, "absent"), other.get(name, "absent")
            if a != b:
                hint = "; with_next_action() gives it to both" * ("next_action" in name)
                raise UsageError(
                    f"{name} of dataset 0 is {a}, and of dataset {number} {b}; they must be alike"
                    + hint
                )
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *hosted)
    start, end = bounds(joined.terminated | joined.truncated)
    return joined._replace(start=start, end=end)


def _described(data: Dataset) -> dict[str, str]:
    """Return the dtype and row shape of every field, by name."""
    return {
        name_of(path): f"{leaf.dtype}{list(leaf.shape[1:])}"
        for path, leaf in jax.tree.leaves_with_path(data)
    }


def checksum(data: PyTree) -> str | None:
    """Return the CRC-32 of a dataset's arrays, their shapes and dtypes; None without arrays."""
    leaves = jax.tree.leaves(data)
    total = 0
    for leaf in leaves:
        array = np.ascontiguousarray(np.asarray(leaf))
        total = zlib.crc32(f"{array.dtype.name}{array.shape}".encode(), total)
        total = zlib.crc32(array.reshape(-1).view(np.uint8).data, total)
    return f"{total:08x}" if leaves else None
