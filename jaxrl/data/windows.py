"""Windows of consecutive steps in a dataset."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.data.dataset import Dataset
from jaxrl.data.samplers import UniformDataset, rows_at, transitions
from jaxrl.errors import UsageError
from jaxrl.require import plain, require_integer
from jaxrl.types import Array, Batch, Key


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of ``horizon`` steps of the dataset, which never cross the end of an episode.

    A batch ``[*shape]`` has fields ``[*shape, H, ...]`` and an extra ``valid``. It is false for
    steps after the end, which repeat the episode's last step. ``first`` draws the first rows of the
    windows, uniformly by default.

    With ``obs_horizon = n``, ``obs[*shape, n, *O]`` are instead the last ``n`` observations at the
    window's first step, and ``next_obs`` the last ``n`` after its last valid step, as action-chunk
    policies see them (``jaxrl.Chunks``). Entries before the episode's start repeat its first
    observation; an extra ``observed[*shape, n]`` is false for them in ``obs``.
    """

    horizon: int
    obs_horizon: int | None = None
    first: UniformDataset = UniformDataset()
    needs_replay: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("horizon", "obs_horizon"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    @property
    def rows_per_draw(self) -> int:
        """The number of observations in a window."""
        return self.horizon if self.obs_horizon is None else self.obs_horizon

    def check(self) -> None:
        """Raise UsageError for sizes below 1, or if ``first.n_step`` is not 1."""
        require_integer("horizon", self.horizon)
        require_integer("obs_horizon", self.obs_horizon, optional=True)
        if self.first.n_step != 1:
            raise UsageError(
                f"n_step is {self.first.n_step}, and windows keep every step's reward; it must be 1"
            )

    def uniform(self) -> Windows:
        """Return the sampler with equally likely windows, as validation needs it."""
        return dataclasses.replace(self, first=UniformDataset())

    def sample(
        self, store: Any, data: Dataset, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch of windows ``[*shape, H, ...]``."""
        first = self.first.rows(data, key, shape)[..., None]
        row = first + jnp.arange(self.horizon)
        last = jnp.asarray(data.end)[first] - 1
        batch = transitions(data, jnp.minimum(row, last), 1, gamma)
        batch = batch._replace(extras=batch.extras | {"valid": row <= last})
        return batch if self.obs_horizon is None else self._histories(batch, data, first)

    def _histories(self, batch: Batch, data: Dataset, first: Array) -> Batch:
        """Return the batch with observation histories at rows ``first[*shape, 1]``, and after."""
        assert self.obs_horizon is not None
        start = jnp.asarray(data.start)[first]
        final = jnp.minimum(first + self.horizon, jnp.asarray(data.end)[first]) - 1
        back = jnp.arange(1 - self.obs_horizon, 1)
        older = final + 1 + back[:-1]

        def after(obs: Array, next_obs: Array) -> Array:
            parts = [rows_at(obs, jnp.maximum(older, start)), rows_at(next_obs, final)]
            return jnp.concatenate(parts, axis=first.ndim - 1)

        row = jnp.maximum(first + back, start)
        return batch._replace(
            obs=jax.tree.map(lambda x: rows_at(x, row), data.obs),
            next_obs=jax.tree.map(after, data.obs, data.next_obs),
            extras=batch.extras | {"observed": first + back >= start},
        )
