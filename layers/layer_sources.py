"""Single layers of a stack in every form that they have: unpacked, known as entries, still a tar in the store.

Owns reading them: names with whiteouts and opaque directories. Never combines layers (``tree_views`` does), never writes, never
follows a link.
"""

from __future__ import annotations

import io
import os
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO, Final

from pybuild.errors import PybuildError

from .entries import Kind, LayerEntry
from .views import Node
from .xattrs import CAPABILITY, Owners, is_opaque, layer_xattrs, recorded_owner

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


class NotAFile(PybuildError):
    """Content was asked for of something that is no regular file of the view."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{'/' + path!r} is not a regular file")
        self.path = path


# --- directories of this machine ----------------------------------------------------------------------------------------


def _node(status: os.stat_result, path: str, owners: Owners) -> Node:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    uid, gid = status.st_uid, status.st_gid
    if owners is Owners.RECORDED and (kind is Kind.FILE or kind is Kind.DIRECTORY):
        uid, gid = recorded_owner(path) or (uid, gid)
    return Node(
        kind=kind,
        mode=status.st_mode & 0o7777,
        uid=uid,
        gid=gid,
        size=status.st_size if kind is Kind.FILE else 0,
        mtime_ns=status.st_mtime_ns,
        target=os.readlink(path) if kind is Kind.SYMLINK else "",
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in (Kind.CHARACTER, Kind.BLOCK) else None,
        identity=(status.st_dev, status.st_ino) if status.st_nlink > 1 and kind is not Kind.DIRECTORY else None,
        host_path=path,
        ctime_ns=status.st_ctime_ns,
        inode=(status.st_dev, status.st_ino),
    )


class Tree:
    """Reading of one directory tree of this machine, without following links below its root."""

    def __init__(self, root: str, owners: Owners) -> None:
        self.root = root.rstrip("/") or "/"
        self._owners = owners
        self._real: dict[str, bool] = {"": True}

    def host_path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def is_directory(self, path: str) -> bool:
        """True if ``path`` and all above it are real directories. Remembered: trees don't change while they are looked at."""
        found = self._real.get(path)
        if found is None:
            found = False
            if self.is_directory(path.rpartition("/")[0]):
                try:
                    found = stat.S_ISDIR(os.lstat(f"{self.root}/{path}").st_mode)
                except OSError:
                    found = False
            self._real[path] = found
        return found

    def lookup(self, path: str) -> Node | None:
        if not self.is_directory(path.rpartition("/")[0]):
            return None
        host_path = self.host_path(path)
        try:
            return _node(os.lstat(host_path), host_path, self._owners)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if "\0" in path or len(os.fsencode(path)) > 255:
                return None  # ENAMETOOLONG: no such file can exist
            raise PybuildError(f"can't look at {host_path!r}: {error.strerror}") from error

    def children(self, path: str) -> dict[str, Node]:
        if not self.is_directory(path):
            return {}
        out: dict[str, Node] = {}
        with os.scandir(self.host_path(path)) as listing:
            for item in listing:
                try:
                    out[item.name] = _node(item.stat(follow_symlinks=False), item.path, self._owners)
                except FileNotFoundError:
                    continue  # removed since the directory was read
        return out

    def open(self, path: str) -> BinaryIO:
        if not self.is_directory(path.rpartition("/")[0]):
            raise NotAFile(path)
        return _open_file(self.host_path(path), path)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        return dict(layer_xattrs(self.host_path(path)))


