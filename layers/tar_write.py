"""Turns layer entries into canonical tar bytes in one pass. Never walks a tree, compresses or stores anything.

The same entries give the same bytes on every machine:

- POSIX ustar headers; a PAX header (POSIX.1-2008, "pax Interchange Format") only for what ustar can't say: long or non-ASCII
  names, large numbers, extended attributes (``SCHILY.xattr.*``);
- entries in the order of a sorted walk (a directory, what is in it, the next name), each path once: the last one given wins;
- whole seconds: a fraction of an mtime is cut off, as in every layer that BuildKit and containerd write;
- no names of users and groups, no atime or ctime, symlinks with mode 0777, hard links with the metadata of their first name;
- whiteouts (image specification, ``layer.md``) with zero mode, owner and time; two zero blocks at the end.

Contents are read into large slabs that a second thread hands to the sink, so that reading goes on while the sink hashes and writes.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final, assert_never

from pybuild.errors import PybuildError
from pybuild.values import dataclass, replace

from .digest import Digest
from .entries import Kind, LayerEntry
from .slabs import SLAB_BYTES, Sink, Slabs

BLOCK: Final = 512
WHITEOUT_PREFIX: Final = ".wh."
OPAQUE_WHITEOUT: Final = ".wh..wh..opq"
_ZEROS: Final = bytes(2 * BLOCK)
_OCTAL_7: Final = 0o7777777
_OCTAL_11: Final = 0o77777777777
_SECOND: Final = 1_000_000_000
_UNCLEAN: Final = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0")


class FileChanged(PybuildError):
    """A file was changed, replaced or removed between the walk that found it and its reading."""

    def __init__(self, path: str, *, what: str) -> None:
        super().__init__(
            f"{path!r} {what} while it was being copied into a layer",
            hint="build again when nothing writes to the context any more",
        )
        self.path = path


class InvalidEntry(PybuildError):
    """An entry that no layer can hold."""

    def __init__(self, path: str, *, what: str) -> None:
        super().__init__(f"{path!r} can't be put into a layer: {what}")
        self.path = path


@dataclass(frozen=True, slots=True)
class TarSummary:
    """What was written: bytes, entries, and (only if asked for) the digests of the files read from ``host_path``, by entry path.

    ``ordered``: the entries as they were written; ``offsets``: where each one's content begins in the tar.
    """

    size: int
    entries: int
    ordered: tuple[LayerEntry, ...] = ()
    offsets: tuple[int, ...] = ()
    file_digests: tuple[tuple[str, Digest], ...] = ()


# --- order -------------------------------------------------------------------------------------------------------------


def _walk_key(entry: LayerEntry) -> bytes:
    # A separator sorts before every other byte, so that what is in a directory follows it directly ("a", "a/b", "a.txt").
    return os.fsencode(entry.path).replace(b"/", b"\0")


def canonical_order(entries: Iterable[LayerEntry]) -> list[LayerEntry]:
    """Entries in walk order, each path once (the last one given), the first name of every group of hard links being the file.

    Raises InvalidEntry: a path that isn't relative and clean, or a hard link whose target is not in ``entries``.
    """
    by_path: dict[str, LayerEntry] = {}
    unclean = _UNCLEAN.search
    for entry in entries:
        path = entry.path
        if unclean(path):
            _refuse_path(path)
        by_path[path] = entry
    ordered = sorted(by_path.values(), key=_walk_key)
    if any(entry.kind is Kind.HARDLINK for entry in ordered):
        return _link_forward(ordered, by_path)
    return ordered


def _refuse_path(path: str) -> None:
    if not path:
        raise InvalidEntry(path, what="the root has no entry of its own")
    if "\0" in path:
        raise InvalidEntry(path, what="its path has a NUL byte")
    raise InvalidEntry(path, what="its path is not relative and clean")


def _link_forward(ordered: Sequence[LayerEntry], by_path: dict[str, LayerEntry]) -> list[LayerEntry]:
    origins: dict[str, str] = {}  # path of the file as given → path of the group's first name
    out: list[LayerEntry] = []
    grouped = {_link_origin(entry, by_path) for entry in ordered if entry.kind is Kind.HARDLINK}
    for entry in ordered:
        origin = _link_origin(entry, by_path) if entry.kind is Kind.HARDLINK else entry.path
        if origin not in grouped:
            out.append(entry)
            continue
        source = by_path[origin]
        first = origins.setdefault(origin, entry.path)
        if first == entry.path:
            out.append(replace(source, path=entry.path))
        else:
            out.append(
                replace(source, path=entry.path, kind=Kind.HARDLINK, link=first, data=None, host_path=None, size=0)
            )
    return out


def _link_origin(entry: LayerEntry, by_path: dict[str, LayerEntry]) -> str:
    seen: set[str] = set()
    while entry.kind is Kind.HARDLINK:
        target = by_path.get(entry.link)
        if target is None or target.kind in (Kind.DIRECTORY, Kind.WHITEOUT) or entry.path in seen:
            raise InvalidEntry(entry.path, what=f"it is a hard link to {entry.link!r}, which is no file of this layer")
        seen.add(entry.path)
        entry = target
    return entry.path


# --- headers -----------------------------------------------------------------------------------------------------------

# name, mode+uid+gid, size+mtime, checksum, type, link name, magic+version, user, group, major+minor, prefix (ustar, POSIX.1-1988)
_HEADER: Final = Struct("100s24s24s8sc100s8s64x16s155s12x")
_MAGIC: Final = b"ustar\x0000"
_NO_DEVICE: Final = b"0000000\x000000000\0"
_BLANK_SUM: Final = b"        "
_TYPES: Final = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
    Kind.WHITEOUT: b"0",
}


class HeaderWriter:
    """Makes headers. Remembers the packed form of owners and modes that it has seen, as most entries share a few."""

    def __init__(self) -> None:
        self._owners: dict[tuple[int, int, int], bytes] = {}

    def header(self, entry: LayerEntry) -> bytes:
        """All blocks that precede the entry's content. Raises InvalidEntry for sockets and names with NUL bytes."""
        kind, link, mode = entry.kind, b"", entry.mode & 0o7777
        size, device, xattrs = 0, _NO_DEVICE, entry.xattrs
        name = os.fsencode(entry.path)
        match kind:
            case Kind.FILE:
                size = entry.size if entry.data is None else len(entry.data)
            case Kind.DIRECTORY:
                name += b"/"
            case Kind.SYMLINK:
                link, mode = os.fsencode(entry.link), 0o777
            case Kind.HARDLINK:
                link, xattrs = os.fsencode(entry.link), ()
            case Kind.CHARACTER | Kind.BLOCK:
                device = b"%07o\0%07o\0" % entry.device
            case Kind.FIFO:
                pass
            case Kind.WHITEOUT:
                return self._whiteout(name)
            case Kind.SOCKET:
                raise InvalidEntry(entry.path, what="it is a socket")
            case _:
                assert_never(kind)
        if b"\0" in link:
            raise InvalidEntry(entry.path, what="its target has a NUL byte")
        return self._blocks(
            name,
            kind=_TYPES[kind],
            owner=(mode, entry.uid, entry.gid),
            size=size,
            mtime=entry.mtime_ns // _SECOND,
            link=link,
            device=device,
            xattrs=xattrs,
        )

    def _whiteout(self, name: bytes) -> bytes:
        parent, slash, base = name.rpartition(b"/")
        name = parent + slash + b".wh." + base
        return self._blocks(name, kind=b"0", owner=(0, 0, 0), size=0, mtime=0, link=b"", device=_NO_DEVICE, xattrs=())

    def _blocks(
        self,
        name: bytes,
        *,
        kind: bytes,
        owner: tuple[int, int, int],
        size: int,
        mtime: int,
        link: bytes,
        device: bytes,
        xattrs: tuple[tuple[str, bytes], ...],
    ) -> bytes:
        packed_owner = self._owners.get(owner)
        if packed_owner is None:
            packed_owner = self._owners[owner] = b"%07o\0%07o\0%07o\0" % (
                owner[0],
                owner[1] if 0 <= owner[1] <= _OCTAL_7 else 0,
                owner[2] if 0 <= owner[2] <= _OCTAL_7 else 0,
            )
        prefix = b""
        plain = len(link) <= 100 and name.isascii() and link.isascii() and not xattrs and 0 <= mtime <= _OCTAL_11
        if plain and size <= _OCTAL_11 and 0 <= owner[1] <= _OCTAL_7 and 0 <= owner[2] <= _OCTAL_7:
            if len(name) <= 100:
                return _ustar(name, packed_owner, b"%011o\0%011o\0" % (size, mtime), kind, link, device, prefix)
            split = _split_name(name)
            if split is not None:
                prefix, short = split
                return _ustar(short, packed_owner, b"%011o\0%011o\0" % (size, mtime), kind, link, device, prefix)
        records = _pax_records(name, owner, size=size, mtime=mtime, link=link, xattrs=xattrs)
        numbers = b"%011o\0%011o\0" % (size if size <= _OCTAL_11 else 0, mtime if 0 <= mtime <= _OCTAL_11 else 0)
        return _pax_blocks(name, records) + _ustar(
            _ascii(name)[:100], packed_owner, numbers, kind, _ascii(link)[:100], device, b""
        )


