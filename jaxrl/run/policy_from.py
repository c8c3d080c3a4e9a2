"""Starting from the policy of an earlier run, which any agent may have trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import hyper
from jaxrl.agents import protocol
from jaxrl.agents.protocol import LearntPolicy
from jaxrl.errors import UsageError
from jaxrl.record.checkpoint import CheckpointError
from jaxrl.record.policy import Recorded, load_members
from jaxrl.record.rebuild import classes_of
from jaxrl.record.rows import Member
from jaxrl.require import plain, shown
from jaxrl.training.trainer import Trainer
from jaxrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class PolicyFrom:
    """The earlier run whose policies the members trained by ``trainer`` start from."""

    run_dir: Path
    trainer: Trainer
    members: Sequence[Member]

    @cached_property
    def policies(self) -> LearntPolicy:
        """The policies that the members start from, on the host: ``[M, ...]``.

        Raises:
            UsageError: if there is no such run, it has no policy, or its policy has another family,
                other sizes, or different observation normalisation.
        """
        agent, spec = self.trainer.agent, self.trainer.env.spec
        try:
            protocol.policy_at(protocol.innermost(agent))
            found = load_members(self.run_dir, classes=classes_of(agent), instead=spec)
            earlier = found.agent.bind(found.spec)
            learnt = protocol.learnt_policy(earlier, found.states)
        except (UsageError, CheckpointError) as error:
            raise UsageError(f"policy_from: {error}") from None
        check_alike(earlier, agent, str(self.run_dir))
        self._check_shapes(learnt)
        rows = [_row(found, member.seed) for member in self.members]
        return jax.tree.map(lambda x: np.asarray(x)[rows], learnt)

    def _check_shapes(self, learnt: LearntPolicy) -> None:
        """Raise UsageError unless the agent's state keeps its shapes with these policies."""
        agent = self.trainer.agent
        fresh = jax.eval_shape(agent.init, jax.random.key(0))
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), learnt)
        made = jax.eval_shape(lambda state, policy: protocol.with_policy(agent, state, policy),
                              fresh, one)  # fmt: skip
        if _shapes(made) != _shapes(fresh):
            raise UsageError(
                f"policy_from: the policy of {self.run_dir} has parameters or observations of "
                "other shapes; give both agents the same policy and environment, and for histories "
                "(obs_horizon above 1) --no-normalize-obs"
            )


def _row(found: Recorded, seed: int) -> int:
    return found.seeds.index(seed) if seed in found.seeds else 0


def _shapes(tree: PyTree) -> tuple[list, Any]:
    leaves, structure = jax.tree.flatten(tree)
    return [(leaf.shape, leaf.dtype) for leaf in leaves], structure


def check_alike(earlier: Any, agent: Any, run: str) -> None:
    """Raise UsageError unless ``agent`` can use the policy of ``earlier``; both are bound.

    The policy families must be equal, or the family of ``agent`` must list the other in
    ``starts_from``. All static fields must be equal, except those the family declares
    ``changeable``; so must the numbers that it declares ``unchangeable``. An agent that fine-tuned
    only some denoising steps has two networks, and cannot be used.
    """
    protocol.require_one_network(earlier, f"policy_from: the policy of {run}")
    old, new = (protocol.innermost(each).policy for each in (earlier, agent))
    families = [family for family in (getattr(new, "starts_from", None), type(new)) if family]
    if type(old) not in families:
        names = " or a ".join(family.__name__ for family in families)
        raise UsageError(
            f"policy_from: the policy of {run} is a {type(old).__name__}, and "
            f"{type(protocol.innermost(agent)).__name__} has a {type(new).__name__}; "
            f"give a run whose policy is a {names}"
        )
    differing = list(differences(old, new, "policy"))
    if differing:
        lines = [f"{name} {shown(was)} (now {shown(now)})" for name, was, now in differing]
        raise UsageError(
            f"policy_from: the policy of {run} has {', '.join(lines)}; {_advice(differing)}"
        )
    if _normalises(earlier) != _normalises(agent):
        had, now = ("normalised", "wrap") if _normalises(earlier) else ("raw", "do not wrap")
        option = "--normalize-obs" if _normalises(earlier) else "--no-normalize-obs"
        raise UsageError(
            f"policy_from: the policy of {run} sees {had} observations; {now} the agent in "
            f"NormalizeObs ({option})"
        )


def _advice(differing: list[tuple[str, Any, Any]]) -> str:
    """Return what to give: if only sizes of actions differ, chunks of equal length."""
    name, was, now = differing[0]
    if len(differing) > 1 or name != "policy.action_dim":
        return "give the same"
    if was % now == 0:
        return (
            f"if it predicts chunks of {was // now}, give --env-options execute={was // now} "
            "online, or a clone with --horizon 1"
        )
    if now % was == 0:
        return (
            f"if the environment plays chunks of {now // was}, give a clone with --horizon "
            f"{now // was}, or no execute"
        )
    return "give the same"


def _normalises(agent: Any) -> bool:
    state = jax.eval_shape(agent.init, jax.random.key(0))
    return bool(jax.tree.leaves(protocol.learnt_policy(agent, state).statistics))


def differences(old: Any, new: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of every field that changes the parameters' meaning."""
    free = getattr(old, "changeable", ()) + getattr(new, "changeable", ())
    for field in dataclasses.fields(old):
        was, now = getattr(old, field.name), getattr(new, field.name)
        path = f"{name}.{field.name}"
        if hyper.is_node(was) and type(was) is type(now):
            yield from differences(was, now, path)
        elif field.metadata.get("pytree_node", True) and not hyper.is_node(was):
            if field.name in getattr(old, "unchangeable", ()) and plain(was) != plain(now):
                yield path, plain(was), plain(now)
        elif was != now and field.name not in free:
            names = [type(x).__name__ if hyper.is_node(x) else x for x in (was, now)]
            yield path, names[0], names[1]
