"""Loads images from archives and layouts into a store: all of it or nothing.

Owns staging and verification. Everything is first written to a directory of its own below ``active/``, where it vanishes with a failure
or a kill; only what an image needs, and is right, is then moved into the store. Never gives names: those are returned as they were found.

Verified are: the digest of every blob and of everything named by its digest, every size, and that each layer decompresses to
the diff ID that the configuration says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from pybuild.values import dataclass, replace

from .blobs import BlobNotFound, BlobStore
from .compression import Compression, decompressed
from .descriptor import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
)
from .digest import CHUNK_BYTES, Digest, InvalidDigest
from .docker_archive import MANIFEST_FILE, DockerImage, InvalidArchive, read_manifest_file
from .entries import Kind, Layer
from .image import ImageConfig, Index, Manifest, json_object, media_type_of
from .images import MANIFEST_LIMIT_BYTES
from .layer_index import LayerBlob
from .layout import INDEX_FILE, LAYOUT_FILE, LAYOUT_VERSION, names_of
from .store import Store
from .tar_read import TarReader

_MEMBERS: Final = 100_000
_LINKS: Final = 8
_DEPTH: Final = 4
_BLOB_NAME: Final = re.compile(r"blobs/(sha256|sha384|sha512)/([0-9a-f]+)\Z")
_CONFIG_NAME: Final = re.compile(r"([0-9a-f]{64})\.json\Z")
EMPTY_TAR: Final = Digest.of(bytes(1024))
"""The diff ID of a layer without an entry."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image that is in the store now. ``names``: as the archive has them, not normalised; ``tags``: names without a repository."""

    descriptor: Descriptor
    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def load_archive(stream: BinaryIO, *, store: Store, threads: int = 2) -> tuple[LoadedImage, ...]:
    """Load every image of a docker archive or an OCI archive, compressed or not, and read ``stream`` to its end; the caller closes it and
    holds a lease until the images have names.

    ``threads``: how many layers are verified at once. Raises InvalidArchive, InvalidTar, CorruptStream, BlobCorrupt, InvalidImage,
    StoreFull and other PybuildErrors; the store is then as it was.
    """
    with store.active.make() as directory:
        staging = _Staging(store, directory, threads=threads)
        members = _Members(staging)
        members.read(decompressed(stream))
        found = _oci_images(members, staging) if members.has(LAYOUT_FILE) else _docker_images(members, staging)
        staging.commit()
    return found


