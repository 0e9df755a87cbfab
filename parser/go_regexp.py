"""Go regular expressions (RE2 syntax) as far as patterns of ignore files can contain them, in Python's syntax.

Owns the reading of such an expression into atoms. Not a general translation: groups and repetitions occur only in the forms
that ``ignore_patterns.py`` generates. Reference: Go's ``regexp/syntax``.
"""

from __future__ import annotations

import re
from enum import Enum

from pybuild.values import dataclass, pattern

from .patterns import BadPattern


class AtomKind(Enum):
    NAME = "name"
    """Matches within a path element."""
    SLASH = "slash"
    DEPTH = "depth"
    """``(.*/)?``: directories at any depth, or none."""
    REST = "rest"
    """``.*``"""
    OTHER = "other"
    """May match a slash among other characters, looks around, or is repeated."""
    OR = "or"
    """``|``: what stands before it and what follows are alternatives."""


@dataclass(frozen=True, slots=True)
class Atom:
    """A piece of an expression in Python's syntax; ``literal`` is the one text it matches, if it is so."""

    text: str
    kind: AtomKind = AtomKind.NAME
    literal: str | None = None


STAR = Atom("[^/]*")
_QUESTION = Atom("[^/]")
_DEPTH = Atom("(?:.*/)?", AtomKind.DEPTH)
_REST = Atom(".*", AtomKind.REST)
_SLASH = Atom("/", AtomKind.SLASH)
_OR = Atom("|", AtomKind.OR)
_REPETITION = pattern(r"(?a:(0|[1-9]\d*)(,?)(0|[1-9]\d*)?\})")
_MAX_REPETITION = 1000

# Perl classes are ASCII in Go.
_PERL = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": "\\t\\n\\f\\r ",
}
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": "\\x00-\\x7f",
    "blank": "\\t ",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\t\\n\\v\\f\\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_LOOKING = {"A": "\\A", "b": "(?a:\\b)", "B": "(?a:\\B)", "z": "\\Z"}


def parse_go_expression(expression: str, *, pattern: str) -> list[Atom]:
    """Read ``expression``, which was made from ``pattern``. Raises BadPattern."""
    return _Reader(expression, pattern).atoms()


