"""Splits a logical line into the tokens of grammar.lark.

Owns the word rules, which differ from instruction to instruction: blanks alone part the words of COPY, quotes count in ENV,
RUN takes the rest of the line. Decides JSON form against shell form. Never judges the order of tokens: the grammar does.
"""

from __future__ import annotations

import re

from pybuild.values import dataclass, pattern, replace

from .go_text import SPACE
from .heredocs import HeredocWord, find_heredocs
from .suggest import closest, did_you_mean

KEYWORDS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_KEYWORDS = frozenset(KEYWORDS)


@dataclass(frozen=True, slots=True)
class Token:
    """``type``: a terminal of the grammar; ``text``: its value (of a flag without quotes and escapes, of a JSON string decoded);
    ``start`` and ``end``: what it covers in the logical line; ``heredoc``: of a HEREDOC, what it opens."""

    type: str
    text: str
    start: int
    end: int
    heredoc: HeredocWord | None = None


class TokenError(Exception):
    """A line is no instruction. ``start`` and ``end``: the culprit; ``instruction``: whether BuildKit names the line in its message."""

    def __init__(self, message: str, *, start: int, end: int, instruction: bool, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.end = end
        self.instruction = instruction
        self.hint = hint

    @classmethod
    def at(cls, message: str, token: Token, *, hint: str | None = None, instruction: bool = True) -> TokenError:
        """The error whose culprit is a token."""
        return cls(message, start=token.start, end=token.end, instruction=instruction, hint=hint)


_BLANK_RUN = pattern(r"[\t\v\f\r ]+")
_NONBLANK_RUN = pattern(r"[^\t\v\f\r ]+")
_UNICODE_SPACE = pattern(f"[{SPACE}]+")
_JSON_STRING = pattern(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_JSON_SPACE = pattern(r"[ \t\n\r]*+")


def tokenize(line: str, *, escape: str) -> list[Token]:
    """The tokens of one instruction. Raises ``TokenError``."""
    tokenizer = _Tokenizer(line, escape)
    tokenizer.instruction()
    return tokenizer.tokens


class _Tokenizer:
    """Goes once over a line. ``tokens`` grow as it goes; methods take where they begin and read to the line's end."""

    __slots__ = ("_end", "_escape", "_heredocs", "_line", "tokens")

    def __init__(self, line: str, escape: str) -> None:
        self.tokens: list[Token] = []
        self._line = line
        self._escape = escape
        self._end = len(line.rstrip(SPACE))
        self._heredocs = find_heredocs(line) if "<<" in line else []

    def instruction(self) -> None:
        start = self._skip_space(0)
        while True:
            kind, stop = self._keyword(start)
            separator = _BLANK_RUN.match(self._line, stop, self._end)
            start = self._flags(separator.end()) if separator else stop
            # BuildKit trims Unicode white space around the arguments, though only ASCII blanks part words.
            start = self._skip_space(start)
            if start >= self._end:
                return
            if kind != "ONBUILD":
                break
        self._heredocs = [heredoc for heredoc in self._heredocs if heredoc.start >= start]
        self._arguments(kind, start)

    def _keyword(self, start: int) -> tuple[str, int]:
        match = _NONBLANK_RUN.match(self._line, start, self._end)
        stop = match.end() if match else start
        keyword = self._line[start:stop]
        # Outside ASCII, letters such as the long s have an upper case that would make a keyword of them.
        kind = keyword.upper() if keyword.isascii() else ""
        if kind not in _KEYWORDS:
            hint = f"If this continues the line above, end that line with {self._escape}"
            raise TokenError(
                did_you_mean(f"unknown instruction: {keyword}", keyword, KEYWORDS, case_sensitive=False),
                start=start,
                end=stop,
                instruction=True,
                hint=None if closest(keyword, KEYWORDS, case_sensitive=False) else hint,
            )
        self.tokens.append(Token(kind, keyword, start, stop))
        return kind, stop

    def _flags(self, start: int) -> int:
        """Adds the FLAG tokens; gives where the arguments begin. Quotes and escapes are removed from flags here, as in BuildKit."""
        line, end, escape = self._line, self._end, self._escape
        at = start
        while True:
            begin = at = self._skip_space(at)
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
            at = min(at, end)
            text = "".join(parts)
            if text == "--":
                return at
            self.tokens.append(Token("FLAG", text, begin, at))

    def _arguments(self, kind: str, start: int) -> None:
        match kind:
            case "RUN" | "CMD" | "ENTRYPOINT" | "SHELL":
                self._command(start, heredocs=kind == "RUN")
            case "USER" | "WORKDIR" | "STOPSIGNAL" | "MAINTAINER":
                self._text(start)
            case "COPY" | "ADD":
                if not self._array(start):
                    self._operands(start)
            case "VOLUME":
                if not self._array(start):
                    self._words(start, self._end)
            case "EXPOSE":
                self._words(start, self._end)
            case "FROM":
                self._words(start, self._end)
                if len(self.tokens) >= 3 and self.tokens[-2].type == "WORD" and self.tokens[-2].text.lower() == "as":
                    self.tokens[-2] = replace(self.tokens[-2], type="AS")
            case "ENV" | "LABEL":
                self._pairs(start, legacy=True)
            case "ARG":
                self._pairs(start, legacy=False)
            case _:
                self._healthcheck(start)

    def _text(self, start: int) -> None:
        self.tokens.append(Token("TEXT", self._line[start : self._end], start, self._end))

    def _words(self, start: int, end: int) -> None:
        self.tokens.extend(
            Token("WORD", match[0], match.start(), match.end())
            for match in _NONBLANK_RUN.finditer(self._line, start, end)
        )

    def _operands(self, start: int) -> None:
        at = start
        for heredoc in self._heredocs:
            self._words(at, heredoc.start)
            self._heredoc(heredoc)
            at = heredoc.end
        self._words(at, self._end)

    def _heredoc(self, heredoc: HeredocWord) -> None:
        text = self._line[heredoc.start : heredoc.end]
        self.tokens.append(Token("HEREDOC", text, heredoc.start, heredoc.end, heredoc))

    def _command(self, start: int, *, heredocs: bool) -> None:
        if self._array(start):
            return
        self._text(start)
        for heredoc in self._heredocs if heredocs else ():
            self._heredoc(heredoc)

    def _healthcheck(self, start: int) -> None:
        separator = _UNICODE_SPACE.search(self._line, start, self._end)
        stop, rest = (separator.start(), separator.end()) if separator else (self._end, self._end)
        word = self._line[start:stop]
        kind = {"NONE": "NONE", "CMD": "PROBE"}.get(word.upper(), "WORD")
        self.tokens.append(Token(kind, word, start, stop))
        if rest < self._end:
            self._command(rest, heredocs=False)

    def _pairs(self, start: int, *, legacy: bool) -> None:
        words = quoted_words(self._line[start : self._end], self._escape)
        if legacy and words and "=" not in words[0][0]:
            # The legacy form: the key ends at the first blank, whatever quotes say; the value is the rest of the line.
            separator = _BLANK_RUN.search(self._line, start, self._end)
            stop = separator.start() if separator else self._end
            self.tokens.append(Token("KEY", self._line[start:stop], start, stop))
            if separator:
                self._text(separator.end())
            return
        for word, offset in words:
            begin = start + offset
            key, equal, value = word.partition("=")
            middle = begin + len(key)
            self.tokens.append(Token("KEY", key, begin, middle))
            if equal:
                self.tokens.append(Token("EQUAL", "=", middle, middle + 1))
                self.tokens.append(Token("VALUE", value, middle + 1, begin + len(word)))

    def _array(self, start: int) -> bool:
        """Adds the tokens of a JSON array of strings; False if the text isn't JSON: then it is no array but text."""
        line, end = self._line, self._end
        if line[start] != "[":
            return False
        found = [Token("LSQB", "[", start, start + 1)]
        at = self._skip_json_space(start + 1)
        closed = at < end and line[at] == "]"
        while not closed:
            match = _JSON_STRING.match(line, at, end)
            if match is None:
                break
            found.append(Token("STRING", decode_json_string(match[0]), match.start(), match.end()))
            at = self._skip_json_space(match.end())
            if at < end and line[at] == ",":
                found.append(Token("COMMA", ",", at, at + 1))
                at = self._skip_json_space(at + 1)
                continue
            closed = at < end and line[at] == "]"
            break
        if closed and self._skip_json_space(at + 1) == end:
            self.tokens += found
            self.tokens.append(Token("RSQB", "]", at, at + 1))
            return True
        if _is_json(line[start:end]):
            raise TokenError(
                "when using JSON array syntax, arrays must be comprised of strings only",
                start=min(at, end - 1),
                end=end,
                instruction=False,
                hint='Put double quotes around every element: ["a", "1"]',
            )
        return False

    def _skip_space(self, at: int) -> int:
        match = _UNICODE_SPACE.match(self._line, at, self._end)
        return match.end() if match else at

    def _skip_json_space(self, at: int) -> int:
        match = _JSON_SPACE.match(self._line, at, self._end)
        return match.end() if match else at


def _word_pattern(escape: str) -> re.Pattern[str]:
    # Words of ARG, ENV and LABEL: quotes join, the escape character takes the next one along (not inside '…'), an
    # unclosed quote lasts to the end. The alternatives begin differently, so nothing is ever tried twice.
    e = re.escape(escape)
    return pattern(
        rf"""(?:[^{SPACE}'"{e}]++|{e}.|"(?:[^"{e}]|{e}.)*+(?:"|{e}?\Z|\Z)|'[^']*+(?:'|\Z)|{e}\Z)++""", re.DOTALL
    )


_WORD_PATTERNS = {escape: _word_pattern(escape) for escape in ("\\", "`")}


def quoted_words(text: str, escape: str) -> list[tuple[str, int]]:
    """(word as written, where it begins) of each word where quotes and escapes may hold blanks. A lone escape at the end is
    dropped."""
    found = []
    for match in _WORD_PATTERNS[escape].finditer(text):
        word = match[0]
        if match.end() == len(text) and word.endswith(escape) and _ends_in_lone_escape(word, escape):
            word = word[:-1]
            if not word:
                continue
        found.append((word, match.start()))
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
