"""A parsed Dockerfile: its nodes in order, its stages, and editing.

Owns the whole-file rules (what may stand before the first FROM) and exact rendering. Immutable: an edit gives a new one.
Never reads files, never resolves anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, TypeVar, overload

from pybuild.values import dataclass

from .ast import Arg, Directive, Flag, Heredoc, Instruction, KeyValue, Mount, Span, Stage, Word
from .lines import Blank, Comment, ParseWarning

Node: TypeAlias = Instruction | Comment | Blank | Directive
Spanned: TypeAlias = Node | Flag | Heredoc | KeyValue | Mount | Word


@dataclass(frozen=True, slots=True)
class Syntax:
    """What a ``syntax`` line asks for. ``reference``: the frontend; ``command_line``: the whole value; ``line``: where it stands."""

    reference: str
    command_line: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """A Dockerfile and its exact text.

    ``nodes``: every instruction, comment, blank line and parser directive, in order; ``global_args``: the ARGs before the
    first FROM; ``stages``: each FROM with what follows; ``escape``: the escape character; ``syntax``: the frontend asked
    for, None if none; ``check``: the value of a ``check`` directive up to its first blank; ``warnings``: found while parsing.
    """

    filename: str
    text: str
    escape: str
    directives: tuple[Directive, ...]
    nodes: tuple[Node, ...]
    instructions: tuple[Instruction, ...]
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    warnings: tuple[ParseWarning, ...] = ()
    syntax: Syntax | None = None
    check: str | None = None

    def render(self) -> str:
        """The text, put together from the nodes and the blanks between them: character for character what was parsed."""
        parts = []
        at = 0
        for node in self.nodes:
            start, end = node.span.start.offset, node.span.end.offset
            parts.append(self.text[at:start])
            parts.append(self.text[start:end] if isinstance(node, Directive) else node.source)
            at = end
        parts.append(self.text[at:])
        return "".join(parts)

    def stage(self, name: str) -> Stage | None:
        """The stage of a name (in any case) or index; the last one where several share a name, as BuildKit resolves it."""
        wanted = name.lower()
        for stage in reversed(self.stages):
            if stage.name == wanted:
                return stage
        if wanted.isdecimal() and wanted.isascii() and int(wanted[:9]) < len(self.stages):
            return self.stages[int(wanted[:9])]
        return None

    def replace(self, node: Spanned, new: str | Instruction) -> Dockerfile:
        """The Dockerfile with one node's text replaced; all else stays character for character.

        ``node``: a node of this tree, or a part of one that has a span; ``new``: text, or an instruction whose source is
        taken. Raises ``DockerfileSyntaxError`` where the result is no Dockerfile.
        """
        return self.edit([(node.span, new if isinstance(new, str) else new.source)])

    def remove(self, node: Node) -> Dockerfile:
        """The Dockerfile without a node and the line break behind it."""
        start, end = node.span.start.offset, node.span.end.offset
        line_start = self.text.rfind("\n", 0, start) + 1
        if not self.text[line_start:start].strip("\ufeff \t"):
            start = line_start + self.text[line_start:start].startswith("\ufeff")
        line_end = self.text.find("\n", end)
        return self._rewritten([(start, len(self.text) if line_end < 0 else line_end + 1, "")])

    def insert_before(self, node: Node, text: str) -> Dockerfile:
        """The Dockerfile with whole lines of ``text`` in front of a node's line."""
        start = self.text.rfind("\n", 0, node.span.start.offset) + 1
        start += self.text[start : start + 1] == "\ufeff"
        return self._rewritten([(start, start, self._lines(text))])

    def insert_after(self, node: Node, text: str) -> Dockerfile:
        """The Dockerfile with whole lines of ``text`` behind a node."""
        end = self.text.find("\n", node.span.end.offset)
        if end < 0:
            return self._rewritten([(len(self.text), len(self.text), self._newline + self._lines(text))])
        return self._rewritten([(end + 1, end + 1, self._lines(text))])

    def edit(self, changes: Iterable[tuple[Span, str]]) -> Dockerfile:
        """The Dockerfile with the text of several spans of this tree replaced at once; the spans must not overlap."""
        return self._rewritten([(span.start.offset, span.end.offset, text) for span, text in changes])

    @property
    def _newline(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def _lines(self, text: str) -> str:
        return text if text.endswith("\n") else text + self._newline

    def _rewritten(self, changes: list[tuple[int, int, str]]) -> Dockerfile:
        from .parse import parse  # parse.py makes Dockerfiles, so it can't be imported above

        parts = []
        at = 0
        for start, end, text in sorted(changes):
            if start < at:
                raise ValueError("edited spans overlap")
            parts += [self.text[at:start], text]
            at = end
        parts.append(self.text[at:])
        return parse("".join(parts), filename=self.filename)


T = TypeVar("T", bound=Instruction)


@overload
def instructions_of(dockerfile: Dockerfile, kind: type[T]) -> tuple[T, ...]: ...
@overload
def instructions_of(dockerfile: Dockerfile, kind: tuple[type[T], ...]) -> tuple[T, ...]: ...
def instructions_of(dockerfile: Dockerfile, kind: type[T] | tuple[type[T], ...]) -> tuple[T, ...]:
    """All instructions of a class (or several), in order, those that ONBUILD holds not included."""
    return tuple(instruction for instruction in dockerfile.instructions if isinstance(instruction, kind))
