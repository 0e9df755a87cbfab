"""Pull, push and copy on one engine: names in the store, compression before a push, and the registry client's transfers.

Speaks no HTTP itself.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pybuild.builder.assemble import layer_media_type
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import INDEX_TYPES, MANIFEST_TYPES, OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.image import ImageConfig, Index, Manifest
from pybuild.layers.images import MANIFEST_LIMIT_BYTES
from pybuild.layers.references import Reference
from pybuild.registry_client.platforms import choose
from pybuild.registry_client.pull import PulledImage, pull
from pybuild.registry_client.push import PushReport, push
from pybuild.registry_client.transfers import OnTransfer

from .image_keeper import StoreLayers
from .layer_sink import LayerReceiver
from .machine import host_platform

if TYPE_CHECKING:
    from .engine import Engine

_UNCOMPRESSED = (".tar",)


def pull_image(
    engine: Engine,
    name: str,
    *,
    platform: Platform | None,
    all_platforms: bool,
    on_transfer: OnTransfer,
    cancel: threading.Event | None,
) -> PulledImage:
    """Fetch an image, unpack it, then give it its name."""
    reference = Reference.parse(name).with_default_tag()
    receiver = LayerReceiver(engine.store, engine.snapshots)
    pulled = pull(
        engine.registries.client,
        reference,
        engine.store.blobs,
        platform=None if all_platforms else platform or host_platform(),
        all_platforms=all_platforms,
        on_progress=on_transfer,
        layer_sink=receiver.sink,
        cancel=cancel,
    )
    for image in pulled.manifests:
        if image.is_image and image.config is not None:
            receiver.adopt(image.config.diff_ids, image.manifest.layers)
    engine.store.images.put(reference.canonical, pulled.descriptor)
    return pulled


def push_image(
    engine: Engine,
    name: str,
    *,
    platform: Platform | None,
    compression: str,
    level: int | None,
    force: bool,
    on_transfer: OnTransfer,
    cancel: threading.Event | None,
) -> PushReport:
    """Compress what isn't yet, send what is missing, and remember the image as the registry has it."""
    reference = Reference.parse(name).with_default_tag()
    if reference.digest is not None:
        raise UsageError("cannot push a digest reference", hint=f"push {reference.familiar_name}:TAG")
    image = engine.find_image(name)
    descriptor = image.descriptor
    if platform is not None and descriptor.media_type in INDEX_TYPES:
        found = choose(Index.from_bytes(_read(engine, descriptor)).manifests, platform)
        if found is None:
            raise UsageError(f"{name} has nothing for {platform}")
        descriptor = found
    ready = Compressing(engine, compression=compression, level=level, force=force, cancel=cancel).ready(descriptor)
    report = push(
        engine.registries.client,
        reference,
        ready,
        engine.lazy_layers(cancel=cancel).blobs,
        mount_from=_siblings(engine, reference),
        origins=engine.store.remote_layers,
        on_progress=on_transfer,
        cancel=cancel,
    )
    if ready.digest != image.descriptor.digest and platform is None:
        # The local name now stands for the same manifest as the registry's: digests agree, and a second push has nothing to do.
        for known in image.names or (reference.canonical,):
            engine.store.images.put(known, ready)
        # The manifest of the uncompressed layers has no name any more, and the same ID: it would only show up as a second image.
        engine.store.images.discard(image)
    return report


class Compressing:
    """Rewrites manifests so that every layer is compressed as asked. The configuration, and so the image ID, stays."""

    def __init__(
        self,
        engine: Engine,
        *,
        compression: str,
        level: int | None,
        force: bool,
        cancel: threading.Event | None = None,
    ) -> None:
        self._engine = engine
        self._layers = StoreLayers(engine.store, lazy=engine.lazy_layers(cancel=cancel), cancel=cancel)
        self._compression = compression
        self._level = level
        self._force = force

    def ready(self, descriptor: Descriptor) -> Descriptor:
        """The descriptor of the manifest or index to push: ``descriptor`` itself where nothing has to change."""
        data = _read(self._engine, descriptor)
        if descriptor.media_type in INDEX_TYPES:
            index = Index.from_bytes(data)
            children = tuple(
                self.ready(child) if self._engine.store.blobs.has(child.digest) else child for child in index.manifests
            )
            if children == index.manifests:
                return descriptor
            body = Index(children, index.media_type, index.annotations, index.subject, index.artifact_type).to_bytes()
            return Descriptor(
                descriptor.media_type,
                self._engine.store.blobs.write(body),
                len(body),
                platform=descriptor.platform,
                annotations=descriptor.annotations,
            )
        if descriptor.media_type not in MANIFEST_TYPES:
            return descriptor
        return self._manifest(descriptor, Manifest.from_bytes(data))

    def _manifest(self, descriptor: Descriptor, manifest: Manifest) -> Descriptor:
        plain = [layer for layer in manifest.layers if layer.media_type.endswith(_UNCOMPRESSED)]
        if (not plain or self._compression == "uncompressed") and not self._force:
            return descriptor
        config = ImageConfig.from_bytes(
            self._engine.store.blobs.read(manifest.config.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
        )
        if len(config.diff_ids) != len(manifest.layers):
            return descriptor
        oci = manifest.media_type == OCI_MANIFEST
        self._layers.prepare(
            [
                diff_id
                for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=True)
                if self._force or layer.media_type.endswith(_UNCOMPRESSED)
            ],
            compression=self._compression,
            level=self._level,
            force=self._force,
        )
        layers: list[Descriptor] = []
        for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=True):
            if not self._force and not layer.media_type.endswith(_UNCOMPRESSED):
                layers.append(layer)
                continue
            found = self._layers.blob_for(diff_id, compression=self._compression, level=self._level, force=self._force)
            layers.append(Descriptor(layer_media_type(found.media_type, oci=oci), found.digest, found.size))
        body = Manifest(
            manifest.config,
            tuple(layers),
            manifest.media_type,
            manifest.annotations,
            manifest.subject,
            manifest.artifact_type,
        ).to_bytes()
        return Descriptor(
            descriptor.media_type,
            self._engine.store.blobs.write(body),
            len(body),
            platform=descriptor.platform,
            annotations=descriptor.annotations,
        )


def offered_platforms(engine: Engine, reference: Reference) -> tuple[Descriptor, tuple[Platform, ...]]:
    """What a registry has under a name, and for which platforms. Raises RegistryError."""
    from pybuild.registry_client.pull import resolve

    content = engine.registries.client.repository(reference).get_manifest(reference.target)
    if content.descriptor.media_type in INDEX_TYPES:
        listed = Index.from_bytes(content.data).manifests
        found = [entry.platform for entry in listed if entry.platform is not None]
        return content.descriptor, tuple(platform for platform in found if platform.os != "unknown")
    config = resolve(engine.registries.client, reference, host_platform()).image.config
    return content.descriptor, () if config is None else (config.platform,)


def _read(engine: Engine, descriptor: Descriptor) -> bytes:
    return engine.store.blobs.read(descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES)


def _siblings(engine: Engine, reference: Reference) -> list[str]:
    """Repositories of the same registry that local images were named after: their blobs may be mounted instead of sent."""
    found: dict[str, None] = {}
    for name in engine.store.images.names():
        try:
            other = Reference.parse(name)
        except PybuildError:
            continue
        if other.host == reference.host and other.repository != reference.repository:
            found[other.repository] = None
    return list(found)[:8]
