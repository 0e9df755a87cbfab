"""What the exporters write to: the store, registries, archives. Satisfies the builder's ``ImageKeeper``, ``LayerExports`` and ``LayerTimes``.

Decides nothing about names, media types or compressions. What only some exports need is imported by them: most builds just keep an image.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pybuild.builder.progress import Progress, StepProgress
from pybuild.errors import Cancelled
from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.entries import LayerEntry
from pybuild.layers.layer_index import LayerNotFound

if TYPE_CHECKING:
    from pybuild.layers.cache_index import CacheIndex
    from pybuild.layers.layer_compressor import LayerCompressor
    from pybuild.layers.store import Store

    from .engine import Engine
    from .lazy_layers import LazyLayers
    from .parts_on_demand import LazyLayersOnDemand


class StoreLayers:
    """Layers of one store as blobs in the wanted compression, and when they were made."""

    def __init__(
        self, store: Store, *, lazy: LazyLayers | LazyLayersOnDemand, cancel: threading.Event | None = None
    ) -> None:
        """``lazy``: fetches what has to be compressed and isn't here."""
        self._lazy = lazy
        self._store = store
        self._cancel = cancel

    @cached_property
    def _compressor(self) -> LayerCompressor:
        from pybuild.layers.layer_compressor import LayerCompressor

        store = self._store
        return LayerCompressor(store.root, blobs=store.blobs, layers=store.layers, cancel=self._cancel)

    def blob_for(self, diff_id: Digest, *, compression: str | None, level: int | None, force: bool) -> Descriptor:
        """See LayerExports."""
        if compression is None:
            # What was pulled first: its registry knows that blob. What was made here has but its tar yet, or that beside others.
            blobs = self._store.layers.usable_blobs(diff_id)
            chosen = next((blob for blob in blobs if blob.digest != diff_id and not self._made_here(diff_id)), None)
            found = chosen or next(iter(blobs), None)
            if found is None:
                raise LayerNotFound(diff_id)
            return found.descriptor
        from pybuild.layers.compression import Compression

        return self._compressor.blob_for(diff_id, Compression.parse(compression), level=level, force=force)

    def _made_here(self, diff_id: Digest) -> bool:
        return self._store.blobs.has(diff_id)

    def prepare(self, diff_ids: Sequence[Digest], *, compression: str | None, level: int | None, force: bool) -> None:
        """See LayerExports. Compresses what isn't, several layers at once."""
        if compression is None:
            return
        from pybuild.layers.compression import Compression

        kind = Compression.parse(compression)
        missing = [
            diff_id
            for diff_id in dict.fromkeys(diff_ids)
            if self._compressor.needs_bytes(diff_id, kind, level=level, force=force)
        ]
        if missing:
            self._lazy.need(missing)
            self._compressor.blobs_for(missing, kind, level=level, force=force)

    def created(self, stack: Sequence[Digest]) -> tuple[float, ...]:
        """See LayerTimes."""
        return self._store.layers.created(stack)


class CacheRecipes:
    """What went into the finished steps of one cache session."""

    def __init__(self, cache: CacheIndex) -> None:
        self._cache = cache

    def recipe_of(self, key: str) -> str | None:
        """The recorded recipe of a key, None if nothing is recorded."""
        record = self._cache.peek(key)
        return None if record is None else record.recipe

    def evicted(self, key: str) -> float | None:
        """When gc took the key's record, in seconds since the epoch."""
        return self._cache.evicted(key)


class StoreKeeper:
    """Keeps, pushes and writes images of one engine, for one build."""

    def __init__(
        self,
        engine: Engine,
        *,
        progress: Progress,
        cancel: threading.Event,
        lazy: LazyLayers | LazyLayersOnDemand,
        siblings: Sequence[str] = (),
    ) -> None:
        """``lazy``: what may have to be sent from elsewhere; ``siblings``: references whose repositories may have the layers already: of the same registry they are mounted, not sent."""
        self._siblings = siblings
        self._engine = engine
        self._progress = progress
        self._cancel = cancel
        self._lazy = lazy

    def keep(self, names: Sequence[str], descriptor: Descriptor) -> None:
        """See ImageKeeper."""
        for name in names or (None,):
            self._engine.store.images.put(name, descriptor)

    def push(self, name: str, descriptor: Descriptor, *, by_digest: bool, step: str) -> None:
        """See ImageKeeper."""
        from pybuild.layers.references import Reference
        from pybuild.registry_client.push import push
        from pybuild.registry_client.transfers import Transfer, TransferState

        from .cache_places import same_registry

        reference = Reference.parse(name)
        if by_digest:
            reference = Reference(reference.host, reference.repository, None, descriptor.digest)

        def report(transfer: Transfer) -> None:
            done = transfer.state not in (TransferState.WAITING, TransferState.RUNNING)
            self._progress.emit(
                StepProgress(
                    step,
                    f"pushing {transfer.kind} {transfer.digest}",
                    transfer.current,
                    transfer.total,
                    done,
                    self._engine.store.clock(),
                )
            )

        push(
            self._engine.registries.client,
            reference,
            descriptor,
            self._lazy.blobs,
            mount_from=same_registry(name, self._siblings) if self._siblings else (),
            origins=self._engine.store.remote_layers,
            on_progress=report,
            cancel=self._cancel,
        )

    def write_oci_archive(self, out: BinaryIO, descriptor: Descriptor, names: Sequence[str]) -> None:
        """See ImageKeeper."""
        from pybuild.layers.layout import ExportedImage, write_layout_tar

        image = ExportedImage(descriptor, tuple(names))
        write_layout_tar([image], out, blobs=self._engine.store.blobs, on_progress=self._stop)

    def write_docker_archive(self, out: BinaryIO, descriptor: Descriptor, names: Sequence[str]) -> None:
        """See ImageKeeper."""
        from pybuild.layers.docker_archive import write_docker_archive
        from pybuild.layers.layout import ExportedImage

        image = ExportedImage(descriptor, tuple(names))
        write_docker_archive([image], out, blobs=self._engine.store.blobs, on_progress=self._stop)

    def write_oci_layout(self, directory: Path, descriptor: Descriptor, names: Sequence[str]) -> None:
        """See ImageKeeper."""
        from pybuild.layers.layout import ExportedImage, write_layout_directory

        write_layout_directory(
            [ExportedImage(descriptor, tuple(names))], directory, blobs=self._engine.store.blobs, on_progress=self._stop
        )

    def _stop(self, _count: int) -> None:
        if self._cancel.is_set():
            raise Cancelled

    def write_tar(self, out: BinaryIO, entries: Sequence[LayerEntry]) -> None:
        """See ImageKeeper."""
        from pybuild.layers.tar_write import write_tar

        def write(data: bytes | memoryview) -> None:
            self._stop(0)
            out.write(data)

        write_tar(entries, write)
