"""The cache index and the stat index: records by key, rights to run a step, digests by stat."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.builder.protocols import CacheIndex as CacheIndexProtocol
from pybuild.errors import Cancelled
from pybuild.layers.builds import KEPT_BUILDS, AmbiguousBuild, BuildRecord, BuildStep
from pybuild.layers.database import NotStorable
from pybuild.layers.descriptor import OCI_LAYER_GZIP
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord, Kind, Layer
from pybuild.layers.layer_index import LayerBlob, LayerNotFound
from pybuild.layers.stat_index import StatIndex
from pybuild.layers.store import Store
from pybuild.layers.views import Node
from pybuild.values import replace

_FORK = multiprocessing.get_context("fork")
SECOND = 1_000_000_000


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root", clock=time.time) as store:
        yield store


def make_layer(store: Store, data: bytes) -> Digest:
    digest = store.blobs.write(data)
    store.layers.register(Layer(digest, len(data)))
    return digest


def record(key: str, *layers: Digest) -> CacheRecord:
    return CacheRecord(key=key, layers=layers, own=1, recipe='{"op":"run"}', created=5.0)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_layer_is_found_by_its_tar_and_by_its_compressed_blobs(store: Store) -> None:
    diff_id = make_layer(store, b"tar")
    packed = store.blobs.write(b"packed")
    store.layers.add_blob(diff_id, packed, size=6, media_type=OCI_LAYER_GZIP, compression="gzip", level=3)
    assert store.layers.get(diff_id) == Layer(diff_id, 3)
    assert store.layers.tar_blob(diff_id) == diff_id
    assert [blob.compression for blob in store.layers.blobs(diff_id)] == ["uncompressed", "gzip"]
    assert store.layers.blobs(diff_id)[1] == LayerBlob(packed, 6, OCI_LAYER_GZIP, "gzip", 3)
    assert store.layers.diff_id_of(packed) == diff_id
    store.blobs.delete(diff_id)
    assert store.layers.tar_blob(diff_id) is None
    assert [blob.digest for blob in store.layers.blobs(diff_id)] == [packed]
    assert store.layers.touch(diff_id)
    store.blobs.delete(packed)
    assert not store.layers.touch(diff_id)


def test_a_blob_of_an_unknown_layer_is_refused(store: Store) -> None:
    with pytest.raises(LayerNotFound):
        store.layers.add_blob(Digest.of(b"?"), Digest.of(b"!"), size=1, media_type="", compression="gzip")


def test_a_description_is_kept_once_known(store: Store) -> None:
    layer = Layer(store.blobs.write(b"tar"), 3)
    store.layers.register(layer)
    store.layers.register(layer, description="RUN make")
    store.layers.register(layer)
    assert store.layers.describe(layer.diff_id) == "RUN make"


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_index_is_what_the_builder_asks_for(store: Store) -> None:
    index: CacheIndexProtocol = store.cache
    assert index.get("nothing") is None


def test_a_record_is_found_by_its_key_and_its_aliases(store: Store) -> None:
    made = record("k", make_layer(store, b"1"), make_layer(store, b"2"))
    store.cache.put(made, aliases=("content", "k"))
    store.cache.put(made, aliases=("content",))
    assert store.cache.get("k") == made
    assert store.open_cache().get("content") == made
    newer = replace(made, own=2)
    store.cache.put(newer)
    assert store.cache.get("content") == newer, "an alias follows its record"
    other = record("other", made.layers[0])
    store.cache.put(other, aliases=("content",))
    assert store.cache.get("content") == other, "the last to claim an alias has it"


def test_a_record_without_its_layers_is_no_record(store: Store) -> None:
    made = record("k", make_layer(store, b"1"), make_layer(store, b"2"))
    store.cache.put(made)
    for leased in (False, True):
        store.blobs.write(b"2")
        if leased:
            with store.lease():
                assert store.cache.get("k") == made
        else:
            assert store.cache.get("k") == made
            store.blobs.delete(made.layers[1])
            assert store.cache.get("k") is None
            assert store.cache.peek("k") == made
    empty = record("scratch")
    store.cache.put(empty)
    assert store.cache.get("scratch") == empty


def test_names_that_are_no_unicode_are_kept_in_escaped_form(store: Store) -> None:
    store.cache.put(replace(record("k"), recipe='{"path":"\udcff\u00e9"}'))
    found = store.cache.get("k")
    assert found is not None
    assert json.loads(found.recipe) == {"path": "\udcff\u00e9"}
    with store.cache_mounts.use("/\udcff") as path:
        assert path.is_dir()
    store.facts.put("http", "http://x/\udcff", value="\udcff")
    assert store.facts.get("http", "http://x/\udcff") is not None
    layer = Layer(store.blobs.write(b"1"), 1)
    store.layers.register(layer, description="COPY \udcff")
    store.builds.record(build("a", 1, "/\udcff"))
    assert store.builds.last(subject="/\udcff") is not None
    with pytest.raises(NotStorable):
        store.images.tag("x\udcff", "y")


def test_uses_are_counted_when_the_session_is_flushed(store: Store) -> None:
    store.cache.put(record("k", make_layer(store, b"1")))
    for _ in range(3):
        store.cache.get("k")
    assert store.database.query("SELECT uses FROM cache_record") == [(0,)]
    store.cache.flush()
    assert store.database.query("SELECT uses FROM cache_record") == [(3,)]
    with store.lease():
        store.cache.get("k")
    assert store.database.query("SELECT uses FROM cache_record") == [(4,)], "the end of a lease flushes"


def _hold(root: Path, key: str, ready: object) -> None:
    with Store(root, clock=time.time) as store, store.cache.lock(key):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_the_right_to_run_a_step_dies_with_its_process(store: Store) -> None:
    ready = _FORK.Event()
    process = _FORK.Process(target=_hold, args=(store.root, "k", ready))
    process.start()
    assert ready.wait(20)
    with store.cache.lock("another key"):
        pass
    cancel = threading.Event()
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(Cancelled), store.cache.lock("k", cancel=cancel):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with store.cache.lock("k"):
        pass
    process.join()
    assert [name for name in os.listdir(store.locks) if name.startswith("step-")] == []


def _run_once(root: Path, start: object, log: Path) -> None:
    with Store(root, clock=time.time) as store, store.lease():
        start.wait()  # type: ignore[attr-defined]
        for number in range(10):
            with store.cache.lock(f"k{number}"):
                if store.cache.get(f"k{number}") is None:
                    with open(log, "a") as file:
                        file.write(f"{number}\n")
                    store.cache.put(record(f"k{number}", make_layer(store, b"%d" % number)))


def test_concurrent_builds_run_each_step_once(tmp_path: Path) -> None:
    start = _FORK.Event()
    log = tmp_path / "log"
    processes = [_FORK.Process(target=_run_once, args=(tmp_path / "root", start, log)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(map(int, log.read_text().split())) == list(range(10))


def test_two_hundred_steps_are_found(store: Store) -> None:
    layers = [make_layer(store, b"%d" % number) for number in range(200)]
    for number in range(200):
        store.cache.put(record(f"k{number}", *layers[: number + 1]))
    index = store.open_cache()
    with store.lease():
        assert all(index.get(f"k{number}") is not None for number in range(200))


# --- the stat index ---------------------------------------------------------------------------------------------------

STAT = {"inode": (1, 2), "size": 3, "mtime_ns": 10 * SECOND + 1, "ctime_ns": 11 * SECOND + 1}
ROW = ("/ctx/a", (1, 2), 3, 10 * SECOND + 1, 11 * SECOND + 1, Digest.of(b"a"))


def session(store: Store, now: float) -> StatIndex:
    return StatIndex(store.database, clock=Clock(now))


def test_a_remembered_file_needs_no_reading_while_its_stat_is_the_same(store: Store) -> None:
    index = session(store, 100)
    index.remember_file_digests([ROW])
    assert index.file_digest("/ctx/a", **STAT) == Digest.of(b"a"), "before it is flushed too"
    index.flush()
    for preload in (False, True):
        later = session(store, 200)
        if preload:
            assert later.preload("/ctx") == 1
        assert later.file_digest("/ctx/a", **STAT) == Digest.of(b"a")
        assert later.file_digest("/ctx/b", **STAT) is None
        for change in ({"inode": (1, 3)}, {"inode": (2, 2)}, {"size": 4}, {"mtime_ns": 5}, {"ctime_ns": 5}):
            assert later.file_digest("/ctx/a", **{**STAT, **change}) is None


@pytest.mark.parametrize(
    ("mtime_ns", "ctime_ns", "trusted"),
    [
        (1, 1, True),
        (100 * SECOND + 7, 1, False),
        (1, 100 * SECOND + 7, False),
        (1, 100 * SECOND - 10_000_000, False),
        (1, 100 * SECOND - 30_000_000, True),
        (200 * SECOND, 1, False),
        (99 * SECOND, 99 * SECOND, False),
        (97 * SECOND, 97 * SECOND, True),
    ],
)
def test_a_file_changed_about_when_it_was_looked_at_is_not_trusted(
    store: Store, mtime_ns: int, ctime_ns: int, trusted: bool
) -> None:
    index = session(store, 100)
    index.remember_file_digests([("/f", (1, 2), 3, mtime_ns, ctime_ns, Digest.of(b"a"))])
    index.flush()
    found = session(store, 300).file_digest("/f", inode=(1, 2), size=3, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
    assert (found is not None) == trusted


def test_the_moment_of_looking_counts_not_that_of_remembering(store: Store) -> None:
    clock = Clock(100)
    index = StatIndex(store.database, clock=clock)
    racy = ("/f", (1, 2), 3, 100 * SECOND + 1, 100 * SECOND + 1, Digest.of(b"a"))
    stat = {"inode": (1, 2), "size": 3, "mtime_ns": 100 * SECOND + 1, "ctime_ns": 100 * SECOND + 1}
    clock.now = 200
    index.remember_file_digests([racy])
    assert index.file_digest("/f", **stat) is None
    index.remember_file_digests([racy], observed=150)
    assert index.file_digest("/f", **stat) == Digest.of(b"a")


def test_a_real_edit_that_keeps_size_and_mtime_is_noticed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, (1000, 1000))

    def stat() -> dict[str, object]:
        s = path.stat()
        return {"inode": (s.st_dev, s.st_ino), "size": s.st_size, "mtime_ns": s.st_mtime_ns, "ctime_ns": s.st_ctime_ns}

    before = stat()
    time.sleep(0.05)
    index = StatIndex(store.database, clock=time.time)
    index.remember_file_digests([(str(path), *before.values(), Digest.of(b"one"))])  # type: ignore[arg-type]
    assert index.file_digest(str(path), **before) == Digest.of(b"one")  # type: ignore[arg-type]
    path.write_bytes(b"two")
    os.utime(path, (1000, 1000))
    after = stat()
    assert (after["size"], after["mtime_ns"]) == (before["size"], before["mtime_ns"])
    assert index.file_digest(str(path), **after) is None  # type: ignore[arg-type]


def test_preloading_keeps_to_the_directory(store: Store) -> None:
    index = session(store, 100)
    names = ["/ctx/a", "/ctx/sub/b", "/ctx-other/c", "/ctx", "/ct", "/ctx/\udcff", "/ctx/é"]
    index.remember_file_digests([(name, *ROW[1:]) for name in names])
    index.flush()
    later = session(store, 200)
    assert later.preload("/ctx/") == 4
    for name in names:
        assert later.file_digest(name, **STAT) == Digest.of(b"a"), name
    assert session(store, 200).preload("/") == 7


def test_numbers_beyond_64_bits_and_other_algorithms_survive(store: Store) -> None:
    index = session(store, 1e10)
    digest = Digest.of(b"a", "sha512")
    row = ("/f", (1 << 63, (1 << 64) - 1), 1 << 40, -5, -7, digest)
    index.remember_file_digests([row])
    index.flush()
    found = session(store, 1e10).file_digest("/f", inode=row[1], size=row[2], mtime_ns=-5, ctime_ns=-7)
    assert found == digest


def test_twenty_thousand_files_are_found_after_a_preload(store: Store) -> None:
    index = session(store, 100)
    paths = [f"/context/directory{number % 100}/file{number}" for number in range(20_000)]
    index.remember_file_digests([(path, *ROW[1:]) for path in paths])
    index.flush()
    later = session(store, 200)
    later.preload("/context")
    assert None not in [later.file_digest(path, **STAT) for path in paths]


# --- builds, facts, cache mounts --------------------------------------------------------------------------------------


def build(ref: str, started: float, subject: str = "s", **more: object) -> BuildRecord:
    step = BuildStep(
        step="1", title="[1/1] RUN x", lines=(2, 3), key="k", recipe="{}", reason="first build", seconds=0.5
    )
    return BuildRecord(ref=ref, subject=subject, started=started, finished=started + 1, steps=(step,), **more)  # type: ignore[arg-type]


def test_builds_are_found_by_reference_subject_name_and_result(store: Store) -> None:
    first, second, third = build("aaa1", 1, names=("x:1",)), build("aab2", 2, "t"), build("b", 3, result="sha256:1")
    for each in (first, second, third, second):
        store.builds.record(each)
    assert store.builds.last() == third
    assert store.builds.last(subject="t") == second
    assert store.builds.last(subject="s", before=3) == first
    assert store.builds.last(subject="none") is None
    assert store.builds.find("aaa1") == first
    assert store.builds.find("aab") == second
    assert store.builds.find("x:1") == first
    assert store.builds.find("sha256:1") == third
    assert store.builds.find("zzz") is None
    assert store.builds.find("") is None
    with pytest.raises(AmbiguousBuild):
        store.builds.find("aa")
    assert [each.ref for each in store.builds.list()] == ["b", "aab2", "aaa1"]


def test_only_the_latest_builds_are_kept(store: Store) -> None:
    for number in range(KEPT_BUILDS + 5):
        store.builds.record(build(f"r{number:03}", number))
    assert len(store.builds.list()) == KEPT_BUILDS
    assert store.builds.find("r004") is None
    assert store.database.query("SELECT count(*) FROM build_step") == [(KEPT_BUILDS,)]


def test_facts_are_remembered_by_kind_and_key(store: Store) -> None:
    blob = store.blobs.write(b"file")
    store.facts.put("http", "http://x/", value='{"etag":"1"}', blobs=(blob,))
    store.facts.put("git", "http://x/", value="commit")
    fact = store.facts.get("http", "http://x/")
    assert fact is not None
    assert (fact.value, fact.blobs) == ('{"etag":"1"}', (blob,))
    store.facts.put("http", "http://x/", value="new")
    assert [(f.kind, f.value) for f in store.facts.list()] == [("git", "commit"), ("http", "new")]
    assert len(store.facts.list("git")) == 1


def test_a_cache_mount_is_one_directory_per_id_and_held_while_used(store: Store) -> None:
    with store.cache_mounts.use("/root/.cache") as path:
        (path / "x").touch()
        with store.cache_mounts.use("/root/.cache") as again, store.cache_mounts.use("../../etc") as other:
            assert again == path
            assert other.parent == path.parent == store.root / "cache-mounts"
        with store.cache_mounts.claim(store.cache_mounts.path("/root/.cache").name) as free:
            assert not free
    with store.cache_mounts.claim(store.cache_mounts.path("/root/.cache").name) as free:
        assert free
    rows = {row.id: row for row in store.cache_mounts.list()}
    assert rows["/root/.cache"].uses == 2
    assert rows["/root/.cache"].directory == path


def test_many_files_are_looked_up_as_single_ones_are(store: Store) -> None:
    index = session(store, 100)
    index.remember_file_digests([ROW, ("/ctx/long", (1, 2), 3, 4, 5, Digest.of(b"a", "sha512"))])
    index.flush()
    node = Node(Kind.FILE, 0o644, 0, 0, STAT["size"], STAT["mtime_ns"], host_path="/ctx/a", ctime_ns=STAT["ctime_ns"], inode=STAT["inode"])  # type: ignore[arg-type]  # fmt: skip
    nodes = [
        node,
        replace(node, host_path="/ctx/b"),
        replace(node, size=node.size + 1),
        replace(node, ctime_ns=0),
        replace(node, host_path=None),
        Node(Kind.FILE, 0o644, 0, 0, 3, 4, host_path="/ctx/long", ctime_ns=5, inode=(1, 2)),
    ]
    for known_at_once in (False, True):
        later = session(store, 200)
        if known_at_once:
            later.preload("/ctx")
        assert later.file_digests(nodes) == [Digest.of(b"a").hex, "", "", "", "", ""]
    assert index.file_digests([node]) == [Digest.of(b"a").hex]
