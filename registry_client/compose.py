"""New images out of images in registries, without a build and without moving layers through this machine: indexes of several, and an image on
another base.

Owns the new documents. Layers of the same registry are mounted, those of others streamed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final

from pybuild.layers.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    OCI_INDEX,
    Descriptor,
    Platform,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import History, ImageConfig, Index, Manifest
from pybuild.layers.references import Reference
from pybuild.values import dataclass, replace

from .client import ImageNotFound, ManifestContent, RegistryClient, Repository
from .copy import contents
from .platforms import normal
from .pull import PulledManifest, read_config, resolve
from .push import PushReport, push
from .sources import LayeredSource, RegistrySource
from .stores import BlobSource, RememberedOrigins
from .transfers import OnTransfer, Stop, silent
from .transport import RegistryError

BASE_NAME: Final = "org.opencontainers.image.base.name"
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
_ATTESTED: Final = "vnd.docker.reference.digest"


class CannotRebase(RegistryError):
    """The image was not made on the base that is to be replaced, or nobody knows which that was."""


class CannotCompose(RegistryError):
    """The sources don't make an index."""


@dataclass(frozen=True, slots=True)
class MadeImage:
    """A new image: its manifest's descriptor, and manifest and configuration as bytes."""

    descriptor: Descriptor
    manifest: bytes
    config: bytes

    @classmethod
    def of(cls, manifest: Manifest, config: bytes, *, platform: Platform) -> MadeImage:
        """The image with this manifest, which already names ``config``."""
        data = manifest.to_bytes()
        return cls(Descriptor(manifest.media_type, Digest.of(data), len(data), platform=platform), data, config)


def index_of(top: ManifestContent, made: Mapping[Digest, MadeImage]) -> tuple[Descriptor, list[bytes]]:
    """What stands for ``top`` when its manifests are replaced by those that were made of them, and all documents to push. Entries of an index of
    which nothing was made are left out."""
    documents = [data for one in made.values() for data in (one.manifest, one.config)]
    if not top.is_index:
        return made[top.descriptor.digest].descriptor, documents
    index = Index.from_bytes(top.data)
    entries = tuple(
        replace(made[entry.digest].descriptor, platform=entry.platform, annotations=entry.annotations)
        for entry in index.manifests
        if entry.digest in made
    )
    if not entries:
        raise CannotCompose("the index holds only other indexes")
    data = replace(index, manifests=entries).to_bytes()
    return Descriptor(top.descriptor.media_type, Digest.of(data), len(data)), [*documents, data]


# --- indexes ----------------------------------------------------------------------------------------------------------


