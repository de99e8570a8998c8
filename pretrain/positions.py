"""A place in the data, as a checkpoint keeps it: which batch comes next, and in what data."""

import json
from collections.abc import Mapping
from pathlib import Path

from pretrain.data.manifest import checksum_of
from pretrain.errors import InputError


def write(path: Path, position: int, identity: Mapping[str, str]) -> None:
    """Writes `path`.json, with a checksum: no other batch is read because a bit flipped."""
    about = {"position": position, "identity": dict(identity)}
    path.with_suffix(".json").write_text(json.dumps({**about, "checksum": checksum_of(about)}))


def read(path: Path, identity: Mapping[str, str] | None = None) -> int:
    """The position in `path`.json.

    Raises ValueError if it is not what was written, InputError if it is one in other data than `identity`.
    """
    about = json.loads(path.with_suffix(".json").read_text())
    if about.pop("checksum", None) != checksum_of(about):
        raise ValueError(f"{path.name}.json is not what was written")
    before = about["identity"]
    now = before if identity is None else identity
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        raise InputError(
            f"{path} is a position in other data, since {' and '.join(changed)} changed: bring back what "
            "was there when the run began, or start in another --model-dir."
        )
    return about["position"]
