"""Applies a layer's tar to an empty directory, which then can be a lower layer of an overlay mount.

Owns the translation of tar entries into files: whiteouts become 0:0 character devices, opaque markers the attribute that overlayfs
reads. Never decompresses or verifies, and never writes outside of the directory: every name is opened relative to a directory that
was reached without following a link, and links are resolved by hand inside the root.

What the archive leaves unsaid comes from the layers below: the metadata of parent directories that have no entry of their own, and files
that it links to without containing them. A layer that needs neither *stands alone*: its files are the same on top of any stack.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .blobs import raise_if_full
from .entries import Kind
from .tar_read import Source, TarEntry, TarReader
from .tar_write import OPAQUE_WHITEOUT, WHITEOUT_PREFIX
from .tree_views import resolve
from .views import FileView, Node
from .xattrs import OWNER, Owners, Ownership, may_set

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS: Final = 255
_OPEN_DIRECTORIES: Final = 128
_COPY_BYTES: Final = 1 << 20


class InvalidLayer(PybuildError):
    """A layer's tar is readable but can't be applied. ``path``: the entry's."""

    def __init__(self, path: str, *, what: str) -> None:
        super().__init__(f"the layer's entry {path!r} can't be unpacked: {what}")
        self.path = path


class UnpackFailed(PybuildError):
    """This machine refused to make a file of a layer."""

    def __init__(self, path: str, error: OSError, *, hint: str | None = None) -> None:
        super().__init__(f"can't unpack {path!r}: {error.strerror or error}", hint=hint)
        self.path = path


@dataclass(frozen=True, slots=True)
class Unpacked:
    """``stands_alone``: nothing was taken from lower layers; ``skipped``: devices that this process may not make."""

    stands_alone: bool
    entries: int
    skipped: tuple[str, ...]


def unpack_layer(
    source: Source, root: str, *, ownership: Ownership, lower: Callable[[], FileView] | None = None
) -> Unpacked:
    """Apply the uncompressed tar in ``source``, read to its very end, to the empty directory ``root``.

    ``lower``: gives the view of the layers below; called only if it is needed (and perhaps from the middle of the stream). Without it
    parents that the archive lacks are 0755 of root. Raises InvalidTar, InvalidLayer, UnpackFailed, StoreFull, and what
    ``source`` raises.
    """
    stream = _Stream(source)
    reader = TarReader(stream)
    unpacker = _Unpacker(reader, root, ownership, lower)
    path = ""
    try:
        for entry in reader:
            path = entry.path
            unpacker.apply(entry)
        reader.drain()
        path = ""
        return unpacker.finish()
    except OSError as error:
        if error is stream.error:
            raise  # of the network, say, and not of this machine's files
        raise_if_full(error, Path(root))
        hint = None
        if error.errno == errno.EINVAL and ownership.owners is Owners.NATIVE:
            hint = "the layer has owners beyond those mapped for this user: give it more in /etc/subuid and /etc/subgid"
        raise UnpackFailed(path, error, hint=hint) from error
    finally:
        unpacker.close()


