"""Copies between registries, layouts and archives; indexes, new bases and deletion, without the local store."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from registry_servers.fault_registry import FaultRegistry, answer, reset_after
from registry_servers.sample_images import AMD64, ARM64, layer_bytes, make_image, make_index, read

from pybuild.errors import PybuildError
from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import History, ImageConfig, Index, Manifest
from pybuild.layers.references import Reference
from pybuild.registry_client.client import ContentMismatch, ImageNotFound, RegistryClient
from pybuild.registry_client.compose import CannotRebase, create_index, delete, rebase
from pybuild.registry_client.copy import CopyFailed, copy
from pybuild.registry_client.flatten import flatten
from pybuild.registry_client.locations import InvalidLocation, parse_location
from pybuild.registry_client.pull import NoMatchingPlatform, pull
from pybuild.registry_client.push import push
from pybuild.registry_client.settings import NetworkSettings
from pybuild.registry_client.transport import Transport

pytestmark = pytest.mark.integration


@pytest.fixture
def registry() -> Iterator[FaultRegistry]:
    with FaultRegistry() as running:
        yield running


@pytest.fixture
def other() -> Iterator[FaultRegistry]:
    with FaultRegistry() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    transport = Transport(None, NetworkSettings(stall_timeout_seconds=5.0), sleep=lambda seconds: None)
    with RegistryClient(transport) as made:
        yield made


def published(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore, descriptor: Descriptor, name: str
) -> Reference:
    reference = Reference.parse(f"{registry.host}/{name}")
    push(client, reference, descriptor, store)
    registry.seen.clear()
    return reference


def same_content(one: FaultRegistry, name: str, two: FaultRegistry, other_name: str) -> None:
    assert two.blobs[other_name].items() >= one.blobs[name].items()
    assert two.manifests[other_name]["1"] == one.manifests[name]["1"]


def test_a_copy_between_registries_streams_everything(
    client: RegistryClient, registry: FaultRegistry, other: FaultRegistry, store: BlobStore, tmp_path: Path
) -> None:
    index = make_index(store, make_image(store), make_image(store, seed=1, platform=ARM64))
    source = published(client, registry, store, index, "team/app:1")
    report = copy(client, source.familiar, f"docker://{other.host}/copy/app:1", scratch=str(tmp_path / "none"))
    assert report.descriptor.digest == index.digest
    assert report.sent == 8
    same_content(registry, "team/app", other, "copy/app")
    again = copy(client, source.familiar, f"{other.host}/copy/app:1")
    assert again.unchanged


def test_a_copy_within_a_registry_mounts(client: RegistryClient, registry: FaultRegistry, store: BlobStore) -> None:
    source = published(client, registry, store, make_image(store), "team/app:1")
    report = copy(client, source.familiar, f"{registry.host}/copy/app:1")
    assert (report.mounted, report.bytes_sent) == (4, 0)
    assert registry.requests("GET", "/blobs/") == []
    same_content(registry, "team/app", registry, "copy/app")


def test_a_copy_survives_breaks_on_both_sides(
    client: RegistryClient, registry: FaultRegistry, other: FaultRegistry, store: BlobStore
) -> None:
    source = published(client, registry, store, make_image(store, size=800_000), "team/app:1")
    registry.on("GET", "/blobs/", reset_after(300_000), times=3)
    other.on("PUT", "/blobs/uploads/", answer(503), times=2)
    copy(client, source.familiar, f"{other.host}/copy/app:1")
    same_content(registry, "team/app", other, "copy/app")


def test_a_copy_can_take_one_platform(
    client: RegistryClient, registry: FaultRegistry, other: FaultRegistry, store: BlobStore
) -> None:
    arm = make_image(store, seed=1, platform=ARM64)
    source = published(client, registry, store, make_index(store, make_image(store), arm), "team/app:1")
    report = copy(client, source.familiar, f"{other.host}/copy/app:1", platform=ARM64)
    assert report.descriptor.digest == arm.digest
    assert other.manifests["copy/app"]["1"][0] == OCI_MANIFEST
    with pytest.raises(NoMatchingPlatform):
        copy(client, source.familiar, f"{other.host}/copy/app:1", platform=Platform("linux", "s390x"))


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_round_trips_through_layouts_and_archives(
    client: RegistryClient,
    registry: FaultRegistry,
    other: FaultRegistry,
    store: BlobStore,
    tmp_path: Path,
    transport: str,
) -> None:
    image = make_image(store)
    source = published(client, registry, store, image, "team/app:1")
    place = f"{transport}:{tmp_path / 'place'}"
    named = f"{place}:{'example/app:x' if transport == 'docker-archive' else 'x'}"
    copy(client, source.familiar, named)
    copy(client, named, f"{other.host}/copy/app:1")
    copy(client, place, f"{other.host}/copy/other:1")
    same_content(registry, "team/app", other, "copy/app")
    same_content(registry, "team/app", other, "copy/other")
    with pytest.raises(PybuildError, match="nosuch"):
        copy(client, f"{place}:nosuch", f"{other.host}/copy/app:1")
    leftovers = [path.name for path in tmp_path.iterdir()]
    assert sorted(leftovers) == ["place", "store"]


def test_a_layout_holds_several_images_by_tag(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore, tmp_path: Path
) -> None:
    one, two = make_image(store), make_image(store, seed=1)
    first = published(client, registry, store, one, "team/app:one")
    second = published(client, registry, store, two, "team/app:two")
    layout = tmp_path / "layout"
    copy(client, first.familiar, f"oci:{layout}")
    copy(client, second.familiar, f"oci:{layout}")
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    assert [(e["annotations"]["org.opencontainers.image.ref.name"], e["digest"]) for e in entries] == [
        ("one", str(one.digest)),
        ("two", str(two.digest)),
    ]
    assert sorted(path.name for path in layout.iterdir()) == ["blobs", "index.json", "oci-layout"]
    for blob in (layout / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    with pytest.raises(PybuildError):
        copy(client, f"oci:{layout}", f"{registry.host}/x:1")
    copy(client, f"oci:{layout}:two", f"oci-archive:{tmp_path / 'two.tar'}:two")
    with tarfile.open(tmp_path / "two.tar") as tar:
        assert "index.json" in tar.getnames()


def test_a_whole_index_goes_through_an_archive(
    client: RegistryClient, registry: FaultRegistry, other: FaultRegistry, store: BlobStore, tmp_path: Path
) -> None:
    index = make_index(store, make_image(store), make_image(store, seed=1, platform=ARM64))
    source = published(client, registry, store, index, "team/app:1")
    copy(client, source.familiar, f"oci-archive:{tmp_path / 'all.tar'}")
    copy(client, f"oci-archive:{tmp_path / 'all.tar'}", f"{other.host}/copy/app:1")
    same_content(registry, "team/app", other, "copy/app")
    copy(client, f"oci-archive:{tmp_path / 'all.tar'}", f"{other.host}/copy/arm:1", platform=ARM64)
    assert other.manifests["copy/arm"]["1"][0] == OCI_MANIFEST


def test_a_failed_copy_leaves_an_earlier_archive(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore, tmp_path: Path
) -> None:
    source = published(client, registry, store, make_image(store), "team/app:1")
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"before")
    registry.on("GET", "/blobs/", answer(404))
    with pytest.raises(ImageNotFound):
        copy(client, source.familiar, f"oci-archive:{archive}")
    assert archive.read_bytes() == b"before"
    with pytest.raises(CopyFailed):
        copy(client, f"docker-archive:{tmp_path / 'missing.tar'}", source.familiar)


def test_locations_are_told_apart() -> None:
    assert str(parse_location("docker://alpine:3")) == str(parse_location("alpine:3")) == "alpine:3"
    assert str(parse_location("docker:5000")) == "docker:5000"
    assert str(parse_location("oci:/a/b:tag")) == "oci:/a/b:tag"
    assert str(parse_location("oci-archive:a.tar")) == "oci-archive:a.tar"
    assert str(parse_location("docker-archive:a.tar:r.example:5000/x:1")) == "docker-archive:a.tar:r.example:5000/x:1"
    with pytest.raises(InvalidLocation):
        parse_location("oci:")


# --- indexes ---


def _platforms(registry: FaultRegistry, name: str, tag: str) -> list[tuple[str, str]]:
    media_type, data = registry.manifests[name][tag]
    assert media_type in (OCI_INDEX, DOCKER_INDEX)
    return [(str(entry.platform), str(entry.digest)) for entry in Index.from_bytes(data).manifests]


def test_an_index_of_images_from_several_jobs_moves_no_layers(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore
) -> None:
    amd, arm = make_image(store), make_image(store, seed=1, platform=ARM64)
    one = published(client, registry, store, amd, "job/amd:1")
    two = published(client, registry, store, arm, "job/arm:1")
    report = create_index(client, Reference.parse(f"{registry.host}/team/app:1"), [one, two], tags=["latest"])
    assert report.bytes_sent == 0
    assert _platforms(registry, "team/app", "1") == [
        ("linux/amd64", str(amd.digest)),
        ("linux/arm64", str(arm.digest)),
    ]
    assert registry.manifests["team/app"]["latest"] == registry.manifests["team/app"]["1"]
    fresh = BlobStore(store.root / "fresh")
    pull(client, Reference.parse(f"{registry.host}/team/app:1"), fresh, all_platforms=True)


def test_appending_replaces_the_same_platform_and_its_attestation(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore
) -> None:
    amd, arm = make_image(store), make_image(store, seed=1, platform=ARM64)
    attestation = make_image(store, seed=5, platform=Platform("unknown", "unknown"))
    noted = Descriptor(
        OCI_MANIFEST,
        attestation.digest,
        attestation.size,
        platform=Platform("unknown", "unknown"),
        annotations={
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": str(amd.digest),
        },
    )
    target = published(client, registry, store, make_index(store, amd, noted), "team/app:1")
    newer = make_image(store, seed=9)
    sources = [
        published(client, registry, store, arm, "job/arm:1"),
        published(client, registry, store, newer, "job/amd:1"),
    ]
    create_index(client, target, sources, append=True, annotations={"a": "b"})
    assert _platforms(registry, "team/app", "1") == [
        ("linux/arm64", str(arm.digest)),
        ("linux/amd64", str(newer.digest)),
    ]
    assert Index.from_bytes(registry.manifests["team/app"]["1"][1]).annotations == {"a": "b"}
    create_index(client, Reference.parse(f"{registry.host}/new/app:1"), sources[:1], append=True)
    assert len(_platforms(registry, "new/app", "1")) == 1
    with pytest.raises(ImageNotFound):
        create_index(client, target, [Reference.parse(f"{registry.host}/none:1")])


def test_an_index_of_docker_manifests_is_a_docker_list(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore
) -> None:
    descriptor = _docker_image(store, [1])
    source = published(client, registry, store, descriptor, "job/amd:1")
    create_index(client, Reference.parse(f"{registry.host}/team/app:1"), [source])
    assert registry.manifests["team/app"]["1"][0] == DOCKER_INDEX


# --- rebase ---


def _image(
    store: BlobStore,
    seeds: list[int],
    *,
    base: Descriptor | None = None,
    platform: Platform = AMD64,
    annotations: dict[str, str] | None = None,
) -> Descriptor:
    """An image with one layer and one history entry per seed, on top of ``base``."""
    layers: list[Descriptor] = []
    diff_ids: list[Digest] = []
    history: list[History] = []
    if base is not None:
        below = Manifest.from_bytes(read(store, base.digest))
        config = ImageConfig.from_bytes(read(store, below.config.digest))
        layers, diff_ids, history = list(below.layers), list(config.diff_ids), list(config.history)
    for seed in seeds:
        tar, packed = layer_bytes(seed)
        layers.append(Descriptor(OCI_LAYER_GZIP, store.write(packed), len(packed)))
        diff_ids.append(Digest.of(tar))
        history.append(History(created_by=f"layer {seed}"))
    config = ImageConfig.empty(platform).with_(
        diff_ids=tuple(diff_ids), history=tuple(history), env=(f"SEEDS={seeds}",), cmd=("run", str(seeds))
    )
    data = config.to_bytes()
    manifest = Manifest(
        Descriptor(OCI_CONFIG, store.write(data), len(data)), tuple(layers), annotations=annotations or {}
    ).to_bytes()
    return Descriptor(OCI_MANIFEST, store.write(manifest), len(manifest), platform=platform)


def _docker_image(store: BlobStore, seeds: list[int]) -> Descriptor:
    image = Manifest.from_bytes(read(store, _image(store, seeds).digest))
    layers = tuple(Descriptor(DOCKER_LAYER_GZIP, layer.digest, layer.size) for layer in image.layers)
    config = Descriptor(DOCKER_CONFIG, image.config.digest, image.config.size)
    data = Manifest(config, layers, DOCKER_MANIFEST).to_bytes()
    return Descriptor(DOCKER_MANIFEST, store.write(data), len(data), platform=AMD64)


def test_an_image_gets_a_new_base_without_moving_layers(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore, tmp_path: Path
) -> None:
    old, new = _image(store, [1, 2]), _image(store, [3, 4, 5])
    published(client, registry, store, old, "base/os:1")
    annotations = {
        "org.opencontainers.image.base.name": f"{registry.host}/base/os:1",
        "org.opencontainers.image.base.digest": str(old.digest),
        "own": "kept",
    }
    image = published(client, registry, store, _image(store, [8, 9], base=old, annotations=annotations), "team/app:1")
    published(client, registry, store, new, "base/os:1")
    target = Reference.parse(f"{registry.host}/team/app:rebased")
    report = rebase(client, image, target)
    assert (report.mounted, report.existing, report.sent) == (3, 2, 1)
    fresh = BlobStore(tmp_path / "fresh")
    pulled = pull(client, target, fresh, platform=AMD64)
    config = pulled.manifests[0].config
    assert config is not None
    assert config.diff_ids == tuple(Digest.of(layer_bytes(seed)[0]) for seed in (3, 4, 5, 8, 9))
    assert [entry.created_by for entry in config.history] == [f"layer {seed}" for seed in (3, 4, 5, 8, 9)]
    assert config.cmd == ("run", "[8, 9]")
    assert pulled.manifests[0].manifest.annotations == {
        "org.opencontainers.image.base.name": f"{registry.host}/base/os:1",
        "org.opencontainers.image.base.digest": str(new.digest),
        "own": "kept",
    }


def test_every_platform_of_an_index_is_rebased(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore
) -> None:
    old = [_image(store, [1], platform=AMD64), _image(store, [2], platform=ARM64)]
    new = [_image(store, [3], platform=AMD64), _image(store, [4], platform=ARM64)]
    old_base = published(client, registry, store, make_index(store, *old), "base/os:1")
    new_base = published(client, registry, store, make_index(store, *new), "base/os:2")
    apps = [_image(store, [7], base=old[0], platform=AMD64), _image(store, [7], base=old[1], platform=ARM64)]
    image = published(client, registry, store, make_index(store, *apps), "team/app:1")
    target = Reference.parse(f"{registry.host}/team/app:2")
    rebase(client, image, target, old_base=old_base, new_base=new_base)
    fresh = BlobStore(store.root / "fresh")
    pulled = pull(client, target, fresh, all_platforms=True)
    found = {str(m.config.platform): m.config.diff_ids for m in pulled.manifests if m.config is not None}
    assert found == {
        "linux/amd64": tuple(Digest.of(layer_bytes(seed)[0]) for seed in (3, 7)),
        "linux/arm64": tuple(Digest.of(layer_bytes(seed)[0]) for seed in (4, 7)),
    }


def test_what_is_not_on_the_base_is_not_rebased(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore
) -> None:
    base = published(client, registry, store, _image(store, [1]), "base/os:1")
    image = published(client, registry, store, _image(store, [5, 6]), "team/app:1")
    with pytest.raises(CannotRebase, match="was not made on"):
        rebase(client, image, image, old_base=base, new_base=base)
    with pytest.raises(CannotRebase, match="doesn't say what it was made on"):
        rebase(client, image, image)


# --- deletion ---


def test_deleting_a_tag_or_a_manifest(client: RegistryClient, registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store)
    reference = published(client, registry, store, image, "team/app:1")
    registry.on("DELETE", "/manifests/1", answer(405))
    assert delete(client, reference) == image.digest
    assert registry.manifests["team/app"] == {}
    with pytest.raises(ImageNotFound):
        delete(client, reference.with_digest(image.digest))


# --- flatten ---


def test_an_image_is_flattened_to_one_layer_per_platform(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore, tmp_path: Path
) -> None:
    index = make_index(store, _image(store, [1, 2, 3]), _image(store, [4, 5], platform=ARM64))
    image = published(client, registry, store, index, "team/app:1")
    target = Reference.parse(f"{registry.host}/team/app:flat")
    flatten(client, image, target, scratch=str(tmp_path))
    pulled = pull(client, target, BlobStore(tmp_path / "fresh"), all_platforms=True)
    for one, seeds in zip(pulled.manifests, ([1, 2, 3], [4, 5]), strict=True):
        assert one.config is not None
        assert one.config.cmd == ("run", str(seeds))
        assert len(one.config.history) == 1
        blob = registry.blobs["team/app"][str(one.manifest.layers[0].digest)]
        data = gzip.decompress(blob)
        assert one.config.diff_ids == (Digest.of(data),)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert tar.getnames() == [f"file-{seed}" for seed in seeds]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "store"]
    first = registry.manifests["team/app"]["flat"]
    flatten(client, image, target, scratch=str(tmp_path))
    assert registry.manifests["team/app"]["flat"] == first


def test_a_layer_that_isnt_what_the_configuration_says_is_not_flattened(
    client: RegistryClient, registry: FaultRegistry, store: BlobStore
) -> None:
    one, other = _image(store, [1]), _image(store, [2])
    manifest = Manifest.from_bytes(read(store, one.digest))
    wrong = Manifest(manifest.config, Manifest.from_bytes(read(store, other.digest)).layers).to_bytes()
    descriptor = Descriptor(OCI_MANIFEST, store.write(wrong), len(wrong))
    image = published(client, registry, store, descriptor, "team/app:1")
    with pytest.raises(ContentMismatch, match="doesn't unpack to"):
        flatten(client, image, image.with_tag("flat"))
