"""The image store: names, IDs, docker's rules for removing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.layers.blobs import BlobNotFound
from pybuild.layers.descriptor import (
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Layer
from pybuild.layers.image import History, ImageConfig, Index, InvalidImage, Manifest
from pybuild.layers.images import AmbiguousImage, ImageInUse, ImageNotFound, LayerMissing, Use
from pybuild.layers.store import Store

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
X, Y, OTHER = "docker.io/library/x:1", "docker.io/library/x:2", "registry:5000/other:latest"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root", clock=time.time) as store:
        yield store


def put_blob(store: Store, data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type, store.blobs.write(data), len(data))


def make_manifest(store: Store, *layers: bytes, platform: Platform = AMD64, env: str = "A=1") -> Descriptor:
    descriptors = [put_blob(store, data, OCI_LAYER) for data in layers]
    for layer in descriptors:
        store.layers.register(Layer(layer.digest, layer.size))
    config = ImageConfig(
        platform=platform,
        created="2024-01-02T03:04:05Z",
        env=(env,),
        labels={"name": env},
        diff_ids=tuple(layer.digest for layer in descriptors),
        history=(
            *(History(created_by=f"RUN {n}") for n, _ in enumerate(layers)),
            History(created_by="CMD x", empty_layer=True),
        ),
    )
    manifest = Manifest(put_blob(store, config.to_bytes(), OCI_CONFIG), tuple(descriptors))
    return put_blob(store, manifest.to_bytes(), OCI_MANIFEST)


def test_an_image_is_found_by_name_id_digest_and_prefix(store: Store) -> None:
    manifest = make_manifest(store, b"one", b"two")
    image = store.images.put(X, manifest)
    assert image.names == (X,)
    part = image.choose(AMD64)
    assert part is not None
    assert part.platform == AMD64
    assert part.size == 6
    assert part.created == "2024-01-02T03:04:05Z"
    assert part.labels == {"name": "A=1"}
    config = image.id()
    assert config == part.config
    for reference in (X, str(config), config.hex, config.hex[:12], str(manifest.digest), f"whatever@{manifest.digest}"):
        assert store.images.get(reference) == image, reference
    assert store.images.find("nothing", "docker.io/library/nothing:latest") is None
    assert store.images.find("nothing", X) == image
    with pytest.raises(ImageNotFound, match=r"docker\.io/library/nothing:latest"):
        store.images.get("nothing", "docker.io/library/nothing:latest")
    assert store.images.config(part).env == ("A=1",)


def test_putting_an_image_again_changes_nothing(store: Store) -> None:
    manifest = make_manifest(store, b"one")
    first = store.images.put(X, manifest)
    second = store.images.put(X, manifest)
    assert (first.descriptor, first.names, first.platforms) == (second.descriptor, second.names, second.platforms)
    assert len(store.images.list()) == 1


def test_a_name_moves_and_the_old_image_dangles(store: Store) -> None:
    old = store.images.put(X, make_manifest(store, b"one"))
    new = store.images.put(X, make_manifest(store, b"two"))
    assert store.images.get(X).descriptor == new.descriptor
    assert [image.descriptor for image in store.images.list(dangling=True)] == [old.descriptor]
    assert [image.descriptor for image in store.images.list(dangling=False)] == [new.descriptor]
    assert len(store.images.list()) == 2
    assert store.images.names() == {X: new.descriptor.digest}


def test_two_ids_that_begin_alike_are_ambiguous(store: Store) -> None:
    ids: dict[str, str] = {}
    for number in range(40):
        image = store.images.put(None, make_manifest(store, b"x", env=f"A={number}"))
        first = image.id().hex[:1]
        if first in ids:
            with pytest.raises(AmbiguousImage):
                store.images.get(first)
            return
        ids[first] = image.id().hex
    pytest.fail("forty digests without two that begin alike")


def test_history_lists_the_latest_first_with_sizes(store: Store) -> None:
    image = store.images.put(X, make_manifest(store, b"one", b"three"))
    part = image.choose()
    assert part is not None
    lines = store.images.history(part)
    assert [(line.entry.created_by, line.size) for line in lines] == [("CMD x", 0), ("RUN 1", 5), ("RUN 0", 3)]
    assert lines[0].layer is None
    assert lines[1].layer == Digest.of(b"three")


def test_an_index_offers_the_platforms_that_are_here(store: Store) -> None:
    here = make_manifest(store, b"amd", platform=AMD64)
    arm = make_manifest(store, b"arm", platform=ARM64)
    absent = Descriptor(OCI_MANIFEST, Digest.of(b"absent"), 7, Platform("linux", "s390x"))
    attestation_config = ImageConfig(Platform("unknown", "unknown"), diff_ids=(Digest.of(b"statement"),))
    statement = put_blob(store, b"statement", "application/vnd.in-toto+json")
    attestation = put_blob(
        store,
        Manifest(put_blob(store, attestation_config.to_bytes(), OCI_CONFIG), (statement,)).to_bytes(),
        OCI_MANIFEST,
    )
    index = put_blob(store, Index((absent, here, attestation, arm)).to_bytes(), OCI_INDEX)
    image = store.images.put(X, index)
    assert [part.platform for part in image.platforms] == [AMD64, ARM64]
    chosen = image.choose(Platform("linux", "arm64"))
    assert chosen is not None
    assert chosen.manifest.digest == arm.digest
    assert image.choose(Platform("linux", "s390x")) is None
    assert image.id() == image.platforms[0].config
    assert image.id(ARM64) == image.platforms[1].config
    assert store.images.get(str(arm.digest)).descriptor.digest == index.digest
    nothing = store.images.put(Y, put_blob(store, Index((absent,)).to_bytes(), OCI_INDEX))
    assert nothing.id() == nothing.descriptor.digest


def test_an_artifact_is_kept_but_is_no_image(store: Store) -> None:
    manifest = Manifest(
        put_blob(store, b"{}", OCI_EMPTY), (put_blob(store, b"data", "text/plain"),), artifact_type="text/plain"
    )
    image = store.images.put(X, put_blob(store, manifest.to_bytes(), OCI_MANIFEST))
    assert image.platforms == ()
    assert image.id() == image.descriptor.digest


def test_an_image_with_something_missing_is_refused_and_the_name_stays(store: Store) -> None:
    old = store.images.put(X, make_manifest(store, b"old"))
    manifest = make_manifest(store, b"one", b"two")
    store.blobs.delete(Digest.of(b"two"))
    with pytest.raises(LayerMissing):
        store.images.put(X, manifest)
    with pytest.raises(BlobNotFound):
        store.images.put(X, Descriptor(OCI_MANIFEST, Digest.of(b"?"), 1))
    with pytest.raises(InvalidImage):
        store.images.put(X, put_blob(store, b"[]", OCI_MANIFEST))
    with pytest.raises(InvalidImage):
        store.images.put(X, put_blob(store, b"{}", "text/plain"))
    lying = ImageConfig(AMD64, diff_ids=(Digest.of(b"1"), Digest.of(b"2")))
    config = put_blob(store, lying.to_bytes(), OCI_CONFIG)
    with pytest.raises(InvalidImage, match="lists 0 layers"):
        store.images.put(X, put_blob(store, Manifest(config, ()).to_bytes(), OCI_MANIFEST))
    nested = put_blob(store, Index(()).to_bytes(), OCI_INDEX)
    for _ in range(6):
        nested = put_blob(store, Index((nested,)).to_bytes(), OCI_INDEX)
    with pytest.raises(InvalidImage, match="nests"):
        store.images.put(X, nested)
    assert store.images.get(X).descriptor == old.descriptor
    assert len(store.images.list()) == 1


def test_a_layer_may_be_held_in_another_form_than_the_manifest_says(store: Store) -> None:
    manifest = make_manifest(store, b"tar")
    packed = put_blob(store, b"packed", OCI_LAYER)
    store.layers.add_blob(Digest.of(b"tar"), packed.digest, size=6, media_type=packed.media_type, compression="gzip")
    store.blobs.delete(Digest.of(b"tar"))
    assert store.images.put(X, manifest).platforms[0].size == 3


# --- removing ---------------------------------------------------------------------------------------------------------


def test_removing_one_of_several_names_only_untags(store: Store) -> None:
    store.images.put(X, make_manifest(store, b"one"))
    store.images.tag(X, OTHER)
    removal = store.images.remove(X)
    assert (removal.untagged, removal.deleted) == ((X,), ())
    assert store.images.get(OTHER).names == (OTHER,)
    removal = store.images.remove("other", OTHER)
    assert removal.untagged == (OTHER,)
    assert len(removal.deleted) == 1
    assert store.images.list() == ()


def test_removing_by_id_with_several_names_needs_force(store: Store) -> None:
    image = store.images.put(X, make_manifest(store, b"one"))
    store.images.tag(image.id(), Y)
    with pytest.raises(ImageInUse, match=r"must be forced.*multiple repositories"):
        store.images.remove(image.id().hex[:12])
    removal = store.images.remove(image.id().hex[:12], force=True)
    assert removal.untagged == (X, Y)
    assert removal.deleted == (image.id(),)


def test_where_an_image_came_from_goes_with_its_repositorys_last_tag(store: Store) -> None:
    image = store.images.put(X, make_manifest(store, b"one"))
    origin = f"docker.io/library/x@{image.descriptor.digest}"
    store.images.tag(X, origin)
    store.images.tag(X, OTHER)
    removal = store.images.remove(X)
    assert removal.untagged == (X, origin)
    assert store.images.get(OTHER).names == (OTHER,)
    store.images.tag(OTHER, f"registry:5000/other@{image.descriptor.digest}")
    assert len(store.images.remove(image.id().hex).untagged) == 2, "one tag and its origin are no conflict"


def test_an_image_that_something_uses_stays(store: Store) -> None:
    image = store.images.put(X, make_manifest(store, b"one"))
    with pytest.raises(ImageInUse, match=r"must be forced.*stopped container c"):
        store.images.remove(X, in_use=lambda _: Use("image is being used by stopped container c"))
    with pytest.raises(ImageInUse, match="cannot be forced"):
        store.images.remove(X, force=True, in_use=lambda _: Use("running container c", forceable=False))
    assert store.images.get(X) == image
    removal = store.images.remove(X, force=True, in_use=lambda _: Use("stopped container c"))
    assert (removal.untagged, removal.deleted) == ((X,), ())
    assert [left.names for left in store.images.list(dangling=True)] == [()]


def test_a_hundred_images_are_listed(store: Store) -> None:
    for number in range(100):
        store.images.put(
            f"docker.io/library/x:{number}", make_manifest(store, *[b"%d" % n for n in range(10)], env=str(number))
        )
    assert len(store.images.list()) == 100
