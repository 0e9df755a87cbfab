"""Provenance predicates, package URLs and the steps that mode=max tells."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.graph import (
    BindMount,
    CacheMount,
    ContextSource,
    Exec,
    FileCopy,
    FileMake,
    GitSource,
    HttpSource,
    ImageSource,
    InlineFile,
    Merge,
    Network,
    Note,
    Op,
    Scratch,
    SecretMount,
    SshMount,
    TmpfsMount,
    Vertex,
)
from pybuild.builder.keys import definition_key
from pybuild.builder.provenance import (
    Capture,
    Details,
    FrontendRequest,
    GitMaterial,
    HttpMaterial,
    ImageMaterial,
    IncompleteMaterials,
    Invocation,
    ProvenanceOptions,
    predicate,
)
from pybuild.builder.provenance_steps import SourceFile, details, operation
from pybuild.builder.purl import image_purl
from pybuild.builder.redaction import mask_credentials
from pybuild.builder.solver_steps import Result, Step
from pybuild.errors import UsageError
from pybuild.layers.descriptor import OCI_LAYER_GZIP, Descriptor, Platform
from pybuild.layers.digest import Digest

AMD64 = Platform("linux", "amd64")
DIGEST = Digest.of(b"image")
INVOCATION = Invocation(id="id", platform=AMD64, started=1_000_000_000.0, finished=1_000_000_001.25)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("busybox", "pkg:docker/busybox@latest"),
        ("docker.io/library/alpine:3.17", "pkg:docker/alpine@3.17"),
        ("docker.io/docker/dockerfile:1", "pkg:docker/docker/dockerfile@1"),
        ("127.0.0.1:5000/a/b:v1", "pkg:docker/127.0.0.1%3A5000/a/b@v1"),
        (f"alpine:3@{DIGEST}", f"pkg:docker/alpine@3?digest={DIGEST}"),
        (f"alpine@{DIGEST}", f"pkg:docker/alpine?digest={DIGEST}"),
    ],
)
def test_an_image_name_becomes_a_package_url(reference: str, expected: str):
    assert image_purl(reference) == expected
    separator = "&" if "?" in expected else "?"
    assert image_purl(reference, platform=AMD64) == f"{expected}{separator}platform=linux%2Famd64"


def test_the_platform_of_a_package_url_is_normalized():
    assert image_purl("a", platform=Platform("linux", "arm64", "v8")).endswith("?platform=linux%2Farm64")
    assert image_purl("a", platform=Platform("linux", "arm", "v7")).endswith("?platform=linux%2Farm%2Fv7")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:password@host.tld/this:that", "https://xxxxx:xxxxx@host.tld/this:that"),
        ("https://user@host.tld/this:that", "https://xxxxx@host.tld/this:that"),
        ("https://:password@host.tld/this:that", "https://:xxxxx@host.tld/this:that"),
        ("https://host.tld/this:that", "https://host.tld/this:that"),
        ("1https://foo.com", "1https://foo.com"),
        ("git@host.tld:path.git", "git@host.tld:path.git"),
        ("http://[::1/broken", "http://[::1/broken"),
    ],
)
def test_credentials_in_urls_are_masked(url: str, expected: str):
    assert mask_credentials(url) == expected


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=60)
def test_masking_takes_any_text_and_is_stable(text: str):
    once = mask_credentials(f"https://{text}")
    assert mask_credentials(once) == once


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_default_to_everything_in_version_1():
    options = ProvenanceOptions.parse({})
    assert (options.maximum, options.version, options.filename) == (True, "v1", "provenance.json")
    assert options.predicate_type == "https://slsa.dev/provenance/v1"


@pytest.mark.parametrize(
    "attributes",
    [{"mode": "x"}, {"version": "v2"}, {"reproducible": "yes please"}, {"complete-materials": ""}],
)
def test_wrong_options_are_refused(attributes: dict[str, str]):
    with pytest.raises(UsageError):
        ProvenanceOptions.parse(attributes)


# --- predicates ------------------------------------------------------------------------------------------------------

CAPTURE = Capture(
    images=(
        ImageMaterial(f"docker.io/library/busybox:latest@{DIGEST}", DIGEST, AMD64),
        ImageMaterial("docker.io/library/busybox:latest", DIGEST, AMD64),
        ImageMaterial("docker.io/library/alpine:3", DIGEST, AMD64),
    ),
    git=(GitMaterial("https://u:p@example.com/r.git#v1", "a" * 40), GitMaterial("https://example.com/2.git", "b" * 64)),
    http=(HttpMaterial("https://u:p@example.com/file", DIGEST),),
    locals=("dockerfile", "context"),
    secrets={"z": True, "a": False},
    ssh={"default": True},
    network=True,
)
REQUEST = FrontendRequest(
    args={"build-arg:A": "1", "label:b": "2", "target": "t"},
    path="Dockerfile",
    vcs={"source": "https://u:p@example.com/r.git", "revision": "123", "empty": ""},
)
MORE = Details(build_config={"llbDefinition": []}, source={"infos": []}, layers={"step0:0": []})


def test_version_1_in_its_whole_shape():
    document = predicate(CAPTURE, REQUEST, invocation=INVOCATION, options=ProvenanceOptions(), details=MORE)
    version = document["buildDefinition"]["internalParameters"]["dockerfileVersion"]
    assert document == {
        "buildDefinition": {
            "buildType": "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md",
            "resolvedDependencies": [
                {"uri": "pkg:docker/alpine@3?platform=linux%2Famd64", "digest": {"sha256": DIGEST.hex}},
                {"uri": "pkg:docker/busybox@latest?platform=linux%2Famd64", "digest": {"sha256": DIGEST.hex}},
                {"uri": "https://example.com/2.git", "digest": {"sha256": "b" * 64}},
                {"uri": "https://xxxxx:xxxxx@example.com/r.git#v1", "digest": {"sha1": "a" * 40}},
                {"uri": "https://xxxxx:xxxxx@example.com/file", "digest": {"sha256": DIGEST.hex}},
            ],
            "externalParameters": {
                "configSource": {"path": "Dockerfile"},
                "request": {
                    "frontend": "dockerfile.v0",
                    "args": {"build-arg:A": "1", "label:b": "2", "target": "t"},
                    "secrets": [{"id": "a"}, {"id": "z", "optional": True}],
                    "ssh": [{"id": "default", "optional": True}],
                    "locals": [{"name": "context"}, {"name": "dockerfile"}],
                    "compatibilityVersion": 30,
                },
            },
            "internalParameters": {
                "buildConfig": {"llbDefinition": []},
                "builderPlatform": "linux/amd64",
                "dockerfileVersion": version,
            },
        },
        "runDetails": {
            "builder": {"id": ""},
            "metadata": {
                "invocationId": "id",
                "startedOn": "2001-09-09T01:46:40Z",
                "finishedOn": "2001-09-09T01:46:41.25Z",
                "buildkit_metadata": {
                    "vcs": {"revision": "123", "source": "https://xxxxx:xxxxx@example.com/r.git"},
                    "source": {"infos": []},
                    "layers": {"step0:0": []},
                },
                "buildkit_completeness": {"request": True, "resolvedDependencies": False},
            },
        },
    }


def test_mode_min_says_nothing_of_arguments_and_secrets():
    document = predicate(CAPTURE, REQUEST, invocation=INVOCATION, options=ProvenanceOptions(maximum=False))
    request = document["buildDefinition"]["externalParameters"]["request"]
    assert request == {
        "frontend": "dockerfile.v0",
        "args": {"target": "t"},
        "locals": [{"name": "context"}, {"name": "dockerfile"}],
        "compatibilityVersion": 30,
    }
    assert document["runDetails"]["metadata"]["buildkit_completeness"]["request"] is False
    assert set(document["runDetails"]["metadata"]["buildkit_metadata"]) == {"vcs"}


def test_version_0_2_is_the_same_under_other_names():
    options = ProvenanceOptions(version="v0.2", builder_id="https://b", reproducible=True)
    environment = {"foo": "bar"}
    invocation = Invocation(id="id", platform=AMD64, started=0, finished=1, environment=environment)
    capture = Capture(git=(GitMaterial("https://example.com/r.git", "a" * 40),))
    request = FrontendRequest(uri="https://u:p@example.com/r.git", digest={"sha1": "a" * 40}, path="D")
    document = predicate(capture, request, invocation=invocation, options=options, details=MORE)
    version = document["invocation"]["environment"]["dockerfileVersion"]
    assert document == {
        "builder": {"id": "https://b"},
        "buildType": "https://mobyproject.org/buildkit@v1",
        "materials": [{"uri": "https://example.com/r.git", "digest": {"sha1": "a" * 40}}],
        "invocation": {
            "configSource": {
                "uri": "https://xxxxx:xxxxx@example.com/r.git",
                "digest": {"sha1": "a" * 40},
                "entryPoint": "D",
            },
            "parameters": {"frontend": "dockerfile.v0", "compatibilityVersion": 30},
            "environment": {"dockerfileVersion": version, "foo": "bar", "platform": "linux/amd64"},
        },
        "buildConfig": {"llbDefinition": []},
        "metadata": {
            "buildInvocationID": "id",
            "buildStartedOn": "1970-01-01T00:00:00Z",
            "buildFinishedOn": "1970-01-01T00:00:01Z",
            "completeness": {"parameters": True, "environment": True, "materials": True},
            "reproducible": True,
            "https://mobyproject.org/buildkit@v1#metadata": {"source": {"infos": []}, "layers": {"step0:0": []}},
            "https://mobyproject.org/buildkit@v1#hermetic": True,
        },
    }


def test_a_graph_without_a_frontend_has_no_complete_request():
    request = FrontendRequest(frontend="")
    document = predicate(Capture(), request, invocation=INVOCATION, options=ProvenanceOptions())
    assert "frontend" not in document["buildDefinition"]["externalParameters"]["request"]
    assert "dockerfileVersion" not in document["buildDefinition"]["internalParameters"]
    assert document["runDetails"]["metadata"]["buildkit_completeness"]["request"] is False
    assert document["runDetails"]["metadata"]["buildkit_hermetic"] is True


def test_complete_materials_can_be_required():
    options = ProvenanceOptions(complete_materials=True)
    predicate(Capture(), REQUEST, invocation=INVOCATION, options=options)
    with pytest.raises(IncompleteMaterials, match="context"):
        predicate(Capture(locals=("context",)), REQUEST, invocation=INVOCATION, options=options)


# --- steps -----------------------------------------------------------------------------------------------------------


def step(op: Op, *inputs: Step, line: int | None = None, stack: tuple[Digest, ...] | None = None) -> Step:
    note = Note("title", None if line is None else (line, line))
    recipe = definition_key(op, [each.key for each in inputs])
    made = Step(Vertex(op, tuple(each.vertex for each in inputs), note), op, inputs, recipe.key, recipe, False, False)
    made.result = None if stack is None else Result(stack, 1, False, recipe.key)
    return made


BASE_LAYER, OWN_LAYER = Digest.of(b"base"), Digest.of(b"own")
IMAGE = step(ImageSource(f"docker.io/library/busybox:latest@{DIGEST}", DIGEST, (BASE_LAYER,), AMD64), line=1)
RUN = Exec(args=("/bin/sh", "-c", "true"), env=(("A", "b"),), cwd="/", user="", platform=AMD64)


def test_steps_come_with_inputs_places_and_layers():
    context = step(ContextSource("context"))
    copied = step(FileCopy(sources=("/a",), destination="/b"), IMAGE, context, line=2, stack=(BASE_LAYER, OWN_LAYER))
    run = step(RUN, copied, line=3, stack=(BASE_LAYER, OWN_LAYER, Digest.of(b"unknown")))
    blobs = {diff_id: Descriptor(OCI_LAYER_GZIP, diff_id, 7) for diff_id in (BASE_LAYER, OWN_LAYER)}
    found = details(run, source=SourceFile("Dockerfile", b"FROM"), blobs=blobs)
    definition = found.build_config["llbDefinition"]
    assert [(each["id"], each.get("inputs")) for each in definition] == [
        ("step0", None),
        ("step1", None),
        ("step2", ["step0:0", "step1:0"]),
        ("step3", ["step2:0"]),
        ("step4", ["step3:0"]),
    ]
    assert definition[4]["op"] == {"Op": {}}
    assert sorted(found.build_config["digestMapping"].values()) == [each["id"] for each in definition]
    assert found.source is not None
    assert found.source["locations"] == {
        "step0": {"locations": [{"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]}]},
        "step1": {},
        "step2": {"locations": [{"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}]},
        "step3": {"locations": [{"ranges": [{"start": {"line": 3}, "end": {"line": 3}}]}]},
    }
    (info,) = found.source["infos"]
    assert (info["filename"], info["language"], info["data"]) == ("Dockerfile", "Dockerfile", "RlJPTQ==")
    assert info["llbDefinition"]
    assert {key: [[blob["digest"] for blob in chain] for chain in chains] for key, chains in found.layers.items()} == {
        "step0:0": [[str(BASE_LAYER)]],
        "step2:0": [[str(BASE_LAYER), str(OWN_LAYER)]],
    }


def test_nothing_is_no_step():
    found = details(step(Scratch()), source=None, blobs={})
    assert found.build_config["llbDefinition"] == [{"id": "step0", "op": {"Op": {}}}]
    made = step(FileMake("/a"), step(Scratch()))
    (action,) = operation(made)["Op"]["file"]["actions"]
    assert action == {
        "input": -1,
        "secondaryInput": -1,
        "output": 0,
        "Action": {"mkdir": {"path": "/a", "mode": 0o755, "makeParents": True, "timestamp": -1}},
    }


def test_a_run_is_told_with_its_mounts_but_without_values():
    op = Exec(
        args=("true",),
        env=(),
        cwd="/w",
        user="me",
        platform=AMD64,
        mounts=(
            BindMount("/bind", 1, source="/sub"),
            CacheMount("/cache", "id"),
            TmpfsMount("/tmp", 5),
            SecretMount("token", "/run/secrets/token"),
            SecretMount("other", None, env="OTHER", required=True),
            SshMount("default", "/run/agent"),
        ),
        scripts=(InlineFile("EOF", b"#!/bin/sh\n"),),
        network=Network.NONE,
        hidden_env=(("HTTP_PROXY", "http://u:p@proxy"),),
    )
    body = operation(step(op, IMAGE, step(ContextSource("context"))))
    assert body["Op"]["exec"] == {
        "meta": {"args": ["true"], "env": [], "cwd": "/w", "user": "me", "removeMountStubsRecursive": True},
        "mounts": [
            {"dest": "/"},
            {"input": 1, "dest": "/bind", "output": -1, "selector": "/sub", "readonly": True},
            {"input": -1, "dest": "/cache", "output": -1, "mountType": 3, "cacheOpt": {"ID": "id"}},
            {"input": -1, "dest": "/dev/pipes/EOF", "output": -1, "readonly": True},
            {
                "input": -1,
                "dest": "/run/agent",
                "output": -1,
                "mountType": 2,
                "SSHOpt": {"ID": "default", "mode": 0o600, "optional": True},
            },
            {
                "input": -1,
                "dest": "/run/secrets/token",
                "output": -1,
                "mountType": 1,
                "secretOpt": {"ID": "token", "mode": 0o400, "optional": True},
            },
            {"input": -1, "dest": "/tmp", "output": -1, "mountType": 4, "TmpfsOpt": {"size": 5}},
        ],
        "network": 2,
        "secretenv": [{"ID": "other", "name": "OTHER"}],
    }
    assert "proxy" not in json.dumps(body)


def test_copies_are_told_by_source_and_here_document():
    op = FileCopy(
        sources=("/a", "/b"), destination="/d/", inline=(InlineFile("c", b"x"),), owner="1:users", mode="u=rw"
    )
    actions = operation(step(op, IMAGE, step(ContextSource("context"))))["Op"]["file"]["actions"]
    assert [(each["input"], each["secondaryInput"], each["output"]) for each in actions] == [
        (0, 1, -1),
        (2, 1, -1),
        (3, -1, 0),
    ]
    copied = actions[0]["Action"]["copy"]
    assert (copied["src"], copied["dest"], copied["mode"], copied["modeStr"]) == ("/a", "/d/", -1, "u=rw")
    assert copied["owner"] == {"user": {"User": {"byId": 1}}, "group": {"User": {"byName": {"name": "users"}}}}
    assert actions[2]["Action"]["mkfile"]["path"] == "/d/c"


def test_sources_are_told_without_credentials():
    git = operation(step(GitSource("https://u:p@example.com/r.git", "v1", "sub", "c" * 40)))["Op"]["source"]
    assert git == {
        "identifier": "git://xxxxx:xxxxx@example.com/r.git#v1:sub",
        "attrs": {"git.fullurl": "https://xxxxx:xxxxx@example.com/r.git", "git.commit": "c" * 40},
    }
    http = operation(step(HttpSource("https://u:p@example.com/f", "f", DIGEST)))["Op"]["source"]
    assert http["identifier"] == "https://xxxxx:xxxxx@example.com/f"
    assert http["attrs"] == {"http.filename": "f", "http.checksum": str(DIGEST)}
    linked = step(FileCopy(sources=("/a",), destination="/", link=True), step(ContextSource("context")))
    merged = operation(step(Merge(), IMAGE, linked))["Op"]
    assert merged == {"merge": {"inputs": [{}, {"input": 1}]}}
    assert re.match(r"docker-image://docker.io/", operation(IMAGE)["Op"]["source"]["identifier"])
