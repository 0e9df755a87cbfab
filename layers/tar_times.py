"""Limits the times in a tar, byte for byte: what is later becomes a given moment, everything else stays as it is.

Owns the rewriting of headers (ustar, GNU, PAX). Never looks at contents, never changes the order, never compresses.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Final, Protocol

from pybuild.errors import PybuildError

_BLOCK: Final = 512
_CHUNK: Final = 1 << 20
_ZEROS: Final = bytes(_BLOCK)
_MTIME: Final = (136, 12)
# Only GNU's own format has these in the header (GNU tar manual, "Basic Tar Format", struct oldgnu_header).
_GNU_TIMES: Final = ((345, 12), (357, 12))
_HEADER_ONLY: Final = b"123456"


class DamagedTar(PybuildError):
    """The tar ends too early, or a header can't be read."""


class Source(Protocol):
    """What is read from."""

    def read(self, size: int, /) -> bytes: ...


def limit_times(source: Source, write: Callable[[bytes], object], *, latest: int, unknown: int | None = None) -> None:
    """Copy the tar, with no time of an entry after ``latest`` (seconds since the epoch); a modification time of exactly ``unknown``
    stands for none and becomes ``latest`` too. Raises DamagedTar."""
    _Copy(source, write, latest, unknown).run()


class _Copy:
    def __init__(self, source: Source, write: Callable[[bytes], object], latest: int, unknown: int | None) -> None:
        self._source = source
        self._write = write
        self._latest = latest
        self._unknown = unknown

    def run(self) -> None:
        pending: tuple[bytes, dict[bytes, bytes]] | None = None
        while block := self._read(_BLOCK, end=True):
            if block == _ZEROS:
                self._write(block)
                continue
            kind, size = block[156:157], _number(block[124:136])
            if kind == b"x":
                pending = (block, _records(self._padded(size)[:size]))
                continue
            if kind in (b"g", b"L", b"K"):
                self._write(block)
                self._pass(size)
                continue
            records = {} if pending is None else dict(pending[1])
            size = int(records.get(b"size", size))
            self._write_pending(pending, records)
            pending = None
            self._write(self._limited(block, own=records.get(b"mtime")))
            if kind == b"S" and block[482]:
                while (extension := self._read(_BLOCK))[504]:
                    self._write(extension)
                self._write(extension)
            if kind not in _HEADER_ONLY or not kind:
                self._pass(size)

    def _write_pending(self, pending: tuple[bytes, dict[bytes, bytes]] | None, records: dict[bytes, bytes]) -> None:
        """Write the extended header; a modification time that was too late moves to the plain one and becomes empty in ``records``."""
        if pending is None:
            return
        header, kept = pending
        for key in (b"mtime", b"atime", b"ctime"):
            if key in kept and _is_later(kept[key], self._latest):
                if key == b"mtime":
                    records[key] = b""
                    del kept[key]
                else:
                    kept[key] = str(self._latest).encode()
        if not kept:
            return
        body = b"".join(_record(key, value) for key, value in kept.items())
        self._write(_with(header, (124, 12), b"%011o\0" % len(body)))
        self._write(body + bytes(-len(body) % _BLOCK))

    def _limited(self, block: bytes, *, own: bytes | None) -> bytes:
        """``own``: the time in the extended header, empty if that was too late."""
        seconds = _number(block[136:148])
        if own == b"" or seconds > self._latest or (own is None and seconds == self._unknown):
            block = _with(block, _MTIME, b"%011o\0" % self._latest)
        if block[257:265] == b"ustar  \0":
            for start, length in _GNU_TIMES:
                if _number(block[start : start + length]) > self._latest:
                    block = _with(block, (start, length), b"%011o\0" % self._latest)
        return block

    def _pass(self, size: int) -> None:
        left = size + -size % _BLOCK
        while left:
            chunk = self._read(min(left, _CHUNK))
            self._write(chunk)
            left -= len(chunk)

    def _padded(self, size: int) -> bytes:
        return self._read(size + -size % _BLOCK)

    def _read(self, size: int, *, end: bool = False) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            part = self._source.read(left)
            if not part:
                if end and left == size:
                    return b""
                raise DamagedTar("the tar ends too early")
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _number(field: bytes) -> int:
    """An octal number, or one in base 256 (GNU) where the first bit is set."""
    if field and field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] != 0xFF else -1
    text = field.replace(b"\0", b" ").strip()
    try:
        return int(text, 8) if text else 0
    except ValueError as error:
        raise DamagedTar("a header of the tar has a number that can't be read") from error


def _with(block: bytes, place: tuple[int, int], value: bytes) -> bytes:
    """A header with another field, its checksum made anew."""
    start, length = place
    blank = block[:start] + value + block[start + length :]
    blank = blank[:148] + b" " * 8 + blank[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def _records(data: bytes) -> dict[bytes, bytes]:
    """The records ``LENGTH KEY=VALUE\\n`` of an extended header (POSIX, pax)."""
    out: dict[bytes, bytes] = {}
    while data.strip(b"\0"):
        digits, blank, _ = data.partition(b" ")
        if not blank or not digits.isdigit() or not len(digits) < int(digits) <= len(data):
            raise DamagedTar("an extended header of the tar can't be read")
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        out[key] = value
        data = data[int(digits) :]
    return out


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    if len(str(length)) != len(str(size)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _is_later(text: bytes, latest: int) -> bool:
    try:
        return Decimal(text.decode("ascii")) > latest
    except (InvalidOperation, UnicodeDecodeError) as error:
        raise DamagedTar("an extended header of the tar has a time that can't be read") from error
