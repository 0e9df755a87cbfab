"""One layer instead of many: the file system that an image's layers give together, as a single canonical layer.

Owns stacking layers by the image specification's rules (``layer.md``, "Applying Changesets") on tars, without unpacking and without any
privilege. Layers wait, uncompressed, in a directory that is removed afterwards; memory grows with the number of files, not with their size.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from pybuild.layers.blobs import BlobStore
from pybuild.layers.compression import Compression, compressor
from pybuild.layers.decompression import decompressed
from pybuild.layers.descriptor import (
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_LAYER_GZIP,
    Descriptor,
)
from pybuild.layers.digest import CHUNK_BYTES, Digest
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.image import History
from pybuild.layers.references import Reference
from pybuild.layers.tar_read import TarEntry, TarReader
from pybuild.layers.tar_write import OPAQUE_WHITEOUT, WHITEOUT_PREFIX, write_tar
from pybuild.values import replace

from .client import ContentMismatch, RegistryClient, Repository
from .compose import MadeImage, index_of
from .copy import contents
from .fetch import BlobReader
from .pull import PulledManifest, read_config
from .push import PushReport, push
from .sources import LayeredSource
from .transfers import OnTransfer, Stop, Transfer, TransferState, run_all, silent
from .transport import RegistryError

_LINKS: Final = 40
_GROUPS = itertools.count()


class CannotFlatten(RegistryError):
    """The reference holds no image, or layers that don't make a file system."""


