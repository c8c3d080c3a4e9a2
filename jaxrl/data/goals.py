"""Goals in hindsight: states that an episode reached later are used as its goals.

(Andrychowicz et al. 2017, "Hindsight Experience Replay"; Ghosh et al. 2021, "Learning to Reach
Goals via Iterated Supervised Learning".)
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.data.dataset import Dataset, Split
from jaxrl.data.samplers import UniformDataset, rows_at
from jaxrl.errors import UsageError
from jaxrl.require import plain, require_integer
from jaxrl.rng import row_key
from jaxrl.types import Array, Batch, Key

Data = TypeVar("Data", Dataset, Split)


def with_goals(data: Data) -> Data:
    """Return data whose observations are dictionaries of ``state`` and ``goal``.

    Each row's goal is the observation in its episode's last row. ``Hindsight`` draws other goals.

    Raises:
        UsageError: for observations that are already dictionaries.
    """
    if isinstance(data, Split):
        return data._replace(train=with_goals(data.train), validation=with_goals(data.validation))
    if isinstance(data.obs, dict):
        raise UsageError(
            f"the dataset's observations have the entries {', '.join(data.obs)} already; goals are "
            "given to plain ones"
        )
    goal = np.asarray(data.obs)[np.asarray(data.end) - 1]
    obs, next_obs = ({"state": x, "goal": goal} for x in (data.obs, data.next_obs))
    return data._replace(obs=obs, next_obs=next_obs)


@dataclasses.dataclass(frozen=True)
class Hindsight:
    """Batches of another sampler, with later states of the episode as goals.

    The entry ``goal`` of observations is replaced by the entry ``state`` of a later row of the same
    episode, drawn uniformly from all later rows, or from the next ``goal_horizon``. An episode's
    last row has no later row and is its own goal. All steps of a window share one goal, from after
    its first step. Next observations are not used: files may lack the last one. Rewards stay those
    of the old goals, so only agents that imitate learn from these batches.
    """

    sampler: Any = UniformDataset()
    goal_horizon: int | None = None
    needs_replay: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    changes_goals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "goal_horizon", plain(self.goal_horizon))

    def check(self) -> None:
        """Raise UsageError for a ``goal_horizon`` below 1, or if the other sampler does."""
        require_integer("goal_horizon", self.goal_horizon, optional=True)
        self.sampler.check()

    def uniform(self) -> Hindsight:
        """Return the sampler with equally likely rows, as validation needs it."""
        uniform = getattr(self.sampler, "uniform", UniformDataset)()
        return dataclasses.replace(self, sampler=uniform)

    def sample(
        self, store: Any, data: Dataset, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch ``[*shape]``.

        Raises:
            UsageError: for observations without the entries ``state`` and ``goal``.
        """
        if not isinstance(data.obs, dict) or not {"state", "goal"} <= data.obs.keys():
            raise UsageError(
                "Hindsight needs observations with the entries state and goal; give "
                "with_goals(dataset)"
            )
        inner_key, goal_key = jax.random.split(key)
        numbered = data._replace(extras={**data.extras, "first_row": jnp.arange(data.size)})
        batch = self.sampler.sample(store, numbered, inner_key, shape, gamma)
        extras = dict(batch.extras)
        row = extras.pop("first_row").reshape(*shape, -1)[..., 0]
        goal = rows_at(data.obs["state"], self.goal_rows(data, goal_key, row))

        def with_goal(obs: dict[str, Array]) -> dict[str, Array]:
            like = obs["goal"]
            steps = [1] * (like.ndim - goal.ndim)
            wide = goal.reshape(*shape, *steps, *goal.shape[len(shape) :])
            return obs | {"goal": jnp.broadcast_to(wide, like.shape)}

        obs, next_obs = with_goal(batch.obs), with_goal(batch.next_obs)
        return batch._replace(obs=obs, next_obs=next_obs, extras=extras)

    def goal_rows(self, data: Dataset, key: Key, row: Array) -> Array:
        """Return a later row of the same episode for each of ``row[*shape]``: ``int32[*shape]``."""
        behind = jnp.asarray(data.end)[row] - 1 - row
        if self.goal_horizon is not None:
            behind = jnp.minimum(behind, self.goal_horizon)
        bits = jax.random.bits(row_key(key), row.shape)
        drawn = bits % jnp.maximum(behind, 1).astype(jnp.uint32)
        return row + jnp.minimum(1 + drawn.astype(jnp.int32), behind)
