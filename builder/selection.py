"""What an operation takes from a tree of files: the rules of COPY and ADD (globs, links that are named, ``--parents``, ``--exclude``), and
of mounts.

Owns walking a tree once; the result serves the content digest and, later, the copy. Reads no file and copies nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pybuild.errors import PybuildError
from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView, Node
from pybuild.parser.dockerignore import DirectoryState, IgnoreMatcher
from pybuild.parser.patterns import go_match, has_wildcards
from pybuild.values import dataclass

from .copy_paths import join, resolve
from .graph import FileCopy


class SourceNotFound(PybuildError):
    """A path that COPY, ADD or a mount names is not in its tree."""

    def __init__(self, path: str, *, hint: str | None = None) -> None:
        super().__init__(f'"{path}": not found', hint=hint)
        self.path = path

    def inside(self, tree: str, *, hint: str | None) -> SourceNotFound:
        """The same error in the words of the reference, which scripts look for; ``tree`` names where it was looked for."""
        error = SourceNotFound(self.path, hint=hint or self.hint)
        error.message = f"failed to compute cache key: failed to calculate checksum of ref {tree}: {self.message}"
        error.args = (error.message,)
        return error


class BaseNotFound(PybuildError):
    """The directory in which a wildcard should be looked for doesn't exist."""

    def __init__(self, path: str) -> None:
        super().__init__(f"lstat {path}: no such file or directory", hint="only the wildcard itself may match nothing")
        self.path = path


@dataclass(frozen=True, slots=True)
class Match:
    """One path that was selected, with everything below it.

    ``name``: its last element as it was named (a link's name, not its target's); ``path``: where it is, links resolved;
    ``below``: (relative path, node), parents before what is in them; ``implied``: those of them that were not selected themselves
    but hold something that was.
    """

    name: str
    path: str
    node: Node
    below: tuple[tuple[str, Node], ...] = ()
    implied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Selection:
    """What an operation selects: for each of its sources the matches, in the order in which they are copied."""

    sources: tuple[tuple[Match, ...], ...]

    @property
    def count(self) -> int:
        """How many paths are selected."""
        return sum(1 + len(match.below) for matches in self.sources for match in matches)


class FileChanged(PybuildError):
    """A selected file was changed between the moment it was looked at and the end of its copying."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path!r} was changed while it was being copied",
            hint="build again when nothing writes to the context any more",
        )
        self.path = path


def check_unchanged(selection: Selection) -> None:
    """See that every selected file of this machine is still what the walk saw: otherwise a layer would be remembered for content that it
    doesn't have. Raises FileChanged."""
    lstat = os.lstat
    for matches in selection.sources:
        for match in matches:
            for _, node in (("", match.node), *match.below):
                if node.kind is not Kind.FILE or node.host_path is None or not node.ctime_ns:
                    continue
                try:
                    now = lstat(node.host_path)
                except OSError:
                    raise FileChanged(node.host_path) from None
                # The change time moves with every write, and nothing can set it back.
                if (now.st_ctime_ns, now.st_size) != (node.ctime_ns, node.size):
                    raise FileChanged(node.host_path)


# --- selecting -----------------------------------------------------------------------------------------------------------


def select_copy(view: FileView, op: FileCopy, *, literal: bool = False) -> Selection:
    """What ``op`` copies from ``view``. ``literal``: sources are no patterns and a named link is not followed (downloads).

    Raises SourceNotFound, BaseNotFound, BadPattern, BadIgnorePattern.
    """
    exclude = IgnoreMatcher(op.exclude) if op.exclude else None
    sources: list[tuple[Match, ...]] = []
    for source in op.sources:
        if op.parents and not literal:
            sources.append(_with_parents(view, source, exclude, op.must_exist))
        else:
            sources.append(
                tuple(
                    _match(view, path, name, exclude=exclude, follow=not literal)
                    for path, name in _expand(view, source, literal=literal, must_exist=op.must_exist)
                )
            )
    return Selection(tuple(sources))


def select_path(view: FileView, path: str) -> Selection:
    """All that a mount of ``path`` shows; a symbolic link is followed. Raises SourceNotFound."""
    return Selection(((_match(view, path, path.rstrip("/").rpartition("/")[2], exclude=None, follow=True),),))


def _expand(view: FileView, source: str, *, literal: bool, must_exist: bool) -> list[tuple[str, str]]:
    """The paths that one source names, with their last elements as written."""
    parts = [part for part in source.split("/") if part and part != "."]
    fixed = len(parts)
    if not literal:
        fixed = next((index for index, part in enumerate(parts) if has_wildcards(part)), fixed)
    if fixed == len(parts):
        path = "/".join(parts)
        if not must_exist and view.lookup(resolve(view.lookup, path, follow_last=not literal)) is None:
            return []
        return [(path, parts[-1] if parts else "")]
    base = resolve(view.lookup, "/".join(parts[:fixed]))
    if base and view.lookup(base) is None:
        raise BaseNotFound("/" + "/".join(parts[:fixed]))
    found = [base]
    for index, pattern in enumerate(parts[fixed:], start=fixed + 1):
        last = index == len(parts)
        found = [
            join(directory, name)
            for directory in found
            for name, node in view.children(directory)
            if (last or node.kind is Kind.DIRECTORY) and go_match(pattern, name)
        ]
    # Go's filepath.Walk visits in order of names, directory by directory.
    return [(path, path.rpartition("/")[2]) for path in sorted(found, key=lambda path: path.split("/"))]


