"""Exports of a result's files: as a directory (``type=local``) and as the entries of a tar (``type=tar``).

Reads a FileView, writes below one destination. Never follows a symlink that lies in the destination.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.views import FileView, Node


class ExportFailed(PybuildError):
    """The destination could not be written."""


def entries_of(view: FileView, *, prefix: str = "", epoch: int | None = None) -> Iterator[LayerEntry]:
    """Every path of ``view`` in order, as tar entries below ``prefix``; sockets are left out; ``epoch`` is every time then."""
    first_of: dict[tuple[int, int], str] = {}
    pending = [("", node_path) for node_path in reversed(view.children(""))]
    if prefix:
        yield LayerEntry(prefix.rstrip("/"), Kind.DIRECTORY, mode=0o755, mtime_ns=(epoch or 0) * 10**9)
    while pending:
        parent, (name, node) = pending.pop()
        path = f"{parent}/{name}" if parent else name
        if node.kind is not Kind.SOCKET:
            yield _entry(view, path, node, prefix=prefix, epoch=epoch, first_of=first_of)
        if node.kind is Kind.DIRECTORY:
            pending.extend((path, child) for child in reversed(view.children(path)))


def _entry(
    view: FileView, path: str, node: Node, *, prefix: str, epoch: int | None, first_of: dict[tuple[int, int], str]
) -> LayerEntry:
    mtime_ns = node.mtime_ns if epoch is None else epoch * 10**9
    kind, link = node.kind, node.target
    if node.kind is Kind.FILE and node.identity is not None:
        earlier = first_of.setdefault(node.identity, prefix + path)
        if earlier != prefix + path:
            kind, link = Kind.HARDLINK, earlier
    data = None
    if kind is Kind.FILE and node.host_path is None:
        with view.open(path) as stream:
            data = stream.read()
    return LayerEntry(
        prefix + path,
        kind,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=mtime_ns,
        size=node.size if kind is Kind.FILE else 0,
        link=link,
        data=data,
        host_path=node.host_path if kind is Kind.FILE else None,
        device=node.device or (0, 0),
        xattrs=tuple(sorted(view.xattrs(path).items())),
    )


def refuse_overwrites(
    stacks: Mapping[str, Sequence[Digest]], view_of: Callable[[Sequence[Digest]], AbstractContextManager[FileView]]
) -> None:
    """Raise ExportFailed if two results (by platform) that go into one directory have a file of one name."""
    owners: dict[str, str] = {}
    for platform, stack in stacks.items():
        with view_of(stack) as view:
            pending = [""]
            while pending:
                parent = pending.pop()
                for name, node in view.children(parent):
                    path = f"{parent}/{name}" if parent else name
                    if node.kind is Kind.DIRECTORY:
                        pending.append(path)
                    elif owners.setdefault(path, platform) != platform:
                        raise ExportFailed(
                            f"cannot overwrite {path} from {owners[path]} with {platform} when split option is disabled",
                            hint="leave platform-split=false away",
                        )


def export_directory(
    view: FileView,
    destination: Path,
    *,
    owner: tuple[int, int],
    epoch: int | None = None,
    cancel: threading.Event | None = None,
) -> int:
    """Write every file below ``destination`` (made if missing), merging with what is there. Returns the bytes written.

    As with docker, everything belongs to the caller (``owner``: uid, gid). What stands in the way and is of another kind is
    replaced. Raises ExportFailed; Cancelled once ``cancel`` is set.
    """
    try:
        destination.mkdir(parents=True, exist_ok=True)
        root = os.open(destination, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return _DirectoryExport(view, root, owner=owner, epoch=epoch, cancel=cancel).level(
                "", os.dup(root), fresh=False
            )
        finally:
            os.close(root)
    except OSError as error:
        inside = isinstance(error.filename, str) and error.filename != str(destination)
        where = f"{destination}: {error.filename}" if inside else str(destination)
        raise ExportFailed(f"can't write the export to {where}: {error.strerror}") from error


class _DirectoryExport:
    """One export into the directory that ``root`` is a descriptor of."""

    def __init__(
        self, view: FileView, root: int, *, owner: tuple[int, int], epoch: int | None, cancel: threading.Event | None
    ) -> None:
        self._view = view
        self._root = root
        self._owner = owner
        self._epoch = epoch
        self._cancel = cancel
        self._first_of: dict[tuple[int, int], str] = {}

    def level(self, path: str, directory: int, *, fresh: bool) -> int:
        """Export one directory's entries through its descriptor, which is closed here. Returns the bytes written. ``fresh``: the
        directory was made by this export, so that nothing can stand in the way."""
        written = 0
        try:
            for name, node in self._view.children(path):
                if self._cancel is not None and self._cancel.is_set():
                    raise Cancelled
                inner = f"{path}/{name}" if path else name
                if not fresh:
                    _make_room(directory, name, node)
                match node.kind:
                    case Kind.DIRECTORY:
                        made = True
                        try:
                            os.mkdir(name, 0o700, dir_fd=directory)
                        except FileExistsError:
                            made = False
                        child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                        written += self.level(inner, child, fresh=made)
                    case Kind.FILE:
                        if not self._link(inner, node, directory):
                            written += self._file(inner, node, directory)
                        continue
                    case Kind.SYMLINK:
                        os.symlink(node.target, name, dir_fd=directory)
                    case Kind.FIFO:
                        os.mkfifo(name, 0o600, dir_fd=directory)
                    case Kind.CHARACTER | Kind.BLOCK:
                        kind = stat.S_IFCHR if node.kind is Kind.CHARACTER else stat.S_IFBLK
                        os.mknod(name, kind | 0o600, os.makedev(*(node.device or (0, 0))), dir_fd=directory)
                    case _:
                        continue
                self._finish(name, node, directory)
        finally:
            os.close(directory)
        return written

    def _file(self, path: str, node: Node, directory: int) -> int:
        name = path.rpartition("/")[2]
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        with os.fdopen(target, "wb") as out, self._view.open(path) as source:
            if node.host_path is None or not _copied_by_kernel(source, target):
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
            os.fchown(target, *self._owner)
            os.fchmod(target, node.mode)
            mtime_ns = self._mtime_ns(node)
            os.utime(target, ns=(mtime_ns, mtime_ns))
            return out.seek(0, os.SEEK_END)

    def _link(self, path: str, node: Node, directory: int) -> bool:
        """Make a hard link if the file was exported already under another name, and the file system can."""
        if node.identity is None:
            return False
        first = self._first_of.setdefault(node.identity, path)
        if first == path:
            return False
        try:
            os.link(first, path.rpartition("/")[2], src_dir_fd=self._root, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV):
                raise
            return False
        return True

    def _finish(self, name: str, node: Node, directory: int) -> None:
        mtime_ns = self._mtime_ns(node)
        os.chown(name, *self._owner, dir_fd=directory, follow_symlinks=False)
        if node.kind is not Kind.SYMLINK:
            os.chmod(name, node.mode, dir_fd=directory)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _mtime_ns(self, node: Node) -> int:
        return node.mtime_ns if self._epoch is None else self._epoch * 10**9


def _make_room(directory: int, name: str, node: Node) -> None:
    """Remove what is there unless it is a directory that a directory may be merged with."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=directory)
    elif node.kind is not Kind.DIRECTORY:
        shutil.rmtree(name, dir_fd=directory)


def _copied_by_kernel(source: BinaryIO, target: int) -> bool:
    """Copy a file of this machine without bringing its bytes into this process; False, nothing copied, where the kernel can't."""
    copied = False
    try:
        while os.copy_file_range(source.fileno(), target, 1 << 30):
            copied = True
    except OSError as error:
        # copy_file_range(2): other file systems, and special ones.
        if copied or error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
        return False
    return True
