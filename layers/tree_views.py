"""Views of directories and of stacks of layers: what overlayfs would show, without mounting it.

Owns ``DirectoryView``, ``StackView`` with its kinds of layers (unpacked, known as entries, still a tar), and link resolution inside of a
view. Never writes, never mounts, never follows a link by the kernel's hand.

A stack is looked at as overlayfs does it (kernel documentation, ``filesystems/overlayfs.rst``): the topmost layer that has a name
decides; directories of several layers merge down to the first that is opaque or to a layer that has no directory there;
a whiteout ends the search.
"""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO, Final

from pybuild.errors import PybuildError
from pybuild.values import replace

from .entries import Kind, LayerEntry
from .views import FileView, Node
from .xattrs import CAPABILITY, Owners, is_opaque, layer_xattrs, recorded_owner

_MAX_LINKS: Final = 255
_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


class TooManyLinks(PybuildError):
    """Resolving a path meets more symlinks than any sane tree has: a loop."""

    def __init__(self, path: str) -> None:
        super().__init__(f"too many links in {'/' + path!r}")
        self.path = path


class NotAFile(PybuildError):
    """Content was asked for of something that is no regular file of the view."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{'/' + path!r} is not a regular file")
        self.path = path


def resolve(view: FileView, path: str, *, follow_last: bool) -> tuple[str, Node | None]:
    """The real path of ``path``, and what is there: no element but perhaps the last is a link, ``..`` and absolute links stay
    inside the root, and elements that don't exist are kept as they are (a dangling link gives its target's path).

    ``follow_last``: also follow a link at the end. Raises TooManyLinks.
    """
    pending = path.split("/")[::-1]
    real: list[str] = []
    links = 0
    node: Node | None = view.lookup("")
    missing = False
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if real:
                real.pop()
            missing, node = False, None
            continue
        real.append(part)
        # Nothing is below what is missing; only ".." leads back to what may exist.
        node = None if missing else view.lookup("/".join(real))
        missing = missing or node is None
        if node is not None and node.kind is Kind.SYMLINK and (follow_last or _more(pending)):
            links += 1
            if links > _MAX_LINKS:
                raise TooManyLinks(path)
            if node.target.startswith("/"):
                real.clear()
            else:
                real.pop()
            pending += node.target.split("/")[::-1]
            node = None
    where = "/".join(real)
    return where, view.lookup(where) if node is None and not missing else node


def _more(pending: Sequence[str]) -> bool:
    return any(part not in ("", ".") for part in pending)


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


class _Tree:
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


class DirectoryView:
    """A plain directory of this machine as a FileView: nothing in it means anything special. It must not change meanwhile."""

    def __init__(self, root: str, *, owners: Owners = Owners.NATIVE) -> None:
        self._tree = _Tree(root, owners)

    def lookup(self, path: str) -> Node | None:
        return self._tree.lookup(path)

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        return _sorted(self._tree.children(path))

    def open(self, path: str) -> BinaryIO:
        return self._tree.open(path)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        return self._tree.xattrs(path)


def _sorted(children: Mapping[str, Node]) -> Sequence[tuple[str, Node]]:
    return sorted(children.items(), key=lambda item: os.fsencode(item[0]))


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
        self._tree = _Tree(root, owners)
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


_IMPLIED: Final = Node(Kind.DIRECTORY, 0o755, 0, 0)


class EntryLayer(LayerSource):
    """A layer whose entries are known (it was just made, or its tar has been indexed) and that nobody needed to unpack.

    ``opaque``: directories that hide lower ones. Directories that entries only imply show those of lower layers, or 0755 of root.
    Whiteouts over which the layer has something of its own make that opaque.
    """

    def __init__(self, entries: Iterable[LayerEntry], *, opaque: Iterable[str] = ()) -> None:
        self._nodes: dict[str, Node] = {}
        self._entries: dict[str, LayerEntry] = {}
        self._names: dict[str, dict[str, Node]] = {}
        self._opaque = set(opaque)
        for entry in entries:
            self._add(entry)

    def _add(self, entry: LayerEntry) -> None:
        path = entry.path
        if entry.kind is Kind.HARDLINK:
            entry, node = self._linked(entry)
        else:
            node = self._make_node(entry)
        before = self._nodes.get(path)
        if node.kind is Kind.WHITEOUT and before is not None and before.kind is not Kind.WHITEOUT:
            self._opaque.add(path)
            return
        if before is not None and before.kind is not Kind.DIRECTORY and node.kind is Kind.DIRECTORY:
            self._opaque.add(path)
        if before is not None and before.kind is Kind.DIRECTORY and node.kind is not Kind.DIRECTORY:
            self._forget_below(path)
        self._put(path, node)
        self._entries[path] = entry
        while parent := path.rpartition("/")[0]:
            found = self._nodes.get(parent)
            if found is not None and found.kind is Kind.DIRECTORY:
                return
            if found is not None:
                self._opaque.add(parent)
            self._put(parent, _IMPLIED)
            path = parent

    def _put(self, path: str, node: Node) -> None:
        self._nodes[path] = node
        parent, _, name = path.rpartition("/")
        self._names.setdefault(parent, {})[name] = node

    def _forget_below(self, path: str) -> None:
        for name in list(self._names.pop(path, ())):
            below = f"{path}/{name}"
            self._nodes.pop(below, None)
            self._entries.pop(below, None)
            self._opaque.discard(below)
            self._forget_below(below)

    def _linked(self, entry: LayerEntry) -> tuple[LayerEntry, Node]:
        """The entry and node that a hard link shares; ``_entries`` never holds hard links themselves."""
        origin = self._entries.get(entry.link)
        if origin is None or origin.kind in (Kind.DIRECTORY, Kind.WHITEOUT):
            raise PybuildError(f"the layer links {entry.path!r} to {entry.link!r}, which is no file of it")
        node = self._nodes[entry.link]
        if node.identity is None:
            node = replace(node, identity=(-id(self), id(origin)))
            self._put(entry.link, node)
        return origin, node

    def _make_node(self, entry: LayerEntry) -> Node:
        whole_file = entry.kind is Kind.FILE and entry.offset is None and entry.data is None
        return Node(
            kind=entry.kind,
            mode=0o777 if entry.kind is Kind.SYMLINK else entry.mode & 0o7777,
            uid=entry.uid,
            gid=entry.gid,
            size=entry.size if entry.data is None else len(entry.data),
            mtime_ns=entry.mtime_ns // 1_000_000_000 * 1_000_000_000,  # as the layer's tar has it
            target=entry.link if entry.kind is Kind.SYMLINK else "",
            device=entry.device if entry.kind in (Kind.CHARACTER, Kind.BLOCK) else None,
            host_path=entry.host_path if whole_file and entry.size else None,
        )

    def lookup(self, path: str) -> Node | None:
        return self._nodes.get(path) if path else _IMPLIED

    def children(self, path: str) -> Mapping[str, Node]:
        return self._names.get(path, {})

    def is_opaque(self, path: str) -> bool:
        return path in self._opaque

    def open(self, path: str) -> BinaryIO:
        entry = self._entries.get(path)
        if entry is None or entry.kind is not Kind.FILE:
            raise NotAFile(path)
        if entry.data is not None:
            return io.BytesIO(entry.data)
        if not entry.size or entry.host_path is None:
            return io.BytesIO(b"")
        file = _open_file(entry.host_path, path)
        if entry.offset is None:
            return file
        return io.BufferedReader(_Part(file, entry.offset, entry.size), 1 << 16)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        entry = self._entries.get(path)
        return {key: value for key, value in entry.xattrs if key == CAPABILITY} if entry is not None else {}


class _Part(io.RawIOBase):
    """The ``size`` bytes of a file from ``offset`` on; closes the file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
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


