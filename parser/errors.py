"""What is raised about a Dockerfile, and how the place is shown.

    PybuildError
    └── DockerfileError          something is wrong at a place of a Dockerfile
        ├── DockerfileSyntaxError    it can't be parsed
        └── ExpansionError           a variable's substitution failed (raised by ``expand.py``)

Owns the errors and the listing with marked lines. Never decides what is wrong, never prints.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Self

from pybuild.errors import PybuildError

from .ast import Span

if TYPE_CHECKING:
    from .dockerfile import Dockerfile

_RULE = "-" * 20
_WIDTH_LIMIT = 2000  # a line of data in a here-document is no help to anyone


def excerpt(text: str, lines: tuple[int, int], *, context: int = 2, filename: str = "Dockerfile") -> str:
    """The listing that BuildKit prints for a place: header, rule, numbered lines with ``>>>`` marks, rule; ends in a newline.

    ``lines``: first and last marked line, counted from 1. ``context``: lines shown on each side of a single marked line;
    around several, one fewer than that, as BuildKit does. Returns ``""`` where the place is not in the text.
    """
    return _listing(text, lines, context=context, filename=filename, culprit=None)


def _listing(text: str, lines: tuple[int, int], *, context: int, filename: str, culprit: Span | None) -> str:
    rows = text.removeprefix("\ufeff").split("\n")
    first, last = lines
    last = max(first, last)
    if first < 1 or first > len(rows):
        return ""
    last = min(last, len(rows))
    # The extent that solver/errdefs/source.go gives, at the edges too.
    reach = context if first == last else max(0, context - 1)
    start, end = max(1, first - reach), min(len(rows), last + reach)
    out = [f"{filename}:{first}", _RULE]
    for number in range(start, end + 1):
        mark = ">>>" if first <= number <= last else "   "
        row = rows[number - 1].rstrip("\r")
        if len(row) > _WIDTH_LIMIT:
            row = row[:_WIDTH_LIMIT] + "…"
        out.append(f" {number:3d} | {mark} {row}")
        if culprit is not None and culprit.start.line == number:
            out.append(_caret(row, culprit))
    out.append(_RULE)
    return "\n".join(out) + "\n"


def _caret(row: str, culprit: Span) -> str:
    column = min(culprit.start.column, len(row) + 1)
    width = culprit.end.column - column if culprit.end.line == culprit.start.line else len(row) + 1 - column
    # Tabs are repeated so that the marks stand below what they mark, however wide a tab is shown.
    blanks = "".join("\t" if char == "\t" else " " for char in row[: column - 1])
    return "     |     " + blanks + "^" * max(1, min(width, len(row) + 1 - column))


class DockerfileError(PybuildError):
    """Something is wrong at a place of a Dockerfile.

    ``span``: the instruction (its lines are marked), ``culprit``: the exact part of it, where known; ``text``: the whole
    Dockerfile; ``filename``: how to call it. All but the message may be missing when the raiser doesn't know them:
    ``at()`` adds them.
    """

    def __init__(
        self, message: str, *, span: Span | None = None, culprit: Span | None = None, filename: str = "Dockerfile",
        text: str | None = None, hint: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint=hint)
        self.span = span
        self.culprit = culprit
        self.filename = filename
        self.text = text

    @property
    def lines(self) -> tuple[int, int] | None:
        """First and last line of the place, None if unknown."""
        span = self.span or self.culprit
        return None if span is None else span.lines

    def at(self, *, filename: str, text: str, span: Span | None = None) -> Self:
        """The same error with its place: ``span`` is taken only where the error has none of its own."""
        placed = copy.copy(self)
        placed.filename = filename
        placed.text = text
        placed.span = self.span or span
        return placed

    def excerpt(self) -> str:
        """The lines around the place, marked, with the culprit underlined; ``""`` where the place is unknown."""
        if self.text is None or self.lines is None:
            return ""
        return _listing(self.text, self.lines, context=2, filename=self.filename, culprit=self.culprit)


class DockerfileSyntaxError(DockerfileError):
    """The text is not a Dockerfile.

    ``partial``: what could be parsed before the error, None if that is nothing; findings about it are still worth showing.
    ``others``: the errors of later instructions, which don't depend on this one.
    """

    partial: Dockerfile | None = None
    others: tuple[DockerfileSyntaxError, ...] = ()
