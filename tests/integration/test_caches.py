"""Caches that lie elsewhere, through the command line: what one store's build exports saves another one's steps, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

DOCKERFILE = """\
FROM busybox AS base
RUN mkdir /data && date +%N > /data/base
FROM base AS deps
COPY deps.txt /deps.txt
RUN cat /deps.txt > /installed && date +%N > /when
FROM base
ARG VERSION=1
WORKDIR /app
COPY --from=deps /installed /installed
COPY src /app/src
RUN echo $VERSION > /version; date +%N > /now
CMD ["sh"]
"""
STEPS = 7


@pytest.fixture
def context(tmp_path: Path) -> Path:
    out = tmp_path / "context"
    (out / "src").mkdir(parents=True)
    (out / "src/app.py").write_text("print(1)")
    (out / "deps.txt").write_text("deps")
    (out / "Dockerfile").write_text(DOCKERFILE)
    return out


@pytest.fixture
def machine(pybuild, tmp_path: Path):  # type: ignore[no-untyped-def]  # conftest's class can't be imported here
    """Makes further machines: each a store of its own that holds nothing but the base image."""
    pristine = tmp_path / "pristine"
    shutil.copytree(pybuild.root, pristine, symlinks=True)
    count = 0

    def make():  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        root = tmp_path / f"machine{count}"
        shutil.copytree(pristine, root, symlinks=True)
        return type(pybuild)(root, pybuild.variables)

    return make


@pytest.fixture
def build(context: Path, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Builds the context into an archive; gives the manifest's digest and what was printed."""

    def run(machine, *options: str, check: bool = True) -> tuple[str, str]:  # type: ignore[no-untyped-def]
        metadata = tmp_path / "metadata.json"
        metadata.unlink(missing_ok=True)
        done = machine.run(
            "build", "--progress=plain", "--metadata-file", str(metadata), "-o", f"type=oci,dest={tmp_path}/out.tar",
            *options, str(context), check=check,
        )  # fmt: skip
        digest = json.loads(metadata.read_text())["containerimage.digest"] if metadata.exists() else ""
        return digest, done.stderr

    return run


def ran(output: str) -> list[str]:
    """The steps of a Dockerfile that were not cached."""
    titles: dict[str, str] = {}
    done: list[str] = []
    for line in output.splitlines():
        number, _, text = line.partition(" ")
        if text.startswith("[") and "internal]" not in text:
            titles.setdefault(number, text.partition("] ")[2])
        elif text.startswith("DONE") and number in titles:
            done.append(titles[number])
    return done


