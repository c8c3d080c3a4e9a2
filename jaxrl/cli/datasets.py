"""The dataset of a script: loaded, checked, and extended with what its agent reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrl import envs
from jaxrl.agents import protocol
from jaxrl.cli.options import OfflineOptions
from jaxrl.data.dataset import Dataset, Split
from jaxrl.data.describe import describe, lines
from jaxrl.data.formats import detect, load, metadata, reference
from jaxrl.data.scores import Reference, d4rl_reference
from jaxrl.data.shipped import default_of, shipped, shipped_path
from jaxrl.data.weights import weighted
from jaxrl.errors import UsageError
from jaxrl.types import Spec


def load_dataset(config: OfflineOptions, spec: Spec) -> tuple[Dataset | Split, Reference | None]:
    """Return the dataset of ``--dataset`` and its reference scores.

    Episodes, returns and quality are printed unless ``quiet``. The dataset is cut to the best
    episodes (``top``), split (``validation``) and weighted (``sampling``) as requested. Notes are
    printed for another version of the environment, and for other options of it.

    Raises:
        UsageError: for a dataset that cannot be read, is of another task, or does not fit the
            environment.
    """
    path = dataset_path(config)
    described = metadata(path)
    notes = check_task(config, described)
    # Other datasets define the bounds of their actions themselves.
    plain = not described and detect(path) != "minari"
    data = load(path, action_space=spec.action if plain else None, quiet=config.quiet)
    data.check_spec(spec)
    known = d4rl_reference(config.env) or reference(path)
    if not config.quiet:
        print(path)
        for line in lines(describe(data, references=known)):
            print(f"  {line}")
        for note in notes:
            print(f"note: {note}")
    if config.top < 1:
        data = data.top(config.top)
    held = None
    if config.validation > 0:
        data, held = data.split(config.validation)
    if config.sampling != "uniform":
        data = weighted(data, config.sampling, config.sampling_temperature)
    return (data if held is None else Split(data, held)), known


def dataset_path(config: OfflineOptions) -> Path:
    """Return the file or folder of ``--dataset``; the default is one of the environment's.

    Raises:
        UsageError: if there is no dataset of that name, or no default.
    """
    name = config.dataset
    if name is None:
        name = default_of(config.env)
        if name is None:
            raise UsageError(
                f"no dataset of {config.env} comes with the library; give --dataset PATH, or one "
                f"of {', '.join(shipped())}"
            )
    path = Path(name)
    return path if path.exists() or name not in shipped() else shipped_path(name)


def check_task(config: OfflineOptions, described: Mapping[str, Any]) -> list[str]:
    """Return notes on how the environment of a dataset's metadata differs from ``--env``.

    Metadata that name no environment of the library have none.

    Raises:
        UsageError: for the environment of another task; versions of one task are accepted.
    """
    recorded = described.get("env")
    if recorded not in envs.names():
        return []
    if _unversioned(recorded) != _unversioned(config.env):
        raise UsageError(
            f"dataset is {config.dataset}, which is of {recorded}, and env is {config.env}; give "
            f"--env {recorded}, or a dataset of {config.env}"
        )
    notes = []
    if recorded != config.env:
        notes.append(f"the dataset is of {recorded}, another version of {config.env}")
    theirs, own = described.get("env_options"), config.env_settings
    if isinstance(theirs, dict) and _of_task(theirs) != _of_task(own):
        notes.append(f"the dataset is of env_options {theirs}, and those of this run are {own}")
    return notes


def _unversioned(env: str) -> str:
    return re.sub(r"-v\d+$", "", env)


def _of_task(options: Mapping[str, Any]) -> Any:
    """Return options as JSON has them, without those of the engine."""
    engine = envs.OF_ENGINE | {"naconmax"}
    kept = {name: value for name, value in options.items() if name not in engine}
    return json.loads(json.dumps(kept, default=str))


def with_extras(data: Any, agent: Any) -> Any:
    """Return a dataset, or both parts of a ``Split``, with the extra fields that the agent reads.

    Returns-to-go use the agent's ``gamma`` and the rewards that it learns from.
    """
    if isinstance(data, Split):
        return Split(*(with_extras(part, agent) for part in data))
    needed = protocol.batch_extras(agent)
    data = data._replace(extras={k: v for k, v in data.extras.items() if k in needed})
    if "next_action" in needed:
        data = data.with_next_action()
    if "return_to_go" in needed:
        learnt = data._replace(reward=protocol.learnt_reward(agent, data.reward))
        gamma = float(protocol.discount_factor(agent))
        data = learnt.with_return_to_go(gamma)._replace(reward=data.reward)
    return data
