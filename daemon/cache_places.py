"""Places where caches lie as manifests: repositories of registries and OCI layouts. Each can be read and written.

Owns finding a cache's document behind a name, and putting one there: a manifest whose configuration is the document and whose layers are the
layers' blobs, so that registries keep these. What the document says is ``builder/cache_format.py``'s business; S3 is in ``cache_s3.py``.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, TypeAlias

from pybuild.builder.assemble import layer_media_type
from pybuild.builder.cache_format import CONFIG_TYPE, INLINE_KEY, CacheBundle, InvalidCache, read_bundle
from pybuild.errors import PybuildError
from pybuild.layers.blobs import BlobNotFound, BlobStore
from pybuild.layers.descriptor import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_MANIFEST,
    Descriptor,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig, Index, Manifest, json_object, media_type_of
from pybuild.layers.remote_layers import Origin
from pybuild.registry_client.stores import BlobOrigins, BlobSource
from pybuild.values import dataclass

from .registries import Registries

if TYPE_CHECKING:
    from pybuild.registry_client.client import Repository

DOCUMENT_BYTES: Final = 256 << 20
EMPTY_JSON: Final = b"{}"
_INDEX_DEPTH: Final = 3
_CHUNK_BYTES: Final = 1 << 20
_BUILDKIT_TYPE: Final = "application/vnd.buildkit.cacheconfig.v0"


class NoCacheThere(PybuildError):
    """Nothing has been put there yet."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What saving a cache did. ``unchanged``: the same cache was there already; ``bytes_sent``: of blobs."""

    descriptor: Descriptor
    unchanged: bool = False
    bytes_sent: int = 0


