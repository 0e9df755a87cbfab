"""Pulling: from a reference to verified blobs in a store.

Owns the order of things: manifest, platform choice, configuration, layers in parallel, and the manifests' own bytes last.
Never names anything in the store: the caller records the reference when ``pull`` has returned.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from pybuild.layers.blobs import BlobCorrupt
from pybuild.layers.descriptor import INDEX_TYPES, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig, Index, Manifest
from pybuild.layers.references import Reference
from pybuild.values import dataclass, field, replace

from .client import (
    ContentMismatch,
    ManifestContent,
    RegistryClient,
    Repository,
    UnsupportedManifest,
    checked_media_type,
)
from .fetch import blob_chunks
from .platforms import choose, rank
from .stores import BlobIngest, BlobStore, LayerDownload, LayerSink, LayerSinkFactory
from .transfers import OnTransfer, Stop, Transfer, TransferState, run_all, silent
from .transport import RegistryError

CONFIG_BYTES: Final = 16 << 20
_INDEX_DEPTH: Final = 4
_CONFIG_TYPES: Final = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_PROGRESS_BYTES: Final = 1 << 20
_LAYER: Final = re.compile(r"application/vnd\.(?:oci\.image\.layer\.|docker\.image\.rootfs\.).*tar")


class NoMatchingPlatform(RegistryError):
    """The index has no entry for the platform."""

    def __init__(self, name: str, platform: Platform, offered: Sequence[Platform]) -> None:
        known = sorted({str(item) for item in offered if item.os != "unknown"})
        hint = f"it has: {', '.join(known[:20])}" if known else None
        super().__init__(f"no match for platform in manifest: {name} has nothing for {platform}", hint=hint)
        self.platform = platform
        self.offered = tuple(offered)


@dataclass(frozen=True, slots=True)
class PulledManifest:
    """One image: its manifest and its configuration, both also as bytes. ``config`` is None for artifacts, whose configuration is
    something else and whose ``config_data`` is empty until it is pulled."""

    descriptor: Descriptor
    data: bytes = field(repr=False)
    manifest: Manifest
    config: ImageConfig | None
    config_data: bytes = field(repr=False)

    @property
    def is_image(self) -> bool:
        """True if its layers make a file system. Attestations and other artifacts are stored like images but aren't any."""
        config, layers = self.config, self.manifest.layers
        return (
            config is not None
            and config.platform.os not in ("", "unknown")
            and len(config.diff_ids) == len(layers)
            and all(_LAYER.match(layer.media_type) for layer in layers)
        )


@dataclass(frozen=True, slots=True)
class ResolvedReference:
    """What a reference means for one platform: no layer has been read. ``descriptor``: what the reference itself names, an index or
    the manifest."""

    reference: Reference
    descriptor: Descriptor
    indexes: tuple[ManifestContent, ...]
    image: PulledManifest


@dataclass(frozen=True, slots=True)
class PulledImage:
    """What is in the store now. ``descriptor``: what the reference names; ``manifests``: the images that were pulled; ``indexes``: those on the
    way, the outermost first; ``bytes_received`` over the network for layers and configurations."""

    reference: Reference
    descriptor: Descriptor
    manifests: tuple[PulledManifest, ...]
    indexes: tuple[ManifestContent, ...]
    bytes_received: int
    layers_existing: int


def resolve(
    client: RegistryClient,
    reference: Reference,
    platform: Platform,
    *,
    known: Callable[[Digest], bytes | None] | None = None,
) -> ResolvedReference:
    """Find the manifest and the configuration for ``platform``, reading nothing else.

    ``known`` may return a manifest's or configuration's bytes that are here already: then a HEAD tells whether they are current, which
    registries with limits don't count. Raises ImageNotFound, NoMatchingPlatform, ContentMismatch, RegistryError.
    """
    repository = client.repository(reference)
    lookup = known or (lambda digest: None)
    top = _top(repository, reference, known)
    indexes, manifests = select(repository, reference, top, platform=platform, lookup=lookup)
    return ResolvedReference(reference, top.descriptor, indexes, read_config(repository, manifests[0], lookup))


