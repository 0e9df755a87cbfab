"""OCI image layouts (image specification, ``image-layout.md``): as a directory and as a tar.

Owns writing both from a blob store, and finding images in a directory. Never chooses compressions or changes manifests: it writes what is
asked for and all that this names. Loading an archive is ``archive_load.py``'s.

    oci-layout                       {"imageLayoutVersion":"1.0.0"}
    index.json                       one entry for each name of an image
    blobs/<algorithm>/<hex>

A tar has its entries sorted by name, fixed owners, modes and times: the same content gives the same bytes. It is written
as a stream, without temporary files; where it goes to a file or a pipe, the kernel copies the blobs. Their sizes are compared with the
descriptors' before the first byte is written.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass, field, replace

from .blobs import BlobCorrupt, BlobNotFound, BlobStore
from .descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from .digest import CHUNK_BYTES, Digest, InvalidDigest
from .entries import Kind, LayerEntry
from .image import Index, InvalidImage, Manifest, json_bytes, json_object, media_type_of
from .images import MANIFEST_LIMIT_BYTES
from .locks import lock_file
from .tar_write import HeaderWriter

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
LAYOUT_VERSION: Final = "1.0.0"
LAYOUT_BYTES: Final = json_bytes({"imageLayoutVersion": LAYOUT_VERSION})
IMAGE_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"
_DEPTH: Final = 4
_BLOCK: Final = 512


class InvalidLayout(PybuildError):
    """A directory is not an OCI image layout, or a broken one."""

    def __init__(self, path: Path, *, reason: str) -> None:
        super().__init__(f"{os.fspath(path)!r} is not a valid OCI image layout: {reason}")
        self.path = path
        self.reason = reason


class LayoutImageNotFound(PybuildError):
    """A layout does not hold the image that was asked for."""

    def __init__(self, path: Path, *, reference: str, known: Sequence[str]) -> None:
        what = f"image {reference!r} is not in" if reference else "an image must be named of those in"
        hint = f"it holds {', '.join(known[:10])}" if known else "none of its images has a name"
        super().__init__(f"{what} the OCI image layout {os.fspath(path)!r}", hint=hint)
        self.path = path
        self.reference = reference


class ExportFailed(PybuildError):
    """An archive or a layout can't be written where it should go."""

    def __init__(self, error: OSError, *, what: str) -> None:
        super().__init__(f"can't write {what}: {os.strerror(error.errno or 0)}")
        self.errno = error.errno


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """An image to be written: its manifest or index, and its canonical names (``docker.io/library/x:1``); a name without a repository is a
    tag only. The descriptor's annotations go into ``index.json``."""

    descriptor: Descriptor
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """What an image needs: every blob, each once, manifests before what they name; ``manifests`` of images among them."""

    blobs: tuple[Descriptor, ...]
    manifests: tuple[tuple[Descriptor, Manifest], ...] = field(default=())


def content_of(descriptor: Descriptor, *, blobs: BlobStore, skip_missing: bool = False) -> Content:
    """All that a manifest or index names, itself included.

    ``skip_missing``: of an index, leave out what the store doesn't hold completely (foreign layers with URLs always may be missing).
    Raises BlobNotFound, BlobCorrupt (a size is wrong), InvalidImage.
    """
    found: dict[Digest, Descriptor] = {}
    manifests: list[tuple[Descriptor, Manifest]] = []
    _walk(descriptor, blobs, found, manifests, skip_missing=skip_missing, depth=_DEPTH)
    return Content(tuple(found.values()), tuple(manifests))


