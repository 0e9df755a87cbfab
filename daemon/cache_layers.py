"""Layers as caches name them: which blob stands for a layer of this store, and bringing layers from elsewhere into it.

Owns choosing and making blobs for exports, downloading, and verifying that a blob holds the layer that it was said to hold. Knows nothing of
steps and keys.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from pybuild.builder.cache_format import CachedLayer
from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.blobs import BlobCorrupt
from pybuild.layers.compression import Compression, decompressed
from pybuild.layers.descriptor import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
)
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Layer
from pybuild.layers.layer_index import LayerBlob
from pybuild.layers.locks import lock_file
from pybuild.layers.remote_layers import Origin
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.layers.layer_compressor import LayerCompressor
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.layers.store import Store
    from pybuild.registry_client.stores import BlobSource

    from .parts_on_demand import SnapshotsOnDemand


_EMPTY_TAR_BYTES: Final = 1024  # two zero blocks
_LAYER_TYPES: Final = frozenset(
    {OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD}
)


@dataclass(frozen=True, slots=True)
class BlobForm:
    """How exported layers are compressed. ``force``: also those that are there in another compression already."""

    compression: str
    level: int | None = None
    force: bool = False


class BlobPlace(Protocol):
    """A place that has blobs."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def origin(self) -> Origin | None:
        """The repository that others can read the blobs from, if it is one."""

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob. Raises PybuildError, OSError."""


class CacheLayers:
    """The layers of one store, as caches give and take them. Thread-safe."""

    def __init__(self, store: Store, snapshots: SnapshotStore | SnapshotsOnDemand) -> None:
        self._store = store
        self._snapshots = snapshots
        self._made: LayerCompressor | None = None

    # --- giving -------------------------------------------------------------------------------------------------------

    def has(self, diff_id: Digest) -> bool:
        """True if the layer's bytes are in the store; they are kept for the running lease then."""
        return self._store.layers.present((diff_id,))

    def described(self, diff_id: Digest, form: BlobForm) -> CachedLayer:
        """A layer of this store with a blob in the wanted form, made if need be. Raises LayerNotFound."""
        blob, level = self._blob(diff_id, form)
        layer = self._store.layers.get(diff_id)
        (created,) = self._store.layers.created((diff_id,))
        return CachedLayer(
            diff_id,
            size=0 if layer is None else layer.size,
            empty=layer is not None and layer.empty,
            created=created,
            blob=blob,
            level=level,
        )

    def prepare(self, diff_ids: Sequence[Digest], form: BlobForm) -> None:
        """Make the blobs of several layers at once. Raises LayerNotFound."""
        missing = [diff_id for diff_id in diff_ids if form.force or self._existing(diff_id, form) is None]
        self._compressor.blobs_for(missing, Compression.parse(form.compression), level=form.level, force=form.force)

    def _blob(self, diff_id: Digest, form: BlobForm) -> tuple[Descriptor, int | None]:
        found = None if form.force else self._existing(diff_id, form)
        if found is not None:
            return found.descriptor, found.level
        kind = Compression.parse(form.compression)
        made = self._compressor.blob_for(diff_id, kind, level=form.level, force=form.force)
        level = next((blob.level for blob in self._store.layers.blobs(diff_id) if blob.digest == made.digest), None)
        return made, level

    def _existing(self, diff_id: Digest, form: BlobForm) -> LayerBlob | None:
        """A blob that needn't be made: in the wanted compression if there is one, else in any other than none."""
        if form.compression == Compression.UNCOMPRESSED.value:
            return None
        packed = [blob for blob in self._store.layers.blobs(diff_id) if blob.digest != diff_id]
        fitting = [
            blob
            for blob in packed
            if blob.compression == form.compression and (form.level is None or blob.level == form.level)
        ]
        return next(iter(fitting or packed), None)

    @property
    def _compressor(self) -> LayerCompressor:
        if self._made is None:
            from pybuild.layers.layer_compressor import LayerCompressor

            self._made = LayerCompressor(self._store.root, blobs=self._store.blobs, layers=self._store.layers)
        return self._made

    # --- taking -------------------------------------------------------------------------------------------------------

    def fetch(
        self,
        layer: CachedLayer,
        place: BlobPlace,
        *,
        stack: Sequence[Digest],
        unpack: bool,
        this_blob: bool = False,
        cancel: threading.Event | None = None,
    ) -> int:
        """Bring a layer from ``place``, unless it is there meanwhile. ``stack``: one that it is the top of; ``this_blob``: the blob is wanted,
        whether or not the layer is there as another one. Returns the bytes received.

        Raises PybuildError or OSError, and then nothing is known of the layer.
        """
        if layer.blob is None:
            raise PybuildError(f"nobody says where the layer {layer.diff_id} is")
        if layer.blob.media_type not in _LAYER_TYPES:
            raise PybuildError(f"{layer.blob.digest} is said to be {layer.blob.media_type[:100]!r}, which is no layer")
        # Of several processes that want it, too, one fetches it.
        with lock_file(self._store.locks / f"fetch-{layer.diff_id.hex}", transient=True, cancel=cancel):
            if self._store.blobs.touch(layer.blob.digest) if this_blob else self.has(layer.diff_id):
                return 0
            received = self._download(layer.blob, place)
            found = self._verified(layer, layer.blob, stack, unpack)
            blob = LayerBlob(
                layer.blob.digest,
                layer.blob.size,
                layer.blob.media_type,
                Compression.of_media_type(layer.blob.media_type).value,
                layer.level,
            )
            self._store.layers.register(found, blob=blob, created=layer.created)
            return received

    def _download(self, blob: Descriptor, place: BlobPlace) -> int:
        if self._store.blobs.touch(blob.digest):
            return 0
        with self._store.blobs.ingest(expected=blob.digest, expected_size=blob.size, partial_key=None) as ingest:
            if ingest.exists:
                return 0
            for chunk in place.chunks(blob):
                ingest.write(chunk)
            ingest.commit()
        return blob.size

    def _verified(self, layer: CachedLayer, blob: Descriptor, stack: Sequence[Digest], unpack: bool) -> Layer:
        """See that the blob is the layer's, by unpacking it where that is needed anyway. Raises BlobCorrupt, WrongDiffId."""
        if blob.digest == layer.diff_id:
            return Layer(layer.diff_id, blob.size, empty=blob.size <= _EMPTY_TAR_BYTES)
        if unpack:
            try:
                with self._store.blobs.open(blob.digest) as content:
                    return self._snapshots.unpack_stream(stack, content)
            except (Cancelled, BlobCorrupt):
                raise
            except PybuildError:
                pass  # perhaps what lies below isn't here yet: it is unpacked later then, and only its bytes are looked at
        hasher = hashlib.new(layer.diff_id.algorithm, usedforsecurity=False)
        size = 0
        with self._store.blobs.open(blob.digest) as content:
            stream = decompressed(content)
            while chunk := stream.next_chunk():
                hasher.update(chunk)
                size += len(chunk)
        if hasher.hexdigest() != layer.diff_id.hex:
            raise BlobCorrupt(blob.digest, what=f"it does not hold the layer {layer.diff_id}")
        return Layer(layer.diff_id, size, empty=size <= _EMPTY_TAR_BYTES)


class BlobsOnDemand:
    """A BlobSource that has further blobs brought when they are opened: what a destination has already is never fetched."""

    def __init__(self, blobs: BlobSource, *, sizes: Mapping[Digest, int], bring: Callable[[Digest], None]) -> None:
        """``sizes``: of the blobs that ``bring`` can fetch into ``blobs``; it raises PybuildError."""
        self._blobs = blobs
        self._sizes = sizes
        self._bring = bring

    def has(self, digest: Digest) -> bool:
        return digest in self._sizes or self._blobs.has(digest)

    def size(self, digest: Digest) -> int:
        return self._blobs.size(digest) if self._blobs.has(digest) else self._sizes[digest]

    def open(self, digest: Digest) -> BinaryIO:
        if not self._blobs.has(digest):
            self._bring(digest)
        return self._blobs.open(digest)