# --- round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["registry min", "registry max", "docker types", "zstd", "local", "repo", "bare"])
def test_a_round_trip_runs_nothing_and_gives_the_same_bytes(kind, registry, machine, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    ref = f"{registry}/{kind.replace(' ', '-')}:cache"
    to, source = {
        "registry min": (f"--cache-to=type=registry,ref={ref}", f"--cache-from=type=registry,ref={ref}"),
        "registry max": (f"--cache-to=type=registry,ref={ref},mode=max", f"--cache-from=type=registry,ref={ref}"),
        "docker types": (f"--cache-to=type=registry,ref={ref},oci-mediatypes=false,mode=max", f"--cache-from={ref}"),
        "zstd": (f"--cache-to=type=registry,ref={ref},mode=max,compression=zstd", f"--cache-from={ref}"),
        "local": (f"--cache-to=type=local,dest={tmp_path}/c,mode=max", f"--cache-from=type=local,src={tmp_path}/c"),
        "repo": (f"--cache-repo={ref.removesuffix(':cache')}", f"--cache-repo={ref.removesuffix(':cache')}"),
        "bare": (f"--cache-to={ref}", f"--cache-from={ref}"),
    }[kind]
    first, output = build(machine(), to)
    assert len(ran(output)) == STEPS
    second, output = build(machine(), source)
    assert (ran(output), second) == ([], first)
    assert "warning" not in output


def test_an_export_after_a_prune_and_an_import_is_the_same_again(registry, machine, build) -> None:  # type: ignore[no-untyped-def]
    here = machine()
    ref = f"{registry}/pruned:cache"
    first, _ = build(here, f"--cache-to=type=registry,ref={ref},mode=max")
    here.run("prune", "--all", "--force")
    again, output = build(here, f"--cache-from={ref}", f"--cache-to=type=registry,ref={ref},mode=max")
    assert (ran(output), again) == ([], first)
    assert re.search(r"writing cache manifest sha256:\w+ done", output), "it is the same manifest, so nothing was sent"


def test_a_cache_is_passed_on_by_a_machine_that_never_had_the_layers(registry, machine, context, build) -> None:  # type: ignore[no-untyped-def]
    first, _ = build(machine(), f"--cache-to=type=registry,ref={registry}/relay/one:1,mode=max")
    relay = (f"--cache-from={registry}/relay/one:1", f"--cache-to=type=registry,ref={registry}/relay/two:1,mode=max")
    output = machine().run("build", "--progress=plain", *relay, "-o", "type=cacheonly", str(context)).stderr
    assert "warning" not in output
    assert ran(output) == []
    second, output = build(machine(), f"--cache-from={registry}/relay/two:1")
    assert (ran(output), second) == ([], first)


def test_the_metadata_file_names_the_cache(registry, machine, context, tmp_path) -> None:  # type: ignore[no-untyped-def]
    metadata = tmp_path / "m.json"
    ref = f"{registry}/metadata:1"
    machine().run("build", "-q", f"--cache-to=type=registry,ref={ref}", "--metadata-file", str(metadata), str(context))
    told = json.loads(json.loads(metadata.read_text())["cache.manifest"])
    assert told["size"] == len(_manifest(registry, "metadata", "1"))


def test_inline_caches_come_with_the_image(registry, machine, context, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    one, two, three = machine(), machine(), machine()
    image = f"{registry}/inline:1"
    one.run("build", "-q", "--cache-to=type=inline", "--push", "-t", image, str(context))
    done = two.run(
        "build", "--progress=plain", "--build-arg", "BUILDKIT_INLINE_CACHE=1", f"--cache-from={image}", "--push", "-t",
        f"{registry}/inline:2", str(context),
    )  # fmt: skip
    assert ran(done.stderr) == []
    assert _manifest(registry, "inline", "1") == _manifest(registry, "inline", "2")
    # Without being asked for, the cache is not in the image.
    _, output = build(three, f"--cache-from={image}")
    assert ran(output) == []
    with subprocess.Popen(
        ["tar", "-xOf", str(tmp_path / "out.tar"), "--wildcards", "blobs/sha256/*"], stdout=subprocess.PIPE
    ) as tar:
        assert tar.stdout is not None
        assert b"pybuild.cache" not in tar.stdout.read()


def test_several_platforms_share_a_cache(registry, machine, build) -> None:  # type: ignore[no-untyped-def]
    ref = f"{registry}/platforms:cache"
    platforms = "--platform=linux/amd64,linux/386"
    first, output = build(machine(), platforms, f"--cache-to=type=registry,ref={ref},mode=max")
    assert sum(title.startswith("RUN") for title in ran(output)) == 6, "they are for one platform each"
    second, output = build(machine(), platforms, f"--cache-from={ref}")
    assert (ran(output), second) == ([], first)


def test_only_what_a_step_needs_is_fetched(registry, machine, context, build) -> None:  # type: ignore[no-untyped-def]
    ref = f"{registry}/lazy:cache"
    build(machine(), f"--cache-to=type=registry,ref={ref},mode=max")
    document = json.loads(_blob(registry, "lazy", json.loads(_manifest(registry, "lazy", "cache"))["config"]["digest"]))
    layers = {layer["diffID"]: layer["blob"]["digest"] for layer in document["layers"]}
    own = {
        step["instruction"].split(" ")[0] + step["stage"]: layers[document["stacks"][step["stack"]][1]]
        for step in document["steps"]
    }
    (context / "src/app.py").write_text("print(2)")
    _, output = build(machine(), f"--cache-from={ref}")
    assert [title.split(" ")[0] for title in ran(output)] == ["COPY", "RUN"]
    assert own["RUNdeps"] not in output, "the other stage is in the COPY --from that is cached"
    assert own["RUNbase"] in output
    (context / "src/app.py").write_text("print(1)")
    output = (
        machine().run("build", "--progress=plain", f"--cache-from={ref}", "-o", "type=cacheonly", str(context)).stderr
    )
    assert ran(output) == []
    assert "pulling cached layers" not in output, "nobody wants the result's files"


def test_a_fresh_machine_can_tell_why_a_step_ran(registry, machine, context, build) -> None:  # type: ignore[no-untyped-def]
    for to, source in (
        (f"--cache-to=type=registry,ref={registry}/why:1,mode=max", f"--cache-from={registry}/why:1"),
        (f"--cache-repo={registry}/whysteps", f"--cache-repo={registry}/whysteps"),
    ):
        (context / "src/app.py").write_text("print(1)")
        build(machine(), to)
        (context / "src/app.py").write_text("print(2)")
        other = machine()
        build(other, source)
        told = other.run("why").stdout
        assert "src/app.py changed (content)" in told


def test_several_sources_are_one(registry, machine, context, build) -> None:  # type: ignore[no-untyped-def]
    build(machine(), f"--cache-to=type=registry,ref={registry}/several:a", "--target=deps")
    build(machine(), f"--cache-to=type=registry,ref={registry}/several:b", "--target=base")
    (context / "Dockerfile").write_text(DOCKERFILE)
    _, output = build(
        machine(), f"--cache-from={registry}/several:nothing", f"--cache-from={registry}/several:b", f"--cache-from={registry}/several:a"
    )  # fmt: skip
    titles = ran(output)
    assert all("deps.txt" not in title for title in titles)
    assert "warning" not in output, "a cache that is not there yet is nothing to warn of"


def test_a_local_cache_does_not_grow_for_ever(machine, context, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    to = f"--cache-to=type=local,dest={tmp_path}/cache,mode=max"
    here = machine()
    counts = []
    for number in range(3):
        (context / "src/app.py").write_text(f"print({number})")
        build(here, to)
        counts.append(len(os.listdir(tmp_path / "cache/blobs/sha256")))
    assert counts[1] == counts[2]
    assert sorted(os.listdir(tmp_path / "cache")) == ["blobs", "index.json", "oci-layout"]


# --- a step at a time ---------------------------------------------------------------------------------------------------


def test_a_killed_build_leaves_its_steps_to_the_next_machine(registry, machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = tmp_path / "killed"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nRUN date +%N > /a\nRUN date +%N > /b\nRUN sleep 60\n")
    here = machine()
    repo = f"{registry}/killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "pybuild", "--root", str(here.root), "build", "--progress=plain", f"--cache-repo={repo}", str(context)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **here.variables},
    )  # fmt: skip
    deadline = time.time() + 30
    while time.time() < deadline and sum(tag.startswith("v1-") for tag in _tags(registry, "killed")) < 4:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (context / "Dockerfile").write_text("FROM busybox\nRUN date +%N > /a\nRUN date +%N > /b\nRUN true\n")
    done = machine().run("build", "--progress=plain", f"--cache-repo={repo}", str(context))
    assert ran(done.stderr) == ["RUN true"]


def test_a_failed_build_leaves_its_steps_to_the_next_machine(registry, machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = tmp_path / "failed"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nRUN date +%N > /a\nRUN false\n")
    repo = f"{registry}/failed"
    assert machine().run("build", f"--cache-repo={repo}", str(context), check=False).returncode == 1
    (context / "Dockerfile").write_text("FROM busybox\nRUN date +%N > /a\nRUN true\n")
    done = machine().run("build", "--progress=plain", f"--cache-repo={repo}", str(context))
    assert ran(done.stderr) == ["RUN true"]


def test_a_terminated_build_leaves_its_steps_to_the_next_machine(registry, machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = tmp_path / "terminated"
    context.mkdir()
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN date +%N > /a\nRUN head -c 3000000 /dev/urandom > /b\nRUN sleep 60\n"
    )
    here = machine()
    repo = f"{registry}/terminated"
    process = subprocess.Popen(
        [sys.executable, "-m", "pybuild", "--root", str(here.root), "build", "--progress=plain", f"--cache-repo={repo}", str(context)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **here.variables},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "RUN sleep" in line:
            break
    process.terminate()
    process.communicate(timeout=30)
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN date +%N > /a\nRUN head -c 3000000 /dev/urandom > /b\nRUN true\n"
    )
    done = machine().run("build", "--progress=plain", f"--cache-repo={repo}", str(context))
    assert ran(done.stderr) == ["RUN true"]


@pytest.mark.parametrize("kind", ["registry", "local"])
def test_a_build_without_steps_has_an_empty_cache(kind, registry, machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = tmp_path / "empty"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\n")
    place = {"registry": f"type=registry,ref={registry}/empty:1", "local": f"type=local,dest={tmp_path}/e"}[kind]
    done = machine().run("build", "--progress=plain", f"--cache-to={place}", str(context))
    assert "warning" not in done.stderr
    done = machine().run("build", "--progress=plain", f"--cache-from={place.replace('dest=', 'src=')}", str(context))
    assert "warning" not in done.stderr


def test_what_a_store_has_already_is_sent_to_a_new_repository(registry, machine, build) -> None:  # type: ignore[no-untyped-def]
    here = machine()
    first, _ = build(here)
    build(here, f"--cache-repo={registry}/later")
    second, output = build(machine(), f"--cache-repo={registry}/later")
    assert (ran(output), second) == ([], first)


def test_a_blob_that_a_repository_has_lost_is_sent_again(registry, machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = tmp_path / "lost"
    context.mkdir()
    (context / "data").write_text("data")
    option = f"--cache-repo={registry}/lost"

    def build(command: str) -> str:
        (context / "Dockerfile").write_text(f"FROM busybox\nCOPY data /\nRUN {command}\n")
        return (
            machine()
            .run("build", "--progress=plain", option, "-o", f"type=oci,dest={tmp_path}/lost.tar", str(context))
            .stderr
        )  # type: ignore[no-any-return]  # conftest's class can't be imported here

    build("cp data one")
    tags = json.load(urllib.request.urlopen(f"http://{registry}/v2/lost/tags/list"))["tags"]
    for tag in tags:
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        request = urllib.request.Request(f"http://{registry}/v2/lost/manifests/{tag}", headers=accept)
        lowest = json.load(urllib.request.urlopen(request))["layers"][0]["digest"]
    urllib.request.urlopen(urllib.request.Request(f"http://{registry}/v2/lost/blobs/{lowest}", method="DELETE"))
    assert "lost" in build("cp data two").partition("found:")[2], "the copy is made again, which is told"
    output = build("cp data two")
    assert (ran(output), "warning" in output) == ([], False)


# --- trouble ------------------------------------------------------------------------------------------------------------


def test_an_unreachable_registry_is_told_once_and_fails_nothing(machine, build) -> None:  # type: ignore[no-untyped-def]
    _, output = build(
        machine(), "--cache-from=127.0.0.1:1/x:1", "--cache-to=type=registry,ref=127.0.0.1:1/x:1", "--cache-repo=127.0.0.1:1/y"
    )  # fmt: skip
    assert len(ran(output)) == STEPS
    assert output.count(" - cache 127.0.0.1:1/x:1: ") == 1
    assert output.count(" - cache 127.0.0.1:1/y: ") == 1


def test_a_quiet_build_tells_of_caches_that_fail(machine, context) -> None:  # type: ignore[no-untyped-def]
    one = machine()
    done = one.run("build", "-q", "--cache-to", "type=registry,ref=127.0.0.1:9/cache", str(context))
    assert done.stdout.startswith("sha256:")
    assert re.fullmatch(r"\n 1 warning found:\n - cache 127\.0\.0\.1:9/cache: .*refused\n", done.stderr)
    done = one.run("build", "-q", "--build-arg", "UNKNOWN=1", str(context))
    assert done.stderr == "", "what the build was asked to do was done"


def test_an_export_can_be_made_to_count(machine, context) -> None:  # type: ignore[no-untyped-def]
    options = ("--cache-to=type=registry,ref=127.0.0.1:1/x:1,ignore-error=false", str(context))
    assert machine().run("build", *options, check=False).returncode == 1


def test_a_lost_blob_costs_the_steps_that_needed_it(machine, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    cache = tmp_path / "cache"
    build(machine(), f"--cache-to=type=local,dest={cache},mode=max")
    entry = json.loads((cache / "index.json").read_text())["manifests"][0]
    manifest = json.loads((cache / "blobs/sha256" / entry["digest"].partition(":")[2]).read_text())
    for layer in manifest["layers"]:
        (cache / "blobs/sha256" / layer["digest"].partition(":")[2]).unlink()
    _, output = build(machine(), f"--cache-from=type=local,src={cache}")
    assert len(ran(output)) == STEPS
    assert output.count(f" - cache {cache}: ") == 1


def test_a_blob_with_other_content_is_noticed(machine, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    cache = tmp_path / "cache"
    build(machine(), f"--cache-to=type=local,dest={cache},mode=max")
    entry = json.loads((cache / "index.json").read_text())["manifests"][0]
    manifest = json.loads((cache / "blobs/sha256" / entry["digest"].partition(":")[2]).read_text())
    for layer in manifest["layers"]:
        path = cache / "blobs/sha256" / layer["digest"].partition(":")[2]
        path.chmod(0o644)
        path.write_bytes(bytes(path.stat().st_size))
    _, output = build(machine(), f"--cache-from=type=local,src={cache}")
    assert len(ran(output)) == STEPS
    assert "corrupt" in output


def test_the_last_layer_alone_may_be_lost(machine, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    cache = tmp_path / "cache"
    build(machine(), f"--cache-to=type=local,dest={cache},mode=max")
    entry = json.loads((cache / "index.json").read_text())["manifests"][0]
    manifest = json.loads((cache / "blobs/sha256" / entry["digest"].partition(":")[2]).read_text())
    document = json.loads((cache / "blobs/sha256" / manifest["config"]["digest"].partition(":")[2]).read_text())
    last = max(document["steps"], key=lambda step: step["created"])
    diff_id = document["stacks"][last["stack"]][1]
    blob = next(layer["blob"]["digest"] for layer in document["layers"] if layer["diffID"] == diff_id)
    (cache / "blobs/sha256" / blob.partition(":")[2]).unlink()
    _, output = build(machine(), f"--cache-from=type=local,src={cache}")
    assert [title.split(" ")[0] for title in ran(output)] == ["RUN"]


def test_rubbish_is_no_cache(machine, build, registry, context) -> None:  # type: ignore[no-untyped-def]
    here = machine()
    here.run("build", "-q", "--push", "-t", f"{registry}/plain:1", str(context))
    _, output = build(machine(), f"--cache-from={registry}/plain:1")
    assert "the image has no cache in it" in output
    assert len(ran(output)) == STEPS


@pytest.mark.parametrize("damage", ["recipe", "media type", "diff ID", "size", "own"])
def test_a_document_that_lies_fails_nothing(damage, machine, context, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Everything in it is somebody else's word."""
    cache = tmp_path / "cache"
    build(machine(), f"--cache-to=type=local,dest={cache},mode=max")
    blobs = cache / "blobs/sha256"
    index = json.loads((cache / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"].partition(":")[2]).read_text())
    document = json.loads((blobs / manifest["config"]["digest"].partition(":")[2]).read_text())
    first, second = document["layers"][0], document["layers"][1]
    match damage:
        case "recipe":
            for step in document["steps"]:
                step["recipe"] = "[1"
        case "media type":
            for layer in document["layers"]:
                layer["blob"]["mediaType"] = "text/plain"
        case "diff ID":
            first["blob"], second["blob"] = second["blob"], first["blob"]
        case "size":
            first["size"] += 1
        case "own":
            document["steps"][0]["own"] = 99

    def put(value: object, like: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        like["digest"], like["size"] = f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)
        (blobs / str(like["digest"]).partition(":")[2]).write_bytes(data)

    put(document, manifest["config"])
    put(manifest, index["manifests"][0])
    (cache / "index.json").write_text(json.dumps(index))
    if damage == "recipe":
        (context / "src/app.py").write_text("print(2)")
    _, output = build(machine(), f"--cache-from=type=local,src={cache}")
    expected = {"recipe": 2, "media type": STEPS, "own": STEPS}.get(damage)
    assert (ran(output) == []) is (damage == "size"), "sizes are looked up in the layer itself"
    assert expected is None or len(ran(output)) == expected
    assert (f" - cache {cache}: " in output) is (damage not in ("recipe", "size"))


def test_a_cache_of_buildkit_is_told_apart(machine, build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Made by hand: the same container with the other document."""
    blobs = tmp_path / "theirs/blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = put(b'{"layers":[],"records":[]}', "application/vnd.buildkit.cacheconfig.v0")
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = put(json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []}).encode(), kind)
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (tmp_path / "theirs/oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "theirs/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    _, output = build(machine(), f"--cache-from=type=local,src={tmp_path}/theirs")
    assert "the cache was written by BuildKit" in output
    assert len(ran(output)) == STEPS


@pytest.mark.parametrize(
    "option",
    [
        "--cache-from=type=gha",
        "--cache-from=type=registry",
        "--cache-from=type=registry,ref=x,colour=red",
        "--cache-from=type=inline",
        "--cache-from=x/UPPER",
        "--cache-to=type=local",
        "--cache-to=type=local,dest=x,mode=medium",
        "--cache-to=type=inline,mode=max",
        "--cache-to=type=registry,ref=x,compression=lzma",
        "--cache-to=type=s3",
        "--cache-repo=x:tag",
        "--cache-repo=x,mode=maybe",
        "--cache-mounts-to=x,max-size=big",
        "--cache-mounts-from=type=registry",
    ],
)
def test_what_cannot_be_understood_is_a_usage_error(option, pybuild, context) -> None:  # type: ignore[no-untyped-def]
    assert pybuild.run("build", option, str(context), check=False).returncode == 2


# --- S3 -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The attributes of a bucket on an S3 server on loopback."""
    pytest.importorskip("boto3", reason="boto3 is not installed")
    pytest.importorskip("moto.server", reason="moto's server is not installed")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/caches", method="PUT")
        urllib.request.urlopen(request).read()
        yield (
            f"type=s3,bucket=caches,region=us-east-1,endpoint_url=http://127.0.0.1:{port},use_path_style=true,"
            "access_key_id=key,secret_access_key=secret,prefix=project/"
        )
    finally:
        process.terminate()
        process.wait(10)


def test_a_bucket_holds_a_cache(bucket, machine, build) -> None:  # type: ignore[no-untyped-def]
    _, output = build(machine(), f"--cache-from={bucket},name=main")
    assert "warning" not in output
    first, _ = build(machine(), f"--cache-to={bucket},name=main,mode=max")
    second, output = build(machine(), f"--cache-from={bucket},name=main")
    assert (ran(output), second) == ([], first)
    _, output = build(machine(), f"--cache-from={bucket.replace('bucket=caches', 'bucket=nowhere')},name=main")
    assert len(ran(output)) == STEPS
    assert "secret" not in output


# --- the registry -------------------------------------------------------------------------------------------------------


def _get(url: str, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})
    data = urllib.request.urlopen(request).read()
    assert isinstance(data, bytes)
    return data


def _manifest(registry: str, repository: str, tag: str) -> bytes:
    return _get(f"http://{registry}/v2/{repository}/manifests/{tag}", "application/vnd.oci.image.manifest.v1+json")


def _blob(registry: str, repository: str, digest: str) -> bytes:
    return _get(f"http://{registry}/v2/{repository}/blobs/{digest}")


def _tags(registry: str, repository: str) -> list[str]:
    try:
        return list(json.loads(_get(f"http://{registry}/v2/{repository}/tags/list"))["tags"] or ())
    except OSError:
        return []
