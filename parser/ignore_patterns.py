"""One pattern of an ignore file, compiled: what moby/patternmatcher makes of it, quirks included.

Owns the translation of a pattern to something that answers "does it match this path?" and, cut after its last slash, "could it
match in this directory?" and "does it match this name there?". Knows nothing of negation and order (``dockerignore.py``).

moby/patternmatcher turns a pattern into a Go regular expression character by character, so what Go makes of a
backslash or of brackets is part of the rules: ``\\d`` is a digit, ``[^a]`` also matches a slash. Of the characters that mean something
to Go only ``.+()$`` are escaped: beside a wildcard, ``a{2}`` is ``aa`` and ``x|*y`` is what begins with x or ends with y.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from pybuild.values import dataclass

from .go_regexp import STAR, Atom, AtomKind, parse_go_expression
from .patterns import BadPattern, compile_match

Predicate = Callable[[str], bool]
_OR = AtomKind.OR


class TailKind(Enum):
    """How the last element of a pattern is compared with a name."""

    LITERAL = "literal"
    EXTENSION = "extension"
    """``*.x``: the text is ``x`` and has no dot."""
    EXPRESSION = "expression"
    WHOLE = "whole"
    """The pattern can't be cut at a slash: the text is an expression for the whole path."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The last element: ``text`` is the name, the extension or the expression, as ``kind`` says."""

    kind: TailKind
    text: str


@dataclass(frozen=True, slots=True)
class CompiledPattern:
    """A pattern without its ``!``.

    ``matches(path)``: the pattern itself, parents not considered. ``in_directory(prefix)``: whether ``tail`` may match a name in
    the directory whose path, with a slash, is ``prefix`` (``""``: the root). ``segments``: a predicate for each path element
    as far as they can be told apart, then None if anything may follow.
    """

    matches: Predicate
    in_directory: Predicate
    tail: Tail
    segments: tuple[Predicate | None, ...]

    def may_match_below(self, directory: str) -> bool:
        """False only if nothing inside ``directory``, at any depth, can match."""
        names = directory.split("/")
        for index, segment in enumerate(self.segments):
            if segment is None or index == len(names):
                return True
            if not segment(names[index]):
                return False
        return False


def compile_pattern(pattern: str) -> CompiledPattern:
    """Compile a cleaned pattern (no ``!``). Raises BadPattern."""
    compile_match(pattern)  # the reference lets filepath.Match judge the syntax before anything else
    kind, expression = _translate(pattern)
    match kind:
        case "exact":
            return _exact(pattern)
        case "prefix":
            return _prefix(pattern[:-2])
        case "suffix":
            return _suffix(pattern[2:])
        case _:
            atoms = parse_go_expression(expression, pattern=pattern)
            return _expression(atoms, pattern) if _OR not in map(_kind, atoms) else _alternatives(atoms, pattern)


def _translate(pattern: str) -> tuple[str, str]:
    """The reference's scan: the kind of comparison it chooses, and the Go expression, anchors left out."""
    out: list[str] = []
    kind = "exact"
    index = 0
    first = True
    while index < len(pattern):
        character = pattern[index]
        index += 1
        if character == "*" and pattern.startswith("*", index):
            index += 1
            if pattern.startswith("/", index):
                index += 1
            if index < len(pattern):
                out.append("(.*/)?")
                kind = "expression"
            elif kind == "exact":
                kind = "prefix"
            else:
                out.append(".*")
                kind = "expression"
            if first:
                kind = "suffix"
        elif character == "*":
            out.append("[^/]*")
            kind = "expression"
        elif character == "?":
            out.append("[^/]")
            kind = "expression"
        elif character in ".+()$":
            out.append("\\" + character)
        elif character == "\\":
            out.append("\\" + pattern[index : index + 1])
            index += 1
            kind = "expression"
        else:
            if character in "[]":
                kind = "expression"
            out.append(character)
        first = False
    return kind, "".join(out)


def _always(text: str) -> bool:
    return True


def _equals(expected: str) -> Predicate:
    return lambda text: text == expected


def _ends(suffix: str) -> Predicate:
    return lambda text: text.endswith(suffix)


def _exact(pattern: str) -> CompiledPattern:
    head, slash, name = pattern.rpartition("/")
    return CompiledPattern(
        matches=_equals(pattern),
        in_directory=_equals(head + slash),
        tail=Tail(TailKind.LITERAL, name),
        segments=tuple(_equals(part) for part in pattern.split("/")),
    )


def _prefix(prefix: str) -> CompiledPattern:
    def matches(path: str) -> bool:
        return path.startswith(prefix)

    below = prefix.endswith("/")
    return CompiledPattern(
        matches=matches,
        in_directory=matches if below else _always,
        tail=Tail(TailKind.EXPRESSION, "(?s:.*)") if below else Tail(TailKind.WHOLE, re.escape(prefix) + "(?s:.*)"),
        segments=(*(_equals(part) for part in prefix.split("/")[:-1]), None),
    )