def _open_file(host_path: str, path: str) -> BinaryIO:
    # O_NONBLOCK: opening a fifo must not wait for its other end.
    try:
        descriptor = os.open(host_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotAFile(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFile(path)
    return open(descriptor, "rb")


# --- layers -------------------------------------------------------------------------------------------------------------


class LayerSource(ABC):
    """One layer of a stack, in whatever form: names with whiteouts (nodes of Kind.WHITEOUT) and opaque directories."""

    @abstractmethod
    def lookup(self, path: str) -> Node | None:
        """The node at ``path`` if this layer has one."""

    @abstractmethod
    def children(self, path: str) -> Mapping[str, Node]:
        """What this layer has in a directory, whiteouts included."""

    @abstractmethod
    def is_opaque(self, path: str) -> bool:
        """True if this layer's directory at ``path`` hides those of lower layers."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A file of this layer."""

    @abstractmethod
    def xattrs(self, path: str) -> Mapping[str, bytes]:
        """Attributes of a node of this layer."""


class DirectoryLayer(LayerSource):
    """An unpacked layer in overlay form: 0:0 character devices are whiteouts, an attribute marks opaque directories."""

    def __init__(self, root: str, *, owners: Owners = Owners.NATIVE) -> None:
        self._tree = Tree(root, owners)
        self._opaque: dict[str, bool] = {}

    def lookup(self, path: str) -> Node | None:
        return _with_whiteouts(self._tree.lookup(path))

    def children(self, path: str) -> Mapping[str, Node]:
        found = self._tree.children(path)
        for name, node in found.items():
            if node.device == (0, 0) and node.kind is Kind.CHARACTER:
                found[name] = _WHITEOUT
        return found

    def is_opaque(self, path: str) -> bool:
        found = self._opaque.get(path)
        if found is None:
            found = self._opaque[path] = is_opaque(self._tree.host_path(path))
        return found

    def open(self, path: str) -> BinaryIO:
        return self._tree.open(path)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        return self._tree.xattrs(path)


_WHITEOUT: Final = Node(Kind.WHITEOUT, 0, 0, 0)


def _with_whiteouts(node: Node | None) -> Node | None:
    if node is not None and node.kind is Kind.CHARACTER and node.device == (0, 0):
        return _WHITEOUT
    return node


IMPLIED: Final = Node(Kind.DIRECTORY, 0o755, 0, 0)
_IMPLIED_ENTRY: Final = LayerEntry("", Kind.DIRECTORY)
_IN_MEMORY_BYTES: Final = 1 << 20


class EntryLayer(LayerSource):
    """A layer whose entries are known (it was just made, or its tar has been indexed) and that nobody needed to unpack.

    Directories that entries only imply show those of lower layers, or 0755 of root. What the layer has itself above one of its own
    whiteouts is opaque.
    """

    def __init__(
        self,
        entries: Iterable[LayerEntry],
        *,
        opaque: Iterable[str] = (),
        tar: str | None = None,
        offsets: Sequence[int] = (),
    ) -> None:
        """``opaque``: directories that hide lower ones; ``tar``: a file that holds all contents, from ``offsets`` (one per entry) on, so
        that nothing is read from where the entries were made of."""
        self._entries: dict[str, LayerEntry] = {}
        self._names: dict[str, dict[str, None]] = {}
        self._nodes: dict[str, Node] = {}
        self._identities: dict[str, tuple[int, int]] = {}
        self._opaque = set(opaque)
        self._tar = tar
        self._offsets: dict[str, int] = {}
        self._descriptor = -1
        for position, entry in enumerate(entries):
            self._add(entry, offsets[position] if offsets else 0)

    @property
    def size(self) -> int:
        """How many paths the layer holds in memory."""
        return len(self._entries)

    def _add(self, entry: LayerEntry, offset: int) -> None:
        path, kind = entry.path, entry.kind
        if kind is Kind.HARDLINK:
            entry = self._linked(entry)
            offset = self._offsets.get(entry.path, 0)
            kind = entry.kind
        before = self._entries.get(path)
        if before is not None:
            if kind is Kind.WHITEOUT and before.kind is not Kind.WHITEOUT:
                self._opaque.add(path)
                return
            if kind is Kind.DIRECTORY and before.kind is not Kind.DIRECTORY:
                self._opaque.add(path)
            if kind is not Kind.DIRECTORY and before.kind is Kind.DIRECTORY:
                self._forget_below(path)
        self._entries[path] = entry
        if kind is Kind.FILE:
            self._offsets[path] = offset
        while True:
            parent, _, name = path.rpartition("/")
            names = self._names.get(parent)
            if names is not None:
                names[name] = None
                return
            self._names[parent] = {name: None}
            if not parent:
                return
            found = self._entries.get(parent)
            if found is not None and found.kind is Kind.DIRECTORY:
                return
            if found is not None:
                self._opaque.add(parent)
            self._entries[parent] = _IMPLIED_ENTRY
            path = parent

    def _forget_below(self, path: str) -> None:
        for name in self._names.pop(path, {}):
            below = f"{path}/{name}"
            self._entries.pop(below, None)
            self._opaque.discard(below)
            self._forget_below(below)

    def _linked(self, entry: LayerEntry) -> LayerEntry:
        """The entry that a hard link shares; ``_entries`` never holds hard links themselves."""
        origin = self._entries.get(entry.link)
        if origin is None or origin.kind in (Kind.DIRECTORY, Kind.WHITEOUT):
            raise PybuildError(f"the layer links {entry.path!r} to {entry.link!r}, which is no file of it")
        identity = self._identities.setdefault(entry.link, (-id(self), id(origin)))
        self._identities[entry.path] = identity
        return origin

    def _make_node(self, path: str, entry: LayerEntry) -> Node:
        if entry is _IMPLIED_ENTRY:
            return IMPLIED
        kind = entry.kind
        as_file = kind is Kind.FILE and entry.offset is None and entry.data is None and self._tar is None
        return Node(
            kind=kind,
            mode=0o777 if kind is Kind.SYMLINK else entry.mode & 0o7777,
            uid=entry.uid,
            gid=entry.gid,
            size=entry.size if entry.data is None else len(entry.data),
            mtime_ns=entry.mtime_ns // 1_000_000_000 * 1_000_000_000,  # as the layer's tar has it
            target=entry.link if kind is Kind.SYMLINK else "",
            device=entry.device if kind is Kind.CHARACTER or kind is Kind.BLOCK else None,
            identity=self._identities.get(path),
            host_path=entry.host_path if as_file and entry.size else None,
        )

    def lookup(self, path: str) -> Node | None:
        node = self._nodes.get(path)
        if node is None:
            if not path:
                return IMPLIED
            entry = self._entries.get(path)
            if entry is None:
                return None
            node = self._nodes[path] = self._make_node(path, entry)
        return node

    def children(self, path: str) -> Mapping[str, Node]:
        out: dict[str, Node] = {}
        for name in self._names.get(path, ()):
            node = self.lookup(f"{path}/{name}" if path else name)
            if node is not None:
                out[name] = node
        return out

    def is_opaque(self, path: str) -> bool:
        return path in self._opaque

    def open(self, path: str) -> BinaryIO:
        entry = self._entries.get(path)
        if entry is None or entry.kind is not Kind.FILE:
            raise NotAFile(path)
        size = entry.size if entry.data is None else len(entry.data)
        if not size:
            return io.BytesIO(b"")
        if self._tar is not None:
            return self._open_in_tar(self._tar, self._offsets[path], size)
        if entry.data is not None:
            return io.BytesIO(entry.data)
        file = _open_file(entry.host_path or "", path)
        if entry.offset is None:
            return file
        return io.BufferedReader(_Part(file, entry.offset, size), 1 << 16)

    def _open_in_tar(self, tar: str, offset: int, size: int) -> BinaryIO:
        if size <= _IN_MEMORY_BYTES:
            if self._descriptor < 0:
                self._descriptor = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._descriptor)
            return io.BytesIO(os.pread(self._descriptor, size, offset))
        return io.BufferedReader(_Part(io.FileIO(tar), offset, size), 1 << 16)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        entry = self._entries.get(path)
        return {key: value for key, value in entry.xattrs if key == CAPABILITY} if entry is not None else {}


class _Part(io.RawIOBase):
    """The ``size`` bytes of a file from ``offset`` on; closes the file."""

    def __init__(self, file: BinaryIO | io.FileIO, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        room = min(len(buffer), self._left)
        count = os.preadv(self._file.fileno(), (memoryview(buffer)[:room],), self._offset) if room else 0
        self._offset += count
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
