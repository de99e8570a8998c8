"""What gin files and flags set, one by one, each with its place, checked before anything is built.

Gin meets a mistake where it happens to use it, or never: it knows no types, and a setting that nothing reads
is as good to it as any other. Here the files are read once more, with gin's own parser, for the sake of what
people are told.
"""

import dataclasses
import difflib
import inspect
import os
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from pretrain.annotations import InstanceOf, described, fits, names_path, parameters
from pretrain.errors import InputError

REGISTRATION = "from __gin__ import dynamic_registration"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`%name`, `@name` or `@name()` in a value, as the `form`'s braces show it."""

    name: str
    form: str

    def __repr__(self) -> str:
        return self.form.format(self.name)


MACRO, FUNCTION, CALL = "%{}", "@{}", "@{}()"


class _References(config_parser.ParserDelegate):
    """Keeps references as what they are, where gin would look them up."""

    def configurable_reference(self, name: str, evaluate: bool) -> Reference:
        return Reference(name, CALL if evaluate else FUNCTION)

    def macro(self, name: str) -> Reference:
        return Reference(name, MACRO)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """`selector.argument = value`; a macro, `selector = value`, has no argument.

    place: file and line, or flag. imported: what a selector may begin with there.
    """

    selector: str
    argument: str
    value: Any
    place: str
    imported: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.selector}.{self.argument}" if self.argument else self.selector

    @property
    def subject(self) -> str:
        """The setting and its place, to begin a sentence with."""
        return self.place if self.place.startswith("--gin.") else f"{self.place}: {self.name}"

    def resolve(self, selector: str) -> Any:
        """The function or class that `selector` names at this place. Raises InputError."""
        root, *attributes = selector.rpartition("/")[-1].split(".")
        if root not in self.imported:
            raise InputError(
                f"{self.place}: nothing is imported as {root!r}{_meant(root, self.imported)}; correct it, or "
                "import its module at the top of the run file."
            )
        found = self.imported[root]
        for attribute in attributes:
            if not hasattr(found, attribute):
                raise InputError(
                    f"{self.place}: {found.__name__} has no {attribute!r}{_meant(attribute, vars(found))}; "
                    "correct the name."
                )
            found = getattr(found, attribute)
        return found

    @property
    def key(self) -> tuple[Any, str]:
        """What it sets: a function or class and its argument, or None and the macro."""
        return (self.resolve(self.selector), self.argument) if self.argument else (None, self.selector)


