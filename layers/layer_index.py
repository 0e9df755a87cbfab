"""Which layers the store knows, and which blobs hold a layer's bytes.

Owns the tables ``layer`` and ``layer_blob``. Never reads content; knows nothing of unpacked layers, whose existence is that of
their directories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .blobs import BlobStore
from .database import Database, Row, storable
from .descriptor import OCI_LAYER, Descriptor
from .digest import Digest
from .entries import Layer
from .leases import Leases
from .remote_layers import RemoteLayers


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A blob that holds a layer's bytes. ``compression``: ``uncompressed``, ``gzip``, ``zstd``, …; ``level`` None if unknown (pulled)."""

    digest: Digest
    size: int
    media_type: str
    compression: str
    level: int | None = None

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size)


class LayerNotFound(PybuildError):
    """The store does not know this layer, or has lost its bytes."""

    def __init__(self, diff_id: Digest) -> None:
        super().__init__(f"layer {diff_id} is not in the store")
        self.diff_id = diff_id


class LayerIndex:
    """The layers of one store. Every method may be called from any thread and process."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        *,
        leases: Leases,
        clock: Callable[[], float],
        remote: RemoteLayers | None = None,
    ) -> None:
        """``remote``: what is known of layers that are not here."""
        self.remote = remote or RemoteLayers(database, leases=leases, clock=clock)
        self._database = database
        self._blobs = blobs
        self._leases = leases
        self._clock = clock
        self._present: set[Digest] = set()
        self._present_epoch: int | None = None

    def register(
        self, layer: Layer, *, description: str = "", blob: LayerBlob | None = None, created: float | None = None
    ) -> None:
        """Remember a layer and the blob that holds it: ``blob``, or the uncompressed tar that is stored under the diff ID if there is
        one. ``description``: what made it, for people; ``created``: when, in seconds since the epoch, if not just now. Idempotent."""
        # gc may be forgetting this very layer, whose bytes were lost or just went.
        with self._leases.shared():
            if blob is None and self._blobs.touch(layer.diff_id):
                blob = LayerBlob(layer.diff_id, layer.size, OCI_LAYER, "uncompressed")
            now = self._clock()
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO layer VALUES (?, ?, ?, ?, ?) ON CONFLICT (diff_id) DO UPDATE SET"
                    " description = CASE WHEN description = '' THEN excluded.description ELSE description END",
                    (
                        str(layer.diff_id),
                        layer.size,
                        int(layer.empty),
                        storable(description),
                        now if created is None else created,
                    ),
                )
                if blob is not None:
                    self._insert(layer.diff_id, blob, now)

    def add_blob(
        self,
        diff_id: Digest,
        digest: Digest,
        *,
        size: int,
        media_type: str,
        compression: str,
        level: int | None = None,
    ) -> None:
        """Remember a further blob of a registered layer. Idempotent. Raises LayerNotFound."""
        with self._leases.shared(), self._database.transaction():
            if self.get(diff_id) is None:
                raise LayerNotFound(diff_id)
            self._insert(diff_id, LayerBlob(digest, size, media_type, compression, level), self._clock())

    def _insert(self, diff_id: Digest, blob: LayerBlob, now: float) -> None:
        self._database.connection.execute(
            "INSERT INTO layer_blob VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (diff_id, digest) DO UPDATE SET"
            " media_type = excluded.media_type, compression = excluded.compression,"
            " level = coalesce(excluded.level, level)",
            (str(diff_id), str(blob.digest), blob.size, blob.media_type, blob.compression, blob.level, now),
        )

    def get(self, diff_id: Digest) -> Layer | None:
        """What is known of a layer, whether or not its bytes are still there."""
        row = self._database.row("SELECT size, empty FROM layer WHERE diff_id = ?", (str(diff_id),))
        return None if row is None else Layer(diff_id, row[0], bool(row[1]))

    def describe(self, diff_id: Digest) -> str:
        """What made a layer, for people; empty if unknown."""
        row = self._database.row("SELECT description FROM layer WHERE diff_id = ?", (str(diff_id),))
        return "" if row is None else str(row[0])

    def created(self, stack: Sequence[Digest]) -> tuple[float, ...]:
        """When each layer was first registered, in seconds since the epoch; now for one that isn't known."""
        now = self._clock()
        known = {
            row[0]: float(row[1])
            for diff_id in dict.fromkeys(stack)
            for row in self._database.query(
                "SELECT diff_id, created FROM layer WHERE diff_id = ?1 UNION ALL"
                " SELECT diff_id, min(created) FROM remote_layer WHERE diff_id = ?1 AND created IS NOT NULL"
                " AND NOT EXISTS (SELECT 1 FROM layer WHERE diff_id = ?1) GROUP BY diff_id",
                (str(diff_id),),
            )
        }
        return tuple(known.get(str(diff_id), now) for diff_id in stack)

    def tar_blob(self, diff_id: Digest) -> Digest | None:
        """The blob that is the layer's uncompressed tar, if it is there: its digest is the diff ID itself."""
        with self._leases.shared():
            return diff_id if self._blobs.touch(diff_id) else None

    def blobs(self, diff_id: Digest) -> tuple[LayerBlob, ...]:
        """The blobs that are there and hold the layer's bytes, the uncompressed tar first, then the oldest first."""
        rows = self._database.query(
            "SELECT digest, size, media_type, compression, level FROM layer_blob WHERE diff_id = ?"
            " ORDER BY digest <> diff_id, created, digest",
            (str(diff_id),),
        )
        with self._leases.shared():
            return tuple(blob for blob in map(_blob, rows) if self._blobs.touch(blob.digest))

    def usable_blobs(self, diff_id: Digest) -> tuple[LayerBlob, ...]:
        """``blobs``, or if there are none those that can be fetched."""
        return self.blobs(diff_id) or tuple(
            LayerBlob(
                known.blob.digest,
                known.blob.size,
                known.blob.media_type,
                _compression(known.blob.media_type),
                known.level,
            )
            for known in self.remote.of(diff_id)
        )

    def diff_id_of(self, digest: Digest) -> Digest | None:
        """The layer whose bytes a blob holds: a pull of a blob that is known needs no decompression. None if unknown."""
        row = self._database.row("SELECT diff_id FROM layer_blob WHERE digest = ?", (str(digest),))
        return None if row is None else Digest.parse(row[0])

    def touch(self, diff_id: Digest) -> bool:
        """Mark the layer used now. False if none of its blobs is there."""
        return self.present((diff_id,))

    def present(self, stack: Sequence[Digest]) -> bool:
        """True if the bytes of every layer are in the store; they are then kept for the running lease."""
        epoch = self._leases.epoch
        if epoch is None or epoch != self._present_epoch:
            self._present, self._present_epoch = set(), epoch
        known = self._present
        missing = [diff_id for diff_id in stack if diff_id not in known]
        if not missing:
            return True
        with self._leases.shared():
            for diff_id in missing:
                if not self._blobs.touch(diff_id) and not self.blobs(diff_id):
                    return False
                known.add(diff_id)
        return True

    def available(self, stack: Sequence[Digest]) -> bool:
        """True if every layer's bytes are in the store, or can be fetched as far as is known; what there is of them is then kept for the
        running lease."""
        if self.present(stack):
            return True
        missing = [diff_id for diff_id in dict.fromkeys(stack) if not self.present((diff_id,))]
        return self.remote.knows(missing)


def _compression(media_type: str) -> str:
    from .compression import Compression

    return Compression.of_media_type(media_type).value


def _blob(row: Row) -> LayerBlob:
    return LayerBlob(Digest.parse(row[0]), row[1], row[2], row[3], row[4])
