"""Reading manifests and indexes that others wrote, and not trusting them.

Owns the checks: digest, size, media type, documents that are two things at once, formats that are gone. Never fetches anything.
"""

from __future__ import annotations

from typing import Final

from pybuild.layers.descriptor import (
    DOCKER_MANIFEST_V1,
    DOCKER_MANIFEST_V1_SIGNED,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import InvalidImage, json_object, media_type_of
from pybuild.layers.references import Reference
from pybuild.values import dataclass, field

from .failures import RegistryError

MANIFEST_BYTES: Final = 4 << 20
_SCHEMA_1: Final = frozenset({DOCKER_MANIFEST_V1, DOCKER_MANIFEST_V1_SIGNED})


class ImageNotFound(RegistryError):
    """The registry (and its mirrors) don't have what the reference names."""

    def __init__(self, reference: Reference, *, hint: str | None = None) -> None:
        super().__init__(f"{reference.familiar}: not found", hint=hint)
        self.reference = reference


class ContentMismatch(RegistryError):
    """What a registry sent is not what was asked for: wrong digest, size or media type."""


class UnsupportedManifest(RegistryError):
    """A manifest in a format that isn't supported: Docker's schema 1, or none at all."""


@dataclass(frozen=True, slots=True)
class ManifestContent:
    """A manifest or an index, verified: its descriptor and its bytes as the registry has them."""

    descriptor: Descriptor
    data: bytes = field(repr=False)

    @property
    def is_index(self) -> bool:
        return self.descriptor.media_type in INDEX_TYPES


def referrers_tag(digest: Digest) -> str:
    """The tag of the index that lists what refers to ``digest`` where there is no referrers API."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def verified(
    reference: Reference, data: bytes, *, declared: str, announced: Digest | None, expected: Descriptor | None
) -> ManifestContent:
    name = reference.familiar
    wanted = reference.digest or (expected.digest if expected is not None else None)
    if wanted is not None:
        if Digest.of(data, wanted.algorithm) != wanted:
            raise ContentMismatch(
                f"{name}: the registry sent a manifest with another digest ({Digest.of(data, wanted.algorithm)})"
            )
        digest = wanted
    elif announced is not None:
        if Digest.of(data, announced.algorithm) != announced:
            raise ContentMismatch(f"{name}: the manifest's digest is not the one that the registry says ({announced})")
        digest = announced
    else:
        digest = Digest.of(data)
    if expected is not None and expected.size != len(data):
        raise ContentMismatch(f"{name}: the manifest has {len(data)} bytes, its index says {expected.size}")
    media_type = checked_media_type(name, data, declared=declared)
    if expected is not None and expected.media_type and expected.media_type != media_type:
        raise ContentMismatch(f"{name}: the manifest is {media_type}, its index says {expected.media_type}")
    return ManifestContent(Descriptor(media_type, digest, len(data)), data)


def checked_media_type(name: str, data: bytes, *, declared: str = "") -> str:
    """The media type of a manifest or an index that others wrote. ``declared``: the Content-Type that it came with.

    A document that reads as a manifest and as an index at once is refused (image specification, "mediaType"; CVE-2021-41190), as is
    one whose own type contradicts the header. Raises UnsupportedManifest, ContentMismatch.
    """
    try:
        value = json_object(data, "the manifest")
    except InvalidImage as error:
        raise UnsupportedManifest(f"{name}: {error.message}") from error
    if declared in _SCHEMA_1 or value.get("schemaVersion") == 1 or "fsLayers" in value:
        raise UnsupportedManifest(
            f"{name}: the image is in Docker's schema 1 format, which is no longer supported",
            hint="push it again with a current tool, or convert it with: skopeo copy --format v2s2",
        )
    try:
        media_type = media_type_of(data, declared)
    except InvalidImage as error:
        raise UnsupportedManifest(f"{name}: {error.message}") from error
    known = INDEX_TYPES | MANIFEST_TYPES
    if declared in known and media_type != declared:
        raise ContentMismatch(f"{name}: the registry says {declared}, the document itself {media_type}")
    if media_type not in known:
        raise UnsupportedManifest(f"{name}: {media_type[:100]!r} is neither a manifest nor an index")
    is_index = media_type in INDEX_TYPES
    stray = ("config", "layers") if is_index else ("manifests",)
    if any(value.get(key) is not None for key in stray):
        raise UnsupportedManifest(f"{name}: the document is a manifest and an index at once")
    if value.get("manifests" if is_index else "config") is None:
        raise UnsupportedManifest(f"{name}: the {'index' if is_index else 'manifest'} is incomplete")
    return media_type
