"""Unpacks layers while they download, and takes over those that arrived otherwise. Keeps nothing of a layer whose digest is wrong."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pybuild.errors import PybuildError
from pybuild.layers.compression import Compression
from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Layer
from pybuild.layers.layer_index import LayerBlob
from pybuild.layers.snapshots import SnapshotStore
from pybuild.layers.store import Store
from pybuild.registry_client.stores import LayerDownload

from .parts_on_demand import SnapshotsOnDemand

_CHUNKS = 16


class _Abandoned(PybuildError):
    """The download ended before the layer was complete."""

    def __init__(self) -> None:
        super().__init__("the download was given up")


class _Pipe(io.RawIOBase):
    """Chunks from the downloading thread, as a stream for the unpacking one; ``None`` ends it, False gives up."""

    def __init__(self) -> None:
        self._chunks: queue.Queue[bytes | bool | None] = queue.Queue(_CHUNKS)
        self._rest = memoryview(b"")
        self._ended = False
        self.closed_by_reader = threading.Event()

    def put(self, chunk: bytes | bool | None) -> None:
        while not self.closed_by_reader.is_set():
            try:
                self._chunks.put(chunk, timeout=0.2)
                return
            except queue.Full:
                continue

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        if not self._rest and not self._ended:
            chunk = self._chunks.get()
            if chunk is False:
                raise _Abandoned
            if isinstance(chunk, bytes):
                self._rest = memoryview(chunk)
            else:
                self._ended = True
        count = min(len(buffer), len(self._rest))
        memoryview(buffer)[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Sink:
    """Satisfies ``registry_client.stores.LayerSink``."""

    def __init__(self, unpack: Callable[[_Pipe], Layer]) -> None:
        self._pipe = _Pipe()
        self._unpack = unpack
        self._layer: Layer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="unpack", daemon=True)
        self._thread.start()
        self.finished = False

    def _run(self) -> None:
        try:
            self._layer = self._unpack(self._pipe)
        except BaseException as error:  # handed to the downloading thread
            self._error = error
        finally:
            self._pipe.closed_by_reader.set()

    def write(self, data: bytes, /) -> None:
        self._pipe.put(bytes(data))

    def commit(self) -> None:
        self.finished = True
        self._pipe.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        self._pipe.put(False)
        self._thread.join()

    @property
    def layer(self) -> Layer | None:
        return self._layer


class LayerReceiver:
    """Makes sinks for a pull, and registers layers of which only the blob is there."""

    def __init__(self, store: Store, snapshots: SnapshotStore | SnapshotsOnDemand) -> None:
        self._store = store
        self._snapshots = snapshots

    @contextmanager
    def sink(self, download: LayerDownload) -> Iterator[_Sink]:
        """For ``LayerSinkFactory``."""
        stack = download.diff_ids[: download.position + 1]
        sink = _Sink(lambda pipe: self._snapshots.unpack_stream(stack, io.BufferedReader(pipe, 1 << 20)))
        try:
            yield sink
        finally:
            if not sink.finished:
                sink.abandon()
        if sink.layer is not None:
            self._register(sink.layer, download.descriptor)

    def adopt(self, diff_ids: tuple[Digest, ...], layers: tuple[Descriptor, ...]) -> None:
        """Register every layer whose blob is there; those not known yet are unpacked, which verifies their diff IDs."""
        for position, (diff_id, descriptor) in enumerate(zip(diff_ids, layers, strict=True)):
            known = self._store.layers.get(diff_id)
            if known is not None:
                self._register(known, descriptor)
                continue
            with self._store.blobs.open(descriptor.digest) as content:
                layer = self._snapshots.unpack_stream(diff_ids[: position + 1], content)
            self._register(layer, descriptor)

    def _register(self, layer: Layer, descriptor: Descriptor) -> None:
        compression = Compression.of_media_type(descriptor.media_type).value
        blob = LayerBlob(descriptor.digest, descriptor.size, descriptor.media_type, compression)
        self._store.layers.register(layer, blob=blob)
