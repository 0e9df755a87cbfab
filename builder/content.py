"""What an operation takes from a tree of files: the selection, and its content digest.

Owns the selection rules of COPY and ADD (globs, links that are named, ``--parents``, ``--exclude``) and of mounts, and the encoding
that makes a digest of what was selected. One walk serves the digest and, later, the copy. Never copies anything, and reads only files
whose stat the cache's index doesn't know.

Into the digest go paths, kinds, modes, owners where the copy keeps them, link targets, devices, file contents and those extended
attributes that reach a layer. Times don't, nor does what the copy overrides (an octal ``--chmod``, ``--chown``).
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import CHUNK_BYTES, Digest
from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView, Node
from pybuild.parser.dockerignore import DirectoryState, IgnoreMatcher
from pybuild.parser.patterns import go_match, has_wildcards

from .copy_modes import ModeChange, parse_mode
from .copy_paths import join, resolve
from .graph import FileCopy
from .protocols import CacheIndex

RECIPE_PATHS: Final = 2000
"""A recipe lists the digests of single paths up to this many."""

_PARALLEL_READS: Final = 4
_BATCH: Final = 64


class SourceNotFound(PybuildError):
    """A path that COPY, ADD or a mount names is not in its tree."""

    def __init__(self, path: str, *, hint: str | None = None) -> None:
        super().__init__(f'"{path}": not found', hint=hint)
        self.path = path


class BaseNotFound(PybuildError):
    """The directory in which a wildcard should be looked for doesn't exist."""

    def __init__(self, path: str) -> None:
        super().__init__(f"lstat {path}: no such file or directory", hint="only the wildcard itself may match nothing")
        self.path = path


class FileUnreadable(PybuildError):
    """A selected file can't be read."""

    def __init__(self, path: str, *, why: str) -> None:
        super().__init__(f"{path}: {why}")
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
                # The change time, which nothing can set back, moves with every write; it also moves when a link is added or a mode
                # changes, which is no reason to fail.
                if (now.st_mtime_ns, now.st_size) != (node.mtime_ns, node.size) or (
                    now.st_ctime_ns != node.ctime_ns and now.st_ino != node.inode[1]
                ):
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

    def visit(path: str, excluding: DirectoryState | None, including: DirectoryState | None, depth: int) -> None:
        for name, node in view.children(join(root, path)):
            here = f"{path}/{name}" if path else name
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
            inner_exclude = None if excluding is None else excluding.enter(name)
            if excluded and inner_exclude is not None and not inner_exclude.worth_entering:
                continue
            if including is not None and not selected and depth < len(prefix) and name != prefix[depth]:
                continue
            if not selected:
                waiting.append((here, node))
            visit(here, inner_exclude, None if including is None else including.enter(name), depth + 1)
            if not selected:
                waiting.pop()

    visit("", exclude.root if exclude else None, include.root if include else None, 0)
    return tuple(out), frozenset(implied)


# --- digests -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContentDigest:
    """The digest of a selection. ``paths``: (path in the tree, digest of what is there) while there are not too many; ``total``: how
    many were selected; ``read_bytes``: how much had to be read to know it."""

    text: str
    paths: tuple[tuple[str, str], ...]
    total: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class DigestRules:
    """Which metadata counts: owners (``keep_owner``), extended attributes, modes after ``mode``; and of a directory whose contents
    are copied, its own metadata (``tops``)."""

    owners: bool
    xattrs: bool
    mode: ModeChange | None = None
    tops: bool = False

    @classmethod
    def of_copy(cls, op: FileCopy, *, literal: bool = False) -> DigestRules:
        """What matters to a copy."""
        return cls(
            owners=op.keep_owner and not op.owner,
            xattrs=op.keep_owner,
            mode=None if op.mode is None else parse_mode(op.mode),
            tops=literal,
        )


