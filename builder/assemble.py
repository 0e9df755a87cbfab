"""Turns a solved build into an image: completes the configuration's history and times, and writes config, manifest and index.

Follows BuildKit's rules for ``created`` times. Runs nothing, compresses nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import History, ImageConfig, Index, Manifest
from pybuild.layers.rfc3339 import parse_rfc3339 as parse_rfc3339
from pybuild.layers.rfc3339 import rfc3339 as rfc3339
from pybuild.values import dataclass, field, replace

_TO_DOCKER = {
    OCI_LAYER: DOCKER_LAYER,
    OCI_LAYER_GZIP: DOCKER_LAYER_GZIP,
    OCI_LAYER_ZSTD: DOCKER_LAYER_ZSTD,
}
_TO_OCI = {docker: oci for oci, docker in _TO_DOCKER.items()}


class BlobWriter(Protocol):
    """Where configurations and manifests go."""

    def write(self, data: bytes) -> Digest: ...


class LayerExports(Protocol):
    """Gives the blob of a layer in some compression, making it if need be."""

    def prepare(self, diff_ids: Sequence[Digest], *, compression: str | None, level: int | None, force: bool) -> None:
        """Have at hand what ``blob_for`` will need of layers that the store only knows. Raises LayersLost."""

    def blob_for(self, diff_id: Digest, *, compression: str | None, level: int | None, force: bool) -> Descriptor:
        """``compression`` None: whatever exists, preferring what was pulled, then the uncompressed tar."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """One platform's result. ``config`` has no diff IDs yet and ``history`` new entries without a time.

    ``stack``: its layers; ``layer_times``: when each was made, in seconds since the epoch, None for the base's; ``base_history``: how
    many history entries, and ``base_layers``: how many layers, come from the base image; ``layer_annotations``: of the layers'
    descriptors, by position in ``stack``.
    """

    platform: Platform
    config: ImageConfig
    history: tuple[History, ...]
    stack: tuple[Digest, ...]
    layer_times: tuple[float | None, ...]
    base_history: int = 0
    base_layers: int = 0
    layer_annotations: Mapping[int, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Annotations:
    """What ``--annotation`` sets, by level. Keys of the per-platform maps are ``str(platform)`` or ``""`` for all."""

    manifest: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    manifest_descriptor: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    index: Mapping[str, str] = field(default_factory=dict)
    index_descriptor: Mapping[str, str] = field(default_factory=dict)

    def of_manifest(self, platform: Platform) -> dict[str, str]:
        return {**self.manifest.get("", {}), **self.manifest.get(str(platform), {})}

    def of_descriptor(self, platform: Platform) -> dict[str, str]:
        return {**self.manifest_descriptor.get("", {}), **self.manifest_descriptor.get(str(platform), {})}


def complete_config(image: BuiltImage, *, epoch: int | None) -> ImageConfig:
    """The configuration with diff IDs and times filled in; ``epoch`` (SOURCE_DATE_EPOCH) clamps what this build made.

    Raises PybuildError when history and layers disagree, which would be a defect of the build itself.
    """
    entries = list(image.history)
    if sum(not entry.empty_layer for entry in entries) > len(image.stack):
        raise PybuildError("the image's history has more layers than the image")
    layer = 0
    for position, entry in enumerate(entries):
        if entry.empty_layer:
            continue
        made = image.layer_times[layer]
        if entry.created is None and made is not None:
            entries[position] = replace(entry, created=rfc3339(made))
        layer += 1
    # A base without a complete history: name its unexplained layers, as BuildKit's exporter does.
    for made in image.layer_times[layer:]:
        created = None if made is None else rfc3339(made)
        entries.append(History(created=created, comment="buildkit.exporter.image.v0"))
    entries = _fill_times(entries)
    if epoch is not None:
        limit = rfc3339(epoch)
        for position in range(image.base_history, len(entries)):
            created = entries[position].created
            seconds = None if created is None else parse_rfc3339(created)
            if seconds is None or seconds > epoch:
                entries[position] = replace(entries[position], created=limit)
    times = [entry.created for entry in entries if entry.created is not None]
    created = image.config.created
    if created is None:
        created = times[-1] if times else (None if epoch is None else rfc3339(epoch))
    elif epoch is not None and (parse_rfc3339(created) or 0) > epoch:
        created = rfc3339(epoch)
    return image.config.with_(diff_ids=image.stack, history=tuple(entries), created=created)


def _fill_times(entries: list[History]) -> list[History]:
    """Give each entry without a time that of the first new layer, or of the layer before it."""
    created: str | None = None
    missing = False
    for entry in entries:
        if entry.created is not None:
            created = entry.created
            if missing:
                break
        else:
            missing = True
    filled: list[History] = []
    missing = False
    for entry in entries:
        if entry.created is not None:
            if missing:
                created = entry.created
            filled.append(entry)
        else:
            missing = True
            filled.append(replace(entry, created=created))
    return filled


def layer_media_type(media_type: str, *, oci: bool) -> str:
    """The same layer format under the OCI or Docker name; types without a counterpart stay."""
    return _TO_OCI.get(media_type, media_type) if oci else _TO_DOCKER.get(media_type, media_type)


@dataclass(frozen=True, slots=True)
class AssembleOptions:
    """How images are written: layer ``compression`` (None: as they are), its ``level``, ``force``; ``oci`` media types or Docker's;
    ``epoch``; ``annotations``."""

    compression: str | None = None
    level: int | None = None
    force: bool = False
    oci: bool = True
    epoch: int | None = None
    annotations: Annotations = Annotations()


@dataclass(frozen=True, slots=True)
class WrittenManifest:
    """One platform's image as it was written. ``descriptor``: the manifest's, with its platform; ``layers``: the blobs, lowest first."""

    descriptor: Descriptor
    config: ImageConfig
    layers: tuple[Descriptor, ...]


def write_manifest(
    image: BuiltImage, *, options: AssembleOptions, layers: LayerExports, blobs: BlobWriter
) -> WrittenManifest:
    """Write one platform's configuration and manifest."""
    config = complete_config(image, epoch=options.epoch)
    data = config.to_bytes()
    config_type = OCI_CONFIG if options.oci else DOCKER_CONFIG
    layers.prepare(image.stack, compression=options.compression, level=options.level, force=options.force)
    descriptors = []
    for position, diff_id in enumerate(image.stack):
        found = layers.blob_for(diff_id, compression=options.compression, level=options.level, force=options.force)
        descriptors.append(
            Descriptor(
                layer_media_type(found.media_type, oci=options.oci),
                found.digest,
                found.size,
                urls=found.urls,
                # Docker's formats have none.
                annotations=image.layer_annotations.get(position, {}) if options.oci else {},
            )
        )
    manifest = Manifest(
        config=Descriptor(config_type, blobs.write(data), len(data)),
        layers=tuple(descriptors),
        media_type=OCI_MANIFEST if options.oci else DOCKER_MANIFEST,
        annotations=options.annotations.of_manifest(image.platform) if options.oci else {},
    )
    body = manifest.to_bytes()
    descriptor = Descriptor(
        manifest.media_type,
        blobs.write(body),
        len(body),
        platform=image.platform,
        annotations=options.annotations.of_descriptor(image.platform),
    )
    return WrittenManifest(descriptor, config, manifest.layers)


def write_index(
    manifests: Sequence[Descriptor], *, options: AssembleOptions, write: Callable[[bytes], Digest]
) -> Descriptor:
    """Write an index over ``manifests`` and return its descriptor."""
    index = Index(
        manifests=tuple(manifests),
        media_type=OCI_INDEX if options.oci else DOCKER_INDEX,
        annotations=options.annotations.index if options.oci else {},
    )
    body = index.to_bytes()
    return Descriptor(index.media_type, write(body), len(body), annotations=options.annotations.index_descriptor)