class _Reader:
    def __init__(self, text: str, pattern: str) -> None:
        self._text = text
        self._pattern = pattern
        self._at = 0

    def _bad(self) -> BadPattern:
        return BadPattern(self._pattern)

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at == len(self._text):
            raise self._bad()
        self._at += 1
        return self._text[self._at - 1]

    def atoms(self) -> list[Atom]:
        out: list[Atom] = []
        while self._at < len(self._text):
            if self._take("(.*/)?"):
                out.append(_DEPTH)
            elif self._take(".*"):
                out.append(_REST)
            elif self._take("[^/]*"):
                out.append(STAR)
            elif self._take("[^/]"):
                out.append(_QUESTION)
            elif self._take("\\Q"):
                quoted, _, _ = self._text[self._at :].partition("\\E")
                self._at = min(len(self._text), self._at + len(quoted) + 2)
                out.extend(_literal(character) for character in quoted)
            else:
                self._atom(out)
        return out

    def _atom(self, out: list[Atom]) -> None:
        character = self._next()
        if character == "[":
            out.append(self._class())
        elif character == "\\":
            out.append(self._escape())
        elif character == "^":
            out.append(Atom("\\A", AtomKind.OTHER))
        elif character in "*?" and out:
            # Only where a wildcard stood inside brackets. Go refuses a repetition of a repetition.
            previous = out.pop()
            if previous.text.endswith("*"):
                raise self._bad()
            lazy = "?" if self._take("?") else ""
            out.append(Atom(f"(?:{previous.text}){character}{lazy}", AtomKind.OTHER))
        elif character == "{" and (found := _REPETITION.match(self._text, self._at)) and (found[2] or not found[3]):
            self._at = found.end()
            self._repeat(out, int(found[1]), int(found[3]) if found[3] else None if found[2] else int(found[1]))
        elif character == "|":
            out.append(_OR)
        elif character in "*?().+":
            raise self._bad()
        else:
            out.append(_literal(character))

    def _repeat(self, out: list[Atom], least: int, most: int | None) -> None:
        """``x{2}``, ``x{2,}``, ``x{2,3}``. At the beginning the anchor is what is repeated, and with 0 left out."""
        if least > _MAX_REPETITION or (most is not None and not least <= most <= _MAX_REPETITION):
            raise self._bad()
        if not out:
            out.append(Atom("(?:)?" if least else "(?s:.*)?", AtomKind.OTHER))
            return
        previous = out.pop()
        if previous is _OR or (previous.literal is None and previous.text.endswith(("*", "?", "+", "}"))):
            raise self._bad()
        count = f"{{{least},{'' if most is None else most}}}"
        out.append(Atom(f"(?:{previous.text}){count}", AtomKind.OTHER))

    def _escape(self) -> Atom:
        letter = self._next()
        if letter in _LOOKING:
            return Atom(_LOOKING[letter], AtomKind.OTHER)
        if letter.lower() in _PERL:
            ranges = _PERL[letter.lower()]
            if letter.islower():
                return Atom(f"[{ranges}]")
            return Atom(f"[^{ranges}]", AtomKind.OTHER)
        return _literal(self._escaped(letter))

    def _escaped(self, letter: str) -> str:
        """The character that an escape stands for, ``letter`` having been read."""
        if letter < "\x80" and not letter.isalnum():
            return letter
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter in "01234567":
            # Backslash and one digit would be a back reference, which Go refuses, unless it is 0 or more octal digits follow.
            digits = letter
            if letter != "0" and self._text[self._at : self._at + 1] not in tuple("01234567"):
                raise self._bad()
            while len(digits) < 3 and self._text[self._at : self._at + 1] in tuple("01234567"):
                digits += self._next()
            return chr(int(digits, 8))
        if letter == "x":
            digits = self._hexadecimal()
            value = int(digits, 16)
            if value <= 0x10FFFF:
                return chr(value)
        raise self._bad()

    def _hexadecimal(self) -> str:
        if self._take("{"):
            digits, closed, _ = self._text[self._at :].partition("}")
            self._at += len(digits) + 1
            found = re.fullmatch("[0-9A-Fa-f]{1,8}", digits) if closed else None
        else:
            digits = self._text[self._at : self._at + 2]
            self._at += 2
            found = re.fullmatch("[0-9A-Fa-f]{2}", digits)
        if found is None:
            raise self._bad()
        return digits

    def _class(self) -> Atom:
        negated = self._take("^")
        ranges: list[str] = []
        first = True
        while first or not self._take("]"):
            first = False
            if self._take("[:"):
                name, closed, _ = self._text[self._at :].partition(":]")
                if closed:
                    self._at += len(name) + 2
                    ranges.append(self._posix(name))
                    continue
                self._at -= 2
            if self._text.startswith("\\", self._at):
                letter = self._text[self._at + 1 : self._at + 2]
                if letter and letter.lower() in _PERL:
                    self._at += 2
                    ranges.append(_PERL[letter] if letter.islower() else f"\\{letter}")
                    continue
            low = self._class_character()
            high = low
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._class_character()
                if high < low:
                    raise self._bad()
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        text = f"(?a:[{'^' if negated else ''}{''.join(ranges)}])"
        crosses = re.fullmatch(text, "/") is not None
        return Atom(text, AtomKind.OTHER if crosses else AtomKind.NAME)

    def _class_character(self) -> str:
        character = self._next()
        return self._escaped(self._next()) if character == "\\" else character

    def _posix(self, name: str) -> str:
        if name.startswith("^"):
            positive = _POSIX.get(name[1:])
            if positive is None:
                raise self._bad()
            matching = re.compile(f"[{positive}]")
            others = "".join(f"\\x{code:02x}" for code in range(128) if not matching.match(chr(code)))
            return others + "\\x80-\\U0010ffff"
        if name not in _POSIX:
            raise self._bad()
        return _POSIX[name]


def _literal(character: str) -> Atom:
    return _SLASH if character == "/" else Atom(re.escape(character), literal=character)
