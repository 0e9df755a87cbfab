"""Pushing: from blobs in a store to a tag in a registry.

Owns the order (layers, configuration, manifests, index, tags last) and sends only what the registry lacks. Never compresses and never
changes a manifest: what is pushed is, byte for byte, what the store has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, Final, TypeVar

from pybuild.layers.descriptor import (
    DOCKER_LAYER_FOREIGN_GZIP,
    INDEX_TYPES,
    OCI_INDEX,
    OCI_LAYER_FOREIGN,
    OCI_LAYER_FOREIGN_GZIP,
    OCI_LAYER_FOREIGN_ZSTD,
    Descriptor,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import Index, Manifest
from pybuild.layers.references import Reference
from pybuild.values import dataclass, replace

from .client import MANIFEST_BYTES, ContentMismatch, RegistryClient, Repository, checked_media_type, referrers_tag
from .stores import BlobOrigins, BlobSource, RememberedOrigins
from .transfers import OnTransfer, Stop, Transfer, TransferState, run_all, silent
from .transport import RegistryError
from .uploads import BlobUpload, Outcome, Uploaded

_FOREIGN: Final = frozenset(
    {DOCKER_LAYER_FOREIGN_GZIP, OCI_LAYER_FOREIGN, OCI_LAYER_FOREIGN_GZIP, OCI_LAYER_FOREIGN_ZSTD}
)
_INDEX_DEPTH: Final = 4
T = TypeVar("T")


class MissingContent(RegistryError):
    """The store lacks a blob or a manifest that the image needs."""


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did: ``bytes_sent`` as blob content; how many blobs were ``sent``, ``mounted``, ``existing``, and ``skipped`` as foreign;
    how many manifests were put. ``unchanged``: the tags had this digest already."""

    descriptor: Descriptor
    bytes_sent: int = 0
    sent: int = 0
    mounted: int = 0
    existing: int = 0
    skipped: int = 0
    manifests: int = 0
    unchanged: bool = False


