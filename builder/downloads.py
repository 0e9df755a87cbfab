"""Downloads as trees: one file from HTTP, or a git checkout, as views that COPY and mounts read.

Owns the modes, owners and times they show. Downloads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView, Node
from pybuild.values import replace

from .protocols import HttpFile

_ROOT = Node(Kind.DIRECTORY, 0o755, 0, 0)


class DownloadedFile:
    """A tree with one file: mode 0600, root's, its time the server's Last-Modified (the epoch if there is none)."""

    def __init__(self, file: HttpFile, name: str) -> None:
        self._path = file.path
        self._name = name
        status = os.stat(file.path)
        self._node = Node(
            kind=Kind.FILE,
            mode=0o600,
            uid=0,
            gid=0,
            size=status.st_size,
            mtime_ns=int((file.last_modified or 0) * 1_000_000_000),
            host_path=file.path,
        )

    def lookup(self, path: str) -> Node | None:
        """See FileView."""
        if not path:
            return _ROOT
        return self._node if path == self._name else None

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        """See FileView."""
        return () if path else ((self._name, self._node),)

    def open(self, path: str) -> BinaryIO:
        """See FileView."""
        return open(self._path, "rb")

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        """See FileView."""
        return {}


class GitTree:
    """A checkout as git means it, whatever umask it was made with: files 0644 or 0755, directories 0755, all of them root's."""

    def __init__(self, tree: FileView) -> None:
        self._tree = tree

    def lookup(self, path: str) -> Node | None:
        """See FileView."""
        node = self._tree.lookup(path)
        return None if node is None else _normal(node)

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        """See FileView."""
        return tuple((name, _normal(node)) for name, node in self._tree.children(path))

    def open(self, path: str) -> BinaryIO:
        """See FileView."""
        return self._tree.open(path)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        """See FileView."""
        return {}


def _normal(node: Node) -> Node:
    # Groups and others may do what the owner may, except to write.
    own = node.mode & 0o700
    mode = 0o777 if node.kind is Kind.SYMLINK else own | (own & 0o500) >> 3 | (own & 0o500) >> 6
    return replace(node, mode=mode, uid=0, gid=0)
