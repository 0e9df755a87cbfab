"""``save``, ``load`` and ``import`` on one engine: archives to and from the store. Formats are ``layers/``' business."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pybuild.builder.assemble import rfc3339
from pybuild.builder.changes_config import apply_changes
from pybuild.builder.platforms import parse_platform
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.archive_load import load_archive
from pybuild.layers.compression import ReadAhead, decompressed
from pybuild.layers.descriptor import INDEX_TYPES, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.docker_archive import write_docker_archive
from pybuild.layers.entries import Layer
from pybuild.layers.image import History, ImageConfig, Index, Manifest
from pybuild.layers.images import ImageNotFound, StoredImage
from pybuild.layers.layout import ExportedImage, write_layout_tar
from pybuild.layers.references import InvalidReference, Reference
from pybuild.layers.store import Store
from pybuild.layers.tar_read import TarReader
from pybuild.layers.whole_file import whole_file
from pybuild.values import replace

from .distribution import Compressing
from .engine import LoadedImage, canonical_tag
from .machine import host_platform

if TYPE_CHECKING:
    import threading

    from .engine import Engine


def save_images(
    engine: Engine,
    names: Sequence[str],
    *,
    dest: str | None,
    stdout: BinaryIO,
    docker: bool,
    platforms: Sequence[Platform] = (),
    cancel: threading.Event | None = None,
) -> None:
    """Write images, of indexes only ``platforms`` if there are any. With a tag an image keeps that one name, with a repository all tags
    of it are written, with an ID it keeps none, as docker does."""
    images: dict[Digest, ExportedImage] = {}
    with engine.store.lease():
        compressing = Compressing(engine, compression="gzip", level=None, force=False, cancel=cancel)
        lazy = engine.lazy_layers(cancel=cancel)
        for name in _with_all_tags(engine, names):
            image = engine.find_image(name)
            kept = [known for known in image.names if known == _canonical(name)]
            narrowed = narrow(engine, image, platforms, name=name)
            descriptor = narrowed if docker else compressing.ready(narrowed)
            before = images.get(descriptor.digest)
            known_names = (*(before.names if before else ()), *kept)
            lazy.need_image(descriptor)
            images[descriptor.digest] = ExportedImage(descriptor, tuple(dict.fromkeys(known_names)))

        def write(out: BinaryIO) -> None:
            every = list(images.values())
            if docker:
                here = host_platform()
                write_docker_archive(every, out, blobs=engine.store.blobs, platform=here, skip_missing=True)
            else:
                write_layout_tar(every, out, blobs=engine.store.blobs, skip_missing=True)

        if dest is None:
            write(stdout)
            stdout.flush()
            return
        try:
            with whole_file(dest) as out:
                write(out)
        except OSError as error:
            raise PybuildError(f"can't write {dest}: {error.strerror}") from error


def narrow(engine: Engine, image: StoredImage, platforms: Sequence[Platform], *, name: str) -> Descriptor:
    """The manifest for the one platform, or an index of those for several; the image itself without any. Raises ImageNotFound."""
    if not platforms or image.descriptor.media_type not in INDEX_TYPES:
        if platforms and not any(image.choose(platform) for platform in platforms):
            raise ImageNotFound(f"{name} for {', '.join(map(str, platforms))}")
        return image.descriptor
    chosen: list[Descriptor] = []
    for platform in platforms:
        part = image.choose(platform)
        if part is None:
            raise ImageNotFound(f"{name} for {platform}")
        chosen.append(replace(part.manifest, platform=part.platform))
    if len(chosen) == 1:
        return replace(chosen[0], platform=None)
    body = Index(tuple(chosen), image.descriptor.media_type).to_bytes()
    return Descriptor(image.descriptor.media_type, engine.store.blobs.write(body), len(body))


def _with_all_tags(engine: Engine, names: Sequence[str]) -> list[str]:
    """``names`` with each bare repository replaced by its local tags, where it has some."""
    out: list[str] = []
    known = engine.store.images.names()
    for name in names:
        try:
            reference = Reference.parse(name)
        except InvalidReference:
            out.append(name)
            continue
        tags = []
        if reference.tag is None and reference.digest is None:
            tags = [other for other in known if "@" not in other and Reference.parse(other).name == reference.name]
        out += tags or [name]
    return out


def _canonical(name: str) -> str | None:
    try:
        return Reference.parse(name).with_default_tag().canonical
    except InvalidReference:
        return None


def load_images(engine: Engine, source: BinaryIO, *, platforms: Sequence[Platform] = ()) -> list[LoadedImage]:
    """Read an archive, then name what was read, of indexes only ``platforms`` if there are any."""
    out: list[LoadedImage] = []
    images = engine.store.images
    with engine.store.lease():
        for image in load_archive(source, store=engine.store):
            names = [canonical_tag(name) for name in image.names]
            descriptor = image.descriptor
            if platforms:
                whole = images.put(None, descriptor)
                descriptor = narrow(engine, whole, platforms, name=names[0] if names else str(whole.id()))
                if descriptor.digest != whole.descriptor.digest and not whole.names:
                    images.discard(whole)
            for name in names or (None,):
                stored = images.put(name, descriptor)
                shown = None if name is None else Reference.parse(name).familiar
                out.append(LoadedImage(shown, stored.id(host_platform())))
    return out


def import_image(
    engine: Engine,
    source: str,
    *,
    stdin: BinaryIO,
    name: str | None,
    changes: Sequence[str],
    message: str,
    platform: str | None,
    labels: Mapping[str, str],
) -> Digest:
    """Make a one-layer image of a tar; the tar becomes the layer as it is."""
    target = None if name is None else canonical_tag(name)
    chosen = host_platform() if platform is None else parse_platform(platform, default=host_platform())
    store = engine.store
    with store.lease():
        with _opened(engine, source, stdin) as stream:
            layer = _import_layer(engine.store, stream)
        now = rfc3339(store.clock())
        comment = message or f"Imported from {source}"
        config = ImageConfig(
            platform=chosen,
            created=now,
            labels=dict(labels),
            diff_ids=(layer.diff_id,),
            history=(History(created=now, comment=comment),),
        )
        config = apply_changes(config, changes)
        data = config.to_bytes()
        manifest = Manifest(
            Descriptor(OCI_CONFIG, store.blobs.write(data), len(data)),
            (Descriptor(OCI_LAYER, layer.diff_id, layer.size),),
        ).to_bytes()
        stored = store.images.put(target, Descriptor(OCI_MANIFEST, store.blobs.write(manifest), len(manifest)))
        return stored.id()


def _import_layer(store: Store, stream: BinaryIO) -> Layer:
    """Take a tar as a layer, byte for byte, after every one of its headers was read. Raises InvalidTar, CorruptStream."""
    with store.blobs.ingest() as ingest, ReadAhead(decompressed(stream), on_chunk=ingest.write) as plain:
        entries = sum(1 for _ in TarReader(plain))
        while plain.read(1 << 20):
            pass
        digest, size = ingest.commit()
    layer = Layer(digest, size, empty=entries == 0)
    store.layers.register(layer, description="imported")
    return layer


@contextlib.contextmanager
def _opened(engine: Engine, source: str, stdin: BinaryIO) -> Iterator[BinaryIO]:
    if source == "-":
        yield stdin
        return
    path = source
    if source.startswith(("http://", "https://")):
        from .remotes import RemoteFetcher

        remotes = RemoteFetcher(
            engine.store.root / "remotes", engine.registries.client.transport, wall_clock=engine.store.clock
        )
        path = remotes.http(source, checksum=None).path
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below; the error message needs to be of the open alone
    except OSError as error:
        raise UsageError(f"can't read {source!r}: {error.strerror}") from error
    with file:
        yield file
