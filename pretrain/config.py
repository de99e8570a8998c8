"""Gin files to one frozen `RunConfig`, and back to text.

A run file is plain gin with `from __gin__ import dynamic_registration`: it names classes by import path, so
nothing in the code is decorated. Gin's global state lives for the length of `load` and is cleared; only this
file and `settings.py`, which checks what the files say, know gin.
"""

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import gin

import gin_configs
from pretrain.errors import InputError
from pretrain.run import RunConfig
from pretrain.settings import Settings

FILE = "config.gin"
_INCLUDE = re.compile("include '(.*)'")


def shipped() -> Path:
    """The directory of the gin files that come with the package."""
    return Path(gin_configs.__file__).parent


def find(name: str | Path) -> Path:
    """A run file by path, or by its name under the shipped configs (`runs/quickstart.gin`)."""
    for path in (Path(name), shipped() / name):
        if path.is_file():
            return path
    names = sorted(str(path.relative_to(shipped())) for path in shipped().glob("runs/*.gin"))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    raise InputError(
        f"No run file {str(name)!r}, neither as a path nor among the shipped ones; "
        + (f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}.")
    )


def load(path: str | Path, bindings: Sequence[str] = ()) -> RunConfig:
    """The run that a gin file describes, with `bindings` over it. Raises InputError.

    A binding is "NAME = VALUE", where the name is a macro of the file (`STEPS`), a field of RunConfig
    (`steps`) or a full gin name (`span_corruption.SpanCorruption.noise_density`); or "include 'FILE.gin'",
    which stands above those.

    >>> load("runs/quickstart.gin", bindings=["steps = 10"]).steps
    10
    >>> load("runs/quickstart.gin", bindings=["include 'meshes/gpu_8.gin'"]).mesh.fsdp
    8
    """
    return load_with_text(path, bindings)[0]


def load_with_text(path: str | Path, bindings: Sequence[str] = ()) -> tuple[RunConfig, str]:
    """`load`, and the text that rebuilds the same run from nothing else: what a model dir keeps."""
    path = find(path)
    _allow_imports_from(Path.cwd())
    settings = Settings(path, shipped())
    for binding in bindings:
        if included := _INCLUDE.fullmatch(binding):
            settings.add_file(included[1])
        else:
            settings.add_flag(binding, RunConfig)
    settings.check(RunConfig)
    settings.make_paths_absolute(RunConfig)
    gin.clear_config()
    try:
        for text in settings.texts():
            gin.parse_config(text)
        return gin.get_configurable(RunConfig)(), gin.operative_config_str()
    except InputError as error:
        raise InputError(_without_gins_words(error)) from error
    finally:
        gin.clear_config()


def _allow_imports_from(directory: Path) -> None:
    """A user's `import my_tasks` finds my_tasks.py beside them; last, so that it hides nothing."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))


def _without_gins_words(error: Exception) -> str:
    """A message without the call stack of configurables that gin appends to it."""
    return re.sub(r"\n\s*In call to configurable [^\n]*", "", str(error))


# The arguments of a run that its batches come from; in what they refer to, the loss changes no batch.
DATA = (
    "task", "objective", "lengths", "batch_size", "seed",
    "pack", "use_cached", "store_rates", "shuffle_buffer", "train_split",
)  # fmt: skip
LOSS = ("label_smoothing", "z_loss", "loss_chunks", "chunks", "symmetric")


def data_difference(old: str, new: str) -> list[str]:
    """The names of the settings that make two config texts read other batches, or in another order."""
    before, after = (_settings(text).read_by(RunConfig, DATA) for text in (old, new))
    unsaid = _settings(new).at_default()
    return [
        setting.name
        for key, setting in (before | after).items()
        if (key not in before or key not in after or before[key].value != after[key].value)
        and setting.argument not in LOSS
        and not (key not in before and setting.name in unsaid)
    ]


def _settings(text: str) -> Settings:
    return Settings(Path(FILE), shipped(), text)


def _joined(text: str) -> str:
    """The text with values that gin broke over lines on one line each."""
    return re.sub(r"(?<=[,{\[(])\n\s+", " ", text.replace("\\\n    ", ""))


def difference(old: str, new: str) -> list[str]:
    """What differs between two config texts, a line each: `- old`, `+ new`. Comments do not count.

    Nor does a setting that only `new` has, at its default: the version that wrote `old` did not have it.

    >>> difference("# a\\nSTEPS = 1\\n", "STEPS = 2\\n")
    ['- STEPS = 1', '+ STEPS = 2']
    """
    before, after = (
        [line for line in _joined(text).splitlines() if line and not line.startswith("#")]
        for text in (old, new)
    )
    names = [{line.partition(" = ")[0] for line in lines} for lines in (before, after)]
    unsaid = (names[1] - names[0]) & _settings(new).at_default()
    lines = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    return [line for line in lines if line[2:].partition(" = ")[0] not in unsaid]
