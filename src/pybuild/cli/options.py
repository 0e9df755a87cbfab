"""The options of all commands: docker's conventions, errors as UsageError. Holds no command's options.

Declarations are argparse's. An ordinary command line is read here; anything else (help, a mistake, a rare form) is given to argparse
(``options_argparse.py``), so that there is one judge of what is right: importing it and declaring the options to it costs more
than a cached build's steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from pybuild.errors import PybuildError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace
else:
    from types import SimpleNamespace as Namespace

HIDDEN: Final = "==SUPPRESS=="
"""As ``help``: the option is not shown (argparse's own mark)."""

Value = TypeVar("Value")

Declared: TypeAlias = tuple[tuple[str, ...], Mapping[str, Any]]  # Any: what argparse's add_argument takes

_READ_HERE: Final = frozenset({"action", "choices", "default", "dest", "help", "metavar", "nargs", "switch", "type"})


class InvalidBoolean(ValueError):
    """A switch has a value that is neither true nor false."""


class _Unusual(Exception):
    """The command line, or the declaration, is not of the forms that are read here."""


class Parser:
    """One command's options. ``--help`` prints and exits 0; an error raises UsageError."""

    def __init__(self, command: str, *, usage: str, description: str, epilog: str | None = None) -> None:
        self._command = command
        self._usage = usage
        self._description = description
        self._epilog = epilog
        self._declared: list[Declared] = []

    def add_argument(self, *names: str, **settings: Any) -> None:  # Any: as argparse's add_argument
        """Declare an option or a positional argument, as for argparse."""
        self._declared.append((names, settings))

    def flag(self, *names: str, help: str) -> None:
        """A switch that also takes ``=true``/``=false``, as docker's do. Hyphens may not be abbreviated."""
        self._declared.append((names, {"switch": True, "default": False, "type": boolean, "help": help}))

    def set_defaults(self, **values: object) -> None:
        """Other defaults than the declared ones, by destination."""
        self._declared = [
            (names, {**settings, "default": values[_destination(names, settings)]})
            if _destination(names, settings) in values
            else (names, settings)
            for names, settings in self._declared
        ]

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse; a switch never swallows the word after it. Raises UsageError."""
        try:
            return Namespace(**_read(self._declared, arguments))
        except _Unusual:
            from .options_argparse import ArgparseParser

            parser = ArgparseParser(
                self._command,
                self._declared,
                usage=self._usage,
                description=self._description,
                epilog=self._epilog,
            )
            return parser.parse(arguments)


def _read(declared: Sequence[Declared], arguments: Sequence[str]) -> dict[str, object]:
    """The values by destination. Raises _Unusual for whatever needs a closer look."""
    values: dict[str, object] = {}
    options: dict[str, tuple[str, Mapping[str, Any]]] = {}
    positionals: list[tuple[str, Mapping[str, Any]]] = []
    for names, settings in declared:
        is_option = names[0].startswith("-")
        # An option whose value may be missing is a closer look's, but only where it is used.
        optional_value = is_option and settings.get("nargs") == "?"
        if not settings.keys() - ({"const"} if optional_value else set()) <= _READ_HERE:
            raise _Unusual
        if settings.get("action", "append") != "append":
            raise _Unusual
        dest = _destination(names, settings)
        values[dest] = settings.get("default")
        if optional_value:
            continue
        if not is_option:
            positionals.append((dest, settings))
        elif "nargs" in settings:
            raise _Unusual
        else:
            options.update((name, (dest, settings)) for name in names)
    words = iter(arguments)
    given: list[str] = []
    for word in words:
        if word == "-" or not word.startswith("-"):
            given.append(word)
            continue
        name, equals, value = word.partition("=")
        found = options.get(name)
        if found is None or (equals and not name.startswith("--")):
            raise _Unusual
        dest, settings = found
        if settings.get("switch"):
            if not equals:
                value = "true"
        elif not equals:
            value = next(words, "--")
            if value.startswith("-") and value != "-":
                raise _Unusual
        converted = _convert(value, settings)
        values[dest] = [*(values[dest] or ()), converted] if settings.get("action") == "append" else converted  # type: ignore[misc]  # appended to a list only
    _place(positionals, given, values)
    return values


def _destination(names: Sequence[str], settings: Mapping[str, Any]) -> str:
    name: str = settings.get("dest") or next((name for name in names if name.startswith("--")), names[0])
    return name.lstrip("-").replace("-", "_")


def _place(
    positionals: Sequence[tuple[str, Mapping[str, Any]]], given: Sequence[str], values: dict[str, object]
) -> None:
    """Give the words that are no options to the positional arguments, of which only the last may take a varying number."""
    rest = list(given)
    for position, (dest, settings) in enumerate(positionals):
        count = settings.get("nargs")
        if count is None:
            if not rest:
                raise _Unusual
            values[dest] = _convert(rest.pop(0), settings)
        elif position != len(positionals) - 1 or count not in ("?", "+"):
            raise _Unusual
        elif count == "+":
            if not rest:
                raise _Unusual
            values[dest] = [_convert(word, settings) for word in rest]
            rest = []
        elif rest:
            values[dest] = _convert(rest.pop(0), settings)
    if rest:
        raise _Unusual


def _convert(text: str, settings: Mapping[str, Any]) -> object:
    convert = settings.get("type")
    try:
        value: object = text if convert is None else convert(text)
    except ValueError:
        raise _Unusual from None
    if value not in settings.get("choices", (value,)):
        raise _Unusual
    return value


def boolean(text: str) -> bool:
    """The value of a switch. Raises InvalidBoolean."""
    lowered = text.lower()
    if lowered in ("1", "t", "true"):
        return True
    if lowered in ("0", "f", "false"):
        return False
    raise InvalidBoolean(f"invalid boolean value {text!r}")


def key_value(text: str, *, option: str) -> tuple[str, str]:
    """``KEY=VALUE``, where a missing ``=`` means an empty value. Raises UsageError for an empty key."""
    key, _, value = text.partition("=")
    if not key:
        raise UsageError(f"invalid {option} value {text!r}", hint=f"write {option} KEY=VALUE")
    return key, value


def as_usage(parse: Callable[[str], Value], text: str, *, option: str) -> Value:
    """What ``parse`` makes of an option's value; its errors as the UsageError that they are on a command line."""
    try:
        return parse(text)
    except PybuildError as error:
        raise UsageError(f"{option}: {error.message}", hint=error.hint) from error


def existing_parent(path: str, *, option: str) -> str:
    """``path`` if a file can have that name, so that a result isn't lost at the end of a long build. Raises UsageError."""
    if os.path.isdir(path):
        raise UsageError(f"{option} {path!r} is a directory", hint="give the name of a file")
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise UsageError(f"the directory of {option} {path!r} does not exist")
    if not os.access(path if os.path.exists(path) else parent, os.W_OK):
        raise UsageError(f"{option} {path!r} can't be written: permission denied")
    return path
