"""The directories behind ``RUN --mount=type=cache``, by id.

Owns ``cache-mounts/``, ``locks/mount-*`` and the table ``cache_mount``. Never looks into the directories.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pybuild.values import dataclass

from .database import Database, storable
from .locks import LockMode, lock_file, try_lock_file


@dataclass(frozen=True, slots=True)
class CacheMountRecord:
    """A cache mount that exists; times in seconds since the epoch."""

    id: str
    directory: Path
    created: float
    last_used: float
    uses: int


class CacheMounts:
    """The cache mounts below ``directory``, with their lock files in ``locks``."""

    def __init__(self, database: Database, directory: Path, *, locks: Path, clock: Callable[[], float]) -> None:
        self._database = database
        self._directory = directory
        self._locks = locks
        self._clock = clock

    def path(self, id: str) -> Path:
        """The directory of the cache mount ``id``, whether or not it exists. Ids are any text: the name is made from a digest."""
        return self._directory / _name(id)

    @contextmanager
    def use(self, id: str) -> Iterator[Path]:
        """The directory of the cache mount ``id``, made (0755) if missing, and kept from gc until the context ends. Several may use it at
        once: sharing modes are the caller's."""
        name = _name(id)
        path = self._directory / name
        with lock_file(self._locks / f"mount-{name}", mode=LockMode.SHARED, transient=True):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            now = self._clock()
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO cache_mount VALUES (?, ?, ?, ?, 1) ON CONFLICT (id) DO UPDATE SET"
                    " last_used = excluded.last_used, uses = uses + 1",
                    (storable(id), name, now, now),
                )
            yield path

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """True if nobody uses the cache mount whose directory has this name, and then nobody can until the context ends: for removing it."""
        with try_lock_file(self._locks / f"mount-{name}", transient=True) as free:
            yield free

    def list(self) -> tuple[CacheMountRecord, ...]:
        """All cache mounts, by id."""
        rows = self._database.query("SELECT id, directory, created, last_used, uses FROM cache_mount ORDER BY id")
        return tuple(CacheMountRecord(row[0], self._directory / row[1], row[2], row[3], row[4]) for row in rows)


def _name(id: str) -> str:
    return hashlib.sha256(os.fsencode(id)).hexdigest()[:40]
