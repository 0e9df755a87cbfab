"""Path patterns as Go's ``path/filepath`` reads them: ``Match`` and ``Clean``.

Owns the translation of one pattern into a compiled regular expression, remembered. Knows nothing of ignore files (see
``dockerignore.py``, whose patterns have other rules) and never touches a file.
"""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache

from pybuild.errors import PybuildError


class BadPattern(PybuildError):
    """The pattern is malformed: an open ``[``, an empty class, an escape at the end."""

    def __init__(self, pattern: str) -> None:
        super().__init__(f"syntax error in pattern {pattern!r}", hint="write \\[ for a bracket that stands for itself")
        self.pattern = pattern


def go_match(pattern: str, name: str) -> bool:
    """True if ``pattern`` matches the whole of ``name``, by the rules of Go's ``filepath.Match`` on Unix.

    ``*`` and ``?`` don't match ``/``; a class such as ``[^a]`` does; ``\\`` escapes. Raises BadPattern.
    """
    return compile_match(pattern).fullmatch(name) is not None


def has_wildcards(path: str) -> bool:
    """True if an unescaped ``*``, ``?`` or ``[`` stands in ``path``: only then is it a pattern."""
    index = 0
    while index < len(path):
        character = path[index]
        if character == "\\":
            index += 1
        elif character in "*?[":
            return True
        index += 1
    return False


def clean_path(path: str) -> str:
    """Go's ``path.Clean``: the shortest equivalent path, ``.`` for an empty one, one leading slash at most."""
    cleaned = posixpath.normpath(path) if path else "."
    return cleaned[1:] if cleaned.startswith("//") else cleaned


@lru_cache(maxsize=4096)
def compile_match(pattern: str) -> re.Pattern[str]:
    """The expression whose ``fullmatch`` decides ``go_match(pattern, …)``. Raises BadPattern."""
    # Match looks for each chunk between stars at its leftmost place and doesn't come back to it, unless it is the
    # last: an atomic group with a lazy star is the same, and can't take exponential time either.
    chunks: list[tuple[bool, str]] = []
    index = 0
    while index < len(pattern):
        star = False
        while index < len(pattern) and pattern[index] == "*":
            star, index = True, index + 1
        chunk, index = _chunk(pattern, index)
        chunks.append((star, chunk))
    last = len(chunks) - 1
    pieces = []
    for number, (star, chunk) in enumerate(chunks):
        if not star:
            pieces.append(chunk)
        elif number == last:
            pieces.append(f"[^/]*{'?' if chunk else ''}{chunk}")
        else:
            pieces.append(f"(?>[^/]*?{chunk})")
    return re.compile("".join(pieces), re.DOTALL)


def _chunk(pattern: str, index: int) -> tuple[str, int]:
    """Translate up to the next star; gives the expression and where the star is."""
    out: list[str] = []
    while index < len(pattern):
        character = pattern[index]
        if character == "*":
            break
        if character == "[":
            piece, index = _class(pattern, index + 1)
            out.append(piece)
            continue
        if character == "?":
            out.append("[^/]")
        else:
            if character == "\\":
                index += 1
                if index == len(pattern):
                    raise BadPattern(pattern)
                character = pattern[index]
            out.append(re.escape(character))
        index += 1
    return "".join(out), index


def _class(pattern: str, index: int) -> tuple[str, int]:
    """Translate a character class; ``index`` is after the ``[``."""
    negated = pattern.startswith("^", index)
    index += negated
    ranges: list[str] = []
    count = 0
    while True:
        if count and pattern.startswith("]", index):
            index += 1
            break
        low, index = _class_character(pattern, index)
        high = low
        if pattern.startswith("-", index):
            high, index = _class_character(pattern, index + 1)
        if low <= high:  # a reversed range is valid and matches nothing
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        count += 1
    if not ranges:
        return ("." if negated else "(?!)"), index
    return f"[{'^' if negated else ''}{''.join(ranges)}]", index


def _class_character(pattern: str, index: int) -> tuple[str, int]:
    if index >= len(pattern) or pattern[index] in "-]":
        raise BadPattern(pattern)
    if pattern[index] == "\\":
        index += 1
    if index + 1 >= len(pattern):  # something must follow: the closing bracket at least
        raise BadPattern(pattern)
    return pattern[index], index + 1