class Settings:
    """What a run file, the files it includes and flags set; the later of two for the same thing counts."""

    def __init__(self, path: Path, shipped: Path, text: str | None = None):
        """
        Args:
            path: the run file.
            shipped: where an included file is if it is not at its path.
            text: what the run file says; None reads it.

        Raises:
            InputError: a file is not there or cannot be read, or an import fails.
        """
        self.path = path
        self._shipped = shipped
        self._settings: list[Setting] = []
        self._over: list[Setting] = []
        self._flags: list[Setting] = []
        self._imported: dict[str, Any] = {}
        self._imports: dict[str, str] = {}
        self._texts: list[str] = []
        self._read(path, _text(path) if text is None else text, ())

    def add_file(self, name: str) -> None:
        """Takes in a file over the run's, by path or as shipped. `check` wants all of it to be read."""
        before = len(self._settings)
        path = self._included(name, "The command line")
        self._read(path, _text(path), ())
        self._over += self._settings[before:]

    def _read(self, path: Path, text: str, above: Sequence[Path]) -> None:
        registered = False
        imported: dict[str, Any] = {}
        imports: dict[str, str] = {}
        lines, done = text.splitlines(), 0
        for statement in _statements(path, text):
            place = f"{path}, line {statement.location.line_num}"
            if isinstance(statement, config_parser.ImportStatement):
                registered = registered or statement.format() == REGISTRATION
                if not registered:
                    raise InputError(f"{place}: put `{REGISTRATION}` above the other imports.")
                if statement.format() != REGISTRATION:
                    imported[statement.bound_name()] = _module(statement, place)
                    imports[statement.bound_name()] = statement.format()
            elif isinstance(statement, config_parser.IncludeStatement):
                self._add_text(imports, lines[done : statement.location.line_num - 1])
                done = statement.location.line_num
                included = self._included(statement.filename, place)
                if included in (path, *above):
                    raise InputError(f"{place}: {included} includes itself; leave this include out.")
                self._read(included, _text(included), (path, *above))
            elif isinstance(statement, config_parser.BindingStatement):
                self._settings.append(
                    Setting(statement.selector, statement.arg_name, statement.value, place, imported)
                )
        self._add_text(imports, lines[done:])
        # For flags all imports count, those of the including file before those of what it includes.
        self._imported |= imported
        self._imports |= imports

    def _included(self, name: str, place: str) -> Path:
        for path in (Path(name), self._shipped / name):
            if path.is_file():
                return path
        raise InputError(f"{place}: there is no file {name!r}, as a path or in {self._shipped}; correct it.")

    def add_flag(self, binding: str, root: type) -> None:
        """Takes in a `NAME = VALUE`; NAME may be short, a macro or a field of `root`. Raises InputError."""
        name, _, value = (part.strip() for part in binding.partition("="))
        place = f"--gin.{name}"
        if not value:
            raise InputError(f"{place} has no value; write {place}=VALUE.")
        selector, _, argument = self._long_name(name, root).rpartition(".")
        if not selector:
            selector, argument = argument, ""
        self._flags.append(Setting(selector, argument, _literal(value, place), place, self._imported))

    def _long_name(self, name: str, root: type) -> str:
        macros = {setting.selector: None for setting in self._settings if not setting.argument}
        fields = [field.name for field in dataclasses.fields(root)]
        if "." in name or name in macros:
            return name
        if name in fields:
            return f"{self.selector_of(root)}.{name}"
        raise InputError(
            f"--gin.{name}: {self.path} has no macro {name} and {root.__name__} no such field"
            f"{_meant(name, [*macros, *fields])}; its macros are {', '.join(macros) or 'none'}."
        )

    def _add_text(self, imports: Mapping[str, str], lines: Iterable[str]) -> None:
        """Takes a part of a file, between its includes, as a gin text of its own."""
        body = [line for line in lines if line not in (REGISTRATION, *imports.values())]
        self._texts.append("\n".join([REGISTRATION, *imports.values(), *body, ""]))

    def texts(self) -> list[str]:
        """All that is set as gin texts without includes, to be read in this order.

        Gin would look for an included file among Python's packages too, where a directory of the user's that
        is called `runs` or `models` makes it fail.
        """
        flags = [f"{flag.name} = {flag.value!r}" for flag in self._flags]
        return [*self._texts, "\n".join([REGISTRATION, *self._imports.values(), *flags])]

    def selector_of(self, root: type) -> str:
        """What the files call `root`. Raises InputError if they set nothing of it."""
        for setting in self._settings:
            if setting.key[0] is root:
                return setting.selector
        package, _, module = root.__module__.rpartition(".")
        raise InputError(
            f"{self.path} sets no {root.__name__}: a run file begins with `{REGISTRATION}` and "
            f"`from {package} import {module}`, and sets {module}.{root.__name__}."
        )

    def check(self, root: type) -> None:
        """Raises InputError for a name, type or reference that cannot be, or a flag that nothing reads."""
        for setting in [*self._settings, *self._flags]:
            _check_name(setting)
        read = self.read_by(root)
        for given in [*self._over, *self._flags]:
            if given.key not in read:
                what = f"refers to {given.selector}" if given.argument else f"has the value %{given.selector}"
                which = "flag" if given in self._flags else "file"
                raise InputError(f"{given.place}: nothing in this run {what}; leave the {which} out.")

    def at_default(self) -> set[str]:
        """The names of the settings that say what would be so without them."""
        names = set()
        for setting in self._settings:
            known = parameters(setting.resolve(setting.selector)) if setting.argument else {}
            if setting.argument in known and known[setting.argument].default == setting.value:
                names.add(setting.name)
        return names

    def make_paths_absolute(self, root: type) -> None:
        """Adds flags that do: a relative path starts here and now, wherever its run is used from later."""
        for setting in self._reading(root).paths:
            if (value := _absolute(setting.value)) != setting.value:
                self._flags.append(dataclasses.replace(setting, value=value, imported=self._imported))

    def read_by(self, root: type, arguments: Iterable[str] | None = None) -> dict[tuple[Any, str], Setting]:
        """By what they set, all settings that go into `root`, or into these of its arguments alone."""
        return self._reading(root, arguments).read

    def _reading(self, root: type, arguments: Iterable[str] | None = None) -> "_Reading":
        reading = _Reading([*self._settings, *self._flags])
        reading.call(root, self.selector_of(root), str(self.path), arguments)
        return reading