def pull(
    client: RegistryClient,
    reference: Reference,
    store: BlobStore,
    *,
    platform: Platform | None = None,
    all_platforms: bool = False,
    on_progress: OnTransfer = silent,
    layer_sink: LayerSinkFactory | None = None,
    cancel: threading.Event | None = None,
) -> PulledImage:
    """Bring an image's blobs into ``store``, verified. Exactly one of ``platform`` and ``all_platforms`` says what of an index.

    ``layer_sink`` is asked for every layer of an image that is downloaded from its first byte on (not for those that are there already or that an
    earlier pull left half-way). Raises ImageNotFound, NoMatchingPlatform, ContentMismatch, RegistryError, Cancelled; then no
    manifest has been stored.
    """
    if (platform is None) != all_platforms:
        raise ValueError("either a platform or all of them")
    stop = Stop(cancel)
    repository = client.repository(reference)

    def lookup(digest: Digest) -> bytes | None:
        return _stored(store, digest)

    top = _top(repository, reference, lookup if reference.digest is not None else None)
    indexes, chosen = select(repository, reference, top, platform=platform, lookup=lookup)
    images = tuple(read_config(repository, content, lookup) for content in chosen)
    puller = _Puller(repository, store, on_progress=on_progress, layer_sink=layer_sink, stop=stop)
    puller.blobs(images)
    for image in images:
        puller.keep(image.descriptor, image.data, "manifest")
    for index in reversed(indexes):
        puller.keep(index.descriptor, index.data, "index")
    return PulledImage(reference, top.descriptor, images, indexes, puller.received, puller.existing)


def pull_layers(
    client: RegistryClient,
    reference: Reference,
    store: BlobStore,
    *,
    image: PulledManifest,
    on_progress: OnTransfer = silent,
    layer_sink: LayerSinkFactory | None = None,
    cancel: threading.Event | None = None,
) -> int:
    """Bring the layers of an image that ``resolve`` found into ``store``. Returns the bytes received. Raises as ``pull`` does."""
    puller = _Puller(
        client.repository(reference), store, on_progress=on_progress, layer_sink=layer_sink, stop=Stop(cancel)
    )
    puller.blobs((image,))
    return puller.received


def _stored(store: BlobStore, digest: Digest) -> bytes | None:
    if not store.has(digest) or store.size(digest) > CONFIG_BYTES:
        return None
    with store.open(digest) as file:
        return file.read()


def _top(
    repository: Repository, reference: Reference, known: Callable[[Digest], bytes | None] | None
) -> ManifestContent:
    if known is not None:
        here = reference.digest
        if here is None:
            # Asking with HEAD first pays only if the answer may already be here; a GET tells the same otherwise.
            found = repository.head_manifest(reference.target)
            here = None if found is None else found.digest
        data = None if here is None else known(here)
        if here is not None and data is not None:
            return ManifestContent(Descriptor(checked_media_type(reference.familiar, data), here, len(data)), data)
    return repository.get_manifest(reference.target)


def _child(repository: Repository, entry: Descriptor, lookup: Callable[[Digest], bytes | None]) -> ManifestContent:
    data = lookup(entry.digest)
    if data is not None and len(data) == entry.size:
        return ManifestContent(replace(entry, media_type=checked_media_type(str(entry.digest), data)), data)
    found = repository.get_manifest(str(entry.digest), expected=entry)
    return ManifestContent(
        replace(found.descriptor, platform=entry.platform, annotations=entry.annotations), found.data
    )


