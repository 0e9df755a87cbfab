"""Descriptors, platforms and media types (OCI image specification: ``descriptor.md``, ``image-index.md``, ``media-types.md``).

Values only; no I/O.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass, field

from .digest import Digest

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_LAYER_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_LAYER_FOREIGN_GZIP: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_LAYER_FOREIGN_ZSTD: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_LAYER_FOREIGN_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
DOCKER_MANIFEST_V1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_MANIFEST_V1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})


class InvalidDescriptor(PybuildError):
    """JSON that should have been a descriptor or a platform is not one."""


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and CPU, in Go's names. ``str()`` gives ``linux/arm64/v8``."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:  # Any: the JSON edge
        out: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            out["os.version"] = self.os_version
        if self.os_features:
            out["os.features"] = list(self.os_features)
        if self.variant:
            out["variant"] = self.variant
        return out

    @classmethod
    def from_json(cls, value: object) -> Platform:
        if not isinstance(value, dict):
            raise InvalidDescriptor("a platform is not a JSON object")
        texts = [value.get(key) or "" for key in ("os", "architecture", "variant", "os.version")]
        features = value.get("os.features") or []
        if not all(isinstance(text, str) for text in texts) or not isinstance(features, list):
            raise InvalidDescriptor("a platform has a field of the wrong type")
        os, architecture, variant, os_version = (str(text) for text in texts)
        return cls(os, architecture, variant, os_version, tuple(str(item) for item in features))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Where some content is, by digest: its media type and its size in bytes. ``data``: the content itself, where it is small and embedded."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    urls: tuple[str, ...] = ()
    artifact_type: str = ""
    data: bytes | None = None

    def to_json(self) -> dict[str, Any]:  # Any: the JSON edge
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            out["urls"] = list(self.urls)
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        if self.data is not None:
            out["data"] = binascii.b2a_base64(self.data, newline=False).decode("ascii")
        if self.platform is not None:
            out["platform"] = self.platform.to_json()
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        return out

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """Read one descriptor. Raises InvalidDescriptor or InvalidDigest; unknown fields are ignored as the specification asks."""
        if not isinstance(value, dict):
            raise InvalidDescriptor("a descriptor is not a JSON object")
        media_type, digest, size = value.get("mediaType") or "", value.get("digest"), value.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise InvalidDescriptor("a descriptor lacks its digest or has a field of the wrong type")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidDescriptor(f"the descriptor of {digest[:80]} has no valid size")
        annotations, urls = value.get("annotations") or {}, value.get("urls") or []
        if not isinstance(annotations, dict) or not isinstance(urls, list):
            raise InvalidDescriptor(f"the descriptor of {digest[:80]} has a field of the wrong type")
        platform, data = value.get("platform"), value.get("data")
        try:
            content = None if data is None else binascii.a2b_base64(data, strict_mode=True)
        except (TypeError, ValueError) as error:
            raise InvalidDescriptor(f"the embedded data of {digest[:80]} is not base64") from error
        return cls(
            media_type=media_type,
            digest=Digest.parse(digest),
            size=size,
            platform=None if platform is None else Platform.from_json(platform),
            annotations={str(k): str(v) for k, v in annotations.items()},
            urls=tuple(str(url) for url in urls),
            artifact_type=str(value.get("artifactType") or ""),
            data=content,
        )
