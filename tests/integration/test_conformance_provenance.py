"""SLSA provenance as BuildKit stores it: what the predicate says, where it is kept, and how options change that."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.attested_images import Attested, dockerfile_in, read_layout, read_registry
from conformance.built_images import Command as Plain

pytestmark = pytest.mark.integration


class Command(Plain, Protocol):
    """The ``pybuild`` fixture, with its environment."""

    variables: Mapping[str, str]


DOCKERFILE = """
FROM busybox:latest
RUN echo "ok" > /foo
"""
BUSYBOX = "pkg:docker/busybox@latest?platform=linux%2Famd64"


def attested(pybuild: Command, dockerfile: str, context: Path, *arguments: str) -> Attested:
    """Build into an OCI layout and read its index."""
    layout = context.with_name(context.name + "-layout.tar")
    pybuild.build(dockerfile, context, f"--output=type=oci,dest={layout}", *arguments)
    return read_layout(layout)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory and the URL under which it is served."""
    directory = tmp_path / "served"
    directory.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield directory, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("mode", ["", "min", "max"])
def test_version_1_tells_request_materials_and_in_mode_max_the_steps(pybuild: Command, tmp_path: Path, mode: str):
    options = ",".join(["version=v1", *([f"mode={mode}"] if mode else [])])
    found = attested(
        pybuild, DOCKERFILE, tmp_path / "c", f"--provenance={options}", "--build-arg=FOO=bar", "--label=lbl=abc",
        "--build-context=foo=https://foo:bar@example.invalid/foo.html",
    )  # fmt: skip
    (statement,) = found.of().statements
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = statement["predicate"]
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    build_type = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
    assert definition["buildType"] == build_type
    assert run["builder"]["id"] == ""
    external = definition["externalParameters"]
    assert external["configSource"] == {"path": "Dockerfile"}
    request = external["request"]
    assert request["frontend"] == "dockerfile.v0"
    assert request["args"]["context:foo"] == "https://xxxxx:xxxxx@example.invalid/foo.html"
    assert request["locals"] == [{"name": "context"}, {"name": "dockerfile"}]
    (material,) = definition["resolvedDependencies"]
    assert material["uri"] == BUSYBOX
    assert re.fullmatch("[0-9a-f]{64}", material["digest"]["sha256"])
    internal = definition["internalParameters"]
    assert internal["builderPlatform"] == "linux/amd64"
    assert re.fullmatch(r"\d+\.\d+\.\d+", internal["dockerfileVersion"])
    metadata = run["metadata"]
    assert metadata["invocationId"]
    started, finished = (datetime.fromisoformat(metadata[key]) for key in ("startedOn", "finishedOn"))
    assert started < finished
    assert metadata["buildkit_completeness"]["resolvedDependencies"] is False
    assert "buildkit_hermetic" not in metadata
    assert "buildkit_reproducible" not in metadata
    if mode == "min":
        assert len(request["args"]) == 1
        assert metadata["buildkit_completeness"]["request"] is False
        assert "buildConfig" not in internal
        assert metadata["buildkit_metadata"] == {}
        return
    assert {key: request["args"][key] for key in ("build-arg:FOO", "label:lbl")} == {
        "build-arg:FOO": "bar", "label:lbl": "abc",
    }  # fmt: skip
    assert len(request["args"]) == 3
    assert metadata["buildkit_completeness"]["request"] is True
    assert len(internal["buildConfig"]["llbDefinition"]) == 3
    assert set(metadata["buildkit_metadata"]["layers"]) == {"step0:0", "step1:0"}
    assert dockerfile_in(metadata["buildkit_metadata"]) == DOCKERFILE
    layers = found.images[0].manifest["layers"]
    assert metadata["buildkit_metadata"]["layers"]["step1:0"] == [layers]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_version_0_2_tells_the_same_under_its_own_names(pybuild: Command, tmp_path: Path, mode: str):
    found = attested(
        pybuild, DOCKERFILE, tmp_path / "c", f"--provenance=version=v0.2,mode={mode}", "--build-arg=FOO=bar"
    )
    (statement,) = found.of().statements
    assert statement["predicateType"] == "https://slsa.dev/provenance/v0.2"
    predicate = statement["predicate"]
    assert predicate["builder"] == {"id": ""}
    assert predicate["buildType"] == "https://mobyproject.org/buildkit@v1"
    assert [material["uri"] for material in predicate["materials"]] == [BUSYBOX]
    invocation = predicate["invocation"]
    assert invocation["configSource"] == {"entryPoint": "Dockerfile"}
    assert invocation["parameters"]["frontend"] == "dockerfile.v0"
    assert invocation["environment"]["platform"] == "linux/amd64"
    assert invocation["environment"]["dockerfileVersion"]
    metadata = predicate["metadata"]
    assert metadata["completeness"] == {"parameters": mode == "max", "environment": True, "materials": False}
    assert metadata["reproducible"] is False
    assert datetime.fromisoformat(metadata["buildStartedOn"]) < datetime.fromisoformat(metadata["buildFinishedOn"])
    assert metadata["buildInvocationID"]
    assert "https://mobyproject.org/buildkit@v1#hermetic" not in metadata
    assert ("buildConfig" in predicate) is (mode == "max")
    assert ("args" in invocation["parameters"]) is (mode == "max")
    assert bool(metadata["https://mobyproject.org/buildkit@v1#metadata"]) is (mode == "max")


