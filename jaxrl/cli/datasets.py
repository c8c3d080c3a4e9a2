"""The dataset of a script: loaded, checked, and extended with what its agent reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    episodes (``top``), split (``validation``) and weighted (``sampling``) as requested.

    Raises:
        UsageError: for a dataset that cannot be read or does not fit the environment.
    """
    path = dataset_path(config)
    # Other datasets define the bounds of their actions themselves.
    plain = not metadata(path) and detect(path) != "minari"
    data = load(path, action_space=spec.action if plain else None, quiet=config.quiet)
    data.check_spec(spec)
    known = d4rl_reference(config.env) or reference(path)
    if not config.quiet:
        print(path)
        for line in lines(describe(data, references=known)):
            print(f"  {line}")
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
