"""Values fit annotations as people mean them: a whole number is a number, True is neither."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest

from pretrain.annotations import InstanceOf, described, fits, parameters


class Base:
    def __init__(self, *, size: int):
        self.size = size

    def __call__(self, step: int) -> float:
        return self.size / step


class Derived(Base):
    pass


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (1.0, int, False),
        (True, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (True, bool, True),
        (1, bool, False),
        (None, int | None, True),
        (None, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (True, Literal[1], False),
        (("a", "b"), tuple[str, ...], True),
        (("a", 1), tuple[str, ...], False),
        (("a", 1), tuple[str, int], True),
        (["a"], tuple[str, ...], False),
        (["a", 1], Sequence[str], False),
        ("a", str | Sequence[str], True),
        ({"a": 1}, Mapping[str, int], True),
        ({"a": "1"}, Mapping[str, int], False),
        ([["a"], [1]], list[list[str]], False),
        (3, Any, True),
        (3, "a name for type checkers", True),
        (Derived(size=1), Base, True),
        (InstanceOf(Derived), Base, True),
        (InstanceOf(Base), Derived, False),
        (InstanceOf(Base), int | None, False),
        (InstanceOf(None), int, True),
        (InstanceOf(Base), Callable[[int], float], True),
        (InstanceOf(dict), Callable[[int], float], False),
        (len, Callable[[Any], int], True),
        (Base, Callable[[int], float], False),  # the class, where one of its instances was meant
        (Base, Callable[..., Base], True),
        (3, Callable, False),
    ],
)
def test_fits(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_described_says_what_to_write():
    assert described(int | None) == "a whole number or None"
    assert described(str | Sequence[str]) == "text in quotes or a list of text in quotes"
    assert described(str | os.PathLike | None) == "text in quotes or None"
    assert described(Callable[[int], float]) == "a function"
    assert described(Base) == "an instance of Base, written @name()"


def test_parameters_of_what_only_a_type_checker_can_read_fit_everything():
    def function(a: "int", b: "Missing" = 1):  # noqa: F821
        pass

    assert list(parameters(function)) == ["a", "b"]
    assert fits("anything", parameters(function)["b"].annotation)
    assert parameters(Base)["size"].annotation is int