class _Stream:
    """The source; remembers an error of its own."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.error: OSError | None = None

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except OSError as error:
            self.error = error
            raise


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What a directory gets at the end, when nothing is made in it any more."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]


class _Unpacker:
    def __init__(
        self, reader: TarReader, root: str, ownership: Ownership, lower: Callable[[], FileView] | None
    ) -> None:
        self._reader = reader
        self._ownership = ownership
        self._mine = (ownership.uid, ownership.gid)
        self._lower = lower
        self._root = os.open(root, _DIRECTORY)
        # Directories by their real path, without links; ``_last``: the parent of the previous entry as the archive wrote it.
        self._open: dict[str, int] = {"": self._root}
        self._last: tuple[str, str, int] = ("", "", self._root)
        self._directories: dict[str, _Metadata] = {}
        self._implied: set[str] = set()
        self._needed_lower = False
        self._skipped: list[str] = []
        self._count = 0

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    # --- one entry ---

    def apply(self, entry: TarEntry) -> None:
        self._count += 1
        parent, _, name = entry.path.rpartition("/")
        if not name:
            return  # the root keeps the mode that its owner gave it, as in every implementation
        if parent == self._last[0]:
            _, real, at = self._last
        else:
            real, at = self._directory(parent, entry.path)
            self._last = (parent, real, at)
        if name.startswith(WHITEOUT_PREFIX):
            self._whiteout(real, at, name)
            return
        where = f"{real}/{name}" if real else name
        match entry.kind:
            case Kind.FILE:
                self._file(entry, where, at, name)
            case Kind.DIRECTORY:
                self._make_directory(where, at, name)
                self._directories[where] = _Metadata(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
                self._implied.discard(where)
            case Kind.SYMLINK:
                if not entry.link or "\0" in entry.link:
                    raise InvalidLayer(entry.path, what="a symlink without a target")
                try:
                    os.symlink(entry.link, name, dir_fd=at)
                except FileExistsError:
                    self._remove(where, at, name)
                    os.symlink(entry.link, name, dir_fd=at)
                self._node_metadata(entry, at, name)
            case Kind.HARDLINK:
                self._hard_link(entry, where, at, name)
            case _:
                self._device(entry, where, at, name)

    def _file(self, entry: TarEntry, where: str, at: int, name: str) -> None:
        try:
            descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=at)
        except FileExistsError:
            self._remove(where, at, name)
            descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=at)
        try:
            if entry.size:
                self._reader.copy_to(descriptor)
            self._dress(descriptor, entry.uid, entry.gid, entry.mode, entry.xattrs)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)

    def _dress(self, descriptor: int, uid: int, gid: int, mode: int, xattrs: tuple[tuple[str, bytes], ...]) -> None:
        # In this order: chown(2) takes away setuid bits and capabilities.
        if (uid, gid) != self._mine:
            if self._ownership.owners is Owners.NATIVE:
                os.fchown(descriptor, uid, gid)
            else:
                os.setxattr(descriptor, OWNER, b"%d:%d" % (uid, gid))
        for key, value in xattrs:
            self._set_attribute(descriptor, key, value)
        os.fchmod(descriptor, mode)

    def _set_attribute(self, target: int | str, key: str, value: bytes) -> None:
        if not may_set(key):
            return
        try:
            if isinstance(target, int):
                os.setxattr(target, key, value)
            else:
                os.setxattr(target, key, value, follow_symlinks=False)
        except OSError as error:
            # No file system takes all of them, and in a user namespace some are the host's alone; what other tools do, too.
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL):
                raise

    def _node_metadata(self, entry: TarEntry, at: int, name: str) -> None:
        """Owner, attributes, mode and time of what has no descriptor."""
        if (entry.uid, entry.gid) != self._mine and self._ownership.owners is Owners.NATIVE:
            os.chown(name, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
        for key, value in entry.xattrs:
            self._set_attribute(f"/proc/self/fd/{at}/{name}", key, value)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=at)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=at, follow_symlinks=False)

    def _device(self, entry: TarEntry, where: str, at: int, name: str) -> None:
        kind = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK}.get(entry.kind, stat.S_IFIFO)
        if kind == stat.S_IFCHR and entry.device == (0, 0):
            # It would be a whiteout here.
            self._skipped.append(entry.path)
            return
        device = 0 if kind == stat.S_IFIFO else os.makedev(*entry.device)
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=at)
        except FileExistsError:
            self._remove(where, at, name)
            os.mknod(name, kind | 0o600, device, dir_fd=at)
        except PermissionError:
            self._skipped.append(entry.path)
            return
        self._node_metadata(entry, at, name)

    def _make_directory(self, where: str, at: int, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                # In the order of the archive a file (or a whiteout) was here first, and hid what lower layers have.
                self._remove(where, at, name)
                os.mkdir(name, 0o700, dir_fd=at)
                self._make_opaque(where)

    # --- whiteouts ---

    def _whiteout(self, real: str, at: int, name: str) -> None:
        if name == OPAQUE_WHITEOUT:
            if real:
                self._make_opaque(real)
            return
        if name.startswith(WHITEOUT_PREFIX * 2):
            return  # other marks of aufs, which mean nothing here
        name = name[len(WHITEOUT_PREFIX) :]
        where = f"{real}/{name}" if real else name
        if name in ("", ".", ".."):
            raise InvalidLayer(where, what="a whiteout without a name")
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=at)
        except FileExistsError:
            # The layer has this name itself: then the whiteout is about what lower layers have there.
            if stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                self._make_opaque(where)

    def _make_opaque(self, real: str) -> None:
        _, descriptor = self._directory(real, real)
        os.setxattr(descriptor, self._ownership.opaque, b"y")

    # --- directories ---

    def _directory(self, path: str, culprit: str) -> tuple[str, int]:
        """The real path and a descriptor of a directory that the archive names, made if it is missing."""
        found = self._open.get(path)
        if found is not None:
            return path, found
        if len(self._open) > _OPEN_DIRECTORIES:
            self._forget_descriptors()
        pending = path.split("/")[::-1]
        real, at, links = "", self._root, 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                real = real.rpartition("/")[0]
                at = self._reopen(real)
                continue
            child = f"{real}/{part}" if real else part
            descriptor = self._open.get(child)
            if descriptor is None:
                try:
                    descriptor = os.open(part, _DIRECTORY, dir_fd=at)
                except FileNotFoundError:
                    descriptor = self._imply(child, at, part)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    target = self._link_target(child, at, part, culprit)
                    if target is not None:
                        links += 1
                        if links > _MAX_LINKS:
                            raise InvalidLayer(culprit, what="too many links") from None
                        if target.startswith("/"):
                            real, at = "", self._root
                        pending += target.split("/")[::-1]
                        continue
                    descriptor = self._imply(child, at, part)
                    os.setxattr(descriptor, self._ownership.opaque, b"y")
                self._open[child] = descriptor
            real, at = child, descriptor
        return real, at

    def _link_target(self, where: str, at: int, name: str, culprit: str) -> str | None:
        """The target of the link that is in the way of a directory, None if it was a whiteout, which is removed."""
        found = os.stat(name, dir_fd=at, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            return os.readlink(name, dir_fd=at)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            self._remove(where, at, name)
            return None
        raise InvalidLayer(culprit, what=f"{where!r} is not a directory")

    def _imply(self, where: str, at: int, name: str) -> int:
        os.mkdir(name, 0o700, dir_fd=at)
        self._implied.add(where)
        return os.open(name, _DIRECTORY, dir_fd=at)

    def _reopen(self, real: str) -> int:
        descriptor = self._open.get(real)
        if descriptor is None:
            descriptor = self._open[real] = os.open(real, _DIRECTORY, dir_fd=self._root)
        return descriptor

    def _forget_descriptors(self, below: str = "") -> None:
        """Close what is open at and below a real path; everything but the root for ``""``."""
        prefix = below + "/" if below else ""
        for path in [path for path in self._open if path and (path == below or path.startswith(prefix))]:
            os.close(self._open.pop(path))
        self._last = ("", "", self._root)

    def _remove(self, where: str, at: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=at)
        except IsADirectoryError:
            _remove_tree(at, name)
            self._forget_descriptors(where)
            gone = where + "/"
            for path in [path for path in self._directories if path == where or path.startswith(gone)]:
                del self._directories[path]
            self._implied = {path for path in self._implied if path != where and not path.startswith(gone)}
        # A link that led to the previous entry's parent may be gone.
        self._last = ("", "", self._root)

    # --- hard links ---

    def _hard_link(self, entry: TarEntry, where: str, at: int, name: str) -> None:
        target = self._find(entry.link)
        if target == where:
            return
        if target is None:
            target = self._copy_up(entry)
            at = self._reopen(where.rpartition("/")[0])
        parent, _, base = target.rpartition("/")
        source = self._reopen(parent)
        try:
            os.link(base, name, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
        except FileExistsError:
            self._remove(where, at, name)
            os.link(base, name, src_dir_fd=self._reopen(parent), dst_dir_fd=at, follow_symlinks=False)
        except PermissionError as error:
            raise InvalidLayer(entry.path, what=f"a hard link to {entry.link!r}, which is no file") from error

    def _find(self, path: str) -> str | None:
        """The real path of something in this layer; links in front of the last element are followed."""
        parent, _, name = path.rpartition("/")
        pending = parent.split("/")[::-1]
        real, links = "", 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                real = real.rpartition("/")[0]
                continue
            child = f"{real}/{part}" if real else part
            try:
                found = os.stat(child, dir_fd=self._root, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    return None
                target = os.readlink(child, dir_fd=self._root)
                real = "" if target.startswith("/") else real
                pending += target.split("/")[::-1]
            else:
                real = child
        where = f"{real}/{name}" if real else name
        try:
            found = os.stat(where, dir_fd=self._root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        whiteout = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
        return None if whiteout or not name else where

    def _copy_up(self, entry: TarEntry) -> str:
        """Bring a file of a lower layer into this one, as overlayfs does for link(2). Returns its real path."""
        self._needed_lower = True
        view = None if self._lower is None else self._lower()
        path, node = ("", None) if view is None else resolve(view, entry.link, follow_last=False)
        if view is None or node is None or node.kind not in (Kind.FILE, Kind.SYMLINK):
            raise InvalidLayer(entry.path, what=f"a hard link to {entry.link!r}, which doesn't exist")
        parent, _, name = path.rpartition("/")
        real, at = self._directory(parent, entry.path)
        if node.kind is Kind.SYMLINK:
            os.symlink(node.target, name, dir_fd=at)
            if (node.uid, node.gid) != self._mine and self._ownership.owners is Owners.NATIVE:
                os.chown(name, node.uid, node.gid, dir_fd=at, follow_symlinks=False)
            os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=at, follow_symlinks=False)
        else:
            self._copy_file(view, path, node, at, name)
        return f"{real}/{name}" if real else name

    def _copy_file(self, view: FileView, path: str, node: Node, at: int, name: str) -> None:
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=at)
        try:
            with view.open(path) as content:
                while chunk := content.read(_COPY_BYTES):
                    data = memoryview(chunk)
                    while data:
                        data = data[os.write(descriptor, data) :]
            self._dress(descriptor, node.uid, node.gid, node.mode, tuple(view.xattrs(path).items()))
            os.utime(descriptor, ns=(node.mtime_ns, node.mtime_ns))
        finally:
            os.close(descriptor)

    # --- the end ---

    def finish(self) -> Unpacked:
        needed = self._needed_lower or bool(self._implied)
        for path in self._implied:
            self._directories[path] = self._lower_directory(path)
        self._forget_descriptors()
        # From the leaves up: a directory without search permission would shut an ordinary user out of what is in it.
        for path in sorted(self._directories, reverse=True):
            metadata = self._directories[path]
            descriptor = os.open(path, _DIRECTORY, dir_fd=self._root)
            try:
                self._dress(descriptor, metadata.uid, metadata.gid, metadata.mode, metadata.xattrs)
                os.utime(descriptor, ns=(metadata.mtime_ns, metadata.mtime_ns))
            finally:
                os.close(descriptor)
        return Unpacked(stands_alone=not needed, entries=self._count, skipped=tuple(self._skipped))

    def _lower_directory(self, path: str) -> _Metadata:
        if self._lower is not None:
            view = self._lower()
            node = view.lookup(path)
            if node is not None and node.kind is Kind.DIRECTORY:
                xattrs = tuple(view.xattrs(path).items())
                return _Metadata(node.mode, node.uid, node.gid, node.mtime_ns, xattrs)
        return _Metadata(0o755, 0, 0, 0, ())


def _remove_tree(at: int, name: str) -> None:
    """Remove a directory and all that is in it. All of it was made here, with modes that let us."""
    descriptor = os.open(name, _DIRECTORY, dir_fd=at)
    try:
        with os.scandir(descriptor) as listing:
            for item in listing:
                if item.is_dir(follow_symlinks=False):
                    _remove_tree(descriptor, item.name)
                else:
                    os.unlink(item.name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=at)
