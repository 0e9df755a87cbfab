"""Reads a word into literal text and variable references: quotes, escapes and the ``${…}`` forms.

Owns the syntax of words. Never knows a variable's value, nor what an instruction does with the word.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from pybuild.values import dataclass, pattern

_DEPTH_LIMIT = 100


class SubstitutionProblem(Exception):
    """Why a word can't be substituted, in BuildKit's words."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that stands for itself; ``quoted``: quotes or an escape protect its blanks from splitting words."""

    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Variable:
    """A reference to ``name``.

    ``operator``: ``""``, or one of ``:- - :+ + :? ? # % / //`` (``##`` and ``%%`` are ``#`` and ``%`` with a ``word`` that begins
    with that character); ``word`` is what follows it: default, message or pattern; ``replacement``: of ``/`` and ``//``;
    ``braces``: written as ``${name}``; ``quoted``: inside double quotes.
    """

    name: str
    operator: str = ""
    word: tuple[Part, ...] = ()
    replacement: tuple[Part, ...] = ()
    braces: bool = False
    quoted: bool = False


Part: TypeAlias = Literal | Variable


@dataclass(frozen=True, slots=True)
class Mode:
    """How a word is read. ``keep_quotes`` and ``keep_escapes``: they do what they do, and stay; ``plain_quotes``: quotes are
    characters like others."""

    escape: str = "\\"
    keep_quotes: bool = False
    keep_escapes: bool = False
    plain_quotes: bool = False


def scan_word(text: str, mode: Mode) -> tuple[Part, ...]:
    """The parts of a word. Raises ``SubstitutionProblem``."""
    # Go's text/scanner, on which BuildKit's lexer stands, drops a byte-order mark at the beginning.
    scanner = _Scanner(text.removeprefix("\ufeff"), mode)
    return tuple(scanner.until("", keep_escapes=mode.keep_escapes, depth=0))


_SPECIAL_PARAMETERS = frozenset("@*#?-$!0")
_MISSING_BRACE = "syntax error: missing '}'"


