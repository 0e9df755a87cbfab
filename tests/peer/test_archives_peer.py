"""What we write is read by skopeo, podman's tools and GNU tar; what they write is read by us."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.layers.archive_load import load_archive
from pybuild.layers.descriptor import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from pybuild.layers.digest import Digest
from pybuild.layers.docker_archive import write_docker_archive
from pybuild.layers.image import History, ImageConfig, Index, Manifest
from pybuild.layers.layout import ExportedImage, LayoutDirectory, write_layout_directory, write_layout_tar
from pybuild.layers.store import Store

pytestmark = pytest.mark.peer
X, X2 = "docker.io/library/x:1", "registry.example:5000/team/x:2"


def require_program(name: str) -> str:
    """The path of a program, or a skip that names it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"the program {name} is not installed")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root", clock=time.time) as store:
        yield store


@pytest.fixture
def skopeo() -> str:
    return require_program("skopeo")


def run(*command: object) -> str:
    finished = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def put(store: Store, data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type, store.blobs.write(data), len(data))


def make_image(store: Store, *, packed: bool = False, architecture: str = "amd64") -> Descriptor:
    layers, diff_ids = [], []
    for number in range(2):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            member = tarfile.TarInfo(f"file{number}")
            member.size = 100_000
            tar.addfile(member, io.BytesIO(bytes([number]) * 100_000))
        data = out.getvalue()
        diff_ids.append(Digest.of(data))
        layers.append(
            put(store, gzip.compress(data, mtime=0), OCI_LAYER_GZIP) if packed else put(store, data, OCI_LAYER)
        )
    config = ImageConfig(
        Platform("linux", architecture),
        created="2024-01-02T03:04:05Z",
        cmd=("/bin/true",),
        labels={"a": "b"},
        diff_ids=tuple(diff_ids),
        history=(History(created_by="one"), History(created_by="two")),
    )
    return put(store, Manifest(put(store, config.to_bytes(), OCI_CONFIG), tuple(layers)).to_bytes(), OCI_MANIFEST)


def make_index(store: Store) -> Descriptor:
    manifests = []
    for architecture in ("amd64", "arm64"):
        image = make_image(store, packed=True, architecture=architecture)
        manifests.append(Descriptor(image.media_type, image.digest, image.size, Platform("linux", architecture)))
    return put(store, Index(tuple(manifests)).to_bytes(), OCI_INDEX)


@pytest.mark.parametrize("packed", [False, True])
def test_skopeo_inspects_and_copies_an_oci_layout(store: Store, skopeo: str, tmp_path: Path, packed: bool) -> None:
    image = make_image(store, packed=packed)
    layout = tmp_path / "layout"
    write_layout_directory([ExportedImage(image, (X, X2))], layout, blobs=store.blobs)
    for tag in ("1", "2"):
        found = json.loads(run(skopeo, "inspect", f"oci:{layout}:{tag}"))
        assert found["Digest"] == str(image.digest)
        assert found["Labels"] == {"a": "b"}
    run(skopeo, "copy", f"oci:{layout}:1", f"dir:{tmp_path / 'copied'}")
    assert (tmp_path / "copied" / "manifest.json").read_bytes() == store.blobs.read(image.digest, limit_bytes=9999)


def test_skopeo_inspects_an_oci_archive_and_its_index(store: Store, skopeo: str, tmp_path: Path) -> None:
    index = make_index(store)
    archive = tmp_path / "x.tar"
    with open(archive, "wb") as file:
        write_layout_tar([ExportedImage(index, (X,))], file, blobs=store.blobs)
    assert json.loads(run(skopeo, "inspect", "--raw", f"oci-archive:{archive}:1"))["mediaType"] == OCI_INDEX
    found = json.loads(run(skopeo, "inspect", "--override-arch", "arm64", f"oci-archive:{archive}:1"))
    assert found["Architecture"] == "arm64"
    run(skopeo, "copy", "--all", f"oci-archive:{archive}:1", f"dir:{tmp_path / 'copied'}")


