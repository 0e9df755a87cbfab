"""Software bills of materials: scanners run as images over results, stages and contexts; what they write is stored as BuildKit stores it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.attested_images import Attested, read_layout, read_registry
from conformance.built_images import Command

pytestmark = pytest.mark.integration

SPDX = "https://spdx.dev/Document"
SCANNER = """
FROM busybox:latest
ENV LANGUAGE=en
COPY <<"SCRIPT" /scan.sh
set -e
cat <<BUNDLE > $BUILDKIT_SCAN_DESTINATION/spdx.json
{
  "_type": "https://in-toto.io/Statement/v1",
  "predicateType": "https://spdx.dev/Document",
  "predicate": {
    "name": "core",
    "files": "$(ls $BUILDKIT_SCAN_SOURCE | tr '\\n' ' ')",
    "arguments": ["$BUILDKIT_SCAN_ARG1", "$BUILDKIT_SCAN_ARG2"],
    "language": "$LANGUAGE"
  }
}
BUNDLE
if [ "${BUILDKIT_SCAN_SOURCE_EXTRAS}" ]; then
for src in "${BUILDKIT_SCAN_SOURCE_EXTRAS}"/*; do
cat <<BUNDLE > $BUILDKIT_SCAN_DESTINATION/$(basename $src).spdx.json
{
  "_type": "https://in-toto.io/Statement/v1",
  "predicateType": "https://spdx.dev/Document",
  "predicate": {"name": "extra", "files": "$(ls $src | tr '\\n' ' ')"}
}
BUNDLE
done
fi
SCRIPT
CMD sh /scan.sh
"""
TARGET = "FROM scratch\nCOPY <<EOF /foo\ndata\nEOF\n"


def scanner(pybuild: Command, directory: Path, dockerfile: str = SCANNER) -> str:
    """Build a scanner; returns its name."""
    name = f"example.com/{directory.name}:1"
    pybuild.build(dockerfile, directory, f"-t={name}")
    return name


def shell_scanner(pybuild: Command, directory: Path, script: str) -> str:
    """A scanner that runs ``script``."""
    return scanner(pybuild, directory, f"FROM busybox\nCMD {json.dumps(['/bin/sh', '-ec', script])}\n")


def attested(pybuild: Command, dockerfile: str, context: Path, *arguments: str) -> Attested:
    """Build into an OCI layout and read its index."""
    layout = context.with_name(context.name + "-layout.tar")
    pybuild.build(dockerfile, context, f"--output=type=oci,dest={layout}", *arguments)
    return read_layout(layout)


def by_name(found: Attested) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for statement in found.of().statements:
        assert statement["predicateType"] == SPDX
        out.setdefault(statement["predicate"]["name"], []).append(statement["predicate"])
    return out


def test_a_scanners_statement_is_stored_beside_the_pushed_image(pybuild: Command, registry: str, tmp_path: Path):
    generator = f"{registry}/scanners/plain:latest"
    pybuild.build(SCANNER, tmp_path / "scanner", "--push", f"-t={generator}")
    pybuild.run("rmi", generator)
    target = f"{registry}/scanned:latest"
    pybuild.build(TARGET, tmp_path / "c", f"--sbom=generator={generator}", "--push", f"-t={target}")
    found = read_registry(registry, "scanned", "latest")
    assert len(found.index["manifests"]) == 2
    attestation = found.of()
    (layer,) = attestation.manifest["layers"]
    assert layer["annotations"] == {"in-toto.io/predicate-type": SPDX}
    (statement,) = attestation.statements
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicate"] == {"name": "core", "files": "foo ", "arguments": ["", ""], "language": "en"}
    assert statement["subject"][0]["name"].startswith("pkg:docker/127.0.0.1%3A")


def test_parameters_reach_the_scanner_as_they_are_written(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    options = f'generator={name},ARG1=foo,"ARG2=hello, world"'
    for option in (f"--sbom={options}", f"--attest=type=sbom,{options}"):
        (core,) = by_name(attested(pybuild, TARGET, tmp_path / "c", option))["core"]
        assert core["arguments"] == ["foo", "hello, world"]


def test_stages_that_dont_declare_the_arguments_are_not_scanned(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    found = attested(
        pybuild, TARGET.replace("scratch", "scratch AS base") + "FROM base\n", tmp_path / "c", f"--sbom=generator={name}",
        "--build-arg=BUILDKIT_SBOM_SCAN_CONTEXT=true", "--build-arg=BUILDKIT_SBOM_SCAN_STAGE=true",
    )  # fmt: skip
    assert {key: len(values) for key, values in by_name(found).items()} == {"core": 1}


SEVERAL = """
ARG BUILDKIT_SBOM_SCAN_CONTEXT=true

FROM scratch AS file
ARG BUILDKIT_SBOM_SCAN_STAGE=true
COPY <<EOF /file
data
EOF

FROM scratch AS base
ARG BUILDKIT_SBOM_SCAN_STAGE=true
COPY --from=file /file /foo

FROM scratch AS base2
ARG BUILDKIT_SBOM_SCAN_STAGE=true
COPY --from=file /file /bar
RUN non-existent-command-would-fail

FROM base
ARG BUILDKIT_SBOM_SCAN_STAGE=true
"""


def test_stages_and_the_context_are_scanned_where_arguments_ask_for_it(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    found = by_name(attested(pybuild, SEVERAL, tmp_path / "c", f"--sbom=generator={name}"))
    assert len(found["core"]) == 1
    assert sorted(extra["files"] for extra in found["extra"]) == ["Dockerfile ", "file ", "foo "]
    without = attested(
        pybuild, SEVERAL, tmp_path / "c", f"--sbom=generator={name}", "--build-arg=BUILDKIT_SBOM_SCAN_CONTEXT=false",
        "--build-arg=BUILDKIT_SBOM_SCAN_STAGE=false",
    )  # fmt: skip
    assert len(by_name(without)) == 1
    one = attested(
        pybuild, SEVERAL, tmp_path / "c", f"--sbom=generator={name}", "--build-arg=BUILDKIT_SBOM_SCAN_CONTEXT=false",
        "--build-arg=BUILDKIT_SBOM_SCAN_STAGE=other,file",
    )  # fmt: skip
    assert [extra["files"] for extra in by_name(one)["extra"]] == ["file "]


def test_the_files_of_an_sbom_name_their_layers(pybuild: Command, tmp_path: Path):
    document = {
        "spdxVersion": "SPDX-2.3",
        "SPDXID": "SPDXRef-DOCUMENT",
        "creationInfo": {"creators": ["Tool: fake"]},
        "files": [
            {"SPDXID": "SPDXRef-first", "fileName": "/first"},
            {"SPDXID": "SPDXRef-second", "fileName": "./d/.second"},
            {"SPDXID": "SPDXRef-again", "fileName": "again"},
            {"SPDXID": "SPDXRef-missing", "fileName": "/missing"},
            {"SPDXID": "SPDXRef-said", "fileName": "/first", "comment": "already said"},
        ],
    }
    statement = {"_type": "https://in-toto.io/Statement/v1", "predicateType": SPDX, "predicate": document}
    script = f"cat <<'EOF' > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json\n{json.dumps(statement)}\nEOF\n"
    name = shell_scanner(pybuild, tmp_path / "scanner", script)
    dockerfile = "FROM scratch\nCOPY Dockerfile /first\nCOPY Dockerfile /d/.second\nCOPY Dockerfile again\nCOPY <<EOF again\nnew\nEOF\n"
    found = attested(pybuild, dockerfile, tmp_path / "c", f"--sbom=generator={name}")
    layers = [layer["digest"] for layer in found.images[0].manifest["layers"]]
    predicate = found.predicate()
    comments = [file.get("comment") for file in predicate["files"]]
    assert comments == [
        f"layerID: {layers[0]}", f"layerID: {layers[1]}", f"layerID: {layers[3]}", None, "already said",
    ]  # fmt: skip
    creators = predicate["creationInfo"]["creators"]
    assert creators[0] == "Tool: fake"
    assert creators[1].startswith("Tool: pybuild-")


def test_the_sbom_comes_before_provenance_which_names_the_scanner(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    found = attested(pybuild, TARGET, tmp_path / "c", f"--sbom=generator={name}", "--provenance=mode=max")
    sbom, provenance = found.of().statements
    assert sbom["predicateType"] == SPDX
    definition = provenance["predicate"]["buildDefinition"]
    (material,) = definition["resolvedDependencies"]
    assert material["uri"] == "pkg:docker/example.com/scanner@1?platform=linux%2Famd64"
    # The scan itself is no step of the result.
    assert len(definition["internalParameters"]["buildConfig"]["llbDefinition"]) == 2


def test_an_empty_result_can_be_scanned(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    (core,) = by_name(attested(pybuild, "FROM scratch\nENV A=b\n", tmp_path / "c", f"--sbom=generator={name}"))["core"]
    assert core["files"] == ""


def test_every_platforms_result_is_scanned_on_this_machine(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY <<EOF /on-$TARGETARCH\n1\nEOF\n"
    found = attested(
        pybuild, dockerfile, tmp_path / "c", f"--sbom=generator={name}", "--platform=linux/amd64,linux/arm64"
    )
    for machine in ("amd64", "arm64"):
        assert found.predicate(f"linux/{machine}")["files"] == f"on-{machine} "


def test_a_local_export_has_the_sboms_as_files(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    out = tmp_path / "out"
    pybuild.build(SEVERAL, tmp_path / "c", f"--sbom=generator={name}", "-o", str(out))
    names = {path.name for path in out.iterdir()}
    assert names == {"foo", "spdx.json", "sbom-base.spdx.json", "sbom-file.spdx.json", "sbom-context.spdx.json"}
    assert json.loads((out / "spdx.json").read_text())["subject"][0]["name"] == "foo"


def test_a_scan_is_cached_like_any_other_step(pybuild: Command, tmp_path: Path):
    name = scanner(pybuild, tmp_path / "scanner")
    arguments = (f"--sbom=generator={name}", "-o=type=cacheonly")
    first = pybuild.build(TARGET, tmp_path / "c", *arguments).stderr
    assert "[linux/amd64] generating sbom using example.com/scanner:1" in first
    pybuild.build(TARGET, tmp_path / "c", "--require-cache", *arguments)
    fresh = pybuild.build(TARGET, tmp_path / "c", "--no-cache", *arguments).stderr
    assert "CACHED" not in fresh.partition("generating sbom")[2]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo broken >&2; exit 3", "exit code: 3"),
        ("echo nonsense > $BUILDKIT_SCAN_DESTINATION/x.json", "cannot decode in-toto statement"),
        ("echo [] > $BUILDKIT_SCAN_DESTINATION/x.json", "is not a single JSON object"),
        ("mkdir $BUILDKIT_SCAN_DESTINATION/x", "is not a regular file"),
        (
            """echo '{"predicateType": "https://slsa.dev/provenance/v1"}' > $BUILDKIT_SCAN_DESTINATION/x.json""",
            f"does not match required predicate type {SPDX}",
        ),
        ("ln -s /etc/passwd $BUILDKIT_SCAN_DESTINATION/x.json", "is not a regular file"),
    ],
)
def test_a_scanner_that_fails_fails_the_build(pybuild: Command, tmp_path: Path, script: str, message: str):
    name = shell_scanner(pybuild, tmp_path / "scanner", script)
    failed = pybuild.build(TARGET, tmp_path / "c", f"--sbom=generator={name}", check=False)
    assert failed.returncode == 1
    assert message in failed.stderr


def test_a_generator_that_isnt_one_is_refused(pybuild: Command, tmp_path: Path):
    pybuild.build("FROM scratch\nCOPY <<EOF /a\n1\nEOF\n", tmp_path / "nothing", "-t=nothing:1")
    nothing = pybuild.build(TARGET, tmp_path / "c", "--sbom=generator=nothing:1", check=False)
    assert "scanner docker.io/library/nothing:1 does not have cmd" in nothing.stderr
    empty = pybuild.build(TARGET, tmp_path / "c", "--sbom=generator=", check=False)
    assert "sbom scanner cannot be empty" in empty.stderr
    wrong = pybuild.build(TARGET, tmp_path / "c", "--sbom=generator=UPPER", check=False)
    assert "failed to parse sbom scanner UPPER" in wrong.stderr