class CachePlace(Protocol):
    """A place that holds a cache under a name."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def origin(self) -> Origin | None:
        """See BlobPlace."""

    def load(self) -> CacheBundle:
        """What the cache holds. Raises NoCacheThere, PybuildError."""

    def manifest(self) -> bytes:
        """The manifest or index behind the name. Raises NoCacheThere, PybuildError."""

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob, or a manifest, verified. Raises PybuildError, OSError."""

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob. Raises PybuildError, OSError."""

    def save(
        self, document: bytes, layers: Sequence[Descriptor], *, blobs: BlobSource, oci: bool, config_type: str
    ) -> Saved:
        """Put a document and the blobs of its layers there. Raises PybuildError, OSError."""


Layouts: TypeAlias = Callable[[str, str], CachePlace]
"""Opens the cache in a directory, as its user wrote it, under a tag or a digest."""


def manifest_of(document: bytes, layers: Sequence[Descriptor], *, oci: bool, config_type: str = CONFIG_TYPE) -> bytes:
    """The manifest under which a document and its layers are kept. There is always a layer: some registries refuse manifests without."""
    blobs = layers or (Descriptor(OCI_EMPTY, Digest.of(EMPTY_JSON), len(EMPTY_JSON)),)
    return Manifest(
        config=Descriptor(config_type, Digest.of(document), len(document)),
        layers=tuple(
            Descriptor(layer_media_type(layer.media_type, oci=oci), layer.digest, layer.size) for layer in blobs
        ),
        media_type=OCI_MANIFEST if oci else DOCKER_MANIFEST,
    ).to_bytes()


def bundle_from(data: bytes, *, read: Callable[[Descriptor], bytes], depth: int = _INDEX_DEPTH) -> CacheBundle:
    """The cache behind a manifest or index: a cache's own, or images with a cache in their configuration. ``read``: the bytes of a
    small blob or manifest. Raises InvalidCache, PybuildError."""
    if media_type_of(data) in INDEX_TYPES:
        if not depth:
            raise InvalidCache("the indexes are nested too deep")
        entries = [
            entry
            for entry in Index.from_bytes(data).manifests
            if entry.platform is None or entry.platform.os != "unknown"  # attestations
        ]
        parts = [bundle_from(read(entry), read=read, depth=depth - 1) for entry in entries]
        steps = {step.record.key: step for part in parts for step in part.steps}
        layers = {layer.diff_id: layer for part in parts for layer in part.layers}
        return CacheBundle(tuple(steps.values()), tuple(layers.values()))
    manifest = Manifest.from_bytes(data)
    kind = manifest.config.media_type
    if kind == CONFIG_TYPE:
        return read_bundle(read(manifest.config))
    if kind == _BUILDKIT_TYPE:
        raise InvalidCache(
            "the cache was written by BuildKit, whose keys mean nothing here",
            hint="give pybuild a reference of its own to export to",
        )
    if kind not in (OCI_CONFIG, DOCKER_CONFIG):
        raise InvalidCache(f"it holds {kind[:100]!r}, which is no cache")
    config_data = read(manifest.config)
    inline = json_object(config_data, "the image configuration").get(INLINE_KEY)
    if inline is None:
        raise InvalidCache("the image has no cache in it", hint="build it with --cache-to type=inline")
    diff_ids = ImageConfig.from_bytes(config_data).diff_ids
    return read_bundle(inline, blobs=dict(zip(diff_ids, manifest.layers)))


class RegistryPlace:
    """A cache under a reference in a registry."""

    def __init__(
        self,
        registries: Registries,
        reference: str,
        *,
        cancel: threading.Event,
        siblings: Sequence[str] = (),
        origins: BlobOrigins | None = None,
    ) -> None:
        """``origins``: which repositories have which blobs; ``siblings``: references whose repositories may have the same blobs: of the same registry they are mounted, not sent."""
        self._siblings = siblings
        self._origins = origins
        self._registries = registries
        self._text = reference
        self._cancel = cancel
        self._known: Repository | None = None

    @property
    def name(self) -> str:
        return self._text

    @property
    def origin(self) -> Origin:
        """See BlobPlace."""
        reference = self._repository.reference
        return Origin(reference.host, reference.repository)

    @property
    def _repository(self) -> Repository:
        if self._known is None:
            from pybuild.layers.references import Reference

            self._known = self._registries.client.repository(Reference.parse(self._text).with_default_tag())
        return self._known

    def manifest(self) -> bytes:
        """The manifest or index that the reference names. Raises NoCacheThere, RegistryError."""
        from pybuild.registry_client.client import ImageNotFound

        repository = self._repository
        try:
            return repository.get_manifest(repository.reference.target).data
        except ImageNotFound as error:
            raise NoCacheThere(error.message) from error

    def load(self) -> CacheBundle:
        """See CachePlace."""
        return bundle_from(self.manifest(), read=self.read)

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob or manifest, verified. Raises PybuildError."""
        if descriptor.media_type in INDEX_TYPES or descriptor.media_type in (OCI_MANIFEST, DOCKER_MANIFEST):
            return self._repository.get_manifest(str(descriptor.digest), expected=descriptor).data
        return whole_blob(descriptor, self.chunks(descriptor))

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """See CachePlace."""
        from pybuild.registry_client.fetch import blob_chunks
        from pybuild.registry_client.transfers import Stop

        return blob_chunks(self._repository, blob, stop=Stop(self._cancel))

    def save(
        self,
        document: bytes,
        layers: Sequence[Descriptor],
        *,
        blobs: BlobSource,
        oci: bool = True,
        config_type: str = CONFIG_TYPE,
    ) -> Saved:
        """See CachePlace."""
        from pybuild.registry_client.push import push

        data = manifest_of(document, layers, oci=oci, config_type=config_type)
        descriptor = Descriptor(OCI_MANIFEST if oci else DOCKER_MANIFEST, Digest.of(data), len(data))
        report = push(
            self._registries.client,
            self._repository.reference,
            descriptor,
            WithDocuments(
                blobs,
                {Digest.of(document): document, descriptor.digest: data, Digest.of(EMPTY_JSON): EMPTY_JSON},
            ),
            mount_from=same_registry(self._text, self._siblings),
            origins=self._origins,
            cancel=self._cancel,
        )
        return Saved(descriptor, unchanged=report.unchanged, bytes_sent=report.bytes_sent)


