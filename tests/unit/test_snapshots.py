"""Snapshots in a real store, without mounting anything: what a step would leave in its upper directory is put there by hand."""

from __future__ import annotations

import gzip
import io
import os
import signal
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.layers.blobs import BlobCorrupt
from pybuild.layers.compression import Compression, CorruptStream
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind, Layer, LayerEntry
from pybuild.layers.gc import Collector
from pybuild.layers.layer_compressor import LayerCompressor
from pybuild.layers.layer_index import LayerBlob, LayerNotFound
from pybuild.layers.snapshots import SnapshotFinished, SnapshotStore
from pybuild.layers.store import Store
from pybuild.layers.trees import remove_tree
from pybuild.layers.unpacked import WrongDiffId

EMPTY = Digest("sha256", "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")


def snapshots_of(store: Store, *, overlay: bool = True) -> SnapshotStore:
    return SnapshotStore(
        store.root,
        blobs=store.blobs,
        layers=store.layers,
        leases=store.leases,
        cache_mounts=store.cache_mounts,
        active=store.active,
        overlay=overlay,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", clock=time.time) as opened:
        with opened.lease():
            yield opened
    remove_tree(os.fspath(tmp_path / "store"))


@pytest.fixture
def snapshots(store: Store) -> SnapshotStore:
    return snapshots_of(store)


def file(path: str, data: bytes = b"x", **fields: object) -> LayerEntry:
    return LayerEntry(path, Kind.FILE, mode=0o644, data=data, **fields)  # type: ignore[arg-type]  # the fields are passed on


def directory(path: str, mode: int = 0o755) -> LayerEntry:
    return LayerEntry(path, Kind.DIRECTORY, mode=mode)


def names(store: Store, layer: Layer) -> list[str]:
    with tarfile.open(store.blobs.path(layer.diff_id)) as tar:
        return tar.getnames()


def unpacked(store: Store) -> list[str]:
    return sorted(os.listdir(store.root / "layers"))


def content(snapshots: SnapshotStore, stack: list[Digest], path: str) -> bytes:
    with snapshots.view(stack) as view, view.open(path) as stream:
        return stream.read()


def test_a_layer_of_entries_is_looked_at_without_being_unpacked(store: Store, snapshots: SnapshotStore) -> None:
    base = snapshots.write_layer((), [directory("d", 0o711), file("d/f", b"content"), file("old")])
    top = snapshots.write_layer((base.diff_id,), [LayerEntry("old", Kind.WHITEOUT), file("d/g")])
    stack = [base.diff_id, top.diff_id]
    assert snapshots.has(stack)
    assert store.layers.get(base.diff_id) == base
    with snapshots.view(stack) as view:
        assert [name for name, _ in view.children("d")] == ["f", "g"]
        assert view.lookup("old") is None
        node = view.lookup("d")
        assert node is not None
        assert node.mode == 0o711
    assert content(snapshots, stack, "d/f") == b"content"
    assert unpacked(store) == []


def test_parents_that_a_layer_lacks_come_from_the_stack(store: Store, snapshots: SnapshotStore) -> None:
    base = snapshots.write_layer((), [directory("a", 0o700), directory("a/b", 0o711)])
    top = snapshots.write_layer((base.diff_id,), [file("a/b/f"), file("new/g")])
    with tarfile.open(store.blobs.path(top.diff_id)) as tar:
        found = {member.name: member.mode for member in tar.getmembers()}
    assert found == {"a": 0o700, "a/b": 0o711, "a/b/f": 0o644, "new": 0o755, "new/g": 0o644}


def test_a_mounted_stack_is_unpacked_once_and_named_by_its_diff_ids(store: Store, snapshots: SnapshotStore) -> None:
    layers = [snapshots.write_layer((), [directory(f"d{n}"), file(f"d{n}/f")]).diff_id for n in range(4)]
    with snapshots.directories(layers) as paths:
        assert [Path(path).parent.name for path in paths] == [layer.hex for layer in layers]
        assert all((Path(path) / f"d{n}/f").read_bytes() == b"x" for n, path in enumerate(paths))
        assert stat.S_IMODE(os.stat(paths[0]).st_mode) == 0o755
    inode = os.stat(paths[0]).st_ino
    with snapshots_of(store).directories(layers) as again:
        assert again == paths
        assert os.stat(again[0]).st_ino == inode
    assert os.listdir(store.root / "active") == []


def test_the_same_layer_twice_is_stacked_once_for_the_kernel(store: Store, snapshots: SnapshotStore) -> None:
    a = snapshots.write_layer((), [file("f", b"a")]).diff_id
    b = snapshots.write_layer((), [file("f", b"b")]).diff_id
    with snapshots.directories([a, b, a]) as paths:
        assert [Path(path).parent.name for path in paths] == [b.hex, a.hex]
    assert content(snapshots, [a, b, a], "f") == b"a"


def test_a_committed_step_is_a_layer_whose_files_are_there_at_once(store: Store, snapshots: SnapshotStore) -> None:
    base = snapshots.write_layer((), [directory("d"), file("d/old")]).diff_id
    with snapshots.prepare([base]) as active:
        upper = Path(active.root.upper)
        (upper / "d").mkdir(mode=0o755)
        (upper / "d/new").write_text("new")
        layer = active.commit()
        with pytest.raises(SnapshotFinished):
            active.commit()
    assert names(store, layer) == ["d", "d/new"]
    assert (store.root / "layers" / layer.diff_id.hex / "fs/d/new").read_text() == "new"
    assert content(snapshots, [base, layer.diff_id], "d/new") == b"new"
    assert os.listdir(store.root / "active") == []


def test_an_upper_directory_that_holds_more_than_its_layer_is_for_its_own_stack_only(
    store: Store, snapshots: SnapshotStore
) -> None:
    base = snapshots.write_layer((), [directory("d"), file("f")]).diff_id
    with snapshots.prepare([base]) as active:
        (Path(active.root.upper) / "d").mkdir(mode=0o755)  # copied up, only its time changed
        layer = active.commit()
    assert layer == Layer(EMPTY, 1024, empty=True)
    chain = snapshots.unpacked.chain([base, EMPTY])[-1]
    assert chain.hex in unpacked(store)
    assert EMPTY.hex not in unpacked(store)
    with snapshots.directories([base, EMPTY]) as paths:
        assert Path(paths[-1]).parent.name == chain.hex


def test_a_step_that_is_not_committed_leaves_nothing(store: Store, snapshots: SnapshotStore) -> None:
    with snapshots.prepare([]) as active:
        odd = Path(active.root.upper) / "d"
        odd.mkdir()
        (odd / "f").write_text("x")
        odd.chmod(0)
    assert os.listdir(store.root / "active") == []
    assert unpacked(store) == []


def test_the_upper_directory_looks_like_the_root_below_it(snapshots: SnapshotStore) -> None:
    with snapshots.prepare([]) as active:
        os.chmod(active.root.upper, 0o700)
        (Path(active.root.upper) / "f").write_text("x")
        layer = active.commit()
    with snapshots.prepare([layer.diff_id]) as active:
        assert stat.S_IMODE(os.stat(active.root.upper).st_mode) == 0o700


def test_a_process_that_is_killed_in_a_step_leaves_nothing_for_the_next_one(
    store: Store, snapshots: SnapshotStore
) -> None:
    base = snapshots.write_layer((), [file("f", b"x" * 100)]).diff_id
    child = os.fork()
    if child == 0:
        # Never returns: the snapshot's directory and the store's locks are left as a kill leaves them.
        with snapshots_of(store).prepare([base]) as active:
            (Path(active.root.upper) / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(os.listdir(store.root / "active")) == 1
    with Store(store.root, clock=time.time) as again:
        assert os.listdir(store.root / "active") == []
        assert content(snapshots_of(again), [base], "f") == b"x" * 100


def test_equal_steps_that_finish_at_the_same_time_give_one_layer(store: Store) -> None:
    barrier = threading.Barrier(6)
    made: list[Layer] = []

    def build() -> None:
        snapshots = snapshots_of(store)
        with snapshots.prepare([]) as active:
            target = Path(active.root.upper) / "f"
            target.write_text("same")
            os.utime(target, ns=(10**9, 10**9))
            barrier.wait()
            made.append(active.commit())

    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len(set(made)) == 1
    assert unpacked(store) == [made[0].diff_id.hex]


def test_many_threads_that_need_the_same_stack_unpack_it_once(store: Store) -> None:
    snapshots = snapshots_of(store)
    layers = [snapshots.write_layer((), [file(f"f{n}", b"x" * 1000)]).diff_id for n in range(5)]
    found: list[tuple[str, ...]] = []

    def use() -> None:
        with snapshots_of(store).directories(layers) as paths:
            found.append(paths)

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5
    assert len(set(found)) == 1


def foreign_tar(*members: tuple[tarfile.TarInfo, bytes]) -> tuple[Digest, bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return Digest.of(out.getvalue()), out.getvalue()


def pulled(store: Store, diff_id: Digest, tar: bytes) -> Digest:
    """Store a layer as a pull leaves it: compressed."""
    packed = gzip.compress(tar)
    digest = store.blobs.write(packed)
    blob = LayerBlob(digest, len(packed), Compression.GZIP.docker_media_type, "gzip")
    store.layers.register(Layer(diff_id, len(tar)), blob=blob)
    return digest


def test_a_pulled_layer_is_unpacked_from_its_compressed_blob(store: Store, snapshots: SnapshotStore) -> None:
    diff_id, tar = foreign_tar((tarfile.TarInfo("f"), b"pulled"))
    pulled(store, diff_id, tar)
    assert content(snapshots, [diff_id], "f") == b"pulled"
    assert unpacked(store) == [diff_id.hex]
    assert not store.blobs.has(diff_id)


def test_a_layer_that_implies_a_parent_is_unpacked_for_each_stack_apart(store: Store, snapshots: SnapshotStore) -> None:
    diff_id, tar = foreign_tar((tarfile.TarInfo("d/f"), b"x"))
    pulled(store, diff_id, tar)
    for mode in (0o700, 0o711):
        base = snapshots.write_layer((), [directory("d", mode)]).diff_id
        with snapshots.directories([base, diff_id]) as paths:
            assert stat.S_IMODE((Path(paths[1]) / "d").stat().st_mode) == mode
            assert Path(paths[1]).parent.name == snapshots.unpacked.chain([base, diff_id])[1].hex


def test_content_with_another_diff_id_is_refused_and_nothing_is_kept(store: Store, snapshots: SnapshotStore) -> None:
    _, tar = foreign_tar((tarfile.TarInfo("f"), b"evil"))
    claimed = Digest.of(b"something else")
    pulled(store, claimed, tar)
    with pytest.raises(WrongDiffId), snapshots.directories([claimed]):
        pass
    with pytest.raises(WrongDiffId):
        snapshots.unpack_stream([claimed], io.BytesIO(gzip.compress(tar)))
    assert unpacked(store) == []
    assert os.listdir(store.root / "active") == []


def test_trailing_bytes_count_for_the_diff_id(store: Store, snapshots: SnapshotStore) -> None:
    _, tar = foreign_tar((tarfile.TarInfo("f"), b"x"))
    padded = tar + bytes(10_000)
    layer = snapshots.unpack_stream([Digest.of(padded)], io.BytesIO(gzip.compress(padded)))
    assert layer == Layer(Digest.of(padded), len(padded))


@pytest.mark.parametrize("link", [False, True])
def test_a_layer_that_arrives_before_what_it_needs_is_verified_and_unpacked_later(
    store: Store, snapshots: SnapshotStore, link: bool
) -> None:
    base, base_tar = foreign_tar((tarfile.TarInfo("d/f"), b"below"))
    implied = tarfile.TarInfo("d/g")
    linked = tarfile.TarInfo("h")
    linked.type, linked.linkname = tarfile.LNKTYPE, "d/f"
    top, top_tar = foreign_tar((linked, b"") if link else (implied, b"above"), (tarfile.TarInfo("z"), b"end"))
    with pytest.raises(WrongDiffId):
        snapshots.unpack_stream([base, Digest.of(b"other")], io.BytesIO(gzip.compress(top_tar)))
    layer = snapshots.unpack_stream([base, top], io.BytesIO(gzip.compress(top_tar)))
    assert layer == Layer(top, len(top_tar))
    assert unpacked(store) == []
    pulled(store, top, top_tar)
    pulled(store, base, base_tar)
    assert content(snapshots, [base, top], "h" if link else "d/g") == (b"below" if link else b"above")
    assert content(snapshots, [base, top], "d/f") == b"below"


def test_a_stream_that_breaks_leaves_nothing(store: Store, snapshots: SnapshotStore) -> None:
    diff_id, tar = foreign_tar((tarfile.TarInfo("f"), os.urandom(200_000)))
    with pytest.raises(CorruptStream):
        snapshots.unpack_stream([diff_id], io.BytesIO(gzip.compress(tar)[:-5000]))

    class Reset(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 50_000:
                raise ConnectionResetError
            return super().read(20_000)

    with pytest.raises(ConnectionResetError):
        snapshots.unpack_stream([diff_id], Reset(gzip.compress(tar)))
    assert unpacked(store) == []
    assert os.listdir(store.root / "active") == []


def test_a_damaged_tar_in_the_store_is_noticed(store: Store, snapshots: SnapshotStore) -> None:
    diff_id = snapshots.write_layer((), [file("f", b"precious" * 1000)]).diff_id
    path = store.blobs.path(diff_id)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"precious", b"damaged!", 1))
    with pytest.raises(BlobCorrupt), snapshots.directories([diff_id]):
        pass
    assert unpacked(store) == []


def test_a_layer_that_the_store_does_not_have_is_an_error(snapshots: SnapshotStore) -> None:
    missing = Digest.of(b"missing")
    assert not snapshots.has([missing])
    with pytest.raises(LayerNotFound), snapshots.directories([missing]):
        pass
    with pytest.raises(LayerNotFound), snapshots.view([missing]):
        pass


def test_gc_takes_unpacked_layers_that_nothing_needs_and_views_find_out(tmp_path: Path) -> None:
    with Store(tmp_path / "store", clock=time.time) as store:
        snapshots = snapshots_of(store)
        with store.lease():
            diff_id = snapshots.write_layer((), [file("f")]).diff_id
            with snapshots.directories([diff_id]), snapshots.view([diff_id]):
                Collector(store).collect()
                assert unpacked(store) == [diff_id.hex]
        for path in (store.blobs.path(diff_id), store.root / "layers" / diff_id.hex):
            os.utime(path, (0, 0))
        Collector(store).collect()
        assert unpacked(store) == []
        with store.lease(), pytest.raises(LayerNotFound), snapshots.view([diff_id]):
            pass


def test_gc_takes_a_tar_that_was_looked_at_and_views_find_out(tmp_path: Path) -> None:
    with Store(tmp_path / "store", clock=time.time) as store:
        snapshots = snapshots_of(store)
        with store.lease():
            diff_id = snapshots.write_layer((), [file("f", b"content")]).diff_id
            assert content(snapshots, [diff_id], "f") == b"content"
        os.utime(store.blobs.path(diff_id), (0, 0))
        with store.lease():
            # Looking at it again is a use: it stays.
            assert content(snapshots, [diff_id], "f") == b"content"
            Collector(store).collect()
            assert store.blobs.path(diff_id).exists()
        os.utime(store.blobs.path(diff_id), (0, 0))
        Collector(store).collect()
        assert not store.blobs.path(diff_id).exists()
        with store.lease(), pytest.raises(LayerNotFound), snapshots.view([diff_id]):
            pass


def test_scratch_space_and_cache_mounts(store: Store, snapshots: SnapshotStore) -> None:
    with snapshots.scratch() as path:
        assert os.listdir(path) == []
        assert os.stat(path).st_dev == os.stat(store.root).st_dev
        (Path(path) / "f").write_text("x")
    assert not os.path.exists(path)
    with snapshots.cache_mount("id", fresh=False) as first:
        (Path(first) / "d").mkdir()
        (Path(first) / "d/f").write_text("x")
    with snapshots.cache_mount("id", fresh=False) as again:
        assert os.listdir(again) == ["d"]
    with snapshots.cache_mount("id", fresh=True) as emptied:
        assert emptied == first
        assert os.listdir(emptied) == []


def test_without_overlays_a_step_runs_in_a_full_copy(store: Store) -> None:
    snapshots = snapshots_of(store, overlay=False)
    base = snapshots.write_layer(
        (),
        [
            directory("d", 0o711),
            file("d/f", b"one", mtime_ns=10**9),
            LayerEntry("d/h", Kind.HARDLINK, link="d/f"),
            file("gone"),
        ],
    ).diff_id
    with snapshots.prepare([base]) as active:
        assert active.root.lower == ()
        root = Path(active.root.upper)
        assert (root / "d/h").read_bytes() == b"one"
        assert (root / "d/f").stat().st_nlink == 2
        assert stat.S_IMODE((root / "d").stat().st_mode) == 0o711
        (root / "gone").unlink()
        (root / "new").write_text("two")
        layer = active.commit()
    assert names(store, layer) == [".wh.gone", "new"]
    assert content(snapshots, [base, layer.diff_id], "new") == b"two"
    with snapshots.prepare([base, layer.diff_id]) as active:
        assert sorted(os.listdir(active.root.upper)) == ["d", "new"]
        assert active.commit().empty


# --- compressed blobs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def layer_compressor(store: Store) -> LayerCompressor:
    return LayerCompressor(store.root, blobs=store.blobs, layers=store.layers)


def test_a_layer_made_here_gets_the_blob_that_is_asked_for(
    store: Store, snapshots: SnapshotStore, layer_compressor: LayerCompressor
) -> None:
    diff_id = snapshots.write_layer((), [file("f", b"text " * 10_000)]).diff_id
    seen = set()
    for kind in (Compression.ZSTD, Compression.GZIP, Compression.UNCOMPRESSED):
        found = layer_compressor.blob_for(diff_id, kind)
        assert found.media_type == kind.oci_media_type
        assert found.size == store.blobs.size(found.digest)
        assert layer_compressor.blob_for(diff_id, kind) == found
        assert store.layers.diff_id_of(found.digest) == diff_id
        seen.add(found.digest)
    assert len(seen) == 3
    assert layer_compressor.blob_for(diff_id, Compression.UNCOMPRESSED).digest == diff_id
    fast, best = (layer_compressor.blob_for(diff_id, Compression.GZIP, level=level) for level in (1, 9))
    assert fast != best
    # Which blob comes does not depend on what was exported before.
    assert layer_compressor.blob_for(diff_id, Compression.GZIP).digest in seen


def test_a_pulled_layer_keeps_its_blob_unless_forced(store: Store, layer_compressor: LayerCompressor) -> None:
    diff_id, tar = foreign_tar((tarfile.TarInfo("f"), b"x" * 5000))
    original = pulled(store, diff_id, tar)
    assert layer_compressor.blob_for(diff_id, Compression.GZIP).digest == original
    assert layer_compressor.blob_for(diff_id, Compression.GZIP, force=True).digest == original
    kept = layer_compressor.blob_for(diff_id, Compression.ZSTD)
    assert (kept.digest, kept.media_type) == (original, Compression.GZIP.docker_media_type)
    forced = layer_compressor.blob_for(diff_id, Compression.ZSTD, force=True)
    assert (forced.media_type, forced.digest == original) == (Compression.ZSTD.oci_media_type, False)
    plain = layer_compressor.blob_for(diff_id, Compression.UNCOMPRESSED, force=True)
    assert plain.digest == diff_id
    assert store.blobs.read(diff_id, limit_bytes=1 << 20) == tar


def test_several_layers_are_compressed_at_once(snapshots: SnapshotStore, layer_compressor: LayerCompressor) -> None:
    layers = [snapshots.write_layer((), [file(f"f{n}", bytes([n]) * 50_000)]).diff_id for n in range(5)]
    found = layer_compressor.blobs_for([*layers, layers[0]], Compression.GZIP)
    assert [blob.digest for blob in found] == [
        layer_compressor.blob_for(layer, Compression.GZIP).digest for layer in [*layers, layers[0]]
    ]
    with pytest.raises(LayerNotFound):
        layer_compressor.blobs_for([Digest.of(b"missing")], Compression.GZIP)
