"""Read-only views of file trees: what a COPY reads from and looks up its destination in.

Owns the ``FileView`` protocol, ``Node`` and link-safe path resolution. Never writes, never mounts. Paths are relative to
the view's root, ``/``-separated, without a leading slash; ``""`` is the root; they are ``str`` with ``surrogateescape``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol

from pybuild.values import dataclass

from .entries import Kind


@dataclass(frozen=True, slots=True)
class Node:
    """What is known of one path without reading its content.

    ``mode``: permission bits with setuid, setgid, sticky; ``size`` in bytes (files); ``mtime_ns``; ``target``: a
    symlink's; ``device``: (major, minor) of a device node; ``identity``: (st_dev, st_ino) where st_nlink > 1, equal for hard links of one
    file, else None; ``host_path``: where the bytes are on this machine, None for content that only the view can open.
    ``ctime_ns`` and ``inode`` feed the stat index; 0 when unknown.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int = 0
    mtime_ns: int = 0
    target: str = ""
    device: tuple[int, int] | None = None
    identity: tuple[int, int] | None = None
    host_path: str | None = None
    ctime_ns: int = 0
    inode: tuple[int, int] = (0, 0)


class FileView(Protocol):
    """A tree of files, read-only. Implementations never follow a symlink out of their root."""

    def lookup(self, path: str) -> Node | None:
        """The node at ``path``, whose last element is not followed; parents must be real directories. None if there is none."""

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        """The entries of a directory, sorted by name's bytes; empty if it isn't a directory."""

    def open(self, path: str) -> BinaryIO:
        """Open a regular file's content; the caller closes it."""

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        """Extended attributes that belong into a layer (``security.capability``); never ``user.*`` nor overlay's own."""
