"""The stat index: digests of files on this machine by path and stat, so that nothing unchanged is read again.

Owns the table ``file_digest``. Never opens a file.

A row's stamp is 40 bytes, big-endian: device, inode, size, mtime_ns, ctime_ns (each modulo 2⁶⁴), then the digest's bytes.

The racy rule, after git's: a file that is written twice within one tick of its file system's clock can have equal stats and different
contents. So a digest is remembered only if the file's mtime and ctime are older than the moment before which nothing was looked at,
by more than the clock's granularity. Linux stamps files with a clock that ticks every 1 to 10 ms; a time without a fraction is
taken to come from a file system that counts in seconds, or in two of them.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Sequence

from .database import Database, Value
from .digest import Digest
from .views import Node

_STAMP = struct.Struct(">5Q")
_MASK = (1 << 64) - 1
_FINE_NS = 20_000_000
_COARSE_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000
_ALGORITHMS = {32: "sha256", 48: "sha384", 64: "sha512"}
_FLUSH_ROWS = 50_000
_SHA256_ROW = 40 + 32

FileDigest = tuple[str, tuple[int, int], int, int, int, Digest]


class StatIndex:
    """One session with the index: made before the first file is looked at, ended by ``flush``."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._began_ns = int(clock() * 1e9)
        self._known: dict[str, bytes] = {}
        self._prefixes: tuple[str, ...] = ()
        self._new: dict[str, bytes] = {}
        self._guard = threading.Lock()

    def preload(self, prefix: str) -> int:
        """Load what is known below the directory ``prefix`` at once; lookups below it ask the database no more. Returns the number
        of files known there."""
        prefix = prefix.rstrip("/") + "/"
        start = os.fsencode(prefix)
        # "0" follows "/" in the order of bytes: the range is exactly what begins with the prefix.
        rows = self._database.query(
            "SELECT path, stamp FROM file_digest WHERE path > ? AND path < ?", (start, start[:-1] + b"0")
        )
        decode = os.fsdecode
        with self._guard:
            self._known.update((decode(path), stamp) for path, stamp in rows)
            self._prefixes = (*self._prefixes, prefix)
        return len(rows)

    def file_digest(
        self, path: str, *, inode: tuple[int, int], size: int, mtime_ns: int, ctime_ns: int
    ) -> Digest | None:
        """The digest of the file with exactly this stat, or None if it must be read. ``inode``: (st_dev, st_ino)."""
        row = self._new.get(path) or self._known.get(path)
        if row is None:
            if path.startswith(self._prefixes):
                return None
            row = self._row(path)
            if row is None:
                return None
        if row[:40] != _stamp(inode, size, mtime_ns, ctime_ns):
            return None
        return Digest(_ALGORITHMS[len(row) - 40], row[40:].hex())

    def file_digests(self, nodes: Sequence[Node]) -> list[str]:
        """The sha256 (hex) of many files of this machine, ``""`` for each that must be read: as ``file_digest`` for each of them, for
        those who ask for a whole context."""
        known, new, pack, mask = self._known, self._new, _STAMP.pack, _MASK
        out: list[str] = []
        for node in nodes:
            path = node.host_path
            row = None
            if path is not None and node.ctime_ns:
                row = new.get(path) or known.get(path)
                if row is None and not path.startswith(self._prefixes):
                    row = self._row(path)
            if row is None:
                out.append("")
                continue
            device, number = node.inode
            stamp = pack(device & mask, number & mask, node.size, node.mtime_ns & mask, node.ctime_ns & mask)
            out.append(row[40:].hex() if row[:40] == stamp and len(row) == _SHA256_ROW else "")
        return out

    def _row(self, path: str) -> bytes | None:
        found = self._database.row("SELECT stamp FROM file_digest WHERE path = ?", (os.fsencode(path),))
        return None if found is None else found[0]

    def remember_file_digests(self, entries: Sequence[FileDigest], *, observed: float | None = None) -> None:
        """Add (path, (device, inode), size, mtime_ns, ctime_ns, digest). ``observed``: seconds since the epoch, a moment not
        later than the stats were taken; by default the session's beginning. Entries that might be racy are dropped, as is an older row of the same path."""
        moment = self._began_ns if observed is None else int(observed * 1e9)
        rows: dict[str, bytes] = {}
        for path, inode, size, mtime_ns, ctime_ns, digest in entries:
            newest = max(mtime_ns, ctime_ns)
            coarse = mtime_ns % _SECOND_NS == 0 and ctime_ns % _SECOND_NS == 0
            if newest + (_COARSE_NS if coarse else _FINE_NS) < moment:
                rows[path] = _stamp(inode, size, mtime_ns, ctime_ns) + bytes.fromhex(digest.hex)
        with self._guard:
            self._new.update(rows)
            full = len(self._new) >= _FLUSH_ROWS
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what is new in one transaction."""
        with self._guard:
            new = self._new
            if not new:
                return
            rows: list[tuple[Value, Value]] = [(os.fsencode(path), stamp) for path, stamp in sorted(new.items())]
            with self._database.transaction() as connection:
                connection.executemany("INSERT OR REPLACE INTO file_digest VALUES (?, ?)", rows)
            self._known.update(new)
            self._new = {}


def _stamp(inode: tuple[int, int], size: int, mtime_ns: int, ctime_ns: int) -> bytes:
    return _STAMP.pack(inode[0] & _MASK, inode[1] & _MASK, size & _MASK, mtime_ns & _MASK, ctime_ns & _MASK)
