"""Images in OCI layout directories as bases: resolved there, and their blobs copied into the store when their files are needed."""

from __future__ import annotations

from pathlib import Path

from pybuild.builder.protocols import ResolvedImage
from pybuild.errors import PybuildError
from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import INDEX_TYPES, Descriptor, Platform
from pybuild.layers.image import ImageConfig, Index, Manifest
from pybuild.layers.images import MANIFEST_LIMIT_BYTES
from pybuild.layers.layout import LayoutDirectory, blob_name
from pybuild.layers.store import Store
from pybuild.registry_client.platforms import choose

_DEPTH = 4


class LayoutImages:
    """Reads layouts for one store. ``location``: ``DIRECTORY[:TAG][@DIGEST]`` as ``ImageContextRef.location`` writes it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def resolve(self, location: str, *, platform: Platform) -> ResolvedImage:
        """Find the image for ``platform``. Raises InvalidLayout, LayoutImageNotFound, PybuildError."""
        directory, reference = _split(location)
        top = LayoutDirectory(directory).find(reference)
        descriptor = self._choose(directory, top, platform)
        manifest = Manifest.from_bytes(self._read(directory, descriptor))
        config = ImageConfig.from_bytes(self._read(directory, manifest.config))
        return ResolvedImage(f"oci-layout://{location}", descriptor, top.digest, config, manifest.layers)

    def bring_layers(self, image: ResolvedImage) -> None:
        """Copy the layers' blobs into the store, verified. Raises BlobCorrupt, PybuildError."""
        directory, _ = _split(image.reference.removeprefix("oci-layout://"))
        for layer in image.layers:
            self._ingest(directory, layer)

    def _choose(self, directory: Path, descriptor: Descriptor, platform: Platform) -> Descriptor:
        for _ in range(_DEPTH):
            if descriptor.media_type not in INDEX_TYPES:
                return descriptor
            index = Index.from_bytes(self._read(directory, descriptor))
            found = choose(index.manifests, platform)
            if found is None:
                raise PybuildError(f"no match for platform in manifest: {directory} has nothing for {platform}")
            descriptor = found
        raise PybuildError(f"the indexes in {directory} are nested too deep")

    def _read(self, directory: Path, descriptor: Descriptor) -> bytes:
        self._ingest(directory, descriptor)
        return self._store.blobs.read(descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES)

    def _ingest(self, directory: Path, descriptor: Descriptor) -> None:
        blobs: BlobStore = self._store.blobs
        if blobs.has(descriptor.digest):
            return
        try:
            with (
                open(directory / blob_name(descriptor.digest), "rb") as source,
                blobs.ingest(expected=descriptor.digest, expected_size=descriptor.size) as ingest,
            ):
                while chunk := source.read(1 << 20):
                    ingest.write(chunk)
                ingest.commit()
        except OSError as error:
            raise PybuildError(f"the layout {directory} lacks {descriptor.digest}: {error.strerror}") from error


def _split(location: str) -> tuple[Path, str]:
    """Directory and reference. A colon that is followed by a slash belongs to the directory's name."""
    rest, at, digest = location.partition("@")
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        head, tag = rest, ""
    return Path(head), f"{at}{digest}" if at else tag
