"""Spaces and specs compare and hash by value."""

from __future__ import annotations

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import make
from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete, Spec

BOX = Box([-1.0, 0.0], [1.0, np.inf], (2,))
OTHER_BOXES = {
    "low": Box([-2.0, 0.0], [1.0, np.inf], (2,)),
    "high": Box([-1.0, 0.0], [1.0, 5.0], (2,)),
    "shape": Box(-1.0, 1.0, (2, 1)),
    "dtype": Box([-1.0, 0.0], [1.0, np.inf], (2,), np.float64),
    "not a box": Discrete(2),
}
PARTS = {"state": BOX, "privileged_state": Box(-1.0, 1.0, (3,))}


@pytest.mark.parametrize(
    "same",
    [
        Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf]), (2,)),
        Box(jnp.array([-1.0, -0.0]), (1, jnp.inf), (2,), "float32"),
        Box([-1.0, 0.0], [1.0, np.inf], [2], jnp.float32),
        pickle.loads(pickle.dumps(BOX)),
        dataclasses.replace(BOX),
    ],
)
def test_boxes_of_one_value_are_one(same):
    assert same == BOX and hash(same) == hash(BOX) and len({same, BOX}) == 1


@pytest.mark.parametrize("other", OTHER_BOXES.values(), ids=OTHER_BOXES)
def test_boxes_that_differ_are_different(other):
    assert other != BOX and len({other, BOX}) == 2


def test_a_number_is_broadcast_to_the_shape():
    assert Box(-1.0, 1.0, (3,)) == Box(-np.ones(3), np.ones(3), (3,))
    assert Box(-1.0, 1.0, (3,)) != Box(-1.0, 1.0, (4,))


def test_a_box_keeps_its_value_when_the_array_it_was_made_of_changes():
    low = np.full(2, -1.0, np.float32)
    box = Box(low, 1.0, (2,))
    before = hash(box)
    low[:] = -3.0
    assert box == Box(-1.0, 1.0, (2,)) and hash(box) == before
    with pytest.raises(ValueError, match="read-only"):
        box.low[:] = 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_the_largest_float_is_no_bound(dtype):
    largest = float(jnp.finfo(dtype).max)
    box = Box([-largest, -1.0, 0.0], [1.0, largest, 1.0], (3,), dtype)
    assert box == Box([-np.inf, -1.0, 0.0], [1.0, np.inf, 1.0], (3,), dtype)
    np.testing.assert_array_equal(box.bounded, [False, False, True])
    beyond = Box(-1e300, 1e300, (), dtype)  # the actions themselves are float32
    assert beyond == Box(-np.inf, np.inf, (), dtype) and not beyond.bounded


def test_numbers_of_numpy_are_numbers_of_python():
    assert type(Discrete(np.int64(3)).n) is int and Discrete(np.int64(3)) == Discrete(3)


def test_the_largest_integer_is_a_bound():
    assert np.all(Box(0, 255, (2,), np.uint8).bounded)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "words"),
    [
        (1.0, -1.0, np.float32, r"low is \[1.0, 1.0\] and high \[-1.0, -1.0\]"),
        (np.nan, 1.0, np.float32, "every element needs low <= high"),
        (np.inf, np.inf, np.float32, "every element needs low <= high"),
        (-np.inf, -np.inf, np.float32, "every element needs low <= high"),
        ([-1.0] * 3, 1.0, np.float32, r"low is \[-1.0, -1.0, -1.0\]; it must be a number of flo"),
        (-1.0, "one", np.float32, "high is 'one'; it must be a number of float32"),
        (0, np.inf, np.int32, "high is inf; it must be a number of int32"),
    ],
)
def test_bounds_that_enclose_nothing_are_refused(low, high, dtype, words):
    with pytest.raises(UsageError, match=words):
        Box(low, high, (2,), dtype)


@pytest.mark.parametrize("observation", [BOX, PARTS], ids=["box", "parts"])
def test_specs_compare_and_hash_by_value(observation):
    copied = pickle.loads(pickle.dumps(observation))
    a, b = (Spec(x, Discrete(2), 10) for x in (observation, copied))
    assert a == b and hash(a) == hash(b)
    changes = {"observation": Box(-1, 1, (9,)), "action": Discrete(3), "max_steps": None}
    others = [dataclasses.replace(a, **{name: value}) for name, value in changes.items()]
    assert all(a != other for other in others) and len({a, b, *others}) == 4


def test_the_order_of_entries_does_not_count_and_their_names_and_boxes_do():
    reverse = dict(reversed(PARTS.items()))
    renamed = {"state": BOX, "extra": PARTS["privileged_state"]}
    swapped = dict(zip(PARTS, reverse.values(), strict=True))
    first, second, *others = (Spec(x, Discrete(2)) for x in (PARTS, reverse, renamed, swapped))
    assert first == second and hash(first) == hash(second)
    assert first not in others and len({first, *others}) == 3


@pytest.mark.parametrize("name", ["gymnax/Pendulum-v1", "gymnax/CartPole-v1", "probe/privileged"])
def test_two_environments_of_a_name_have_one_spec(name):
    a, b = make(name).spec, make(name).spec
    assert a == b and hash(a) == hash(b)
    assert make("gymnax/CartPole-v1", max_steps=7).spec != a


def test_a_static_spec_compiles_once_for_equal_values():
    traced = []

    def count(x, spec):
        traced.append(spec)
        return x

    f = jax.jit(count, static_argnums=1)
    for limit in (10, 10, 11):
        f(1.0, Spec(Box([-1.0, 0.0], [1.0, np.inf], (2,)), Discrete(2), limit))
    assert len(traced) == 2
