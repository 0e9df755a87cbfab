"""Attestations in exports: as manifests in an image's index, and as files beside a local export's.

Owns which of them an export takes, what they are about, and their file names. Makes no claim itself.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pybuild import __version__
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView

from .assemble import BlobWriter, BuiltImage, WrittenManifest
from .attest import layers_of_files
from .attestations import Attestation, Blobs, Subject, image_subjects, statement, write_attestation_manifest
from .outputs import Output, OutputType
from .protocols import Snapshots
from .sbom import files_of, with_layers

Attested = Sequence[Sequence[Attestation]]
"""The attestations of each image, in the images' order."""


def check_export(output: Output, attested: Attested, *, images: int) -> None:
    """Refuse what can't hold attestations. Raises PybuildError in BuildKit's words."""
    if output.type in (OutputType.LOCAL, OutputType.TAR, OutputType.CACHE_ONLY):
        return
    indexed = holds_attestations(output, attested, images=images)
    if indexed and output.oci_media_types is False:
        raise PybuildError(
            'cannot export attestations with "oci-mediatypes=false"',
            hint="leave oci-mediatypes away, or build with --provenance=false --sbom=false",
        )
    if indexed and output.type is OutputType.DOCKER and output.dest is not None:
        raise PybuildError(
            "docker exporter does not currently support exporting manifest lists",
            hint="attestations need an index: use --output type=oci, or build with --provenance=false --sbom=false",
        )


def holds_attestations(output: Output, attested: Attested, *, images: int) -> bool:
    """True if an image export takes the attestations. Those that are meant for images only don't make an index where there would be none,
    unless the output says so."""
    if images > 1:
        return any(attested)
    inline = output.inline_attestations
    if inline is None:
        inline = output.type in (OutputType.IMAGE, OutputType.REGISTRY)
    return any(inline or not each.inline_only for own in attested for each in own)


def attestation_manifests(
    written: Sequence[WrittenManifest],
    images: Sequence[BuiltImage],
    attested: Attested,
    *,
    output: Output,
    names: Sequence[str],
    blobs: BlobWriter,
    snapshots: Snapshots,
) -> list[Descriptor]:
    """Write the manifests of all attestations; returns what is to be added to the index, nothing if this output doesn't take them."""
    if not holds_attestations(output, attested, images=len(images)):
        return []
    artifact = output.oci_artifact is not False
    return [
        _attestation_manifest(manifest, image, own, names=names, artifact=artifact, blobs=blobs, snapshots=snapshots)
        for manifest, image, own in zip(written, images, attested, strict=True)
        if own
    ]


def _attestation_manifest(
    written: WrittenManifest,
    image: BuiltImage,
    attestations: Sequence[Attestation],
    *,
    names: Sequence[str],
    artifact: bool,
    blobs: BlobWriter,
    snapshots: Snapshots,
) -> Descriptor:
    """Write the manifest of an image's attestations; returns its descriptor for the index."""
    layers: Blobs = dict(zip(image.stack, written.layers, strict=True))
    subjects = image_subjects(names, platform=image.platform, manifest=written.descriptor.digest)
    statements = []
    for each in attestations:
        predicate = each.predicate(layers)
        if each.core:
            predicate = _supplemented(predicate, image, layers, snapshots)
        statements.append(statement(each, predicate=predicate, subjects=subjects))
    return write_attestation_manifest(written.descriptor, statements, artifact=artifact, blobs=blobs)


def _supplemented(
    document: Any,  # Any: a JSON value
    image: BuiltImage,
    layers: Blobs,
    snapshots: Snapshots,
) -> Any:  # Any: a JSON value
    """An SBOM of the image with the layers of its files."""
    paths = files_of(document)
    found = layers_of_files(paths, image.stack, layers, view_of=snapshots.view)
    return with_layers(document, found, tool=f"pybuild-{__version__}")


def attestation_files(
    attestations: Sequence[Attestation], view: FileView, *, platform: str, output: Output, images: int, split: bool
) -> dict[str, bytes]:
    """The files, by name, that a local or tar export has beside the result's own. ``platform``: as in the names of folders. Raises
    PybuildError for two of one name."""
    wanted = [each for each in attestations if not each.inline_only]
    if not wanted:
        return {}
    subjects = _file_subjects(view)
    files: dict[str, bytes] = {}
    for each in wanted:
        name = output.attestation_prefix + posixpath.basename(each.path)
        if images > 1 and not split:
            stem, extension = posixpath.splitext(name)
            name = f"{stem}.{platform}{extension}"
        if name in files:
            raise PybuildError(f"duplicate attestation path name {name}")
        document = statement(each, predicate=each.predicate({}), subjects=subjects)
        files[name] = json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return files


def write_files(directory: Path, files: Mapping[str, bytes], *, owner: tuple[int, int], seconds: int) -> None:
    """Write ``files`` into a directory that is there, replacing what has their names. Raises PybuildError."""
    for name, data in files.items():
        path = directory / name
        draft = directory / f".{name}.tmp"
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as out:
                out.write(data)
            os.chown(draft, *owner)
            os.utime(draft, (seconds, seconds))
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise PybuildError(f"can't write {path}: {error.strerror}") from error


def _file_subjects(view: FileView) -> list[Subject]:
    """Every regular file of the result, with its digest."""
    subjects: list[Subject] = []
    pending = [""]
    while pending:
        path = pending.pop()
        below = []
        for name, node in view.children(path):
            child = f"{path}/{name}" if path else name
            if node.kind is Kind.DIRECTORY:
                below.append(child)
            elif node.kind is Kind.FILE:
                with view.open(child) as stream:
                    subjects.append(Subject.of(child, Digest.of_stream(stream)))
        pending.extend(reversed(below))
    return sorted(subjects, key=lambda subject: subject.name)
