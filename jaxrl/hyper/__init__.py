"""Hyper-parameters: declared once, then checked, swept and shown as options.

    @hyper.dataclass
    class Agent:
        gamma: float = number(0.99, 0, 1, help="discount")
        policy: Any = part(Gaussian())

``number`` fields are pytree leaves, so ``vmap`` sweeps them. ``size``, ``choice``, ``flag``,
``interval`` and ``words`` fields are static. Parts are nested dataclasses. A hyper-parameter's name
is its path of fields, such as ``critic.hidden_dims``; wrappers and trainers add nothing to it.
Wherever a name is expected, a suffix is enough if it is unique.
"""

from jaxrl.hyper.declarations import (
    Declaration,
    bound,
    choice,
    dataclass,
    declaration,
    flag,
    held,
    interval,
    is_node,
    is_option,
    number,
    part,
    same_as,
    simplify,
    size,
    words,
)
from jaxrl.hyper.names import check, check_fields, matches, names, numbers, override, replace

__all__ = [
    "Declaration",
    "bound",
    "check",
    "check_fields",
    "choice",
    "dataclass",
    "declaration",
    "flag",
    "held",
    "interval",
    "is_node",
    "is_option",
    "matches",
    "names",
    "number",
    "numbers",
    "override",
    "part",
    "replace",
    "same_as",
    "simplify",
    "size",
    "words",
]
