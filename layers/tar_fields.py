"""The fields of tar headers that others wrote: numbers, times, PAX records.

Owns reading them strictly and their errors; knows nothing of streams and entries.
"""

from __future__ import annotations

import os
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import pattern

# Seconds, to the year 2242: ext4 ends in 2446, and a bound keeps every system call from failing.
TIME_LIMIT: Final = 1 << 33
_SECOND: Final = 1_000_000_000


class InvalidTar(PybuildError):
    """A tar stream breaks its format, ends too early or goes beyond a bound. ``offset``: bytes from its beginning."""

    def __init__(self, what: str, *, offset: int) -> None:
        super().__init__(f"invalid tar archive: {what} (at byte {offset})")
        self.offset = offset


def number(field: bytes, *, offset: int) -> int:
    """A header's number: octal text, or base 256 when the first bit is set (GNU; two's complement)."""
    first = field[0]
    if first & 0x80:
        negative = first & 0x40
        value = int.from_bytes(bytes((first & 0x3F,)) + field[1:], "big")
        return value - (1 << (8 * len(field) - 2)) if negative else value
    return octal(field, offset=offset)


def octal(field: bytes, *, offset: int) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit():
        digits = digits.partition(b"\0")[0].rstrip(b" ")
        if not digits.isdigit():
            raise InvalidTar(f"{field[:16]!r} is not an octal number", offset=offset)
    try:
        return int(digits, 8)
    except ValueError:
        raise InvalidTar(f"{field[:16]!r} is not an octal number", offset=offset) from None


def device_number(major: bytes, minor: bytes, *, offset: int) -> tuple[int, int]:
    device = number(major, offset=offset), number(minor, offset=offset)
    if not (0 <= device[0] <= 0xFFF and 0 <= device[1] <= 0xFFFFF):  # what Linux has (kdev_t.h)
        raise InvalidTar(f"the device number {device[0]}:{device[1]}", offset=offset)
    return device


def decimal(text: bytes, *, offset: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise InvalidTar(f"{text[:24]!r} is not a decimal number", offset=offset)
    return int(text)


class Overrides:
    """What extended headers say about the entry that follows. ``sparse``: the ``GNU.sparse.*`` records."""

    __slots__ = ("gid", "link", "mtime_ns", "path", "size", "sparse", "uid", "xattrs")

    def __init__(self) -> None:
        self.path: bytes | None = None
        self.link: bytes | None = None
        self.size: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.mtime_ns: int | None = None
        self.xattrs: dict[str, bytes] = {}
        self.sparse: dict[str, bytes] = {}


def read_records(data: bytes, overrides: Overrides, *, offset: int) -> None:
    position, end = 0, len(data)
    pairs: list[bytes] = []
    while position < end:
        space = data.find(b" ", position, position + 21)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            if not data[position:].strip(b"\0"):
                break  # some writers fill the block with NUL bytes and count them
            raise InvalidTar("a malformed PAX record", offset=offset)
        stop = position + int(digits)
        if stop > end or stop < space + 3 or data[stop - 1] != 0x0A:
            raise InvalidTar("a malformed PAX record", offset=offset)
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key:
            raise InvalidTar("a malformed PAX record", offset=offset)
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(value)
        else:
            _apply_record(os.fsdecode(key), value, overrides, offset=offset)
        position = stop
    if pairs:
        overrides.sparse["map"] = b",".join(pairs)


def _apply_record(key: str, value: bytes, overrides: Overrides, *, offset: int) -> None:
    if key.startswith("SCHILY.xattr."):
        overrides.xattrs[key[13:]] = value
        return
    if key.startswith("LIBARCHIVE.xattr."):
        import base64
        import binascii
        import urllib.parse

        name = urllib.parse.unquote(key[17:], errors="surrogateescape")
        try:
            overrides.xattrs.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4)))
        except (binascii.Error, ValueError):
            raise InvalidTar(f"a malformed value of {key[:80]}", offset=offset) from None
        return
    if key.startswith("GNU.sparse."):
        overrides.sparse[key[11:]] = value
        return
    if not value:
        return  # POSIX: the record takes back what an earlier one said; the header's own field holds
    match key:
        case "path" | "linkpath":
            if b"\0" in value:
                raise InvalidTar(f"a {key} with a NUL byte", offset=offset)
            if key == "path":
                overrides.path = value
            else:
                overrides.link = value
        case "size":
            overrides.size = decimal(value, offset=offset)
        case "uid":
            overrides.uid = decimal(value, offset=offset)
        case "gid":
            overrides.gid = decimal(value, offset=offset)
        case "mtime":
            overrides.mtime_ns = _time(value, offset=offset)


_TIME: Final = pattern(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?\Z")


def _time(value: bytes, *, offset: int) -> int:
    match = _TIME.match(value)
    if match is None:
        raise InvalidTar(f"{value[:40]!r} is not a time", offset=offset)
    sign, seconds, fraction = match.groups()
    nanoseconds = min(int(seconds), TIME_LIMIT) * _SECOND + int((fraction or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if sign else nanoseconds