class LayoutPlace:
    """A cache in an OCI layout's directory, under a tag or a digest."""

    def __init__(self, path: Path, *, reference: str) -> None:
        self._path = path
        self._reference = reference

    @property
    def name(self) -> str:
        return str(self._path)

    origin = None

    def manifest(self) -> bytes:
        """The manifest that the reference names. Raises NoCacheThere, InvalidLayout."""
        from pybuild.layers.layout import LayoutDirectory, LayoutImageNotFound

        if not (self._path / "index.json").exists():
            raise NoCacheThere(f"{self._path}: there is no cache yet")
        try:
            return self.read(LayoutDirectory(self._path).find(self._reference))
        except LayoutImageNotFound as error:
            raise NoCacheThere(error.message) from error

    def load(self) -> CacheBundle:
        """See CachePlace."""
        return bundle_from(self.manifest(), read=self.read)

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified. Raises PybuildError, OSError."""
        return whole_blob(descriptor, self.chunks(descriptor))

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """See CachePlace."""
        store = BlobStore(self._path, read_only=True)
        if not store.has(blob.digest):
            raise BlobNotFound(blob.digest)
        with store.open(blob.digest) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def save(
        self,
        document: bytes,
        layers: Sequence[Descriptor],
        *,
        blobs: BlobSource,
        oci: bool = True,
        config_type: str = CONFIG_TYPE,
    ) -> Saved:
        """See CachePlace. Blobs that nothing in the layout names any more are removed if it holds nothing but caches: otherwise it
        would grow with every build."""
        from pybuild.layers.layout import ExportedImage, write_layout_directory

        self._path.mkdir(parents=True, exist_ok=True)
        target = BlobStore(self._path)
        sent = 0
        for layer in layers:
            if not target.has(layer.digest):
                copy_blob(layer, blobs, target)
                sent += layer.size
        data = manifest_of(document, layers, oci=oci, config_type=config_type)
        descriptor = Descriptor(OCI_MANIFEST if oci else DOCKER_MANIFEST, target.write(data), len(data))
        target.write(document)
        if not layers:
            target.write(EMPTY_JSON)
        write_layout_directory([ExportedImage(descriptor, (self._reference,))], self._path, blobs=target)
        self._tidy(target, config_type)
        return Saved(descriptor, bytes_sent=sent)

    def _tidy(self, target: BlobStore, config_type: str) -> None:
        from pybuild.layers.layout import LayoutDirectory

        needed: set[Digest] = set()
        for entry in LayoutDirectory(self._path).index().manifests:
            if entry.media_type in INDEX_TYPES or not target.has(entry.digest):
                return
            manifest = Manifest.from_bytes(self.read(entry))
            if manifest.config.media_type != config_type:
                return
            needed |= {entry.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)}
        for digest in [digest for digest in target if digest not in needed]:
            target.delete(digest)
        for name in ("ingest",):
            try:
                (self._path / name).rmdir()
            except OSError:
                pass


def same_registry(reference: str, others: Sequence[str]) -> tuple[str, ...]:
    """The repositories of ``others`` that are in the registry of ``reference``."""
    from pybuild.layers.references import Reference

    host = Reference.parse(reference).host
    found = (Reference.parse(other) for other in others)
    return tuple(dict.fromkeys(other.repository for other in found if other.host == host))


def copy_blob(blob: Descriptor, source: BlobSource, target: BlobStore) -> None:
    """Copy one blob between stores, verified. Raises PybuildError, OSError."""
    with source.open(blob.digest) as file, target.ingest(expected=blob.digest, expected_size=blob.size) as ingest:
        if not ingest.exists:
            while chunk := file.read(_CHUNK_BYTES):
                ingest.write(chunk)
            ingest.commit()


def whole_blob(descriptor: Descriptor, chunks: Iterator[bytes]) -> bytes:
    """A small blob, verified. Raises InvalidCache, and what ``chunks`` does."""
    if descriptor.size > DOCUMENT_BYTES:
        raise InvalidCache(f"{descriptor.digest} has {descriptor.size} bytes, which is too large for a document")
    data = b"".join(chunks)
    if Digest.of(data, descriptor.digest.algorithm) != descriptor.digest:
        raise InvalidCache(f"{descriptor.digest} has other content than its digest says")
    return data


class WithDocuments:
    """A BlobSource with some small documents in memory before it: what is only sent needn't be stored."""

    def __init__(self, blobs: BlobSource, documents: Mapping[Digest, bytes]) -> None:
        self._blobs = blobs
        self._documents = documents

    def has(self, digest: Digest) -> bool:
        return digest in self._documents or self._blobs.has(digest)

    def size(self, digest: Digest) -> int:
        found = self._documents.get(digest)
        return self._blobs.size(digest) if found is None else len(found)

    def open(self, digest: Digest) -> BinaryIO:
        found = self._documents.get(digest)
        return self._blobs.open(digest) if found is None else io.BytesIO(found)
