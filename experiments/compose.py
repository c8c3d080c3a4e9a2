"""Two trained policies as one: a search over the weight with which their predictions are mixed.

python experiments/flow_bc.py --seed 0 --run-dir runs/one
python experiments/flow_bc.py --seed 1 --run-dir runs/other
python experiments/compose.py runs/one runs/other

At every denoising step the prediction is ``weight first + (1 - weight) second``. All weights are
played as one program, on the same episodes. The one with the highest mean return is chosen, and its
return is measured on other episodes: on the episodes that selected it, the best of many weights
scores too high. The results are ``compose.json`` and ``compose.png``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import BC, DPPO, Chunks, ReinFlow, UsageError, cli, hyper
from jaxrl.agents import protocol
from jaxrl.config import recorded_options
from jaxrl.nn.composition import Composed, require_same_process
from jaxrl.record.policy import Policy, load_policy_and_env
from jaxrl.require import require
from jaxrl.training.evaluate import EVALUATION_SEED, evaluate
from jaxrl.types import Array, Environment, Key, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """A mixture of two policies, and the weight that does best."""

    first: str
    """The folder of a run of BC, DPPO or ReinFlow with a policy that denoises, such as flow_bc."""
    second: str
    """The folder of a second run: same environment, options, time limit and denoising process."""
    num_weights: int = 11
    """Number of weights to try for the first policy, evenly spaced from 0 to 1 inclusive."""
    episodes: int = 100
    """Episodes for selecting the weight, and as many other episodes for the reported return."""
    seed: int | None = None
    """The seed whose policies are used; default the first of each run."""
    out: str = "runs/compose"
    """The folder of the results; it must not exist."""


def composition(first: Policy, second: Policy) -> tuple[Any, PyTree]:
    """Return an agent that acts with the mixture of two policies, and its state.

    Raises:
        UsageError: for agents that act with more than their policy, and for policies of two
            networks, that do not denoise by the same process, that act in other environments, that
            predict other chunks, or that see observations by other statistics.
    """
    for name, each in (("first", first), ("second", second)):
        inner = protocol.innermost(each.agent)
        # The state is the first run's, and so would be critics or edits that choose the action.
        if not isinstance(inner, BC | DPPO | ReinFlow):
            raise UsageError(
                f"the {name} run is of {type(inner).__name__}, and only denoising policies that "
                "act alone are composed; give a run of BC, DPPO or ReinFlow, such as flow_bc"
            )
        protocol.require_one_network(each.agent, f"the {name} policy")
    one, other = (protocol.innermost(each.agent).policy for each in (first, second))
    require_same_process(one, other)
    limits = [each.spec.max_steps for each in (first, second)]
    if limits[0] != limits[1]:
        raise UsageError(
            f"the first run has max_steps {limits[0]}, and the second {limits[1]}; give two runs "
            "with the same"
        )
    if first.spec != second.spec or one.action_dim != other.action_dim:
        raise UsageError("the policies act in different environments; give two runs of one")
    sizes = [chunk_sizes(each.agent) for each in (first, second)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            "the policies differ in (horizon, execute, obs_horizon), which are "
            f"{sizes[0]} and {sizes[1]}; give two runs with the same"
        )
    learnt = [protocol.learnt_policy(each.agent, each.state) for each in (first, second)]
    statistics = [jax.tree.leaves(each.statistics) for each in learnt]
    same = len(statistics[0]) == len(statistics[1])
    if not same or not all(map(np.allclose, *statistics)):
        raise UsageError(
            "the policies normalise observations by different statistics; give two runs on one "
            "dataset, or without --normalize-obs"
        )
    params = {"first": learnt[0].params, "second": learnt[1].params}
    state = protocol.with_policy(first.agent, first.state, learnt[0]._replace(params=params))
    return protocol.with_parts(first.agent, policy=Composed(one, other)), state


def require_one_environment(first: Environment, second: Environment) -> None:
    """Raise UsageError unless two environments have the same name and options."""
    if first.name != second.name:
        raise UsageError(
            f"the first run is of {first.name}, and the second of {second.name}; give two of one "
            "environment"
        )
    one, other = recorded_options(first), recorded_options(second)
    if one != other:
        raise UsageError(
            f"the first run has env_options {one}, and the second {other}; give two runs with the "
            "same"
        )


def chunk_sizes(agent: Any) -> tuple[int, int, int]:
    """Return the actions that are predicted and played at once, and the observations seen."""
    while hasattr(agent, "agent"):
        if isinstance(agent, Chunks):
            return agent.horizon, agent.played, agent.obs_horizon
        agent = agent.agent
    return 1, 1, 1


def returns_of(
    agent: Any,
    state: PyTree,
    env: Environment,
    weights: Array,
    keys: Key,
    max_steps: int | None,
) -> Array:
    """Return the returns ``[W, E]`` of all weights on the episodes of ``keys[E]``.

    ``max_steps`` is the time limit of the runs.
    """

    def at(weight: Array) -> Array:
        each = hyper.replace(agent, {"policy.weight": weight})
        return evaluate(each, state, env, keys, max_steps=max_steps).returns

    return jax.vmap(at)(weights)


def draw(rows: list[dict[str, float]], chosen: float, path: Path) -> None:
    """Draw the mean returns against the weight, with intervals of two standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    weights = np.array([row["weight"] for row in rows])
    shift = 0.1 / len(rows)  # so that the intervals stand side by side
    lines = (("selection", "episodes that choose", -shift), ("report", "other episodes", shift))
    for name, label, by in lines:
        errors = [2 * row[f"{name}_error"] for row in rows]
        ax.errorbar(weights + by, [row[name] for row in rows], errors, capsize=3, fmt="o-",
                    label=label)  # fmt: skip
    ax.axvline(chosen, color="0.3", linestyle="--", linewidth=0.8, label="chosen")
    ax.set(xlabel="weight of the first policy", ylabel="mean return")
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Load, search, and write the table and the figure."""
    import tyro

    required = (tyro.conf.PositionalRequiredArgs,)
    config = tyro.cli(Config, description=__doc__, config=required)
    cli.prepare(None)
    require("num_weights", config.num_weights, 2, 10**4)
    require("episodes", config.episodes, 2, 10**6)
    folder = Path(config.out)
    if folder.exists():
        raise UsageError(f"out is {folder}, which exists; give another folder")
    first, env = load_policy_and_env(config.first, config.seed)
    second, other = load_policy_and_env(config.second, config.seed)
    require_one_environment(env, other)
    agent, state = composition(first, second)

    weights = np.linspace(0.0, 1.0, config.num_weights)
    limit = first.spec.max_steps
    keys = jax.random.split(jax.random.key(EVALUATION_SEED), 2 * config.episodes)
    played = jax.jit(
        lambda state, keys: returns_of(agent, state, env, jnp.array(weights), keys, limit)
    )
    halves = {"selection": keys[: config.episodes], "report": keys[config.episodes :]}
    returns = {name: np.asarray(played(state, half)) for name, half in halves.items()}

    rows = [{"weight": float(weight)} for weight in weights]
    for name, found in returns.items():
        for row, each in zip(rows, found, strict=True):
            row[name] = float(each.mean())
            row[f"{name}_error"] = float(each.std(ddof=1) / np.sqrt(len(each)))
    chosen = max(rows, key=lambda row: row["selection"])
    folder.mkdir(parents=True)
    record = {"config": dataclasses.asdict(config), "chosen": chosen, "rows": rows}
    (folder / "compose.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(rows, chosen["weight"], folder / "compose.png")

    print("weight   choosing         others")
    for row in rows:
        pairs = [f"{row[name]:9.2f} +- {row[f'{name}_error']:<6.2f}" for name in returns]
        print(f"{row['weight']:6.2f} {' '.join(pairs)}{' *' if row is chosen else ''}")
    print(f"chosen {chosen['weight']:.2f}: {chosen['report']:.2f} on other episodes")


if __name__ == "__main__":
    cli.launch(main)
