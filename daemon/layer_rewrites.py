"""Layers made from layers of the store: with limited times, or several merged into one. Satisfies the builder's ``LayerRewrites``.

Most builds export their layers as they are: what does the work is imported when a layer is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pybuild.layers.digest import Digest

if TYPE_CHECKING:
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.layers.store import Store


class StoreRewrites:
    """``snapshots``: called when layers are merged."""

    def __init__(self, store: Store, snapshots: Callable[[], SnapshotStore]) -> None:
        self._store = store
        self._snapshots = snapshots

    def limited(self, diff_id: Digest, *, epoch: int) -> Digest:
        """See LayerRewrites."""
        from pybuild.builder.copy_tree import MADE_NS
        from pybuild.layers.compression import Compression
        from pybuild.layers.entries import Layer
        from pybuild.layers.layer_compressor import LayerCompressor
        from pybuild.layers.tar_times import limit_times

        store = self._store
        compressor = LayerCompressor(store.root, blobs=store.blobs, layers=store.layers)
        tar = compressor.blob_for(diff_id, Compression.UNCOMPRESSED, force=True)
        with store.blobs.open(tar.digest, size=tar.size) as source, store.blobs.ingest() as ingest:
            limit_times(source, ingest.write, latest=epoch, unknown=MADE_NS // 1_000_000_000)
            digest, size = ingest.commit()
        known = store.layers.get(diff_id)
        store.layers.register(Layer(digest, size, empty=known is not None and known.empty))
        return digest

    def merged(self, base: Sequence[Digest], own: Sequence[Digest]) -> Digest:
        """See LayerRewrites."""
        return self._snapshots().merge_layers(base, own).diff_id
