"""A place in the data, as a checkpoint keeps it: which batch comes next, and in what data."""

import json
from collections.abc import Mapping
from pathlib import Path

from pretrain.errors import InputError


def write(path: Path, position: int, identity: Mapping[str, str]) -> None:
    """Writes `path`.json."""
    path.with_suffix(".json").write_text(json.dumps({"position": position, "identity": dict(identity)}))


def read(path: Path, identity: Mapping[str, str]) -> int:
    """The position in `path`.json. Raises InputError if it is one in other data than `identity` says."""
    about = json.loads(path.with_suffix(".json").read_text())
    before = about["identity"]
    changed = [name for name in before | identity if before.get(name) != identity.get(name)]
    if changed:
        raise InputError(
            f"{path} is a position in other data, since {' and '.join(changed)} changed: bring back what "
            "was there when the run began, or start in another --model-dir."
        )
    return about["position"]