class _Staging:
    """Verified content on its way into the store, and what of it images need."""

    def __init__(self, store: Store, directory: Path, *, threads: int) -> None:
        self._store = store
        self._threads = threads
        self.blobs = BlobStore(directory)
        self._needed: dict[Digest, None] = {}
        self._layers: dict[Digest, tuple[Descriptor, Digest]] = {}
        self._compressions: dict[Digest, str] = {}

    def add(self, chunks: Iterable[bytes], *, expected: Digest | None, size: int) -> Digest:
        """Stage content. Raises BlobCorrupt, StoreFull."""
        with self.blobs.ingest(expected=expected, expected_size=size) as ingest:
            for chunk in chunks:
                ingest.write(chunk)
            return ingest.commit()[0]

    def home(self, digest: Digest) -> BlobStore:
        """Where the content is: staged, or in the store already. Raises BlobNotFound."""
        if not self.blobs.has(digest):
            if self._store.blobs.touch(digest):
                return self._store.blobs
            raise BlobNotFound(digest)
        return self.blobs

    def has(self, digest: Digest) -> bool:
        """True if the content is staged, or in the store already."""
        return self.blobs.has(digest) or self._store.blobs.has(digest)

    def read(self, digest: Digest) -> bytes:
        """A small document. Raises BlobNotFound, BlobTooLarge, BlobCorrupt."""
        return self.home(digest).read(digest, limit_bytes=MANIFEST_LIMIT_BYTES)

    def _take(self, descriptor: Descriptor) -> None:
        size = self.home(descriptor.digest).size(descriptor.digest)
        if size != descriptor.size:
            raise InvalidArchive(
                f"blob {descriptor.digest} has {size} bytes, not the {descriptor.size} of its descriptor"
            )
        self._needed[descriptor.digest] = None

    def need(self, descriptor: Descriptor, *, depth: int = _DEPTH) -> Descriptor:
        """Mark a manifest or index and all that it names as needed. Returns the descriptor with its media type.
        Raises BlobNotFound, InvalidArchive, InvalidImage."""
        if depth == 0:
            raise InvalidArchive("it nests too many indexes")
        self._take(descriptor)
        data = self.read(descriptor.digest)
        media_type = media_type_of(data, descriptor.media_type)
        if media_type in INDEX_TYPES:
            children = Index.from_bytes(data).manifests
            present = [child for child in children if self.has(child.digest)]
            if children and not present:
                raise InvalidArchive(f"it holds none of the manifests that the index {descriptor.digest} lists")
            for child in present:
                if child.media_type and child.media_type not in INDEX_TYPES | MANIFEST_TYPES:
                    self._take(child)
                else:
                    self.need(child, depth=depth - 1)
        elif media_type in MANIFEST_TYPES:
            self._need_manifest(Manifest.from_bytes(data))
        else:
            raise InvalidArchive(f"{descriptor.digest} is neither a manifest nor an index but {media_type!r}")
        return replace(descriptor, media_type=media_type)

    def _need_manifest(self, manifest: Manifest) -> None:
        self._take(manifest.config)
        for layer in manifest.layers:
            self._take(layer)
        if not manifest.config.media_type.endswith(("image.config.v1+json", "container.image.v1+json")):
            return
        config = ImageConfig.from_bytes(self.read(manifest.config.digest))
        if config.platform.os == "unknown":
            return  # an attestation: its diff IDs are those of documents
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidArchive(
                f"a manifest lists {len(manifest.layers)} layers, its configuration {len(config.diff_ids)}"
            )
        for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=True):
            known = self._layers.setdefault(layer.digest, (layer, diff_id))
            if known[1] != diff_id:
                raise InvalidArchive(f"layer {layer.digest} has two diff IDs")

    def compression_of(self, digest: Digest) -> str:
        """``uncompressed``, ``gzip``, ``zstd``, … by content."""
        found = self._compressions.get(digest)
        if found is None:
            with open(self.home(digest).path(digest), "rb", buffering=0) as file:
                found = decompressed(file).kind or "uncompressed"
            self._compressions[digest] = found
        return found

    def commit(self) -> None:
        """Verify the layers and move everything needed into the store. Raises InvalidArchive, CorruptStream, StoreFull."""
        layers = self._verified_layers()
        for digest in self._needed:
            if self.blobs.has(digest):
                self._store.blobs.adopt(self.blobs.path(digest), digest)
        with self._store.leases.shared(), self._store.database.transaction():
            for descriptor, layer in layers:
                blob = LayerBlob(
                    descriptor.digest, descriptor.size, descriptor.media_type, self.compression_of(descriptor.digest)
                )
                self._store.layers.register(layer, blob=blob)

    def _verified_layers(self) -> list[tuple[Descriptor, Layer]]:
        unknown: list[tuple[Descriptor, Digest]] = []
        for descriptor, diff_id in self._layers.values():
            if self._store.layers.diff_id_of(descriptor.digest) != diff_id or self._store.layers.get(diff_id) is None:
                unknown.append((descriptor, diff_id))
        if len(unknown) < 2 or self._threads < 2:
            return [self._verify(*pair) for pair in unknown]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(lambda pair: self._verify(*pair), unknown))

    def _verify(self, descriptor: Descriptor, diff_id: Digest) -> tuple[Descriptor, Layer]:
        kind = self.compression_of(descriptor.digest)
        if kind == "uncompressed":
            if descriptor.digest != diff_id:
                raise InvalidArchive(f"layer {descriptor.digest} is not what its configuration says, {diff_id}")
            return descriptor, Layer(diff_id, descriptor.size, diff_id == EMPTY_TAR)
        hasher = hashlib.new(diff_id.algorithm, usedforsecurity=False)
        size = 0
        with open(self.home(descriptor.digest).path(descriptor.digest), "rb", buffering=0) as file:
            content = decompressed(file)
            while chunk := content.next_chunk():
                hasher.update(chunk)
                size += len(chunk)
        if hasher.hexdigest() != diff_id.hex:
            raise InvalidArchive(
                f"layer {descriptor.digest} does not decompress to what its configuration says, {diff_id}"
            )
        return descriptor, Layer(diff_id, size, diff_id == EMPTY_TAR)


