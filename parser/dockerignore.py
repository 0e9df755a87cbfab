"""Ignore files: reading them, and deciding which paths they exclude.

Owns the rules of ``.dockerignore`` and of ``--exclude``: patterns anchored at the root, ``!`` for exceptions, a pattern that matches a
directory holds for all that is below, the last one that matches wins. Never walks a file system: walks ask it, directory by
directory, and it answers from a state they carry along, so that the cost stays linear.

The reference is moby/patternmatcher as BuildKit's walks use it (``MatchesUsingParentResults``). One consequence is worth
knowing: an exception counts for what lies below a directory only if that directory itself was excluded when the exception
was reached. ``**/*.pyc`` then ``!vendor`` still excludes ``vendor/x.pyc``; ``!vendor/**`` is what includes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pybuild.errors import PybuildError
from pybuild.values import dataclass, field

from .ignore_patterns import CompiledPattern, Tail, TailKind, compile_pattern
from .patterns import BadPattern, clean_path

# What Go's unicode.IsSpace takes for white space; Python's strip() knows four more.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_LINE_LIMIT = 64 * 1024
_KNOWN_DIRECTORIES = 65536


class BadIgnorePattern(PybuildError):
    """A pattern of an ignore file can't be used; ``line`` is None where patterns don't come from a file."""

    def __init__(self, pattern: str, problem: str, *, line: int | None) -> None:
        where = f" (line {line} of the ignore file)" if line is not None else ""
        super().__init__(f"{problem}{where}")
        self.pattern = pattern
        self.line = line


class IgnoreLineTooLong(PybuildError):
    """A line of an ignore file exceeds 64 KiB, the reference's limit."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} of the ignore file is longer than {_LINE_LIMIT} bytes")
        self.line = line


@dataclass(frozen=True, slots=True)
class IgnoreRule:
    """A pattern ready for IgnoreMatcher; ``source`` as written and the ``line`` (from 1) it stands on, if it comes from a file."""

    pattern: str
    source: str = ""
    line: int | None = None


