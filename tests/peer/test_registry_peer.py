"""Side by side with skopeo (and podman's libraries in it): what either puts into a registry, the other takes out unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from registry_servers.docker_registry import PROGRAM, RunningRegistry, docker_registry
from registry_servers.sample_images import AMD64, ARM64, make_image, make_index, read

from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX
from pybuild.layers.digest import Digest
from pybuild.layers.image import Manifest
from pybuild.layers.references import Reference
from pybuild.registry_client.client import RegistryClient
from pybuild.registry_client.copy import copy
from pybuild.registry_client.credentials import Credential, DockerConfig
from pybuild.registry_client.login import login
from pybuild.registry_client.pull import pull
from pybuild.registry_client.push import push
from pybuild.registry_client.transport import Transport

SKOPEO = shutil.which("skopeo")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed"),
    pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed"),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with RegistryClient(Transport()) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def skopeo(command: str, *arguments: str) -> str:
    flags = ["--src-tls-verify=false", "--dest-tls-verify=false"] if command == "copy" else ["--tls-verify=false"]
    words = [str(SKOPEO), "--insecure-policy", command, *flags, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_inspects_what_we_push(registry: RunningRegistry, client: RegistryClient, store: BlobStore) -> None:
    image = make_image(store, layers=4)
    push(client, Reference.parse(f"{registry.host}/ours/app:1"), image, store)
    shown = json.loads(skopeo("inspect", f"docker://{registry.host}/ours/app:1"))
    assert shown["Digest"] == str(image.digest)
    assert shown["Layers"] == [str(layer.digest) for layer in Manifest.from_bytes(read(store, image.digest)).layers]
    raw = skopeo("inspect", "--raw", f"docker://{registry.host}/ours/app:1")
    assert raw.encode() == read(store, image.digest)


def test_skopeo_copies_our_index_whole(
    registry: RunningRegistry, client: RegistryClient, store: BlobStore, tmp_path: Path
) -> None:
    index = make_index(store, make_image(store, seed=1), make_image(store, seed=2, platform=ARM64))
    push(client, Reference.parse(f"{registry.host}/ours/index:1"), index, store)
    skopeo("copy", "--all", f"docker://{registry.host}/ours/index:1", f"oci:{tmp_path / 'layout'}:x")
    for digest in store:
        assert (tmp_path / "layout" / "blobs" / digest.algorithm / digest.hex).read_bytes() == read(store, digest)
    entry = json.loads((tmp_path / "layout/index.json").read_text())["manifests"][0]
    assert entry["digest"] == str(index.digest)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_we_pull_what_skopeo_pushes(
    registry: RunningRegistry, client: RegistryClient, store: BlobStore, tmp_path: Path, form: str
) -> None:
    make_layout(client, registry, store, tmp_path / "layout")
    skopeo("copy", "--format", form, f"oci:{tmp_path / 'layout'}:x", f"docker://{registry.host}/theirs/{form}:1")
    fresh = BlobStore(tmp_path / "fresh")
    pulled = pull(client, Reference.parse(f"{registry.host}/theirs/{form}:1"), fresh, platform=AMD64)
    assert (
        str(pulled.descriptor.digest)
        == json.loads(skopeo("inspect", f"docker://{registry.host}/theirs/{form}:1"))["Digest"]
    )
    assert (pulled.descriptor.media_type == DOCKER_MANIFEST) is (form == "v2s2")
    for digest in fresh:
        assert Digest.of(read(fresh, digest)) == digest
    assert len(pulled.manifests[0].manifest.layers) == 3


def make_layout(client: RegistryClient, registry: RunningRegistry, store: BlobStore, path: Path) -> None:
    image = make_image(store, seed=30)
    reference = Reference.parse(f"{registry.host}/for/layout:1")
    push(client, reference, image, store)
    copy(client, reference.familiar, f"oci:{path}:x")


def test_skopeo_reads_our_layouts_and_archives(
    registry: RunningRegistry, client: RegistryClient, store: BlobStore, tmp_path: Path
) -> None:
    image = make_image(store, seed=40)
    source = f"{registry.host}/ours/forms:1"
    push(client, Reference.parse(source), image, store)
    for transport, name in (("oci", "x"), ("oci-archive", "x"), ("docker-archive", "example/app:x")):
        place = f"{transport}:{tmp_path / transport}:{name}"
        copy(client, source, place)
        shown = json.loads(skopeo("inspect", "--config", place))
        assert shown["rootfs"]["diff_ids"]
        if transport != "docker-archive":
            assert json.loads(skopeo("inspect", place))["Digest"] == str(image.digest)


def test_we_read_skopeos_layouts_and_archives(
    registry: RunningRegistry, client: RegistryClient, store: BlobStore, tmp_path: Path
) -> None:
    image = make_image(store, seed=50)
    source = f"docker://{registry.host}/ours/source:1"
    push(client, Reference.parse(source.removeprefix("docker://")), image, store)
    config = Manifest.from_bytes(read(store, image.digest)).config.digest
    for transport, name in (("oci", "x"), ("oci-archive", "x"), ("docker-archive", "example/app:x")):
        place = f"{transport}:{tmp_path / transport}:{name}"
        skopeo("copy", source, place)
        copy(client, place, f"{registry.host}/back/{transport}:1")
        fresh = BlobStore(tmp_path / f"fresh-{transport}")
        pulled = pull(client, Reference.parse(f"{registry.host}/back/{transport}:1"), fresh, platform=AMD64)
        assert pulled.manifests[0].manifest.config.digest == config
        if transport != "docker-archive":  # whose layers are uncompressed
            assert pulled.descriptor.digest == image.digest


def test_docker_lists_that_skopeo_makes_are_pulled(
    registry: RunningRegistry, client: RegistryClient, store: BlobStore, tmp_path: Path
) -> None:
    index = make_index(store, make_image(store, seed=60), make_image(store, seed=61, platform=ARM64))
    push(client, Reference.parse(f"{registry.host}/ours/list:1"), index, store)
    source, target = f"docker://{registry.host}/ours/list:1", f"docker://{registry.host}/theirs/list:1"
    skopeo("copy", "--all", "--format", "v2s2", source, target)
    pulled = pull(
        client, Reference.parse(f"{registry.host}/theirs/list:1"), BlobStore(tmp_path / "fresh"), platform=ARM64
    )
    assert pulled.descriptor.media_type in (DOCKER_INDEX, OCI_INDEX)
    assert pulled.manifests[0].config is not None
    assert pulled.manifests[0].config.platform == ARM64


def test_credentials_are_shared_with_skopeo(tmp_path: Path) -> None:
    if shutil.which("htpasswd") is None:
        pytest.skip("htpasswd is not installed")
    auth = tmp_path / "config.json"
    config = DockerConfig(str(auth), environment={})
    with docker_registry(tmp_path / "basic", htpasswd=("user", "a b:c")) as registry:
        skopeo("login", "--authfile", str(auth), "-u", "user", "-p", "a b:c", registry.host)
        assert config.get(registry.host) == Credential("user", "a b:c")
        auth.unlink()
        with RegistryClient(Transport()) as client:
            config.store(registry.host, login(client, registry.host, Credential("user", "a b:c")))
        assert "user" in skopeo("login", "--authfile", str(auth), "--get-login", registry.host)
        store = BlobStore(tmp_path / "store")
        with RegistryClient(Transport(), config) as client:
            push(client, Reference.parse(f"{registry.host}/a/b:1"), make_image(store), store)
        assert json.loads(skopeo("list-tags", "--authfile", str(auth), f"docker://{registry.host}/a/b"))["Tags"] == [
            "1"
        ]
