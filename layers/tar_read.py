"""Reads tar streams that anybody may have written, entry by entry. Never creates files, follows links or decompresses.

Understood: v7, ustar, star, GNU (long names and links, base-256 numbers, old sparse files), PAX (records, sparse formats 0.0, 0.1 and
1.0, extended attributes as ``SCHILY.xattr.*`` and ``LIBARCHIVE.xattr.*``). PAX global headers are passed over, as image tools do.

What an archive can make the reader hold in memory is bounded; every complaint names the offset in the stream.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, Protocol

from pybuild.values import dataclass, pattern, replace

from .entries import Kind
from .holes import is_hole
from .tar_fields import TIME_LIMIT, Overrides, decimal, device_number, number, octal, read_records
from .tar_fields import InvalidTar as InvalidTar

BLOCK: Final = 512
_CHUNK_BYTES: Final = 1 << 20
_EXTRA_HEADER_BYTES: Final = 1 << 20  # of one PAX or GNU long-name header; Go's archive/tar has the same limit
_SPARSE_EXTENTS: Final = 1 << 18
_SIZE_LIMIT: Final = 1 << 62
_ID_LIMIT: Final = (1 << 32) - 2  # -1 means "leave it" to chown(2)
_ZERO_BLOCK: Final = bytes(BLOCK)
_UNCLEAN: Final = pattern(r"(?:\A|/)\.{0,2}(?:/|\Z)")
_HEADER: Final = Struct("100s24s12s12s8sc100s8s64x8s8s155s12x")
_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry as it is in the archive.

    ``name`` as written, ``path`` the same made relative and clean, never above the root (``""`` is the root itself); ``link``: a
    symlink's target as written, or a hard link's, made clean like ``path``; ``mode`` with setuid, setgid, sticky; ``size`` of the
    content in bytes, holes included. ``offset``: of its header block; ``data_offset``: where its content begins in the
    stream; ``sparse``: the (offset, length) pairs that hold data, or None if there are no holes.
    """

    name: str
    path: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    link: str
    device: tuple[int, int]
    xattrs: tuple[tuple[str, bytes], ...]
    offset: int
    data_offset: int
    sparse: tuple[tuple[int, int], ...] | None


class Source(Protocol):
    """What is read from: any object with ``read`` that returns at least one byte unless the stream has ended."""

    def read(self, size: int, /) -> bytes: ...


def clean_path(name: str) -> str:
    """``name`` relative to the root, without ``.``, ``..`` and empty elements; ``..`` stops at the root."""
    if not _UNCLEAN.search(name):
        return name
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,  # "contiguous": no system tells them apart
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"D": Kind.DIRECTORY,  # GNU incremental archives; the content is a list of names
    b"6": Kind.FIFO,
}
# Entries of these types have no content even where the size field says so (POSIX leaves it open for links).
_WITHOUT_CONTENT: Final = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))


_SPECIAL: Final = frozenset((b"x", b"X", b"g", b"L", b"K"))