class ContentReader:
    """Computes content digests, in threads where files must be read. ``cancel``: stop reading once it is set."""

    def __init__(self, cache: CacheIndex, *, cancel: threading.Event) -> None:
        self._cache = cache
        self._cancel = cancel

    def digest(self, view: FileView, selection: Selection, rules: DigestRules) -> ContentDigest:
        """The content digest of ``selection`` in ``view``. Raises FileUnreadable, Cancelled."""
        files: list[tuple[str, Node]] = []
        regular = Kind.FILE
        for matches in selection.sources:
            for match in matches:
                if match.node.kind is regular:
                    files.append((match.path, match.node))
                base = match.path + "/" if match.path else ""
                files += [(base + rel, node) for rel, node in match.below if node.kind is regular]
        contents, read_bytes = self._contents(view, files)
        hasher = hashlib.sha256(b"pybuild selection\n")
        paths: list[tuple[str, str]] = []
        keep = selection.count <= RECIPE_PATHS
        number = 0
        for matches in selection.sources:
            hasher.update(b"source\n")
            for match in matches:
                lines, number = self._lines(view, match, rules, contents, number)
                hasher.update("\n".join(lines).encode("utf-8", "surrogateescape"))
                hasher.update(b"\n\n")
                if keep:
                    paths += _paths(match, lines)
        return ContentDigest(f"content:{hasher.hexdigest()}", tuple(paths), selection.count, read_bytes)

    def _lines(
        self, view: FileView, match: Match, rules: DigestRules, contents: Sequence[str], number: int
    ) -> tuple[list[str], int]:
        """One line for each path of a match: ``name NUL kind NUL fields``, its newlines doubled as NUL N."""
        node = match.node
        if node.kind is Kind.DIRECTORY and not rules.tops:
            # Contents are copied into a directory that exists or that the copy makes: the source's own metadata doesn't count.
            first = "\0directory"
        else:
            name = "" if node.kind is Kind.DIRECTORY else match.name
            first = _line(name, node, rules, contents, number)
            number += node.kind is Kind.FILE
            if rules.xattrs:
                first += _xattrs(view, match.path, node)
        lines = [first]
        append = lines.append
        base = match.path + "/" if match.path else ""
        regular, link = Kind.FILE, Kind.SYMLINK
        plain = rules.mode is None and not rules.owners and not rules.xattrs
        groups = _link_groups(match)
        for rel, node in match.below:
            kind = node.kind
            if plain and kind is regular:
                line = f"{rel}\0file\0{node.mode:o}\0{contents[number]}"
                number += 1
            elif plain and kind is link:
                line = f"{rel}\0symlink\0{node.target}"
            else:
                line = _line(rel, node, rules, contents, number)
                number += kind is regular
                if rules.xattrs:
                    line += _xattrs(view, base + rel, node)
            if node.identity is not None and node.identity in groups:
                line += f"\0linked\0{groups[node.identity]}"
            append(line)
        if any("\n" in line for line in lines):
            lines = [line.replace("\n", "\0N") for line in lines]
        return lines, number

    # --- file contents -----------------------------------------------------------------------------------------------

    def _contents(self, view: FileView, files: Sequence[tuple[str, Node]]) -> tuple[list[str], int]:
        """The content digests (hex) of regular files, in order, and how many bytes were read for them."""
        known = self._cache.file_digest
        out: list[str] = []
        unknown: list[int] = []
        for index, (_, node) in enumerate(files):
            digest = None
            if node.host_path is not None and node.ctime_ns:
                digest = known(
                    node.host_path,
                    inode=node.inode,
                    size=node.size,
                    mtime_ns=node.mtime_ns,
                    ctime_ns=node.ctime_ns,
                )
            if digest is None:
                unknown.append(index)
                out.append("")
            else:
                out.append(digest.hex)
        if not unknown:
            return out, 0
        here = [index for index in unknown if files[index][1].host_path is None]
        on_disk = [index for index in unknown if files[index][1].host_path is not None]
        for index in here:
            with view.open(files[index][0]) as file:
                out[index] = Digest.of_stream(file).hex
        batches = [on_disk[start : start + _BATCH] for start in range(0, len(on_disk), _BATCH)]
        if len(batches) > 1:
            with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read") as pool:
                results = list(pool.map(lambda batch: self._read_batch(files, batch), batches))
        else:
            results = [self._read_batch(files, batch) for batch in batches]
        stable: list[tuple[str, tuple[int, int], int, int, int, Digest]] = []
        for batch, digests in zip(batches, results):
            for index, (value, unchanged) in zip(batch, digests):
                out[index] = value
                node = files[index][1]
                if unchanged and node.host_path is not None and node.ctime_ns:
                    digest = Digest("sha256", value)
                    stable.append((node.host_path, node.inode, node.size, node.mtime_ns, node.ctime_ns, digest))
        if stable:
            self._cache.remember_file_digests(stable)
        return out, sum(files[index][1].size for index in unknown)

    def _read_batch(self, files: Sequence[tuple[str, Node]], batch: Iterable[int]) -> list[tuple[str, bool]]:
        if self._cancel.is_set():
            raise Cancelled
        return [self._read(files[index][1]) for index in batch]

    def _read(self, node: Node) -> tuple[str, bool]:
        """The digest of a file on this machine, and whether its stat is still what the walk saw."""
        assert node.host_path is not None
        hasher = hashlib.sha256(usedforsecurity=False)
        try:
            # O_NOFOLLOW: it may have become a link since the walk; O_NONBLOCK: or a pipe.
            descriptor = os.open(node.host_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                while chunk := os.read(descriptor, CHUNK_BYTES):
                    hasher.update(chunk)
                    if self._cancel.is_set():
                        raise Cancelled
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FileUnreadable(node.host_path, why=error.strerror or str(error)) from error
        unchanged = (
            stat.S_ISREG(after.st_mode)
            and after.st_size == node.size
            and after.st_mtime_ns == node.mtime_ns
            and after.st_ctime_ns == node.ctime_ns
            and (after.st_dev, after.st_ino) == node.inode
        )
        return hasher.hexdigest(), unchanged


def _line(rel: str, node: Node, rules: DigestRules, contents: Sequence[str], number: int) -> str:
    kind = node.kind
    owner = f"\0{node.uid}:{node.gid}" if rules.owners else ""
    if kind is Kind.SYMLINK:
        return f"{rel}\0symlink\0{node.target}{owner}"
    mode = node.mode if rules.mode is None else rules.mode.apply(node.mode, directory=kind is Kind.DIRECTORY)
    if kind is Kind.FILE:
        return f"{rel}\0file\0{mode:o}\0{contents[number]}{owner}"
    device = f"\0{node.device[0]}:{node.device[1]}" if node.device is not None else ""
    return f"{rel}\0{kind.value}\0{mode:o}{device}{owner}"


def _xattrs(view: FileView, path: str, node: Node) -> str:
    if node.kind is not Kind.FILE:
        return ""
    return "".join(f"\0{name}={value.hex()}" for name, value in sorted(view.xattrs(path).items()))


def _link_groups(match: Match) -> dict[tuple[int, int], str]:
    """For hard links of one file within a match: the first path of each group that has several."""
    seen: dict[tuple[int, int], str] = {}
    several: dict[tuple[int, int], str] = {}
    for rel, node in match.below:
        if node.identity is not None and node.kind is not Kind.DIRECTORY:
            first = seen.setdefault(node.identity, rel)
            if first is not rel:
                several[node.identity] = first
    return several


def _paths(match: Match, lines: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(path, what counted about it in short): enough to say which one differs, and in what."""
    base = match.path + "/" if match.path else ""
    names = [match.path, *(base + rel for rel, _ in match.below)]
    for name, line in zip(names, lines):
        kind, *fields = line.split("\0")[1:]
        if kind == "file":
            mode, content, *rest = fields
            fields = [mode, content[:12], *rest]
        yield name, " ".join([kind, *fields])
