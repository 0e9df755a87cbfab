"""Layers that resemble one that is unpacked already: what differs is all that has to be unpacked.

A build that copies 20,000 files of which one has changed makes a layer that differs from the last one in that file. Mounted over the
last one's directory, a directory with just the changed files shows the new layer. Owns comparing and choosing what goes into that
directory; never reads or writes a store. Only plain layers are compared (files of known content, directories, symlinks).

A listing describes a layer's entries: a line for each, ``path NUL kind NUL mode NUL owner NUL mtime NUL size NUL target or content``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pybuild.values import dataclass, replace

from .digest import Digest
from .entries import Kind, LayerEntry

WORTHWHILE: Final = 256
"""From this many entries on a layer is worth being compared."""

_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Likeness:
    """What is known of a layer that was just made. ``key``: layers with the same key probably resemble each other; ``entries`` in the
    tar's order, their contents at ``offsets`` of it; ``lines``: its listing."""

    key: str
    entries: Sequence[LayerEntry]
    offsets: Sequence[int]
    lines: Sequence[str]


def listing(entries: Sequence[LayerEntry], contents: Mapping[str, str]) -> list[str] | None:
    """The listing of a layer, None if it is not plain. ``contents``: the sha256 (hex) of files by their path on this machine."""
    lines: list[str] = []
    for entry in entries:
        kind = entry.kind
        if kind is Kind.FILE:
            if entry.data is not None:
                what = Digest.of(entry.data).hex
            elif entry.offset is not None or entry.host_path is None:
                return None
            else:
                what = contents.get(entry.host_path, "")
                if not what:
                    return None
        elif kind is Kind.DIRECTORY:
            what = ""
        elif kind is Kind.SYMLINK:
            what = entry.link
        else:
            return None
        if entry.xattrs:
            return None
        size = entry.size if entry.data is None else len(entry.data)
        line = (
            f"{entry.path}\0{kind.value}\0{entry.mode & 0o7777:o}\0{entry.uid}:{entry.gid}"
            f"\0{entry.mtime_ns // _SECOND}\0{size}\0{what}"
        )
        if "\n" in line:
            return None
        lines.append(line)
    return lines


def difference(
    new: Likeness, old: Sequence[str], *, tar: str, is_below: Callable[[str], bool]
) -> tuple[list[LayerEntry], bool] | None:
    """The entries of a layer that makes the layer with the listing ``old`` look like ``new``, and whether that is so on any stack.

    ``tar``: the new layer's; ``is_below``: whether a path exists in the layers that both stand on. None where only unpacking the whole layer
    gives the right result, or where too much has changed.
    """
    known, wanted = set(old), set(new.lines)
    changed = [position for position, line in enumerate(new.lines) if line not in known]
    gone = [line.split("\0", 2)[:2] for line in old if line not in wanted]
    if 2 * max(len(changed), len(gone)) > len(new.lines):
        return None
    kinds = {entry.path: entry.kind for entry in new.entries}
    whiteouts: list[str] = []
    for path, kind in gone:
        now = kinds.get(path)
        if now is Kind.DIRECTORY and kind != Kind.DIRECTORY.value:
            return None  # the file in between would end the merging with directories further down
        parent = path.rpartition("/")[0]
        if now is None and (not parent or kinds.get(parent) is Kind.DIRECTORY):
            whiteouts.append(path)
    if any(is_below(path) for path in whiteouts):
        return None  # a whiteout would hide that, too
    needed = {new.entries[position].path for position in changed}
    for path in [*needed, *whiteouts]:
        parent = path.rpartition("/")[0]
        while parent and parent not in needed:
            needed.add(parent)
            parent = parent.rpartition("/")[0]
    out: list[LayerEntry] = []
    for entry, offset in zip(new.entries, new.offsets, strict=True):
        if entry.path not in needed:
            continue
        if entry.kind is Kind.FILE:
            size = entry.size if entry.data is None else len(entry.data)
            entry = replace(entry, data=None, size=size, host_path=tar, offset=offset)
        out.append(entry)
    return out + [LayerEntry(path, Kind.WHITEOUT) for path in whiteouts], not whiteouts


def encode(lines: Sequence[str]) -> bytes:
    """A listing as it is kept in a file."""
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def read_listing(path: str) -> list[str] | None:
    """The listing in a file, None if there is none."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read()).split("\n")
    except FileNotFoundError:
        return None
