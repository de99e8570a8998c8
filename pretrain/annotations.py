"""Whether a value fits a type annotation, and how to say what would."""

import collections.abc
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    types.NoneType: "None",
    collections.abc.Callable: "a function",
}


def names_path(annotation: Any) -> bool:
    """Whether what is annotated so is a path or holds paths: `os.PathLike` is somewhere in it.

    >>> names_path(list[str | os.PathLike] | None), names_path(str)
    (True, False)
    """
    kinds = (typing.get_origin(annotation), annotation)
    return os.PathLike in kinds or any(map(names_path, typing.get_args(annotation)))


class InstanceOf:
    """Stands for a value that has not been made yet; `kind` is its class, None where nobody knows."""

    def __init__(self, kind: type | None):
        self.kind = kind


def parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function or class, with annotations that are types where they can be read."""
    try:
        return inspect.signature(function, eval_str=True).parameters
    except (NameError, AttributeError, TypeError):  # written for type checkers alone, as if TYPE_CHECKING
        unread = inspect.signature(function).parameters
        return {name: each.replace(annotation=inspect.Parameter.empty) for name, each in unread.items()}


def fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the type; a whole number is a number, and what is not understood fits.

    >>> fits(1, float), fits(True, int), fits(None, int | None), fits({"inputs": "a"}, Mapping[str, int])
    (True, False, True, False)
    >>> fits(InstanceOf(bool), int), fits(InstanceOf(dict), int)
    (True, False)
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, member) for member in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(member) and value == member for member in arguments)
    kind = types.NoneType if annotation is None else origin or annotation
    if not isinstance(kind, type) or kind in (Any, object, inspect.Parameter.empty):
        return True
    if isinstance(value, InstanceOf):
        return value.kind is None or issubclass(value.kind, kind)
    if kind is collections.abc.Callable:
        return _can_be_called(value, arguments)
    if kind in (int, float):
        return isinstance(value, kind | int) and not isinstance(value, bool)
    return isinstance(value, kind) and _contents_fit(value, arguments)


def _can_be_called(value: Any, arguments: tuple) -> bool:
    """With so many arguments: a class in place of one of its instances mostly cannot."""
    if not callable(value) or not arguments or not isinstance(arguments[0], list):
        return callable(value)
    try:
        inspect.signature(value).bind(*arguments[0])
    except TypeError:
        return False
    return True


def _contents_fit(value: Any, arguments: tuple) -> bool:
    if isinstance(value, Mapping) and len(arguments) == 2:
        return all(fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items())
    if isinstance(value, tuple) and arguments and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(value, list | tuple) and arguments:
        return all(fits(item, arguments[0]) for item in value)
    return True


def described(annotation: Any) -> str:
    """What fits, in words.

    >>> described(int | None), described(typing.Literal["a", "b"]), described(Mapping[str, int])
    ('a whole number or None', "'a' or 'b'", 'Mapping[str, int]')
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        # A path is written as text here.
        members = [member for member in arguments if member is not os.PathLike] or arguments
        return " or ".join(dict.fromkeys(described(member) for member in members))
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    if origin in (list, collections.abc.Sequence):
        return f"a list of {described(arguments[0])}"
    if (origin or annotation) in _WORDS:
        return _WORDS[origin or annotation]
    if isinstance(annotation, type) and not arguments:
        return f"an instance of {annotation.__name__}, written @name()"
    return str(annotation).replace("collections.abc.", "").replace("typing.", "")
