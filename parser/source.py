"""Where characters are: offsets in a text turned into lines and columns. Owns the line table; never looks at what the text says."""

from __future__ import annotations

from bisect import bisect_right

from .ast import Position, Span

BOM = "\ufeff"


class Source:
    """A text and its line table. Lines end at ``\\n`` alone; a byte-order mark belongs to no column."""

    __slots__ = ("starts", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        starts = [1 if text.startswith(BOM) else 0]
        at = text.find("\n")
        while at >= 0:
            starts.append(at + 1)
            at = text.find("\n", at + 1)
        if starts[-1] == len(text) and len(starts) > 1:
            starts.pop()
        self.starts = starts

    def position(self, offset: int) -> Position:
        """The place of a character."""
        line = bisect_right(self.starts, offset) or 1
        return Position(line, max(1, offset - self.starts[line - 1] + 1), offset)

    def span(self, start: int, end: int) -> Span:
        """From ``start`` up to and without ``end``."""
        return Span(self.position(start), self.position(end))

    def line_end(self, number: int) -> int:
        """The offset of the ``\\n`` that ends line ``number`` (from 1), or of the text's end."""
        if number < len(self.starts):
            return self.starts[number] - 1
        end = len(self.text)
        return end - 1 if end > self.starts[-1] and self.text.endswith("\n") else end


class LogicalLine:
    """A line with its continuations joined and the comments between them dropped.

    ``text``: what remains; ``pieces``: (offset in ``text``, offset in the source) where each physical line's part begins;
    ``start`` and ``end``: what it covers in the source; ``first`` and ``last``: line numbers.
    """

    __slots__ = ("end", "first", "last", "pieces", "source", "start", "text")

    def __init__(
        self, source: Source, text: str, pieces: list[tuple[int, int]], *, start: int, end: int, first: int, last: int
    ) -> None:
        self.source = source
        self.text = text
        self.pieces = pieces
        self.start = start
        self.end = end
        self.first = first
        self.last = last

    def offset(self, at: int) -> int:
        """The offset in the source of a character of ``text``."""
        if len(self.pieces) == 1:
            return self.pieces[0][1] + at
        logical, physical = self.pieces[bisect_right(self.pieces, (at, 1 << 62)) - 1]
        return physical + at - logical

    def position(self, at: int) -> Position:
        if len(self.pieces) == 1:
            offset = self.pieces[0][1] + at
            return Position(self.first, offset - self.source.starts[self.first - 1] + 1, offset)
        return self.source.position(self.offset(at))

    def span(self, start: int, end: int) -> Span:
        """What ``text[start:end]`` covers in the source, continuations inside included."""
        first = self.position(start)
        if end <= start:
            return Span(first, first)
        if len(self.pieces) == 1:
            width = end - start
            return Span(first, Position(first.line, first.column + width, first.offset + width))
        last = self.position(end - 1)
        return Span(first, Position(last.line, last.column + 1, last.offset + 1))
