"""Layers that a store only knows: fetching them when something needs their bytes, and reading them from their registries without keeping them.

Owns going to a blob's origins, with the registry settings and credentials of the moment. An origin that says that it doesn't have
a blob is asked last from then on. Why layers stay away at all: docs/decisions/lazy-layers.md.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from pybuild.builder.cache_format import CachedLayer
from pybuild.builder.progress import BuildWarning, Progress
from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.blobs import BlobNotFound
from pybuild.layers.descriptor import INDEX_TYPES, Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig, Index, Manifest
from pybuild.layers.images import MANIFEST_LIMIT_BYTES
from pybuild.layers.references import Reference
from pybuild.layers.remote_layers import LayersLost, Origin, RemoteLayer
from pybuild.registry_client.transfers import Stop, run_all

from .cache_layers import CacheLayers
from .registries import Registries

if TYPE_CHECKING:
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.layers.store import Store
    from pybuild.registry_client.client import Repository
    from pybuild.registry_client.fetch import BlobReader

    from .parts_on_demand import SnapshotsOnDemand

_PARALLEL: Final = 6
_BUFFER_BYTES: Final = 1 << 18


class _OriginPlace:
    """A repository as a BlobPlace."""

    def __init__(self, registries: Registries, origin: Origin, stop: Stop) -> None:
        self._registries = registries
        self._origin = origin
        self._stop = stop

    @property
    def name(self) -> str:
        return str(self._origin)

    @property
    def origin(self) -> Origin:
        return self._origin

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        from pybuild.registry_client.fetch import blob_chunks

        return blob_chunks(_repository(self._registries, self._origin), blob, stop=self._stop)


def _repository(registries: Registries, origin: Origin) -> Repository:
    return registries.client.repository(Reference(origin.host, origin.repository))


class LazyLayers:
    """The remote layers of one store, for one piece of work. Thread-safe. Satisfies the builder's ``DistantLayers``."""

    def __init__(
        self,
        store: Store,
        snapshots: SnapshotStore | SnapshotsOnDemand,
        registries: Registries,
        *,
        cancel: threading.Event | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``progress``: gets a warning for the first failure of each origin."""
        self._store = store
        self._layers = CacheLayers(store, snapshots)
        self._registries = registries
        self._cancel = cancel
        self._stop = Stop(cancel)
        self._progress = progress
        self._told: set[Origin] = set()
        self._reasons: dict[Digest, tuple[str, str | None]] = {}

    # --- into the store -----------------------------------------------------------------------------------------------

    def bring(self, layers: Mapping[Digest, tuple[Digest, ...]], *, unpack: bool) -> frozenset[Digest]:
        """See DistantLayers."""
        if not layers:
            return frozenset()
        came = self._all([partial(self.bring_one, *item, unpack=unpack) for item in layers.items()])
        return frozenset(diff_id for diff_id, here in zip(layers, came) if not here)

    def bring_one(self, diff_id: Digest, stack: Sequence[Digest], *, unpack: bool) -> bool:
        """Fetch one layer, the top of ``stack``, unless it is here. False if it can't be had."""
        if self._layers.has(diff_id):
            return True
        return any(self._fetch(known, stack, unpack=unpack) for known in self._store.remote_layers.of(diff_id))

    def need(self, stack: Sequence[Digest], *, unpack: bool = False) -> None:
        """Have every layer of a stack here, if it is known. Raises LayersLost."""
        missing = {
            diff_id: tuple(stack[: position + 1])
            for position, diff_id in enumerate(stack)
            if not self._layers.has(diff_id)
        }
        self._raise(self.bring(missing, unpack=unpack))

    def need_image(self, descriptor: Descriptor) -> None:
        """Have the blobs of an image's or index's layers here, as far as its manifests are. Raises LayersLost."""
        wanted: dict[Digest, tuple[RemoteLayer, tuple[Digest, ...]]] = {}
        for manifest, diff_ids in self._manifests(descriptor):
            for position, layer in enumerate(manifest.layers):
                if self._store.blobs.touch(layer.digest):
                    continue
                known = self._store.remote_layers.blob(layer.digest)
                if known is not None and diff_ids[position : position + 1] == (known.diff_id,):
                    wanted[layer.digest] = (known, diff_ids[: position + 1])
        came = self._all([partial(self._fetch, *item, unpack=False, this_blob=True) for item in wanted.values()])
        self._raise(frozenset(known.diff_id for (known, _), here in zip(wanted.values(), came) if not here))

    def _all(self, tasks: Sequence[Callable[[], bool]]) -> list[bool]:
        """Raises Cancelled. Who is told to stop, even by Ctrl-C, waits for no registry."""
        return run_all(
            tasks, parallel=_PARALLEL, stop=self._stop, interrupt=self._registries.client.transport.interrupt
        )

    def _manifests(self, descriptor: Descriptor) -> Iterator[tuple[Manifest, tuple[Digest, ...]]]:
        blobs = self._store.blobs
        if not blobs.has(descriptor.digest):
            return
        data = blobs.read(descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
        if descriptor.media_type in INDEX_TYPES:
            for child in Index.from_bytes(data).manifests:
                yield from self._manifests(child)
            return
        manifest = Manifest.from_bytes(data)
        if manifest.config.media_type.endswith(("image.config.v1+json", "container.image.v1+json")):
            config = blobs.read(manifest.config.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
            yield manifest, ImageConfig.from_bytes(config).diff_ids

    def _raise(self, lost: frozenset[Digest]) -> None:
        if lost:
            raise self._lost(sorted(lost, key=str))

    def _lost(self, diff_ids: Sequence[Digest]) -> LayersLost:
        reason, hint = self._reasons.get(diff_ids[0], ("nobody says where it is", None))
        return LayersLost(diff_ids, reason=reason, hint=hint)

    def _fetch(self, known: RemoteLayer, stack: Sequence[Digest], *, unpack: bool, this_blob: bool = False) -> bool:
        layer = CachedLayer(
            known.diff_id,
            size=known.size or 0,
            empty=known.empty,
            created=self._store.clock() if known.created is None else known.created,
            blob=known.blob,
            level=known.level,
        )
        for origin in self._store.remote_layers.origins(known.blob.digest):
            if self._stop.stopped:
                return False
            place = _OriginPlace(self._registries, origin, self._stop)
            try:
                self._layers.fetch(layer, place, stack=stack, unpack=unpack, this_blob=this_blob, cancel=self._cancel)
            except Cancelled:
                return False
            except (PybuildError, OSError) as error:
                self._failed(known, origin, error)
                continue
            return True
        return False

    def _failed(self, known: RemoteLayer, origin: Origin, error: PybuildError | OSError) -> None:
        from pybuild.registry_client.client import ImageNotFound
        from pybuild.registry_client.failures import Denied, Unauthorized

        if isinstance(error, ImageNotFound):
            self._store.remote_layers.doubt(known.blob.digest, origin)
            reason = f"{origin} doesn't have {known.blob.digest}"
        else:
            reason = f"{origin}: {error.message if isinstance(error, PybuildError) else error}"
        self._reasons[known.diff_id] = reason, error.hint if isinstance(error, Unauthorized | Denied) else None
        if self._progress is not None and origin not in self._told:
            self._told.add(origin)
            self._progress.emit(BuildWarning("", f"the layer {known.diff_id} can't be fetched: {reason}"))

    # --- past the store -----------------------------------------------------------------------------------------------

    @property
    def blobs(self) -> LazyBlobs:
        """The store's blobs and those that are elsewhere, as a BlobSource."""
        return LazyBlobs(self._store, self)

    def read(self, known: RemoteLayer) -> BinaryIO:
        """The bytes of a blob from its origins; nothing is kept, and nothing verified: the receiver does. Raises LayersLost while reading."""
        return io.BufferedReader(_OriginReader(self, known), _BUFFER_BYTES)

    def readers(self, known: RemoteLayer) -> Iterator[tuple[Origin, BlobReader]]:
        """For _OriginReader: one reader for each origin."""
        from pybuild.registry_client.fetch import BlobReader

        for origin in self._store.remote_layers.origins(known.blob.digest):
            yield origin, BlobReader(_repository(self._registries, origin), known.blob, stop=self._stop)

    def failed(self, known: RemoteLayer, origin: Origin, error: PybuildError) -> None:
        """For _OriginReader."""
        self._failed(known, origin, error)

    def lost(self, known: RemoteLayer) -> LayersLost:
        """For _OriginReader."""
        return self._lost((known.diff_id,))


class LazyBlobs:
    """Satisfies ``registry_client.stores.BlobSource``."""

    def __init__(self, store: Store, layers: LazyLayers) -> None:
        self._store = store
        self._layers = layers

    def has(self, digest: Digest) -> bool:
        return self._store.blobs.has(digest) or self._store.remote_layers.blob(digest) is not None

    def size(self, digest: Digest) -> int:
        if self._store.blobs.has(digest):
            return self._store.blobs.size(digest)
        return self._known(digest).blob.size

    def open(self, digest: Digest) -> BinaryIO:
        if self._store.blobs.has(digest):
            return self._store.blobs.open(digest)
        return self._layers.read(self._known(digest))

    def _known(self, digest: Digest) -> RemoteLayer:
        known = self._store.remote_layers.blob(digest)
        if known is None:
            raise BlobNotFound(digest)
        return known


class _OriginReader(io.RawIOBase):
    """A blob read from the first of its origins that gives it; where one fails the next goes on."""

    def __init__(self, layers: LazyLayers, known: RemoteLayer) -> None:
        super().__init__()
        self._layers = layers
        self._known = known
        self._left = layers.readers(known)
        self._current: tuple[Origin, BlobReader] | None = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._known.blob.size}[whence]
        self._position = min(max(0, base + offset), self._known.blob.size)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer has no public name
        while True:
            if self._current is None:
                self._current = next(self._left, None)
                if self._current is None:
                    raise self._layers.lost(self._known)
            origin, reader = self._current
            try:
                reader.seek(self._position)
                count = reader.readinto(buffer)
            except Cancelled:
                raise
            except PybuildError as error:
                self._layers.failed(self._known, origin, error)
                reader.close()
                self._current = None
                continue
            self._position += count
            return count

    def close(self) -> None:
        if self._current is not None:
            self._current[1].close()
            self._current = None
        super().close()