def _ustar(name: bytes, owner: bytes, numbers: bytes, kind: bytes, link: bytes, device: bytes, prefix: bytes) -> bytes:
    block = _HEADER.pack(name, owner, numbers, _BLANK_SUM, kind, link, _MAGIC, device, prefix)
    # The low half of Adler-32 is 1 + the sum of the bytes modulo 65521, which 512 ASCII bytes can't exceed.
    total = (zlib.adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    return b"%b%06o\0 %b" % (block[:148], total, block[156:])


def _split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Prefix and name for ustar, or None if the name can't be cut at a slash so that both fit."""
    cut = name.rfind(b"/", 0, min(156, len(name) - 1))
    if cut <= 0 or len(name) - cut - 1 > 100:
        return None
    return name[:cut], name[cut + 1 :]


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(byte for byte in text if byte < 0x80)


def _pax_records(
    name: bytes,
    owner: tuple[int, int, int],
    *,
    size: int,
    mtime: int,
    link: bytes,
    xattrs: tuple[tuple[str, bytes], ...],
) -> bytes:
    records: dict[bytes, bytes] = {b"SCHILY.xattr." + os.fsencode(key): value for key, value in xattrs}
    if len(name) > 100 or not name.isascii():
        records[b"path"] = name
    if len(link) > 100 or not link.isascii():
        records[b"linkpath"] = link
    if size > _OCTAL_11:
        records[b"size"] = b"%d" % size
    if not 0 <= mtime <= _OCTAL_11:
        records[b"mtime"] = b"%d" % mtime
    for key, number in ((b"uid", owner[1]), (b"gid", owner[2])):
        if not 0 <= number <= _OCTAL_7:
            records[key] = b"%d" % number
    return b"".join(_pax_record(key, records[key]) for key in sorted(records))


def _pax_record(key: bytes, value: bytes) -> bytes:
    body = len(key) + len(value) + 3  # a space, "=" and a newline
    length = body + len(str(body))
    length = body + len(str(length))  # the length counts its own digits, which it may have just grown by
    return b"%d %b=%b\n" % (length, key, value)


def _pax_blocks(name: bytes, records: bytes) -> bytes:
    parent, slash, base = name.rstrip(b"/").rpartition(b"/")
    header = _ustar(
        _ascii(parent + slash + b"PaxHeaders.0/" + base)[:100].rstrip(b"/"),
        b"0000000\x000000000\x000000000\0",
        b"%011o\0%011o\0" % (len(records), 0),
        b"x",
        b"",
        _NO_DEVICE,
        b"",
    )
    return header + records + bytes(-len(records) % BLOCK)


# --- the pipeline ------------------------------------------------------------------------------------------------------

# O_NONBLOCK: a fifo that has taken the file's place must not block the build (open(2)).
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def write_tar(entries: Iterable[LayerEntry], sink: Sink, *, digests: bool = False) -> TarSummary:
    """Write the canonical tar of ``entries`` (any order) to ``sink``, which is called with large pieces from one thread at a time.

    ``digests``: also return the sha256 of every file read from the host. Raises FileChanged, InvalidEntry, OSError of a
    file that can't be read, and whatever ``sink`` raises.
    """
    ordered = canonical_order(entries)
    slabs = Slabs(sink, digests=digests)
    try:
        offsets = _fill(ordered, slabs, digests=digests)
        return TarSummary(
            size=slabs.total + slabs.position,
            entries=len(ordered),
            ordered=tuple(ordered),
            offsets=tuple(offsets),
            file_digests=slabs.finish(),
        )
    finally:
        slabs.stop()


def _fill(ordered: Sequence[LayerEntry], slabs: Slabs, *, digests: bool) -> list[int]:
    offsets: list[int] = []
    make_header = HeaderWriter().header
    view, position = slabs.view, 0
    regular = Kind.FILE
    for entry in ordered:
        header = make_header(entry)
        length = len(header)
        if position + length > SLAB_BYTES:
            slabs.position = position
            _put(slabs, header)
            view, position = slabs.view, slabs.position
        else:
            view[position : position + length] = header
            position += length
        offsets.append(slabs.total + position)
        if entry.kind is not regular:
            continue
        if entry.data is not None:
            slabs.position = position
            _put(slabs, entry.data)
            _pad(slabs, len(entry.data))
            view, position = slabs.view, slabs.position
            continue
        size = entry.size
        if not size:
            if digests and entry.host_path is not None:
                slabs.segments.append((entry.path, 0, 0, True))
            continue
        if entry.host_path is None:
            raise InvalidEntry(entry.path, what="it has neither data nor a file to read from")
        if position + size + 2 * BLOCK > SLAB_BYTES and size < SLAB_BYTES >> 2:
            slabs.position = position
            view, position = slabs.swap(), 0
        descriptor = _open(entry)
        try:
            if position + size + 2 * BLOCK <= SLAB_BYTES:
                # One byte more than expected: a file that has grown shows itself without another system call.
                wanted = size + 1 if entry.offset is None else size
                got = os.preadv(descriptor, (view[position : position + wanted],), entry.offset or 0)
                if got != size:
                    raise FileChanged(entry.host_path, what="changed its size")
                if digests:
                    slabs.segments.append((entry.path, position, position + size, True))
                position += size
                padding = -size % BLOCK
                view[position : position + padding] = _ZEROS[:padding]
                position += padding
            else:
                slabs.position = position
                _read_large(entry, descriptor, slabs, digests=digests)
                view, position = slabs.view, slabs.position
        except IsADirectoryError:
            raise FileChanged(entry.host_path, what="was replaced by a directory") from None
        finally:
            os.close(descriptor)
    slabs.position = position
    _put(slabs, _ZEROS)
    return offsets


def _open(entry: LayerEntry) -> int:
    path = entry.host_path or ""
    try:
        return os.open(path, _OPEN_FLAGS)
    except FileNotFoundError:
        raise FileChanged(path, what="was removed") from None
    except OSError as error:
        if os.path.islink(path):
            raise FileChanged(path, what="was replaced by a symlink") from None
        raise PybuildError(f"{path!r} can't be read: {error.strerror}") from error


def _read_large(entry: LayerEntry, descriptor: int, slabs: Slabs, *, digests: bool) -> None:
    offset, left = entry.offset or 0, entry.size
    while left:
        if slabs.position == SLAB_BYTES:
            slabs.swap()
        start = slabs.position
        room = min(left, SLAB_BYTES - start)
        got = os.preadv(descriptor, (slabs.view[start : start + room],), offset)
        if got <= 0:
            raise FileChanged(entry.host_path or "", what="became shorter")
        slabs.position += got
        offset += got
        left -= got
        if digests:
            slabs.segments.append((entry.path, start, start + got, left == 0))
    if entry.offset is None and os.pread(descriptor, 1, offset):
        raise FileChanged(entry.host_path or "", what="became longer")
    _pad(slabs, entry.size)


def _put(slabs: Slabs, data: bytes) -> None:
    start, length = 0, len(data)
    while start < length:
        if slabs.position == SLAB_BYTES:
            slabs.swap()
        room = min(length - start, SLAB_BYTES - slabs.position)
        slabs.view[slabs.position : slabs.position + room] = data[start : start + room]
        slabs.position += room
        start += room


def _pad(slabs: Slabs, size: int) -> None:
    if padding := -size % BLOCK:
        _put(slabs, _ZEROS[:padding])
