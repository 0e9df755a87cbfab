"""Files as fsutil describes them: its ``Stat`` to a row of a context's list, and a file of this machine to a ``Stat``. Reads no content.

Go's ``fs.FileMode`` has the permissions in the kernel's places, and everything else in places of its own (https://pkg.go.dev/io/fs#FileMode).
"""

from __future__ import annotations

import os
import stat
from typing import Final

from pybuild.daemon.context_listing import ListedPath
from pybuild.daemon.wire import WireError
from pybuild.layers.entries import Kind

from .messages import files_pb2

DIRECTORY: Final = 1 << 31
SYMLINK: Final = 1 << 27
_DEVICE: Final = 1 << 26
FIFO: Final = 1 << 25
_SOCKET: Final = 1 << 24
_SETUID: Final = 1 << 23
_SETGID: Final = 1 << 22
_CHARACTER: Final = 1 << 21
_STICKY: Final = 1 << 20
_IRREGULAR: Final = 1 << 19
_TYPE: Final = DIRECTORY | SYMLINK | _DEVICE | FIFO | _SOCKET | _CHARACTER | _IRREGULAR
_SPECIAL: Final = ((_SETUID, stat.S_ISUID), (_SETGID, stat.S_ISGID), (_STICKY, stat.S_ISVTX))

_RACY_NS: Final = 2_000_000_000
_TRUSTED_NS: Final = 631_152_000_000_000_000
"""1990. What is older has no time from a clock, but one that a packer gave to everything (0, 1980, npm's 1985): it doesn't tell of changes."""


def permissions(mode: int) -> int:
    """The kernel's twelve bits of a Go mode."""
    return mode & 0o777 | sum(kernel for go, kernel in _SPECIAL if mode & go)


def row_of(described: files_pb2.Stat, *, now_ns: int) -> ListedPath | None:
    """The row for what a client describes; None for what a context can't hold (devices, sockets). ``now_ns``: a file that changed just before may change
    again without its time telling, and gets no stamp; neither does one whose time is no time. Raises WireError."""
    kind = _kind(described)
    if kind is None:
        return None
    if b"\0" in described.linkname:
        raise WireError("the list of the build context holds an impossible link")
    path = os.fsdecode(described.path)
    mode = permissions(described.mode)
    link = os.fsdecode(described.linkname) if kind in (Kind.SYMLINK, Kind.HARDLINK) else ""
    if kind is not Kind.FILE:
        return ListedPath(path, kind, mode, 0, described.mod_time, link)
    tells = _TRUSTED_NS < described.mod_time < now_ns - _RACY_NS
    stamp = f"{described.mod_time}:{described.mode}" if tells else ""
    return ListedPath(path, kind, mode, max(0, described.size), described.mod_time, "", stamp)


def _kind(described: files_pb2.Stat) -> Kind | None:
    match described.mode & _TYPE:
        case 0:
            return Kind.HARDLINK if described.linkname else Kind.FILE
        case value if value == DIRECTORY:
            return Kind.DIRECTORY
        case value if value == SYMLINK:
            return Kind.SYMLINK
        case value if value == FIFO:
            return Kind.FIFO
        case _:
            return None


def stat_of(path: bytes, status: os.stat_result, *, link: bytes) -> files_pb2.Stat | None:
    """How a file of this machine is described; None for what can't be sent (sockets). ``link``: a symlink's target, or the first name of the same file."""
    kinds = {
        stat.S_IFREG: 0,
        stat.S_IFDIR: DIRECTORY,
        stat.S_IFLNK: SYMLINK,
        stat.S_IFIFO: FIFO,
        stat.S_IFBLK: _DEVICE,
        stat.S_IFCHR: _DEVICE | _CHARACTER,
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    special = sum(go for go, kernel in _SPECIAL if status.st_mode & kernel)
    described = files_pb2.Stat(
        path=path,
        mode=kind | special | status.st_mode & 0o777,
        uid=status.st_uid,
        gid=status.st_gid,
        size=0 if kind == DIRECTORY else status.st_size,
        mod_time=status.st_mtime_ns,
        linkname=link,
    )
    if kind & _DEVICE:
        described.devmajor, described.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return described