def test_a_pushed_image_is_an_index_with_the_image_and_an_artifact_that_refers_to_it(
    pybuild: Command, registry: str, tmp_path: Path
):
    names = [f"{registry}/attested/one:latest", f"{registry}/attested/two:v1"]
    pybuild.build(DOCKERFILE, tmp_path / "c", "--provenance=true", "--push", f"-t={names[0]}", f"-t={names[1]}")
    found = read_registry(registry, "attested/one", "latest")
    assert found == read_registry(registry, "attested/two", "v1")
    (image,) = found.images
    attestation = found.of()
    assert attestation.descriptor["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert attestation.descriptor["platform"] == {"architecture": "unknown", "os": "unknown"}
    assert attestation.descriptor["annotations"] == {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image.descriptor["digest"],
    }
    manifest = attestation.manifest
    assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
        "data": "e30=",
    }
    assert manifest["subject"] == {key: image.descriptor[key] for key in ("mediaType", "digest", "size")}
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.in-toto+json"
    assert layer["annotations"] == {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
    host = registry.replace(":", "%3A")
    assert attestation.statements[0]["subject"] == [
        {
            "name": f"pkg:docker/{host}/attested/{name}?platform=linux%2Famd64",
            "digest": {"sha256": image.descriptor["digest"].removeprefix("sha256:")},
        }
        for name in ("one@latest", "two@v1")
    ]


def test_without_artifacts_the_attestation_has_an_image_configuration(pybuild: Command, tmp_path: Path):
    layout = tmp_path / "layout"
    output = f"--output=type=oci,tar=false,oci-artifact=false,dest={layout}"
    pybuild.build(DOCKERFILE, tmp_path / "c", "--provenance=mode=min", output)
    manifest = read_layout(layout).of().manifest
    assert "artifactType" not in manifest
    assert "subject" not in manifest
    digest = manifest["config"]["digest"].removeprefix("sha256:")
    config = json.loads((layout / "blobs/sha256" / digest).read_bytes())
    assert (config["os"], config["architecture"]) == ("unknown", "unknown")
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert "history" not in config


def test_an_image_with_attestations_lives_in_the_local_store_and_survives_gc(
    pybuild: Command, registry: str, tmp_path: Path
):
    name = f"{registry}/kept:1"
    pybuild.build(DOCKERFILE, tmp_path / "c", "--provenance=true", f"-t={name}")
    assert pybuild.run("run", name, "cat", "/foo").stdout == "ok\n"
    pybuild.run("prune", "--all", "--force")
    pybuild.run("push", name)
    assert read_registry(registry, "kept", "1").of().statements


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not installed")
def test_a_git_context_is_a_material_with_its_commit_and_without_its_password(
    pybuild: Command, served: tuple[Path, str], tmp_path: Path, object_format: str
):
    directory, url = served
    (directory / "src").mkdir()
    (directory / "src/myapp.Dockerfile").write_text(
        'FROM busybox:latest\nRUN --network=none echo "git" > /foo\nCOPY myapp.Dockerfile /\n'
    )

    def git(*arguments: str) -> str:
        identity = ("-c", "user.email=test", "-c", "user.name=test")
        done = subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q", f"--object-format={object_format}")
    git("add", "src/myapp.Dockerfile")
    git("commit", "-qm", "initial")
    git("branch", "v1")
    git("update-server-info")
    masked = url.replace("http://", "http://xxxxx:xxxxx@")
    layout = tmp_path / "layout.tar"
    pybuild.run(
        "build", "--provenance=", "--provenance=mode=max", "-f", "myapp.Dockerfile", f"--output=type=oci,dest={layout}",
        url.replace("http://", "http://user:pass@") + "/.git#v1:src",
    )  # fmt: skip
    text = json.dumps(read_layout(layout).of().statements)
    assert "user:pass" not in text
    predicate = read_layout(layout).predicate()
    definition, metadata = predicate["buildDefinition"], predicate["runDetails"]["metadata"]
    external = definition["externalParameters"]
    commit = {object_format: git("rev-parse", "v1")}
    assert external["configSource"] == {
        "uri": f"{masked}/.git#v1:src", "digest": commit, "path": "myapp.Dockerfile",
    }  # fmt: skip
    base, tree = definition["resolvedDependencies"]
    assert base["uri"] == BUSYBOX
    assert tree == {"uri": f"{masked}/.git#v1", "digest": commit}
    assert "locals" not in external["request"]
    assert metadata["buildkit_completeness"] == {"request": True, "resolvedDependencies": True}
    assert metadata["buildkit_hermetic"] is True
    assert "vcs" not in metadata["buildkit_metadata"]


@pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not installed")
def test_a_local_context_in_a_repository_says_what_git_knows_of_it(pybuild: Command, tmp_path: Path):
    context = tmp_path / "c"
    context.mkdir()
    identity = ("-c", "user.email=test", "-c", "user.name=test")
    for arguments in (
        ("init", "-q"),
        ("commit", "-q", "--allow-empty", "-m", "one"),
        ("remote", "add", "origin", "https://user:pass@example.invalid/repo.git"),
    ):
        subprocess.run(["git", *identity, *arguments], cwd=context, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=context, check=True, capture_output=True, text=True)
    for mode in ("min", "max"):
        predicate = attested(pybuild, DOCKERFILE, context, f"--provenance=mode={mode}").predicate()
        assert predicate["runDetails"]["metadata"]["buildkit_metadata"]["vcs"] == {
            "source": "https://xxxxx:xxxxx@example.invalid/repo.git",
            "revision": head.stdout.strip(),
            "localdir:context": ".",
            "localdir:dockerfile": ".",
        }


def test_a_downloaded_file_is_a_material_with_its_digest(pybuild: Command, served: tuple[Path, str], tmp_path: Path):
    directory, url = served
    (directory / "data.txt").write_text("content")
    dockerfile = f"FROM scratch\nADD {url}/data.txt /\n"
    digest = hashlib.sha256(b"content").hexdigest()
    for _ in ("fresh", "cached"):
        predicate = attested(pybuild, dockerfile, tmp_path / "c", "--provenance=true").predicate()
        assert predicate["buildDefinition"]["resolvedDependencies"] == [
            {"uri": f"{url}/data.txt", "digest": {"sha256": digest}}
        ]


def test_every_platform_has_its_own_provenance(pybuild: Command, tmp_path: Path):
    dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY <<EOF /arch\n$TARGETARCH\nEOF\n"
    found = attested(pybuild, dockerfile, tmp_path / "c", "--provenance=mode=max", "--platform=linux/amd64,linux/arm64")
    assert [image.platform for image in found.images] == ["linux/amd64", "linux/arm64"]
    assert len(found.index["manifests"]) == 4
    identifiers = set()
    for platform in ("linux/amd64", "linux/arm64"):
        predicate = found.predicate(platform)
        identifiers.add(predicate["runDetails"]["metadata"]["invocationId"])
        assert "platform" not in predicate["buildDefinition"]["externalParameters"]["request"].get("args", {})
        steps = predicate["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"]
        made = steps[0]["op"]["Op"]["file"]["actions"][0]["Action"]["mkfile"]
        assert base64.b64decode(made["data"]).decode().strip() == platform.removeprefix("linux/")
        assert "platform" not in steps[0]["op"]  # files are the same on every machine: BuildKit names none here
    assert len(identifiers) == 1


def test_an_image_is_named_with_the_platform_that_it_was_wanted_for(pybuild: Command, registry: str, tmp_path: Path):
    base = f"{registry}/attested/base:1"
    pybuild.build(
        "FROM scratch\nCOPY <<EOF /f\nEOF\n", tmp_path / "b", "--platform=linux/amd64", "--provenance=false",
        f"--output=type=image,name={base},push=true,store=false",
    )  # fmt: skip
    platforms = ("linux/amd64", "linux/arm64")
    dockerfile = f"FROM {base}\nENV A=b\n"
    found = attested(pybuild, dockerfile, tmp_path / "c", "--provenance=true", f"--platform={','.join(platforms)}")
    for platform in platforms:
        (material,) = found.predicate(platform)["buildDefinition"]["resolvedDependencies"]
        assert material["uri"].endswith(f"/attested/base@1?platform={platform.replace('/', '%2F')}")


def test_secrets_and_agents_are_named_and_their_values_are_not(pybuild: Command, tmp_path: Path):
    dockerfile = """
FROM busybox:latest
RUN --mount=type=secret,id=othersecret --mount=type=secret,id=mysecret --mount=type=ssh echo "ok" > /foo
RUN --mount=type=secret,id=needed,required=true,env=NEEDED test -n "$NEEDED"
"""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    found = attested(pybuild, dockerfile, tmp_path / "c", "--provenance=true", f"--secret=id=needed,src={secret}")
    request = found.predicate()["buildDefinition"]["externalParameters"]["request"]
    assert request["secrets"] == [
        {"id": "mysecret", "optional": True},
        {"id": "needed"},
        {"id": "othersecret", "optional": True},
    ]
    assert request["ssh"] == [{"id": "default", "optional": True}]
    assert "hunter2" not in json.dumps(found.of().statements)
    hidden = attested(pybuild, dockerfile, tmp_path / "c", "--provenance=mode=min", f"--secret=id=needed,src={secret}")
    request = hidden.predicate()["buildDefinition"]["externalParameters"]["request"]
    assert "secrets" not in request
    assert "ssh" not in request


def test_an_image_from_a_layout_is_a_material_of_type_oci(pybuild: Command, tmp_path: Path):
    layout = tmp_path / "layout"
    base = "FROM scratch\nCOPY <<EOF /foo\nfoo\nEOF\n"
    pybuild.build(base, tmp_path / "base", f"--output=type=oci,tar=false,dest={layout}")
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    found = attested(
        pybuild,
        "FROM foo\nCOPY <<EOF /bar\nbar\nEOF\n",
        tmp_path / "c",
        "--provenance=mode=max",
        f"--build-context=foo=oci-layout://{layout}@{top['digest']}",
    )
    (material,) = found.predicate()["buildDefinition"]["resolvedDependencies"]
    assert material["uri"].startswith("pkg:oci/foo?digest=sha256:")
    assert material["digest"] == {"sha256": top["digest"].removeprefix("sha256:")}


@pytest.mark.parametrize("platforms", ["linux/amd64", "linux/amd64,linux/arm64", "linux/amd64,linux/amd64"])
@pytest.mark.parametrize("kind", ["image", "oci", "local", "tar"])
def test_a_result_without_any_file_has_provenance_too(pybuild: Command, tmp_path: Path, kind: str, platforms: str):
    output = {"image": "type=image"}.get(kind, f"type={kind},dest={tmp_path / 'out'}")
    pybuild.build(
        "FROM scratch\nENV FOO=bar\n", tmp_path / "c", "--provenance=true", f"--platform={platforms}", f"-o={output}"
    )


def test_every_line_of_the_dockerfile_maps_to_a_step(pybuild: Command, tmp_path: Path):
    dockerfile = 'FROM busybox\nRUN echo "hello" > foo\nWORKDIR /tmp\nCOPY foo foo2\nCOPY --link foo foo3\nADD bar bar'
    context = tmp_path / "c"
    context.mkdir()
    (context / "foo").write_text("data")
    (context / "bar").write_text("data2")
    for _ in ("fresh", "cached"):
        predicate = attested(pybuild, dockerfile, context, "--provenance=true").predicate()
        definition = predicate["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"]
        steps = {step["id"]: step for step in definition}
        assert len(steps) == len(definition)
        metadata = predicate["runDetails"]["metadata"]["buildkit_metadata"]
        lines = set()
        for step, places in metadata["source"]["locations"].items():
            if not places.get("locations"):
                assert steps[step]["op"]["Op"]["source"]["identifier"] == "local://context"
                continue
            (place,) = places["locations"]
            for area in place["ranges"]:
                assert area["start"]["line"] == area["end"]["line"]
                lines.add(area["start"]["line"])
        assert lines == {1, 2, 3, 4, 5, 6}
        for step in definition:
            for source in step.get("inputs", ()):
                assert int(source.removeprefix("step").removesuffix(":0")) < int(step["id"].removeprefix("step"))
        assert metadata["layers"]["step0:0"]


def test_a_base_that_two_stages_share_is_one_step(pybuild: Command, tmp_path: Path):
    dockerfile = """FROM busybox:latest AS base
FROM base AS a
RUN date +%s > /a.txt
FROM base AS b
COPY --from=a /a.txt /
RUN date +%s > /b.txt
"""
    predicate = attested(pybuild, dockerfile, tmp_path / "c", "--provenance=mode=max").predicate()
    assert len(predicate["runDetails"]["metadata"]["buildkit_metadata"]["layers"]["step0:0"]) == 1
    definition = predicate["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"]
    assert [next(iter(step["op"]["Op"]), "") for step in definition] == ["source", "exec", "file", "exec", ""]


FILES = """
FROM busybox:latest AS base
ARG TARGETARCH
COPY <<EOF /out/foo{suffix}
ok
EOF

FROM scratch
COPY --from=base /out /
"""


def check_file(path: Path, *, subject: str) -> dict[str, Any]:
    statement = json.loads(path.read_text())
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    digest = hashlib.sha256(b"ok\n").hexdigest()
    assert statement["subject"] == [{"name": subject, "digest": {"sha256": digest}}]
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(statement, dict)
    return statement


def test_a_local_export_has_the_statement_beside_its_files(pybuild: Command, tmp_path: Path):
    out = tmp_path / "out"
    pybuild.build(FILES.format(suffix=""), tmp_path / "c", "--provenance=mode=max", "-o", str(out))
    assert (out / "foo").read_text() == "ok\n"
    check_file(out / "provenance.json", subject="foo")
    other, prefixed = tmp_path / "other", f"type=local,dest={tmp_path / 'other'},attestation-prefix=test."
    pybuild.build(FILES.format(suffix=""), tmp_path / "c", "--provenance=mode=max,filename=p.json", "-o", prefixed)
    check_file(other / "test.p.json", subject="foo")


def test_a_tar_has_the_statement_beside_its_files(pybuild: Command, tmp_path: Path):
    out = tmp_path / "out.tar"
    pybuild.build(FILES.format(suffix=""), tmp_path / "c", "--provenance=mode=max", f"-o=type=tar,dest={out}")
    with tarfile.open(out) as archive:
        assert archive.getnames() == ["foo", "provenance.json"]
        member = archive.getmember("provenance.json")
        assert (member.mode, member.uid, member.gid) == (0o600, 0, 0)
        file = archive.extractfile(member)
        assert file is not None
        assert json.load(file)["subject"][0]["name"] == "foo"


def test_a_local_export_that_is_split_has_a_statement_in_each_folder(pybuild: Command, tmp_path: Path):
    out = tmp_path / "out"
    split = f"type=local,dest={out},platform-split=true"
    pybuild.build(FILES.format(suffix=""), tmp_path / "c", "--provenance=mode=max", "-o", split)
    check_file(out / "linux_amd64/provenance.json", subject="foo")


SCRATCH_FILES = "FROM scratch\nARG TARGETARCH\nCOPY <<EOF /foo{suffix}\nok\nEOF\n"


def test_several_platforms_have_a_statement_each_in_folders_or_by_name(pybuild: Command, tmp_path: Path):
    out, joined = tmp_path / "out", tmp_path / "joined"
    platforms = "--platform=linux/amd64,linux/arm64"
    pybuild.build(SCRATCH_FILES.format(suffix=""), tmp_path / "c", "--provenance=true", platforms, "-o", str(out))
    for folder in ("linux_amd64", "linux_arm64"):
        check_file(out / folder / "provenance.json", subject="foo")
    pybuild.build(
        SCRATCH_FILES.format(suffix="_${TARGETARCH}"), tmp_path / "c", "--provenance=true", platforms,
        f"-o=type=local,dest={joined},platform-split=false",
    )  # fmt: skip
    for machine in ("amd64", "arm64"):
        check_file(joined / f"provenance.linux_{machine}.json", subject=f"foo_{machine}")
    clash = pybuild.build(
        SCRATCH_FILES.format(suffix=""), tmp_path / "c", platforms,
        f"-o=type=local,dest={tmp_path / 'clash'},platform-split=false", check=False,
    )  # fmt: skip
    message = "cannot overwrite foo from linux/amd64 with linux/arm64 when split option is disabled"
    assert message in clash.stderr
    assert not (tmp_path / "clash").exists()


def test_inline_only_provenance_is_in_images_but_makes_neither_files_nor_an_index_of_an_archive(
    pybuild: Command, tmp_path: Path
):
    out, layout = tmp_path / "out", tmp_path / "layout"
    metadata = tmp_path / "metadata.json"
    pybuild.build(
        DOCKERFILE, tmp_path / "c", "--provenance=mode=min,inline-only=true", f"-o=type=local,dest={out}",
        f"-o=type=oci,tar=false,dest={layout}", "-o=type=image", f"--metadata-file={metadata}",
    )  # fmt: skip
    assert not (out / "provenance.json").exists()
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert top["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    descriptor = json.loads(metadata.read_text())["containerimage.descriptor"]
    assert descriptor["mediaType"] == "application/vnd.oci.image.index.v1+json"
    pybuild.build(
        DOCKERFILE, tmp_path / "c", "--provenance=mode=min,inline-only=true",
        f"-o=type=oci,tar=false,attestation-inline=true,dest={tmp_path / 'inline'}",
    )  # fmt: skip
    assert read_layout(tmp_path / "inline").of().statements


def test_what_cant_hold_attestations_is_refused(pybuild: Command, tmp_path: Path):
    docker = pybuild.build(
        DOCKERFILE, tmp_path / "c", "--provenance=true", f"-o=type=docker,dest={tmp_path / 'x'}", check=False
    )
    assert docker.returncode == 1
    assert "docker exporter does not currently support exporting manifest lists" in docker.stderr
    old = pybuild.build(
        DOCKERFILE, tmp_path / "c", "--provenance=true", "-o=type=image,oci-mediatypes=false", check=False
    )
    assert 'cannot export attestations with "oci-mediatypes=false"' in old.stderr
    both = pybuild.build(
        DOCKERFILE, tmp_path / "c", "-o=type=image,oci-mediatypes=false,oci-artifact=true", check=False
    )
    assert 'exporter option "oci-artifact=true" conflicts with "oci-mediatypes=false"' in both.stderr


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("mode=some", 'invalid mode "some"'),
        ("version=v3", "invalid provenance SLSA version: v3"),
        ("reproducible=maybe", 'failed to parse reproducible flag "maybe"'),
        ("complete-materials=true", "provenance materials are incomplete"),
    ],
)
def test_wrong_attributes_are_refused(pybuild: Command, tmp_path: Path, attributes: str, message: str):
    refused = pybuild.build(DOCKERFILE, tmp_path / "c", f"--provenance={attributes}", check=False)
    assert refused.returncode != 0
    assert message in refused.stderr


