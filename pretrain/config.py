"""Gin files to one frozen `RunConfig`, and back to text: the only file that knows gin.

A run file is plain gin with `from __gin__ import dynamic_registration`: it names classes by import path, so
nothing in the code is decorated. Gin's global state lives for the length of `load` and is cleared.
"""

import ast
import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import gin
import gin_configs

from pretrain.errors import InputError
from pretrain.run import RunConfig

FILE = "config.gin"


def shipped() -> Path:
    """The directory of the gin files that come with the package."""
    return Path(gin_configs.__file__).parent


# Lets `include 'models/t5_1_1_base.gin'` mean the shipped file unless there is one of that path.
gin.config.register_file_reader(
    lambda name: open(shipped() / name), lambda name: (shipped() / name).is_file()
)


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
    """The run that a gin file describes, with `bindings` ("NAME = VALUE") over it. Raises InputError.

    A binding's name is a macro of the file (`STEPS`), a field of RunConfig (`steps`), or a full gin name
    (`span_corruption.SpanCorruption.noise_density`).

    >>> load("runs/quickstart.gin", bindings=["steps = 10"]).steps
    10
    """
    return load_with_text(path, bindings)[0]


def load_with_text(path: str | Path, bindings: Sequence[str] = ()) -> tuple[RunConfig, str]:
    """`load`, and the text that rebuilds the same run from nothing else: what a model dir keeps."""
    path = find(path)
    _allow_imports_from(Path.cwd())
    gin.clear_config()
    try:
        with _gin_quiet():
            gin.parse_config_file(str(path), skip_unknown=False)
        gin.parse_config([_binding(text, path) for text in bindings])
        run = _build(path)
        return run, gin.operative_config_str()
    except InputError as error:
        raise InputError(_without_gins_words(error)) from None
    except (ValueError, SyntaxError, TypeError, ImportError, AttributeError, OSError, RuntimeError) as error:
        if (cause := _input_error(error)) is not None:
            raise InputError(_without_gins_words(cause)) from None
        if not _is_gins(error):
            raise
        raise InputError(f"{path}: {_one_line(error)}") from error
    finally:
        gin.clear_config()


def _build(path: Path) -> RunConfig:
    try:
        configurable = gin.get_configurable("pretrain.run.RunConfig")
    except ValueError:
        raise InputError(
            f"{path} sets no RunConfig; a run file begins with `from pretrain import run` and sets run.RunConfig."
        ) from None
    return configurable()


@contextlib.contextmanager
def _gin_quiet() -> Iterator[None]:
    """Gin logs an error for each place where an included file is not, also when it finds the file later."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _allow_imports_from(directory: Path) -> None:
    """A user's `import my_tasks` finds my_tasks.py beside them; last, so that it hides nothing."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))


def _binding(text: str, path: Path) -> str:
    """One `NAME = VALUE` as gin wants it. Raises InputError for a name nothing reads."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value:
        raise InputError(f"Binding {text!r} has no value; write --gin.NAME=VALUE.")
    if not re.fullmatch(r"@?[\w./]+", name):
        raise InputError(f"Binding {text!r}: {name!r} is not a gin name.")
    if not value.startswith(("@", "%", "[", "(", "{")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise InputError(
                f"Binding {name}={value}: the value is not a Python literal; text needs quotes of its own, "
                f"as in --gin.{name}=\"'{value}'\"."
            ) from None
    if "." in name:
        return f"{name} = {value}"
    macros = re.findall(r"(?m)^(\w+)\s*=", gin.config_str(max_line_length=10_000))
    fields = list(RunConfig.__dataclass_fields__)
    if name in macros:
        return f"{name} = {value}"
    if name in fields:
        return f"run.RunConfig.{name} = {value}"
    close = difflib.get_close_matches(name, [*macros, *fields], n=1)
    raise InputError(
        f"Binding {text!r}: {path} has no macro {name} and RunConfig no such field; "
        + (f"did you mean {close[0]}?" if close else f"its macros are {', '.join(macros)}.")
    )


def _input_error(error: BaseException | None) -> InputError | None:
    """The InputError that gin wrapped in its own words, if there is one."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_gins(error: BaseException) -> bool:
    """Whether gin itself refused the config (then it says where), and not code that the config called."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback else ""
    return module.startswith(("gin", "ast", "importlib")) or isinstance(
        error, (SyntaxError, ImportError, TypeError)
    )


def _without_gins_words(error: Exception) -> str:
    """A message without the call stack of configurables that gin appends to it."""
    return re.sub(r"\n\s*In call to configurable [^\n]*", "", str(error))


def _one_line(error: Exception) -> str:
    """Gin's message as one sentence; its last lines name the file and line, or the binding."""
    text = re.sub(r"\n\s*In bindings string line 1\s*", "\n in --gin.", _without_gins_words(error))
    return re.sub(r"\s*\n\s*", " ", text).strip()


def difference(old: str, new: str) -> list[str]:
    """What differs between two config texts, a line each: `- old`, `+ new`. Comments do not count.

    >>> difference("# a\\nSTEPS = 1\\n", "STEPS = 2\\n")
    ['- STEPS = 1', '+ STEPS = 2']
    """
    texts = [[line for line in text.splitlines() if line and not line.startswith("#")] for text in (old, new)]
    return [line for line in difflib.ndiff(*texts) if line[0] in "-+"]
