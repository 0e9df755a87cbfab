"""In-toto statements about a build's result, and how they are stored beside an image.

Owns statements, subjects and the attestation manifest (BuildKit's ``docs/attestations/attestation-storage.md``; in-toto attestation framework,
Statement v1). Makes no predicate: ``provenance.py`` and ``sbom.py`` do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pybuild.layers.descriptor import OCI_CONFIG, OCI_EMPTY, OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import Manifest, json_bytes
from pybuild.values import dataclass

from .assemble import BlobWriter
from .purl import image_purl

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
IN_TOTO: Final = "application/vnd.in-toto+json"
ARTIFACT_TYPE: Final = "application/vnd.docker.attestation.manifest.v1+json"
SPDX: Final = "https://spdx.dev/Document"
PREDICATE_ANNOTATION: Final = "in-toto.io/predicate-type"
NOWHERE: Final = Platform("unknown", "unknown")
"""The platform of an attestation manifest: no runtime takes it for an image."""

Blobs = Mapping[Digest, Descriptor]
"""The blobs of layers by diff ID, as an export has them."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about: a name and digests by algorithm."""

    name: str
    digests: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str, digest: Digest) -> Subject:
        return cls(name, ((digest.algorithm, digest.hex),))

    def to_json(self) -> dict[str, Any]:  # Any: the JSON edge
        return {"name": self.name, "digest": dict(self.digests)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """One claim about the result of one platform.

    ``path``: the file that local exports write; ``predicate``: gives the JSON value, from the layers' blobs as they are exported;
    ``subjects``: what it is about, empty for the result itself; ``inline_only``: stored with images only; ``core``: an SBOM of the result
    itself, to which its layers can be added.
    """

    path: str
    predicate_type: str
    predicate: Callable[[Blobs], Any]  # Any: a JSON value
    subjects: tuple[Subject, ...] = ()
    inline_only: bool = False
    core: bool = False


def statement(
    attestation: Attestation,
    *,
    predicate: Any,  # Any: a JSON value
    subjects: Sequence[Subject],
) -> dict[str, Any]:  # Any: the JSON edge
    """The statement; ``subjects`` are the exported result's, for an attestation that names none."""
    named = attestation.subjects or subjects
    return {
        "_type": STATEMENT_TYPE,
        "predicateType": attestation.predicate_type,
        "subject": [subject.to_json() for subject in named],
        "predicate": predicate,
    }


def image_subjects(names: Sequence[str], *, platform: Platform, manifest: Digest) -> list[Subject]:
    """The subjects that an image is by: one per name it is exported under."""
    return [Subject.of(image_purl(name, platform=platform), manifest) for name in names]


def write_attestation_manifest(
    target: Descriptor,
    statements: Sequence[Mapping[str, Any]],  # Any: the JSON edge
    *,
    artifact: bool,
    blobs: BlobWriter,
) -> Descriptor:
    """Write the manifest that holds ``statements`` about the image ``target``; returns its descriptor for the index.

    ``artifact``: as an OCI artifact with a subject; otherwise with an image configuration, as BuildKit before 0.31 did.
    """
    layers = []
    for each in statements:
        data = json_bytes(each)
        annotations = {PREDICATE_ANNOTATION: str(each["predicateType"])}
        layers.append(Descriptor(IN_TOTO, blobs.write(data), len(data), annotations=annotations))
    if artifact:
        empty = b"{}"
        manifest = Manifest(
            config=Descriptor(OCI_EMPTY, blobs.write(empty), len(empty), data=empty),
            layers=tuple(layers),
            artifact_type=ARTIFACT_TYPE,
            subject=Descriptor(target.media_type, target.digest, target.size),
        )
    else:
        config = json_bytes(
            {
                **NOWHERE.to_json(),
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
            }
        )
        manifest = Manifest(
            config=Descriptor(OCI_CONFIG, blobs.write(config), len(config)),
            layers=tuple(layers),
        )
    body = manifest.to_bytes()
    return Descriptor(
        OCI_MANIFEST,
        blobs.write(body),
        len(body),
        platform=NOWHERE,
        annotations={
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": str(target.digest),
        },
    )