def _match(
    view: FileView,
    path: str,
    name: str,
    *,
    exclude: IgnoreMatcher | None,
    follow: bool,
    include: IgnoreMatcher | None = None,
    prefix: tuple[str, ...] = (),
) -> Match:
    where = resolve(view.lookup, path, follow_last=follow)
    node = view.lookup(where)
    if node is None:
        raise SourceNotFound("/" + path.strip("/"))
    if node.kind is not Kind.DIRECTORY:
        return Match(name, where, node)
    if exclude is None and include is None:
        return Match(name, where, node, _walk_all(view, where))
    below, implied = _walk(view, where, exclude, include, prefix)
    return Match(name, where, node, below, implied)


def _with_parents(view: FileView, source: str, exclude: IgnoreMatcher | None, must_exist: bool) -> tuple[Match, ...]:
    """``--parents``: what comes after ``/./`` (or the whole path) is a pattern that is matched below what comes before it."""
    before, pivot, after = source.partition("/./")
    base, pattern = (before, after) if pivot else ("/", source)
    pattern = "/".join(part for part in pattern.split("/") if part and part != ".")
    include = IgnoreMatcher([pattern]) if pattern else None
    parts = pattern.split("/") if pattern else []
    literal = next((index for index, part in enumerate(parts) if has_wildcards(part) or "**" in part), len(parts))
    matches = tuple(
        _match(view, path, name, exclude=exclude, follow=True, include=include, prefix=tuple(parts[:literal]))
        for path, name in _expand(view, base, literal=False, must_exist=must_exist)
    )
    if must_exist and not has_wildcards(base) and literal == len(parts):
        wanted = "/".join(part for part in (base.strip("/"), pattern) if part)
        if pattern and not any(rel == pattern for match in matches for rel, _ in match.below):
            raise SourceNotFound("/" + wanted)
    return matches


def _walk_all(view: FileView, root: str) -> tuple[tuple[str, Node], ...]:
    out: list[tuple[str, Node]] = []
    append = out.append
    # A stack of iterators instead of recursion: trees may be deep.
    directory = Kind.DIRECTORY
    stack = [("", iter(view.children(root)))]
    while stack:
        prefix, entries = stack[-1]
        for name, node in entries:
            path = prefix + name
            append((path, node))
            if node.kind is directory:
                stack.append((path + "/", iter(view.children(join(root, path)))))
                break
        else:
            stack.pop()
    return tuple(out)


def _walk(
    view: FileView,
    root: str,
    exclude: IgnoreMatcher | None,
    include: IgnoreMatcher | None,
    prefix: tuple[str, ...],
) -> tuple[tuple[tuple[str, Node], ...], frozenset[str]]:
    out: list[tuple[str, Node]] = []
    implied: set[str] = set()
    waiting: list[tuple[str, Node]] = []  # directories above that were not selected themselves, outermost first
    # A stack instead of recursion: trees may be deep.
    stack = [
        _Level("", iter(view.children(root)), exclude.root if exclude else None, include.root if include else None)
    ]
    while stack:
        level = stack[-1]
        item = next(level.children, None)
        if item is None:
            stack.pop()
            if level.waits:
                waiting.pop()
            continue
        name, node = item
        here = join(level.path, name)
        excluding, including = level.excluding, level.including
        excluded = excluding is not None and excluding.excludes(name)
        selected = not excluded and (including is None or including.excludes(name))
        if selected:
            for above, above_node in waiting:
                if above not in implied:
                    implied.add(above)
                    out.append((above, above_node))
            out.append((here, node))
        if node.kind is not Kind.DIRECTORY:
            continue
        inner = None if excluding is None else excluding.enter(name)
        if excluded and inner is not None and not inner.worth_entering:
            continue
        depth = len(stack) - 1
        if including is not None and not selected and depth < len(prefix) and name != prefix[depth]:
            continue
        if not selected:
            waiting.append((here, node))
        entered = None if including is None else including.enter(name)
        stack.append(_Level(here, iter(view.children(join(root, here))), inner, entered, waits=not selected))
    return tuple(out), frozenset(implied)


@dataclass(slots=True)
class _Level:
    """A directory that is being walked; ``waits``: it was not selected itself."""

    path: str
    children: Iterator[tuple[str, Node]]
    excluding: DirectoryState | None
    including: DirectoryState | None
    waits: bool = False