def select(
    repository: Repository,
    reference: Reference,
    top: ManifestContent,
    *,
    platform: Platform | None,
    lookup: Callable[[Digest], bytes | None] = lambda digest: None,
) -> tuple[tuple[ManifestContent, ...], list[ManifestContent]]:
    """The indexes on the way, the outermost first, and the manifests for ``platform`` (one; None: all) that ``top`` leads to.

    ``lookup`` may give the bytes of those that are here. Raises NoMatchingPlatform, UnsupportedManifest, ContentMismatch, RegistryError.
    """
    indexes: list[ManifestContent] = []
    chosen: list[ManifestContent] = []
    seen: set[Digest] = set()

    def walk(content: ManifestContent, depth: int) -> None:
        if content.descriptor.digest in seen:
            return
        seen.add(content.descriptor.digest)
        if content.descriptor.media_type not in INDEX_TYPES:
            chosen.append(content)
            return
        if depth >= _INDEX_DEPTH:
            raise UnsupportedManifest(f"{reference.familiar}: its indexes are nested more than {_INDEX_DEPTH} deep")
        indexes.append(content)
        entries = Index.from_bytes(content.data).manifests
        if platform is None:
            for entry in entries:
                walk(_child(repository, entry, lookup), depth + 1)
            return
        best = choose(entries, platform)
        if best is not None:
            walk(_child(repository, best, lookup), depth + 1)
            return
        found = _by_config(repository, entries, platform, lookup)
        if found is None:
            raise NoMatchingPlatform(
                reference.familiar, platform, [e.platform for e in entries if e.platform is not None]
            )
        walk(found, depth + 1)

    walk(top, 0)
    if not chosen:
        raise UnsupportedManifest(f"{reference.familiar}: its index is empty")
    return tuple(indexes), chosen


def _by_config(
    repository: Repository,
    entries: Sequence[Descriptor],
    platform: Platform,
    lookup: Callable[[Digest], bytes | None],
) -> ManifestContent | None:
    # An entry need not say its platform ("platform" is optional): then its configuration does, or it is an index itself.
    for entry in entries:
        if entry.platform is not None:
            continue
        content = _child(repository, entry, lookup)
        if content.descriptor.media_type in INDEX_TYPES:
            inner = choose(Index.from_bytes(content.data).manifests, platform)
            if inner is not None:
                return content
            continue
        image = read_config(repository, content, lookup)
        if image.config is not None and rank(image.config.platform, platform) is not None:
            return content
    return None


def read_config(
    repository: Repository,
    content: ManifestContent,
    lookup: Callable[[Digest], bytes | None] = lambda digest: None,
) -> PulledManifest:
    """The manifest with its configuration, read and verified. Raises ContentMismatch, ImageNotFound, RegistryError."""
    manifest = Manifest.from_bytes(content.data)
    where = str(content.descriptor.digest)
    if manifest.config.size > CONFIG_BYTES:
        raise ContentMismatch(f"{where}: its configuration is larger than the {CONFIG_BYTES} bytes that are allowed")
    if manifest.config.media_type not in _CONFIG_TYPES:
        return PulledManifest(content.descriptor, content.data, manifest, None, b"")
    data = lookup(manifest.config.digest)
    if data is None:
        data = b"".join(blob_chunks(repository, manifest.config))
        if Digest.of(data, manifest.config.digest.algorithm) != manifest.config.digest:
            raise ContentMismatch(f"the registry sent a configuration whose digest is not {manifest.config.digest}")
    config = ImageConfig.from_bytes(data)
    if manifest.layers and config.diff_ids and len(config.diff_ids) != len(manifest.layers):
        raise ContentMismatch(
            f"{where}: the manifest has {len(manifest.layers)} layers, its configuration {len(config.diff_ids)}"
        )
    return PulledManifest(content.descriptor, content.data, manifest, config, data)