# --- reading an archive -----------------------------------------------------------------------------------------------


def member_name(text: str) -> str:
    """A path in an archive, clean. Raises InvalidArchive if it is absolute or leads out of the archive."""
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            if not parts:
                raise InvalidArchive(f"the path {text[:200]!r} leads out of it")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if text.startswith("/"):
        raise InvalidArchive(f"the path {text[:200]!r} is absolute")
    return "/".join(parts)


class _Members:
    """The files of an archive: each is staged, and known by its path from then on."""

    def __init__(self, staging: _Staging) -> None:
        self._staging = staging
        self._files: dict[str, tuple[Digest, int]] = {}
        self._links: dict[str, str] = {}

    def read(self, source: object) -> None:
        """Stage every file of the tar. Raises InvalidTar, InvalidArchive, BlobCorrupt, StoreFull, CorruptStream."""
        reader = TarReader(source)  # type: ignore[arg-type]  # DecompressedStream has what it asks for
        for count, entry in enumerate(reader):
            if count == _MEMBERS:
                raise InvalidArchive(f"it has more than {_MEMBERS} members")
            name = member_name(entry.name)
            self._files.pop(name, None)
            self._links.pop(name, None)
            match entry.kind:
                case Kind.FILE:
                    if entry.sparse is not None:
                        raise InvalidArchive(f"{name[:200]!r} is a sparse file")
                    self._stage(name, entry.size, reader)
                case Kind.SYMLINK:
                    # Old archives link a layer that several images share: "../<id>/layer.tar".
                    parent = name.rpartition("/")[0]
                    self._links[name] = member_name(f"{parent}/{entry.link}" if parent else entry.link)
                case Kind.HARDLINK:
                    self._links[name] = member_name(entry.link)
                case _:
                    pass
        reader.drain()

    def _stage(self, name: str, size: int, reader: TarReader) -> None:
        expected: Digest | None = None
        blob, config = _BLOB_NAME.match(name), _CONFIG_NAME.match(name)
        if blob is not None:
            try:
                expected = Digest.parse(f"{blob[1]}:{blob[2]}")
            except InvalidDigest as error:
                raise InvalidArchive(f"{name!r} is no blob's name") from error
        elif config is not None:
            expected = Digest("sha256", config[1])
        chunks = iter(lambda: reader.read(CHUNK_BYTES), b"")
        self._files[name] = (self._staging.add(chunks, expected=expected, size=size), size)

    def has(self, name: str) -> bool:
        return name in self._files

    def get(self, text: str) -> tuple[Digest, int]:
        """Digest and size of the file at a path. Raises InvalidArchive."""
        name = member_name(text)
        for _ in range(_LINKS):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                break
            name = self._links[name]
        raise InvalidArchive(f"it has no file {text[:200]!r}")

    def document(self, text: str) -> bytes:
        """The content of a small file. Raises InvalidArchive, BlobTooLarge."""
        return self._staging.read(self.get(text)[0])


