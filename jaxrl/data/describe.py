"""Descriptions of datasets: episodes, returns, ranges, coverage, and two measures of quality.

    TQ   = (mean return - random) / (expert - random)
    SACo = #unique (s, a) of the dataset / #unique (s, a) of a reference dataset

(Schweighofer et al. 2022, "A Dataset Perspective on Offline Reinforcement Learning".) In the paper,
the reference dataset is the whole replay buffer of the agent that generated the data, and the
expert's return is that agent's best return.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrl.data.dataset import Dataset, checksum
from jaxrl.data.rows import name_of, on_host
from jaxrl.data.scores import Reference, normalized
from jaxrl.errors import UsageError
from jaxrl.require import require_integer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 100  # of each dimension, as in the paper


def describe(
    dataset: Dataset,
    *,
    references: Reference | None = None,
    reference: Dataset | None = None,
    dims: Sequence[str] | None = None,
    bins: int = BINS,
) -> dict[str, Any]:
    """Return a dataset's description, as JSON.

    Args:
        dataset: the dataset.
        references: returns of a random policy and of an expert, for TQ and the normalised score.
        reference: another dataset, for SACo.
        dims: the dimensions that coverage and SACo count, such as ``("obs[0]", "action[0]")``, or
            ``"obs.position[1]"`` for entries of a dictionary. Default: the first two of the
            observation and the first of the action. With all dimensions nearly every row is unique,
            and SACo reflects only the sizes, so name a few that matter.
        bins: equal bins per dimension over the range of the reference dataset (without one, of the
            dataset itself). Values outside are in a bin below or above.

    Raises:
        UsageError: for a malformed dataset, unknown dimensions, or a reference without them.
    """
    require_integer("bins", bins, 2, 10_000)
    dataset.check()
    if reference is not None:
        reference.check()
    data, returns = on_host(dataset), dataset.returns()
    ends = np.append(dataset.first_rows()[1:], data.size) - 1
    found: dict[str, Any] = {
        "transitions": data.size,
        "episodes": len(returns),
        "checksum": checksum(dataset._replace(extras={})),
        "return": _summary(returns),
        "length": _summary(data.lengths()),
        "reward": _summary(np.asarray(data.reward, np.float64)),
        "terminated": float(np.mean(data.terminated[ends])),
        "ranges": _ranges(data),
    }
    if references is not None:
        score = normalized(found["return"]["mean"], references.random, references.expert)
        found["references"] = dict(references._asdict())
        found |= {"score": float(score), "tq": float(score) / 100.0}
    names = _default_dims(data) if dims is None else list(dims)
    columns = columns_of(data, names)
    base = columns if reference is None else columns_of(on_host(reference), names)
    ranges = base.min(axis=0), base.max(axis=0)
    cells = unique_cells(columns, *ranges, bins)
    found["coverage"] = {"dims": names, "bins": bins, "cells": cells}
    if reference is not None:
        against = unique_cells(base, *ranges, bins)
        found["coverage"] |= {"reference_cells": against, "saco": cells / against}
    return found


def unique_cells(columns: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int) -> int:
    """Return the exact number of different cells that contain rows ``[D, K]``.

    Each column is divided into ``bins`` equal bins from ``low`` to ``high``, with another bin below
    and another above.
    """
    width = np.where(high > low, high - low, 1.0) / bins
    index = np.floor((columns - low) / width)
    # The greatest value belongs to the last bin, and values beyond it to the bin above.
    index = np.where(columns == high, bins - 1, np.where(columns > high, bins, index))
    cells = np.clip(index, -1, bins).astype(np.int16)
    packed = np.ascontiguousarray(cells).view(np.dtype((np.void, 2 * cells.shape[1])))
    return len(np.unique(packed.reshape(-1)))


def lines(found: dict[str, Any]) -> list[str]:
    """Return a description as lines of text."""
    episodes, ended = found["episodes"], found["terminated"]
    text = [
        f"{found['transitions']:,} transitions, {episodes:,} episodes, "
        f"{100 * ended:.1f} % of them terminated (checksum {found['checksum']})"
    ]
    for name in ("return", "length", "reward"):
        summary = found[name]
        shares = ", ".join(
            f"{100 * float(q):g} %: {x:.5g}" for q, x in summary["quantiles"].items()
        )
        low, mean, high = (f"{summary[key]:.5g}" for key in ("min", "mean", "max"))
        text.append(f"{name}: mean {mean}, from {low} to {high} ({shares})")
    for name, (low, high) in found["ranges"].items():
        text.append(f"{name}: {_span(low, high)}")
    if "references" in found:
        random, expert, source = found["references"].values()
        text.append(
            f"TQ {found['tq']:.3f}, normalised score {found['score']:.1f} "
            f"(random {random:g}, expert {expert:g}: {source})"
        )
    coverage = found["coverage"]
    over = f"over {', '.join(coverage['dims'])}, {coverage['bins']} bins each"
    if "saco" in coverage:
        counts = f"{coverage['cells']:,} of {coverage['reference_cells']:,} cells"
        text.append(f"SACo {coverage['saco']:.3f}: {counts} {over}")
    else:
        text.append(f"coverage: {coverage['cells']:,} cells {over}")
    return text


def _span(low: list[float], high: list[float]) -> str:
    if len(low) == 1:
        return f"{low[0]:.4g} to {high[0]:.4g}"
    return f"{len(low)} elements, {min(low):.4g} to {max(high):.4g}"


def _summary(values: np.ndarray) -> dict[str, Any]:
    quantiles = np.quantile(values, QUANTILES)
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {str(q): float(x) for q, x in zip(QUANTILES, quantiles, strict=True)},
    }


def _leaves(data: Dataset) -> dict[str, np.ndarray]:
    """Return observations and actions by name, each as ``[D, elements]``."""
    tree = {"obs": data.obs, "action": data.action}
    found = {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    order = sorted(found, key=lambda name: (name == "action", name))
    return {name: found[name].reshape(data.size, -1) for name in order}


def _ranges(data: Dataset) -> dict[str, list[list[float]]]:
    """Return the smallest and largest value of every element, by name."""
    return {
        name: [leaf.min(axis=0).tolist(), leaf.max(axis=0).tolist()]
        for name, leaf in _leaves(data).items()
    }


def _default_dims(data: Dataset) -> list[str]:
    names = [f"{name}[{i}]" for name, leaf in _leaves(data).items() for i in range(leaf.shape[1])]
    observed = [name for name in names if not name.startswith("action")]
    return [*observed[:2], "action[0]"]


def columns_of(data: Dataset, dims: Sequence[str]) -> np.ndarray:
    """Return the named elements of every row: ``float64[D, K]``.

    Raises:
        UsageError: for an unknown name.
    """
    leaves, columns = _leaves(data), []
    if not dims:
        raise UsageError("dims is empty; name at least one dimension, such as obs[0]")
    for dim in dims:
        match = re.fullmatch(r"(.+)\[(\d+)\]", dim)
        leaf = leaves.get(match[1]) if match else None
        if match is None or leaf is None or int(match[2]) >= leaf.shape[1]:
            sizes = ", ".join(f"{name}[0 .. {x.shape[1] - 1}]" for name, x in leaves.items())
            raise UsageError(f"unknown dimension {dim!r}; there are {sizes}")
        columns.append(leaf[:, int(match[2])].astype(np.float64))
    return np.stack(columns, axis=1)
