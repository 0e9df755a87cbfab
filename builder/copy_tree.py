"""A root file system with changes on top that are not written yet: what COPY, ADD and WORKDIR build a layer from.

Owns the pending changes, looking through them at what lies below, and turning them into layer entries the way BuildKit's differ
would: an entry that equals what is below is left out, a directory that only got another mtime too, and the directories above
each change come along. Writes nothing.

Times that no source gives (of directories made on the way, of heredocs) are ``MADE_NS``, so that the same input always gives the same
layer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Final

from pybuild.errors import PybuildError
from pybuild.layers.digest import CHUNK_BYTES
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.views import FileView, Node
from pybuild.values import replace

from .copy_paths import join, parent_of, resolve

MADE_NS: Final = 315_619_200 * 1_000_000_000
"""1980-01-02T00:00:00Z: the first day that zip archives (and so Python wheels) can hold whatever the time zone."""

_SECOND: Final = 1_000_000_000


class NotADirectory(PybuildError):
    """A path should be a directory, and is something else."""


class CannotReplace(PybuildError):
    """A file would replace a directory, or a directory something else."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message, hint=f"remove or rename /{path} in an earlier step, or copy to another place")
        self.path = path


class PendingTree:
    """Changes on top of ``below`` (None: nothing is below). Not safe for several threads."""

    def __init__(self, below: FileView | None) -> None:
        self._below = below
        self.made: dict[str, LayerEntry] = {}
        """What is pending, by path. ``put`` keeps account; only new files of new directories may be added directly."""
        self._new_directories: set[str] = set()  # nothing of what is below shows in them
        self._groups: dict[str, object] = {}
        self._known: dict[str, Node | None] = {}

    # --- looking -----------------------------------------------------------------------------------------------------

    def lookup(self, path: str) -> Node | None:
        """The node at ``path`` as it will be; the last element is not followed."""
        made = self.made.get(path)
        if made is not None:
            if made.kind is Kind.WHITEOUT:
                return None
            return Node(
                made.kind, made.mode, made.uid, made.gid, made.size, made.mtime_ns, made.link, device=made.device
            )
        return self._lower(path)

    def resolve(self, path: str) -> str:
        """``path`` with all symbolic links followed inside the root."""
        return resolve(self.lookup, path)

    def _lower(self, path: str) -> Node | None:
        """What is below at ``path`` and still shows."""
        if self._below is None:
            return Node(Kind.DIRECTORY, 0o755, 0, 0) if not path else None
        if path and self._new_directories and self._hidden(path):
            return None
        return self._beneath(path)

    def _beneath(self, path: str) -> Node | None:
        if self._below is None:
            return None
        if path not in self._known:
            self._known[path] = self._below.lookup(path)
        return self._known[path]

    def _hidden(self, path: str) -> bool:
        parent = parent_of(path)
        while parent:
            if parent in self._new_directories:
                return True
            made = self.made.get(parent)
            if made is not None and made.kind is not Kind.DIRECTORY:
                return True
            parent = parent_of(parent)
        return False

    # --- changing ----------------------------------------------------------------------------------------------------

    def is_new(self, path: str) -> bool:
        """True if ``path`` is a directory made here that has nothing in it yet."""
        return path in self._new_directories and next(reversed(self.made)) == path

    def make_directories(
        self, path: str, *, mode: int, uid: int = 0, gid: int = 0, mtime_ns: int = MADE_NS, inherit: bool = False
    ) -> None:
        """Make the directory ``path`` (links resolved) and what is missing above it. Below a set-group-ID
        directory it is as with mkdir(2); ``inherit``: nobody asked for an owner, so that the group comes from there too. Raises NotADirectory."""
        missing: list[str] = []
        node = None
        while path:
            node = self.lookup(path)
            if node is not None:
                if node.kind is not Kind.DIRECTORY:
                    raise NotADirectory(f"mkdir /{path}: not a directory")
                break
            missing.append(path)
            path = parent_of(path)
        if node is not None and node.mode & stat.S_ISGID:
            mode, gid = mode | stat.S_ISGID, node.gid if inherit else gid
        for directory in reversed(missing):
            self.put(LayerEntry(directory, Kind.DIRECTORY, mode, uid, gid, mtime_ns))

    def put(self, entry: LayerEntry, *, group: object = None) -> None:
        """Set what is at a path. ``group``: equal for hard links of one file."""
        path = entry.path
        made = self.made.get(path)
        if entry.kind is Kind.DIRECTORY and (made is None or made.kind is not Kind.DIRECTORY):
            lower = self._lower(path)
            if lower is None or lower.kind is not Kind.DIRECTORY or made is not None:
                self._new_directories.add(path)
        self.made[path] = entry
        if group is not None:
            self._groups[path] = group
        elif self._groups:
            self._groups.pop(path, None)

    def touch_directory(self, path: str, *, mtime_ns: int) -> None:
        """Give a directory that exists another mtime."""
        if not path:
            return
        made = self.made.get(path)
        if made is None:
            node = self._lower(path)
            assert node is not None
            self.made[path] = replace(self._directory_entry(path, node), mtime_ns=mtime_ns)
        else:
            self.made[path] = replace(made, mtime_ns=mtime_ns)

    def link(self, origin: str, path: str) -> None:
        """Make ``path`` another name of the file at ``origin``, which exists."""
        entry = self.made.get(origin)
        if entry is None:
            node = self._lower(origin)
            assert node is not None
            assert self._below is not None
            data = None
            if node.kind is Kind.FILE and node.host_path is None:
                with self._below.open(origin) as file:
                    data = file.read()
            entry = LayerEntry(
                path=origin,
                kind=node.kind,
                mode=node.mode,
                uid=node.uid,
                gid=node.gid,
                mtime_ns=node.mtime_ns,
                size=node.size,
                link=node.target,
                data=data,
                host_path=node.host_path if node.kind is Kind.FILE else None,
                device=node.device or (0, 0),
                xattrs=tuple(sorted(self._below.xattrs(origin).items())),
            )
            self.put(entry)
        group = self._groups.setdefault(origin, object())
        self.put(replace(entry, path=path), group=group)

    def amend(self, path: str, *, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        """Change the file at ``path``, which is pending, under all names that it has here."""
        entry = self.made[path]
        if (entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (mode, uid, gid, mtime_ns):
            return
        group = self._groups.get(path)
        for name in [path] if group is None else [name for name, its in self._groups.items() if its is group]:
            self.made[name] = replace(self.made[name], mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns)

    def remove(self, path: str) -> None:
        """Take away what is at ``path`` and below it, to put something else there."""
        node = self.lookup(path)
        if node is None:
            return
        if node.kind is Kind.DIRECTORY:
            for below in [made for made in self.made if made.startswith(path + "/")]:
                self._forget(below)
        self._forget(path)
        # Whatever comes here next starts anew, even a directory over a directory.
        self.made[path] = LayerEntry(path, Kind.WHITEOUT)

    def _forget(self, path: str) -> None:
        self.made.pop(path, None)
        self._new_directories.discard(path)
        self._groups.pop(path, None)

    # --- the layer ---------------------------------------------------------------------------------------------------

    def entries(self) -> list[LayerEntry]:
        """The layer's entries, sorted by path."""
        recorded: dict[str, LayerEntry] = {}
        quiet: dict[str, LayerEntry] = {}  # directories that changed no more than their mtime
        new = self._new_directories
        for path, entry in self.made.items():
            if path in new or path.rpartition("/")[0] in new:
                if entry.kind is not Kind.WHITEOUT:
                    recorded[path] = entry
                continue
            lower = self._lower(path)
            if entry.kind is Kind.DIRECTORY:
                if lower is not None and lower.kind is Kind.DIRECTORY and self._same_directory(entry, lower):
                    quiet[path] = entry
                else:
                    recorded[path] = entry
            elif entry.kind is Kind.WHITEOUT:
                if lower is not None:
                    recorded[path] = entry
            elif lower is None or not self._same_file(entry, lower):
                recorded[path] = entry
        for path in self._new_directories:
            self._uncover(path, recorded)
        self._link_groups(recorded)
        for path in list(recorded):
            parent = parent_of(path)
            while parent and parent not in recorded:
                recorded[parent] = quiet.get(parent) or self._existing_directory(parent)
                parent = parent_of(parent)
        return [recorded[path] for path in sorted(recorded)]

    def _existing_directory(self, path: str) -> LayerEntry:
        node = self._lower(path)
        assert node is not None, path
        return self._directory_entry(path, node)

    def _directory_entry(self, path: str, node: Node) -> LayerEntry:
        xattrs = () if self._below is None else tuple(sorted(self._below.xattrs(path).items()))
        return LayerEntry(path, Kind.DIRECTORY, node.mode, node.uid, node.gid, node.mtime_ns, xattrs=xattrs)

    def _uncover(self, path: str, recorded: dict[str, LayerEntry]) -> None:
        """One whiteout for each name that a new directory hides and doesn't have itself."""
        lower = None if self._hidden(path) else self._beneath(path)
        if lower is None or lower.kind is not Kind.DIRECTORY or self._below is None:
            return
        for name, _ in self._below.children(path):
            child = join(path, name)
            if child not in recorded:
                recorded[child] = LayerEntry(child, Kind.WHITEOUT)

    def _link_groups(self, recorded: dict[str, LayerEntry]) -> None:
        first: dict[object, str] = {}
        for path in sorted(self._groups):
            entry = recorded.get(path)
            if entry is None or entry.kind is not Kind.FILE:
                continue
            origin = first.setdefault(self._groups[path], path)
            if origin != path:
                recorded[path] = replace(entry, kind=Kind.HARDLINK, link=origin, data=None, host_path=None, size=0)

    def _same_directory(self, entry: LayerEntry, lower: Node) -> bool:
        return (entry.mode, entry.uid, entry.gid) == (lower.mode, lower.uid, lower.gid) and self._same_xattrs(entry)

    def _same_xattrs(self, entry: LayerEntry) -> bool:
        return self._below is None or dict(entry.xattrs) == dict(self._below.xattrs(entry.path))

    def _same_file(self, entry: LayerEntry, lower: Node) -> bool:
        if entry.kind is not lower.kind or (entry.uid, entry.gid) != (lower.uid, lower.gid):
            return False
        if entry.mtime_ns // _SECOND != lower.mtime_ns // _SECOND:
            return False
        if entry.kind is Kind.SYMLINK:
            return entry.link == lower.target
        if entry.mode != lower.mode or not self._same_xattrs(entry):
            return False
        if entry.kind is not Kind.FILE:
            return entry.device == (lower.device or (0, 0))
        if entry.size != lower.size:
            return False
        assert self._below is not None
        with self._below.open(entry.path) as other:
            return all(ours == theirs for ours, theirs in _chunks(entry, other))


def _chunks(entry: LayerEntry, other: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The contents of an entry and of a file of the same size, piece by piece."""
    if entry.host_path is None:
        yield entry.data or b"", other.read()
        return
    left = entry.size
    with open(os.fsencode(entry.host_path), "rb", buffering=0) as file:
        file.seek(entry.offset or 0)
        while left:
            ours = file.read(min(left, CHUNK_BYTES))
            theirs = other.read(len(ours) or 1)
            yield ours, theirs
            if not ours:
                return
            left -= len(ours)
