"""Rooms import only downward. CONTRIBUTING.md draws the house; this reads the imports and holds it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The floor of each room, by the longest matching name. A module imports its own room and lower floors.
FLOORS = {
    "pretrain.errors": 0,
    "pretrain.parallel": 1,
    "pretrain.losses": 2,
    "pretrain.metrics": 1,
    "pretrain.trees": 1,
    "pretrain.fingerprint": 2,
    "pretrain.bad_steps": 2,
    "pretrain.warm_start": 2,
    "pretrain.data": 1,
    "tasks": 1,
    "gin_configs": 1,
    "pretrain.models": 2,
    "pretrain.objectives": 3,
    "pretrain.optim": 3,
    "pretrain.run": 4,
    "pretrain.mixing": 4,
    "pretrain.positions": 2,
    "pretrain.workers": 1,
    "pretrain.caching": 2,
    "pretrain.beam_workers": 2,
    "pretrain.indexed": 5,
    "pretrain.pipeline": 6,
    "pretrain.checkpointing": 7,
    "pretrain.training.hardware": 1,
    "pretrain.training.records": 2,
    "pretrain.training.state": 3,
    "pretrain.training.step": 5,
    "pretrain.evaluation": 8,
    "pretrain.inspection": 8,
    "pretrain.inspection_page": 9,
    "pretrain.pictures": 1,
    "pretrain.training": 9,
    "pretrain.inference": 9,
    "pretrain.annotations": 9,
    "pretrain.comparison": 10,
    "pretrain.verification": 11,
    "pretrain.settings": 10,
    "pretrain.benchmarks": 10,
    "pretrain.hlo": 1,
    "pretrain.planning": 10,
    "pretrain.config": 11,
    "pretrain.cli": 12,
}
OUTSIDE = {  # what only these rooms may import from outside, or what they must not
    "gin": {"pretrain.config", "pretrain.settings"},
    "click": {"pretrain.cli"},
    "rich": {"pretrain.cli"},
    "apache_beam": {"pretrain.beam_workers"},
}
NEVER = {
    "pretrain.data": {"jax", "flax", "optax", "orbax"},
    "tasks": {"jax", "flax", "optax", "orbax"},
    "pretrain.parallel": {"tensorflow", "seqio", "tensorflow_datasets"},
    "pretrain.models": {"tensorflow", "seqio", "tensorflow_datasets"},
    "pretrain.losses": {"tensorflow", "seqio"},
    "pretrain.metrics": {"tensorflow", "seqio", "jax"},
    "pretrain.training.state": {"tensorflow", "seqio"},
    "pretrain.data.store": {"tensorflow", "seqio", "tensorflow_datasets", "jax", "flax", "optax", "orbax"},
    "pretrain.data.manifest": {"tensorflow", "seqio", "tensorflow_datasets", "jax", "flax", "optax", "orbax"},
    "pretrain.data.order": {"tensorflow", "seqio", "tensorflow_datasets", "jax", "flax", "optax", "orbax"},
}
MODULES = sorted(path for top in ("pretrain", "tasks") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str, rooms) -> str | None:
    """The longest room whose name begins the module's."""
    inside = [room for room in rooms if module == room or module.startswith(room + ".")]
    return max(inside, key=len, default=None)


def imports(path: Path):
    """(line, module) of every import, those inside functions too; not those for type checkers only."""
    tree = ast.parse(path.read_text())
    skipped = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def broken(path: Path):
    module = name_of(path)
    room = room_of(module, FLOORS)
    if room is None:
        if module != "pretrain":
            yield f"{path}: no floor for {module}; give it one in tests/test_floors.py"
        return
    for line, imported in imports(path):
        target = room_of(imported, FLOORS)
        if target and target != room and FLOORS[target] >= FLOORS[room]:
            yield f"{path}:{line} {room} (floor {FLOORS[room]}) imports {target} (floor {FLOORS[target]})"
        top = imported.split(".")[0]
        if top in OUTSIDE and room_of(module, OUTSIDE[top]) is None:
            yield f"{path}:{line} only {', '.join(sorted(OUTSIDE[top]))} imports {top}"
        if top in NEVER.get(room_of(module, NEVER) or "", ()):
            yield f"{path}:{line} {room} knows nothing of {top}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    assert list(broken(path)) == []


def test_an_import_upward_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "pretrain" / "data" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text("import jax\n\ndef f():\n    from pretrain.training import loop\n    import gin\n")
    found = "\n".join(broken(path))
    assert "bad.py:1 pretrain.data knows nothing of jax" in found
    assert "bad.py:4 pretrain.data (floor 1) imports pretrain.training (floor 9)" in found
    assert "bad.py:5 only pretrain.config, pretrain.settings imports gin" in found
