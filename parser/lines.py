"""Splits a Dockerfile into logical lines: comments, blank lines, parser directives, continuations, here-document bodies.

Owns everything that is true of a line before one knows what its instruction is. Never looks at instructions: whoever does
asks for the bodies of the here-documents that an instruction opens.
"""

from __future__ import annotations

from pybuild.values import dataclass, pattern

from .ast import Directive, Span
from .errors import DockerfileSyntaxError
from .go_text import SPACE
from .source import LogicalLine, Source

LINE_LIMIT = 65535
"""Bytes of a physical line, its newline not counted (the buffer of Go's bufio.Scanner)."""

_DIRECTIVE = pattern(r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*")
_KNOWN_DIRECTIVES = ("syntax", "escape", "check")


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that is only a comment; ``text`` is without ``#`` and the blanks around."""

    text: str
    span: Span
    source: str


@dataclass(frozen=True, slots=True)
class Blank:
    """A line with nothing on it. ``source`` may be blanks."""

    span: Span
    source: str


@dataclass(frozen=True, slots=True)
class ParseWarning:
    """Something the parser noticed that is no error.

    ``rule``: the public name of a build check, or ``UnknownFrontend``, ``NewerFrontend``; ``span``: the line BuildKit would
    name; ``hint``: a remedy.
    """

    rule: str
    message: str
    span: Span
    hint: str | None = None


class LineReader:
    """Reads a text line by line. ``nodes`` and ``warnings`` grow as it goes; ``escape`` may change in the first lines."""

    def __init__(self, source: Source, *, filename: str) -> None:
        self.source = source
        self.filename = filename
        self.escape = "\\"
        self.directives: list[Directive] = []
        self.nodes: list[Comment | Blank | Directive] = []
        self.warnings: list[ParseWarning] = []
        self.comments: list[str] = []
        self._next = 0
        self._directives_allowed = True
        self._last_of: dict[str, int] | None = None
        self._count = len(source.starts) if source.starts[0] < len(source.text) else 0
        self._check_lengths()

    def error(
        self, message: str, span: Span, *, hint: str | None = None, culprit: Span | None = None
    ) -> DockerfileSyntaxError:
        """An error of this text, not raised yet."""
        return DockerfileSyntaxError(
            message, span=span, culprit=culprit, filename=self.filename, text=self.source.text, hint=hint
        )

    def next_line(self) -> LogicalLine | None:
        """The next logical line that is an instruction's; None at the end.

        ``comments`` then holds the comments above it. As in BuildKit, only an empty comment separates them from it, not a
        blank line.
        """
        source = self.source
        text = source.text
        while self._next < self._count:
            number = self._next = self._next + 1
            start, stop = source.starts[number - 1], source.line_end(number)
            line = text[start:stop].rstrip("\r\n")
            content = line.lstrip(SPACE)
            begin = start + len(line) - len(content)
            if content.startswith("#"):
                self._comment(content, begin, start + len(line))
                continue
            self._directives_allowed = False
            if not content:
                self.nodes.append(Blank(source.span(start, start + len(line)), line))
                continue
            part = self._continued(content)
            if part is None:
                return LogicalLine(
                    source, content, [(0, begin)], start=begin, end=start + len(line), first=number, last=number
                )
            return self._join(part, begin, number)
        return None

    def heredoc_body(self, name: str, *, strip_tabs: bool) -> tuple[str, Span] | None:
        """The lines up to the one that is ``name``, as written, and what they cover with that line; None if it never comes."""
        source, text = self.source, self.source.text
        first = self._next
        if self._last_line(name) <= first:
            return None
        for number in range(first + 1, self._count + 1):
            start, stop = source.starts[number - 1], source.line_end(number)
            line = text[start:stop].rstrip("\r\n")
            if (line.lstrip("\t") if strip_tabs else line) == name:
                self._next = number
                begin = source.starts[first]
                return text[begin:start], source.span(begin, start + len(line))
        return None

    def _last_line(self, content: str) -> int:
        """The number of the last line with this content, leading tabs not counted; 0 if there is none. It keeps a file full of
        here-documents that never end from being searched to its end for each of them."""
        if self._last_of is None:
            text, starts = self.source.text, self.source.starts
            self._last_of = {
                text[starts[number - 1] : self.source.line_end(number)].rstrip("\r\n").lstrip("\t"): number
                for number in range(1, self._count + 1)
            }
        return self._last_of.get(content.lstrip("\t"), 0)

    def _join(self, part: str, begin: int, first: int) -> LogicalLine:
        source, text = self.source, self.source.text
        parts, pieces = [part], [(0, begin)]
        length = len(part)
        empty: list[int] = []
        end = begin + len(part)
        while self._next < self._count:
            number = self._next = self._next + 1
            start, stop = source.starts[number - 1], source.line_end(number)
            line = text[start:stop].rstrip("\r\n")
            end = start + len(line)
            content = line.lstrip(SPACE)
            if content.startswith("#"):
                continue
            if not content:
                empty.append(number)
                continue
            continued = self._continued(line)
            piece = line if continued is None else continued
            pieces.append((length, start))
            parts.append(piece)
            length += len(piece)
            if continued is None:
                break
        else:
            end = max(end, source.line_end(self._next))
        joined = "".join(parts)
        if empty:
            at = source.span(source.starts[self._next - 1], source.line_end(self._next))
            lines = ", ".join(str(number) for number in empty)
            self.warnings.append(
                ParseWarning(
                    "NoEmptyContinuation",
                    f"Empty continuation line found in: {joined}",
                    at,
                    hint=f"Remove line {lines}; empty continuation lines will become errors"
                    if len(empty) == 1
                    else f"Remove lines {lines}; empty continuation lines will become errors",
                )
            )
        return LogicalLine(source, joined, pieces, start=begin, end=end, first=first, last=self._next)

    def _continued(self, line: str) -> str | None:
        """The line without its continuation character, None if it has none."""
        stripped = line.rstrip(" \t")
        if stripped.endswith(self.escape) and not stripped.endswith(self.escape * 2):
            return stripped[:-1]
        return None

    def _comment(self, content: str, begin: int, end: int) -> None:
        span = self.source.span(begin, end)
        if self._directives_allowed:
            directive = self._directive(content[1:].lstrip(SPACE), span)
            if directive is not None:
                self.directives.append(directive)
                self.nodes.append(directive)
                return
            self._directives_allowed = False
        text = content[1:].strip(SPACE)
        if text:
            self.comments.append(text)
        else:
            self.comments.clear()
        self.nodes.append(Comment(text, span, content))

    def _directive(self, text: str, span: Span) -> Directive | None:
        match = _DIRECTIVE.fullmatch(text)
        if match is None or match[1].lower() not in _KNOWN_DIRECTIVES:
            return None
        name, value = match[1].lower(), match[2]
        if any(directive.name == name for directive in self.directives):
            raise self.error(
                f"only one {name} parser directive can be used", span, hint=f"Remove all but one of the {name} lines"
            )
        if name == "escape":
            if value not in ("\\", "`"):
                raise self.error(
                    f"invalid escape token '{value}' does not match ` or \\",
                    span,
                    hint="Only a backslash or a backtick can be the escape character",
                )
            self.escape = value
        return Directive(name, value, span)

    def _check_lengths(self) -> None:
        source = self.source
        if len(source.text) <= LINE_LIMIT // 4:
            return
        for number in range(1, self._count + 1):
            start, stop = source.starts[number - 1], source.line_end(number)
            if stop - start <= LINE_LIMIT // 4:
                continue
            size = len(source.text[start:stop].encode("utf-8", "replace"))
            if size > LINE_LIMIT:
                raise self.error(
                    f"dockerfile line greater than max allowed size of {LINE_LIMIT}",
                    source.span(start, start + 1),
                    hint=f"The line has {size} bytes; split it with continuations, or keep the data in a file and COPY it",
                )
