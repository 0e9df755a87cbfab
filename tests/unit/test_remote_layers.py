"""Layers that a store knows without having them: what is remembered of them, who counts them, and when they are forgotten."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.layers import database
from pybuild.layers.compression import Compression
from pybuild.layers.descriptor import OCI_CONFIG, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord, Layer
from pybuild.layers.gc import Collector, PrunePolicy
from pybuild.layers.image import ImageConfig, Manifest
from pybuild.layers.images import LayerMissing
from pybuild.layers.layer_compressor import LayerCompressor
from pybuild.layers.remote_layers import LayersLost, Origin, RemoteLayer
from pybuild.layers.store import Store

HERE, THERE = Origin("reg.example", "app"), Origin("reg.example", "team/cache")
ELSEWHERE = Origin("docker.io", "library/app")
X, Y = Digest.of(b"layer x"), Digest.of(b"layer y")
ALL = PrunePolicy(all=True)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = time.time() + 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / "root", clock=clock) as store:
        yield store


def remote(
    diff_id: Digest, *, media_type: str = OCI_LAYER_GZIP, level: int | None = None, size: int | None = None
) -> RemoteLayer:
    blob = Descriptor(media_type, Digest.of(f"{diff_id} {media_type} {level}".encode()), 100)
    return RemoteLayer(diff_id, blob, level, size, created=5.0)


def image_of(store: Store, layer: RemoteLayer, *, name: str | None = "reg.example/app:1") -> Descriptor:
    config = ImageConfig(Platform("linux", "amd64"), diff_ids=(layer.diff_id,)).to_bytes()
    body = Manifest(
        Descriptor(OCI_CONFIG, store.blobs.write(config), len(config)), (layer.blob,), OCI_MANIFEST
    ).to_bytes()
    descriptor = Descriptor(OCI_MANIFEST, store.blobs.write(body), len(body))
    store.images.put(name, descriptor)
    return descriptor


def test_what_is_known_is_available_and_not_present(store: Store) -> None:
    assert not store.layers.available((X,))
    store.remote_layers.learn([remote(X)], HERE)
    assert store.layers.available((X,))
    assert not store.layers.present((X,))
    assert not store.layers.available((X, Y)), "all of a stack has to be known"


def test_a_stack_may_be_here_in_part(store: Store) -> None:
    digest = store.blobs.write(b"bytes")
    store.layers.register(Layer(digest, 5))
    store.remote_layers.learn([remote(X)], HERE)
    assert store.layers.available((digest, X))


def test_other_processes_know_it(store: Store, clock: Clock) -> None:
    store.remote_layers.learn([remote(X, size=7)], HERE)
    with Store(store.root, clock=clock) as other:
        (known,) = other.remote_layers.of(X)
        assert known == remote(X, size=7)
        assert other.remote_layers.origins(known.blob.digest) == (HERE,)


def test_the_origin_seen_last_comes_first(store: Store, clock: Clock) -> None:
    layer = remote(X)
    for origin in (HERE, ELSEWHERE, THERE):
        clock.now += 1
        store.remote_layers.learn([layer], origin)
    assert store.remote_layers.origins(layer.blob.digest) == (THERE, ELSEWHERE, HERE)
    assert store.remote_layers.repositories("reg.example", layer.blob.digest) == ("team/cache", "app")


def test_a_repository_that_says_it_has_no_such_blob_is_asked_last(store: Store, clock: Clock) -> None:
    layer = remote(X)
    for origin in (THERE, HERE):
        store.remote_layers.learn([layer], origin)
        clock.now += 1
    store.remote_layers.doubt(layer.blob.digest, HERE)
    assert store.remote_layers.origins(layer.blob.digest) == (THERE, HERE)
    assert store.layers.available((X,))
    store.remote_layers.learn([layer], HERE)
    assert store.remote_layers.origins(layer.blob.digest) == (HERE, THERE)


def test_what_is_unknown_is_completed_and_never_lost(store: Store) -> None:
    layer = remote(X, size=7)
    store.remote_layers.learn([layer], HERE)
    store.remote_layers.learn([RemoteLayer(X, layer.blob)], THERE)
    assert store.remote_layers.of(X) == (layer,)


def test_the_time_of_a_known_layer_is_what_its_cache_says(store: Store, clock: Clock) -> None:
    store.remote_layers.learn([remote(X)], HERE)
    assert store.layers.created((X, Y)) == (5.0, clock.now)
    store.layers.register(Layer(X, 1), created=6.0)
    assert store.layers.created((X,)) == (6.0,)


def test_a_cache_record_counts_if_its_layers_can_be_fetched(store: Store) -> None:
    store.cache.put(CacheRecord("sha256:key", (X,), 1, "{}", 0.0))
    assert store.cache.get("sha256:key") is None
    layer = remote(X)
    store.remote_layers.learn([layer], HERE)
    assert store.cache.get("sha256:key") is not None


def test_an_image_of_known_layers_can_be_stored_and_has_their_size(store: Store) -> None:
    layer = remote(X, size=777)
    with pytest.raises(LayerMissing):
        image_of(store, layer)
    store.remote_layers.learn([layer], HERE)
    image_of(store, layer)
    for found in (store.images.get("reg.example/app:1"), *store.images.list()):
        (part,) = found.platforms
        assert part.size == 777


def test_a_fitting_blob_elsewhere_needs_no_bytes(store: Store) -> None:
    compressor = LayerCompressor(store.root, blobs=store.blobs, layers=store.layers)
    store.remote_layers.learn([remote(X, level=6), remote(Y, media_type=OCI_LAYER_ZSTD, level=3)], HERE)
    assert not compressor.needs_bytes(X, Compression.GZIP)
    assert compressor.needs_bytes(X, Compression.GZIP, level=9), "exactly what was asked for"
    assert compressor.needs_bytes(Y, Compression.GZIP)
    assert compressor.blob_for(X, Compression.GZIP) == remote(X, level=6).blob


def test_a_pulled_blob_elsewhere_is_taken_as_it_is(store: Store) -> None:
    compressor = LayerCompressor(store.root, blobs=store.blobs, layers=store.layers)
    store.remote_layers.learn([remote(X, media_type=OCI_LAYER_ZSTD)], HERE)
    assert not compressor.needs_bytes(X, Compression.GZIP), "a base image's layers stay what they are"
    assert compressor.needs_bytes(X, Compression.GZIP, force=True)


def test_what_is_here_counts_before_what_is_elsewhere(store: Store) -> None:
    digest = store.blobs.write(b"tar")
    store.layers.register(Layer(digest, 3))
    store.remote_layers.learn([remote(digest, level=6)], HERE)
    assert [blob.digest for blob in store.layers.usable_blobs(digest)] == [digest]


# --- gc -----------------------------------------------------------------------------------------------------------------


def test_gc_keeps_what_an_image_knows_and_forgets_it_with_the_image(store: Store) -> None:
    layer = remote(X)
    store.remote_layers.learn([layer], HERE)
    image_of(store, layer)
    Collector(store).prune(ALL)
    assert store.layers.available((X,))
    store.images.remove("reg.example/app:1")
    Collector(store).collect()
    assert not store.layers.available((X,))
    assert store.remote_layers.origins(layer.blob.digest) == ()


def test_gc_keeps_what_a_record_knows_until_the_record_goes(store: Store, clock: Clock) -> None:
    layer = remote(X)
    store.remote_layers.learn([layer], HERE)
    store.cache.put(CacheRecord("sha256:key", (X,), 1, "{}", clock.now))
    clock.now += 1
    Collector(store).collect()
    assert store.cache.get("sha256:key") is not None
    Collector(store).prune(ALL)
    assert store.cache.peek("sha256:key") is None
    assert store.remote_layers.of(X) == ()


def test_gc_leaves_what_running_work_has_learnt_or_found(store: Store, clock: Clock) -> None:
    layer = remote(X)
    store.remote_layers.learn([layer], HERE)
    store.remote_layers.learn([remote(Y)], HERE)
    clock.now += 3600
    with store.lease():
        clock.now += 1
        assert store.layers.available((X,))
        Collector(store).collect()
        assert store.layers.available((X,)), "it was looked for while the lease lived"
        assert not store.layers.available((Y,)), "nobody asked for it since"
    Collector(store).collect()
    assert not store.layers.available((X,))


def test_usage_counts_what_is_on_the_disk(store: Store, clock: Clock) -> None:
    layer = remote(X, size=10**9)
    store.remote_layers.learn([layer], HERE)
    store.cache.put(CacheRecord("sha256:key", (X,), 1, "{}", clock.now))
    image_of(store, layer)
    usage = Collector(store).usage()
    assert usage.layers_size == 0
    assert [row.size for row in usage.cache if row.id == X.hex] == [0]
    assert usage.images[0].size < 2000


def test_a_lost_layer_is_named_with_the_reason(store: Store) -> None:
    error = LayersLost((X, Y), reason="reg.example/app doesn't have it any more")
    assert str(X) in error.message
    assert "(and 1 more)" in error.message
    assert "reg.example/app" in error.message


# --- yesterday's stores -------------------------------------------------------------------------------------------------


def test_a_store_of_yesterday_is_opened_with_all_that_it_has(tmp_path: Path, clock: Clock) -> None:
    root = tmp_path / "root"
    with Store(root, clock=clock) as store:
        image_layer = store.blobs.write(b"bytes")
        store.layers.register(Layer(image_layer, 5))
        store.cache.put(CacheRecord("sha256:key", (image_layer,), 1, "{}", clock.now))
    path = root / "pybuild.db"
    with sqlite3.connect(path) as connection:
        # What the first schema didn't have.
        connection.executescript("DROP TABLE remote_layer; DROP TABLE blob_origin; PRAGMA user_version=1;")
    with Store(root, clock=clock) as store:
        assert store.cache.get("sha256:key") is not None
        store.remote_layers.learn([remote(X)], HERE)
        assert store.layers.available((X,))
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(database._MIGRATIONS),)
