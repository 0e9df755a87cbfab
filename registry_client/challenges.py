"""Reading WWW-Authenticate (RFC 9110 section 11.6.1): several challenges, in several headers or in one.

Values only; never answers a challenge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pybuild.values import dataclass, field

_LIMIT: Final = 16 << 10
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SPACE = re.compile(r"[ \t]*")
_PARAMETER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?!=)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE = re.compile(r'[^\s,"]+')
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|\Z))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that the server offers. ``scheme`` and the names of ``parameters`` are lower-case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """All challenges of a header's value (several headers joined by commas, as HTTP libraries do). What can't be read is skipped."""
    text = header[:_LIMIT]
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(text):
        at = _skip(text, at)
        scheme = _TOKEN.match(text, at)
        if scheme is None:
            at += 1
            continue
        if found and _PARAMETER.match(text, at):
            # name=value after a comma goes on with the challenge before it.
            at = _parameters(text, at, found[-1][1])
            continue
        parameters: dict[str, str] = {}
        found.append((scheme.group().lower(), parameters))
        at = _space(text, scheme.end())
        token68 = None if _PARAMETER.match(text, at) and not _is_token68(text, at) else _TOKEN68.match(text, at)
        if token68 is not None and at > scheme.end():
            at = token68.end()
        else:
            at = _parameters(text, at, parameters)
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)


def _is_token68(text: str, at: int) -> bool:
    match = _TOKEN68.match(text, at)
    return match is not None and match.group().endswith("=")


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t,":
        at += 1
    return at


def _parameters(text: str, at: int, into: dict[str, str]) -> int:
    # Reads name=value pairs until something else follows; the first of two equal names counts.
    while True:
        start = _skip(text, at)
        name = _PARAMETER.match(text, start)
        if name is None:
            return at if start == at else start
        at = name.end()
        if quoted := _QUOTED.match(text, at):
            value = re.sub(r"\\(.)", r"\1", quoted.group(1), flags=re.DOTALL)
            at = quoted.end()
        elif bare := _BARE.match(text, at):
            value = bare.group()
            at = bare.end()
        else:
            value = ""
            if at < len(text) and text[at] == '"':
                return len(text)  # a quote that never ends
        into.setdefault(name.group(1).lower(), value)
