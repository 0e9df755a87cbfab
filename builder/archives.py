"""ADD of archives: recognising them by content, and unpacking them into a pending tree.

Owns the rules of unpacking into a root file system: links in the way are followed inside the destination and never out of it, parents
that the archive only implies are made, what is there already is replaced, directories merge. Compression comes from
``layers.compression``, the format from ``layers.tar_read``. Never extracts
anything into a tree of this machine.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from pybuild.errors import PybuildError
from pybuild.layers.compression import CorruptStream, decompressed
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.tar_read import InvalidTar, TarEntry, TarReader
from pybuild.layers.views import Node

from .copy_paths import join, parent_of, resolve
from .copy_spool import Spool, Spooled
from .copy_tree import PendingTree
from .owners import Owner

_IMPLIED_MODE: Final = 0o755
_KEPT_XATTR: Final = "security.capability"


class BadArchive(PybuildError):
    """An archive holds what can't be unpacked."""


def is_archive(file: BinaryIO) -> bool:
    """True if ``file``, decompressed if need be, begins with the header of a tar entry."""
    try:
        with decompressed(file) as stream:
            return next(iter(TarReader(stream)), None) is not None
    except (InvalidTar, CorruptStream):
        return False


def unpack(
    file: BinaryIO,
    tree: PendingTree,
    target: str,
    *,
    owner: Owner | None,
    spool: Spool,
) -> None:
    """Unpack the archive in ``file`` into the directory ``target`` of ``tree``.

    ``owner``: what everything gets, None for the archive's own; ``spool`` keeps the files' contents. Raises BadArchive, InvalidTar, CorruptStream, NotADirectory.
    """
    unpacker = _Unpacker(tree, target, owner, spool)
    with decompressed(file) as stream:
        reader = TarReader(stream)
        for entry in reader:
            unpacker.add(reader, entry)


class _Unpacker:
    def __init__(self, tree: PendingTree, target: str, owner: Owner | None, spool: Spool) -> None:
        self._tree = tree
        self._target = target
        self._owner = owner
        self._spool = spool

    def add(self, reader: TarReader, entry: TarEntry) -> None:
        if not entry.path:
            return
        tree = self._tree
        path = self._place(entry.path)
        existing = tree.lookup(path)
        origin = self._link_origin(entry, path) if entry.kind is Kind.HARDLINK else ""
        if existing is not None and not (existing.kind is Kind.DIRECTORY and entry.kind is Kind.DIRECTORY):
            tree.remove(path)
        # Implied directories are root's, whoever the rest is given to.
        tree.make_directories(parent_of(path), mode=_IMPLIED_MODE)
        if origin:
            tree.link(origin, path)
            self._amend(entry, path)
        else:
            tree.put(self._entry(reader, entry, path))

    def _amend(self, entry: TarEntry, path: str) -> None:
        """A link's header counts for the file that it is a name of, as for tar and BuildKit, which set what it says after linking."""
        uid, gid = self._owner_of(entry)
        mode = 0o777 if self._tree.made[path].kind is Kind.SYMLINK else entry.mode
        self._tree.amend(path, mode=mode, uid=uid, gid=gid, mtime_ns=max(entry.mtime_ns, 0))

    def _owner_of(self, entry: TarEntry) -> tuple[int, int]:
        return (entry.uid, entry.gid) if self._owner is None else (self._owner.uid, self._owner.gid)

    def _entry(self, reader: TarReader, entry: TarEntry, path: str) -> LayerEntry:
        uid, gid = self._owner_of(entry)
        content = self._spool.keep(reader, entry.size) if entry.kind is Kind.FILE else Spooled(0)
        return LayerEntry(
            path=path,
            kind=entry.kind,
            mode=0o777 if entry.kind is Kind.SYMLINK else entry.mode,
            uid=uid,
            gid=gid,
            mtime_ns=max(entry.mtime_ns, 0),
            size=content.size,
            link=entry.link,
            data=content.data,
            host_path=content.host_path,
            offset=content.offset,
            device=entry.device,
            xattrs=tuple(pair for pair in entry.xattrs if pair[0] == _KEPT_XATTR),
        )

    def _place(self, path: str) -> str:
        """Where an entry goes: the links above it followed, with the destination as their root."""
        parent, _, last = path.rpartition("/")
        return join(join(self._target, resolve(self._below, parent)) if parent else self._target, last)

    def _below(self, path: str) -> Node | None:
        return self._tree.lookup(join(self._target, path) if path else self._target)

    def _link_origin(self, entry: TarEntry, path: str) -> str:
        origin = self._place(entry.link) if entry.link else ""
        node = self._tree.lookup(origin) if origin and origin != path else None
        if node is None or node.kind is Kind.DIRECTORY:
            raise BadArchive(f"hard link {entry.name!r} of the archive refers to {entry.link!r}, which is not there")
        return origin
