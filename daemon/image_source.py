"""Finds images for FROM and COPY --from: the local store first, then what was resolved before, then registries and mirrors; and
images in OCI layout directories. Pulls layers when a step needs their files.

Satisfies ``builder.protocols.ImageSource``. Names nothing in the store: a base image doesn't become a local image by being built on. A build
whose bases are here imports neither the registry client nor the layouts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pybuild.builder.platforms import format_platform
from pybuild.builder.protocols import ResolvedImage
from pybuild.errors import PybuildError
from pybuild.layers.blobs import BlobNotFound
from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig, Manifest
from pybuild.layers.images import MANIFEST_LIMIT_BYTES, StoredPlatform
from pybuild.layers.references import Reference
from pybuild.layers.store import Store
from pybuild.registry_client.platforms import rank

from .registries import Registries

if TYPE_CHECKING:
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.registry_client.transfers import Transfer

    from .layer_sink import LayerReceiver
    from .lazy_layers import LazyLayers
    from .parts_on_demand import LazyLayersOnDemand, SnapshotsOnDemand

_FACT = "resolve"
_LAYOUT = "oci-layout://"


class NoConfiguration(PybuildError):
    """The reference names an artifact, not an image."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"{reference} is not an image: its configuration is of another type")


def known_config(store: Store, name: str, platform: Platform) -> ImageConfig | None:
    """The configuration of the image that a FROM calls ``name``, as a build found it last or the store has it; asks no registry, None if
    it isn't known here. Raises PybuildError for a name that is none."""
    reference = Reference.parse(name).with_default_tag()
    exact = () if reference.digest is None else (str(reference.digest),)
    image = store.images.find(reference.canonical, *exact)
    part = None if image is None else image.choose(platform)
    try:
        if part is not None:
            return store.images.config(part)
    except BlobNotFound:
        return None
    found = _remembered(store, reference.canonical, platform)
    return None if found is None else found.config


