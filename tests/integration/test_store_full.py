"""The store on a disk that fills up: a clear error, nothing half-written, and usable again once there is room."""

# ruff: noqa: PT012  — what is to fail is the use of a context, which takes several lines

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.builder.contexts_archive import unpack_archive
from pybuild.layers.archive_load import load_archive
from pybuild.layers.blobs import StoreFull
from pybuild.layers.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord, Layer
from pybuild.layers.gc import Collector, PrunePolicy
from pybuild.layers.image import ImageConfig, Manifest
from pybuild.layers.layout import ExportedImage, ExportFailed, write_layout_directory, write_layout_tar
from pybuild.layers.store import Store

pytestmark = pytest.mark.integration
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return filler


def leftovers(store: Store) -> list[str]:
    return [
        name for part in ("ingest", "active") if (store.root / part).exists() for name in os.listdir(store.root / part)
    ]


def make_image(store: Store) -> Descriptor:
    tar = b"x" * (3 * MIB)
    layer = Descriptor(OCI_LAYER, store.blobs.write(tar), len(tar))
    config = ImageConfig(Platform("linux", "amd64"), diff_ids=(layer.digest,)).to_bytes()
    manifest = Manifest(Descriptor(OCI_CONFIG, store.blobs.write(config), len(config)), (layer,)).to_bytes()
    return Descriptor(OCI_MANIFEST, store.blobs.write(manifest), len(manifest))


def test_a_blob_that_does_not_fit_leaves_nothing(disk: Path) -> None:
    with Store(disk / "root", clock=time.time) as store:
        store.database.query("SELECT 1")
        filler = fill(disk, leave=2 * MIB)
        for named in (False, True):
            store.blobs._tmpfile = not named
            with pytest.raises(StoreFull, match="no space left") as caught:
                store.blobs.write(b"x" * (4 * MIB))
            assert caught.value.hint is not None
            assert leftovers(store) == []
            assert list(store.blobs) == []
        digest = store.blobs.write(b"small enough")
        filler.unlink()
        assert store.blobs.has(store.blobs.write(b"x" * (4 * MIB)))
        assert store.blobs.read(digest, limit_bytes=99) == b"small enough"


def test_a_download_keeps_what_fitted(disk: Path) -> None:
    with Store(disk / "root", clock=time.time) as store:
        filler = fill(disk, leave=3 * MIB)
        data = b"x" * (4 * MIB)
        digest = Digest.of(data)
        with (
            pytest.raises(StoreFull),
            store.blobs.ingest(expected=digest, expected_size=len(data), partial_key="k") as i,
        ):
            for at in range(0, len(data), 65536):
                i.write(data[at : at + 65536])
        filler.unlink()
        with store.blobs.ingest(expected=digest, expected_size=len(data), partial_key="k") as ingest:
            assert 0 < ingest.offset < len(data)
            ingest.write(data[ingest.offset :])
            ingest.commit()
        assert store.blobs.has(digest)


def test_the_database_reports_a_full_disk_and_keeps_what_it_has(disk: Path) -> None:
    with Store(disk / "root", clock=time.time) as store:
        store.facts.put("a", "1", value="kept")
        filler = fill(disk, leave=200_000)
        with pytest.raises(StoreFull):
            for number in range(100):
                store.facts.put("a", str(number + 2), value="x" * 100_000)
        fact = store.facts.get("a", "1")
        assert fact is not None
        assert fact.value == "kept"
        filler.unlink()
        store.facts.put("a", "again", value="x")
        Collector(store).prune(PrunePolicy(all=True))
        assert store.facts.list() == ()


def test_an_archive_that_does_not_fit_is_not_loaded_at_all(disk: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "source", clock=time.time) as source:
        with open(tmp_path / "x.tar", "wb") as file:
            write_layout_tar([ExportedImage(make_image(source))], file, blobs=source.blobs)
    with Store(disk / "root", clock=time.time) as store:
        store.database.query("SELECT 1")
        filler = fill(disk, leave=2 * MIB)
        with open(tmp_path / "x.tar", "rb") as file, pytest.raises(StoreFull):
            load_archive(file, store=store)
        assert leftovers(store) == []
        assert list(store.blobs) == []
        filler.unlink()
        with open(tmp_path / "x.tar", "rb") as file:
            load_archive(file, store=store)
        assert len(list(store.blobs)) == 3


def test_an_export_that_does_not_fit_says_so(disk: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "source", clock=time.time) as source:
        image = ExportedImage(make_image(source))
        fill(disk, leave=MIB)
        with open(disk / "x.tar", "wb") as file, pytest.raises(ExportFailed, match="No space left"):
            write_layout_tar([image], file, blobs=source.blobs)
        (disk / "x.tar").unlink()
        with pytest.raises(ExportFailed, match="No space left"):
            write_layout_directory([image], disk / "layout", blobs=source.blobs)
        assert not (disk / "layout" / "index.json").exists()
        assert [path.name for path in (disk / "layout").rglob(".*")] == []


@pytest.mark.parametrize("room", [0, 65536])
def test_a_store_can_be_pruned_when_its_disk_is_full(disk: Path, room: int) -> None:
    with Store(disk / "root", clock=time.time) as store:
        digest = store.blobs.write(b"x" * (3 * MIB))
        store.layers.register(Layer(digest, 3 * MIB))
        for number in range(50):
            store.cache.put(CacheRecord(key=f"{number}", layers=(digest,), own=1, recipe="{}" * 100, created=1.0))
        fill(disk, leave=room)
        report = Collector(store).prune(PrunePolicy(all=True))
        assert report.freed_bytes == 3 * MIB
        assert list(store.blobs) == []
        assert store.database.query("SELECT count(*) FROM cache_record") == [(0,)]


def test_a_context_that_does_not_fit_is_no_fault_of_the_archive(disk: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("big")
        entry.size = 9 * MIB
        archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    directory = disk / "context"
    directory.mkdir()
    with pytest.raises(StoreFull):
        unpack_archive(io.BytesIO(out.getvalue()), str(directory))
