"""An image in a registry seen as a place with blobs: what a copy from one registry to another reads.

Owns knowing which blobs belong to the image. Never keeps a layer: its bytes are streamed when they are opened.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

from pybuild.layers.blobs import BlobNotFound
from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.image import Manifest

from .client import ManifestContent, Repository
from .fetch import BlobReader
from .stores import BlobSource
from .transfers import Stop

_BUFFER_BYTES = 1 << 18


class RegistrySource:
    """The BlobSource of images in one repository, given their manifests and indexes."""

    def __init__(
        self, repository: Repository, contents: Sequence[ManifestContent], *, stop: Stop | None = None
    ) -> None:
        self._repository = repository
        self._stop = stop
        self._documents = {content.descriptor.digest: content.data for content in contents}
        self._blobs: dict[Digest, Descriptor] = {}
        for content in contents:
            if content.is_index:
                continue
            manifest = Manifest.from_bytes(content.data)
            for blob in (manifest.config, *manifest.layers):
                # Foreign layers aren't the registry's to give, unless it has them after all.
                if not blob.urls or repository.head_blob(blob.digest) is not None:
                    self._blobs[blob.digest] = blob

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """The layers and configurations that the repository has."""
        return tuple(self._blobs)

    def has(self, digest: Digest) -> bool:
        return digest in self._documents or digest in self._blobs

    def size(self, digest: Digest) -> int:
        if digest in self._documents:
            return len(self._documents[digest])
        if digest in self._blobs:
            return self._blobs[digest].size
        raise BlobNotFound(digest)

    def open(self, digest: Digest) -> BinaryIO:
        if digest in self._documents:
            return io.BytesIO(self._documents[digest])
        if digest not in self._blobs:
            raise BlobNotFound(digest)
        return io.BufferedReader(BlobReader(self._repository, self._blobs[digest], stop=self._stop), _BUFFER_BYTES)


class LayeredSource:
    """Several BlobSources, the first that has a blob giving it; ``made`` are blobs in memory that come before them all."""

    def __init__(self, sources: Sequence[BlobSource], *, made: Sequence[bytes] = ()) -> None:
        self._sources = tuple(sources)
        self._made = {Digest.of(data): data for data in made}

    def has(self, digest: Digest) -> bool:
        return digest in self._made or any(source.has(digest) for source in self._sources)

    def size(self, digest: Digest) -> int:
        return len(self._made[digest]) if digest in self._made else self._holder(digest).size(digest)

    def open(self, digest: Digest) -> BinaryIO:
        return io.BytesIO(self._made[digest]) if digest in self._made else self._holder(digest).open(digest)

    def _holder(self, digest: Digest) -> BlobSource:
        for source in self._sources:
            if source.has(digest):
                return source
        raise BlobNotFound(digest)
