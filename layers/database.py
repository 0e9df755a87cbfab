"""The store's SQLite database: opening, migrating, transactions. One file for all metadata, shared by threads and processes.

Owns the schema below and the connections. Knows nothing of what the rows mean: each table belongs to one module.

    image, image_platform, tag      images.py        what has a name or an image ID
    layer, layer_blob               layer_index.py   which layers exist, and which blobs hold their bytes
    remote_layer, blob_origin       remote_layers.py layers known to be in registries, and where blobs were seen
    cache_record, cache_alias,      cache_index.py   finished steps by key, and which of them gc took
    cache_evicted
    file_digest                     stat_index.py    digests of files by their stat
    cache_mount                     cache_mounts.py  RUN --mount=type=cache
    build, build_step               builds.py        what builds did, for `pybuild why`
    fact                            facts.py         small remembered answers (ETags, resolved references)

Write-ahead logging with ``synchronous=NORMAL``: a killed process loses nothing that was committed, a power cut may lose the last
transactions but never consistency (sqlite.org/wal.html). Every write takes the write lock at its beginning (BEGIN IMMEDIATE), so
that no transaction fails half-way because of another process.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pybuild.errors import PybuildError

from .blobs import StoreFull
from .locks import lock_file

if TYPE_CHECKING:
    import sqlite3

Value: TypeAlias = str | bytes | int | float | None
Row: TypeAlias = tuple[Any, ...]  # Any: a column's type is known to the module that owns the table

_BUSY_SECONDS = 60.0
# Of a connection, and there is one for each thread; the kernel caches the file for all of them.
_CACHE_KIB = 512

# Position n brings user_version n to n + 1. A released migration never changes.
_MIGRATIONS = (
    """
    CREATE TABLE image (
        digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, size INTEGER NOT NULL, annotations TEXT NOT NULL,
        stored REAL NOT NULL, last_used REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE image_platform (
        image TEXT NOT NULL REFERENCES image(digest) ON DELETE CASCADE, position INTEGER NOT NULL,
        manifest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL, config TEXT NOT NULL, platform TEXT NOT NULL,
        created TEXT, labels TEXT NOT NULL, layers TEXT NOT NULL,
        PRIMARY KEY (image, position)
    ) WITHOUT ROWID;
    CREATE INDEX image_platform_config ON image_platform(config);
    CREATE INDEX image_platform_manifest ON image_platform(manifest);
    CREATE TABLE tag (
        name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES image(digest), updated REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX tag_image ON tag(image);

    CREATE TABLE layer (
        diff_id TEXT PRIMARY KEY, size INTEGER NOT NULL, empty INTEGER NOT NULL, description TEXT NOT NULL,
        created REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE layer_blob (
        diff_id TEXT NOT NULL REFERENCES layer(diff_id) ON DELETE CASCADE, digest TEXT NOT NULL, size INTEGER NOT NULL,
        media_type TEXT NOT NULL, compression TEXT NOT NULL, level INTEGER, created REAL NOT NULL,
        PRIMARY KEY (diff_id, digest)
    ) WITHOUT ROWID;
    CREATE INDEX layer_blob_digest ON layer_blob(digest);

    CREATE TABLE cache_record (
        key TEXT PRIMARY KEY, layers TEXT NOT NULL, own INTEGER NOT NULL, recipe TEXT NOT NULL,
        created REAL NOT NULL, last_used REAL NOT NULL, uses INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE cache_alias (
        alias TEXT PRIMARY KEY, key TEXT NOT NULL REFERENCES cache_record(key) ON DELETE CASCADE
    ) WITHOUT ROWID;
    CREATE INDEX cache_alias_key ON cache_alias(key);
    CREATE TABLE cache_evicted (key TEXT PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID;

    CREATE TABLE file_digest (path BLOB PRIMARY KEY, stamp BLOB NOT NULL) WITHOUT ROWID;

    CREATE TABLE cache_mount (
        id TEXT PRIMARY KEY, directory TEXT NOT NULL, created REAL NOT NULL, last_used REAL NOT NULL, uses INTEGER NOT NULL
    ) WITHOUT ROWID;

    CREATE TABLE build (
        ref TEXT PRIMARY KEY, subject TEXT NOT NULL, started REAL NOT NULL, finished REAL, record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX build_started ON build(started);
    CREATE INDEX build_subject ON build(subject, started);
    CREATE TABLE build_step (
        build TEXT NOT NULL REFERENCES build(ref) ON DELETE CASCADE, position INTEGER NOT NULL, step TEXT NOT NULL,
        PRIMARY KEY (build, position)
    ) WITHOUT ROWID;

    CREATE TABLE fact (
        kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, blobs TEXT NOT NULL,
        created REAL NOT NULL, last_used REAL NOT NULL, uses INTEGER NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE remote_layer (
        diff_id TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, media_type TEXT NOT NULL, level INTEGER,
        layer_size INTEGER, empty INTEGER NOT NULL, created REAL, touched REAL NOT NULL,
        PRIMARY KEY (diff_id, digest)
    ) WITHOUT ROWID;
    CREATE INDEX remote_layer_digest ON remote_layer(digest);
    CREATE TABLE blob_origin (
        digest TEXT NOT NULL, host TEXT NOT NULL, repository TEXT NOT NULL, seen REAL NOT NULL,
        PRIMARY KEY (digest, host, repository)
    ) WITHOUT ROWID;
    """,
)


def storable(text: str) -> str:
    """``text`` with undecodable bytes (lone surrogates) as backslash escapes: SQLite's text is UTF-8. Of JSON it makes equivalent JSON."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


class StoreTooNew(PybuildError):
    """A newer pybuild has written this store."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the store at {os.fspath(path)!r} was written by a newer pybuild",
            hint="upgrade pybuild, or use another store with --root",
        )
        self.path = path


class StoreBusy(PybuildError):
    """Another process has held the database for too long."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the database {os.fspath(path)!r} is locked by another process", hint="try again when it has finished"
        )
        self.path = path


class StoreDamaged(PybuildError):
    """The database can't be read or written."""

    def __init__(self, path: Path, *, reason: str) -> None:
        super().__init__(
            f"the database {os.fspath(path)!r} can't be used: {reason}",
            hint="if it is damaged, move the store's directory away and start with a new one",
        )
        self.path = path
        self.reason = reason


class NotStorable(PybuildError):
    """A value can't be stored: text that is not Unicode, or a number beyond 64 bits."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"a value can't be stored: {reason}")
        self.reason = reason


class _Session:
    """A thread's connection and how deep its transactions are nested."""

    __slots__ = ("__weakref__", "connection", "depth", "pid")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.depth = 0
        self.pid = os.getpid()

    def __del__(self) -> None:
        # With the thread: whatever else still refers to the connection would keep its descriptors and pages until cycles are collected.
        if self.pid == os.getpid():
            self.connection.close()


class Database:
    """The database at ``path``, opened when first used, one connection per thread. ``close`` ends them all."""

    def __init__(self, path: Path, *, lock: Path | None = None) -> None:
        """``lock``: the file to lock while the schema is made; by default beside the database."""
        self.path = path
        self._lock = path.with_name(path.name + ".lock") if lock is None else lock
        self._local = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._guard = threading.Lock()

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, in autocommit mode. Raises StoreTooNew, StoreDamaged."""
        return self._session().connection

    def query(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """All rows of a SELECT. Raises StoreBusy, StoreDamaged."""
        connection = self._session().connection
        with self._errors():
            rows: list[Row] = connection.execute(sql, parameters).fetchall()
        return rows

    def each(self, sql: str, parameters: Sequence[Value] = ()) -> Iterator[Row]:
        """The rows of a SELECT one by one, for those that are many. Raises StoreBusy, StoreDamaged."""
        connection = self._session().connection
        with self._errors():
            yield from connection.execute(sql, parameters)

    def row(self, sql: str, parameters: Sequence[Value] = ()) -> Row | None:
        """The first row of a SELECT, or None."""
        connection = self._session().connection
        with self._errors():
            row: Row | None = connection.execute(sql, parameters).fetchone()
        return row

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock: all or nothing of what is written happens. Inside another transaction of this thread it is part of that.
        Raises StoreFull, StoreBusy, StoreDamaged."""
        session = self._session()
        connection = session.connection
        with self._errors():
            if session.depth == 0:
                connection.execute("BEGIN IMMEDIATE")
            session.depth += 1
            try:
                yield connection
            except BaseException:
                session.depth -= 1
                if session.depth == 0 and connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            session.depth -= 1
            if session.depth == 0:
                try:
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See the database as it is now until the context ends, whatever others write; this thread writes nothing meanwhile."""
        session = self._session()
        if session.depth:
            yield
            return
        with self._errors():
            session.connection.execute("BEGIN")
            try:
                yield
            finally:
                session.connection.execute("COMMIT")

    @property
    def is_writing(self) -> bool:
        """True within a transaction of this thread."""
        session: _Session | None = getattr(self._local, "session", None)
        return session is not None and session.depth > 0

    def compact(self) -> None:
        """Give freed pages back to the file system and empty the log, as far as no other process reads."""
        with self._errors():
            self.connection.execute("VACUUM")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def shrink(self) -> None:
        """Give back what the connections of all threads remember of the file's pages."""
        import sqlite3

        with self._guard:
            sessions = list(self._sessions)
        for session in sessions:
            # SQLite serializes: a connection may be busy in its thread, or be closed meanwhile.
            if session.pid == os.getpid():
                with suppress(sqlite3.Error):
                    session.connection.execute("PRAGMA shrink_memory")

    def close(self) -> None:
        """Close every thread's connection; the next use opens anew."""
        with self._guard:
            sessions, self._sessions = list(self._sessions), weakref.WeakSet()
            self._local = threading.local()
        for session in sessions:
            if session.pid == os.getpid():
                session.connection.close()

    def _session(self) -> _Session:
        session: _Session | None = getattr(self._local, "session", None)
        # A connection must not be carried across fork (sqlite.org/howtocorrupt.html, 2.6).
        if session is not None and session.pid == os.getpid():
            return session
        with self._errors():
            session = _Session(self._connect())
        with self._guard:
            self._local.session = session
            self._sessions.add(session)
        return session

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        connection = sqlite3.connect(
            os.fspath(self.path),
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version < len(_MIGRATIONS):
                self._migrate(connection)
            elif version > len(_MIGRATIONS):
                raise StoreTooNew(self.path.parent)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        # Switching to WAL and migrating need the database for themselves, and SQLite doesn't wait for the switch.
        with lock_file(self._lock):
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.execute("PRAGMA synchronous=NORMAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            for number, script in enumerate(_MIGRATIONS[version:], version + 1):
                connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version={number}; COMMIT;")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except sqlite3.OperationalError as error:
            name = getattr(error, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                raise StoreFull(self.path.parent) from error
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise StoreBusy(self.path) from error
            raise StoreDamaged(self.path, reason=str(error)) from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise NotStorable(reason=str(error)) from error
        except sqlite3.DatabaseError as error:
            raise StoreDamaged(self.path, reason=str(error)) from error
