"""Random numbers: per-row keys, and loops with all random draws made in advance.

On a CPU, a random draw inside a ``scan`` is a nested loop that costs more than a step of a toy
environment. ``rng.scan`` traces its step once and finds the equations that depend only on the
step's key. It evaluates these for all steps at once before the loop, and scans over the rest. Code
inside the step draws from its key as usual. With ``defer``, equations that affect only the step's
outputs are also evaluated for all steps at once, after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jaxrl.errors import UsageError
from jaxrl.require import shown
from jaxrl.sharding import shard_index
from jaxrl.types import Array, Key, PyTree

ENABLED = True  # False: draw inside the loops; the values are the same

_CALLS = ("jit", "pjit", "closed_call", "core_call")  # opened; all other equations stay whole
_PER_SHARD = ("axis_index",)  # nominally an effect, but constant within a shard

Kind = Literal["constant", "key", "loop", "after"]


def is_key(x: Any) -> bool:
    """Return whether ``x`` is an array of typed keys."""
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def require_key(key: Any) -> None:
    """Raise UsageError unless ``key`` is a typed key."""
    if not is_key(key):
        raise UsageError(f"key is {shown(key)}; give a typed key, as jax.random.key(0)")


def row_key(key: Key) -> Key:
    """Return this shard's own key for values drawn per row; with one shard, ``key`` itself.

    Agents get keys that all shards share. Sampled actions, exploration noise and sampled indices
    are drawn per row, and rows differ between shards; initial parameters do not.
    """
    index = shard_index()
    return key if index is None else jax.random.fold_in(key, index)


def split_if(needed: bool, key: Key) -> tuple[Key, Key]:
    """Return two keys; both are ``key`` itself unless a second is ``needed``.

    Every split costs compile time, and run time in loops.
    """
    if not needed:
        return key, key
    first, second = jax.random.split(key)
    return first, second


def clipped_normal(
    key: Key, shape: tuple[int, ...], std: Array | float, clip: Array | float
) -> Array:
    """Return normal noise with scale ``std``, drawn per row and clipped to ``[-clip, clip]``."""
    return jnp.clip(std * jax.random.normal(row_key(key), shape), -clip, clip)


def scan(
    step: Callable[[Key, Any, Any], tuple[Any, Any]],
    carry: PyTree,
    keys: Key,
    xs: PyTree = None,
    unroll: int = 1,
    defer: bool = False,
) -> tuple[Any, Any]:
    """``jax.lax.scan`` of ``step(key, carry, x) -> carry, y`` over ``keys[T]`` and ``xs[T, ...]``.

    Draws that depend on more than the key stay in the loop, as do draws inside a ``cond``,
    ``while`` or plain ``scan`` with other operands: same values, but slower. The draws of all ``T``
    steps are in memory at once.
    """
    length = jax.tree.leaves(keys)[0].shape[0]
    if length == 0 or not ENABLED:
        return jax.lax.scan(lambda c, kx: step(kx[0], c, kx[1]), carry, (keys, xs), unroll=unroll)
    if length == 1:  # XLA would unroll a loop of one pass anyway; this saves the tracing
        only = partial(jax.tree.map, lambda x: x[0])
        carry, y = step(only(keys), carry, only(xs))
        return carry, jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), y)
    # Only the shapes of the first step are used; this does not consume its key.
    first = partial(jax.lax.dynamic_index_in_dim, index=0, keepdims=False)
    key, x = jax.tree.map(first, (keys, xs))
    split = _Split(step, defer, key, carry, x)
    drawn = jax.vmap(split.draw)(keys)
    carry, kept = jax.lax.scan(
        lambda c, dx: split.loop(dx[0], c, dx[1]), carry, (drawn, xs), length, unroll=unroll
    )
    return carry, jax.vmap(split.outputs)(keys, drawn, xs, kept)


class _Equation(NamedTuple):
    """One equation of the step. Values are referred to by number; a literal is a 1-tuple."""

    eqn: Any
    inputs: list[Any]
    outputs: list[int]
    kind: Kind


class _Split:
    """A step ``(key, carry, x) -> carry, y`` in three parts; only ``loop`` has to loop.

    ``draw(key) -> drawn``; ``loop(drawn, carry, x) -> carry, kept``;
    ``outputs(key, drawn, x, kept) -> y``. Constants are evaluated in each part, so nothing large is
    repeated for every step. Values the step closes over are not arguments of any part.
    """

    def __init__(self, step: Callable, defer: bool, key: Key, carry: PyTree, x: PyTree) -> None:
        closed, shape = jax.make_jaxpr(step, return_shape=True)(key, carry, x)
        self.trees: list[Any] = [jax.tree.structure(each) for each in shape]
        self.equations: list[_Equation] = []
        self.kinds: list[Kind] = []
        self.values: dict[int, Any] = {}  # what the step closes over
        sizes = [len(jax.tree.leaves(each)) for each in (key, carry, x)]
        kinds: list[Kind] = ["key", "loop", "loop"]
        groups = [self._new_all(kind, n) for kind, n in zip(kinds, sizes, strict=True)]
        self.key, self.carry, self.x = groups
        results = self._number(closed, [i for group in groups for i in group])
        self.end, self.y = results[: self.trees[0].num_leaves], results[self.trees[0].num_leaves :]
        if defer:
            self._defer()
        self._prune()
        read = self._reads(("loop", "after"), (*self.end, *self.y))
        self.drawn = [i for i in read if self.kinds[i] == "key"]
        known = {*self.x, *self.values}
        late = self._reads(("after",), self.y)
        self.kept = [i for i in late if self.kinds[i] == "loop" and i not in known]

    def draw(self, key: Key) -> list[Any]:
        """Return the values that depend only on the key and are read by the other parts."""
        values = self._evaluate(("constant", "key"), (self.key, key))
        return [values[i] for i in self.drawn]

    def loop(self, drawn: list[Any], carry: PyTree, x: PyTree) -> tuple[Any, list[Any]]:
        """Return the next carry, and the values that the outputs need."""
        given = ((self.drawn, drawn), (self.carry, carry), (self.x, x))
        values = self._evaluate(("constant", "loop"), *given)
        end = [_read(values, i) for i in self.end]
        return jax.tree.unflatten(self.trees[0], end), [values[i] for i in self.kept]

    def outputs(self, key: Key, drawn: list[Any], x: PyTree, kept: list[Any]) -> Any:
        """Return the step's outputs."""
        given = ((self.drawn, drawn), (self.x, x), (self.kept, kept))
        values = self._evaluate(("constant", "after"), *given)
        return jax.tree.unflatten(self.trees[1], [_read(values, i) for i in self.y])

    def _new_all(self, kind: Kind, count: int) -> list[int]:
        return [self._new(kind) for _ in range(count)]

    def _new(self, kind: Kind) -> int:
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def _number(self, closed: Any, inputs: list[Any]) -> list[Any]:
        """Number the values of ``closed``, called with ``inputs``; return its results."""
        number: dict[Any, Any] = {}
        for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            number[var] = self._new("loop" if isinstance(value, jax.core.Tracer) else "constant")
            self.values[number[var]] = value
        number.update(zip(closed.jaxpr.invars, inputs, strict=True))

        def numbered(atom: Any) -> Any:
            return (atom.val,) if isinstance(atom, jex.Literal) else number[atom]

        for eqn in closed.jaxpr.eqns:
            read = [numbered(atom) for atom in eqn.invars]
            kinds = {self.kinds[i] for i in read if isinstance(i, int)}
            name = eqn.primitive.name
            if "key" in kinds and ("loop" in kinds or eqn.effects) and name in _CALLS:
                inner = _closed(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"])
                number.update(zip(eqn.outvars, self._number(inner, read), strict=True))
                continue
            effects = eqn.effects and name not in _PER_SHARD
            kind: Kind = "constant"
            if "loop" in kinds or effects:
                kind = "loop"
            elif "key" in kinds:
                kind = "key"
            made = [self._new(kind) for _ in eqn.outvars]
            self.equations.append(_Equation(eqn, read, made, kind))
            number.update(zip(eqn.outvars, made, strict=True))
        return [numbered(atom) for atom in closed.jaxpr.outvars]

    def _reads(self, kinds: Iterable[Kind], results: Iterable[Any]) -> dict[int, None]:
        """The numbers that equations of these kinds read, and those of ``results``."""
        inputs = [i for each in self.equations if each.kind in kinds for i in each.inputs]
        return dict.fromkeys(i for i in (*inputs, *results) if isinstance(i, int))

    def _defer(self) -> None:
        """Move equations that the next carry does not need to after the loop."""
        needed = {i for i in self.end if isinstance(i, int)}
        for n, equation in reversed(list(enumerate(self.equations))):
            if equation.eqn.effects or needed.intersection(equation.outputs):
                needed.update(i for i in equation.inputs if isinstance(i, int))
            elif equation.kind == "loop":
                self.equations[n] = equation._replace(kind="after")
                for i in equation.outputs:
                    self.kinds[i] = "after"

    def _prune(self) -> None:
        """Drop the equations that nothing reads."""
        read = {i for i in (*self.end, *self.y) if isinstance(i, int)}
        kept = []
        for equation in reversed(self.equations):
            if equation.eqn.effects or read.intersection(equation.outputs):
                kept.append(equation)
                read.update(i for i in equation.inputs if isinstance(i, int))
        self.equations = kept[::-1]

    def _evaluate(self, kinds: Iterable[Kind], *given: tuple[list[int], Any]) -> dict[int, Any]:
        """The numbered values of all equations of these kinds, from ``(numbers, values)`` pairs."""
        values = dict(self.values)
        for numbers, tree in given:
            values.update(zip(numbers, jax.tree.leaves(tree), strict=True))
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
