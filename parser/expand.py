"""Variable substitution and word splitting, as BuildKit's shell lexer does them.

``expand`` gives one text, ``expand_words`` splits it where unquoted blanks are, ``expand_heredoc`` is for the bodies of
here-documents, ``parse_word`` shows what a word consists of. All are pure and take time linear in text and values.
Never reads an environment: variables come from the mapping that is passed.

Forms: ``$v ${v} ${v:-w} ${v-w} ${v:+w} ${v+w} ${v:?w} ${v?w} ${v#p} ${v##p} ${v%p} ${v%%p} ${v/p/r} ${v//p/r}``. As in BuildKit, ``w``
is substituted whether or not it is used, so a ``:?`` inside a default that isn't needed fails all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

from pybuild.values import dataclass, pattern

from . import patterns_in_variables as glob
from .ast import Span, Word
from .errors import DockerfileError
from .go_text import SPACE, quote
from .word_scanner import Literal, Mode, Part, SubstitutionProblem, Variable, scan_word

__all__ = [
    "Expansion", "ExpansionError", "Literal", "Part", "Variable", "expand", "expand_heredoc", "expand_text", "expand_words",
    "parse_word",
]  # fmt: skip

Environment: TypeAlias = Mapping[str, str]


class ExpansionError(DockerfileError):
    """A substitution failed: bad syntax, or a ``?`` that found nothing. ``reason`` is the message without the word it is about."""

    def __init__(self, message: str, *, reason: str = "", span: Span | None = None, hint: str | None = None) -> None:
        super().__init__(message, span=span, culprit=span, hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Expansion:
    """``text``: the result; ``used``: variables that had a value; ``unset``: variables that had none."""

    text: str
    used: frozenset[str] = frozenset()
    unset: frozenset[str] = frozenset()


_SPACES = pattern(f"[{SPACE}]")


def expand(word: Word, env: Environment) -> Expansion:
    """Substitute the variables of a word and remove its quotes and escapes. Raises ``ExpansionError``."""
    text = word.text
    if not _is_special(text, word.escape):
        return Expansion(text)
    return _expand(text, env, mode=Mode(word.escape), span=word.span)


def expand_text(
    text: str, env: Environment, *, escape: str = "\\", keep_quotes: bool = False, keep_escapes: bool = False,
    plain_quotes: bool = False, keep_unset: bool = False,
) -> Expansion:  # fmt: skip
    """The same for text that is no word of a tree.

    ``keep_quotes`` and ``keep_escapes``: they do what they do, and stay; ``plain_quotes``: quotes are characters like others;
    ``keep_unset``: a variable without a value stays as it is written.
    """
    return _expand(text, env, mode=Mode(escape, keep_quotes, keep_escapes, plain_quotes), keep_unset=keep_unset)


def expand_words(word: Word, env: Environment) -> tuple[str, ...]:
    """Substitute, then split at blanks that neither quotes nor escapes protect. Raises ``ExpansionError``."""
    if not _is_special(word.text, word.escape):
        return tuple(part for part in _split_space(word.text) if part)
    parts = _scan(word.text, Mode(word.escape), span=word.span)
    evaluation = _Evaluation(env, keep_unset=False)
    splitter = _Splitter()
    try:
        for part in parts:
            if isinstance(part, Literal):
                splitter.add(part.text, split=not part.quoted)
            else:
                splitter.add(evaluation.variable(part), split=not part.quoted)
    except SubstitutionProblem as problem:
        raise _error(word.text, str(problem), span=word.span) from None
    return splitter.finish()


def expand_heredoc(content: str, env: Environment, escape: str = "\\") -> Expansion:
    """Substitute in the body of a here-document: quotes are plain text there. BuildKit takes the backslash as its escape
    character even where the Dockerfile chose the backtick, hence the default. Raises ``ExpansionError``."""
    if "$" not in content and escape not in content:
        return Expansion(content)
    return _expand(content, env, mode=Mode(escape, plain_quotes=True))


def parse_word(word: Word) -> tuple[Part, ...]:
    """What a word consists of, in order: ``Literal`` text and ``Variable`` references. Raises ``ExpansionError``."""
    return _scan(word.text, Mode(word.escape), span=word.span)


def _is_special(text: str, escape: str) -> bool:
    return "$" in text or "'" in text or '"' in text or escape in text or text.startswith("\ufeff")


def _expand(
    text: str, env: Environment, *, mode: Mode, keep_unset: bool = False, span: Span | None = None
) -> Expansion:
    parts = _scan(text, mode, span=span)
    evaluation = _Evaluation(env, keep_unset=keep_unset)
    try:
        result = evaluation.text(parts)
    except SubstitutionProblem as problem:
        raise _error(text, str(problem), span=span) from None
    if not evaluation.used and not evaluation.unset:
        return Expansion(result)
    return Expansion(result, frozenset(evaluation.used), frozenset(evaluation.unset))


def _scan(text: str, mode: Mode, *, span: Span | None) -> tuple[Part, ...]:
    try:
        # Long texts are here-documents, each seen once: not worth remembering.
        scan = _remembered_scan if len(text) < 2000 else scan_word
        return scan(text, mode)
    except SubstitutionProblem as problem:
        raise _error(text, str(problem), span=span) from None


_remembered_scan = lru_cache(maxsize=2048)(scan_word)


def _error(text: str, reason: str, *, span: Span | None) -> ExpansionError:
    hint = None
    if reason == "syntax error: missing '}'":
        hint = "Close the variable with }"
    elif "looking for matching" in reason and "quote" in reason:
        hint = "Close the quote, or put the escape character before it"
    return ExpansionError(f"failed to process {quote(text)}: {reason}", reason=reason, span=span, hint=hint)


class _Evaluation:
    """Puts values in the place of variables, and notes which ones had a value."""

    __slots__ = ("env", "keep_unset", "unset", "used")

    def __init__(self, env: Environment, *, keep_unset: bool) -> None:
        self.env = env
        self.keep_unset = keep_unset
        self.used: set[str] = set()
        self.unset: set[str] = set()

    def text(self, parts: tuple[Part, ...]) -> str:
        return "".join(part.text if isinstance(part, Literal) else self.variable(part) for part in parts)

    def variable(self, variable: Variable) -> str:
        name, operator = variable.name, variable.operator
        word = self.text(variable.word)
        replacement = self.text(variable.replacement)
        value = self.env.get(name)
        (self.unset if value is None else self.used).add(name)
        if value is None and self.keep_unset:
            if not variable.braces:
                return f"${name}"
            slash = f"/{word}/{replacement}" if operator[:1] == "/" else f"{operator}{word}"
            return f"${{{name}{slash}}}"
        match operator:
            case "":
                return value or ""
            case "-":
                return word if value is None else value
            case ":-":
                return value or word
            case "+":
                return "" if value is None else word
            case ":+":
                return word if value else ""
            case "?" | ":?":
                if value is None:
                    raise SubstitutionProblem(f"{name}: {word or 'is not allowed to be unset'}")
                if not value and operator == ":?":
                    raise SubstitutionProblem(f"{name}: {word or 'is not allowed to be empty'}")
                return value
            case "#" | "%":
                greedy = word.startswith(operator)
                pattern = word[1:] if greedy else word
                trim = glob.trim_prefix if operator == "#" else glob.trim_suffix
                return trim(value or "", pattern, greedy=greedy)
            case _:
                return glob.replace(value or "", word, replacement, every=operator == "//")


class _Splitter:
    """Collects words as BuildKit's ``wordsStruct`` does: blanks end a word that has characters, protected ones belong to it."""

    __slots__ = ("_current", "_words")

    def __init__(self) -> None:
        self._words: list[str] = []
        self._current: list[str] = []

    def add(self, text: str, *, split: bool) -> None:
        if not split:
            if text:
                self._current.append(text)
            return
        pieces = _split_space(text)
        for number, piece in enumerate(pieces):
            if number:
                self._flush()
            if piece:
                self._current.append(piece)

    def _flush(self) -> None:
        if self._current:
            self._words.append("".join(self._current))
            self._current.clear()

    def finish(self) -> tuple[str, ...]:
        self._flush()
        return tuple(self._words)


def _split_space(text: str) -> list[str]:
    return _SPACES.split(text)