def _suffix(suffix: str) -> CompiledPattern:
    head, slash, name = suffix.rpartition("/")
    if suffix.startswith("/"):
        bare = suffix[1:]
        return CompiledPattern(
            matches=lambda path: path.endswith(suffix) or path == bare,
            in_directory=(lambda prefix: ("/" + prefix).endswith(head + "/")) if head else _always,
            tail=Tail(TailKind.LITERAL, name),
            segments=(None,),
        )
    return CompiledPattern(
        matches=_ends(suffix),
        in_directory=_ends(head + "/") if slash else _always,
        tail=Tail(TailKind.LITERAL, name) if slash else Tail(TailKind.EXPRESSION, "(?s:.*)" + re.escape(name)),
        segments=(None,),
    )


def _expression(atoms: list[Atom], pattern: str) -> CompiledPattern:
    whole = _compile(atoms, pattern)
    cut = _cut(atoms)
    in_directory: Predicate = _always
    tail = Tail(TailKind.WHOLE, whole)
    if cut is not None:
        head, name = cut
        if len(head) != 1 or head[0].kind is not AtomKind.DEPTH:
            in_directory = _full(_compile(head, pattern))
        tail = _tail(name)
    return CompiledPattern(matches=_full(whole), in_directory=in_directory, tail=tail, segments=_segments(atoms))


def _kind(atom: Atom) -> AtomKind:
    return atom.kind


def _alternatives(atoms: list[Atom], pattern: str) -> CompiledPattern:
    """The reference's anchors belong to the first and to the last alternative only."""
    texts: list[str] = []
    start = 0
    for index, atom in enumerate((*atoms, None)):
        if atom is None or atom.kind is _OR:
            texts.append("(?:" + _compile(atoms[start:index], pattern) + ")")
            start = index + 1
    rest = "(?s:.*)"
    whole = "|".join([texts[0] + rest, *(rest + text + rest for text in texts[1:-1]), rest + texts[-1]])
    return CompiledPattern(
        matches=_full(whole), in_directory=_always, tail=Tail(TailKind.WHOLE, whole), segments=(None,)
    )


def _full(expression: str) -> Predicate:
    fullmatch = re.compile(expression).fullmatch
    return lambda text: fullmatch(text) is not None


def _compile(atoms: list[Atom], pattern: str) -> str:
    text = _text(atoms)
    try:
        re.compile(text)
    except re.error:
        raise BadPattern(pattern) from None
    return text


def _text(atoms: list[Atom]) -> str:
    """The atoms as one expression that takes no exponential time.

    Up to a slash or the end, a star needn't be tried again once what follows it has been found at its first place, so these are
    atomic groups; only the last star of a path element must reach to the element's end.
    """
    out: list[str] = []
    run: list[Atom] = []
    for atom in (*atoms, None):
        if atom is not None and atom.kind is AtomKind.NAME:
            run.append(atom)
            continue
        out.append(
            _element(run) if atom is None or atom.kind is AtomKind.SLASH else "".join(piece.text for piece in run)
        )
        run = []
        if atom is not None:
            out.append(atom.text)
    return "".join(out)


def _element(atoms: list[Atom]) -> str:
    chunks: list[list[str]] = [[]]
    for atom in atoms:
        if atom is STAR:
            chunks.append([])
        else:
            chunks[-1].append(atom.text)
    first, *others = ("".join(chunk) for chunk in chunks)
    if not others:
        return first
    *middle, last = others
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in middle if chunk) + "[^/]*" + last


def _cut(atoms: list[Atom]) -> tuple[list[Atom], list[Atom]] | None:
    """Head and tail around the last slash; None if what follows might not stay within one name."""
    cut = 0
    boundary = True
    for index, atom in enumerate(atoms):
        match atom.kind:
            case AtomKind.SLASH:
                cut, boundary = index + 1, True
            case AtomKind.DEPTH if boundary:
                cut = index + 1
            case AtomKind.REST if boundary and index == len(atoms) - 1:
                # "dir/.*": whatever is below; the directory may be at any depth below as well.
                return [*atoms[:cut], atom], [atom]
            case AtomKind.NAME:
                boundary = False
            case _:
                return None
    return atoms[:cut], atoms[cut:]


def _tail(atoms: list[Atom]) -> Tail:
    literals = [atom.literal for atom in atoms]
    if None not in literals:
        return Tail(TailKind.LITERAL, "".join(literal or "" for literal in literals))
    if atoms[0] is STAR and literals[1:2] == ["."] and None not in literals[2:] and "." not in literals[2:]:
        return Tail(TailKind.EXTENSION, "".join(literal or "" for literal in literals[2:]))
    return Tail(TailKind.EXPRESSION, _text(atoms))


def _segments(atoms: list[Atom]) -> tuple[Predicate | None, ...]:
    segments: list[Predicate | None] = []
    current: list[Atom] = []
    for atom in atoms:
        if atom.kind is AtomKind.SLASH:
            segments.append(_full(_element(current)))
            current = []
        elif atom.kind is AtomKind.NAME:
            current.append(atom)
        else:
            return (*segments, None)
    return (*segments, _full(_element(current)))
