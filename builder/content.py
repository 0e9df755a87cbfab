"""Content digests: what a selection of files is, whatever its times and wherever it lies.

Owns the encoding that makes a digest of a selection, and reading (in threads) just those files whose stat the cache's index doesn't know.
Selects nothing: ``selection.py`` does.

Into the digest go paths, kinds, modes, owners where the copy keeps them, link targets, devices, file contents and those extended
attributes that reach a layer. Times don't, nor does what the copy overrides (an octal ``--chmod``, ``--chown``).
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import CHUNK_BYTES, Digest
from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView, Node
from pybuild.values import dataclass

from .copy_modes import ModeChange, parse_mode
from .graph import FileCopy
from .protocols import CacheIndex
from .selection import Match, Selection

Xattrs: TypeAlias = tuple[tuple[str, bytes], ...]

RECIPE_PATHS: Final = 2000
"""A recipe lists the digests of single paths up to this many."""

_PARALLEL_READS: Final = 4
_BATCH: Final = 256
_MANY: Final = 100
_SMALL_BYTES: Final = 1 << 20


class FileUnreadable(PybuildError):
    """A selected file can't be read."""

    def __init__(self, path: str, *, why: str) -> None:
        super().__init__(
            f"failed to read {path}: {why.lower()}", hint="exclude it in .dockerignore if the build doesn't need it"
        )
        self.path = path


@dataclass(frozen=True, slots=True)
class ContentDigest:
    """The digest of a selection.

    ``paths``: (path in the tree, what counted about it, in short) while there are not too many; ``total``: how many were selected;
    ``read_bytes``: how much had to be read to know it; ``xattrs``: the attributes that files have, by path, None if nobody looked;
    ``files``: the digest (hex) of every regular file, in the selection's order.
    """

    text: str
    paths: tuple[tuple[str, str], ...]
    total: int
    read_bytes: int
    xattrs: Mapping[str, Xattrs] | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DigestRules:
    """Which metadata counts: owners (``keep_owner``), extended attributes, modes after ``mode``; and of a directory whose contents
    are copied, its own metadata (``tops``)."""

    owners: bool
    xattrs: bool
    mode: ModeChange | None = None
    tops: bool = False

    @classmethod
    def of_copy(cls, op: FileCopy) -> DigestRules:
        """What matters to a copy."""
        return cls(
            owners=op.keep_owner and not op.owner,
            xattrs=op.keep_owner,
            mode=None if op.mode is None else parse_mode(op.mode),
        )