class StoreImageSource:
    """The ImageSource of one engine. Thread-safe."""

    def __init__(
        self,
        store: Store,
        snapshots: SnapshotStore | SnapshotsOnDemand,
        registries: Registries,
        *,
        lazy: LazyLayers | LazyLayersOnDemand,
        cancel: threading.Event,
    ) -> None:
        self._lazy = lazy
        self._store = store
        self._snapshots = snapshots
        self._registries = registries
        self._cancel = cancel

    def resolve(self, reference: str, *, platform: Platform, pull: bool) -> ResolvedImage:
        """Resolve a canonical reference or ``oci-layout://DIRECTORY[:TAG][@DIGEST]``. Raises PybuildError."""
        if reference.startswith(_LAYOUT):
            from .layouts import LayoutImages

            return LayoutImages(self._store).resolve(reference.removeprefix(_LAYOUT), platform=platform)
        if not pull:
            found = self._local(reference, platform) or _remembered(self._store, reference, platform)
            if found is not None:
                return found
        return self._from_registry(reference, platform)

    def ensure_layers(self, image: ResolvedImage, *, on_progress: Callable[[str, int, int], None]) -> None:
        """Have every layer's bytes in the store, ready to be stacked."""
        if self._snapshots.has(image.config.diff_ids):
            return
        if self._store.layers.available(image.config.diff_ids):
            stack = image.config.diff_ids
            missing = {
                diff_id: stack[: position + 1]
                for position, diff_id in enumerate(stack)
                if not self._snapshots.has((diff_id,))
            }
            if not self._lazy.bring(missing, unpack=True):
                return
        from .layer_sink import LayerReceiver

        receiver = LayerReceiver(self._store, self._snapshots)
        if image.reference.startswith(_LAYOUT):
            from .layouts import LayoutImages

            LayoutImages(self._store).bring_layers(image)
        else:
            self._pull(image, receiver, on_progress)
        receiver.adopt(image.config.diff_ids, image.layers)

    def know_layers(self, image: ResolvedImage) -> None:
        """See ImageSource. What lies in a directory, or behind URLs of its own, is brought."""
        if self._store.layers.available(image.config.diff_ids):
            return
        if image.reference.startswith(_LAYOUT) or any(layer.urls for layer in image.layers):
            self.ensure_layers(image, on_progress=lambda layer, current, total: None)
            return
        from pybuild.layers.remote_layers import Origin, RemoteLayer

        parsed = Reference.parse(image.reference)
        self._store.remote_layers.learn(
            [RemoteLayer(*pair) for pair in zip(image.config.diff_ids, image.layers, strict=True)],
            Origin(parsed.host, parsed.repository),
        )

    # --- finding -----------------------------------------------------------------------------------------------------

    def _local(self, reference: str, platform: Platform) -> ResolvedImage | None:
        parsed = Reference.parse(reference)
        lookups = [reference] if parsed.digest is None else [reference, str(parsed.digest)]
        image = self._store.images.find(*lookups)
        if image is None:
            return None
        fitting = [(fit, part) for part in image.platforms if (fit := rank(part.platform, platform)) is not None]
        if fitting:
            _, best = min(fitting, key=lambda found: found[0])
            return self._stored(reference, best, image.descriptor.digest)
        if len(image.platforms) == 1 and platform.os == image.platforms[0].platform.os:
            # As docker does with an explicit local image: what was built or loaded for another machine is taken with a finding.
            return self._stored(reference, image.platforms[0], image.descriptor.digest)
        return None

    def _stored(self, reference: str, part: StoredPlatform, index: Digest) -> ResolvedImage | None:
        try:
            config = self._store.images.config(part)
        except BlobNotFound:
            return None
        return ResolvedImage(reference, part.manifest, index, config, tuple(layer.descriptor for layer in part.layers))

    def _from_registry(self, reference: str, platform: Platform) -> ResolvedImage:
        from pybuild.registry_client.pull import resolve

        parsed = Reference.parse(reference)
        blobs = self._store.blobs

        def known(digest: Digest) -> bytes | None:
            try:
                return blobs.read(digest, limit_bytes=MANIFEST_LIMIT_BYTES)
            except BlobNotFound:
                return None

        found = resolve(self._registries.client, parsed, platform, known=known)
        image = found.image
        if image.config is None:
            raise NoConfiguration(parsed.familiar)
        for content in found.indexes:
            blobs.write(content.data)
        config_digest = image.manifest.config.digest
        for digest, data in ((image.descriptor.digest, image.data), (config_digest, image.config_data)):
            if not blobs.has(digest):
                with blobs.ingest(expected=digest) as ingest:
                    ingest.write(data)
                    ingest.commit()
        value = json.dumps({"manifest": image.descriptor.to_json(), "index": str(found.descriptor.digest)})
        self._store.facts.put(
            _FACT,
            f"{reference} {format_platform(platform)}",
            value=value,
            blobs=(image.descriptor.digest, config_digest),
        )
        return ResolvedImage(reference, image.descriptor, found.descriptor.digest, image.config, image.manifest.layers)

    # --- pulling -----------------------------------------------------------------------------------------------------

    def _pull(
        self, image: ResolvedImage, receiver: LayerReceiver, on_progress: Callable[[str, int, int], None]
    ) -> None:
        from pybuild.registry_client.pull import PulledManifest, pull_layers

        data = self._store.blobs.read(image.manifest.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
        manifest = Manifest.from_bytes(data)
        config = self._store.blobs.read(manifest.config.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
        pulled = PulledManifest(image.manifest, data, manifest, image.config, config)

        def report(transfer: Transfer) -> None:
            if transfer.kind == "layer":
                on_progress(str(transfer.digest), transfer.current, transfer.total)

        pull_layers(
            self._registries.client,
            Reference.parse(image.reference),
            self._store.blobs,
            image=pulled,
            on_progress=report,
            layer_sink=receiver.sink,
            cancel=self._cancel,
        )


def _remembered(store: Store, reference: str, platform: Platform) -> ResolvedImage | None:
    fact = store.facts.get(_FACT, f"{reference} {format_platform(platform)}")
    if fact is None:
        return None
    value = json.loads(fact.value)
    try:
        return _from_blobs(store, reference, Descriptor.from_json(value["manifest"]), Digest.parse(value["index"]))
    except BlobNotFound:
        return None


def _from_blobs(store: Store, reference: str, descriptor: Descriptor, index: Digest) -> ResolvedImage:
    manifest = Manifest.from_bytes(store.blobs.read(descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES))
    config = ImageConfig.from_bytes(store.blobs.read(manifest.config.digest, limit_bytes=MANIFEST_LIMIT_BYTES))
    return ResolvedImage(reference, descriptor, index, config, manifest.layers)
