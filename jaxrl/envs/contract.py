"""Checks an environment's shapes and dtypes against ``jaxrl.types.Environment``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.errors import UsageError
from jaxrl.require import INT32_MAX, plain, require_instance, require_integer, shown
from jaxrl.types import Array, Box, Discrete, Key, PyTree, Spec, Step


def check_contract(env: Any) -> None:
    """Check an environment's attributes and the results of ``reset`` and ``step``.

    Both functions are only traced; nothing is computed.

    Raises:
        UsageError: for the first violation; it names the field, what it is, and what it must be.
    """
    require_instance("env", env)
    kind = type(env).__name__
    for name in ("name", "cheap", "spec", "reset", "step"):
        if not hasattr(env, name):
            raise UsageError(f"{kind} has no {name}; jaxrl.types.Environment says what one has")
    if not isinstance(env.name, str):
        raise UsageError(
            f"{kind}.name is {shown(env.name)}; it must be a string, as 'own/corridor'"
        )
    if not isinstance(plain(env.cheap), bool):
        raise UsageError(f"{kind}.cheap is {shown(env.cheap)}; it must be True or False")
    spec = env.spec
    _check_spec(kind, spec)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state, obs = _pair(f"{kind}.reset(key)", "state and obs", env.reset, key)
    _check_obs(f"{kind}.reset(key)", spec.observation, obs)
    _check_step(kind, env.step, spec, key, state)


def _check_spec(kind: str, spec: Any) -> None:
    if not isinstance(spec, Spec):
        property_too = ", and spec a property" if callable(spec) else ""
        raise UsageError(
            f"{kind}.spec is a {type(spec).__name__}; it must be a jaxrl.types.Spec{property_too}"
        )
    boxes = spec.observation if isinstance(spec.observation, Mapping) else {"": spec.observation}
    for name, box in boxes.items():
        if not isinstance(box, Box):
            entry = f"[{name!r}]" if name else ""
            raise UsageError(
                f"{kind}.spec.observation{entry} is a {type(box).__name__}; it must be a "
                "jaxrl.types.Box, or a dictionary of them"
            )
    if not boxes:
        raise UsageError(f"{kind}.spec.observation is empty; give it an entry, as 'state'")
    action, field = spec.action, f"{kind}.spec.action"
    if isinstance(action, Discrete):
        require_integer(f"{field}.n", action.n)
        if tuple(action.shape) != ():
            raise UsageError(f"{field} is {action}; it must be one index, as Discrete(2)")
    elif not isinstance(action, Box):
        raise UsageError(
            f"{field} is a {type(action).__name__}; it must be a jaxrl.types.Box or Discrete"
        )
    elif not jnp.issubdtype(action.dtype, jnp.floating):
        raise UsageError(
            f"{field} has dtype {jnp.dtype(action.dtype)}; a Box of actions has floats, and a "
            "single index is Discrete"
        )
    require_integer(f"{kind}.spec.max_steps", spec.max_steps, 1, INT32_MAX, optional=True)


def _check_step(kind: str, step: Callable, spec: Spec, key: Key, state: PyTree) -> None:
    call = f"{kind}.step(key, state, action)"
    # The form in which the vector environment passes it.
    dtype = jnp.int32 if isinstance(spec.action, Discrete) else jnp.float32
    action = jax.ShapeDtypeStruct(spec.action.shape, dtype)
    after, out = _pair(call, "state and Step", step, key, state, action)
    if not isinstance(out, Step):
        raise UsageError(
            f"{call} returns state and a {type(out).__name__}; the second must be a "
            "jaxrl.types.Step(obs, reward, terminated, truncated, info)"
        )
    before, now = _leaves(state), _leaves(after)
    for path in [*before, *(path for path in now if path not in before)]:
        if before.get(path) != now.get(path):
            raise UsageError(
                f"{call}: state{path} is {now.get(path, 'nothing')}, and {kind}.reset(key) gives "
                f"{before.get(path, 'nothing')}; both must be the same"
            )
    trees: list[Any] = [jax.tree.structure(x) for x in (state, after)]
    if trees[0] != trees[1]:
        raise UsageError(
            f"{call}: state is a {type(after).__name__} of other nodes than {kind}.reset(key) "
            f"gives, a {type(state).__name__}; both must be the same"
        )
    _check_obs(call, spec.observation, out.obs)
    _check_leaf(f"{call}: reward", out.reward, (), jnp.float32, "jnp.float32(reward)")
    for name in ("terminated", "truncated"):
        _check_leaf(f"{call}: {name}", getattr(out, name), (), jnp.bool_, "jnp.bool_(False)")
    if not isinstance(out.info, dict):
        raise UsageError(f"{call}: info is a {type(out.info).__name__}; it must be a dictionary")


def _check_obs(call: str, observation: Box | Mapping[str, Box], obs: Any) -> None:
    """Raise UsageError unless ``obs`` matches the spec."""
    if isinstance(observation, Box):
        _check_leaf(f"{call}: obs", obs, observation.shape, observation.dtype)
        return
    if not isinstance(obs, Mapping):
        raise UsageError(
            f"{call}: obs is a {type(obs).__name__}; it must be a dictionary of "
            f"{', '.join(observation)}, as spec.observation is"
        )
    for name in [*observation, *obs]:
        if name not in obs or name not in observation:
            lacks = "obs" if name not in obs else "spec.observation"
            raise UsageError(f"{call}: {lacks} lacks the entry {name!r}; both must have the same")
    for name, box in observation.items():
        _check_leaf(f"{call}: obs[{name!r}]", obs[name], box.shape, box.dtype)


def _check_leaf(field: str, found: Any, shape: tuple, dtype: Any, instead: str = "") -> None:
    """Raise UsageError unless ``found`` is a single array with this shape and dtype."""
    wanted = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise UsageError(f"{field} is a {type(found).__name__}; it must be {_text(wanted)}")
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        hint = f", as {instead}" if instead else ", as spec.observation says"
        raise UsageError(f"{field} is {_text(found)}; it must be {_text(wanted)}{hint}")


def _pair(call: str, names: str, function: Callable, *args: Any) -> tuple[Any, Any]:
    """Return the shapes of the two results of ``function``."""
    try:
        found = jax.eval_shape(function, *args)
    except UsageError:
        raise
    except Exception as error:
        text = str(error).strip() or "no message"
        raise UsageError(
            f"{call} cannot be traced: {type(error).__name__}: {text.splitlines()[0]}"
        ) from error
    if type(found) is not tuple or len(found) != 2:
        size = f" of {len(found)}" if isinstance(found, tuple) else ""
        raise UsageError(f"{call} returns a {type(found).__name__}{size}; it must return {names}")
    return found


def _leaves(tree: PyTree) -> dict[str, str]:
    return {jax.tree_util.keystr(path): _text(x) for path, x in jax.tree.leaves_with_path(tree)}


def _text(x: Array | jax.ShapeDtypeStruct) -> str:
    """Return ``float32[3]``."""
    return f"{x.dtype}{list(x.shape)}"
