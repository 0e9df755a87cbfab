"""The root of every error that pybuild raises on purpose. Imported by all folders; imports none.

    PybuildError                 one sentence, an optional hint, an exit status
    ├── UsageError               the command line or an API call was wrong (exit status 2)
    └── …                        each folder derives its own beside the code that raises it

Errors carry typed fields, never a formatted traceback; the command line decides how to show them.
"""

from __future__ import annotations


class PybuildError(Exception):
    """An error with a message meant for a person.

    Parameters: ``message``: one sentence without a trailing period where it ends in a quoted value; ``hint``: one
    concrete remedy, or None.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(PybuildError):
    """The caller asked for something that can't be asked for: wrong flags, contradictory options."""

    exit_code = 2


class Cancelled(PybuildError):
    """The work was stopped on request (Ctrl-C, a client that went away)."""

    exit_code = 130

    def __init__(self, message: str = "cancelled") -> None:
        super().__init__(message)