class _Scanner:
    __slots__ = ("_at", "_escape", "_keep_quotes", "_plain_quotes", "_text")

    def __init__(self, text: str, mode: Mode) -> None:
        self._text = text
        self._at = 0
        self._escape = mode.escape
        self._keep_quotes = mode.keep_quotes
        self._plain_quotes = mode.plain_quotes

    def until(self, stop: str, *, keep_escapes: bool, depth: int) -> list[Part]:
        """Parts up to and including the character ``stop``; to the end where ``stop`` is empty."""
        if depth > _DEPTH_LIMIT:
            raise SubstitutionProblem("variables are nested too deeply")
        text, escape = self._text, self._escape
        plain = _PLAIN[escape, stop]
        parts: list[Part] = []
        while self._at < len(text):
            match = plain.match(text, self._at)
            if match:
                parts.append(Literal(match[0]))
                self._at = match.end()
                continue
            char = text[self._at]
            if char == stop:
                self._at += 1
                return _joined(parts)
            if char == "$":
                parts.append(self._dollar(quoted=False, depth=depth))
            elif char == "'" and not self._plain_quotes:
                parts.append(self._single_quoted())
            elif char == '"' and not self._plain_quotes:
                parts.extend(self._double_quoted(keep_escapes=keep_escapes, depth=depth))
            elif char == escape:
                if keep_escapes:
                    parts.append(Literal(char, True))
                following = text[self._at + 1 : self._at + 2]
                if following:
                    parts.append(Literal(following, True))
                self._at += 2
            elif char == "<":
                parts.append(self._less_than())
            else:
                parts.append(Literal(char))
                self._at += 1
        if stop:
            raise SubstitutionProblem(f"unexpected end of statement while looking for matching {stop}")
        return _joined(parts)

    def _less_than(self) -> Literal:
        # Blanks after << don't part words: a here-document's name may stand behind them.
        text = self._text
        start = self._at
        self._at += 1
        if not text.startswith("<", self._at):
            return Literal("<", True)
        self._at += 1
        while self._at < len(text) and text[self._at] in "\t\r ":
            self._at += 1
        return Literal(text[start : self._at], True)

    def _single_quoted(self) -> Literal:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            self._at = len(self._text)
            raise SubstitutionProblem("unexpected end of statement while looking for matching single-quote")
        inner = self._text[self._at : end + 1] if self._keep_quotes else self._text[self._at + 1 : end]
        self._at = end + 1
        return Literal(inner, True)

    def _double_quoted(self, *, keep_escapes: bool, depth: int) -> list[Part]:
        text, escape = self._text, self._escape
        parts: list[Part] = [Literal('"' if self._keep_quotes else "", True)]
        self._at += 1
        plain = _QUOTED_PLAIN[escape]
        while self._at < len(text):
            match = plain.match(text, self._at)
            if match:
                parts.append(Literal(match[0], True))
                self._at = match.end()
                continue
            char = text[self._at]
            if char == '"':
                self._at += 1
                if self._keep_quotes:
                    parts.append(Literal('"', True))
                return parts
            if char == "$":
                parts.append(self._dollar(quoted=True, depth=depth))
                continue
            following = text[self._at + 1 : self._at + 2]
            self._at += 1
            if keep_escapes:
                parts.append(Literal(escape, True))
            if following in ('"', "$", escape):
                parts.append(Literal(following, True))
                self._at += 1
            elif following:
                parts.append(Literal(escape, True))
        raise SubstitutionProblem("unexpected end of statement while looking for matching double-quote")

    def _dollar(self, *, quoted: bool, depth: int) -> Part:
        text = self._text
        self._at += 1
        if not text.startswith("{", self._at):
            name = self._name()
            return Variable(name, quoted=quoted) if name else Literal("$", quoted)
        self._at += 1
        following = text[self._at : self._at + 1]
        if not following:
            raise SubstitutionProblem(_MISSING_BRACE)
        if following in "{}:":
            raise SubstitutionProblem("syntax error: bad substitution")
        name = self._name()
        operator = text[self._at : self._at + 1]
        self._at += 1
        if operator == "}":
            return Variable(name, braces=True, quoted=quoted)
        if operator == "/":
            return self._replacement(name, quoted=quoted, depth=depth)
        if operator == ":":
            operator += text[self._at : self._at + 1]
            self._at += 1
            if operator in (":#", ":%"):
                raise SubstitutionProblem(f"unsupported modifier ({operator}) in substitution")
        elif operator not in ("+", "-", "?", "#", "%"):
            self._unsupported(operator)
        word = self._operand("}", keep_escapes=operator in ("#", "%"), depth=depth)
        if operator not in (":-", "-", ":+", "+", ":?", "?", "#", "%"):
            self._unsupported(operator)
        return Variable(name, operator, word, braces=True, quoted=quoted)

    def _unsupported(self, operator: str) -> None:
        if not operator:
            raise SubstitutionProblem(_MISSING_BRACE)
        raise SubstitutionProblem(f"unsupported modifier ({operator}) in substitution")

    def _replacement(self, name: str, *, quoted: bool, depth: int) -> Variable:
        operator = "/"
        if self._text.startswith("/", self._at):
            operator = "//"
            self._at += 1
        pattern = self._operand("/", keep_escapes=True, depth=depth)
        replacement = self._operand("}", keep_escapes=True, depth=depth)
        return Variable(name, operator, pattern, replacement, braces=True, quoted=quoted)

    def _operand(self, stop: str, *, keep_escapes: bool, depth: int) -> tuple[Part, ...]:
        try:
            return tuple(self.until(stop, keep_escapes=keep_escapes, depth=depth + 1))
        except SubstitutionProblem:
            if self._at >= len(self._text):
                raise SubstitutionProblem(
                    "syntax error: missing '/' in ${}" if stop == "/" else _MISSING_BRACE
                ) from None
            raise

    def _name(self) -> str:
        text, start = self._text, self._at
        at = start
        if at < len(text) and text[at].isdecimal():
            while at < len(text) and text[at].isdecimal():
                at += 1
        elif at < len(text) and text[at] in _SPECIAL_PARAMETERS:
            at += 1
        else:
            while at < len(text) and (text[at].isalpha() or text[at].isdecimal() or text[at] == "_"):
                at += 1
        self._at = at
        return text[start:at]


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbouring literals that are equally quoted made one, empty ones left out."""
    joined: list[Part] = []
    texts: list[str] = []
    quoted = False
    for part in parts:
        if isinstance(part, Literal) and part.quoted == quoted:
            texts.append(part.text)
            continue
        if text := "".join(texts):
            joined.append(Literal(text, quoted))
        texts.clear()
        if isinstance(part, Literal):
            quoted = part.quoted
            texts.append(part.text)
        else:
            joined.append(part)
    if text := "".join(texts):
        joined.append(Literal(text, quoted))
    return joined


def _run(excluded: str) -> re.Pattern[str]:
    return pattern(f"[^{re.escape(excluded)}]++")


# What needs no look, by escape character and by what ends the operand.
_PLAIN = {(escape, stop): _run("$'\"<" + escape + stop) for escape in ("\\", "`") for stop in ("", "}", "/")}
_QUOTED_PLAIN = {escape: _run('$"' + escape) for escape in ("\\", "`")}
