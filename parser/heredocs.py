"""Finds the words of a line that open here-documents, as BuildKit's shell lexer finds them.

Owns only the recognition (``<<EOF`` as a word of its own, outside of quotes); bodies are read elsewhere.
"""

from __future__ import annotations

import re

from pybuild.values import dataclass, pattern

from .go_text import SPACE

_OPENING = pattern(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)", re.DOTALL)
_PLAIN = pattern(rf"[^{SPACE}'\"\\<$]++")
_MODIFIERS = "-+?#%/}"


@dataclass(frozen=True, slots=True)
class HeredocWord:
    """An opening: ``name`` without quotes; ``certain`` False where BuildKit's lexer gives up on the line and finds none.

    Shell syntax that BuildKit's lexer doesn't know (``${x:=y}``, ``${list[@]}``) makes it overlook here-documents. Here
    they are found, but only count if their end is found too.
    """

    name: str
    file_descriptor: int
    expand: bool
    strip_tabs: bool
    start: int
    end: int
    certain: bool


def opens_heredoc(word: str) -> bool:
    """Whether a word by itself would open a here-document."""
    try:
        return "<<" in word and _opening(word, 0, len(word), True) is not None
    except _Unbalanced:
        return False


class _Unbalanced(Exception):
    """A quote or a brace that nothing closes: no here-documents in such a line."""


def find_heredocs(line: str) -> list[HeredocWord]:
    """All openings in a line, in order."""
    try:
        return _scan(line)
    except (_Unbalanced, RecursionError):
        return []


def _scan(line: str) -> list[HeredocWord]:
    found: list[tuple[int, int]] = []
    certain = True
    at, size = 0, len(line)
    word = -1
    while at < size:
        char = line[at]
        if char in SPACE:
            if word >= 0:
                found.append((word, at))
                word = -1
            at += 1
            continue
        if word < 0:
            word = at
        match = _PLAIN.match(line, at)
        if match:
            at = match.end()
        elif char == "\\":
            at = min(at + 2, size)
        elif char == "'":
            at = _single_quoted(line, at)
        elif char == '"':
            at, known = _double_quoted(line, at)
            certain = certain and known
        elif char == "$":
            at, known = _dollar(line, at)
            certain = certain and known
        elif line.startswith("<<", at):
            # Blanks may stand between << and the name.
            at += 2
            while at < size and line[at] in "\t\r ":
                at += 1
        else:
            at += 1
    if word >= 0:
        found.append((word, size))
    openings = []
    for start, end in found:
        opening = _opening(line[start:end], start, end, certain)
        if opening is not None:
            openings.append(opening)
    return openings


def _opening(word: str, start: int, end: int, certain: bool) -> HeredocWord | None:
    match = _OPENING.fullmatch(word)
    if match is None or not match[3]:
        return None
    quoted, name = match[3], _unquote(match[3])
    if not name:
        return None
    expand = quoted.count("'") + quoted.count('"') == name.count("'") + name.count('"')
    descriptor = int(match[1]) if match[1] and len(match[1]) < 10 else 0
    return HeredocWord(name, descriptor, expand, match[2] == "-", start, end, certain)


def _unquote(word: str) -> str:
    out: list[str] = []
    at, size = 0, len(word)
    while at < size:
        char = word[at]
        if char == "\\":
            out.append(word[at + 1 : at + 2])
            at += 2
        elif char == "'":
            end = _single_quoted(word, at)
            out.append(word[at + 1 : end - 1])
            at = end
        elif char == '"':
            at += 1
            while at < size and word[at] != '"':
                if word[at] == "\\" and word[at + 1 : at + 2] in ('"', "$", "\\"):
                    at += 1
                out.append(word[at : at + 1])
                at += 1
            at += 1
        else:
            out.append(char)
            at += 1
    return "".join(out)


def _single_quoted(line: str, at: int) -> int:
    end = line.find("'", at + 1)
    if end < 0:
        raise _Unbalanced
    return end + 1


def _double_quoted(line: str, at: int) -> tuple[int, bool]:
    known = True
    at += 1
    while at < len(line):
        char = line[at]
        if char == '"':
            return at + 1, known
        if char == "\\":
            at += 2
        elif char == "$":
            at, inner = _dollar(line, at)
            known = known and inner
        else:
            at += 1
    raise _Unbalanced


def _dollar(line: str, at: int) -> tuple[int, bool]:
    """The end of ``$name`` or ``${…}``, and whether BuildKit's lexer knows the form."""
    if not line.startswith("{", at + 1):
        return at + 1, True
    at += 2
    name_end = at
    while name_end < len(line) and (line[name_end].isalnum() or line[name_end] == "_"):
        name_end += 1
    if name_end == at and name_end < len(line) and line[name_end] in "@*#?-$!":
        name_end += 1
    modifier = line[name_end : name_end + 2]
    known = modifier[:1] in _MODIFIERS if modifier[:1] != ":" else modifier[1:] in ("-", "+", "?")
    known = known and name_end > at
    end, inner = _until_brace(line, name_end)
    return end, known and inner


def _until_brace(line: str, at: int) -> tuple[int, bool]:
    known = True
    while at < len(line):
        char = line[at]
        if char == "}":
            return at + 1, known
        if char == "\\":
            at += 2
        elif char == "'":
            at = _single_quoted(line, at)
        elif char == '"':
            at, inner = _double_quoted(line, at)
            known = known and inner
        elif char == "$":
            at, inner = _dollar(line, at)
            known = known and inner
        else:
            at += 1
    raise _Unbalanced