def _walk(
    parent: Descriptor,
    blobs: BlobStore,
    found: dict[Digest, Descriptor],
    manifests: list[tuple[Descriptor, Manifest]],
    *,
    skip_missing: bool,
    depth: int,
) -> None:
    if depth == 0:
        raise InvalidImage("the index nests too many indexes")
    if parent.digest in found:
        return
    _add(parent, blobs, found)
    data = blobs.read(parent.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
    media_type = parent.media_type or media_type_of(data)
    if media_type in MANIFEST_TYPES:
        manifest = Manifest.from_bytes(data)
        _add(manifest.config, blobs, found)
        for layer in manifest.layers:
            if not layer.urls or blobs.has(layer.digest):
                _add(layer, blobs, found)
        manifests.append((parent, manifest))
        return
    if media_type not in INDEX_TYPES:
        raise InvalidImage(f"{parent.digest} is neither a manifest nor an index but {media_type!r}")
    for child in Index.from_bytes(data).manifests:
        # A child enters with all that it names, or not at all.
        more, images = dict(found), list(manifests)
        try:
            if child.media_type in INDEX_TYPES or child.media_type in MANIFEST_TYPES:
                _walk(child, blobs, more, images, skip_missing=skip_missing, depth=depth - 1)
            else:
                _add(child, blobs, more)
        except BlobNotFound:
            if not skip_missing:
                raise
            continue
        found.update(more)
        manifests[:] = images


def _add(descriptor: Descriptor, blobs: BlobStore, found: dict[Digest, Descriptor]) -> None:
    size = blobs.size(descriptor.digest)
    if size != descriptor.size:
        raise BlobCorrupt(descriptor.digest, what=f"{size} bytes instead of {descriptor.size}")
    found.setdefault(descriptor.digest, descriptor)


# --- names ------------------------------------------------------------------------------------------------------------


def reference_tag(name: str) -> str:
    """What ``org.opencontainers.image.ref.name`` says of an image name: the tag, or the whole name if it has none."""
    plain, at, digest = name.partition("@")
    tail = plain.rpartition("/")[2]
    _, colon, tag = tail.partition(":")
    if not colon or not tag:
        return name
    return tag + at + digest


def index_entries(image: ExportedImage) -> tuple[Descriptor, ...]:
    """The entries of ``index.json`` for an image: one for each name, as BuildKit and containerd write them."""
    if not image.names:
        return (image.descriptor,)
    entries = []
    for name in image.names:
        annotations = dict(image.descriptor.annotations)
        if "/" in name:
            annotations[IMAGE_NAME] = name
        annotations[REF_NAME] = reference_tag(name)
        entries.append(replace(image.descriptor, annotations=annotations))
    return tuple(entries)


def names_of(entry: Descriptor) -> tuple[str, str]:
    """(image name, tag) that an entry of an index has; either may be empty."""
    name, ref = entry.annotations.get(IMAGE_NAME, ""), entry.annotations.get(REF_NAME, "")
    if not name and ("/" in ref or ":" in ref):
        return ref, reference_tag(ref)  # podman and skopeo put a whole name there
    return name, ref


def _same_name(one: Descriptor, other: Descriptor) -> bool:
    if IMAGE_NAME not in other.annotations and REF_NAME not in other.annotations:
        return one == other
    return all(one.annotations.get(key) == other.annotations.get(key) for key in (IMAGE_NAME, REF_NAME))


def merged_index(index: Index, entries: Sequence[Descriptor]) -> Index:
    """The index with ``entries`` added; one with the same name is replaced, one without a name is there once."""
    kept = [old for old in index.manifests if not any(_same_name(old, new) for new in entries)]
    return replace(index, manifests=(*kept, *entries))


# --- writing a tar ----------------------------------------------------------------------------------------------------


class TarStream:
    """Writes a tar of given files with fixed metadata to a stream, which the caller closes."""

    def __init__(self, stream: BinaryIO, *, on_progress: Callable[[int], None] | None = None) -> None:
        """``on_progress``: called with the number of bytes written since the last call."""
        self._stream = stream
        self._descriptor = _plain_descriptor(stream)
        self._headers = HeaderWriter()
        self._on_progress = on_progress

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._write(self._headers.header(LayerEntry(name, Kind.DIRECTORY, mode=0o755)))

    def file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a small file."""
        header = self._headers.header(LayerEntry(name, Kind.FILE, mode=mode, size=len(data)))
        self._write(header + data + bytes(-len(data) % _BLOCK))

    def blob(self, name: str, path: Path, *, size: int) -> None:
        """Add the file at ``path``, which has ``size`` bytes."""
        with open(path, "rb", buffering=0) as source:
            self._write(self._headers.header(LayerEntry(name, Kind.FILE, mode=0o444, size=size)))
            if self._descriptor is None:
                self._pump(source, size)
            else:
                self._stream.flush()
                copy_bytes(source.fileno(), self._descriptor, size, on_progress=self._on_progress)
        self._write(bytes(-size % _BLOCK))

    def _pump(self, source: io.FileIO, size: int) -> None:
        while size:
            chunk = source.read(min(size, CHUNK_BYTES))
            if not chunk:
                raise OSError(errno.EIO, "the file is shorter than it was")
            self._write(chunk)
            size -= len(chunk)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        if self._on_progress is not None and data:
            self._on_progress(len(data))

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(bytes(2 * _BLOCK))
        self._stream.flush()


def _plain_descriptor(stream: BinaryIO) -> int | None:
    """The file descriptor behind a stream whose bytes reach it unchanged; a GzipFile has a ``fileno`` as well."""
    raw = stream.raw if isinstance(stream, io.BufferedWriter) else stream
    return raw.fileno() if isinstance(raw, io.FileIO) else None


def copy_bytes(source: int, target: int, count: int, *, on_progress: Callable[[int], None] | None = None) -> None:
    """Copy ``count`` bytes between file descriptors from their current positions, by the kernel where it can."""
    step = 8 * CHUNK_BYTES if on_progress is not None else 1 << 30
    ways: list[Callable[[int], int]] = [
        lambda size: os.copy_file_range(source, target, size),
        lambda size: os.sendfile(target, source, None, size),
        lambda size: _read_write(source, target, size),
    ]
    while count:
        try:
            done = ways[0](min(count, step))
        except OSError as error:
            # Across file systems, to a pipe, to a file opened for appending: the next way can.
            if len(ways) == 1 or error.errno not in (
                errno.EXDEV, errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EPERM,
            ):  # fmt: skip
                raise
            ways.pop(0)
            continue
        if done == 0:
            if len(ways) > 1:
                ways.pop(0)
                continue
            raise OSError(errno.EIO, "the file is shorter than it was")
        count -= done
        if on_progress is not None:
            on_progress(done)


def _read_write(source: int, target: int, size: int) -> int:
    data = memoryview(os.read(source, min(size, CHUNK_BYTES)))
    done = len(data)
    while data:
        data = data[os.write(target, data) :]
    return done


def blob_name(digest: Digest) -> str:
    """The blob's path in a layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def write_layout_tar(
    images: Sequence[ExportedImage],
    stream: BinaryIO,
    *,
    blobs: BlobStore,
    skip_missing: bool = False,
    more_files: Mapping[str, bytes] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write images as one OCI archive to ``stream``, which the caller closes.

    ``skip_missing``: as in ``content_of``; ``more_files``: further top-level files. Raises as ``content_of`` before anything is written,
    and ExportFailed.
    """
    contents = [content_of(image.descriptor, blobs=blobs, skip_missing=skip_missing) for image in images]
    sizes = {blob.digest: blob.size for content in contents for blob in content.blobs}
    entries = tuple(entry for image in images for entry in index_entries(image))
    files = {INDEX_FILE: Index(entries).to_bytes(), LAYOUT_FILE: LAYOUT_BYTES, **(more_files or {})}
    try:
        tar = TarStream(stream, on_progress=on_progress)
        tar.directory("blobs")
        for algorithm in sorted({digest.algorithm for digest in sizes}):
            tar.directory(f"blobs/{algorithm}")
            for digest in sorted(digest for digest in sizes if digest.algorithm == algorithm):
                tar.blob(blob_name(digest), blobs.path(digest), size=sizes[digest])
        for name in sorted(files):
            tar.file(name, files[name], mode=0o444 if name == LAYOUT_FILE else 0o644)
        tar.finish()
    except OSError as error:
        raise ExportFailed(error, what="the archive") from error


# --- directories ------------------------------------------------------------------------------------------------------


def write_layout_directory(
    images: Sequence[ExportedImage],
    path: Path,
    *,
    blobs: BlobStore,
    skip_missing: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write images into the layout at ``path``, made if it is missing; what is there already stays. An image with the same name is
    replaced in the index. Raises as ``content_of`` before anything is written, InvalidLayout, ExportFailed."""
    contents = [content_of(image.descriptor, blobs=blobs, skip_missing=skip_missing) for image in images]
    entries = [entry for image in images for entry in index_entries(image)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for content in contents:
            for blob in content.blobs:
                _copy_blob(blobs.path(blob.digest), path / blob_name(blob.digest), blob.size, on_progress)
        with lock_file(path / f"{INDEX_FILE}.lock", transient=True):
            index = LayoutDirectory(path).index() if (path / INDEX_FILE).exists() else Index(())
            _replace_file(path / LAYOUT_FILE, LAYOUT_BYTES)
            _replace_file(path / INDEX_FILE, merged_index(index, entries).to_bytes())
    except OSError as error:
        raise ExportFailed(error, what=repr(os.fspath(path))) from error


def _copy_blob(source: Path, target: Path, size: int, on_progress: Callable[[int], None] | None) -> None:
    with suppress(FileNotFoundError):
        if target.stat().st_size == size:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(source, "rb", buffering=0) as reader, open(draft, "wb", buffering=0) as writer:
            copy_bytes(reader.fileno(), writer.fileno(), size, on_progress=on_progress)
        draft.rename(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _replace_file(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class LayoutDirectory:
    """An OCI image layout in a directory, read only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = BlobStore(path, read_only=True)

    def index(self) -> Index:
        """``index.json``. Raises InvalidLayout."""
        data = self._read(LAYOUT_FILE)
        try:
            version = json_object(data, LAYOUT_FILE).get("imageLayoutVersion")
            if version != LAYOUT_VERSION:
                raise InvalidLayout(self.path, reason=f"it has version {version!r}, not {LAYOUT_VERSION!r}")
            return Index.from_bytes(self._read(INDEX_FILE))
        except InvalidLayout:
            raise
        except PybuildError as error:
            raise InvalidLayout(self.path, reason=error.message) from error

    def _read(self, name: str) -> bytes:
        try:
            with open(self.path / name, "rb") as file:
                data = file.read(MANIFEST_LIMIT_BYTES + 1)
        except OSError as error:
            raise InvalidLayout(self.path, reason=f"{name}: {os.strerror(error.errno or 0)}") from error
        if len(data) > MANIFEST_LIMIT_BYTES:
            raise InvalidLayout(self.path, reason=f"{name} is too large")
        return data

    def find(self, reference: str = "") -> Descriptor:
        """The entry that ``reference`` names: a digest (of an entry, or of any manifest here), an image name, or a tag; without one the
        only entry there is. Raises InvalidLayout, LayoutImageNotFound."""
        index = self.index()
        if not reference:
            distinct = {entry.digest: entry for entry in index.manifests}
            if len(distinct) == 1:
                return next(iter(distinct.values()))
            raise LayoutImageNotFound(self.path, reference="", known=_known(index.manifests))
        with suppress(InvalidDigest):
            digest = Digest.parse(reference.rpartition("@")[2])
            for entry in index.manifests:
                if entry.digest == digest:
                    return entry
            return self._unlisted(digest, reference, index)
        for position in (0, 1):
            for entry in index.manifests:
                if names_of(entry)[position] == reference:
                    return entry
        raise LayoutImageNotFound(self.path, reference=reference, known=_known(index.manifests))

    def _unlisted(self, digest: Digest, reference: str, index: Index) -> Descriptor:
        try:
            data = self.blobs.read(digest, limit_bytes=MANIFEST_LIMIT_BYTES)
            return Descriptor(media_type_of(data), digest, len(data))
        except (BlobNotFound, InvalidImage) as error:
            raise LayoutImageNotFound(self.path, reference=reference, known=_known(index.manifests)) from error


def _known(entries: Iterable[Descriptor]) -> list[str]:
    return sorted({name or ref for name, ref in map(names_of, entries)} - {""})