def read_rules(text: str | bytes) -> tuple[IgnoreRule, ...]:
    """Read an ignore file. Raises IgnoreLineTooLong."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    text = text.removeprefix("\ufeff")
    rules = []
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > _LINE_LIMIT // 4 and len(line.encode("utf-8", "surrogateescape")) >= _LINE_LIMIT:
            raise IgnoreLineTooLong(number)
        if line.startswith("#"):
            continue
        pattern = line.strip(_SPACE)
        if not pattern:
            continue
        negated = pattern.startswith("!")
        if negated:
            pattern = pattern[1:].strip(_SPACE)
        if pattern:
            pattern = clean_path(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        rules.append(IgnoreRule("!" + pattern if negated else pattern, line.strip(_SPACE), number))
    return tuple(rules)


class IgnoreMatcher:
    """Decides for paths (relative, ``/``-separated, no leading slash). ``patterns``: texts, or rules that know their lines.

    What it remembers is only ever added to, so threads may share it. Raises BadIgnorePattern.
    """

    def __init__(self, patterns: Iterable[str | IgnoreRule]) -> None:
        compiled: list[CompiledPattern] = []
        rules: list[IgnoreRule] = []
        negated: list[bool] = []
        for given in patterns:
            rule = IgnoreRule(given, given) if isinstance(given, str) else given
            pattern = rule.pattern.strip(_SPACE)
            if not pattern:
                continue
            pattern = clean_path(pattern)
            exception = pattern.startswith("!")
            if exception:
                pattern = pattern[1:]
                if not pattern:
                    raise BadIgnorePattern("!", 'illegal exclusion pattern: "!"', line=rule.line)
            try:
                compiled.append(compile_pattern(pattern))
            except BadPattern as error:
                raise BadIgnorePattern(pattern, error.message, line=rule.line) from None
            rules.append(IgnoreRule(f"!{pattern}" if exception else pattern, rule.source, rule.line))
            negated.append(exception)
        self._patterns = tuple(compiled)
        self._rules = tuple(rules)
        self._negated = tuple(negated)
        self.has_negations = any(negated)
        self.root = DirectoryState(self, "", 0)
        self._states: dict[str, DirectoryState] = {"": self.root}

    @classmethod
    def from_text(cls, text: str | bytes) -> IgnoreMatcher:
        """The matcher of an ignore file's content."""
        return cls(read_rules(text))

    @property
    def empty(self) -> bool:
        """True if nothing is ever excluded."""
        return not self._patterns or all(self._negated)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns in force, cleaned, exceptions with their ``!``."""
        return tuple(rule.pattern for rule in self._rules)

    def excluded(self, path: str) -> bool:
        """True if ``path`` or, unless an exception says otherwise, a directory above it is excluded. The root never is."""
        directory, _, name = path.strip("/").rpartition("/")
        if not name or (name == "." and not directory):
            return False
        return self.state_of(directory).excludes(name)

    def explain(self, path: str) -> tuple[str, int | None] | None:
        """The pattern (as written) that decides about ``path``, and its line; None if no pattern matches it."""
        directory, _, name = path.strip("/").rpartition("/")
        if not name:
            return None
        index = self.state_of(directory).deciding_rule(name)
        if index < 0:
            return None
        rule = self._rules[index]
        return rule.source or rule.pattern, rule.line

    def state_of(self, directory: str) -> DirectoryState:
        """The state with which the entries of ``directory`` are judged, remembered."""
        state = self._states.get(directory)
        if state is not None:
            return state
        if len(self._states) > _KNOWN_DIRECTORIES:
            self._states = {"": self.root}
        parent, _, name = directory.rpartition("/")
        state = self._states[directory] = self.state_of(parent).enter(name)
        return state


@dataclass(slots=True, eq=False)
class DirectoryState:
    """What is known in a directory: which patterns matched it. Immutable to its users.

    ``prefix`` is the path with a slash, ``""`` for the root; ``matched`` a bit set of patterns.
    """

    matcher: IgnoreMatcher
    prefix: str
    matched: int
    _names: _NameMatcher | None = field(default=None, init=False)

    @property
    def excluded(self) -> bool:
        """Whether the directory itself is excluded."""
        last = self.matched.bit_length() - 1
        return last >= 0 and not self.matcher._negated[last]

    @property
    def worth_entering(self) -> bool:
        """False if everything below is excluded for sure."""
        last = self.matched.bit_length() - 1
        matcher = self.matcher
        if last < 0 or matcher._negated[last]:
            return True
        directory = self.prefix[:-1]
        return any(
            matcher._negated[index] and matcher._patterns[index].may_match_below(directory)
            for index in range(last + 1, len(matcher._patterns))
        )

    def enter(self, name: str) -> DirectoryState:
        """The state of the subdirectory ``name``."""
        matcher = self.matcher
        path = self.prefix + name
        bits = 0
        excluded = False
        for index, (pattern, negated) in enumerate(zip(matcher._patterns, matcher._negated)):
            bit = 1 << index
            # A pattern that couldn't change the verdict isn't tried and so isn't known to have matched: the reference's rule.
            if self.matched & bit or (negated is excluded and pattern.matches(path)):
                bits |= bit
                excluded = not negated
        return DirectoryState(matcher, path + "/", bits)

    def excludes(self, name: str) -> bool:
        """Whether the entry ``name`` of this directory is excluded."""
        index = self.deciding_rule(name)
        return index >= 0 and not self.matcher._negated[index]

    def deciding_rule(self, name: str) -> int:
        """The index of the pattern that decides about ``name``, -1 for none."""
        names = self._names
        if names is None:
            names = self._names = self._name_matcher()
        return names.last_match(name, self.prefix)

    def _name_matcher(self) -> _NameMatcher:
        matcher = self.matcher
        last = self.matched.bit_length() - 1
        return _name_matcher(
            tuple(
                (index, matcher._patterns[index].tail)
                for index in range(len(matcher._patterns) - 1, last, -1)
                if matcher._patterns[index].in_directory(self.prefix)
            ),
            last,
        )


class _NameMatcher:
    """Patterns that can match in one directory, arranged so that a name is looked up once."""

    def __init__(self, tails: Sequence[tuple[int, Tail]], otherwise: int) -> None:
        """``tails``: index and tail, highest index first; ``otherwise``: the answer if none matches."""
        self._otherwise = otherwise
        self._literals: dict[str, int] = {}
        self._extensions: dict[str, int] = {}
        expressions: list[tuple[int, str]] = []
        wholes: list[tuple[int, str]] = []
        for index, tail in tails:
            match tail.kind:
                case TailKind.LITERAL:
                    self._literals.setdefault(tail.text, index)
                case TailKind.EXTENSION:
                    self._extensions.setdefault(tail.text, index)
                case TailKind.EXPRESSION:
                    expressions.append((index, tail.text))
                case TailKind.WHOLE:
                    wholes.append((index, tail.text))
        self._expressions = _Alternatives(expressions)
        self._wholes = _Alternatives(wholes)

    def last_match(self, name: str, prefix: str) -> int:
        best = self._literals.get(name, self._otherwise)
        if self._extensions:
            _, dot, extension = name.rpartition(".")
            if dot:
                found = self._extensions.get(extension, -1)
                if found > best:
                    best = found
        if self._expressions.highest > best:
            found = self._expressions.first(name)
            if found > best:
                best = found
        if self._wholes.highest > best:
            found = self._wholes.first(prefix + name)
            if found > best:
                best = found
        return best


class _Alternatives:
    """Several expressions as one: the first that matches tells its index."""

    def __init__(self, expressions: Sequence[tuple[int, str]]) -> None:
        self.highest = expressions[0][0] if expressions else -1
        self._indexes = (-1, *(index for index, _ in expressions))
        self._fullmatch = re.compile("|".join(f"({text})" for _, text in expressions)).fullmatch

    def first(self, text: str) -> int:
        found = self._fullmatch(text)
        return -1 if found is None else self._indexes[found.lastindex or 0]


@lru_cache(maxsize=1024)
def _name_matcher(tails: tuple[tuple[int, Tail], ...], otherwise: int) -> _NameMatcher:
    return _NameMatcher(tails, otherwise)
