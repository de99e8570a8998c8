"""Arrays of a tree by name, such as `params/decoder/final_norm/scale`."""

from collections.abc import Mapping
from typing import Any

import jax


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by name.

    >>> named_leaves({"params": {"w": 1, "b": [2, 3]}})
    {'params/b/0': 2, 'params/b/1': 3, 'params/w': 1}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def with_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """A tree like `tree`, with these leaves by name.

    >>> with_leaves({"w": 1, "b": [2, ()]}, {"b/0": 20, "w": 10})
    {'b': [20, ()], 'w': 10}
    """
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named_leaves(tree)])


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of dicts with these leaves.

    >>> nested({"params/b": 2, "params/w/x": 1})
    {'params': {'b': 2, 'w': {'x': 1}}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = leaf
    return tree
