"""OCI layouts and docker archives: written reproducibly, read with nothing taken on trust."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.errors import PybuildError
from pybuild.layers.archive_load import LoadedImage, load_archive, member_name
from pybuild.layers.blobs import BlobCorrupt, BlobNotFound, BlobStore
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
from pybuild.layers.docker_archive import InvalidArchive, familiar_name, read_manifest_file, write_docker_archive
from pybuild.layers.image import ImageConfig, Index, Manifest
from pybuild.layers.layout import (
    IMAGE_NAME,
    REF_NAME,
    ExportedImage,
    ExportFailed,
    InvalidLayout,
    LayoutDirectory,
    LayoutImageNotFound,
    copy_bytes,
    reference_tag,
    write_layout_directory,
    write_layout_tar,
)
from pybuild.layers.store import Store

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
X, X2 = "docker.io/library/x:1", "registry:5000/team/x:2"


def layer_tar(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


ONE, TWO = layer_tar("one", b"1" * 3000), layer_tar("two", b"2")


def put(blobs: BlobStore, data: bytes, media_type: str, *, algorithm: str = "sha256") -> Descriptor:
    return Descriptor(media_type, blobs.write(data, algorithm=algorithm), len(data))


def make_image(
    blobs: BlobStore, *tars: bytes, platform: Platform = AMD64, packed: bool = False, algorithm: str = "sha256"
) -> Descriptor:
    config = ImageConfig(platform, env=("A=1",), diff_ids=tuple(Digest.of(tar) for tar in tars))
    layers = [
        put(blobs, gzip.compress(tar, mtime=0), OCI_LAYER_GZIP, algorithm=algorithm)
        if packed
        else put(blobs, tar, OCI_LAYER)
        for tar in tars
    ]
    manifest = Manifest(put(blobs, config.to_bytes(), OCI_CONFIG, algorithm=algorithm), tuple(layers))
    return put(blobs, manifest.to_bytes(), OCI_MANIFEST, algorithm=algorithm)


def make_index(blobs: BlobStore) -> Descriptor:
    amd, arm = make_image(blobs, ONE, TWO), make_image(blobs, ONE, platform=ARM64)
    statement = put(blobs, b'{"_type":"statement"}', "application/vnd.in-toto+json")
    config = ImageConfig(Platform("unknown", "unknown"), diff_ids=(statement.digest,))
    attestation = Manifest(put(blobs, config.to_bytes(), OCI_CONFIG), (statement,))
    attached = replace(
        put(blobs, attestation.to_bytes(), OCI_MANIFEST),
        platform=Platform("unknown", "unknown"),
        annotations={"vnd.docker.reference.digest": str(amd.digest)},
    )
    index = Index((replace(amd, platform=AMD64), replace(arm, platform=ARM64), attached))
    return put(blobs, index.to_bytes(), OCI_INDEX)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root", clock=time.time) as store:
        yield store


def oci_tar(blobs: BlobStore, *images: ExportedImage) -> bytes:
    out = io.BytesIO()
    write_layout_tar(images, out, blobs=blobs)
    return out.getvalue()


def docker_tar(blobs: BlobStore, *images: ExportedImage) -> bytes:
    out = io.BytesIO()
    write_docker_archive(images, out, blobs=blobs)
    return out.getvalue()


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {
            member.name: (tar.extractfile(member) or io.BytesIO()).read()
            for member in tar.getmembers()
            if member.isfile()
        }


def pack(files: Mapping[str, bytes], links: Mapping[str, tuple[bytes, str]] | None = None) -> bytes:
    """A tar as others write them. ``links``: name to (type, target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, (kind, target) in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return out.getvalue()


def old_docker_files(*tars: bytes, name: str = "x:1") -> dict[str, bytes]:
    """What docker save wrote before version 25."""
    config = ImageConfig(AMD64, diff_ids=tuple(Digest.of(tar) for tar in tars)).to_bytes()
    config_name = f"{Digest.of(config).hex}.json"
    layers = [f"{number:064x}/layer.tar" for number, _ in enumerate(tars)]
    listing = [{"Config": config_name, "RepoTags": [name], "Layers": layers}]
    files = dict(zip(layers, tars, strict=True))
    return {config_name: config, **files, "manifest.json": json.dumps(listing).encode(), "repositories": b"{}"}


def load(store: Store, archive: bytes) -> tuple[LoadedImage, ...]:
    return load_archive(io.BytesIO(archive), store=store)


def assert_unchanged(store: Store) -> None:
    assert list(store.blobs) == []
    assert os.listdir(store.root / "active") == []
    assert store.database.query("SELECT count(*) FROM layer") == [(0,)]


# --- writing ----------------------------------------------------------------------------------------------------------


def test_an_archive_is_the_same_every_time_and_sorted(blobs: BlobStore) -> None:
    image = ExportedImage(make_index(blobs), (X, X2))
    first = oci_tar(blobs, image)
    assert first == oci_tar(blobs, image)
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        found = tar.getmembers()
    assert [member.name for member in found] == sorted(member.name for member in found)
    assert {(member.uid, member.gid, member.mtime, member.uname) for member in found} == {(0, 0, 0, "")}
    assert {member.name.split("/")[0] for member in found} == {"blobs", "index.json", "oci-layout"}
    for member, data in members(first).items():
        if member.startswith("blobs/"):
            assert Digest.of(data).hex == member.rpartition("/")[2]


def test_each_name_is_an_entry_of_the_index(blobs: BlobStore) -> None:
    image = replace(make_image(blobs, ONE), annotations={"org.opencontainers.image.created": "2024-01-01T00:00:00Z"})
    index = Index.from_bytes(members(oci_tar(blobs, ExportedImage(image, (X, X2))))["index.json"])
    assert [entry.digest for entry in index.manifests] == [image.digest] * 2
    names = [(entry.annotations[IMAGE_NAME], entry.annotations[REF_NAME]) for entry in index.manifests]
    assert names == [(X, "1"), (X2, "2")]
    assert all("org.opencontainers.image.created" in entry.annotations for entry in index.manifests)
    index = Index.from_bytes(members(oci_tar(blobs, ExportedImage(image)))["index.json"])
    assert index.manifests == (image,)
    index = Index.from_bytes(members(oci_tar(blobs, ExportedImage(image, ("latest",))))["index.json"])
    assert index.manifests[0].annotations[REF_NAME] == "latest"
    assert IMAGE_NAME not in index.manifests[0].annotations


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("docker.io/library/x:1", "1"),
        ("registry:5000/x", "registry:5000/x"),
        ("registry:5000/x:2", "2"),
        ("x", "x"),
        ("a/b@sha256:00", "a/b@sha256:00"),
        ("a/b:t@sha256:00", "t@sha256:00"),
    ],
)
def test_the_tag_of_a_name(name: str, tag: str) -> None:
    assert reference_tag(name) == tag


