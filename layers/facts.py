"""Small remembered answers that save asking again: what a reference resolved to, a URL's ETag and file, a git ref's commit.

Owns the table ``fact``. Knows nothing of what the values mean; gc treats a fact as part of the build cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pybuild.values import dataclass

from .database import Database, Row, storable
from .digest import Digest


@dataclass(frozen=True, slots=True)
class Fact:
    """A remembered answer. ``blobs``: content that it names and that is kept with it (of a manifest also what that names)."""

    kind: str
    key: str
    value: str
    blobs: tuple[Digest, ...]
    created: float
    last_used: float
    uses: int


_COLUMNS = "kind, key, value, blobs, created, last_used, uses"


class Facts:
    """The facts of one store."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def get(self, kind: str, key: str) -> Fact | None:
        """The fact, marked used, or None. Whether its blobs are still there is for the caller to see."""
        key = storable(key)
        row = self._database.row(f"SELECT {_COLUMNS} FROM fact WHERE kind = ? AND key = ?", (kind, key))
        if row is None:
            return None
        now = self._clock()
        if now - row[5] > 1.0:
            with self._database.transaction() as connection:
                connection.execute(
                    "UPDATE fact SET last_used = ?, uses = uses + 1 WHERE kind = ? AND key = ?", (now, kind, key)
                )
        return _fact(row)

    def put(self, kind: str, key: str, *, value: str, blobs: Sequence[Digest] = ()) -> None:
        """Remember an answer in place of an older one. ``kind``: what sort, for people (``resolve``, ``http``, ``git``). Idempotent."""
        now = self._clock()
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO fact VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (kind, key) DO UPDATE SET"
                " value = excluded.value, blobs = excluded.blobs, created = excluded.created, last_used = excluded.last_used",
                (kind, storable(key), storable(value), " ".join(map(str, blobs)), now, now),
            )

    def list(self, kind: str | None = None) -> tuple[Fact, ...]:
        """All facts, or those of one kind, by kind and key."""
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM fact WHERE ?1 IS NULL OR kind = ?1 ORDER BY kind, key", (kind,)
        )
        return tuple(map(_fact, rows))


def _fact(row: Row) -> Fact:
    kind, key, value, blobs, created, last_used, uses = row
    return Fact(kind, key, value, tuple(map(Digest.parse, blobs.split())), created, last_used, uses)
