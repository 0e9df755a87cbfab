"""Whole trees of files of a store: removing them whatever their modes, copying a view into a directory, merging unpacked layers.

Owns bulk work on directories that only the store uses. Never decides when.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

from .entries import Kind
from .views import FileView, Node
from .xattrs import OVERLAY_PREFIXES, OWNER, Owners, Ownership, is_opaque

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES: Final = 1 << 20


# --- removing -----------------------------------------------------------------------------------------------------------


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a tree, also where its directories lack permissions; nothing happens if it isn't there. Links are not followed."""
    try:
        _remove(os.fspath(path), None)
    except FileNotFoundError:
        return


def _remove(name: str, at: int | None) -> None:
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=at)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=at)
        descriptor = os.open(name, _DIRECTORY, dir_fd=at)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=at)
        return
    try:
        with os.scandir(descriptor) as listing:
            items = [(item.name, item.is_dir(follow_symlinks=False)) for item in listing]
        if items and os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(descriptor, stat.S_IRWXU)
        for child, is_directory in items:
            try:
                if is_directory:
                    _remove(child, descriptor)
                else:
                    os.unlink(child, dir_fd=descriptor)
            except FileNotFoundError:
                continue
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=at)


# --- copying ------------------------------------------------------------------------------------------------------------


def copy_view(view: FileView, directory: str, *, ownership: Ownership) -> None:
    """Copy all of ``view`` into the empty directory: for machines without overlayfs. Devices that can't be made are left out."""
    links: dict[tuple[int, int], str] = {}
    _copy_children(view, "", directory, ownership, links)


def _copy_children(
    view: FileView, path: str, directory: str, ownership: Ownership, links: dict[tuple[int, int], str]
) -> None:
    for name, node in view.children(path):
        where = f"{path}/{name}" if path else name
        target = f"{directory}/{where}"
        first = None if node.identity is None else links.setdefault(node.identity, target)
        if first is not None and first != target:
            os.link(first, target, follow_symlinks=False)
            continue
        match node.kind:
            case Kind.DIRECTORY:
                os.mkdir(target, 0o700)
                _copy_children(view, where, directory, ownership, links)
            case Kind.FILE:
                _copy_file(view, where, node, target)
            case Kind.SYMLINK:
                os.symlink(node.target, target)
            case Kind.CHARACTER | Kind.BLOCK | Kind.FIFO:
                kind = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK}.get(node.kind, stat.S_IFIFO)
                try:
                    os.mknod(target, kind | 0o600, os.makedev(*(node.device or (0, 0))))
                except PermissionError:
                    continue
            case _:
                continue
        _dress(view, where, node, target, ownership)


def _dress(view: FileView, path: str, node: Node, target: str, ownership: Ownership) -> None:
    if (node.uid, node.gid) != (ownership.uid, ownership.gid):
        if ownership.owners is Owners.NATIVE:
            os.chown(target, node.uid, node.gid, follow_symlinks=False)
        elif node.kind in (Kind.FILE, Kind.DIRECTORY):
            os.setxattr(target, OWNER, b"%d:%d" % (node.uid, node.gid))
    if node.kind is Kind.FILE:
        for key, value in view.xattrs(path).items():
            try:
                os.setxattr(target, key, value)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
    if node.kind is not Kind.SYMLINK:
        os.chmod(target, node.mode)
    os.utime(target, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def _copy_file(view: FileView, path: str, node: Node, target: str) -> None:
    descriptor = os.open(target, _NEW_FILE, 0o600)
    try:
        with view.open(path) as source:
            if node.host_path is not None and _copy_in_kernel(source.fileno(), descriptor, node.size):
                return
            while chunk := source.read(_COPY_BYTES):
                data = memoryview(chunk)
                while data:
                    data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _copy_in_kernel(source: int, target: int, size: int) -> bool:
    """Copy by copy_file_range(2), which shares blocks where the file system can. False if it can't be used at all."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, min(size - done, 1 << 30))
        except OSError as error:
            if done or error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
            return False
        if not count:
            break
        done += count
    return True


# --- merging ------------------------------------------------------------------------------------------------------------


def merge_layers(layers: Sequence[str], target: str, *, opaque: str) -> None:
    """Make of several unpacked layers (lowest first) one in the empty directory ``target``, by hard links.

    The result is again in overlay form: it hides and shows, on top of whatever lies below, just what the layers do. ``opaque``: the
    attribute that marks opaque directories.
    """
    _merge_directory(layers[::-1], target, opaque, is_root=True, hides=False)


def _merge_directory(parts: Sequence[str], target: str, opaque: str, *, is_root: bool, hides: bool) -> None:
    """``parts``: the directories at one path, topmost first; ``hides``: right below them the merged layers have no directory."""
    shown: dict[str, str] = {}  # what isn't a directory
    merged: dict[str, list[str]] = {}
    closed: set[str] = set()  # names of which lower parts can't show anything any more
    hiding: set[str] = set()
    for part in parts:
        with os.scandir(part) as listing:
            for item in listing:
                name = item.name
                if name in closed:
                    continue
                if item.is_dir(follow_symlinks=False):
                    merged.setdefault(name, []).append(item.path)
                    if is_opaque(item.path):
                        closed.add(name)
                        hiding.add(name)
                else:
                    closed.add(name)
                    if name in merged:
                        hiding.add(name)
                    else:
                        shown[name] = item.path
    for name, path in sorted(shown.items()):
        _link(path, f"{target}/{name}")
    for name, paths in sorted(merged.items()):
        os.mkdir(f"{target}/{name}", 0o700)
        _merge_directory(paths, f"{target}/{name}", opaque, is_root=False, hides=name in hiding)
    if hides and not is_root:
        os.setxattr(target, opaque, b"y")
    _copy_directory_metadata(parts[0], target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM):
            raise
        _duplicate(source, target)


def _duplicate(source: str, target: str) -> None:
    status = os.lstat(source)
    if stat.S_ISREG(status.st_mode):
        descriptor = os.open(target, _NEW_FILE, 0o600)
        try:
            with open(source, "rb") as content:
                while chunk := content.read(_COPY_BYTES):
                    os.write(descriptor, chunk)
        finally:
            os.close(descriptor)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    _copy_metadata(source, target, status, lambda name: True)


def _copy_directory_metadata(source: str, target: str) -> None:
    _copy_metadata(source, target, os.lstat(source), lambda name: not name.startswith(OVERLAY_PREFIXES))


def _copy_metadata(source: str, target: str, status: os.stat_result, wanted: Callable[[str], bool]) -> None:
    mine = os.lstat(target)
    if (status.st_uid, status.st_gid) != (mine.st_uid, mine.st_gid):
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        for name in os.listxattr(source):
            if wanted(name):
                os.setxattr(target, name, os.getxattr(source, name))
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)