def test_sha512_blobs_keep_their_algorithm(blobs: BlobStore, store: Store) -> None:
    image = make_image(blobs, ONE, packed=True, algorithm="sha512")
    archive = oci_tar(blobs, ExportedImage(image, (X,)))
    assert sum(name.startswith("blobs/sha512/") for name in members(archive)) == 3
    (loaded,) = load(store, archive)
    assert loaded.descriptor.digest.algorithm == "sha512"
    store.images.put(X, loaded.descriptor)


def test_streams_that_are_no_plain_files_get_the_same_bytes(blobs: BlobStore, tmp_path: Path) -> None:
    image = ExportedImage(make_image(blobs, ONE, TWO), (X,))
    expected = oci_tar(blobs, image)
    with open(tmp_path / "buffered", "wb") as file:
        write_layout_tar([image], file, blobs=blobs)
        file.write(b"behind")
    assert (tmp_path / "buffered").read_bytes() == expected + b"behind"
    with open(tmp_path / "raw", "wb", buffering=0) as raw:
        write_layout_tar([image], raw, blobs=blobs)
    assert (tmp_path / "raw").read_bytes() == expected
    with open(tmp_path / "appended", "ab") as file:
        write_layout_tar([image], file, blobs=blobs)
    assert (tmp_path / "appended").read_bytes() == expected
    with gzip.open(tmp_path / "packed", "wb") as packed:
        write_layout_tar([image], packed, blobs=blobs)  # type: ignore[arg-type]  # GzipFile is a BinaryIO in all but name
    with gzip.open(tmp_path / "packed") as unpacked:
        assert unpacked.read() == expected
    seen: list[int] = []
    out = io.BytesIO()
    write_layout_tar([image], out, blobs=blobs, on_progress=seen.append)
    assert sum(seen) == len(expected)


