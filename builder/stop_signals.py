"""The names and numbers that STOPSIGNAL takes. Owns the check only: the text goes into the configuration as written."""

from __future__ import annotations

from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import pattern

# Linux's signal(7), with the real-time range as the C library numbers it for programs (34 to 64).
_NAMES: Final = frozenset(
    {
        "ABRT",
        "ALRM",
        "BUS",
        "CHLD",
        "CLD",
        "CONT",
        "FPE",
        "HUP",
        "ILL",
        "INT",
        "IO",
        "IOT",
        "KILL",
        "PIPE",
        "POLL",
        "PROF",
        "PWR",
        "QUIT",
        "SEGV",
        "STKFLT",
        "STOP",
        "SYS",
        "TERM",
        "TRAP",
        "TSTP",
        "TTIN",
        "TTOU",
        "URG",
        "USR1",
        "USR2",
        "VTALRM",
        "WINCH",
        "XCPU",
        "XFSZ",
        "RTMIN",
        "RTMAX",
    }
    | {f"RTMIN+{number}" for number in range(1, 16)}
    | {f"RTMAX-{number}" for number in range(1, 15)}
)
_NUMBER: Final = pattern(r"[+-]?[0-9]+\Z")


class InvalidSignal(PybuildError):
    """Neither a signal's name nor a number."""

    def __init__(self, text: str) -> None:
        super().__init__(f"invalid signal: {text}", hint="write a name such as SIGTERM or a number such as 15")


def check_stop_signal(text: str) -> None:
    """Raises InvalidSignal unless ``text`` names a Linux signal, with or without ``SIG``, or is a number other than 0."""
    if _NUMBER.match(text):
        if int(text) == 0:
            raise InvalidSignal(text)
    elif text.upper().removeprefix("SIG") not in _NAMES:
        raise InvalidSignal(text)
