"""Opening the caches that a build's request names: options read, places chosen. Asks nobody anything."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.builder.cache_specs import parse_cache_from, parse_cache_repo, parse_cache_to, parse_mounts_place
from pybuild.builder.progress import Progress
from pybuild.builder.request import BuildRequest

from .cache_places import LayoutPlace, Layouts
from .caches import BuildCachesHere
from .registries import Registries

if TYPE_CHECKING:
    from pybuild.layers.cache_index import CacheIndex
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.layers.store import Store

    from .lazy_layers import LazyLayers


def layouts_below(directory: str) -> Layouts:
    """Caches in directories of this machine; relative paths are relative to ``directory``."""
    return lambda path, reference: LayoutPlace(Path(directory, path), reference=reference)


def open_caches(
    request: BuildRequest,
    *,
    layouts: Layouts,
    inline: bool,
    store: Store,
    snapshots: SnapshotStore,
    cache: CacheIndex,
    registries: Registries,
    lazy: LazyLayers,
    progress: Progress,
    cancel: threading.Event,
) -> BuildCachesHere:
    """The caches that a build names; nothing is asked yet. ``inline``: as BUILDKIT_INLINE_CACHE=1 wants. Raises UsageError."""
    return BuildCachesHere(
        sources=[parse_cache_from(text) for text in request.cache_from],
        targets=[parse_cache_to(text) for text in request.cache_to],
        repositories=[parse_cache_repo(text) for text in request.cache_repo],
        layouts=layouts,
        store=store,
        snapshots=snapshots,
        cache=cache,
        registries=registries,
        lazy=lazy,
        progress=progress,
        cancel=cancel,
        inline=inline,
        siblings=_pushed_names(request),
        mounts_from=[parse_mounts_place(text, option="--cache-mounts-from") for text in request.cache_mounts_from],
        mounts_to=[parse_mounts_place(text, option="--cache-mounts-to") for text in request.cache_mounts_to],
    )


def _pushed_names(request: BuildRequest) -> tuple[str, ...]:
    """The names that the build pushes its image to."""
    return tuple(name for output in request.outputs if output.push for name in output.names or request.tags)
