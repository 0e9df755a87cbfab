"""A directory tree as packs: layers' tars that together hold it, cut so that a small change of the tree changes few of them.

Owns the cutting. Never compresses, sends or chooses what to pack; restoring is unpacking all packs into one directory (``unpack.py``).

A subtree of up to 8 MiB is one pack. What is small (up to 4 MiB) in a larger directory goes into a number of packs by the hash of its name, so that
a new file changes one of them and never moves the others. Directories are in a pack of their own, the last one, without their times:
otherwise each new file would change every pack below it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

from pybuild.values import dataclass, field

from .entries import Kind, LayerEntry
from .views import FileView, Node

PACK_BYTES: Final = 8 << 20
_SMALL_BYTES: Final = 4 << 20
_ENTRY_BYTES: Final = 1024  # of a header and padding
_KINDS: Final = frozenset({Kind.FILE, Kind.SYMLINK})


@dataclass(frozen=True, slots=True)
class PackedTree:
    """``packs``: the entries of each pack, to be unpacked in this order; ``files``, ``size``: how many files are in them, and
    their bytes; ``left_out``: how many files were over the limit."""

    packs: tuple[tuple[LayerEntry, ...], ...]
    files: int
    size: int
    left_out: int


@dataclass(slots=True)
class _Directory:
    path: str
    node: Node
    files: list[LayerEntry] = field(default_factory=list)
    below: list[_Directory] = field(default_factory=list)
    size: int = 0


def pack_tree(view: FileView, *, max_bytes: int = 0) -> PackedTree:
    """Cut the tree of ``view`` into packs. ``max_bytes``: of files' contents, 0 for no limit; what was used least lately stays out.

    Sockets, pipes and devices are left out. Raises OSError of what can't be read.
    """
    root = _read(view)
    directories = list(_all(root))
    left_out = _limit(directories, max_bytes) if max_bytes else 0
    for directory in reversed(directories):
        directory.size = sum(_cost(entry) for entry in directory.files) + sum(child.size for child in directory.below)
    packs = [tuple(pack) for pack in _cut(root) if pack]
    entries = tuple(
        LayerEntry(one.path, Kind.DIRECTORY, mode=one.node.mode, uid=one.node.uid, gid=one.node.gid)
        for one in directories
        if one.path
    )
    if entries:
        packs.append(entries)
    files = [entry for directory in directories for entry in directory.files]
    return PackedTree(tuple(packs), len(files), sum(entry.size for entry in files), left_out)


def _read(view: FileView) -> _Directory:
    root = _Directory("", view.lookup("") or Node(Kind.DIRECTORY, 0o755, 0, 0))
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        for name, node in view.children(directory.path):
            path = f"{directory.path}/{name}" if directory.path else name
            if node.kind is Kind.DIRECTORY:
                child = _Directory(path, node)
                directory.below.append(child)
                waiting.append(child)
            elif node.kind in _KINDS:
                directory.files.append(
                    LayerEntry(
                        path,
                        node.kind,
                        mode=node.mode,
                        uid=node.uid,
                        gid=node.gid,
                        mtime_ns=node.mtime_ns,
                        size=node.size if node.kind is Kind.FILE else 0,
                        link=node.target,
                        host_path=node.host_path if node.kind is Kind.FILE else None,
                    )
                )
    return root


def _all(root: _Directory) -> Iterator[_Directory]:
    """Every directory, parents first."""
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        yield directory
        waiting += reversed(directory.below)


def _limit(directories: Sequence[_Directory], max_bytes: int) -> int:
    """Drop the files that were used least lately until the rest fits; returns how many."""
    files = [(entry, directory) for directory in directories for entry in directory.files if entry.size]
    total = sum(entry.size for entry, _ in files)
    if total <= max_bytes:
        return 0
    files.sort(key=lambda item: (_used(item[0]), item[0].path))
    dropped: set[str] = set()
    for entry, _ in files:
        if total <= max_bytes:
            break
        total -= entry.size
        dropped.add(entry.path)
    for directory in directories:
        directory.files = [entry for entry in directory.files if entry.path not in dropped]
    return len(dropped)


def _used(entry: LayerEntry) -> int:
    if entry.host_path is None:
        return entry.mtime_ns
    status = os.stat(entry.host_path, follow_symlinks=False)
    return max(status.st_atime_ns, status.st_mtime_ns)


def _cost(entry: LayerEntry) -> int:
    return entry.size + _ENTRY_BYTES


def _cut(root: _Directory) -> Iterator[list[LayerEntry]]:
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        if directory.size <= PACK_BYTES:
            yield [entry for one in _all(directory) for entry in one.files]
            continue
        small: list[tuple[str, list[LayerEntry], int]] = [
            (entry.path, [entry], _cost(entry)) for entry in directory.files
        ]
        for child in directory.below:
            if child.size > _SMALL_BYTES:
                waiting.append(child)
            else:
                small.append((child.path, [entry for one in _all(child) for entry in one.files], child.size))
        count = 1
        while count * _SMALL_BYTES < sum(size for _, _, size in small):
            count *= 2
        buckets: list[list[LayerEntry]] = [[] for _ in range(count)]
        for path, entries, _ in small:
            name = os.fsencode(path)
            buckets[int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % count] += entries
        yield from buckets
