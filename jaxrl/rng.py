"""Random numbers: keys of rows, and loops whose draws are made before they begin.

On a CPU a random draw inside a ``scan`` is a nested loop that costs more than a toy environment's
step. ``rng.scan`` traces its step once, finds the equations that depend on the step's key alone,
evaluates them for all steps at once before the loop, and scans over the rest. Code inside the step
draws from its key as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from jax.extend import core as jex

from jaxrl.sharding import shard_index
from jaxrl.types import Key, PyTree

ENABLED = True  # False: draw inside the loops; the values are the same

_CALLS = ("jit", "pjit", "closed_call", "core_call")  # opened; all other equations stay whole
_PER_SHARD = ("axis_index",)  # has an effect on paper, and is a constant of the shard

Kind = Literal["constant", "key", "rest"]


def row_key(key: Key) -> Key:
    """Return a key of this shard's own, for values drawn per row; with one shard, ``key`` itself.

    Agents get keys that all shards have in common. Sampled actions, exploration noise and sampled
    indices belong to rows, which differ between shards; initial parameters do not.
    """
    index = shard_index()
    return key if index is None else jax.random.fold_in(key, index)


def scan(
    step: Callable[[Key, Any, Any], tuple[Any, Any]],
    carry: PyTree,
    keys: Key,
    xs: PyTree = None,
    unroll: int = 1,
) -> tuple[Any, Any]:
    """``jax.lax.scan`` of ``step(key, carry, x) -> carry, y`` over ``keys[T]`` and ``xs[T, ...]``.

    Draws that depend on more than the key, or that are hidden in a ``cond``, ``while`` or plain
    ``scan`` with other operands, stay in the loop: same values, slower. The draws of all ``T``
    steps are in memory at once.
    """
    length = jax.tree.leaves(keys)[0].shape[0]
    if length == 0 or not ENABLED:
        return jax.lax.scan(lambda c, kx: step(kx[0], c, kx[1]), carry, (keys, xs), unroll=unroll)
    # Only the first step's shapes are used; this read is not a use of its key.
    first = partial(jax.lax.dynamic_index_in_dim, index=0, keepdims=False)
    key, x = jax.tree.map(first, (keys, xs))
    split = _Split(step, key, carry, x)
    drawn = jax.vmap(split.draw)(keys)
    return jax.lax.scan(
        lambda c, dx: split.rest(dx[0], c, dx[1]), carry, (drawn, xs), length, unroll=unroll
    )


class _Equation(NamedTuple):
    """One equation of the step; values are numbered, a literal is a tuple of its value."""

    eqn: Any
    inputs: list[Any]
    outputs: list[int]
    kind: Kind


class _Split:
    """A step ``(key, *args) -> out`` as ``draw(key) -> drawn`` and ``rest(drawn, *args) -> out``.

    Constants are evaluated in both parts, so nothing large is repeated for every step. What the
    step closes over counts as ``rest`` if it is traced.
    """

    def __init__(self, step: Callable, key: Key, *args: PyTree) -> None:
        closed, shape = jax.make_jaxpr(step, return_shape=True)(key, *args)
        self.tree = jax.tree.structure(shape)
        self.equations: list[_Equation] = []
        self.kinds: list[Kind] = []
        self.values: dict[int, Any] = {}  # of what the step closes over
        keys = len(jax.tree.leaves(key))
        inputs = [self._new("key" if i < keys else "rest") for i in range(len(closed.jaxpr.invars))]
        self.key_inputs, self.rest_inputs = inputs[:keys], inputs[keys:]
        self.results = self._number(closed, inputs)
        read = [i for e in self.equations if e.kind == "rest" for i in e.inputs] + self.results
        numbers = dict.fromkeys(i for i in read if isinstance(i, int))
        self.drawn = [i for i in numbers if self.kinds[i] == "key"]
        self._prune()

    def draw(self, *key: Key) -> list[Any]:
        """Return the values that the rest reads and that depend on the key alone."""
        values = self._evaluate(("constant", "key"), self.key_inputs, key)
        return [values[i] for i in self.drawn]

    def rest(self, drawn: list[Any], *args: PyTree) -> Any:
        """Return the step's results, given what ``draw`` returned for its key."""
        values = self._evaluate(("constant", "rest"), self.rest_inputs + self.drawn, (args, drawn))
        return jax.tree.unflatten(self.tree, [_read(values, i) for i in self.results])

    def _new(self, kind: Kind) -> int:
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def _number(self, closed: Any, inputs: list[Any]) -> list[Any]:
        """Number the values of ``closed``, whose arguments are ``inputs``; return its results."""
        number: dict[Any, Any] = {}
        for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            number[var] = self._new("rest" if isinstance(value, jax.core.Tracer) else "constant")
            self.values[number[var]] = value
        number.update(zip(closed.jaxpr.invars, inputs, strict=True))

        def numbered(atom: Any) -> Any:
            return (atom.val,) if isinstance(atom, jex.Literal) else number[atom]

        for eqn in closed.jaxpr.eqns:
            read = [numbered(atom) for atom in eqn.invars]
            kinds = {self.kinds[i] for i in read if isinstance(i, int)}
            name = eqn.primitive.name
            if "key" in kinds and ("rest" in kinds or eqn.effects) and name in _CALLS:
                inner = _closed(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"])
                number.update(zip(eqn.outvars, self._number(inner, read), strict=True))
                continue
            effects = eqn.effects and name not in _PER_SHARD
            kind: Kind = "constant"
            if "rest" in kinds or effects:
                kind = "rest"
            elif "key" in kinds:
                kind = "key"
            made = [self._new(kind) for _ in eqn.outvars]
            self.equations.append(_Equation(eqn, read, made, kind))
            number.update(zip(eqn.outvars, made, strict=True))
        return [numbered(atom) for atom in closed.jaxpr.outvars]

    def _prune(self) -> None:
        """Drop the equations that nothing reads."""
        read = {i for i in (*self.results, *self.drawn) if isinstance(i, int)}
        kept = []
        for equation in reversed(self.equations):
            if equation.eqn.effects or read.intersection(equation.outputs):
                kept.append(equation)
                read.update(i for i in equation.inputs if isinstance(i, int))
        self.equations = kept[::-1]

    def _evaluate(self, kinds: Iterable[Kind], numbers: list[int], given: Any) -> dict[int, Any]:
        values = self.values | dict(zip(numbers, jax.tree.leaves(given), strict=True))
        for eqn, inputs, outputs, kind in self.equations:
            if kind in kinds:
                params = eqn.primitive.get_bind_params(eqn.params)
                with eqn.ctx.manager:
                    out = eqn.primitive.bind(*(_read(values, i) for i in inputs), **params)
                results = out if eqn.primitive.multiple_results else [out]
                values.update(zip(outputs, results, strict=True))
        return values


def _closed(jaxpr: Any) -> Any:
    return jaxpr if hasattr(jaxpr, "consts") else jex.ClosedJaxpr(jaxpr, ())


def _read(values: dict[int, Any], i: Any) -> Any:
    return values[i] if isinstance(i, int) else i[0]
