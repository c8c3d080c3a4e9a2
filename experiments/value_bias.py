"""Bias of the critics of SAC, DSAC and DSAC-T, and the effect of the reward scale.

python experiments/value_bias.py
python experiments/value_bias.py --env mjx/HalfCheetah-v5 --total-steps 200000 --out results/bias

Each algorithm is trained with rewards times 0.1, 1 and 10, several seeds each, as one program.
Networks, learning rates, initial temperatures, policy delays and ranges of standard deviations are
the same, so only the algorithm differs: what a critic learns, the target policy from which DSAC and
DSAC-T take next actions, and that they take all gradients at the same parameters. The bias of the
trained critics is the mean of ``Q(s, a) - G`` over states and actions that the policy visits, where
``G`` is the discounted sum of later rewards and entropy bonuses, played out without a time limit
until the rest is below a thousandth. It is divided by the factor, and so is in units of the return.
The results are ``value_bias.json`` and ``value_bias.png``. The figure and the printed table show
the IQM over seeds.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import DSAC, DSACT, SAC, OffPolicy, ScaleReward, VectorEnv, cli, hyper, make, run
from jaxrl.analysis.statistics import final_return
from jaxrl.envs.vector import rescale
from jaxrl.errors import UsageError
from jaxrl.losses import discounted_sums
from jaxrl.nn.networks import Activation
from jaxrl.require import require
from jaxrl.types import Array, Environment, Key, PyTree

AGENTS: dict[str, Any] = {"SAC": SAC, "DSAC": DSAC, "DSAC-T": DSACT}
LOG_STD_RANGE = (-20.0, 2.0)  # of all policies: SAC's


@dataclasses.dataclass(frozen=True)
class Config:
    """Bias of the critics, and returns, at several scales of the reward."""

    env: str = "gymnax/Pendulum-v1"
    """The environment, "<suite>/<task>"."""
    scales: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Factors of the reward."""
    total_steps: int = 30_000
    """Environment steps of each seed."""
    num_seeds: int = 4
    """Seeds of each algorithm and scale."""
    num_envs: int = 1
    """Environments of each seed."""
    learning_rate: float = 1e-3
    """Step size of critics, policy and temperature."""
    hidden_dims: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of all networks."""
    activation: Activation = "relu"
    """Activation of all networks."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """Step of all target networks."""
    policy_delay: int = 1
    """Gradient steps between updates of the policy, temperature and DSAC's target networks."""
    initial_alpha: float = 1.0
    """Initial temperature."""
    batch_size: int = 128
    """Transitions of a gradient step."""
    learning_starts: int = 1_000
    """Transitions with uniform actions before the first gradient step."""
    episodes: int = 32
    """Episodes per seed for measuring the bias."""
    states: int = 100
    """Number of first states of each episode at which the bias is measured."""
    out: str = "runs/value_bias"
    """The folder of the results; it must not exist."""


def agent_of(config: Config, name: str) -> Any:
    """Return the algorithm ``name``; all of them have the same values of what they share."""
    network = {"hidden_dims": config.hidden_dims, "activation": config.activation}
    settings = {
        "policy": network | {"log_std_range": LOG_STD_RANGE},
        "critic": network,
        "actor_learning_rate": config.learning_rate,
        "critic_learning_rate": config.learning_rate,
        "alpha_learning_rate": config.learning_rate,
        "gamma": config.gamma,
        "tau": config.tau,
        "policy_delay": config.policy_delay,
        "initial_alpha": config.initial_alpha,
    }
    return hyper.override(AGENTS[name](), settings)


def q_values(agent: Any, state: PyTree, obs: Array, action: Array) -> Array:
    """Return the expected return by each critic: ``[critics, ...]``."""
    if isinstance(agent, DSAC):
        return agent.distribution(state.critic.params, obs, action)[0]
    return agent.critic(state.critic.params, obs, action)


def soft_returns(
    agent: Any, state: PyTree, env: Environment, keys: Key, scale: Array, steps: int
) -> tuple[Array, Array, Array]:
    """Play an episode of the exploring policy from each of ``keys[E]``, without a time limit.

    Returns the minimum over critics and the discounted return at every step, and whether the
    episode was still going: ``[T, E]`` all three. The agent is bound to ``env.spec``.
    """
    alpha = jnp.exp(state.log_alpha.params)

    def step(carry: tuple, t: Array) -> tuple[tuple, tuple]:
        inner, obs, going = carry
        act_key, env_key = jnp.moveaxis(
            jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, t)))(keys), 1, 0
        )
        dist = agent.policy.dist(state.actor.params, obs)
        action, trace = jax.vmap(lambda dist, key: dist.sample(key))(dist, act_key)
        log_prob = agent.log_prob(trace) if isinstance(agent, DSAC) else trace.log_prob
        bonus = -alpha * log_prob
        value = jnp.min(q_values(agent, state, obs, action), axis=0)
        inner, out = jax.vmap(env.step)(env_key, inner, rescale(env.spec.action, action))
        row = (value, scale * out.reward, bonus, out.terminated, going)
        return (inner, out.obs, going & ~out.terminated), row

    inner, obs = jax.vmap(env.reset)(keys)
    start = (inner, obs, jnp.ones(keys.shape[0], bool))
    _, (value, reward, bonus, ended, going) = jax.lax.scan(step, start, jnp.arange(steps))
    discount = jnp.where(ended, 0.0, agent.gamma)
    later = jnp.concatenate([bonus[1:], jnp.zeros_like(bonus[:1])])
    rest = jnp.zeros(keys.shape[0])
    return value, discounted_sums(reward + discount * later, discount, rest), going


