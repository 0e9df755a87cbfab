"""What a build context consists of, for people: ``pybuild context ls [--explain PATH]``.

Owns the listing and the explanation of one path; prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView
from pybuild.parser.dockerignore import IgnoreMatcher
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """A kept path; ``size`` in bytes (files only)."""

    path: str
    kind: Kind
    size: int


@dataclass(frozen=True, slots=True)
class DirectorySize:
    """What lies below a directory: file contents in bytes, and the number of entries."""

    path: str
    size: int
    entries: int


@dataclass(frozen=True, slots=True)
class ContextListing:
    """``entries`` in order; ``directories`` biggest first."""

    entries: tuple[ListedEntry, ...]
    directories: tuple[DirectorySize, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, slots=True)
class PathExplanation:
    """Whether ``path`` is in the context and why. ``rule`` and ``line``: the ignore file's deciding line, None if no line matches;
    ``exists``: whether there is such a file at all."""

    path: str
    kept: bool
    exists: bool
    rule: str | None
    line: int | None
    ignore_name: str

    def __str__(self) -> str:
        if not self.exists:
            state = "does not exist"
        elif self.kept:
            state = "is in the build context"
        else:
            state = "is excluded"
        if self.rule is None:
            return f"{self.path} {state}" + (": no line of the ignore file matches it" if self.ignore_name else "")
        where = f"{self.ignore_name}:{self.line}" if self.line is not None else self.ignore_name
        return f"{self.path} {state}: {where} decides with {self.rule!r}"


def list_context(view: FileView, *, biggest: int = 10) -> ContextListing:
    """Walk ``view``; ``biggest`` limits the directories that are told."""
    entries: list[ListedEntry] = []
    sizes: dict[str, list[int]] = {}
    for path, kind, size in _walk(view, ""):
        entries.append(ListedEntry(path, kind, size))
        parent = path.rpartition("/")[0]
        while parent:
            totals = sizes.setdefault(parent, [0, 0])
            totals[0] += size
            totals[1] += 1
            parent = parent.rpartition("/")[0]
    directories = sorted(
        (DirectorySize(path, size, count) for path, (size, count) in sizes.items()),
        key=lambda directory: (-directory.size, -directory.entries, directory.path),
    )
    return ContextListing(tuple(entries), tuple(directories[:biggest]))


def _walk(view: FileView, directory: str) -> Iterator[tuple[str, Kind, int]]:
    for name, node in view.children(directory):
        path = f"{directory}/{name}" if directory else name
        yield path, node.kind, node.size
        if node.kind is Kind.DIRECTORY:
            yield from _walk(view, path)


def explain_path(path: str, *, root: str, ignore: IgnoreMatcher | None, ignore_name: str) -> PathExplanation:
    """Explain ``path`` (relative to ``root``, the context's directory)."""
    cleaned = os.path.normpath(path).lstrip("/")
    exists = cleaned != ".." and not cleaned.startswith("../") and os.path.lexists(os.path.join(root, cleaned))
    decided = ignore.explain(cleaned) if ignore is not None else None
    excluded = ignore is not None and ignore.excluded(cleaned)
    rule, line = decided if decided is not None else (None, None)
    return PathExplanation(cleaned, exists and not excluded, exists, rule, line, ignore_name)
