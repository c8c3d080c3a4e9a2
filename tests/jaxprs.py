"""Programs as JAX traces them: the equations inside loops, and matrix products."""

from __future__ import annotations

import math

LOOPS = ("scan", "while")


def inner(equation):
    """The programs that an equation calls."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns"):
                yield each
            elif hasattr(each, "jaxpr"):
                yield each.jaxpr


def equations(jaxpr, looped=False):
    """Every equation at any depth, and whether it is inside a loop."""
    for equation in jaxpr.eqns:
        yield equation, looped
        for called in inner(equation):
            yield from equations(called, looped or equation.primitive.name in LOOPS)


def names(jaxpr, looped=None):
    """The names of all primitives, or of those inside (True) or outside (False) of loops."""
    found = ((eqn.primitive.name, inside) for eqn, inside in equations(jaxpr))
    return {name for name, inside in found if looped is None or inside == looped}


def products(jaxpr):
    """How many matrix products there are, and their multiplications; a loop's body counts once."""
    count = multiplications = 0
    for eqn, _ in equations(jaxpr):
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            count += 1
            multiplications += terms * math.prod(eqn.outvars[0].aval.shape)
    return count, multiplications