def biases(config: Config, agent: Any, state: PyTree, env: Environment, scale: Array) -> Array:
    """Return the bias and the mean magnitude of returns of one trained agent: ``[2]``."""
    horizon = config.states + math.ceil(math.log(1e-3) / math.log(agent.gamma))
    keys = jax.random.split(jax.random.key(2**31 - 2), config.episodes)
    value, returns, going = soft_returns(agent, state, env, keys, scale, horizon)
    value, returns, going = (x[: config.states] for x in (value, returns, going))
    total = jnp.sum(going)
    bias = jnp.sum(jnp.where(going, value - returns, 0.0)) / total
    return jnp.stack([bias, jnp.sum(jnp.where(going, jnp.abs(returns), 0.0)) / total])


def measure(config: Config, name: str, folder: Path) -> list[dict[str, Any]]:
    """Train an algorithm at all scales, and return a row for each of them."""
    env = make(config.env)
    agent = agent_of(config, name).bind(env.spec)
    trainer = OffPolicy(
        ScaleReward(agent),
        VectorEnv(env, config.num_envs),
        buffer_size=max(config.total_steps, 2 * config.learning_starts),
        batch_size=config.batch_size,
        learning_starts=config.learning_starts,
    )
    result = run(
        trainer,
        config.total_steps,
        seeds=config.num_seeds,
        sweep={"reward_scale": config.scales},
        run_dir=folder / name,
    )
    measured = jax.jit(jax.vmap(lambda s, scale: biases(config, agent, s, env, scale)))
    scales = jnp.array([member.sweep["reward_scale"] for member in result.members])
    found = np.asarray(measured(result.state.agent, scales)).reshape(len(config.scales), -1, 2)
    rows = []
    for entry, (bias, size) in zip(
        result.summary["configurations"], found.transpose(0, 2, 1), strict=True
    ):
        row = {"algorithm": name, "reward_scale": entry["sweep"]["reward_scale"]}
        scale = row["reward_scale"]
        row |= {"final_return": entry["final_return"], "bias": final_return(bias / scale)}
        magnitudes = final_return(size / scale)["per_seed"]  # None where JSON has no number
        rows.append(row | {"mean_magnitude_of_returns": magnitudes})
    return rows


def draw(config: Config, rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the IQM of final returns and biases against the scale of the reward.

    Rows without an IQM, in which not all seeds are finite, are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = {"final_return": "final evaluation return", "bias": "Q - G, in units of the return"}
    for ax, (what, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for i, name in enumerate(AGENTS):
            own = [row for row in rows if row["algorithm"] == name and row[what]["iqm"] is not None]
            if not own:
                continue
            x = np.array([row["reward_scale"] for row in own]) * 1.12 ** (i - 1)
            middle = np.array([row[what]["iqm"] for row in own])
            low, high = np.transpose([row[what]["ci95"] for row in own])
            colour = f"C{i}"  # the same in both panels, also where an algorithm has no row in one
            bars = [middle - low, high - middle]
            ax.errorbar(x, middle, bars, fmt="o-", color=colour, capsize=4, label=name)
            for at, row in zip(x, own, strict=True):
                seeds = row[what]["per_seed"]
                ax.plot([at] * len(seeds), seeds, ".", color="0.5", markersize=4)
        ax.set(xscale="log", xlabel="rewards times", ylabel=label)
        ax.set_xticks(config.scales, [f"{scale:g}" for scale in config.scales])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    figure.axes[1].axhline(0.0, color="0.3", linewidth=0.8)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend()
    figure.suptitle(f"{config.env}, {config.total_steps:,} steps, {config.num_seeds} seeds")
    figure.savefig(path, dpi=120)


def shown(row: dict[str, Any]) -> str:
    """Return a line of the table: the IQM of the final return, and of the bias."""
    name = f"{row['algorithm']:7} x{row['reward_scale']:<5g}"
    final, bias = row["final_return"]["iqm"], row["bias"]["iqm"]
    if final is None or bias is None:
        return f"{name} not all seeds are finite"
    return f"{name} {final:9.1f} {bias:+9.2f}"


def check(config: Config) -> None:
    """Raise UsageError for what would fail only after hours of training."""
    require("num_seeds", config.num_seeds, 2)
    for name in ("episodes", "states"):
        require(name, getattr(config, name), 1, 10**6)
    if not 0.0 < config.gamma < 1.0:
        raise UsageError(
            f"gamma is {config.gamma:g}; it must be more than 0 and less than 1, as 0.99"
        )
    if not config.scales:
        raise UsageError("scales is (); give at least one, as 0.1 1 10")
    for scale in config.scales:
        require("scales", scale, 0, above=True)


def main() -> None:
    """Train, measure, and write the table and the figure."""
    import tyro

    config = tyro.cli(Config, description=__doc__)
    cli.prepare(None)
    check(config)
    folder = Path(config.out)
    if folder.exists():
        raise UsageError(f"out is {folder}, which exists; give another folder")
    rows = [row for name in AGENTS for row in measure(config, name, folder)]
    record = {"config": dataclasses.asdict(config), "rows": rows}
    (folder / "value_bias.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(config, rows, folder / "value_bias.png")
    print(*map(shown, rows), sep="\n")


if __name__ == "__main__":
    cli.launch(main)