def _oci_images(members: _Members, staging: _Staging) -> tuple[LoadedImage, ...]:
    version = json_object(members.document(LAYOUT_FILE), LAYOUT_FILE).get("imageLayoutVersion")
    if version != LAYOUT_VERSION:
        raise InvalidArchive(f"its layout has version {str(version)[:40]!r}, not {LAYOUT_VERSION!r}")
    index = Index.from_bytes(members.document(INDEX_FILE))
    images: dict[Digest, LoadedImage] = {}
    for entry in index.manifests:
        descriptor = staging.need(entry)
        known = images.get(entry.digest) or LoadedImage(replace(descriptor, annotations={}))
        name, tag = names_of(entry)
        names = (*known.names, name) if name and name not in known.names else known.names
        tags = (*known.tags, tag) if tag and not name and tag not in known.tags else known.tags
        images[entry.digest] = replace(known, names=names, tags=tags)
    if not images:
        raise InvalidArchive("it holds no image")
    if members.has(MANIFEST_FILE):
        _take_names(images, read_manifest_file(members.document(MANIFEST_FILE)), members, staging)
    return tuple(images.values())


def _take_names(
    images: dict[Digest, LoadedImage], elements: Sequence[DockerImage], members: _Members, staging: _Staging
) -> None:
    """An index that names nothing may stand beside a manifest.json that does (older versions of docker save)."""
    for digest, image in images.items():
        if image.names or image.descriptor.media_type not in MANIFEST_TYPES:
            continue
        config = Manifest.from_bytes(staging.read(digest)).config.digest
        for element in elements:
            if members.get(element.config)[0] == config:
                images[digest] = replace(image, names=tuple(dict.fromkeys((*images[digest].names, *element.names))))


def _docker_images(members: _Members, staging: _Staging) -> tuple[LoadedImage, ...]:
    if not members.has(MANIFEST_FILE):
        raise InvalidArchive(
            f"it has neither {MANIFEST_FILE} nor {LAYOUT_FILE}",
            hint="`pybuild import` makes an image of a root file system",
        )
    images: dict[Digest, LoadedImage] = {}
    for element in read_manifest_file(members.document(MANIFEST_FILE)):
        descriptor = _docker_manifest(element, members, staging)
        staging.need(descriptor)
        known = images.get(descriptor.digest, LoadedImage(descriptor))
        images[descriptor.digest] = replace(known, names=tuple(dict.fromkeys((*known.names, *element.names))))
    return tuple(images.values())


def _docker_manifest(element: DockerImage, members: _Members, staging: _Staging) -> Descriptor:
    """Write the manifest that a docker archive doesn't have."""
    config, config_size = members.get(element.config)
    diff_ids = ImageConfig.from_bytes(staging.read(config)).diff_ids
    if len(diff_ids) != len(element.layers):
        raise InvalidArchive(f"{MANIFEST_FILE} lists {len(element.layers)} layers, the configuration {len(diff_ids)}")
    files = [members.get(path) for path in element.layers]
    kinds = [staging.compression_of(digest) for digest, _ in files]
    strange = next((kind for kind in kinds if kind not in ("uncompressed", "gzip", "zstd")), None)
    if strange is not None:
        raise InvalidArchive(f"it has a layer compressed with {strange}")
    # Docker's own media types, which know no zstd.
    oci = "zstd" in kinds
    layers = tuple(
        Descriptor(_layer_type(kind, oci=oci), digest, size) for kind, (digest, size) in zip(kinds, files, strict=True)
    )
    manifest = Manifest(
        Descriptor(OCI_CONFIG if oci else DOCKER_CONFIG, config, config_size),
        layers,
        media_type=OCI_MANIFEST if oci else DOCKER_MANIFEST,
    )
    data = manifest.to_bytes()
    return Descriptor(manifest.media_type, staging.add((data,), expected=None, size=len(data)), len(data))


def _layer_type(kind: str, *, oci: bool) -> str:
    compression = Compression(kind)
    return compression.oci_media_type if oci else compression.docker_media_type