class _Puller:
    """The transfers of one pull."""

    def __init__(
        self,
        repository: Repository,
        store: BlobStore,
        *,
        on_progress: OnTransfer,
        layer_sink: LayerSinkFactory | None,
        stop: Stop,
    ) -> None:
        self._repository = repository
        self._store = store
        self._report = on_progress
        self._sinks = layer_sink
        self._stop = stop
        self._lock = threading.Lock()
        self.received = 0
        self.existing = 0

    def blobs(self, images: Sequence[PulledManifest]) -> None:
        """Bring configurations and layers of all ``images``, each blob once."""
        tasks: dict[Digest, Callable[[], None]] = {}
        for image in images:
            manifest = image.manifest
            tasks.setdefault(manifest.config.digest, partial(self._config, image))
            diff_ids = image.config.diff_ids if image.config is not None and image.is_image else ()
            for position, layer in enumerate(manifest.layers):
                if layer.digest in tasks:
                    continue
                self._report(Transfer(layer.digest, "layer", TransferState.WAITING, 0, layer.size))
                download = (
                    LayerDownload(layer, diff_ids[position], position, diff_ids) if position < len(diff_ids) else None
                )
                tasks[layer.digest] = partial(self._blob, layer, "layer", download)
        transport = self._repository.client.transport
        run_all(
            list(tasks.values()),
            parallel=transport.network.parallel,
            stop=self._stop,
            interrupt=transport.interrupt,
        )

    def _config(self, image: PulledManifest) -> None:
        descriptor = image.manifest.config
        if image.config is None:
            self._blob(descriptor, "config", None)
        else:
            self.keep(descriptor, image.config_data, "config")

    def keep(self, descriptor: Descriptor, data: bytes, kind: str) -> None:
        """Store the bytes of a manifest or a configuration that were read and verified."""
        if not self._store.has(descriptor.digest):
            with self._store.ingest(expected=descriptor.digest, expected_size=len(data)) as ingest:
                ingest.write(data)
                ingest.commit()
        self._report(Transfer(descriptor.digest, kind, TransferState.DONE, len(data), len(data)))

    def _blob(self, descriptor: Descriptor, kind: str, layer: LayerDownload | None) -> None:
        if self._store.has(descriptor.digest):
            if self._store.size(descriptor.digest) != descriptor.size:
                raise ContentMismatch(
                    f"{descriptor.digest} has {self._store.size(descriptor.digest)} bytes, its manifest says {descriptor.size}"
                )
            with self._lock:
                self.existing += kind == "layer"
            self._report(Transfer(descriptor.digest, kind, TransferState.EXISTS, descriptor.size, descriptor.size))
            return
        resumed = self._download(descriptor, kind, layer, partial=True)
        if resumed is not None:
            # What an earlier try had left was not this blob's beginning after all. From the start, then.
            again = self._download(descriptor, kind, layer, partial=False)
            if again is not None:
                raise again

    def _download(
        self, descriptor: Descriptor, kind: str, layer: LayerDownload | None, *, partial: bool
    ) -> BlobCorrupt | None:
        key = str(descriptor.digest) if partial else None
        with ExitStack() as stack:
            ingest = stack.enter_context(
                self._store.ingest(expected=descriptor.digest, expected_size=descriptor.size, partial_key=key)
            )
            if ingest.exists:
                self._report(Transfer(descriptor.digest, kind, TransferState.EXISTS, descriptor.size, descriptor.size))
                return None
            start = ingest.offset
            sink = None
            if layer is not None and self._sinks is not None and start == 0:
                context = self._sinks(layer)
                sink = None if context is None else stack.enter_context(context)
            self._receive(descriptor, kind, ingest, sink)
            try:
                ingest.commit()
            except BlobCorrupt as error:
                if start:
                    return error
                raise ContentMismatch(
                    f"{self._repository.reference.familiar}: what the registry sent is not {descriptor.digest} ({error.message})",
                    hint="the registry or something between is broken; pull again, or from elsewhere",
                ) from error
            if sink is not None:
                sink.commit()
        self._report(Transfer(descriptor.digest, kind, TransferState.DONE, descriptor.size, descriptor.size))
        return None

    def _receive(self, descriptor: Descriptor, kind: str, ingest: BlobIngest, sink: LayerSink | None) -> None:
        position = shown = ingest.offset
        total = descriptor.size
        self._report(Transfer(descriptor.digest, kind, TransferState.RUNNING, position, total))
        for chunk in blob_chunks(self._repository, descriptor, offset=position, stop=self._stop):
            ingest.write(chunk)
            if sink is not None:
                sink.write(chunk)
            position += len(chunk)
            with self._lock:
                self.received += len(chunk)
            if position - shown >= _PROGRESS_BYTES:
                shown = position
                self._report(Transfer(descriptor.digest, kind, TransferState.RUNNING, position, total))
