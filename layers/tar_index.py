"""Looks at a layer that is still a tar in the store as if it were unpacked.

Owns building an ``EntryLayer`` from a tar file. Never extracts anything: contents are read from the tar when somebody opens them. Only
for tars that this program wrote (see ``tar_write``): an archive that reaches its entries through its own links needs unpacking.
"""

from __future__ import annotations

from .entries import Kind, LayerEntry
from .tar_read import TarEntry, TarReader
from .tar_write import OPAQUE_WHITEOUT, WHITEOUT_PREFIX
from .tree_views import EntryLayer


def index_tar(path: str) -> EntryLayer | None:
    """The layer in the uncompressed tar at ``path``, or None if only unpacking can tell what it means. Raises InvalidTar."""
    entries: list[LayerEntry] = []
    offsets: list[int] = []
    opaque: list[str] = []
    leaves: set[str] = set()
    with open(path, "rb", buffering=0) as file:
        for entry in TarReader(file, seek=file.seek):
            parent, _, name = entry.path.rpartition("/")
            if entry.sparse is not None or parent in leaves or not name:
                return None
            if name == OPAQUE_WHITEOUT:
                opaque.append(parent)
                continue
            if name.startswith(WHITEOUT_PREFIX):
                where = f"{parent}/{name[len(WHITEOUT_PREFIX) :]}" if parent else name[len(WHITEOUT_PREFIX) :]
                entries.append(LayerEntry(where, Kind.WHITEOUT))
                offsets.append(0)
                continue
            if entry.kind is not Kind.DIRECTORY:
                leaves.add(entry.path)
            entries.append(_layer_entry(entry))
            offsets.append(entry.data_offset)
    return EntryLayer(entries, opaque=opaque, tar=path, offsets=offsets)


def _layer_entry(entry: TarEntry) -> LayerEntry:
    return LayerEntry(
        entry.path,
        entry.kind,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        size=entry.size,
        link=entry.link,
        device=entry.device,
        xattrs=entry.xattrs,
    )
