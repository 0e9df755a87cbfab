"""ADD of archives: recognising them by content, and unpacking them into a pending tree.

Owns the rules of unpacking into a root file system: links in the way are followed inside the destination and never out of it, parents
that the archive only implies are made, what is there already is replaced, directories merge. Compression comes from
``layers.compression``. Extracts file contents to paths it is given, never into a tree of this machine.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

from pybuild.errors import PybuildError
from pybuild.layers.compression import CorruptStream, decompressed
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.views import Node

from .copy_paths import join, parent_of, resolve
from .copy_tree import PendingTree
from .owners import Owner

_COPY_BYTES: Final = 1 << 20
_SMALL_BYTES: Final = 1 << 16
_IMPLIED_MODE: Final = 0o755
_XATTR: Final = "SCHILY.xattr."
_KEPT_XATTR: Final = "security.capability"
_KINDS: Final = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.GNUTYPE_SPARSE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}


class BadArchive(PybuildError):
    """An archive is damaged, or holds what can't be unpacked."""


def is_archive(file: BinaryIO) -> bool:
    """True if ``file``, decompressed if need be, begins with the header of a tar entry."""
    try:
        with _opened(file) as archive:
            return archive.next() is not None
    except (tarfile.TarError, CorruptStream, EOFError, OSError, ValueError):
        return False


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    with decompressed(file) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        yield archive


def unpack(
    file: BinaryIO,
    tree: PendingTree,
    target: str,
    *,
    owner: Owner | None,
    new_path: Callable[[], str],
) -> None:
    """Unpack the archive in ``file`` into the directory ``target`` of ``tree``.

    ``owner``: what everything gets, None for the archive's own; ``new_path`` gives paths for the contents of larger files. Raises
    BadArchive.
    """
    unpacker = _Unpacker(tree, target, owner, new_path)
    try:
        with _opened(file) as archive:
            # next() and not iteration: TarFile keeps every member it iterates over.
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # typeshed leaves it out
                unpacker.add(archive, member)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadArchive(f"invalid archive: {error}") from error


class _Unpacker:
    def __init__(self, tree: PendingTree, target: str, owner: Owner | None, new_path: Callable[[], str]) -> None:
        self._tree = tree
        self._target = target
        self._owner = owner
        self._new_path = new_path

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        kind = _KINDS.get(member.type)
        if kind is None:
            raise BadArchive(f"unhandled tar header type {member.type!r} of {member.name!r}")
        name = self._name(member.name, "entry name")
        if not name:
            return
        tree = self._tree
        path = self._place(name)
        existing = tree.lookup(path)
        origin = self._link_origin(member, path) if kind is Kind.HARDLINK else None
        if existing is not None and not (existing.kind is Kind.DIRECTORY and kind is Kind.DIRECTORY):
            tree.remove(path)
        # Implied directories are root's, whoever the rest is given to.
        tree.make_directories(parent_of(path), mode=_IMPLIED_MODE)
        if origin is not None:
            tree.link(origin, path)
            return
        tree.put(self._entry(archive, member, kind, path))

    def _entry(self, archive: tarfile.TarFile, member: tarfile.TarInfo, kind: Kind, path: str) -> LayerEntry:
        uid, gid = (member.uid, member.gid) if self._owner is None else (self._owner.uid, self._owner.gid)
        data, host_path, size = self._content(archive, member) if kind is Kind.FILE else (None, None, 0)
        capability = member.pax_headers.get(_XATTR + _KEPT_XATTR)
        return LayerEntry(
            path=path,
            kind=kind,
            mode=0o777 if kind is Kind.SYMLINK else member.mode & 0o7777,
            uid=uid,
            gid=gid,
            mtime_ns=_nanoseconds(member),
            size=size,
            link=member.linkname if kind is Kind.SYMLINK else "",
            data=data,
            host_path=host_path,
            device=(member.devmajor, member.devminor),
            xattrs=((_KEPT_XATTR, capability.encode("utf-8", "surrogateescape")),) if capability else (),
        )

    def _content(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes | None, str | None, int]:
        stream = archive.extractfile(member)
        assert stream is not None
        with stream:
            if member.size <= _SMALL_BYTES:
                data = stream.read()
                return data, None, len(data)
            path = self._new_path()
            with open(path, "xb") as out:
                shutil.copyfileobj(stream, out, _COPY_BYTES)
                return None, path, out.tell()

    def _name(self, text: str, what: str) -> str:
        """A clean relative path. Raises BadArchive for one that leads out of the destination."""
        done: list[str] = []
        for part in text.split("/"):
            if part == "..":
                if not done:
                    raise BadArchive(f"invalid {what} {text!r}: it leads out of the destination")
                done.pop()
            elif part and part != ".":
                done.append(part)
        return "/".join(done)

    def _place(self, name: str) -> str:
        """Where an entry goes: the links above it followed, with the destination as their root."""
        parent, _, last = name.rpartition("/")
        return join(join(self._target, resolve(self._below, parent)) if parent else self._target, last)

    def _below(self, path: str) -> Node | None:
        return self._tree.lookup(join(self._target, path) if path else self._target)

    def _link_origin(self, member: tarfile.TarInfo, path: str) -> str:
        name = self._name(member.linkname, "hardlink target")
        origin = self._place(name) if name else ""
        node = self._tree.lookup(origin) if origin and origin != path else None
        if node is None or node.kind is Kind.DIRECTORY:
            raise BadArchive(f"hard link {member.name!r} refers to {member.linkname!r}, which is not there")
        return origin


def _nanoseconds(member: tarfile.TarInfo) -> int:
    return int(member.mtime * 1_000_000_000) if member.mtime > 0 else 0
