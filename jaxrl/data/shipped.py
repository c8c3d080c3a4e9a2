"""The small datasets that come with the library, made by ``experiments/make_dataset.py``.

They use D4RL's file layout, in float32. Their metadata hold the command that generated them, and
the returns of the random policy and the expert measured at that time.
"""

from __future__ import annotations

from pathlib import Path

from jaxrl.errors import UsageError, nearest

FOLDER = Path(__file__).parent / "files"


def shipped() -> list[str]:
    """Return the names of the datasets, such as ``gymnax/Pendulum-v1/medium-replay``."""
    found = sorted(FOLDER.rglob("*.hdf5"))
    return [path.relative_to(FOLDER).with_suffix("").as_posix() for path in found]


def default_of(env: str) -> str | None:
    """Return the name of an environment's default dataset: its medium-replay data, if any."""
    own = [name for name in shipped() if name.startswith(f"{env}/")]
    return next((name for name in own if name.endswith("/medium-replay")), next(iter(own), None))


def shipped_path(name: str) -> Path:
    """Return the file of a dataset.

    Raises:
        UsageError: for a name that is not in ``shipped()``.
    """
    names = shipped()
    if name not in names:
        raise UsageError(f"there is no dataset {name!r}; {nearest(name, names)}")
    return FOLDER / f"{name}.hdf5"