def test_an_archive_through_a_pipe(blobs: BlobStore) -> None:
    image = ExportedImage(make_image(blobs, ONE, layer_tar("big", os.urandom(300_000))), (X,))
    reader, writer = os.pipe()
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(open(reader, "rb").read()))  # noqa: SIM115  closed with the thread
    thread.start()
    with open(writer, "wb") as file:
        write_layout_tar([image], file, blobs=blobs)
    thread.join()
    assert got == [oci_tar(blobs, image)]


def test_nothing_is_written_when_a_blob_is_missing_or_short(blobs: BlobStore, tmp_path: Path) -> None:
    image = ExportedImage(make_image(blobs, ONE, TWO), (X,))
    blobs.path(Digest.of(ONE)).write_bytes(b"short")
    out = io.BytesIO()
    with pytest.raises(BlobCorrupt, match="5 bytes"):
        write_layout_tar([image], out, blobs=blobs)
    blobs.delete(Digest.of(ONE))
    for write in (write_layout_tar, write_docker_archive):
        with pytest.raises(BlobNotFound, match=Digest.of(ONE).hex):
            write([image], out, blobs=blobs)
    with pytest.raises(BlobNotFound):
        write_layout_directory([image], tmp_path / "layout", blobs=blobs)
    assert out.getvalue() == b""
    assert not (tmp_path / "layout").exists()


def test_a_full_target_is_a_clear_error(blobs: BlobStore, tmp_path: Path) -> None:
    image = ExportedImage(make_image(blobs, ONE), (X,))
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(ExportFailed, match="No space left"):
        write_layout_tar([image], full, blobs=blobs)
    (tmp_path / "file").touch()
    with pytest.raises(ExportFailed, match="file"):
        write_layout_directory([image], tmp_path / "file", blobs=blobs)


def test_what_an_index_lists_may_be_absent_if_asked(blobs: BlobStore) -> None:
    index = make_index(blobs)
    arm = Index.from_bytes(blobs.read(index.digest, limit_bytes=9999)).manifests[1]
    config = Manifest.from_bytes(blobs.read(arm.digest, limit_bytes=9999)).config
    for missing in (config.digest, arm.digest):
        blobs.delete(missing)
        with pytest.raises(BlobNotFound):
            oci_tar(blobs, ExportedImage(index))
        out = io.BytesIO()
        write_layout_tar([ExportedImage(index)], out, blobs=blobs, skip_missing=True)
        names = members(out.getvalue()).keys()
        assert f"blobs/sha256/{arm.digest.hex}" not in names, "without its configuration the manifest is of no use"
        assert f"blobs/sha256/{Digest.of(TWO).hex}" in names


def test_copying_falls_back_to_reading_and_writing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "ab") as target:
        copy_bytes(source.fileno(), target.fileno(), 3_000_000)
        with pytest.raises(OSError, match="shorter"):
            copy_bytes(source.fileno(), target.fileno(), 1)
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()


# --- layout directories -----------------------------------------------------------------------------------------------


