"""Layers that a store only knows: cold machines that push what a registry has already move no layer, and whoever needs the bytes later gets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "registry_servers"))

from counting_gate import CountingGate  # found by the line above
from docker_registry import docker_registry

pytestmark = pytest.mark.integration

DOCKERFILE = """\
FROM {base} AS base
RUN head -c 300000 /dev/urandom > /one
FROM base
COPY data /data
RUN head -c 400000 /dev/urandom > /two
LABEL made=here
"""


@pytest.fixture
def gate(registry: str) -> Iterator[CountingGate]:
    """Debian's docker-registry behind a gate that counts what goes through and can be closed."""
    with CountingGate(int(registry.rpartition(":")[2])) as gate:
        yield gate


@pytest.fixture
def base(pybuild, gate) -> str:  # type: ignore[no-untyped-def]  # conftest's class can't be imported here
    """A base image in the registry."""
    name = f"{gate.address}/base:1"
    pybuild.run("tag", "busybox", name)
    pybuild.run("push", name)
    return name


@pytest.fixture
def context(tmp_path: Path, base: str) -> Path:
    out = tmp_path / "context"
    out.mkdir()
    (out / "data").write_bytes(bytes(range(256)) * 500)
    (out / "Dockerfile").write_text(DOCKERFILE.format(base=base))
    return out


