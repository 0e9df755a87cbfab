"""Reads command lines with argparse: whatever ``options.py`` doesn't read itself, all errors, and the help texts. Holds no command's options."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from pybuild.errors import UsageError

from .options import HIDDEN, Declared, InvalidBoolean, boolean


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


class ArgparseParser(argparse.ArgumentParser):
    """One command's options. ``--help`` prints and exits 0; an error raises UsageError."""

    def __init__(
        self, command: str, declared: Sequence[Declared], *, usage: str, description: str, epilog: str | None
    ) -> None:
        super().__init__(
            prog=f"pybuild {command}",
            usage=f"pybuild {command} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        self._command = command
        self._takes_any = any(settings.get("nargs") == "..." for _, settings in declared)
        for names, settings in declared:
            if settings.get("help") == HIDDEN:
                settings = {**settings, "help": argparse.SUPPRESS}  # which argparse knows by identity
            if settings.get("switch"):
                self.add_argument(
                    *names,
                    nargs="?",
                    const=True,
                    default=settings["default"],
                    type=_boolean,
                    metavar="",
                    help=settings["help"],
                )
            else:
                self.add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        text = message.replace("the following arguments are required: ", "missing argument: ")
        raise UsageError(text, hint=f"see 'pybuild {self._command} --help'")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse; a switch never swallows the word after it. Raises UsageError."""
        self._refuse_unknown(arguments)
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

    def _refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Name an option that there isn't before anything else is said of the line: it is what the user has to look at first."""
        known = self._option_string_actions
        words = iter(arguments)
        for word in words:
            if word == "--" or (self._takes_any and not word.startswith("-")):
                return
            if word == "-" or not word.startswith("-"):
                continue
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            action = known.get(name)
            if action is None:
                raise UsageError(f"unknown option {name}", hint=self._remedy(name))
            if action.nargs is None and word == name:
                next(words, None)  # its value

    def _remedy(self, name: str) -> str:
        if name in ("--root", "--config", "--host", "-H", "--log-level", "--debug", "-D"):
            return f"global options come before the command: pybuild {name} … {self._command}"
        shown = [
            each
            for each, action in self._option_string_actions.items()
            if each.startswith("--") and action.help != argparse.SUPPRESS
        ]
        close = get_close_matches(name, shown, n=1)
        return f"did you mean {close[0]}?" if close else f"see 'pybuild {self._command} --help'"


def _separate_short_switches(arguments: list[str], switches: set[str]) -> list[str]:
    """``-q PATH`` must not read PATH as the value of ``-q``: write it as ``-qtrue``. Nor is the ``f`` of ``-af`` the value of ``-a``."""
    out: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return out + arguments[position:]
        rest = word
        while not rest.startswith("--") and rest[:2] in switches and rest[2:3] != "=":
            out.append(f"{rest[:2]}true")
            rest = f"-{rest[2:]}"
        if rest != "-" or word == "-":
            out.append(rest)
    return out


def _boolean(text: str) -> bool:
    try:
        return boolean(text)
    except InvalidBoolean as error:
        raise argparse.ArgumentTypeError(str(error)) from error