class _Reading:
    """Follows a run from its root through all that it refers to, as gin will."""

    def __init__(self, settings: Iterable[Setting]):
        self._macros: dict[str, Setting] = {}
        self._arguments: dict[Any, dict[str, Setting]] = defaultdict(dict)
        for setting in settings:
            target, name = setting.key
            (self._arguments[target] if setting.argument else self._macros)[name] = setting
        self._called: set[Any] = set()
        self.read: dict[tuple[Any, str], Setting] = {}
        self.paths: list[Setting] = []

    def call(
        self,
        target: Any,
        selector: str,
        place: str,
        arguments: Iterable[str] | None = None,
        whole: bool = True,
    ) -> None:
        """Checks what is set of `target` (of these arguments, or of all), and of whatever that refers to.

        whole: the arguments it cannot do without must be set.
        """
        if target in self._called:
            return
        self._called.add(target)
        known, given = parameters(target), self._arguments[target]
        for name, setting in given.items():
            if arguments is None or name in arguments:
                self.read[setting.key] = setting
                self._argument(setting, known[name].annotation if name in known else Any)
        for name, parameter in known.items():
            if name not in given and names_path(parameter.annotation):
                self.paths.append(Setting(selector, name, parameter.default, place, {}))
            if whole and name not in given and _is_required(parameter):
                raise InputError(f"{place}: {selector} needs {name}; add `{selector}.{name} = VALUE`.")

    def _argument(self, setting: Setting, annotation: Any) -> None:
        source = self._source(setting)
        if names_path(annotation):
            self.paths += self._literals(source)
        if fits(self._value(source.value, source), annotation):
            return
        taker = "it" if source is setting else setting.name
        raise InputError(f"{source.subject} is {source.value!r}, but {taker} takes {described(annotation)}.")

    def _literals(self, source: Setting) -> list[Setting]:
        """The settings that the value of `source` is written in: itself, and the macros in it."""
        found, values = [source], [source.value]
        while values:
            value = values.pop()
            if isinstance(value, dict | list | tuple):
                values += value.values() if isinstance(value, dict) else value
            elif isinstance(value, Reference) and value.form == MACRO:
                found.append(self._source(dataclasses.replace(source, value=value)))
                values.append(found[-1].value)
        return found

    def _source(self, setting: Setting) -> Setting:
        """The setting itself, or the macro that holds its value."""
        passed = []
        while isinstance(setting.value, Reference) and setting.value.form == MACRO:
            name = setting.value.name.rpartition("/")[-1]
            if name == "gin.REQUIRED":
                raise InputError(f"{setting.subject} must be given: --gin.{setting.name}=VALUE.")
            if name not in self._macros or name in passed:
                trouble = "leads back to itself" if name in passed else "is set nowhere"
                raise InputError(
                    f"{setting.place}: {setting.value} {trouble}{_meant(name, self._macros)}; set it."
                )
            passed.append(name)
            setting = self._macros[name]
            self.read[setting.key] = setting
        return setting

    def _value(self, value: Any, setting: Setting) -> Any:
        """The value with references followed; what is not made yet is an InstanceOf."""
        if isinstance(value, dict):
            return {key: self._value(item, setting) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._value(item, setting) for item in value)
        if not isinstance(value, Reference):
            return value
        if value.form == MACRO:
            macro = self._source(dataclasses.replace(setting, value=value))
            return self._value(macro.value, macro)
        target = setting.resolve(value.name)
        self.call(target, value.name, setting.place, whole=value.form == CALL)
        if value.form == FUNCTION:
            return target
        return InstanceOf(target if isinstance(target, type) else None)


def _absolute(value: Any) -> Any:
    """A path, or each of several; one of a user's home directory or of a remote store stays as it is."""
    if isinstance(value, dict):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_absolute, value))
    if not isinstance(value, str) or not value or value.startswith("~") or "://" in value:
        return value
    return os.path.abspath(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text ({error.reason}); give a gin file.") from error


def _statements(path: Path, text: str) -> Iterator[Any]:
    """Gin's statements, in order. Raises InputError."""
    try:
        yield from config_parser.ConfigParser(text, _References())
    except SyntaxError as error:
        raise InputError(
            f"{path}, line {error.lineno}: cannot read `{(error.text or '').strip()}`; write NAME = VALUE, "
            "text in quotes, every bracket closed."
        ) from error
    except tokenize.TokenError as error:
        raise InputError(f"{path}: a bracket or quote is never closed; the file ends inside it.") from error


def _literal(value: str, place: str) -> Any:
    """The value of a flag. Raises InputError unless it is a Python literal or a reference."""
    value = " ".join(value.split())
    try:
        (statement,) = config_parser.ConfigParser(f"x = {value}", _References())
    except (SyntaxError, tokenize.TokenError) as error:
        example = f", as in {place}=\"'{value}'\"" if not set(value) & set("'\"[]{}()@%") else ""
        raise InputError(
            f"{place}={value}: the value is not a Python literal; text needs quotes of its own{example}."
        ) from error
    return statement.value


def _module(statement: config_parser.ImportStatement, place: str) -> Any:
    """What an import binds, found as gin finds it. Raises InputError if there is no such module."""
    try:
        return __import__(statement.module, fromlist=[""] if statement.is_from or statement.alias else [])
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"{place}: `{statement.format()}` fails ({error}); correct the import, install what it needs, or "
            "start in the directory that holds the module."
        ) from error


def _check_name(setting: Setting) -> None:
    target, argument = setting.key
    if target is None:
        return
    if not callable(target):
        raise InputError(f"{setting.place}: {setting.selector} is no function or class; name one in it.")
    known = parameters(target)
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    if argument not in known and not takes_any:
        raise InputError(
            f"{setting.place}: {setting.selector} has no setting {argument!r}{_meant(argument, known)}; "
            f"it has {', '.join(known)}."
        )


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variable


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