def test_attributes_say_who_built_and_that_it_is_reproducible(pybuild: Command, tmp_path: Path):
    options = "builder-id=https://ci.example/1,reproducible=true,mode=full"
    found = attested(pybuild, DOCKERFILE, tmp_path / "c", f"--attest=type=provenance,{options}")
    run = found.predicate()["runDetails"]
    assert run["builder"]["id"] == "https://ci.example/1"
    assert run["metadata"]["buildkit_reproducible"] is True


def test_there_are_no_attestations_unless_they_are_asked_for(pybuild: Command, tmp_path: Path):
    for number, arguments in enumerate([(), ("--provenance=false",), ("--attest=type=provenance,disabled=true",)]):
        layout = tmp_path / f"layout{number}"
        pybuild.build(DOCKERFILE, tmp_path / "c", f"-o=type=oci,tar=false,dest={layout}", *arguments)
        (top,) = json.loads((layout / "index.json").read_text())["manifests"]
        assert top["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    found = attested(pybuild, DOCKERFILE, tmp_path / "c", "--build-arg=BUILDKIT_ATTEST_PROVENANCE=mode=min")
    assert found.of().statements


def test_the_metadata_file_has_provenance_as_buildx_writes_it(pybuild: Command, tmp_path: Path):
    metadata = tmp_path / "metadata.json"

    def told(*arguments: str, **variables: str) -> dict[str, Any]:
        pybuild.variables = {**pybuild.variables, **variables}
        pybuild.build("FROM scratch\nENV A=b\n", tmp_path / "c", f"--metadata-file={metadata}", *arguments)
        value = json.loads(metadata.read_text())
        assert isinstance(value, dict)
        return value

    minimal = told()["buildx.build.provenance"]
    assert minimal["buildDefinition"]["externalParameters"]["configSource"] == {"path": "Dockerfile"}
    assert "buildConfig" not in minimal["buildDefinition"]["internalParameters"]
    several = told("--platform=linux/amd64,linux/arm64")
    assert {key for key in several if key.startswith("buildx.build.provenance")} == {
        "buildx.build.provenance/linux/amd64", "buildx.build.provenance/linux/arm64",
    }  # fmt: skip
    maximal = told(BUILDX_METADATA_PROVENANCE="max")["buildx.build.provenance"]
    assert "buildConfig" in maximal["buildDefinition"]["internalParameters"]
    assert "buildx.build.provenance" not in told(BUILDX_METADATA_PROVENANCE="disabled")


def test_the_configuration_adds_to_provenance(pybuild: Command, tmp_path: Path):
    directory, config = tmp_path / "provenance.d", tmp_path / "pybuild.toml"
    directory.mkdir()
    (directory / "foo.json").write_text('{"foo": "bar"}')
    (directory / "numbers.json").write_text('{"numbers": [1, 2, 3]}')
    config.write_text(f'provenanceEnvDir = "{directory}"\n')
    pybuild.variables = {**pybuild.variables, "PYBUILD_CONFIG": str(config)}
    internal = attested(pybuild, DOCKERFILE, tmp_path / "c", "--provenance=mode=min").predicate()["buildDefinition"][
        "internalParameters"
    ]
    assert internal["foo"] == "bar"
    assert internal["numbers"] == [1, 2, 3]
    environment = attested(pybuild, DOCKERFILE, tmp_path / "c", "--provenance=mode=min,version=v0.2").predicate()[
        "invocation"
    ]["environment"]
    assert environment["foo"] == "bar"
    (directory / "wrong.json").write_text('{"builderPlatform": "mine"}')
    refused = pybuild.build(DOCKERFILE, tmp_path / "c", "--provenance=true", check=False)
    assert 'key "builderPlatform" is builtin' in refused.stderr
