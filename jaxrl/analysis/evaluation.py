"""Fresh evaluations: episodes that were not used to choose a run's policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxrl.analysis.statistics import final_return
from jaxrl.config import to_config
from jaxrl.errors import UsageError
from jaxrl.record.policy import Policy, Which, load_policy_and_env
from jaxrl.record.rebuild import read_config
from jaxrl.require import require, require_integer
from jaxrl.training.evaluate import EVALUATION_SEED, evaluate
from jaxrl.types import Environment, Key, Mode


class Played(NamedTuple):
    """The returns ``[seeds, episodes]`` of fresh episodes, and how the policies were chosen."""

    seeds: list[int]
    returns: NDArray[np.float32]
    evaluations: list[Any]  # each policy's ``Policy.evaluation``

    @property
    def summary(self) -> dict[str, Any]:
        """The IQM of the seeds' mean returns with its interval, and the mean."""
        return final_return(self.returns.mean(axis=1, dtype=np.float64).tolist())

    def table(self) -> list[list[str]]:
        """Return a header row and the cells of every seed."""
        head, rows = ["seed", "fresh mean", "standard error"], []
        for seed, own in zip(self.seeds, self.returns, strict=True):
            error = own.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
            rows.append([str(seed), f"{own.mean():,.2f}", f"{error:,.2f}"])
        if None in self.evaluations:
            return [head, *rows]
        for row, evaluation in zip(rows, self.evaluations, strict=True):
            chosen_by = evaluation["episode_return"]
            row += [f"{evaluation['step']:,}", "-" if chosen_by is None else f"{chosen_by:,.2f}"]
        return [[*head, "best at step", "its score then"], *rows]

    def __str__(self) -> str:
        final = self.summary
        episodes = f"{self.returns.shape[1]} fresh episodes of each of {len(self.seeds)} seeds"
        if final["iqm"] is None:
            return f"{episodes}: not all returns are finite"
        low, high = final["ci95"]
        return f"{episodes}: IQM {final['iqm']:,.2f} (95% interval {low:,.2f} to {high:,.2f})"


def evaluate_run(
    run_dir: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    config: int = 0,
    iteration: int | None = None,
    checkpoint: Which = "last",
    mode: Mode = "greedy",
    episodes: int = 100,
    key: int = 0,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> Played:
    """Play fresh episodes of a run's policies.

    If a policy was chosen as the best of many evaluations, its score is too high, because luck
    influenced the choice. The episodes played here have different starts, so their score does not
    have this bias.

    Args:
        run_dir: the folder of the run.
        seeds: some of its seeds; default all.
        config, iteration, checkpoint, mode, classes, env: the policies, as in ``load_policy``.
        episodes: the number of episodes per seed.
        key: the seed of the episodes' random numbers; must differ from that of evaluations in
            training.

    Raises:
        UsageError: as in ``load_policy``; also for invalid numbers.
        CheckpointError: if no checkpoint is intact.
    """
    require_integer("episodes", episodes)
    require("key", key, 0, EVALUATION_SEED)
    if key == EVALUATION_SEED:
        raise UsageError(f"key is {key}, that of evaluations in training; give another, as 0")
    keys = jax.random.split(jax.random.key(key), episodes)
    wanted = list(read_config(Path(run_dir))["seeds"] if seeds is None else seeds)
    if not wanted:
        raise UsageError("seeds is empty; give at least one, or None for all")
    returns, evaluations, programs = [], [], dict[str, Any]()
    for seed in wanted:
        policy, task = load_policy_and_env(
            run_dir, seed, mode, iteration, config, checkpoint=checkpoint, classes=classes, env=env
        )
        # Seeds may have their best in different phases.
        world = task.name, getattr(task, "options", None), policy.spec.max_steps
        described = str((to_config(policy.agent), *world))
        if described not in programs:
            programs[described] = jax.jit(_player(policy, task))
        returns.append(np.asarray(programs[described](policy.state, keys)))
        evaluations.append(policy.evaluation)
    return Played(wanted, np.stack(returns), evaluations)


def _player(policy: Policy, env: Environment) -> Any:
    """Return a function from an agent's state and keys ``[E]`` to returns ``[E]``."""

    def play(state: Any, keys: Key) -> Any:
        limit = policy.spec.max_steps
        return evaluate(policy.agent, state, env, keys, policy.mode, limit).returns

    return play