def create_index(
    client: RegistryClient,
    target: Reference,
    sources: Sequence[Reference],
    *,
    tags: Sequence[str] = (),
    append: bool = False,
    annotations: Mapping[str, str] | None = None,
    on_progress: OnTransfer = silent,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Make an index of the images that ``sources`` name and push it to ``target``.

    An index among the sources adds all its entries. Of two images for one platform the later source wins; attestations go with their image.
    ``append``: start with what ``target`` already is. The index is of docker's type if all of its manifests are. Raises CannotCompose,
    ImageNotFound, RegistryError.
    """
    stop = Stop(cancel)
    entries: list[Descriptor] = []
    places: list[BlobSource] = []
    origins = RememberedOrigins()
    documents: list[bytes] = []
    kept = dict(annotations or {})
    for reference in [*([target] if append else []), *sources]:
        try:
            found = contents(client, reference)
        except ImageNotFound:
            if append and reference is target:
                continue
            raise
        repository = client.repository(reference)
        places.append(_place(repository, found, origins=origins, stop=stop))
        top = found[0]
        if top.is_index:
            index = Index.from_bytes(top.data)
            entries = _merged(entries, index.manifests)
            kept = {**index.annotations, **kept} if append and reference is target else kept
        else:
            entries = _merged(entries, (_entry(repository, top),))
    if not entries:
        raise CannotCompose("an index needs at least one image")
    docker = all(entry.media_type in (DOCKER_MANIFEST, DOCKER_INDEX) for entry in entries) and not kept
    data = Index(tuple(entries), DOCKER_INDEX if docker else OCI_INDEX, kept).to_bytes()
    documents.append(data)
    descriptor = Descriptor(DOCKER_INDEX if docker else OCI_INDEX, Digest.of(data), len(data))
    return push(
        client,
        target,
        descriptor,
        LayeredSource(places, made=documents),
        tags=tags,
        origins=origins,
        on_progress=on_progress,
        cancel=cancel,
    )


def _place(
    repository: Repository, found: Sequence[ManifestContent], *, origins: RememberedOrigins, stop: Stop
) -> BlobSource:
    source = RegistrySource(repository, found, stop=stop)
    origins.remember(repository.reference.host, repository.name, source.blobs)
    return source


def _entry(repository: Repository, content: ManifestContent) -> Descriptor:
    image = read_config(repository, content)
    platform = None if image.config is None else image.config.platform
    return replace(content.descriptor, platform=platform, annotations={})


def _merged(entries: Sequence[Descriptor], added: Sequence[Descriptor]) -> list[Descriptor]:
    platforms = {normal(entry.platform) for entry in added if entry.platform is not None and _runs(entry)}
    fresh = {entry.digest for entry in added}
    gone = {
        entry.digest
        for entry in entries
        if entry.digest in fresh
        or (_runs(entry) and entry.platform is not None and normal(entry.platform) in platforms)
    }
    replaced = {str(digest) for digest in gone - fresh}
    kept = [entry for entry in entries if entry.digest not in gone and entry.annotations.get(_ATTESTED) not in replaced]
    return [*kept, *added]


def _runs(entry: Descriptor) -> bool:
    return entry.platform is not None and entry.platform.os != "unknown"


# --- rebase -----------------------------------------------------------------------------------------------------------


def rebase(
    client: RegistryClient,
    image: Reference,
    target: Reference,
    *,
    new_base: Reference | None = None,
    old_base: Reference | None = None,
    on_progress: OnTransfer = silent,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Put the layers that ``image`` has above ``old_base`` on ``new_base`` and push the result to ``target``, for every platform.

    Without bases the image's annotations say them (``org.opencontainers.image.base.name`` and ``.digest``): the old one by its digest, the new
    one by its name as it is now. What the image's configuration says stays; layers, history, operating system and architecture below are the
    new base's. Raises CannotRebase, ImageNotFound, NoMatchingPlatform, RegistryError.
    """
    stop = Stop(cancel)
    repository = client.repository(image)
    found = contents(client, image)
    top = found[0]
    made: dict[Digest, MadeImage] = {}
    origins = RememberedOrigins()
    places: list[BlobSource] = [_place(repository, found, origins=origins, stop=stop)]
    bases: dict[str, Reference] = {}
    for content in found:
        if content.is_index:
            continue
        one = read_config(repository, content)
        if not one.is_image:
            continue  # an attestation: it is about the image as it was, and is left behind
        old, new = _bases(one, top, old_base=old_base, new_base=new_base)
        bases |= {old.canonical: old, new.canonical: new}
        made[content.descriptor.digest] = _on(client, one, old=old, new=new)
    if not made:
        raise CannotRebase(f"{image.familiar} holds no image")
    places += [
        _place(client.repository(reference), contents(client, reference), origins=origins, stop=stop)
        for reference in bases.values()
    ]
    descriptor, documents = index_of(top, made)
    return push(
        client,
        target,
        descriptor,
        LayeredSource(places, made=documents),
        origins=origins,
        on_progress=on_progress,
        cancel=cancel,
    )


def _bases(
    image: PulledManifest, top: ManifestContent, *, old_base: Reference | None, new_base: Reference | None
) -> tuple[Reference, Reference]:
    annotations = dict(image.manifest.annotations)
    if top.descriptor.media_type in INDEX_TYPES:
        annotations = {**Index.from_bytes(top.data).annotations, **annotations}
    name, digest = annotations.get(BASE_NAME), annotations.get(BASE_DIGEST)
    hint = "name both bases with --old-base and --new-base"
    if new_base is None:
        if not name:
            raise CannotRebase("the image doesn't say what it was made on", hint=hint)
        new_base = Reference.parse(name)
    if old_base is None:
        if not digest:
            raise CannotRebase("the image doesn't say which version of its base it was made on", hint=hint)
        where = Reference.parse(name) if name else new_base
        old_base = where.with_digest(Digest.parse(digest))
    return old_base, new_base


def _on(client: RegistryClient, image: PulledManifest, *, old: Reference, new: Reference) -> MadeImage:
    assert image.config is not None
    platform = image.config.platform
    old_config, _ = _base(client, old, platform)
    new_config, new_manifest = _base(client, new, platform)
    below = len(old_config.diff_ids)
    if image.config.diff_ids[:below] != old_config.diff_ids or len(image.manifest.layers) < below:
        raise CannotRebase(f"the image ({platform}) was not made on {old.familiar}: its lower layers are others")
    config = image.config.with_(
        platform=new_config.platform,
        diff_ids=(*new_config.diff_ids, *image.config.diff_ids[below:]),
        history=(*new_config.history, *_above(image.config.history, old_config.history)),
    )
    config_data = config.to_bytes()
    resolved = resolve_digest(client, new)
    annotations = {
        **image.manifest.annotations,
        BASE_NAME: new.with_default_tag().canonical,
        BASE_DIGEST: str(resolved),
    }
    layers = (*new_manifest.layers, *image.manifest.layers[below:])
    manifest = replace(
        image.manifest,
        config=Descriptor(image.manifest.config.media_type, Digest.of(config_data), len(config_data)),
        layers=tuple(replace(layer, media_type=_layer_type(layer, image.manifest)) for layer in layers),
        annotations={} if image.manifest.media_type == DOCKER_MANIFEST else annotations,
    )
    return MadeImage.of(manifest, config_data, platform=new_config.platform)


def _base(client: RegistryClient, reference: Reference, platform: Platform) -> tuple[ImageConfig, Manifest]:
    image = resolve(client, reference, platform).image
    if image.config is None:
        raise CannotRebase(f"{reference.familiar} is not an image")
    return image.config, image.manifest


def resolve_digest(client: RegistryClient, reference: Reference) -> Digest:
    """The digest that a reference has now. Raises ImageNotFound, RegistryError."""
    if reference.digest is not None:
        return reference.digest
    found = client.repository(reference).head_manifest(reference.target)
    if found is None:
        raise ImageNotFound(reference)
    return found.digest


def _above(history: tuple[History, ...], base: tuple[History, ...]) -> tuple[History, ...]:
    # Images without a history, or with another one than their base's, can't have theirs cut: what is beyond as many entries remains.
    return history[len(base) :] if history[: len(base)] == base else history[min(len(base), len(history)) :]


_OCI_TO_DOCKER: Final = {
    "application/vnd.oci.image.layer.v1.tar": "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
_DOCKER_TO_OCI: Final = {docker: oci for oci, docker in _OCI_TO_DOCKER.items()}


def _layer_type(layer: Descriptor, manifest: Manifest) -> str:
    # A docker manifest names docker's layer types and an OCI manifest OCI's: the bytes are the same.
    names = _OCI_TO_DOCKER if manifest.media_type == DOCKER_MANIFEST else _DOCKER_TO_OCI
    return names.get(layer.media_type, layer.media_type)


def delete(client: RegistryClient, reference: Reference) -> Digest | None:
    """Delete a tag, or a manifest by digest with all its tags. Returns the digest that was deleted, None if only the tag went.

    Registries that can't delete a tag alone lose the manifest that it names, as with skopeo. Raises ImageNotFound, RegistryError.
    """
    repository = client.repository(reference, mirrors=False)
    if reference.digest is not None:
        repository.delete_manifest(str(reference.digest))
        return reference.digest
    if repository.delete_tag(reference.target):
        return None
    found = repository.head_manifest(reference.target)
    if found is None:
        raise ImageNotFound(reference)
    repository.delete_manifest(str(found.digest))
    return found.digest


__all__ = [
    "CannotCompose",
    "CannotRebase",
    "MadeImage",
    "create_index",
    "delete",
    "index_of",
    "rebase",
    "resolve_digest",
]
