"""Docker's image archives: what ``docker save`` writes and ``docker load`` reads.

Owns ``manifest.json`` both ways. The archive that is written is an OCI archive with that file in addition, as Docker since version 25 and
BuildKit's ``type=docker`` write it, so that readers of either kind understand it.

    manifest.json    [{"Config": PATH, "RepoTags": [NAME…], "Layers": [PATH…]}…]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .blobs import BlobStore
from .descriptor import Descriptor, Platform
from .digest import Digest
from .image import ImageConfig, InvalidImage, Manifest, json_bytes
from .images import MANIFEST_LIMIT_BYTES
from .layout import ExportedImage, blob_name, content_of, write_layout_tar

MANIFEST_FILE: Final = "manifest.json"


class InvalidArchive(PybuildError):
    """An archive holds no image that can be loaded, or a broken one."""

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"invalid image archive: {reason}", hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class DockerImage:
    """One element of ``manifest.json``: paths in the archive, names as they stand there."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


def familiar_name(name: str) -> str:
    """A canonical name as people write it, and as ``manifest.json`` has it: without Docker Hub's host."""
    for prefix in ("docker.io/library/", "docker.io/"):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def write_docker_archive(
    images: Sequence[ExportedImage],
    stream: BinaryIO,
    *,
    blobs: BlobStore,
    platform: Platform | None = None,
    skip_missing: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write images so that ``docker load`` takes them, to ``stream``, which the caller closes. Of an index ``manifest.json`` lists the image
    for ``platform``, else the first. Raises as ``write_layout_tar``."""
    elements: dict[Digest, DockerImage] = {}
    for image in images:
        chosen = _choose(image.descriptor, blobs=blobs, platform=platform, skip_missing=skip_missing)
        if chosen is None:
            continue
        # A name with a digest is no tag: docker load refuses it.
        names = tuple(familiar_name(name) for name in image.names if "/" in name and "@" not in name)
        digest = chosen.config.digest
        known = elements.get(digest)
        if known is not None:
            names = tuple(dict.fromkeys((*known.names, *names)))
        layers = tuple(blob_name(layer.digest) for layer in chosen.layers)
        elements[digest] = DockerImage(blob_name(digest), layers, names)
    listing = [
        {"Config": element.config, "RepoTags": list(element.names) or None, "Layers": list(element.layers)}
        for element in elements.values()
    ]
    write_layout_tar(
        images,
        stream,
        blobs=blobs,
        skip_missing=skip_missing,
        more_files={MANIFEST_FILE: json_bytes(listing)},
        on_progress=on_progress,
    )


def _choose(
    descriptor: Descriptor, *, blobs: BlobStore, platform: Platform | None, skip_missing: bool
) -> Manifest | None:
    """The manifest that stands for an image: no attestation, and of ``platform`` if there is one of it."""
    usable: list[tuple[Platform, Manifest]] = []
    for _, manifest in content_of(descriptor, blobs=blobs, skip_missing=skip_missing).manifests:
        try:
            config = ImageConfig.from_bytes(blobs.read(manifest.config.digest, limit_bytes=MANIFEST_LIMIT_BYTES))
        except InvalidImage:
            continue
        if config.platform.os and config.platform.os != "unknown" and len(config.diff_ids) == len(manifest.layers):
            usable.append((config.platform, manifest))
    if platform is not None:
        for wanted in (platform, Platform(platform.os, platform.architecture)):
            for found, manifest in usable:
                if found == wanted or (
                    not wanted.variant and (found.os, found.architecture) == (wanted.os, wanted.architecture)
                ):
                    return manifest
    return usable[0][1] if usable else None


def read_manifest_file(data: bytes) -> tuple[DockerImage, ...]:
    """Read ``manifest.json``. Raises InvalidArchive."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArchive(f"{MANIFEST_FILE} is not valid JSON") from error
    if not isinstance(value, list):
        raise InvalidArchive(f"{MANIFEST_FILE} is not a list")
    images = []
    for item in value:
        config = item.get("Config") if isinstance(item, dict) else None
        layers = item.get("Layers") if isinstance(item, dict) else None
        names = item.get("RepoTags") if isinstance(item, dict) else None
        if not isinstance(config, str) or not _texts(layers or []) or not _texts(names or []):
            raise InvalidArchive(f"{MANIFEST_FILE} has an element of the wrong shape")
        images.append(DockerImage(config, tuple(layers or ()), tuple(names or ())))
    return tuple(images)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
