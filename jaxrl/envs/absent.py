"""No environment: offline training needs only the spec."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

from jaxrl.errors import UsageError
from jaxrl.types import Array, Key, PyTree, Spec

NO_ENVIRONMENT = "none"  # its name in records


@dataclasses.dataclass(frozen=True)
class NoEnvironment:
    """Placeholder for an environment known only from data. It cannot be played."""

    spec: Spec
    name: str = NO_ENVIRONMENT
    cheap: bool = True

    def reset(self, key: Key) -> NoReturn:
        """Raise UsageError: there is nothing to play in."""
        _refuse()

    def step(self, key: Key, state: PyTree, action: Array) -> NoReturn:
        """Raise UsageError: there is nothing to play in."""
        _refuse()


def _refuse() -> NoReturn:
    raise UsageError(
        "there is no environment to play in, only the spec of one; give the environment, as "
        "VectorEnv(make('mjx/Hopper-v5'), 1)"
    )