def push(
    client: RegistryClient,
    reference: Reference,
    descriptor: Descriptor,
    store: BlobSource,
    *,
    tags: Sequence[str] = (),
    mount_from: Sequence[str] = (),
    origins: BlobOrigins | None = None,
    on_progress: OnTransfer = silent,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Push the image or index that ``descriptor`` names, with all that belongs to it.

    ``reference`` gives the repository and the tag (or digest, or ``latest``); ``tags`` are more tags for the same. ``mount_from``: repositories of the
    same registry that may have blobs to be mounted; ``origins`` knows for sure which have which, and learns. Raises MissingContent, RegistryError, Cancelled; then no
    tag was changed that is named after the one that failed.
    """
    repository = client.repository(reference, mirrors=False)
    pusher = _Pusher(
        repository,
        store,
        mount_from=tuple(mount_from),
        origins=origins or RememberedOrigins(),
        on_progress=on_progress,
        stop=Stop(cancel),
    )
    targets = tuple(dict.fromkeys((reference.target, *tags)))
    return pusher.run(descriptor, targets)


@dataclass(frozen=True, slots=True)
class _Document:
    """A manifest or index to be put, after those that it names."""

    descriptor: Descriptor
    data: bytes
    subject: Descriptor | None
    manifest: Manifest | None


class _Pusher:
    def __init__(
        self,
        repository: Repository,
        store: BlobSource,
        *,
        mount_from: tuple[str, ...],
        origins: BlobOrigins,
        on_progress: OnTransfer,
        stop: Stop,
    ) -> None:
        self._repository = repository
        self._store = store
        self._mount_from = mount_from
        self._origins = origins
        self._report = on_progress
        self._stop = stop
        self._transport = repository.client.transport

    def run(self, descriptor: Descriptor, targets: tuple[str, ...]) -> PushReport:
        scopes = self._repository.push_scopes
        stale: list[str] = []
        absent = False
        for target in targets:
            found = self._repository.head_manifest(target, scopes=scopes)
            absent = absent or found is None
            if found is None or found.digest != descriptor.digest:
                stale.append(target)
        kind = "index" if descriptor.media_type in INDEX_TYPES else "manifest"
        if not stale:
            self._report(Transfer(descriptor.digest, kind, TransferState.EXISTS, descriptor.size, descriptor.size))
            return PushReport(descriptor, unchanged=True)
        documents = self._documents(descriptor)
        top = documents[-1]
        report = PushReport(descriptor)
        digest_target = str(descriptor.digest)
        known = len(stale) < len(targets) or (
            digest_target not in targets and self._repository.head_manifest(digest_target, scopes=scopes) is not None
        )
        if not known:
            # The registry has accepted nothing like this yet, so it may lack anything.
            needed = self._needed(documents[:-1])
            report = self._blobs([*needed, top], report)
            for document in needed:
                self._put(document, str(document.descriptor.digest))
            report = replace(report, manifests=len(needed))
        for target in stale:
            self._put(top, target)
            report = replace(report, manifests=report.manifests + 1)
        self._report(Transfer(descriptor.digest, kind, TransferState.DONE, descriptor.size, descriptor.size))
        self._remember(documents)
        return report

    # --- what there is to push ---

    def _documents(self, descriptor: Descriptor) -> list[_Document]:
        # Children before parents, each once.
        ordered: dict[Digest, _Document] = {}

        def walk(entry: Descriptor, depth: int) -> None:
            if entry.digest in ordered:
                return
            if depth > _INDEX_DEPTH:
                raise ContentMismatch(f"{descriptor.digest}: its indexes are nested more than {_INDEX_DEPTH} deep")
            data = self._read(entry, parent=descriptor)
            if data is None:
                return
            media_type = checked_media_type(str(entry.digest), data, declared=entry.media_type)
            if media_type in INDEX_TYPES:
                index = Index.from_bytes(data)
                for child in index.manifests:
                    walk(child, depth + 1)
                ordered[entry.digest] = _Document(replace(entry, media_type=media_type), data, index.subject, None)
            else:
                manifest = Manifest.from_bytes(data)
                ordered[entry.digest] = _Document(
                    replace(entry, media_type=media_type), data, manifest.subject, manifest
                )

        walk(descriptor, 0)
        return list(ordered.values())

    def _read(self, entry: Descriptor, *, parent: Descriptor) -> bytes | None:
        if not self._store.has(entry.digest):
            # A child that the registry already has need not be here.
            if entry.digest != parent.digest and self._repository.head_manifest(
                str(entry.digest), scopes=self._repository.push_scopes
            ):
                return None
            name = f"{entry.platform} ({entry.digest})" if entry.platform else str(entry.digest)
            raise MissingContent(
                f"the store doesn't have {name}, which {parent.digest} needs",
                hint="pull all platforms first, or push one platform with --platform",
            )
        if self._store.size(entry.digest) > MANIFEST_BYTES:
            raise ContentMismatch(f"{entry.digest} is larger than the {MANIFEST_BYTES} bytes that a manifest may have")
        with self._store.open(entry.digest) as file:
            return file.read()

    def _needed(self, documents: Sequence[_Document]) -> list[_Document]:
        # Children that the registry has under their digest are complete there.
        def ask(document: _Document) -> bool:
            target = str(document.descriptor.digest)
            return self._repository.head_manifest(target, scopes=self._repository.push_scopes) is None

        missing = self._run_all([partial(ask, document) for document in documents])
        return [document for document, lacks in zip(documents, missing, strict=True) if lacks]

    # --- blobs ---

    def _blobs(self, documents: Sequence[_Document], report: PushReport) -> PushReport:
        layers: dict[Digest, Descriptor] = {}
        configs: dict[Digest, Descriptor] = {}
        for document in documents:
            if document.manifest is not None:
                configs.setdefault(document.manifest.config.digest, document.manifest.config)
                for layer in document.manifest.layers:
                    layers.setdefault(layer.digest, layer)
        skipped = 0
        uploads: list[Descriptor] = []
        for layer in layers.values():
            if layer.digest in configs:
                continue
            if layer.media_type in _FOREIGN and not self._store.has(layer.digest):
                # Foreign layers may not be redistributable: they stay where their URLs say.
                skipped += 1
                self._report(Transfer(layer.digest, "layer", TransferState.SKIPPED, 0, layer.size))
                continue
            uploads.append(layer)
            self._report(Transfer(layer.digest, "layer", TransferState.WAITING, 0, layer.size))
        done = self._upload_all(uploads, "layer") + self._upload_all(list(configs.values()), "config")
        return replace(
            report,
            bytes_sent=report.bytes_sent + sum(item.bytes_sent for item in done),
            sent=report.sent + sum(item.outcome is Outcome.SENT for item in done),
            mounted=report.mounted + sum(item.outcome is Outcome.MOUNTED for item in done),
            existing=report.existing + sum(item.outcome is Outcome.EXISTS for item in done),
            skipped=report.skipped + skipped,
        )

    def _upload_all(self, blobs: Sequence[Descriptor], kind: str) -> list[Uploaded]:
        # The biggest first, so that it isn't the last to end.
        ordered = sorted(blobs, key=lambda blob: -blob.size)
        return self._run_all([partial(self._upload, blob, kind) for blob in ordered])

    def _run_all(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        return run_all(
            tasks, parallel=self._transport.network.parallel, stop=self._stop, interrupt=self._transport.interrupt
        )

    def _upload(self, blob: Descriptor, kind: str) -> Uploaded:
        total = blob.size
        host = self._repository.reference.host
        upload = BlobUpload(
            self._repository,
            blob,
            source=_Checked(self._store, blob),
            mount_from=self._origins.repositories(host, blob.digest),
            guesses=self._mount_from,
            on_bytes=_throttled(lambda at: self._report(Transfer(blob.digest, kind, TransferState.RUNNING, at, total))),
            stop=self._stop,
        )
        done = upload.run()
        states = {
            Outcome.EXISTS: TransferState.EXISTS,
            Outcome.MOUNTED: TransferState.MOUNTED,
            Outcome.SENT: TransferState.DONE,
        }
        self._report(Transfer(blob.digest, kind, states[done.outcome], total, total))
        return done

    # --- manifests ---

    def _put(self, document: _Document, target: str) -> None:
        self._stop.check()
        listed = self._repository.put_manifest(target, document.data, media_type=document.descriptor.media_type)
        if document.subject is not None and not listed:
            add_referrer(self._repository, document.subject.digest, referrer_of(document.descriptor, document.data))

    def _remember(self, documents: Sequence[_Document]) -> None:
        digests = [
            blob.digest
            for document in documents
            if document.manifest is not None
            for blob in (document.manifest.config, *document.manifest.layers)
            if blob.media_type not in _FOREIGN
        ]
        self._origins.remember(self._repository.reference.host, self._repository.name, tuple(digests))


class _Checked:
    """The store, with an error that says what is missing for whom."""

    def __init__(self, store: BlobSource, blob: Descriptor) -> None:
        self._store = store
        self._blob = blob

    def has(self, digest: Digest) -> bool:
        return self._store.has(digest)

    def size(self, digest: Digest) -> int:
        return self._store.size(digest)

    def open(self, digest: Digest) -> BinaryIO:
        if not self._store.has(digest):
            raise MissingContent(f"the store doesn't have the layer {digest} that is to be pushed")
        if self._store.size(digest) != self._blob.size:
            raise ContentMismatch(f"{digest} has {self._store.size(digest)} bytes, its manifest says {self._blob.size}")
        return self._store.open(digest)


def referrer_of(descriptor: Descriptor, data: bytes) -> Descriptor:
    """The entry that a manifest with a subject gets in the list of its subject's referrers ("Listing Referrers")."""
    if descriptor.media_type in INDEX_TYPES:
        index = Index.from_bytes(data)
        artifact_type, annotations = index.artifact_type, index.annotations
    else:
        manifest = Manifest.from_bytes(data)
        artifact_type, annotations = manifest.artifact_type or manifest.config.media_type, manifest.annotations
    return Descriptor(
        descriptor.media_type, descriptor.digest, descriptor.size, annotations=annotations, artifact_type=artifact_type
    )


def add_referrer(repository: Repository, subject: Digest, entry: Descriptor) -> None:
    """Keep the index that stands in for the referrers API up to date ("Pushing Manifests with Subject"). Raises RegistryError."""
    known = repository.referrers_tag(subject)
    index = Index(()) if known is None else Index.from_bytes(known.data)
    if any(item.digest == entry.digest for item in index.manifests):
        return
    changed = replace(index, manifests=(*index.manifests, entry), media_type=OCI_INDEX)
    repository.put_manifest(referrers_tag(subject), changed.to_bytes(), media_type=OCI_INDEX)


def _throttled(report: Callable[[int], None], *, every_bytes: int = 1 << 20) -> Callable[[int], None]:
    last = [0]

    def on_bytes(position: int) -> None:
        if abs(position - last[0]) >= every_bytes:
            last[0] = position
            report(position)

    return on_bytes
