"""Layers that the store knows and need not have: what they are, and which repositories hold their blobs.

Owns the tables ``remote_layer`` and ``blob_origin``. Never fetches: who needs the bytes does. What is said here is only said: whether a blob
really holds a layer is found out when it is fetched, and only then ``layer_index.py`` knows of it.

A row that running work relies on is touched like a file (see leases.py), so that gc leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .database import Database, Row
from .descriptor import Descriptor
from .digest import Digest
from .leases import Leases

_ORIGINS: Final = 8


class LayersLost(PybuildError):
    """Layers that the store only knows can't be fetched any more."""

    def __init__(self, diff_ids: Sequence[Digest], *, reason: str, hint: str | None = None) -> None:
        """``reason``: what became of the first one; ``hint``: what may help against that."""
        first, more = diff_ids[0], len(diff_ids) - 1
        others = f" (and {more} more)" if more else ""
        super().__init__(
            f"the layer {first}{others} is not in the store and can't be fetched: {reason}",
            hint=hint or "build the image again, or pull it from where it is complete",
        )
        self.diff_ids = tuple(diff_ids)


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository that was seen to have a blob. ``host`` as in references: ``docker.io``, ``127.0.0.1:5000``."""

    host: str
    repository: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """A layer as others describe it: ``blob`` is said to hold it. ``level``: of the compression, None if unknown; ``size``: bytes of the
    uncompressed tar, None if unknown; ``created``: when it was made, in seconds since the epoch, None if unknown."""

    diff_id: Digest
    blob: Descriptor
    level: int | None = None
    size: int | None = None
    empty: bool = False
    created: float | None = None


_COLUMNS: Final = "l.diff_id, l.digest, l.size, l.media_type, l.level, l.layer_size, l.empty, l.created"
_HAS_ORIGIN: Final = "EXISTS (SELECT 1 FROM blob_origin o WHERE o.digest = l.digest)"


class RemoteLayers:
    """The remote layers of one store. Satisfies ``registry_client.stores.BlobOrigins``. Every method may be called from any thread and
    process."""

    def __init__(self, database: Database, *, leases: Leases, clock: Callable[[], float]) -> None:
        self._database = database
        self._leases = leases
        self._clock = clock

    def learn(self, layers: Iterable[RemoteLayer], origin: Origin) -> None:
        """Remember layers whose blobs are in ``origin``. Idempotent; what was unknown of them is completed."""
        now = self._clock()
        rows = [
            (
                str(layer.diff_id),
                str(layer.blob.digest),
                layer.blob.size,
                layer.blob.media_type,
                layer.level,
                layer.size,
                int(layer.empty),
                layer.created,
                now,
            )
            for layer in layers
        ]
        with self._leases.shared(), self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO remote_layer VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (diff_id, digest) DO UPDATE SET"
                " size = excluded.size, media_type = excluded.media_type, level = coalesce(excluded.level, level),"
                " layer_size = coalesce(excluded.layer_size, layer_size), empty = max(empty, excluded.empty),"
                " created = coalesce(excluded.created, created), touched = excluded.touched",
                rows,
            )
            self._see(origin, [row[1] for row in rows], now)

    def of(self, diff_id: Digest) -> tuple[RemoteLayer, ...]:
        """What is known of a layer that can be fetched, the oldest blob first; empty if nobody has it."""
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM remote_layer l WHERE l.diff_id = ? AND {_HAS_ORIGIN} ORDER BY l.created, l.digest",
            (str(diff_id),),
        )
        return tuple(map(_layer, rows))

    def blob(self, digest: Digest) -> RemoteLayer | None:
        """The layer that a blob is said to hold, if the blob can be fetched."""
        row = self._database.row(
            f"SELECT {_COLUMNS} FROM remote_layer l WHERE l.digest = ? AND {_HAS_ORIGIN}", (str(digest),)
        )
        return None if row is None else _layer(row)

    def knows(self, stack: Sequence[Digest]) -> bool:
        """True if every layer can be fetched, as far as is known; what is known is then kept for the running lease."""
        wanted = list(dict.fromkeys(map(str, stack)))
        with self._leases.shared():
            for diff_id in wanted:
                if (
                    self._database.row(
                        f"SELECT 1 FROM remote_layer l WHERE l.diff_id = ? AND {_HAS_ORIGIN} LIMIT 1", (diff_id,)
                    )
                    is None
                ):
                    return False
            now = self._clock()
            with self._database.transaction() as connection:
                connection.executemany(
                    "UPDATE remote_layer SET touched = ? WHERE diff_id = ?", [(now, diff_id) for diff_id in wanted]
                )
        return True

    # --- origins ------------------------------------------------------------------------------------------------------

    def origins(self, digest: Digest) -> tuple[Origin, ...]:
        """The repositories that have a blob, the one seen last first."""
        rows = self._database.query(
            "SELECT host, repository FROM blob_origin WHERE digest = ? ORDER BY seen DESC, host, repository LIMIT ?",
            (str(digest), _ORIGINS),
        )
        return tuple(Origin(*row) for row in rows)

    def repositories(self, host: str, digest: Digest) -> tuple[str, ...]:
        """See BlobOrigins."""
        return tuple(origin.repository for origin in self.origins(digest) if origin.host == host)

    def remember(self, host: str, repository: str, digests: tuple[Digest, ...]) -> None:
        """See BlobOrigins."""
        with self._leases.shared(), self._database.transaction():
            self._see(Origin(host, repository), [str(digest) for digest in digests], self._clock())

    def doubt(self, digest: Digest, origin: Origin) -> None:
        """The repository says that it doesn't have the blob: it is asked last from now on. Idempotent.

        It isn't forgotten: some registries say so to whoever has no credentials, too.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE blob_origin SET seen = 0 WHERE digest = ? AND host = ? AND repository = ?",
                (str(digest), origin.host, origin.repository),
            )

    def _see(self, origin: Origin, digests: Sequence[str], now: float) -> None:
        self._database.connection.executemany(
            "INSERT INTO blob_origin VALUES (?, ?, ?, ?) ON CONFLICT (digest, host, repository) DO UPDATE SET"
            " seen = excluded.seen",
            [(digest, origin.host, origin.repository, now) for digest in digests],
        )


def _layer(row: Row) -> RemoteLayer:
    diff_id, digest, size, media_type, level, layer_size, empty, created = row
    return RemoteLayer(
        Digest.parse(diff_id),
        Descriptor(media_type, Digest.parse(digest), size),
        level=level,
        size=layer_size,
        empty=bool(empty),
        created=created,
    )