class ContentReader:
    """Computes content digests, in threads where files must be read. ``cancel``: stop reading once it is set; ``preload``: told of a directory
    before the digests of many files below it are asked for."""

    def __init__(
        self, cache: CacheIndex, *, cancel: threading.Event, preload: Callable[[str], object] | None = None
    ) -> None:
        self._cache = cache
        self._cancel = cancel
        self._preload = preload
        self._preloaded: set[str] = set()

    def digest(self, view: FileView, selection: Selection, rules: DigestRules) -> ContentDigest:
        """The content digest of ``selection`` in ``view``. Raises FileUnreadable, Cancelled."""
        files = _files(selection)
        contents, read_bytes = self._contents(view, files)
        hasher = hashlib.sha256(b"pybuild selection\n")
        paths: list[tuple[str, str]] = []
        xattrs: dict[str, Xattrs] | None = {} if rules.xattrs else None
        keep = selection.count <= RECIPE_PATHS
        number = 0
        for matches in selection.sources:
            hasher.update(b"source\n")
            for match in matches:
                lines, number = self._lines(view, match, rules, contents, number, xattrs)
                hasher.update("\n".join(lines).encode("utf-8", "surrogateescape"))
                hasher.update(b"\n\n")
                if keep:
                    paths += _paths(match, lines)
        text = f"content:{hasher.hexdigest()}"
        return ContentDigest(text, tuple(paths), selection.count, read_bytes, xattrs, tuple(contents))

    def _lines(
        self,
        view: FileView,
        match: Match,
        rules: DigestRules,
        contents: Sequence[str],
        number: int,
        xattrs: dict[str, Xattrs] | None,
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
            if xattrs is not None:
                first += _xattrs(view, match.path, node, xattrs)
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
                if xattrs is not None:
                    line += _xattrs(view, base + rel, node, xattrs)
            if node.identity is not None and node.identity in groups:
                line += f"\0linked\0{groups[node.identity]}"
            append(line)
        if any("\n" in line for line in lines):
            lines = [line.replace("\n", "\0N") for line in lines]
        return lines, number

    # --- file contents -----------------------------------------------------------------------------------------------

    def _contents(self, view: FileView, files: Sequence[tuple[str, Node]]) -> tuple[list[str], int]:
        """The content digests (hex) of regular files, in order, and how many bytes were read for them."""
        self._expect(files)
        out = self._cache.file_digests([node for _, node in files])
        unknown = [index for index, digest in enumerate(out) if not digest]
        if not unknown:
            return out, 0
        here = [index for index in unknown if files[index][1].host_path is None]
        on_disk = [index for index in unknown if files[index][1].host_path is not None]
        for index in here:
            with view.open(files[index][0]) as file:
                out[index] = Digest.of_stream(file).hex
        batches = [on_disk[start : start + _BATCH] for start in range(0, len(on_disk), _BATCH)]
        if len(batches) > 1:
            from concurrent.futures import ThreadPoolExecutor

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

    def _expect(self, files: Sequence[tuple[str, Node]]) -> None:
        """Have what is known of many files loaded at once, for each directory tree of this machine that they come from."""
        if self._preload is None or len(files) < _MANY:
            return
        roots = {
            node.host_path[: -len(path)].rstrip("/")
            for path, node in files
            if node.host_path is not None and node.ctime_ns and node.host_path.endswith("/" + path)
        }
        for root in sorted(roots - self._preloaded):
            self._preloaded.add(root)
            self._preload(root)

    def _read_batch(self, files: Sequence[tuple[str, Node]], batch: Iterable[int]) -> list[tuple[str, bool]]:
        if self._cancel.is_set():
            raise Cancelled
        return [self._read(files[index][1]) for index in batch]

    def _read(self, node: Node) -> tuple[str, bool]:
        """The digest of a file on this machine, and whether its stat is still what the walk saw."""
        assert node.host_path is not None
        small = node.size < _SMALL_BYTES
        try:
            # O_NOFOLLOW: it may have become a link since the walk; O_NONBLOCK: or a pipe.
            descriptor = os.open(node.host_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                # One byte more than expected: a short answer is the end of the file, without asking again.
                data = os.read(descriptor, node.size + 1 if small else CHUNK_BYTES)
                hasher = hashlib.sha256(data, usedforsecurity=False)
                while data and not (small and len(data) <= node.size):
                    if self._cancel.is_set():
                        raise Cancelled
                    data = os.read(descriptor, CHUNK_BYTES)
                    hasher.update(data)
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


def _files(selection: Selection) -> list[tuple[str, Node]]:
    """The regular files of a selection in its order, with their paths in the tree."""
    files: list[tuple[str, Node]] = []
    regular = Kind.FILE
    for matches in selection.sources:
        for match in matches:
            if match.node.kind is regular:
                files.append((match.path, match.node))
            base = match.path + "/" if match.path else ""
            files += [(base + rel, node) for rel, node in match.below if node.kind is regular]
    return files


def contents_by_host_path(selection: Selection, content: ContentDigest) -> dict[str, str]:
    """The sha256 (hex) of the selected files that lie on this machine, by their path there."""
    files = zip(_files(selection), content.files, strict=True)
    return {node.host_path: digest for (_, node), digest in files if node.host_path is not None}


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


def _xattrs(view: FileView, path: str, node: Node, seen: dict[str, Xattrs]) -> str:
    if node.kind is not Kind.FILE:
        return ""
    found = view.xattrs(path)
    if not found:
        return ""
    seen[path] = tuple(sorted(found.items()))
    return "".join(f"\0{name}={value.hex()}" for name, value in seen[path])


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