@pytest.mark.parametrize("packed", [False, True])
def test_skopeo_reads_a_docker_archive(store: Store, skopeo: str, tmp_path: Path, packed: bool) -> None:
    image = make_image(store, packed=packed)
    archive = tmp_path / "x.tar"
    with open(archive, "wb") as file:
        write_docker_archive([ExportedImage(image, (X, X2))], file, blobs=store.blobs)
    for name in ("x:1", "registry.example:5000/team/x:2"):
        found = json.loads(run(skopeo, "inspect", "--config", f"docker-archive:{archive}:{name}"))
        assert found["config"]["Cmd"] == ["/bin/true"]
    run(skopeo, "copy", f"docker-archive:{archive}:x:1", f"oci:{tmp_path / 'copied'}:1")
    assert json.loads(run(skopeo, "inspect", "--config", f"oci:{tmp_path / 'copied'}:1")) == found
    # The same file is an OCI archive as well.
    assert json.loads(run(skopeo, "inspect", f"oci-archive:{archive}:1"))["Digest"] == str(image.digest)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_we_load_what_skopeo_writes(store: Store, skopeo: str, tmp_path: Path, transport: str, packed: bool) -> None:
    image = make_image(store, packed=packed)
    layout = tmp_path / "layout"
    write_layout_directory([ExportedImage(image, (X,))], layout, blobs=store.blobs)
    archive = tmp_path / "x.tar"
    run(skopeo, "copy", f"oci:{layout}:1", f"{transport}:{archive}:{X}")
    with Store(tmp_path / "other", clock=time.time) as other, open(archive, "rb") as file:
        (loaded,) = load_archive(file, store=other)
        assert [name.removeprefix("docker.io/library/") for name in loaded.names] == ["x:1"]
        part = other.images.put(X, loaded.descriptor).choose()
        assert part is not None
        assert other.images.config(part).cmd == ("/bin/true",)
        assert part.size == 2 * 102_400


def test_we_read_and_extend_a_layout_that_skopeo_writes(store: Store, skopeo: str, tmp_path: Path) -> None:
    index = make_index(store)
    first, second = tmp_path / "first", tmp_path / "second"
    write_layout_directory([ExportedImage(index, (X,))], first, blobs=store.blobs)
    run(skopeo, "copy", "--all", f"oci:{first}:1", f"oci:{second}:again")
    assert LayoutDirectory(second).find("again").digest == index.digest
    # And it is still a layout for skopeo when we have added to it.
    write_layout_directory([ExportedImage(make_image(store), ("more",))], second, blobs=store.blobs)
    for tag in ("again", "more"):
        run(skopeo, "inspect", "--raw", f"oci:{second}:{tag}")


def test_podman_loads_our_archives_and_we_load_its(store: Store, tmp_path: Path) -> None:
    program = require_program("podman")
    image = make_image(store)
    config = store.images.put(None, image).id()
    with tempfile.TemporaryDirectory(prefix="p") as short:  # podman refuses long paths here
        podman = (program, "--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver", "vfs")
        for write, name in ((write_docker_archive, "docker.tar"), (write_layout_tar, "oci.tar")):
            with open(tmp_path / name, "wb") as file:
                write([ExportedImage(image, (X,))], file, blobs=store.blobs)
            run(*podman, "load", "-i", tmp_path / name)
            listed = json.loads(run(*podman, "images", "--format", "json"))
            assert {entry["Id"] for entry in listed} == {config.hex}
        for form in ("docker-archive", "oci-archive"):
            run(*podman, "save", "--format", form, "-o", tmp_path / form, X)
            with Store(tmp_path / f"root-{form}", clock=time.time) as other, open(tmp_path / form, "rb") as file:
                (loaded,) = load_archive(file, store=other)
                assert loaded.names == (X,)
                assert other.images.put(X, loaded.descriptor).id() == config


def test_gnu_tar_lists_what_we_write(store: Store, tmp_path: Path) -> None:
    with open(tmp_path / "x.tar", "wb") as file:
        write_docker_archive([ExportedImage(make_image(store), (X,))], file, blobs=store.blobs)
    names = run(require_program("tar"), "-tf", tmp_path / "x.tar").split()
    assert names[:2] == ["blobs/", "blobs/sha256/"]
    assert names[-3:] == ["index.json", "manifest.json", "oci-layout"]
