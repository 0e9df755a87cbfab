"""Values of instructions that are wrong without being wrong text: modes, ports, signals.

Owns who is blamed for them. BuildKit judges them, expanded, when their stage is built and never before: what stands in a stage that
nothing needs does no harm. The rules are ``parser.values``'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pybuild.parser.ast import Word
from pybuild.parser.errors import DockerfileError
from pybuild.parser.values import ValueProblem

from .copy_modes import InvalidMode, parse_mode

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")


def checked(word: Word, check: Callable[[_Value], _Result], value: _Value) -> _Result:
    """``check(value)``; ``word`` is blamed for what it raises. Raises DockerfileError."""
    try:
        return check(value)
    except (ValueProblem, InvalidMode) as error:
        raise DockerfileError(error.message, culprit=word.span, hint=error.hint) from error


def check_mode(word: Word, mode: str) -> None:
    """Raises DockerfileError unless ``mode`` is empty, octal up to 07777, or symbolic as chmod(1) reads it."""
    if mode:
        checked(word, parse_mode, mode)