@pytest.fixture
def machine(pybuild, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Makes machines whose stores are empty."""
    count = 0

    def make():  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        return type(pybuild)(tmp_path / f"machine{count}", pybuild.variables)

    return make


def build(machine, context: Path, *options: str, check: bool = True):  # type: ignore[no-untyped-def]
    return machine.run("build", "--progress=plain", *options, str(context), check=check)


def ran(output: str) -> bool:
    """Whether any step of the Dockerfile ran."""
    numbers = {line.split()[0] for line in output.splitlines() if " RUN " in line or " COPY " in line}
    done = {line.split()[0] for line in output.splitlines() if line.split()[1:2] == ["DONE"]}
    return bool(numbers & done)


def layers_of(machine, name: str) -> list[str]:  # type: ignore[no-untyped-def]
    manifest = json.loads(machine.run("inspect", "--raw", name).stdout)
    return [layer["digest"] for layer in manifest["layers"]]


def have(machine, digest: str) -> bool:  # type: ignore[no-untyped-def]
    return (machine.root / "blobs/sha256" / digest.partition(":")[2]).exists()


def own_layers(gate: CountingGate, reference: str) -> set[str]:
    """The layers that a cache or an image has besides those of the base image."""
    found = []
    for name in (reference, "base:1"):
        repository, _, tag = name.rpartition(":")
        request = urllib.request.Request(
            f"http://{gate.address}/v2/{repository}/manifests/{tag}",
            headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        )
        with urllib.request.urlopen(request) as answer:
            found.append({layer["digest"] for layer in json.load(answer)["layers"]})
    return found[0] - found[1]


CACHES = {
    "registry": ("--cache-to=type=registry,ref={host}/{name}:cache,mode=max", "--cache-from={host}/{name}:cache"),
    "other repository": ("--cache-to=type=registry,ref={host}/{name}-c:1,mode=max", "--cache-from={host}/{name}-c:1"),
    "inline": ("--cache-to=type=inline", "--cache-from={host}/{name}:1"),
    "steps": ("--cache-repo={host}/{name}-steps", "--cache-repo={host}/{name}-steps"),
}


@pytest.fixture
def kind() -> str:
    """Which cache: what doesn't depend on it is tried with one."""
    return "registry"


@pytest.fixture
def lazy(kind, gate, machine, context):  # type: ignore[no-untyped-def]
    """A machine that has pushed a cached image without having its layers, the image's name, and the cache's option."""
    where = {"host": gate.address, "name": f"app-{os.urandom(6).hex()}"}
    to, source = (text.format(**where) for text in CACHES[kind])
    name = f"{where['host']}/{where['name']}:1"
    first = machine()
    build(first, context, "--push", "-t", name, to)
    gate.reset()
    second = machine()
    again = name.replace(":1", ":2") if kind == "inline" else name
    output = build(second, context, "--push", "-t", again, source, to if kind == "inline" else source).stderr
    assert not ran(output), output
    assert layers_of(second, again) == layers_of(first, name)
    return second, again, source


# --- pushing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(CACHES))
def test_a_cached_image_is_pushed_without_moving_a_layer(kind, lazy, gate) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    assert gate.down < 100_000, "the layers are larger"
    assert gate.up < 100_000
    assert not any(have(second, digest) for digest in layers_of(second, name))


@pytest.mark.parametrize("kind", list(CACHES))
def test_what_was_pushed_is_complete(kind, lazy, machine) -> None:  # type: ignore[no-untyped-def]
    _, name, _ = lazy
    third = machine()
    third.run("pull", name)
    assert len(third.run("run", name, "cat", "/data", "/two", "/one").stdout) > 0


def test_a_base_image_that_no_step_needs_is_not_pulled(base, gate, machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = tmp_path / "labels"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {base}\nENV A=1\nLABEL b=2\n")
    gate.reset()
    here = machine()
    build(here, context, "--push", "-t", f"{gate.address}/labelled:1")
    assert (gate.down < 100_000, gate.up < 100_000) == (True, True)
    assert here.run("run", f"{gate.address}/labelled:1", "sh", "-c", "echo $A").stdout == "1\n"


def test_another_registry_gets_the_layers_from_the_first(lazy, registry, machine, tmp_path, other_registry) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    elsewhere = f"{other_registry}/copy:1"
    second.run("tag", name, elsewhere)
    second.run("push", elsewhere)
    assert not any(have(second, digest) for digest in layers_of(second, elsewhere)), "streamed, not kept"
    third = machine()
    third.run("pull", elsewhere)
    assert layers_of(third, elsewhere) == layers_of(second, name)


@pytest.fixture
def other_registry(tmp_path: Path) -> Iterator[str]:
    directory = tmp_path / "other-registry"
    directory.mkdir()
    with docker_registry(directory) as running:
        yield running.host


# --- later uses ---------------------------------------------------------------------------------------------------------


def test_a_cache_in_a_forced_compression_is_exported_from_known_layers(lazy, gate, context) -> None:  # type: ignore[no-untyped-def]
    second, name, source = lazy
    other = f"{gate.address}/forced:cache"
    forced = f"--cache-to=type=registry,ref={other},mode=max,compression=zstd,force-compression=true"
    build(second, context, "--push", "-t", name, source, forced)
    request = urllib.request.Request(
        f"http://{gate.address}/v2/forced/manifests/cache",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )
    with urllib.request.urlopen(request) as answer:
        kinds = {layer["mediaType"] for layer in json.load(answer)["layers"]}
    assert kinds == {"application/vnd.oci.image.layer.v1.tar+zstd"}


def test_an_image_of_known_layers_can_be_looked_at(lazy) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    assert name.rpartition(":")[0] in second.run("images").stdout
    (inspected,) = json.loads(second.run("inspect", name).stdout)
    assert inspected["Size"] > 700_000
    assert "head -c 400000" in second.run("history", "--no-trunc", name).stdout
    usage = json.loads(second.run("du", "--images", "--format=json").stdout.splitlines()[0])
    assert usage
    second.run("why")


@pytest.mark.parametrize("kind", list(CACHES))
def test_running_fetches_the_layers(kind, lazy, gate) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    assert second.run("run", name, "wc", "-c", "/two").stdout.split()[0] == "400000"
    gate.close()
    assert second.run("run", name, "wc", "-c", "/one").stdout.split()[0] == "300000"


def test_saving_fetches_the_layers(lazy, tmp_path, machine) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    second.run("save", name, "-o", str(tmp_path / "saved.tar"))
    third = machine()
    third.run("load", "-i", str(tmp_path / "saved.tar"))
    assert third.run("run", name, "wc", "-c", "/one").stdout.split()[0] == "300000"


def test_a_pull_makes_an_image_whole(lazy, gate) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    second.run("pull", name)
    assert all(have(second, digest) for digest in layers_of(second, name))
    gate.close()
    assert second.run("run", name, "wc", "-c", "/two").stdout.split()[0] == "400000"


@pytest.mark.parametrize("kind", list(CACHES))
def test_a_build_for_this_machine_is_whole(kind, lazy, gate, context) -> None:  # type: ignore[no-untyped-def]
    second, _, _ = lazy
    output = build(second, context, "-t", "mine").stderr
    assert not ran(output), "the steps are known without naming the cache again"
    gate.close()
    assert second.run("run", "mine", "wc", "-c", "/two").stdout.split()[0] == "400000"


def test_a_step_on_known_layers_runs(lazy, context) -> None:  # type: ignore[no-untyped-def]
    second, _name, _ = lazy
    with (context / "Dockerfile").open("a") as file:
        file.write("RUN wc -c /one /two > /sizes\n")
    build(second, context, "-t", "mine")
    assert "700000" in second.run("run", "mine", "cat", "/sizes").stdout


def test_an_image_of_known_layers_is_built_on(lazy, tmp_path) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    context = tmp_path / "child"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {name}\nRUN wc -c /one > /size\n")
    build(second, context, "-t", "child")
    assert "300000" in second.run("run", "child", "cat", "/size").stdout


@pytest.mark.parametrize("form", ["oci", "docker", "local", "tar"])
def test_exports_have_everything(form, lazy, context, tmp_path) -> None:  # type: ignore[no-untyped-def]
    second, _, source = lazy
    output = build(second, context, "-o", f"type={form},dest={tmp_path}/out", source).stderr
    assert not ran(output)
    found = tmp_path / "out"
    if form == "local":
        assert (found / "two").stat().st_size == 400_000
    else:
        assert found.stat().st_size > 700_000


def test_two_processes_fetch_a_layer_once(lazy, gate) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    gate.reset()
    answers: list[subprocess.CompletedProcess[str]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(second.run("run", name, "wc", "-c", "/two", check=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.stdout.split()[:1] for answer in answers] == [["400000"], ["400000"]]
    assert gate.blob_reads
    assert len(gate.blob_reads) == len(set(gate.blob_reads))


# --- space --------------------------------------------------------------------------------------------------------------


def test_pruning_leaves_what_an_image_knows(lazy) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    second.run("prune", "--all", "--force")
    assert second.run("run", name, "wc", "-c", "/two").stdout.split()[0] == "400000"


def test_nothing_is_known_of_what_was_removed(lazy) -> None:  # type: ignore[no-untyped-def]
    import sqlite3

    second, name, _ = lazy
    second.run("rmi", name)
    second.run("prune", "--all", "--force")
    with sqlite3.connect(second.root / "pybuild.db") as database:
        for table in ("remote_layer", "blob_origin", "image", "cache_record"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


# --- trouble ------------------------------------------------------------------------------------------------------------


def test_a_lost_layer_is_told_with_its_place_and_a_way_out(gate, lazy) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    gate.loses_all = True
    failed = second.run("run", name, "true", check=False)
    assert failed.returncode != 0
    assert "can't be fetched" in failed.stderr
    assert gate.address in failed.stderr
    assert "build the image again" in failed.stderr
    gate.loses_all = False
    assert second.run("run", name, "wc", "-c", "/two").stdout.split()[0] == "400000"


def test_who_is_interrupted_waits_for_no_registry(gate, lazy, context, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The registry stalls for as long as the test runs."""
    second, name, source = lazy
    gate.stalls = True
    for command in (
        ["save", "-o", str(tmp_path / "out.tar"), name],
        ["build", "-t", "here", source, str(context)],
        ["push", "--force-compression", "--compression=zstd", name],
    ):
        gate.stalled.clear()
        with subprocess.Popen(
            [sys.executable, "-m", "pybuild", "--root", str(second.root), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                assert gate.stalled.wait(30)
                process.send_signal(signal.SIGINT)
                assert process.wait(15) == 130, command
            finally:
                process.kill()


def test_a_registry_that_is_gone_is_told(gate, lazy) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    gate.close()
    failed = second.run("run", name, "true", check=False)
    assert failed.returncode != 0
    assert "can't be fetched" in failed.stderr


def test_a_build_runs_steps_again_whose_layers_are_lost(gate, lazy, context, machine) -> None:  # type: ignore[no-untyped-def]
    second, name, _ = lazy
    gate.lost = own_layers(gate, name.removeprefix(f"{gate.address}/"))
    output = build(second, context, "-t", "mine").stderr
    assert ran(output)
    assert second.run("run", "mine", "wc", "-c", "/two").stdout.split()[0] == "400000"


def test_a_push_runs_steps_again_whose_layers_are_lost(gate, machine, context, other_registry) -> None:  # type: ignore[no-untyped-def]
    """The registry loses the cache's blobs between the import and the push to another one."""
    cache = f"{gate.address}/losing:cache"
    build(machine(), context, f"--cache-to=type=registry,ref={cache},mode=max", "-t", "x")
    gate.lost = own_layers(gate, "losing:cache")
    second = machine()
    name = f"{other_registry}/made-again:1"
    output = build(second, context, "--push", "-t", name, f"--cache-from={cache}").stderr
    assert ran(output)
    third = machine()
    third.run("pull", name)
    assert third.run("run", name, "wc", "-c", "/two").stdout.split()[0] == "400000"


def test_a_store_of_yesterday_is_opened(pybuild) -> None:  # type: ignore[no-untyped-def]
    import sqlite3

    with sqlite3.connect(pybuild.root / "pybuild.db") as database:
        database.executescript("DROP TABLE remote_layer; DROP TABLE blob_origin; PRAGMA user_version=1;")
    assert "busybox" in pybuild.run("images").stdout
    with sqlite3.connect(pybuild.root / "pybuild.db") as database:
        assert database.execute("SELECT count(*) FROM remote_layer").fetchone() == (0,)
