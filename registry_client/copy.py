"""Copying an image from anywhere to anywhere, without the local store.

Owns putting pull, push, layouts and archives together. From one registry to another the blobs are streamed, or mounted where it is the
same registry; only archives need a directory to unpack them into for the time of the copy.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pybuild.errors import PybuildError
from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import INDEX_TYPES, Descriptor, Platform
from pybuild.layers.image import Index
from pybuild.layers.references import InvalidReference, Reference
from pybuild.values import dataclass, replace

from .client import ManifestContent, RegistryClient
from .locations import InDockerArchive, InLayout, InOciArchive, InRegistry, Location, parse_location
from .platforms import choose
from .pull import NoMatchingPlatform, pull, select
from .push import PushReport, push
from .sources import RegistrySource
from .stores import BlobOrigins, BlobSource
from .transfers import OnTransfer, Stop, silent

_MANIFEST_BYTES = 4 << 20


class CopyFailed(PybuildError):
    """A layout or an archive can't be read or written, or doesn't hold what was asked for."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An image whose blobs are at hand: a blob store if they are on this machine."""

    descriptor: Descriptor
    blobs: BlobSource
    store: BlobStore | None = None
    mount_from: tuple[str, ...] = ()


def copy(
    client: RegistryClient,
    source: str,
    destination: str,
    *,
    platform: Platform | None = None,
    origins: BlobOrigins | None = None,
    on_progress: OnTransfer = silent,
    scratch: str | None = None,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Copy ``source`` to ``destination`` (``locations`` says how they are written).

    ``platform``: take just that entry of an index; None takes everything, the index included. ``scratch``: the directory for what archives
    unpack to, the system's default without. Digests stay what they were, except that an archive of docker's has none of its own.
    Raises CopyFailed, ImageNotFound, NoMatchingPlatform, RegistryError, PybuildError.
    """
    origin, target = parse_location(source), parse_location(destination)
    stop = Stop(cancel)
    if isinstance(target, InRegistry):
        with _source(client, origin, target=target.reference, platform=platform, scratch=scratch, stop=stop) as held:
            return push(
                client,
                target.reference,
                held.descriptor,
                held.blobs,
                mount_from=held.mount_from,
                origins=origins,
                on_progress=on_progress,
                cancel=cancel,
            )
    with _on_this_machine(
        client, origin, target, platform=platform, scratch=scratch, on_progress=on_progress, cancel=cancel
    ) as held:
        assert held.store is not None
        _write(target, held.descriptor, held.store, name=_name_for(origin, target), platform=platform)
        return PushReport(held.descriptor, bytes_sent=0, manifests=1)


# --- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def _source(
    client: RegistryClient,
    origin: Location,
    *,
    target: Reference,
    platform: Platform | None,
    scratch: str | None,
    stop: Stop,
) -> Iterator[_Held]:
    if not isinstance(origin, InRegistry):
        with _local(origin, platform=platform, scratch=scratch) as held:
            yield held
        return
    reference = origin.reference
    repository = client.repository(reference)
    top = repository.get_manifest(reference.target)
    indexes, chosen = select(repository, reference, top, platform=platform)
    contents = [*indexes, *chosen] if platform is None else chosen
    descriptor = top.descriptor if platform is None else chosen[0].descriptor
    same_host = reference.host == target.host and reference.repository != target.repository
    mount_from = (reference.repository,) if same_host else ()
    yield _Held(descriptor, RegistrySource(repository, contents, stop=stop), mount_from=mount_from)


@contextmanager
def _on_this_machine(
    client: RegistryClient,
    origin: Location,
    target: Location,
    *,
    platform: Platform | None,
    scratch: str | None,
    on_progress: OnTransfer,
    cancel: threading.Event | None,
) -> Iterator[_Held]:
    if not isinstance(origin, InRegistry):
        with _local(origin, platform=platform, scratch=scratch) as held:
            yield held
        return
    with _receiver(target, scratch=scratch) as store:
        pulled = pull(
            client,
            origin.reference,
            store,
            platform=platform,
            all_platforms=platform is None,
            on_progress=on_progress,
            cancel=cancel,
        )
        descriptor = pulled.descriptor if platform is None else pulled.manifests[0].descriptor
        yield _Held(descriptor, store, store)


@contextmanager
def _receiver(target: Location, *, scratch: str | None) -> Iterator[BlobStore]:
    # A layout has the blob store's own shape, so what is pulled can go to its place at once.
    if not isinstance(target, InLayout):
        with tempfile.TemporaryDirectory(prefix="pybuild-copy-", dir=scratch) as directory:
            yield BlobStore(Path(directory))
        return
    path = Path(target.path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield BlobStore(path)
    except OSError as error:
        raise CopyFailed(f"{target}: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        with suppress(OSError):
            (path / "ingest").rmdir()


@contextmanager
def _local(origin: Location, *, platform: Platform | None, scratch: str | None) -> Iterator[_Held]:
    if isinstance(origin, InLayout):
        from pybuild.layers.layout import LayoutDirectory

        layout = LayoutDirectory(Path(origin.path))
        yield _narrowed(layout.find(origin.name), layout.blobs, origin=origin, platform=platform)
        return
    from pybuild.layers.archive_load import load_archive
    from pybuild.layers.store import Store

    with tempfile.TemporaryDirectory(prefix="pybuild-copy-", dir=scratch) as directory:
        assert not isinstance(origin, InRegistry)
        with Store(Path(directory), clock=time.time) as store, _opened(origin) as stream:
            found = load_archive(stream, store=store)
            images = [(image.descriptor, (*image.names, *image.tags)) for image in found]
            yield _narrowed(_named(images, origin), store.blobs, origin=origin, platform=platform)


def _opened(origin: InOciArchive | InDockerArchive) -> BinaryIO:
    try:
        return open(origin.path, "rb")
    except OSError as error:
        raise CopyFailed(f"{origin.path}: {os.strerror(error.errno or 0).lower()}") from error


def _named(images: list[tuple[Descriptor, tuple[str, ...]]], origin: InOciArchive | InDockerArchive) -> Descriptor:
    wanted = {origin.name}
    with suppress(InvalidReference):
        reference = Reference.parse(origin.name)
        wanted |= {reference.canonical, reference.familiar, reference.with_default_tag().familiar}
    distinct = {descriptor.digest: descriptor for descriptor, names in images if not origin.name or wanted & set(names)}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    known = ", ".join(sorted({name for _, names in images for name in names})[:10])
    if distinct:
        raise CopyFailed(f"{origin} holds several images", hint=f"name one of them: {known}" if known else None)
    raise CopyFailed(f"{origin.path} has no image {origin.name!r}", hint=f"it has: {known}" if known else None)


def _narrowed(descriptor: Descriptor, blobs: BlobStore, *, origin: Location, platform: Platform | None) -> _Held:
    plain = replace(descriptor, annotations={}, platform=None)
    if platform is None or descriptor.media_type not in INDEX_TYPES:
        return _Held(plain, blobs, blobs)
    entries = Index.from_bytes(blobs.read(descriptor.digest, limit_bytes=_MANIFEST_BYTES)).manifests
    found = choose(entries, platform)
    if found is None:
        raise NoMatchingPlatform(str(origin), platform, [e.platform for e in entries if e.platform is not None])
    return _narrowed(found, blobs, origin=origin, platform=platform)


# --- writing ----------------------------------------------------------------------------------------------------------


def _name_for(origin: Location, target: Location) -> str:
    # What the copy is called: what the destination says, else what the source was called.
    name = "" if isinstance(target, InRegistry) else target.name
    if isinstance(target, InDockerArchive):
        try:
            if name:
                return Reference.parse(name).with_default_tag().canonical
            return origin.reference.with_default_tag().canonical if isinstance(origin, InRegistry) else ""
        except InvalidReference as error:
            raise CopyFailed(f"{target}: {error.message}") from error
    if name or not isinstance(origin, InRegistry) or origin.reference.digest is not None:
        return name
    return origin.reference.with_default_tag().tag or ""


def _write(target: Location, descriptor: Descriptor, store: BlobStore, *, name: str, platform: Platform | None) -> None:
    from pybuild.layers.docker_archive import write_docker_archive
    from pybuild.layers.layout import ExportedImage, write_layout_directory, write_layout_tar

    image = ExportedImage(descriptor, (name,) if name else ())
    match target:
        case InLayout():
            write_layout_directory([image], Path(target.path), blobs=store)
        case InOciArchive():
            _replacing(target.path, lambda stream: write_layout_tar([image], stream, blobs=store))
        case InDockerArchive():
            _replacing(
                target.path, lambda stream: write_docker_archive([image], stream, blobs=store, platform=platform)
            )
        case InRegistry():
            raise AssertionError("a registry is pushed to")


def _replacing(path: str, write: Callable[[BinaryIO], None]) -> None:
    # The file appears when it is complete; one that was there before stays until then.
    draft = f"{path}.{os.getpid()}.part"
    try:
        with open(draft, "wb") as stream:
            write(stream)
        os.rename(draft, path)
    except OSError as error:
        raise CopyFailed(f"{path}: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        with suppress(OSError):
            os.unlink(draft)


def contents(client: RegistryClient, reference: Reference) -> tuple[ManifestContent, ...]:
    """Everything that a reference names in a registry: its index and all manifests, the outermost first. Raises RegistryError."""
    repository = client.repository(reference)
    top = repository.get_manifest(reference.target)
    indexes, chosen = select(repository, reference, top, platform=None)
    return (*indexes, *chosen)