# --- stacks -------------------------------------------------------------------------------------------------------------

_Found = tuple[Node, tuple[LayerSource, ...]]


class StackView:
    """Layers on top of each other, lowest first, as a FileView. Remembers which layers take part in each directory it has seen."""

    def __init__(self, layers: Sequence[LayerSource | str], *, owners: Owners = Owners.NATIVE) -> None:
        """``layers``: unpacked ones as directories (``str``), others as sources; ``owners``: how the former keep owners."""
        sources = [DirectoryLayer(layer, owners=owners) if isinstance(layer, str) else layer for layer in layers]
        top_first = tuple(reversed(sources))
        roots = (source.lookup("") for source in top_first if isinstance(source, DirectoryLayer))
        root = next((node for node in roots if node is not None), _IMPLIED)
        # Directories only: (what is shown, the layers that take part, topmost first); None where there is no directory.
        self._directories: dict[str, _Found | None] = {"": (root, top_first)}

    def _directory(self, path: str) -> _Found | None:
        try:
            return self._directories[path]
        except KeyError:
            found = self._find(path)
            if found is not None and found[0].kind is not Kind.DIRECTORY:
                found = None
            self._directories[path] = found
            return found

    def _find(self, path: str) -> _Found | None:
        """What is shown at ``path``, and for a directory the layers that take part in it, for others the one that has it."""
        parent = self._directory(path.rpartition("/")[0])
        if parent is None:
            return None
        shown: Node | None = None
        parts: list[LayerSource] = []
        for layer in parent[1]:
            node = layer.lookup(path)
            if node is None:
                continue
            if node.kind is not Kind.DIRECTORY:
                if shown is None:
                    return None if node.kind is Kind.WHITEOUT else (node, (layer,))
                break
            parts.append(layer)
            if shown is None or shown is _IMPLIED:
                shown = node
            if layer.is_opaque(path):
                break
        return None if shown is None else (shown, tuple(parts))

    def lookup(self, path: str) -> Node | None:
        if path in self._directories:
            found = self._directories[path]
            if found is not None:
                return found[0]
        found = self._find(path)
        if found is None:
            return None
        if found[0].kind is Kind.DIRECTORY:
            self._directories[path] = found
        return found[0]

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        directory = self._directory(path)
        if directory is None:
            return ()
        layers = directory[1]
        if len(layers) == 1:
            only = layers[0].children(path)
            return _sorted({name: node for name, node in only.items() if node.kind is not Kind.WHITEOUT})
        shown: dict[str, Node] = {}
        for layer in layers:
            for name, node in layer.children(path).items():
                if name not in shown:
                    shown[name] = node
                    if node is _IMPLIED:
                        # A lower layer may say what this directory is like.
                        found = self._directory(f"{path}/{name}" if path else name)
                        shown[name] = node if found is None else found[0]
        return _sorted({name: node for name, node in shown.items() if node.kind is not Kind.WHITEOUT})

    def open(self, path: str) -> BinaryIO:
        found = self._find(path) if path else None
        if found is None or found[0].kind is not Kind.FILE:
            raise NotAFile(path)
        return found[1][0].open(path)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        found = self._find(path) if path else None
        return {} if found is None else found[1][0].xattrs(path)
