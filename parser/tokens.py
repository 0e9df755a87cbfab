"""Splits a logical line into the tokens of grammar.lark.

Owns the word rules, which differ from instruction to instruction: blanks alone part the words of COPY, quotes count in ENV,
RUN takes the rest of the line. Decides JSON form against shell form. Never judges the order of tokens: the grammar does.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .go_text import SPACE
from .heredocs import HeredocWord, find_heredocs
from .suggest import closest, did_you_mean

KEYWORDS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_KEYWORDS = frozenset(KEYWORDS)


class Token(NamedTuple):
    """``type``: a terminal of the grammar; ``text``: its value (of a flag without quotes and escapes, of a JSON string decoded);
    ``start`` and ``end``: what it covers in the logical line; ``heredoc``: of a HEREDOC, what it opens."""

    type: str
    text: str
    start: int
    end: int
    heredoc: HeredocWord | None = None


class TokenError(Exception):
    """A line can't be split. ``start`` and ``end``: the culprit; ``instruction``: whether BuildKit names the line in its message."""

    def __init__(self, message: str, start: int, end: int, *, instruction: bool, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.end = end
        self.instruction = instruction
        self.hint = hint


_ARRAY_FORMS = frozenset({"RUN", "CMD", "ENTRYPOINT", "SHELL"})
_TEXT_FORMS = frozenset({"USER", "WORKDIR", "STOPSIGNAL", "MAINTAINER"})
_BLANKS = "\t\v\f\r "
_BLANK_RUN = re.compile(r"[\t\v\f\r ]+")
_NONBLANK_RUN = re.compile(r"[^\t\v\f\r ]+")
_UNICODE_SPACE = re.compile(f"[{SPACE}]+")


def tokenize(line: str, *, escape: str) -> list[Token]:
    """The tokens of one instruction. Raises ``TokenError``."""
    tokens: list[Token] = []
    end = len(line.rstrip(SPACE))
    start = len(line) - len(line.lstrip(SPACE))
    heredocs = find_heredocs(line) if "<<" in line else []
    _instruction(line, start, end, escape, heredocs, tokens)
    return tokens


def _instruction(
    line: str, start: int, end: int, escape: str, heredocs: list[HeredocWord], tokens: list[Token]
) -> None:
    while True:
        match = _NONBLANK_RUN.match(line, start, end)
        stop = match.end() if match else start
        keyword = line[start:stop]
        # Outside ASCII, letters such as the long s have an upper case that would make a keyword of them.
        kind = keyword.upper() if keyword.isascii() else ""
        if kind not in _KEYWORDS:
            raise TokenError(
                did_you_mean(f"unknown instruction: {keyword}", keyword, KEYWORDS, case_sensitive=False),
                start,
                stop,
                instruction=True,
                hint=None
                if closest(keyword, KEYWORDS, case_sensitive=False)
                else f"If this continues the line above, end that line with {escape}",
            )
        tokens.append(Token(kind, keyword, start, stop))
        at = stop
        if stop < end:
            separator = _BLANK_RUN.match(line, stop, end)
            at = _flags(line, separator.end() if separator else stop, end, escape, tokens)
        # BuildKit trims Unicode white space around the arguments, though only ASCII blanks part words.
        space = _UNICODE_SPACE.match(line, at, end)
        start = space.end() if space else at
        if kind != "ONBUILD":
            break
        if start >= end:
            return
    if start < end:
        _arguments(kind, line, start, end, escape, [h for h in heredocs if h.start >= start], tokens)


def _arguments(
    kind: str, line: str, start: int, end: int, escape: str, heredocs: list[HeredocWord], tokens: list[Token]
) -> None:
    if kind in _ARRAY_FORMS:
        _command(line, start, end, heredocs if kind == "RUN" else [], tokens)
    elif kind in _TEXT_FORMS:
        tokens.append(Token("TEXT", line[start:end], start, end))
    elif kind in ("COPY", "ADD"):
        if not _json_array(line, start, end, tokens):
            _operands(line, start, end, heredocs, tokens)
    elif kind == "VOLUME":
        if not _json_array(line, start, end, tokens):
            _words(line, start, end, tokens)
    elif kind == "EXPOSE":
        _words(line, start, end, tokens)
    elif kind == "FROM":
        _words(line, start, end, tokens)
        if len(tokens) >= 3 and tokens[-2].type == "WORD" and tokens[-2].text.lower() == "as":
            tokens[-2] = tokens[-2]._replace(type="AS")
    elif kind == "ARG":
        for word, begin, stop in quoted_words(line, start, end, escape):
            _assignment(word, begin, stop, tokens)
    elif kind in ("ENV", "LABEL"):
        _pairs(line, start, end, escape, tokens)
    else:
        _healthcheck(line, start, end, tokens)


def _words(line: str, start: int, end: int, tokens: list[Token]) -> None:
    tokens.extend(Token("WORD", m[0], m.start(), m.end()) for m in _NONBLANK_RUN.finditer(line, start, end))


def _operands(line: str, start: int, end: int, heredocs: list[HeredocWord], tokens: list[Token]) -> None:
    at = start
    for heredoc in heredocs:
        _words(line, at, heredoc.start, tokens)
        tokens.append(Token("HEREDOC", line[heredoc.start : heredoc.end], heredoc.start, heredoc.end, heredoc))
        at = heredoc.end
    _words(line, at, end, tokens)


def _command(line: str, start: int, end: int, heredocs: list[HeredocWord], tokens: list[Token]) -> None:
    if _json_array(line, start, end, tokens):
        return
    tokens.append(Token("TEXT", line[start:end], start, end))
    tokens.extend(Token("HEREDOC", line[h.start : h.end], h.start, h.end, h) for h in heredocs)


def _healthcheck(line: str, start: int, end: int, tokens: list[Token]) -> None:
    separator = _UNICODE_SPACE.search(line, start, end)
    stop, rest = (separator.start(), separator.end()) if separator else (end, end)
    word = line[start:stop]
    kind = {"NONE": "NONE", "CMD": "PROBE"}.get(word.upper(), "WORD")
    tokens.append(Token(kind, word, start, stop))
    if rest < end:
        _command(line, rest, end, [], tokens)


def _pairs(line: str, start: int, end: int, escape: str, tokens: list[Token]) -> None:
    words = quoted_words(line, start, end, escape)
    if words and "=" not in words[0][0]:
        # The legacy form: the key ends at the first blank, whatever quotes say; the value is the rest of the line.
        separator = _BLANK_RUN.search(line, start, end)
        stop = separator.start() if separator else end
        tokens.append(Token("KEY", line[start:stop], start, stop))
        if separator:
            tokens.append(Token("TEXT", line[separator.end() : end], separator.end(), end))
        return
    for word, begin, stop in words:
        _assignment(word, begin, stop, tokens)


def _assignment(word: str, start: int, end: int, tokens: list[Token]) -> None:
    key, equal, value = word.partition("=")
    middle = start + len(key)
    tokens.append(Token("KEY", key, start, middle))
    if equal:
        tokens.append(Token("EQUAL", "=", middle, middle + 1))
        tokens.append(Token("VALUE", value, middle + 1, end))


def _word_pattern(escape: str) -> re.Pattern[str]:
    # Words of ARG, ENV and LABEL: quotes join, the escape character takes the next one along (not inside '…'), an
    # unclosed quote lasts to the end. The alternatives begin differently, so nothing is ever tried twice.
    e = re.escape(escape)
    return re.compile(
        rf"""(?:[^{SPACE}'"{e}]++|{e}.|"(?:[^"{e}]|{e}.)*+(?:"|{e}?\Z|\Z)|'[^']*+(?:'|\Z)|{e}\Z)++""", re.DOTALL
    )


_WORD_PATTERNS = {escape: _word_pattern(escape) for escape in ("\\", "`")}


def quoted_words(line: str, start: int, end: int, escape: str) -> list[tuple[str, int, int]]:
    """(word as written, start, end) of each word where quotes and escapes may hold blanks. A lone escape at the end is dropped."""
    found = []
    text = line[start:end]
    for match in _WORD_PATTERNS[escape].finditer(text):
        word = match[0]
        if match.end() == len(text) and word.endswith(escape) and _ends_in_lone_escape(word, escape):
            word = word[:-1]
            if not word:
                continue
        found.append((word, start + match.start(), start + match.start() + len(word)))
    return found


def _ends_in_lone_escape(word: str, escape: str) -> bool:
    quote = ""
    at = 0
    while at < len(word):
        char = word[at]
        if char == escape and quote != "'":
            if at + 1 == len(word):
                return True
            at += 1
        elif quote:
            if char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        at += 1
    return False


def _flags(line: str, start: int, end: int, escape: str, tokens: list[Token]) -> int:
    """Adds the FLAG tokens; returns where the arguments begin. Quotes and escapes are removed from flags here, as in BuildKit."""
    at = start
    while True:
        space = _UNICODE_SPACE.match(line, at, end)
        begin = at = space.end() if space else at
        if not line.startswith("--", at, end):
            return at
        parts: list[str] = []
        quote = ""
        while at < end:
            char = line[at]
            if char == escape:
                at += 1
                if at < end:
                    parts.append(line[at])
            elif quote:
                if char == quote:
                    quote = ""
                else:
                    parts.append(char)
            elif char in "'\"":
                quote = char
            elif char in SPACE:
                break
            else:
                parts.append(char)
            at += 1
        text = "".join(parts)
        if text == "--":
            return min(at, end)
        tokens.append(Token("FLAG", text, begin, min(at, end)))


_JSON_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_JSON_SPACE = re.compile(r"[ \t\n\r]*+")


def _json_array(line: str, start: int, end: int, tokens: list[Token]) -> bool:
    """Adds the tokens of a JSON array of strings; False if the text isn't JSON: then it is no array but text."""
    if line[start] != "[":
        return False
    found = [Token("LSQB", "[", start, start + 1)]
    at = _skip(line, start + 1, end)
    closed = False
    if at < end and line[at] == "]":
        closed = True
    else:
        while True:
            match = _JSON_STRING.match(line, at, end)
            if match is None:
                break
            found.append(Token("STRING", decode_json_string(match[0]), match.start(), match.end()))
            at = _skip(line, match.end(), end)
            if at < end and line[at] == ",":
                found.append(Token("COMMA", ",", at, at + 1))
                at = _skip(line, at + 1, end)
                continue
            closed = at < end and line[at] == "]"
            break
    if closed and _skip(line, at + 1, end) == end:
        found.append(Token("RSQB", "]", at, at + 1))
        tokens.extend(found)
        return True
    if _is_json(line[start:end]):
        raise TokenError(
            "when using JSON array syntax, arrays must be comprised of strings only",
            min(at, end - 1),
            end,
            instruction=False,
            hint='Put double quotes around every element: ["a", "1"]',
        )
    return False


def _skip(line: str, at: int, end: int) -> int:
    match = _JSON_SPACE.match(line, at, end)
    return match.end() if match else at


def decode_json_string(literal: str) -> str:
    """The value of a JSON string, quotes included."""
    if "\\" not in literal:
        return literal[1:-1]
    import json  # most files hold no escapes in their strings

    text: str = json.loads(literal)
    # Half of a surrogate pair can't be encoded; Go replaces it as well.
    return re.sub("[\ud800-\udfff]", "\ufffd", text) if re.search(r"\\u[dD][89a-fA-F]", literal) else text


def _is_json(text: str) -> bool:
    import json

    try:
        json.loads(text, parse_constant=_refuse, parse_int=float)
    except (ValueError, OverflowError):
        return False
    except RecursionError:
        # Deeper than any array of strings: not in JSON form.
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(constant)