class TarReader:
    """Iterates over the entries of a stream. The content of an entry can be read until the next one is asked for.

    The stream is closed by the caller. Iterating and reading raise InvalidTar and whatever ``source`` raises.
    """

    def __init__(self, source: Source, *, seek: Callable[[int, int], object] | None = None) -> None:
        """``seek``: the source's, if it has one: content that nobody reads is then jumped over."""
        self._source = source
        self._seek = seek
        self._buffer = memoryview(b"")
        self._at = 0  # in the buffer
        self._base = 0  # offset in the stream of the buffer's beginning
        self._left = 0  # of the current entry's stored content
        self._padding = 0
        self._entry: TarEntry | None = None
        self._virtual = 0  # position in a sparse entry's content, holes included
        self._owners: dict[bytes, tuple[int, int, int]] = {}

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._base + self._at

    # --- the stream ---

    def _fill(self, needed: int) -> bool:
        """Have ``needed`` bytes in the buffer; False if the stream ends before."""
        have = len(self._buffer) - self._at
        if have >= needed:
            return True
        parts = [bytes(self._buffer[self._at :])]
        self._base += self._at
        self._at = 0
        while have < needed and (chunk := self._source.read(_CHUNK_BYTES)):
            parts.append(chunk)
            have += len(chunk)
        self._buffer = memoryview(parts[1] if len(parts) == 2 and not parts[0] else b"".join(parts))
        return have >= needed

    def _take(self, size: int) -> bytes:
        if not self._fill(size):
            raise InvalidTar("it ends too early", offset=self._base + len(self._buffer))
        start = self._at
        self._at = start + size
        return bytes(self._buffer[start : self._at])

    def _skip(self, size: int) -> None:
        while True:
            step = min(size, len(self._buffer) - self._at)
            self._at += step
            size -= step
            if not size:
                return
            if self._seek is not None and size > _CHUNK_BYTES:
                # Not to the very end: that the last byte is there tells an archive from a truncated one.
                self._seek(size - BLOCK, os.SEEK_CUR)
                self._base += self._at + size - BLOCK
                self._at, self._buffer, size = 0, memoryview(b""), BLOCK
            if not self._fill(1):
                raise InvalidTar("it ends too early", offset=self.offset)

    def drain(self) -> None:
        """Read the stream to its end, past the end of the archive, so that a digest over it is complete."""
        self._left = self._padding = 0
        self._base += len(self._buffer)
        self._at = 0
        self._buffer = memoryview(b"")
        while chunk := self._source.read(_CHUNK_BYTES):
            self._base += len(chunk)

    # --- entries ---

    def __iter__(self) -> Iterator[TarEntry]:
        unpack = _HEADER.unpack
        while True:
            if self._left or self._padding:
                self._skip(self._left + self._padding)
                self._left = self._padding = 0
            block = self._next_header()
            if block is None:
                return
            offset = self.offset - BLOCK
            kind = block[156:157]
            if kind in _SPECIAL:
                extras = self._extra_headers(block)
                if extras is None:
                    return
                block, overrides = extras
                entry = self._parse(unpack(block), block, offset, overrides)
            else:
                entry = self._parse(unpack(block), block, offset, None)
            if entry is not None:
                self._entry = entry
                self._virtual = 0
                yield entry

    def _next_header(self) -> bytes | None:
        if not self._fill(BLOCK):
            if len(self._buffer) > self._at:
                raise InvalidTar("it ends inside of a header", offset=self.offset)
            return None
        start = self._at
        self._at = start + BLOCK
        block = bytes(self._buffer[start : self._at])
        stored = block[148:156]
        # The low half of Adler-32 is 1 + the sum of the bytes modulo 65521, which 512 ASCII bytes can't exceed.
        blanked = block[:148] + b"        " + block[156:]
        total = (zlib.adler32(blanked) & 0xFFFF) - 1 if blanked.isascii() else sum(blanked)
        if stored[:6] == b"%06o" % total:
            return block
        if block == _ZERO_BLOCK:
            self._end_of_archive()
            return None
        self._check_sum(blanked, stored, total)
        return block

    def _end_of_archive(self) -> None:
        if self._fill(BLOCK):
            second = self._take(BLOCK)
            if second != _ZERO_BLOCK:
                raise InvalidTar("one zero block, not two, in front of further content", offset=self.offset - BLOCK)

    def _check_sum(self, blanked: bytes, stored: bytes, total: int) -> None:
        offset = self.offset - BLOCK
        try:
            expected = octal(stored, offset=offset)
        except InvalidTar:
            if offset == 0:
                raise InvalidTar("it doesn't begin with a tar header", offset=0) from None
            raise
        if expected != total:
            signed = total - 256 * sum(byte > 127 for byte in blanked)  # some old writers added signed bytes
            if expected != signed:
                raise InvalidTar("a header has a wrong checksum", offset=offset)

    def _extra_headers(self, block: bytes) -> tuple[bytes, Overrides] | None:
        """Read PAX and GNU headers up to the header that they belong to. None if the archive ends behind a global header."""
        overrides = Overrides()
        pending = False
        while (kind := block[156:157]) in _SPECIAL:
            offset = self.offset - BLOCK
            size = number(block[124:136], offset=offset)
            if not 0 <= size <= _EXTRA_HEADER_BYTES:
                raise InvalidTar(f"an extended header of {size} bytes", offset=offset)
            data = self._take(size + -size % BLOCK)[:size]
            if kind == b"L":
                overrides.path, pending = data.partition(b"\0")[0], True
            elif kind == b"K":
                overrides.link, pending = data.partition(b"\0")[0], True
            elif kind in b"xX":
                read_records(data, overrides, offset=offset)
                pending = True
            following = self._next_header()
            if following is None:
                if pending:
                    raise InvalidTar("it ends behind an extended header", offset=self.offset)
                return None
            block = following
        return block, overrides

    def _parse(
        self, fields: tuple[bytes, ...], block: bytes, offset: int, overrides: Overrides | None
    ) -> TarEntry | None:
        name, owner, size_field, mtime_field, _, flag, link, magic, major, minor, prefix = fields
        kind = _KINDS.get(flag)
        if kind is None:
            if flag == b"V":  # a GNU volume label
                self._set_content(number(size_field, offset=offset), offset)
                return None
            raise InvalidTar(f"an entry of unknown type {flag!r}", offset=offset)
        raw_name = name.partition(b"\0")[0]
        if magic[:6] == b"ustar\0" and prefix[0]:
            # star keeps times in the last bytes of the field and says so at the end of the block
            raw_prefix = (prefix[:131] if block[508:] == b"tar\0" else prefix).partition(b"\0")[0]
            raw_name = raw_prefix + b"/" + raw_name
        raw_link = link.partition(b"\0")[0]
        numbers = self._owners.get(owner)
        if numbers is None:
            numbers = self._owners[owner] = (
                number(owner[:8], offset=offset),
                number(owner[8:16], offset=offset),
                number(owner[16:], offset=offset),
            )
            if len(self._owners) > 4096:
                self._owners.clear()
        mode, uid, gid = numbers
        size = number(size_field, offset=offset)
        mtime_ns = max(-TIME_LIMIT, min(number(mtime_field, offset=offset), TIME_LIMIT)) * _SECOND
        xattrs: tuple[tuple[str, bytes], ...] = ()
        if overrides is not None:
            raw_name = raw_name if overrides.path is None else overrides.path
            raw_link = raw_link if overrides.link is None else overrides.link
            uid = uid if overrides.uid is None else overrides.uid
            gid = gid if overrides.gid is None else overrides.gid
            size = size if overrides.size is None else overrides.size
            mtime_ns = mtime_ns if overrides.mtime_ns is None else overrides.mtime_ns
            xattrs = tuple(sorted(overrides.xattrs.items()))
        if not 0 <= size <= _SIZE_LIMIT:
            raise InvalidTar(f"an entry of {size} bytes", offset=offset)
        if not (0 <= uid <= _ID_LIMIT and 0 <= gid <= _ID_LIMIT):
            raise InvalidTar(f"the owner {uid}:{gid}", offset=offset)
        text = os.fsdecode(raw_name)
        if kind is Kind.FILE and raw_name.endswith(b"/") and flag != b"S":
            kind = Kind.DIRECTORY  # v7 has no type for directories
        link_text = os.fsdecode(raw_link)
        self._set_content(0 if flag in _WITHOUT_CONTENT else size, offset)
        entry = TarEntry(
            text,
            text if not _UNCLEAN.search(text) else clean_path(text),
            kind,
            mode & 0o7777,
            uid,
            gid,
            mtime_ns,
            size if kind is Kind.FILE else 0,
            clean_path(link_text) if kind is Kind.HARDLINK else link_text,
            device_number(major, minor, offset=offset) if kind is Kind.CHARACTER or kind is Kind.BLOCK else (0, 0),
            xattrs,
            offset,
            self._base + self._at,
            None,
        )
        if flag == b"S" or (overrides is not None and overrides.sparse):
            return self._sparse(entry, block, overrides)
        return entry

    def _set_content(self, size: int, offset: int) -> None:
        if size < 0:
            raise InvalidTar(f"an entry of {size} bytes", offset=offset)
        self._left = size
        self._padding = -size % BLOCK

    # --- sparse files ---

    def _sparse(self, entry: TarEntry, block: bytes, overrides: Overrides | None) -> TarEntry:
        extents: list[tuple[int, int]]
        name = entry.name
        if overrides is not None and overrides.sparse:
            records = overrides.sparse
            if "name" in records:
                name = os.fsdecode(records["name"])
            real = decimal(records.get("realsize", records.get("size", b"")), offset=entry.offset)
            if records.get("major") == b"1" and records.get("minor", b"0") == b"0":
                extents = self._map_in_content(entry.offset)
            elif records.get("major", b"0") == b"0":
                flat = [decimal(text, offset=entry.offset) for text in records.get("map", b"").split(b",") if text]
                extents = list(zip(flat[::2], flat[1::2], strict=False))
            else:
                raise InvalidTar("an unknown sparse format", offset=entry.offset)
        else:
            real = number(block[483:495], offset=entry.offset)
            extents = self._old_gnu_map(block, entry.offset)
        stored, end = 0, 0
        for start, length in extents:
            if start < end or length < 0 or start + length > real:
                raise InvalidTar("a sparse file's map is not in order", offset=entry.offset)
            end = start + length
            stored += length
        if stored != self._left or not 0 <= real <= _SIZE_LIMIT:
            raise InvalidTar("a sparse file's map doesn't fit its content", offset=entry.offset)
        return replace(
            entry,
            name=name,
            path=clean_path(name),
            kind=Kind.FILE,
            size=real,
            data_offset=self.offset,
            sparse=tuple((start, length) for start, length in extents if length),
        )

    def _old_gnu_map(self, block: bytes, offset: int) -> list[tuple[int, int]]:
        extents: list[tuple[int, int]] = []
        table, more = block[386:482], block[482]
        while True:
            for at in range(0, len(table) - 23, 24):
                if table[at] == 0:
                    break
                extents.append(
                    (number(table[at : at + 12], offset=offset), number(table[at + 12 : at + 24], offset=offset))
                )
            if not more:
                return extents
            if len(extents) > _SPARSE_EXTENTS:
                raise InvalidTar("a sparse file with too many extents", offset=offset)
            following = self._take(BLOCK)
            table, more = following[:504], following[504]

    def _map_in_content(self, offset: int) -> list[tuple[int, int]]:
        # Format 1.0: decimal lines (how many extents, then offset and length of each), padded to a block, ahead of the data.
        text, lines, wanted = b"", 0, 1
        while lines < wanted:
            if self._left < BLOCK or wanted > 2 * _SPARSE_EXTENTS:
                raise InvalidTar("a sparse file's map is broken", offset=offset)
            piece = self._take(BLOCK)
            self._left -= BLOCK
            text += piece
            lines += piece.count(b"\n")
            if wanted == 1 and lines:
                wanted = 1 + 2 * decimal(text.partition(b"\n")[0], offset=offset)
        numbers = [decimal(line, offset=offset) for line in text.split(b"\n")[1:wanted]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    # --- content ---

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes of the current entry's content (holes as zeros), at least one unless it has ended; everything
        that is left if ``size`` is negative."""
        if size < 0:
            parts = []
            while part := self.read(_CHUNK_BYTES):
                parts.append(part)
            return b"".join(parts)
        entry = self._entry
        if entry is not None and entry.sparse is not None:
            return self._read_sparse(entry, size)
        return bytes(self._stored(size))

    def _stored(self, size: int) -> memoryview:
        """At most ``size`` of the stored bytes, at least one unless there are none left; valid until the next call."""
        if not self._left:
            return memoryview(b"")
        if self._at == len(self._buffer) and not self._fill(1):
            raise InvalidTar("it ends inside of an entry's content", offset=self.offset)
        step = min(size, self._left, len(self._buffer) - self._at)
        start = self._at
        self._at = start + step
        self._left -= step
        return self._buffer[start : self._at]

    def _read_sparse(self, entry: TarEntry, size: int) -> bytes:
        position = self._virtual
        size = min(size, entry.size - position)
        for start, length in entry.sparse or ():
            if position < start:
                size = min(size, start - position)
                break
            if position < start + length:
                data = bytes(self._stored(min(size, start + length - position)))
                self._virtual += len(data)
                return data
        size = min(size, _CHUNK_BYTES)
        self._virtual += size
        return bytes(size)

    def content(self) -> io.BufferedReader:
        """The current entry's content as a file object; closing it is not needed."""
        return io.BufferedReader(_Content(self), 1 << 16)

    def copy_to(self, descriptor: int) -> None:
        """Write the current entry's content to a new, empty file, leaving holes where the archive has them, or long runs of zeros."""
        entry = self._entry
        if entry is not None and entry.sparse is not None:
            for start, length in entry.sparse:
                os.lseek(descriptor, start, os.SEEK_SET)
                while length:
                    data = self._stored(length)
                    _write_all(descriptor, data)
                    length -= len(data)
            os.ftruncate(descriptor, entry.size)
            return
        hole = False
        while self._left:
            data = self._stored(_CHUNK_BYTES)
            hole = is_hole(data)
            if hole:
                os.lseek(descriptor, len(data), os.SEEK_CUR)
            else:
                _write_all(descriptor, data)
        if hole:
            os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))


class _Content(io.RawIOBase):
    def __init__(self, reader: TarReader) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        data = self._reader.read(len(buffer))
        memoryview(buffer)[: len(data)] = data
        return len(data)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