def flatten(
    client: RegistryClient,
    image: Reference,
    target: Reference,
    *,
    scratch: str | None = None,
    on_progress: OnTransfer = silent,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Push ``image`` with a single layer per platform to ``target``. Configurations stay; their history becomes one entry.

    ``scratch``: the directory for the layers meanwhile. Raises CannotFlatten, ImageNotFound, ContentMismatch, RegistryError, Cancelled.
    """
    stop = Stop(cancel)
    repository = client.repository(image)
    found = contents(client, image)
    made: dict[Digest, MadeImage] = {}
    with tempfile.TemporaryDirectory(prefix="pybuild-flatten-", dir=scratch) as directory:
        store = BlobStore(Path(directory))
        for content in found:
            if content.is_index:
                continue
            one = read_config(repository, content)
            if one.is_image:
                made[content.descriptor.digest] = _flattened(
                    repository, one, store, directory=directory, on_progress=on_progress, stop=stop
                )
        if not made:
            raise CannotFlatten(f"{image.familiar} holds no image")
        descriptor, documents = index_of(found[0], made)
        return push(
            client,
            target,
            descriptor,
            LayeredSource([store], made=documents),
            on_progress=on_progress,
            cancel=cancel,
        )


def _flattened(
    repository: Repository,
    image: PulledManifest,
    store: BlobStore,
    *,
    directory: str,
    on_progress: OnTransfer,
    stop: Stop,
) -> MadeImage:
    assert image.config is not None
    layers, diff_ids = image.manifest.layers, image.config.diff_ids
    paths = [os.path.join(directory, f"{position}.tar") for position in range(len(layers))]
    transport = repository.client.transport
    run_all(
        [
            partial(_fetch, repository, layer, path, diff_id=diff_id, on_progress=on_progress, stop=stop)
            for layer, path, diff_id in zip(layers, paths, diff_ids, strict=True)
        ],
        parallel=transport.network.parallel,
        stop=stop,
        interrupt=transport.interrupt,
    )
    tree = MergedLayers(directory)
    for path in paths:
        tree.add(path)
    hasher = hashlib.sha256()
    with store.ingest() as ingest:
        with compressor(Compression.GZIP, ingest.write) as packed:

            def take(data: bytes | bytearray | memoryview) -> None:
                stop.check()
                hasher.update(data)
                packed.write(data)

            write_tar(tree.entries(), take)
        digest, size = ingest.commit()
    for path in paths:
        os.unlink(path)
    docker = image.manifest.media_type == DOCKER_MANIFEST
    config = image.config.with_(
        diff_ids=(Digest("sha256", hasher.hexdigest()),),
        history=(History(created=image.config.created, created_by="pybuild flatten"),),
    ).to_bytes()
    manifest = replace(
        image.manifest,
        config=Descriptor(image.manifest.config.media_type, Digest.of(config), len(config)),
        layers=(Descriptor(DOCKER_LAYER_GZIP if docker else OCI_LAYER_GZIP, digest, size),),
    )
    return MadeImage.of(manifest, config, platform=image.config.platform)


def _fetch(
    repository: Repository, layer: Descriptor, path: str, *, diff_id: Digest, on_progress: OnTransfer, stop: Stop
) -> None:
    hasher = hashlib.new(diff_id.algorithm, usedforsecurity=False)
    on_progress(Transfer(layer.digest, "layer", TransferState.RUNNING, 0, layer.size))
    with BlobReader(repository, layer, stop=stop) as packed, open(path, "wb", buffering=0) as out:
        stream = decompressed(packed)  # type: ignore[arg-type]  # a RawIOBase reads as BinaryIO does
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
            out.write(chunk)
    if hasher.hexdigest() != diff_id.hex:
        raise ContentMismatch(f"{layer.digest} doesn't unpack to what the configuration says ({diff_id})")
    on_progress(Transfer(layer.digest, "layer", TransferState.DONE, layer.size, layer.size))


class MergedLayers:
    """A file system as entries, made of layer tars from the lowest up. Contents stay in the tars.

    ``directory``: for the contents of sparse files, which are written out.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._nodes: dict[str, tuple[LayerEntry, int]] = {}
        self._names: dict[str, set[str]] = {}
        self._fresh: set[str] = set()

    def add(self, tar: str) -> None:
        """Put the layer in the uncompressed tar at ``tar`` on top. Raises InvalidTar, CannotFlatten."""
        self._fresh = set()
        with open(tar, "rb", buffering=0) as file:
            reader = TarReader(file, seek=file.seek)
            for entry in reader:
                if entry.path:
                    self._apply(entry, reader, tar)

    def entries(self) -> Iterator[LayerEntry]:
        """What is visible: the first name of a file with several is the file, the others are hard links to it."""
        first: dict[int, str] = {}
        for path, (entry, group) in self._nodes.items():
            origin = first.setdefault(group, path)
            if origin == path:
                yield replace(entry, path=path)
            else:
                yield LayerEntry(
                    path,
                    Kind.HARDLINK,
                    mode=entry.mode,
                    uid=entry.uid,
                    gid=entry.gid,
                    mtime_ns=entry.mtime_ns,
                    link=origin,
                )

    def _apply(self, entry: TarEntry, reader: TarReader, tar: str) -> None:
        path = self._real(entry.path)
        parent, _, name = path.rpartition("/")
        if name == OPAQUE_WHITEOUT:
            for child in list(self._names.get(parent, ())):
                self._hide(f"{parent}/{child}" if parent else child)
            return
        if name.startswith(WHITEOUT_PREFIX):
            gone = name.removeprefix(WHITEOUT_PREFIX)
            self._hide(f"{parent}/{gone}" if parent else gone)
            return
        self._make_room(parent)
        before = self._nodes.get(path)
        if entry.kind is Kind.HARDLINK:
            linked = self._nodes.get(self._real(entry.link))
            if linked is None or linked[0].kind is Kind.DIRECTORY:
                raise CannotFlatten(f"a layer links {entry.path!r} to {entry.link!r}, which is no file")
            if linked is before:
                return
            self._drop(path)
            self._put(path, linked)
            return
        if before is not None and not (before[0].kind is Kind.DIRECTORY and entry.kind is Kind.DIRECTORY):
            self._drop(path)
        self._put(path, (self._layer_entry(entry, path, reader, tar), next(_GROUPS)))

    def _layer_entry(self, entry: TarEntry, path: str, reader: TarReader, tar: str) -> LayerEntry:
        host_path, offset = (tar, entry.data_offset) if entry.kind is Kind.FILE and entry.size else (None, None)
        if entry.sparse is not None:
            host_path, offset = self._written_out(reader), None
        return LayerEntry(
            path,
            entry.kind,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            size=entry.size if entry.kind is Kind.FILE else 0,
            link=entry.link,
            data=b"" if entry.kind is Kind.FILE and not entry.size else None,
            host_path=host_path,
            device=entry.device,
            xattrs=entry.xattrs,
            offset=offset,
        )

    def _written_out(self, reader: TarReader) -> str:
        fd, path = tempfile.mkstemp(prefix="sparse-", dir=self._directory)
        with os.fdopen(fd, "wb") as out:
            while chunk := reader.read(CHUNK_BYTES):
                out.write(chunk)
        return path

    def _put(self, path: str, node: tuple[LayerEntry, int]) -> None:
        self._nodes[path] = node
        self._fresh.add(path)
        while path:
            parent, _, name = path.rpartition("/")
            names = self._names.setdefault(parent, set())
            if name in names:
                return
            names.add(name)
            path = parent

    def _hide(self, path: str) -> None:
        # A whiteout is about lower layers: what this layer has put there itself stays, whichever comes first in it.
        for child in list(self._names.get(path, ())):
            self._hide(f"{path}/{child}")
        if path not in self._fresh and not self._names.get(path):
            self._forget(path)

    def _drop(self, path: str) -> None:
        for child in list(self._names.get(path, ())):
            self._drop(f"{path}/{child}")
        self._forget(path)

    def _forget(self, path: str) -> None:
        self._nodes.pop(path, None)
        self._names.pop(path, None)
        self._fresh.discard(path)
        parent, _, name = path.rpartition("/")
        self._names.get(parent, set()).discard(name)

    def _make_room(self, parent: str) -> None:
        # A file of a lower layer where this one has a directory without saying so.
        while parent:
            node = self._nodes.get(parent)
            if node is not None and node[0].kind is not Kind.DIRECTORY:
                self._drop(parent)
            parent = parent.rpartition("/")[0]

    def _real(self, path: str) -> str:
        # Through symlinks of parent directories, as unpacking goes, never above the root.
        parent, slash, name = path.rpartition("/")
        if not slash or not self._has_link(parent):
            return path
        pending = parent.split("/")
        out = ""
        links = 0
        while pending:
            part = pending.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                out = out.rpartition("/")[0]
                continue
            here = f"{out}/{part}" if out else part
            node = self._nodes.get(here)
            if node is None or node[0].kind is not Kind.SYMLINK:
                out = here
                continue
            links += 1
            if links > _LINKS:
                raise CannotFlatten(f"a layer's path {path!r} goes through too many symlinks")
            if node[0].link.startswith("/"):
                out = ""
            pending = [*node[0].link.split("/"), *pending]
        return f"{out}/{name}" if out else name

    def _has_link(self, parent: str) -> bool:
        while parent:
            node = self._nodes.get(parent)
            if node is not None and node[0].kind is Kind.SYMLINK:
                return True
            parent = parent.rpartition("/")[0]
        return False
