"""The build cache's index: finished steps by key. Satisfies ``pybuild.builder.protocols.CacheIndex``.

Owns the tables ``cache_record``, ``cache_alias`` and ``cache_evicted``. Knows nothing of how keys come about, and
never touches layers but to see that they can be had.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .database import Database, Row, storable
from .digest import Digest
from .entries import CacheRecord
from .layer_index import LayerIndex
from .locks import lock_file
from .stat_index import FileDigest, StatIndex
from .views import Node

_COLUMNS = "r.key, r.layers, r.own, r.recipe, r.created"


class CacheIndex:
    """A session with the cache index: one per build, or one for a process. ``locks``: the directory of lock files."""

    def __init__(
        self,
        database: Database,
        layers: LayerIndex,
        *,
        stat_index: StatIndex,
        locks: Path,
        clock: Callable[[], float],
    ) -> None:
        self.stat_index = stat_index
        self._database = database
        self._layers = layers
        self._locks = locks
        self._clock = clock
        self._guard = threading.Lock()
        self._used: dict[str, tuple[float, int]] = {}
        self._digests: dict[str, Digest] = {}

    def get(self, key: str) -> CacheRecord | None:
        """The record of ``key``, or of the key it is an alias of, if all its layers are in the store or can be fetched; marks it used."""
        record = self.peek(key)
        if record is None or not self._layers.available(record.layers):
            return None
        with self._guard:
            self._used[record.key] = (self._clock(), self._used.get(record.key, (0.0, 0))[1] + 1)
        return record

    def is_empty(self) -> bool:
        """True if no finished step is known."""
        return self._database.row("SELECT 1 FROM cache_record LIMIT 1", ()) is None

    def peek(self, key: str) -> CacheRecord | None:
        """The record of ``key`` or of the key it is an alias of, whether or not its layers are there; marks nothing."""
        row = self._database.row(
            f"SELECT {_COLUMNS} FROM cache_record r WHERE r.key = ?1 UNION ALL"
            f" SELECT {_COLUMNS} FROM cache_alias a JOIN cache_record r ON r.key = a.key WHERE a.alias = ?1",
            (key,),
        )
        return None if row is None else self._record(row)

    def put(self, record: CacheRecord, *, aliases: Sequence[str] = ()) -> None:
        """Remember a record, also under further keys; what was known under these keys is replaced. At once visible to all processes.
        Idempotent."""
        now = self._clock()
        layers = " ".join(map(str, record.layers))
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO cache_record VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (key) DO UPDATE SET"
                " layers = excluded.layers, own = excluded.own, recipe = excluded.recipe, created = excluded.created,"
                " last_used = excluded.last_used",
                (record.key, layers, record.own, storable(record.recipe), record.created, now),
            )
            connection.executemany(
                "INSERT INTO cache_alias VALUES (?, ?) ON CONFLICT (alias) DO UPDATE SET key = excluded.key",
                [(alias, record.key) for alias in aliases if alias != record.key],
            )
            connection.execute("DELETE FROM cache_evicted WHERE key = ?", (record.key,))

    def aliases(self, key: str) -> tuple[str, ...]:
        """Further keys that lead to the record of ``key``, sorted."""
        rows = self._database.query("SELECT alias FROM cache_alias WHERE key = ? ORDER BY alias", (key,))
        return tuple(row[0] for row in rows)

    @contextmanager
    def lock(self, key: str, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Hold the right to run the step of ``key``, among all threads and processes that share the store. It ends with the process.
        ``cancel``: stop waiting and raise Cancelled once it is set. Not to be taken twice by one thread."""
        name = hashlib.sha256(os.fsencode(key)).hexdigest()
        with lock_file(self._locks / f"step-{name}", transient=True, cancel=cancel):
            yield

    def evicted(self, key: str) -> float | None:
        """When gc took the record of ``key`` (seconds since the epoch); None if it didn't, or long ago."""
        row = self._database.row("SELECT time FROM cache_evicted WHERE key = ?", (key,))
        return None if row is None else float(row[0])

    def file_digest(
        self, path: str, *, inode: tuple[int, int], size: int, mtime_ns: int, ctime_ns: int
    ) -> Digest | None:
        """See ``StatIndex.file_digest``."""
        return self.stat_index.file_digest(path, inode=inode, size=size, mtime_ns=mtime_ns, ctime_ns=ctime_ns)

    def file_digests(self, nodes: Sequence[Node]) -> list[str]:
        """See ``StatIndex.file_digests``."""
        return self.stat_index.file_digests(nodes)

    def remember_file_digests(self, entries: Sequence[FileDigest]) -> None:
        """See ``StatIndex.remember_file_digests``."""
        self.stat_index.remember_file_digests(entries)

    def flush(self) -> None:
        """Write use marks and file digests, one transaction for all."""
        with self._guard:
            used, self._used = self._used, {}
        if not used:
            return self.stat_index.flush()
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE cache_record SET last_used = max(last_used, ?), uses = uses + ? WHERE key = ?",
                [(time, count, key) for key, (time, count) in used.items()],
            )
            self.stat_index.flush()

    def _record(self, row: Row) -> CacheRecord:
        key, layers, own, recipe, created = row
        return CacheRecord(
            key=key, layers=tuple(map(self._digest, layers.split())), own=own, recipe=recipe, created=created
        )

    def _digest(self, text: str) -> Digest:
        # Each record lists its whole stack: without sharing, parsing would be quadratic in the number of steps.
        digest = self._digests.get(text)
        if digest is None:
            digest = self._digests[text] = Digest.parse(text)
        return digest
