"""Statements, attestation manifests, and what scanners may write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes.solver_fakes import Tree

from pybuild.builder.attestations import Attestation, Subject, image_subjects, statement, write_attestation_manifest
from pybuild.builder.export_attestations import attestation_files, holds_attestations
from pybuild.builder.outputs import Output, OutputType, parse_output
from pybuild.builder.sbom import InvalidBundle, ScannerChoice, read_bundle, with_layers
from pybuild.cli.attestation_options import attestations, metadata_provenance
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import OCI_MANIFEST, Descriptor, InvalidDescriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import Manifest

AMD64 = Platform("linux", "amd64")
TARGET = Descriptor(OCI_MANIFEST, Digest.of(b"manifest"), 8, platform=AMD64)


class Blobs(dict[Digest, bytes]):
    def write(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self[digest] = data
        return digest


def attestation(path: str = "provenance.json", *, inline_only: bool = False) -> Attestation:
    return Attestation(path=path, predicate_type="https://t", predicate=lambda blobs: {"a": 1}, inline_only=inline_only)


def test_an_artifact_refers_to_its_image_and_has_the_empty_configuration():
    blobs = Blobs()
    subjects = image_subjects(["docker.io/library/a:1"], platform=AMD64, manifest=TARGET.digest)
    made = statement(attestation(), predicate={"a": 1}, subjects=subjects)
    descriptor = write_attestation_manifest(TARGET, [made], artifact=True, blobs=blobs)
    assert str(descriptor.platform) == "unknown/unknown"
    manifest = json.loads(blobs[descriptor.digest])
    (layer,) = manifest["layers"]
    assert manifest == {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "size": 2,
            "data": "e30=",
        },
        "layers": [layer],
        "subject": {"mediaType": OCI_MANIFEST, "digest": str(TARGET.digest), "size": 8},
    }
    assert json.loads(blobs[Digest.parse(layer["digest"])]) == {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://t",
        "subject": [{"name": "pkg:docker/a@1?platform=linux%2Famd64", "digest": {"sha256": TARGET.digest.hex}}],
        "predicate": {"a": 1},
    }
    # What was written is read again with its embedded content.
    assert Manifest.from_bytes(blobs[descriptor.digest]).config.data == b"{}"


def test_an_image_without_a_name_has_no_subject():
    made = statement(attestation(), predicate=None, subjects=image_subjects([], platform=AMD64, manifest=TARGET.digest))
    assert made["subject"] == []
    assert made["predicate"] is None


@pytest.mark.parametrize("data", ["%%%", 7, ["e30="], "e30"])
def test_embedded_data_that_isnt_base64_is_refused(data: object):
    value: dict[str, Any] = {**TARGET.to_json(), "data": data}
    with pytest.raises(InvalidDescriptor):
        Descriptor.from_json(value)


def test_inline_only_attestations_make_no_index_of_an_archive():
    own = [[attestation(inline_only=True)]]
    assert holds_attestations(Output(type=OutputType.IMAGE), own, images=1)
    assert not holds_attestations(Output(type=OutputType.OCI), own, images=1)
    assert holds_attestations(Output(type=OutputType.OCI), own, images=2)
    assert holds_attestations(parse_output("type=oci,dest=x,attestation-inline=true"), own, images=1)
    assert holds_attestations(Output(type=OutputType.OCI), [[attestation()]], images=1)


def test_files_of_local_exports_are_about_every_file_of_the_result():
    view = Tree().file("b/c", "1").file("a", "2").link("l", "a")
    output = parse_output("type=local,dest=x,attestation-prefix=pre.")
    files = attestation_files([attestation()], view, platform="linux_amd64", output=output, images=1, split=False)
    (name,) = files
    assert name == "pre.provenance.json"
    assert json.loads(files[name])["subject"] == [
        {"name": "a", "digest": {"sha256": Digest.of(b"2").hex}},
        {"name": "b/c", "digest": {"sha256": Digest.of(b"1").hex}},
    ]
    joined = attestation_files([attestation()], view, platform="linux_amd64", output=output, images=2, split=False)
    assert list(joined) == ["pre.provenance.linux_amd64.json"]
    assert not attestation_files(
        [attestation(inline_only=True)], view, platform="linux_amd64", output=output, images=1, split=False
    )
    with pytest.raises(PybuildError, match="duplicate attestation path name"):
        attestation_files(
            [attestation(), attestation()], view, platform="linux_amd64", output=output, images=1, split=False
        )


# --- scanners --------------------------------------------------------------------------------------------------------


def bundle(**files: str) -> Tree:
    tree = Tree()
    for name, content in files.items():
        tree.file(f"run/out/{name.replace('_', '.')}", content)
    return tree


SPDX = '{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://spdx.dev/Document", "predicate": %s}'


def test_the_statement_about_the_result_itself_comes_first():
    found = read_bundle(bundle(a_spdx_json=SPDX % "1", sbom_spdx_json=SPDX % "2", z_json=SPDX % "3"))
    assert [(each.path, each.predicate({}), each.core) for each in found] == [
        ("sbom.spdx.json", 2, True),
        ("a.spdx.json", 1, False),
        ("z.json", 3, False),
    ]
    assert read_bundle(Tree()) == ()


def test_a_scanner_may_name_subjects():
    text = SPDX[:-1] % "{}" + ', "subject": [{"name": "x", "digest": {"sha256": "ab"}}, {"digest": {}}]}'
    (found,) = read_bundle(bundle(a_json=text))
    assert found.subjects == (Subject("x", (("sha256", "ab"),)), Subject("_", ()))
    assert statement(found, predicate={}, subjects=[])["subject"][0] == {"name": "x", "digest": {"sha256": "ab"}}


@given(st.one_of(st.text(max_size=60), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["_type", "predicateType", "subject", "predicate", "digest", "name"]), inner, max_size=4
    ),
    max_leaves=8,
).map(json.dumps)))  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_whatever_a_scanner_writes_is_taken_or_refused_by_name(text: str):
    tree = Tree().file("run/out/some.json", text.encode("utf-8", "surrogatepass"))
    refusal = ""
    try:
        read_bundle(tree)
    except InvalidBundle as error:
        refusal = error.message
    assert not refusal or "some.json" in refusal


def test_only_spdx_documents_get_layers():
    layer = Digest.of(b"layer")
    document = {"spdxVersion": "SPDX-2.3", "files": [{"fileName": "./a"}, {"fileName": "/a", "comment": "x"}, 5]}
    found = with_layers(document, {"/a": layer}, tool="t")
    assert found["files"] == [
        {"fileName": "./a", "comment": f"layerID: {layer}"},
        {"fileName": "/a", "comment": "x"},
        5,
    ]
    assert found["creationInfo"] == {"creators": ["Tool: t"]}
    assert document["files"][0] == {"fileName": "./a"}  # type: ignore[index]  # the list in the literal above
    for other in ({"name": "x"}, [], None, {"spdxVersion": "SPDX-3.0"}):
        assert with_layers(other, {"/a": layer}, tool="t") == other


def test_a_generator_has_a_default_and_keeps_its_parameters():
    assert ScannerChoice.parse({}).generator == "docker.io/docker/buildkit-syft-scanner:stable-1"
    choice = ScannerChoice.parse({"generator": "x", "ARG": "1"})
    assert (choice.generator, choice.parameters) == ("docker.io/library/x:latest", {"ARG": "1"})


# --- options ---------------------------------------------------------------------------------------------------------


def read(*attest: str, provenance: str | None = None, sbom: str | None = None, **arguments: str):
    return attestations(attest, provenance=provenance, sbom=sbom, build_args=arguments)


def test_attestations_are_off_unless_asked_for():
    assert read() == (None, None)
    assert read(provenance="true", sbom="1") == ({}, {})
    assert read("type=provenance,mode=max") == ({"mode": "max"}, None)
    assert read("type=provenance,mode=max", provenance="false") == (None, None)
    assert read("type=sbom,disabled=true", BUILDKIT_ATTEST_SBOM="generator=x") == (None, None)
    assert read(BUILDKIT_ATTEST_SBOM="generator=x") == (None, {"generator": "x"})
    assert read(sbom='Generator=x,ARG1=a,"ARG2=b,c"') == (None, {"generator": "x", "ARG1": "a", "ARG2": "b,c"})


@pytest.mark.parametrize("text", ["type=other", "mode=max", "type=sbom,disabled=perhaps", "type=sbom,=x", 'type="x"y'])
def test_wrong_attestation_options_are_refused(text: str):
    with pytest.raises(UsageError):
        read(text)


def test_the_metadata_files_provenance_is_minimal_by_default():
    assert metadata_provenance(False, {}) == ""
    assert metadata_provenance(True, {}) == "min"
    assert metadata_provenance(True, {"BUILDX_METADATA_PROVENANCE": "max"}) == "max"
    assert metadata_provenance(True, {"BUILDX_METADATA_PROVENANCE": "disabled"}) == ""
    with pytest.raises(UsageError):
        metadata_provenance(True, {"BUILDX_METADATA_PROVENANCE": "some"})
