"""The argument parser that all commands use: docker's conventions, errors as UsageError. Holds no command's options."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from typing import NoReturn

from pybuild.errors import UsageError


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Wide enough for docker-like two-column help, within the terminal."""

    def __init__(self, prog: str) -> None:
        width = min(120, shutil.get_terminal_size((100, 24)).columns)
        super().__init__(prog, max_help_position=34, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == "?" and action.const is True:
            return ", ".join(action.option_strings)
        if action.option_strings and action.nargs != 0:
            return f"{', '.join(action.option_strings)} {action.metavar or action.dest.upper()}"
        return super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """One command's options. ``--help`` prints and exits 0; an error raises UsageError."""

    def __init__(self, command: str, *, usage: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"pybuild {command}",
            usage=f"pybuild {command} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        self._command = command

    def error(self, message: str) -> NoReturn:
        text = message.replace("the following arguments are required: ", "missing argument: ")
        raise UsageError(text, hint=f"see 'pybuild {self._command} --help'")

    def flag(self, *names: str, help: str) -> None:
        """A switch that also takes ``=true``/``=false``, as docker's do. Hyphens may not be abbreviated."""
        self.add_argument(*names, nargs="?", const=True, default=False, type=_boolean, metavar="", help=help)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse; a switch never swallows the word after it. Raises UsageError."""
        switches = {
            name
            for action in self._actions
            if action.nargs == "?" and action.const is True
            for name in action.option_strings
        }
        fixed: list[str] = []
        for position, word in enumerate(arguments):
            if word == "--":
                fixed.extend(arguments[position:])
                break
            fixed.append(f"{word}=true" if word in switches and word.startswith("--") else word)
        return self.parse_args(_separate_short_switches(fixed, switches))


def _separate_short_switches(arguments: list[str], switches: set[str]) -> list[str]:
    """``-q PATH`` must not read PATH as the value of ``-q``: write it as ``-qtrue``."""
    out: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return out + arguments[position:]
        out.append(f"{word}true" if word in switches and len(word) == 2 else word)
    return out


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("1", "t", "true"):
        return True
    if lowered in ("0", "f", "false"):
        return False
    raise argparse.ArgumentTypeError(f"invalid boolean value {text!r}")


def key_value(text: str, *, option: str) -> tuple[str, str]:
    """``KEY=VALUE``, where a missing ``=`` means an empty value. Raises UsageError for an empty key."""
    key, _, value = text.partition("=")
    if not key:
        raise UsageError(f"invalid {option} value {text!r}", hint=f"write {option} KEY=VALUE")
    return key, value


def existing_parent(path: str, *, option: str) -> str:
    """``path`` if its directory exists, so that a result isn't lost at the end of a long build. Raises UsageError."""
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise UsageError(f"the directory of {option} {path!r} does not exist")
    return path
