"""The executor, the snapshots and the lazy layers of an engine, made when a build first uses them: one that finds every step in its cache doesn't, and then
imports neither sandbox nor layer machinery.

Delegates; decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, BinaryIO

from pybuild.layers.digest import Digest

if TYPE_CHECKING:
    from pybuild.builder.protocols import ExitStatus, ProcessSpec
    from pybuild.layers.entries import Layer, LayerEntry
    from pybuild.layers.layer_index import LayerIndex
    from pybuild.layers.snapshots import ActiveLayer, SnapshotStore
    from pybuild.layers.views import FileView

    from .executor import NamespaceExecutor
    from .lazy_layers import LazyBlobs, LazyLayers


class ExecutorOnDemand:
    """Satisfies the builder's ``Executor``."""

    def __init__(self, get: Callable[[], NamespaceExecutor]) -> None:
        self._get = get

    def start(self) -> None:
        """See Executor."""
        self._get().start()

    def run(self, spec: ProcessSpec, *, on_output: Callable[[int, bytes], None], cancel: threading.Event) -> ExitStatus:
        """See Executor."""
        return self._get().run(spec, on_output=on_output, cancel=cancel)


class LazyLayersOnDemand:
    """Satisfies the builder's ``DistantLayers``; see ``LazyLayers``."""

    def __init__(self, get: Callable[[], LazyLayers]) -> None:
        self._get = get
        self._guard = threading.Lock()
        self._made: LazyLayers | None = None

    @property
    def _layers(self) -> LazyLayers:
        with self._guard:
            if self._made is None:
                self._made = self._get()
            return self._made

    def bring(self, layers: Mapping[Digest, tuple[Digest, ...]], *, unpack: bool) -> frozenset[Digest]:
        """See DistantLayers."""
        return self._layers.bring(layers, unpack=unpack)

    def need(self, stack: Sequence[Digest]) -> None:
        """See LazyLayers."""
        self._layers.need(stack)

    @property
    def blobs(self) -> LazyBlobs:
        """See LazyLayers."""
        return self._layers.blobs


class SnapshotsOnDemand:
    """Satisfies the builder's ``Snapshots``; see ``SnapshotStore``."""

    def __init__(self, get: Callable[[], SnapshotStore], *, index: LayerIndex) -> None:
        self._get = get
        self._index = index

    def has(self, stack: Sequence[Digest]) -> bool:
        """See Snapshots."""
        return self._index.present(stack)

    def view(self, stack: Sequence[Digest]) -> AbstractContextManager[FileView]:
        """See Snapshots."""
        return self._get().view(stack)

    def directories(self, stack: Sequence[Digest]) -> AbstractContextManager[tuple[str, ...]]:
        """See Snapshots."""
        return self._get().directories(stack)

    def prepare(self, stack: Sequence[Digest]) -> AbstractContextManager[ActiveLayer]:
        """See Snapshots."""
        return self._get().prepare(stack)

    def write_layer(self, stack: Sequence[Digest], entries: Sequence[LayerEntry]) -> Layer:
        """See Snapshots."""
        return self._get().write_layer(stack, entries)

    def resembles(self, layer: Layer, *, key: str, contents: Mapping[str, str]) -> None:
        """See Snapshots."""
        self._get().resembles(layer, key=key, contents=contents)

    def unpack_stream(self, stack: Sequence[Digest], stream: BinaryIO) -> Layer:
        """See SnapshotStore."""
        return self._get().unpack_stream(stack, stream)

    def scratch(self) -> AbstractContextManager[str]:
        """See Snapshots."""
        return self._get().scratch()

    def cache_mount(self, id: str, *, fresh: bool) -> AbstractContextManager[str]:
        """See Snapshots."""
        return self._get().cache_mount(id, fresh=fresh)
