"""Makes the compressed blobs that exports and pushes need, once per layer, compression and level.

Owns the choice between a blob that is there and a new one. Never changes what a layer contains.

A layer that came from a registry keeps the blob it came as, so that the registry knows it again, unless the caller forces a
compression. A layer made here gets exactly the blob that was asked for: which one does not depend on earlier exports.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from pybuild.errors import Cancelled

from .blobs import BlobStore
from .compression import Compression, check_level, compressor, decompressed
from .descriptor import Descriptor
from .digest import Digest
from .layer_index import LayerBlob, LayerIndex, LayerNotFound
from .locks import lock_file

_READ_BYTES: Final = 1 << 20
_DEFAULT_LEVELS: Final = {Compression.GZIP: 6, Compression.ZSTD: 3, Compression.UNCOMPRESSED: 0}


def _effective(compression: Compression, level: int | None) -> int:
    # zstd's own level 0 means its default, too.
    if level is None or (level == 0 and compression is Compression.ZSTD):
        return _DEFAULT_LEVELS[compression]
    return level


class LayerCompressor:
    """Blobs of the layers of one store. Every method may be called from any thread and process; all raise Cancelled once ``cancel`` is set."""

    def __init__(
        self, root: Path, *, blobs: BlobStore, layers: LayerIndex, cancel: threading.Event | None = None
    ) -> None:
        self._locks = root / "locks"
        self._blobs = blobs
        self._index = layers
        self._cancel = cancel

    def blob_for(
        self,
        diff_id: Digest,
        compression: Compression,
        *,
        level: int | None = None,
        force: bool = False,
        threads: int | None = None,
    ) -> Descriptor:
        """A blob of the layer, made if need be; its media type is the one it was pulled with, or the OCI one.

        ``level``: None for the default; ``force``: in this compression even if the layer was pulled in another one; ``threads``:
        at most so many. Raises LayerNotFound, BlobCorrupt, StoreFull, UsageError.
        """
        check_level(compression, level)
        wanted = _effective(compression, level)
        found = self._existing(diff_id, compression, wanted, any_level=level is None, force=force)
        if found is None:
            with lock_file(self._locks / f"compress-{diff_id.hex}-{compression.value}-{wanted}", transient=True):
                found = self._existing(diff_id, compression, wanted, any_level=level is None, force=force)
                if found is None:
                    found = self._make(diff_id, compression, wanted, threads)
        return found.descriptor

    def blobs_for(
        self, diff_ids: Sequence[Digest], compression: Compression, *, level: int | None = None, force: bool = False
    ) -> list[Descriptor]:
        """The blobs of several layers, made in parallel; as ``blob_for``."""
        cores = len(os.sched_getaffinity(0))
        missing = [
            diff_id
            for diff_id in dict.fromkeys(diff_ids)
            if self._existing(
                diff_id,
                compression,
                _effective(compression, level),
                any_level=level is None,
                force=force,
            )
            is None
        ]
        if len(missing) > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(cores, "compress") as pool:
                # Largest first, each with all cores: the last one left must not run on one alone.
                missing.sort(key=self._size, reverse=True)
                list(pool.map(lambda diff_id: self.blob_for(diff_id, compression, level=level, force=force), missing))
        return [self.blob_for(diff_id, compression, level=level, force=force) for diff_id in diff_ids]

    def needs_bytes(
        self, diff_id: Digest, compression: Compression, *, level: int | None = None, force: bool = False
    ) -> bool:
        """True if ``blob_for`` would have to make the blob: of no use is what is only known to be elsewhere, then."""
        wanted = _effective(compression, level)
        return self._existing(diff_id, compression, wanted, any_level=level is None, force=force) is None

    def _size(self, diff_id: Digest) -> int:
        layer = self._index.get(diff_id)
        return 0 if layer is None else layer.size

    def _existing(
        self, diff_id: Digest, compression: Compression, level: int, *, any_level: bool, force: bool
    ) -> LayerBlob | None:
        blobs = self._index.usable_blobs(diff_id)
        if compression is Compression.UNCOMPRESSED:
            found = next((blob for blob in blobs if blob.digest == diff_id), None)
            if found is not None:
                return found
        # A blob without a known level was pulled.
        pulled = [blob for blob in blobs if blob.level is None and blob.digest != diff_id]
        for blob in pulled:
            if blob.compression == compression.value and (any_level or not force):
                return blob
        if pulled and not force:
            return pulled[0]
        return next((blob for blob in blobs if (blob.compression, blob.level) == (compression.value, level)), None)

    def _make(self, diff_id: Digest, compression: Compression, level: int, threads: int | None) -> LayerBlob:
        blobs = self._index.blobs(diff_id)
        if not blobs:
            raise LayerNotFound(diff_id)
        with (
            closing(self._blobs.open(blobs[0].digest, size=blobs[0].size)) as source,
            self._blobs.ingest(expected=diff_id if compression is Compression.UNCOMPRESSED else None) as ingest,
        ):
            stream = decompressed(source)
            with compressor(compression, ingest.write, level=level, threads=threads) as out:
                while chunk := stream.next_chunk():
                    if self._cancel is not None and self._cancel.is_set():
                        raise Cancelled
                    out.write(chunk)
            digest, size = ingest.commit()
        blob = LayerBlob(digest, size, compression.oci_media_type, compression.value, level)
        self._index.add_blob(
            diff_id, digest, size=size, media_type=blob.media_type, compression=blob.compression, level=level
        )
        return blob
