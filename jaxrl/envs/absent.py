"""No environment: offline training needs only its spec."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

from jaxrl.errors import UsageError
from jaxrl.types import Array, Key, PyTree, Spec

NO_ENVIRONMENT = "none"  # its name in records


@dataclasses.dataclass(frozen=True)
class NoEnvironment:
    """The place of an environment that only its data is known of. It cannot be played in."""

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
