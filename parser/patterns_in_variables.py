"""The patterns of ``${v#p}``, ``${v%p}`` and ``${v/p/r}``: ``*`` any text, ``?`` any character, neither across a line's end.

Matches by hand what BuildKit gives to a regular expression, because Python's would backtrack: a pattern is a chain of
pieces with stars between them, and placing each piece as early as possible is enough to know whether the rest can follow.
So the work is linear in the value for each piece. Never substitutes variables; patterns come already substituted.
"""

from __future__ import annotations

import re

from .word_scanner import SubstitutionProblem


class _Pattern:
    """``pieces``: what stands between stars, as regular expressions without repetition; ``leading`` and ``trailing`` stars are
    empty pieces."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: list[re.Pattern[str]]) -> None:
        self.pieces = pieces


def _compile(pattern: str, shown: str) -> _Pattern:
    pieces: list[re.Pattern[str]] = []
    current: list[str] = []
    after_star = False
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if not after_star:
                pieces.append(re.compile("".join(current)))
                current.clear()
            after_star = True
            continue
        after_star = False
        if char == "?":
            current.append(".")
            continue
        if char == "\\":
            following = pattern[at : at + 1]
            if following in ("}", "/") and following:
                # The escape only kept the character from ending the pattern.
                continue
            if following not in ("*", "?", "\\") or not following:
                raise SubstitutionProblem(
                    f"invalid pattern ({shown}) in substitution: invalid escape '\\{following or chr(0xFFFD)}'"
                )
            char = following
            at += 1
        current.append(re.escape(char))
    pieces.append(re.compile("".join(current)))
    return _Pattern(pieces)


def _match(pattern: _Pattern, value: str, start: int, *, greedy: bool) -> int | None:
    """Where the pattern ends if it begins at ``start``: the first such place, or the last one if ``greedy``."""
    first, *rest = pattern.pieces
    match = first.match(value, start)
    if match is None:
        return None
    at = match.end()
    for number, piece in enumerate(rest):
        line_end = value.find("\n", at)
        limit = len(value) if line_end < 0 else line_end
        found = (
            _last(piece, value, at, limit) if greedy and number == len(rest) - 1 else _first(piece, value, at, limit)
        )
        if found is None:
            return None
        at = found
    return at


def _first(piece: re.Pattern[str], value: str, start: int, limit: int) -> int | None:
    """The end of the first place from ``start`` to ``limit`` (where a star must stop) at which the piece matches."""
    match = piece.search(value, start)
    return match.end() if match is not None and match.start() <= limit else None


def _last(piece: re.Pattern[str], value: str, start: int, limit: int) -> int | None:
    for at in range(limit, start - 1, -1):
        match = piece.match(value, at)
        if match is not None:
            return match.end()
    return None


def trim_prefix(value: str, pattern: str, *, greedy: bool) -> str:
    """``value`` without the shortest (``greedy``: longest) beginning that matches. Raises ``SubstitutionProblem``."""
    end = _match(_compile(pattern, pattern), value, 0, greedy=greedy)
    return value if end is None else value[end:]


def trim_suffix(value: str, pattern: str, *, greedy: bool) -> str:
    """``value`` without the shortest (``greedy``: longest) end that matches: the mirror image of ``trim_prefix``."""
    mirrored = _reverse(pattern)
    end = _match(_compile(mirrored, mirrored), value[::-1], 0, greedy=greedy)
    return value if end is None else value[: len(value) - end]


def _reverse(pattern: str) -> str:
    """The pattern backwards, escapes kept before what they escape."""
    units = re.findall(r"\\.|.", pattern, re.DOTALL)
    return "".join(reversed(units))


def replace(value: str, pattern: str, replacement: str, *, every: bool) -> str:
    """``value`` with the first (``every``: each) longest match replaced. Raises ``SubstitutionProblem``."""
    compiled = _compile(pattern, pattern)
    out: list[str] = []
    at = copied = 0
    previous_end = -1
    while at <= len(value):
        found = _search(compiled, value, at)
        if found is None:
            break
        start, end = found
        # Go ignores an empty match right behind another match.
        if end > start or start != previous_end:
            out.append(value[copied:start])
            out.append(replacement)
            copied = end
            if not every:
                break
        previous_end = end
        at = end if end > start else end + 1
    out.append(value[copied:])
    return "".join(out)


def _search(pattern: _Pattern, value: str, start: int) -> tuple[int, int] | None:
    at = start
    while True:
        match = pattern.pieces[0].search(value, at)
        if match is None:
            return None
        end = _match(pattern, value, match.start(), greedy=True)
        if end is not None:
            return match.start(), end
        # What can't follow here can't follow further right in the same line either.
        line_end = value.find("\n", match.start())
        if line_end < 0:
            return None
        at = line_end + 1