def test_a_layout_directory_is_added_to(blobs: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "layout"
    one, two, index = make_image(blobs, ONE), make_image(blobs, TWO), make_index(blobs)
    write_layout_directory([ExportedImage(one, (X, X2))], path, blobs=blobs)
    write_layout_directory([ExportedImage(two, (X2,)), ExportedImage(index, ("tag",))], path, blobs=blobs)
    write_layout_directory([ExportedImage(two)], path, blobs=blobs)
    write_layout_directory([ExportedImage(two)], path, blobs=blobs)
    layout = LayoutDirectory(path)
    assert len(layout.index().manifests) == 4, "an entry without a name is there once"
    assert layout.find(X).digest == one.digest
    assert layout.find("1").digest == one.digest
    assert layout.find(X2).digest == two.digest
    assert layout.find("tag").digest == index.digest
    assert layout.find(str(index.digest)).media_type == OCI_INDEX
    assert layout.find(f"whatever@{one.digest}").digest == one.digest
    assert sorted(os.listdir(path)) == ["blobs", "index.json", "oci-layout"]
    assert {name[0] for name in os.listdir(path / "blobs" / "sha256")} <= set("0123456789abcdef")
    with pytest.raises(LayoutImageNotFound, match=r"must be named"):
        layout.find()
    with pytest.raises(LayoutImageNotFound) as caught:
        layout.find("other")
    assert X in str(caught.value.hint)
    with pytest.raises(LayoutImageNotFound):
        layout.find(str(Digest.of(b"none")))


def test_the_only_image_needs_no_name(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, ONE)
    write_layout_directory([ExportedImage(image, (X, X2))], tmp_path / "layout", blobs=blobs)
    assert LayoutDirectory(tmp_path / "layout").find().digest == image.digest


def test_what_is_no_layout_is_refused(tmp_path: Path) -> None:
    layout = LayoutDirectory(tmp_path)
    with pytest.raises(InvalidLayout, match="oci-layout: No such file"):
        layout.index()
    for content in (b"{", b"[]", b'{"imageLayoutVersion":"2.0.0"}'):
        (tmp_path / "oci-layout").write_bytes(content)
        with pytest.raises(InvalidLayout):
            layout.index()
    (tmp_path / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    for content in (b"{", b'{"manifests":7}', b'{"manifests":[{"digest":"x"}]}'):
        (tmp_path / "index.json").write_bytes(content)
        with pytest.raises(InvalidLayout):
            layout.index()


# --- docker archives --------------------------------------------------------------------------------------------------


def test_a_docker_archive_is_an_oci_archive_with_a_manifest_file(blobs: BlobStore) -> None:
    image = make_image(blobs, ONE, TWO)
    archive = members(docker_tar(blobs, ExportedImage(image, (X, X2, f"docker.io/library/x@{image.digest}"))))
    (element,) = read_manifest_file(archive["manifest.json"])
    assert element.names == ("x:1", "registry:5000/team/x:2")
    assert archive[element.config] == archive[f"blobs/sha256/{element.config.rpartition('/')[2]}"]
    assert [archive[layer] for layer in element.layers] == [ONE, TWO]
    assert len(Index.from_bytes(archive["index.json"]).manifests) == 3
    nameless = members(docker_tar(blobs, ExportedImage(image)))
    assert json.loads(nameless["manifest.json"])[0]["RepoTags"] is None


def test_of_an_index_the_manifest_file_lists_one_platform(blobs: BlobStore) -> None:
    index = ExportedImage(make_index(blobs), (X,))
    for platform, layers in (
        (None, 2),
        (AMD64, 2),
        (ARM64, 1),
        (Platform("linux", "arm64"), 1),
        (Platform("linux", "x"), 2),
    ):
        out = io.BytesIO()
        write_docker_archive([index], out, blobs=blobs, platform=platform)
        (element,) = read_manifest_file(members(out.getvalue())["manifest.json"])
        assert len(element.layers) == layers, platform


def test_names_of_one_image_are_gathered(blobs: BlobStore) -> None:
    image = make_image(blobs, ONE)
    archive = members(docker_tar(blobs, ExportedImage(image, (X,)), ExportedImage(image, (X2,))))
    (element,) = read_manifest_file(archive["manifest.json"])
    assert element.names == ("x:1", "registry:5000/team/x:2")


def test_familiar_names() -> None:
    names = ("docker.io/library/x:1", "docker.io/team/x:1", "quay.io/library/x:1")
    assert tuple(map(familiar_name, names)) == ("x:1", "team/x:1", "quay.io/library/x:1")


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [oci_tar, docker_tar])
@pytest.mark.parametrize("packed", [False, True])
def test_what_was_written_is_loaded(blobs: BlobStore, store: Store, write: Callable[..., bytes], packed: bool) -> None:
    image = make_image(blobs, ONE, TWO, packed=packed)
    archive = write(blobs, ExportedImage(image, (X, X2)))
    (loaded,) = load(store, archive)
    assert loaded == LoadedImage(image, (X, X2))
    stored = store.images.put(X, loaded.descriptor)
    assert stored.platforms[0].size == len(ONE) + len(TWO), "sizes are those of the uncompressed layers"
    assert write(store.blobs, ExportedImage(image, (X, X2))) == archive
    assert load(store, archive) == (loaded,), "once more changes nothing"
    assert len(list(store.blobs)) == 4
    assert os.listdir(store.root / "active") == []


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_a_compressed_archive_is_loaded(blobs: BlobStore, store: Store, compress: Callable[[bytes], bytes]) -> None:
    image = make_image(blobs, ONE)
    (loaded,) = load(store, compress(docker_tar(blobs, ExportedImage(image, (X,)))))
    assert loaded.names == (X,)


def test_an_index_with_attestations_survives(blobs: BlobStore, store: Store) -> None:
    index = make_index(blobs)
    archive = oci_tar(blobs, ExportedImage(index, (X,)))
    (loaded,) = load(store, archive)
    store.images.put(X, loaded.descriptor)
    assert oci_tar(store.blobs, ExportedImage(loaded.descriptor, (X,))) == archive


def test_several_images_are_loaded_with_their_names_and_tags(blobs: BlobStore, store: Store) -> None:
    one, two = make_image(blobs, ONE), make_image(blobs, TWO)
    loaded = load(store, oci_tar(blobs, ExportedImage(one, (X, "tag")), ExportedImage(two)))
    assert loaded == (LoadedImage(one, (X,), ("tag",)), LoadedImage(two))


def test_a_whole_name_as_reference_is_a_name(blobs: BlobStore, store: Store) -> None:
    image = replace(make_image(blobs, ONE), annotations={REF_NAME: "localhost/x:1"})
    (loaded,) = load(store, oci_tar(blobs, ExportedImage(image)))
    assert loaded.names == ("localhost/x:1",)


@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_old_docker_archive_is_loaded(store: Store, prefix: str) -> None:
    files = {prefix + name: data for name, data in old_docker_files(ONE, TWO).items()}
    (loaded,) = load(store, pack(files))
    assert loaded.names == ("x:1",)
    image = store.images.put(X, loaded.descriptor)
    assert image.platforms[0].diff_ids == (Digest.of(ONE), Digest.of(TWO))
    assert len(list(store.blobs)) == 4, "nothing but manifest, configuration and layers"


def test_layers_inside_a_docker_archive_may_be_compressed(store: Store) -> None:
    for compress in (gzip.compress, zstandard.compress):
        files = old_docker_files(ONE, TWO)
        layer = next(name for name in files if name.endswith("layer.tar"))
        files[layer] = compress(files[layer])
        (loaded,) = load(store, pack(files))
        assert store.images.put(X, loaded.descriptor).platforms[0].size == len(ONE) + len(TWO)
    files[layer] = lzma.compress(ONE)
    with pytest.raises(InvalidArchive, match="compressed with xz"):
        load(store, pack(files))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_layers_that_are_links_to_others_are_found(store: Store, kind: bytes) -> None:
    files = old_docker_files(ONE, ONE)
    first, second = (name for name in files if name.endswith("layer.tar"))
    del files[second]
    target = f"../{first}" if kind == tarfile.SYMTYPE else first
    (loaded,) = load(store, pack(files, {second: (kind, target)}))
    assert store.images.put(X, loaded.descriptor).platforms[0].diff_ids == (Digest.of(ONE),) * 2


def test_names_come_from_the_manifest_file_when_the_index_has_none(blobs: BlobStore, store: Store) -> None:
    image = make_image(blobs, ONE)
    files = members(docker_tar(blobs, ExportedImage(image, (X,))))
    files["index.json"] = Index((image,)).to_bytes()
    (loaded,) = load(store, pack(files))
    assert loaded.names == ("x:1",)


def change_json(files: dict[str, bytes], name: str, change: Callable[[object], object]) -> dict[str, bytes]:
    return {**files, name: json.dumps(change(json.loads(files[name]))).encode()}


def bad_old_archives() -> Iterator[tuple[str, dict[str, bytes]]]:
    files = old_docker_files(ONE, TWO)
    config = next(name for name in files if name.endswith(".json") and name != "manifest.json")
    layer = next(name for name in files if name.endswith("layer.tar"))
    yield "no manifest", {name: data for name, data in files.items() if name != "manifest.json"}
    yield "no config", {name: data for name, data in files.items() if name != config}
    yield "no layer", {name: data for name, data in files.items() if name != layer}
    yield "wrong layer", {**files, layer: TWO}
    yield "wrong config", {**files, config: files[config] + b" "}
    yield "broken compressed layer", {**files, layer: gzip.compress(ONE, mtime=0)[:-9]}
    yield "wrong compressed layer", {**files, layer: gzip.compress(TWO, mtime=0)}
    for name, value in [
        ("a layer outside", {"Layers": ["../../../../etc/passwd", layer]}),
        ("an absolute layer", {"Layers": ["/etc/passwd", layer]}),
        ("an absolute config", {"Config": "/etc/passwd"}),
        ("a layer too few", {"Layers": [layer]}),
        ("layers of a wrong type", {"Layers": {"a": 1}}),
        ("names of a wrong type", {"RepoTags": [1]}),
        ("a config of a wrong type", {"Config": None}),
    ]:
        yield name, change_json(files, "manifest.json", lambda listing, v=value: [{**listing[0], **v}])  # type: ignore[index,misc]
    yield "no list", {**files, "manifest.json": b"{}"}
    yield "no JSON", {**files, "manifest.json": b"["}
    yield "deep JSON", {**files, "manifest.json": b"[" * 100_000}
    for evil in ("../evil", "/evil", "a/../../evil"):
        yield f"a member {evil}", {**files, evil: b"x"}


@pytest.mark.parametrize(
    ("name", "files"), list(bad_old_archives()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_docker_archive_is_refused_and_leaves_nothing(store: Store, name: str, files: dict[str, bytes]) -> None:
    with pytest.raises(PybuildError):
        load(store, pack(files))
    assert_unchanged(store)
    assert not (store.root.parent / "evil").exists()


def bad_oci_archives() -> Iterator[tuple[str, dict[str, bytes]]]:
    with tempfile.TemporaryDirectory() as directory:
        blobs = BlobStore(Path(directory))
        image = make_image(blobs, ONE, TWO, packed=True)
        files = members(oci_tar(blobs, ExportedImage(image, (X,))))
        lying = ImageConfig(AMD64, diff_ids=(Digest.of(TWO), Digest.of(ONE))).to_bytes()
        layers = Manifest.from_bytes(blobs.read(image.digest, limit_bytes=9999)).layers
        swapped = Manifest(put(blobs, lying, OCI_CONFIG), layers)
        liar = put(blobs, swapped.to_bytes(), OCI_MANIFEST)
        yield "diff IDs that don't fit", members(oci_tar(blobs, ExportedImage(liar)))
        short = Manifest(put(blobs, lying, OCI_CONFIG), layers[:1])
        yield "layers missing", members(oci_tar(blobs, ExportedImage(put(blobs, short.to_bytes(), OCI_MANIFEST))))
        sized = replace(image, size=image.size + 1)
        yield "a wrong size", {**files, "index.json": Index((sized,)).to_bytes()}
        yield (
            "an unknown type",
            {**files, "index.json": Index((replace(layers[0], media_type="text/plain"),)).to_bytes()},
        )
        absent = Index((Descriptor(OCI_MANIFEST, Digest.of(b"absent"), 6),))
        yield "an absent manifest", {**files, "index.json": absent.to_bytes()}
        inner = put(blobs, absent.to_bytes(), OCI_INDEX)
        yield (
            "an index of nothing",
            {
                **files,
                f"blobs/sha256/{inner.digest.hex}": absent.to_bytes(),
                "index.json": Index((inner,)).to_bytes(),
            },
        )
    for name in files:
        if name.startswith("blobs/"):
            yield f"no {name[:20]}", {key: data for key, data in files.items() if key != name}
            yield f"damaged {name[:20]}", {**files, name: files[name][:-1] + b"!"}
    yield "no index", {name: data for name, data in files.items() if name != "index.json"}
    yield "nothing in the index", {**files, "index.json": Index(()).to_bytes()}
    yield "another version", {**files, "oci-layout": b'{"imageLayoutVersion":"9"}'}
    yield "a blob with a bad name", {**files, "blobs/sha256/00": b""}


@pytest.mark.parametrize(
    ("name", "files"), list(bad_oci_archives()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_oci_archive_is_refused_and_leaves_nothing(store: Store, name: str, files: dict[str, bytes]) -> None:
    with pytest.raises(PybuildError):
        load(store, pack(files))
    assert_unchanged(store)


def test_a_layer_that_the_store_has_needs_not_be_in_the_archive(blobs: BlobStore, store: Store) -> None:
    image = make_image(blobs, ONE)
    files = members(oci_tar(blobs, ExportedImage(image, (X,))))
    del files[f"blobs/sha256/{Digest.of(ONE).hex}"]
    store.blobs.write(ONE)
    (loaded,) = load(store, pack(files))
    assert store.images.put(X, loaded.descriptor).platforms[0].diff_ids == (Digest.of(ONE),)


@pytest.mark.parametrize(
    "data", [b"", b"no archive", bytes(1024), gzip.compress(b"", mtime=0), b"\x1f\x8b\x08", pack({"etc/passwd": b""})]
)
def test_what_is_no_image_archive_is_refused(store: Store, data: bytes) -> None:
    with pytest.raises(PybuildError):
        load(store, data)
    assert_unchanged(store)


def test_the_stream_is_read_to_its_end(blobs: BlobStore, store: Store) -> None:
    stream = io.BytesIO(oci_tar(blobs, ExportedImage(make_image(blobs, ONE))) + bytes(50_000))
    load_archive(stream, store=store)
    assert stream.read() == b""


@pytest.mark.parametrize("text", ["../x", "a/../../x", "/x", "/"])
def test_paths_that_lead_out_are_refused(text: str) -> None:
    with pytest.raises(InvalidArchive):
        member_name(text)


def test_paths_are_made_clean() -> None:
    assert member_name("./a//b/../c") == "a/c"


def test_a_loader_that_is_killed_leaves_what_the_next_run_sweeps(blobs: BlobStore, tmp_path: Path) -> None:
    archive = oci_tar(blobs, ExportedImage(make_image(blobs, ONE, layer_tar("big", bytes(5_000_000)))))
    root = tmp_path / "root"
    code = (
        "import sys, time, pathlib\n"
        "from pybuild.layers.store import Store\n"
        "from pybuild.layers.archive_load import load_archive\n"
        "load_archive(sys.stdin.buffer, store=Store(pathlib.Path(sys.argv[1]), clock=time.time))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(archive[:-2000])
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not any((root / "active").glob("*/blobs/sha256/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdin.close()
    assert os.listdir(root / "active") != []
    with Store(root, clock=time.time) as store:
        assert_unchanged(store)


# --- archives that somebody broke ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    blobs = BlobStore(tmp_path_factory.mktemp("blobs"))
    small = [layer_tar("a", b"1"), layer_tar("b", b"2")]
    small = [tar[:2048] for tar in small]
    image = make_image(blobs, *small, packed=True)
    plain = make_image(blobs, *small)
    return [
        oci_tar(blobs, ExportedImage(image, (X,))),
        docker_tar(blobs, ExportedImage(plain, (X,))),
        pack(old_docker_files(*small)),
        gzip.compress(pack(old_docker_files(*small)), mtime=0),
    ]


def try_loading(archive: bytes) -> None:
    """Load; it succeeds, or fails with an error of ours and leaves the store unchanged."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        with Store(Path(directory) / "root", clock=time.time) as store:
            try:
                loaded = load(store, archive)
            except PybuildError:
                assert_unchanged(store)
                return
            for image in loaded:
                try:
                    store.images.put(None, image.descriptor)
                except PybuildError:
                    assert store.images.list() == ()


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_archives_with_changed_bytes_never_crash(archives: list[bytes], data: st.DataObject) -> None:
    archive = bytearray(data.draw(st.sampled_from(archives)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(archive) - 1))
        archive[position] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del archive[data.draw(st.integers(0, len(archive))) :]
    try_loading(bytes(archive))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(str(Digest.of(ONE))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["config", "layers", "digest", "size", "a"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _mutate(value: object, data: st.DataObject) -> object:
    """Replace one part of a JSON value, at any depth."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _mutate(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        position = data.draw(st.integers(0, len(value) - 1))
        return [*value[:position], _mutate(value[position], data), *value[position + 1 :]]
    return data.draw(_VALUES)


@given(data=st.data())
@settings(deadline=None, max_examples=70)
def test_archives_with_strange_documents_never_crash(archives: list[bytes], data: st.DataObject) -> None:
    files = members(data.draw(st.sampled_from(archives[:3])))
    documents = [name for name, content in files.items() if content[:1] in (b"{", b"[")]
    name = data.draw(st.sampled_from(documents))
    changed = json.dumps(_mutate(json.loads(files[name]), data)).encode()
    if name.startswith("blobs/"):
        # Change a document together with everything that names it, so that it is read.
        old, new = Digest.of(files.pop(name)), Digest.of(changed)
        name = f"blobs/sha256/{new.hex}"
        for _ in range(3):
            for other, content in list(files.items()):
                if old.hex.encode() in content and content[:1] in (b"{", b"["):
                    size = json.dumps({"size": len(changed)})[1:-1]
                    text = content.replace(old.hex.encode(), new.hex.encode()).decode()
                    del files[other]
                    files[
                        other if not other.startswith("blobs/") else f"blobs/sha256/{Digest.of(text.encode()).hex}"
                    ] = text.encode()
                    assert size
    files[name] = changed
    try_loading(pack(files))
