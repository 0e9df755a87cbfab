"""Garbage collection: what goes, what stays, and beside running work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.layers.blobs import BlobNotFound
from pybuild.layers.descriptor import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord, Layer
from pybuild.layers.gc import Collector, PrunePolicy
from pybuild.layers.image import ImageConfig, Manifest, chain_ids
from pybuild.layers.images import Use
from pybuild.layers.locks import LockMode, lock_file
from pybuild.layers.store import Store
from pybuild.layers.survey import title_of
from pybuild.layers.usage import CacheUsage, InvalidFilter, UsageFilter, UsageType

_FORK = multiprocessing.get_context("fork")
X, Y = "docker.io/library/x:1", "docker.io/library/y:1"
ALL = PrunePolicy(all=True)


class Clock:
    """A clock that the test sets; it starts where files made by the kernel are from the past."""

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


@pytest.fixture
def collector(store: Store) -> Collector:
    return Collector(store)


def make_layer(store: Store, data: bytes, *, unpacked: bool = False, description: str = "") -> Digest:
    digest = store.blobs.write(data)
    store.layers.register(Layer(digest, len(data)), description=description)
    if unpacked:
        unpack(store, digest.hex)
    return digest


def unpack(store: Store, name: str) -> None:
    (store.root / "layers" / name / "fs" / "etc").mkdir(parents=True)
    (store.root / "layers" / name / "fs" / "etc").chmod(0)


def make_record(store: Store, key: str, *layers: Digest, own: int = 1) -> None:
    recipe = '{"by":"definition","op":{"type":"run","args":["/bin/sh","-c","make ' + key + '"]}}'
    store.cache.put(CacheRecord(key=key, layers=layers, own=own, recipe=recipe, created=store.clock()))


def make_image(store: Store, name: str | None, *layers: Digest, env: str = "A=1") -> Descriptor:
    descriptors = tuple(Descriptor(OCI_LAYER, digest, store.blobs.size(digest)) for digest in layers)
    config = ImageConfig(Platform("linux", "amd64"), env=(env,), diff_ids=layers).to_bytes()
    manifest = Manifest(Descriptor(OCI_CONFIG, store.blobs.write(config), len(config)), descriptors).to_bytes()
    descriptor = Descriptor(OCI_MANIFEST, store.blobs.write(manifest), len(manifest))
    store.images.put(name, descriptor)
    return descriptor


def files(store: Store) -> list[str]:
    """Everything below the root that is not its skeleton."""
    found = []
    for directory, _, names in os.walk(store.root):
        for name in names:
            path = os.path.relpath(os.path.join(directory, name), store.root)
            if not path.startswith("pybuild.db") and path not in ("version", "locks/gc", "locks/database"):
                found.append(path)
    for name in ("layers", "active", "cache-mounts"):
        found += [f"{name}/{entry}" for entry in os.listdir(store.root / name)]
    return found


def everything(store: Store) -> None:
    base, step, other = (make_layer(store, data, unpacked=True) for data in (b"base", b"step", b"other"))
    unpack(store, chain_ids((base, step))[1].hex)
    packed = store.blobs.write(b"packed")
    store.layers.add_blob(step, packed, size=6, media_type=OCI_LAYER_GZIP, compression="gzip")
    make_record(store, "k1", base, step)
    make_record(store, "k2", base, step, other)
    make_record(store, "scratch", own=0)
    make_image(store, X, base, step)
    store.facts.put("http", "http://x/", value="etag", blobs=(store.blobs.write(b"file"),))
    store.facts.put("git", "http://x/", value="commit")
    store.blobs.write(b"loose")
    with store.blobs.ingest(partial_key="x") as ingest:
        ingest.write(b"begun")
    with store.cache_mounts.use("/root/.cache") as path:
        (path / "a" / "b").mkdir(parents=True)
        (path / "a" / "file").write_bytes(bytes(10_000))
    for name in ("git/repositories/00aa", "git/trees/00bb"):
        (store.root / "remotes" / name / "deep").mkdir(parents=True)
        (store.root / "remotes" / f"{name}.lock").touch()
    (store.root / "remotes" / "http" / "files").mkdir(parents=True)
    (store.root / "remotes" / "http" / "files" / "sha256-00").write_bytes(bytes(5000))
    (store.root / "remotes" / "http" / "urls").mkdir()
    (store.root / "remotes" / "http" / "urls" / "00cc.json").write_text("{}")
    (store.root / "remotes" / "http" / "urls" / "00cc.lock").touch()
    store.cache.remember_file_digests([("/f", (1, 2), 3, 4, 5, Digest.of(b"x"))])


def test_after_prune_all_and_without_images_only_the_skeleton_is_left(store: Store, collector: Collector) -> None:
    everything(store)
    store.cache.flush()
    store.images.remove(X)
    report = collector.prune(ALL)
    assert files(store) == []
    assert report.freed_bytes > 10_000
    for table in (
        "layer",
        "layer_blob",
        "cache_record",
        "cache_alias",
        "fact",
        "cache_mount",
        "file_digest",
        "image",
        "tag",
    ):
        assert store.database.query(f"SELECT count(*) FROM {table}") == [(0,)], table
    usage = collector.usage()
    assert (usage.images, usage.cache, usage.layers_size) == ((), (), 0)
    assert collector.prune(ALL).removed == ()


def test_prune_all_leaves_what_an_image_needs(store: Store, collector: Collector) -> None:
    everything(store)
    collector.prune(ALL)
    image = store.images.get(X)
    part = image.choose()
    assert part is not None
    assert store.layers.present(part.diff_ids)
    assert len(store.images.config(part).diff_ids) == 2
    names = {name.removeprefix("layers/") for name in files(store) if name.startswith("layers/")}
    base, step = part.diff_ids
    assert {base.hex, step.hex, chain_ids((base, step))[1].hex} == names
    assert store.cache.get("k1") is None
    assert store.cache.evicted("k1") is not None
    assert [row.id for row in collector.usage().cache] == [], "what only an image needs is no build cache"


def test_collecting_takes_only_what_nothing_refers_to(store: Store, collector: Collector) -> None:
    everything(store)
    assert collector.collect() == 5, "the loose blob"
    assert collector.collect() == 0
    store.images.remove(X)
    assert collector.collect() > 0
    assert store.cache.get("k2") is not None
    assert store.facts.list("http") != ()
    assert store.blobs.has(Digest.of(b"file"))
    assert [mount.id for mount in store.cache_mounts.list()] == ["/root/.cache"]


def test_a_dry_run_tells_the_same_and_removes_nothing(store: Store, collector: Collector) -> None:
    everything(store)
    store.images.remove(X)
    before = sorted(files(store))
    dry = collector.prune(ALL, dry_run=True)
    assert sorted(files(store)) == before
    wet = collector.prune(ALL)
    assert dry == wet


def test_usage_says_what_is_shared_and_what_made_it(store: Store, collector: Collector) -> None:
    everything(store)
    usage = collector.usage()
    rows = {row.id: row for row in usage.cache}
    step = rows[Digest.of(b"step").hex]
    assert step.shared
    assert step.parents == (Digest.of(b"base").hex,)
    assert step.size == 4 + 6 + 4 + 4, "tar, compressed, unpacked twice"
    assert step.description == "mount / from exec /bin/sh -c make k1"
    other = rows[Digest.of(b"other").hex]
    assert not other.shared
    assert other.type is UsageType.REGULAR
    assert not any(row.in_use for row in usage.cache)
    mount = next(row for row in usage.cache if row.type is UsageType.CACHE_MOUNT)
    assert mount.mutable
    assert mount.size >= 10_000
    assert "/root/.cache" in mount.description
    source = next(row for row in usage.cache if row.type is UsageType.SOURCE and row.description.endswith("x/"))
    assert (source.description, source.size) == ("http http://x/", 4)
    internal = next(row for row in usage.cache if row.type is UsageType.INTERNAL)
    assert internal.size == 5
    (image,) = usage.images
    assert image.shared == 0
    assert image.size > 8 + 18
    make_image(store, Y, Digest.of(b"base"), env="B=1")
    shares = {each.image.names: each.shared for each in collector.usage().images}
    assert shares == {(X,): 8, (Y,): 8}


def test_a_description_is_made_from_any_recipe() -> None:
    copy = '{"by":"content","op":{"type":"copy","sources":["/a","/b"],"destination":"/app/"}}'
    assert title_of(copy) == "copy /a /b /app/"
    assert title_of('{"op":{"type":"run","args":["sh","-c","' + "x" * 300 + '"]}}').startswith(
        "mount / from exec sh -c xxx"
    )
    for strange in ("", "[]", "{}", '{"op":[]}', '{"op":{"type":1,"args":{}}}', "[" * 100_000):
        assert len(title_of(strange)) < 2


def test_usage_does_not_grow_by_an_identical_build(store: Store, collector: Collector) -> None:
    everything(store)
    before = {row.id: row.size for row in collector.usage().cache}
    make_record(store, "k1", Digest.of(b"base"), Digest.of(b"step"))
    make_image(store, X, Digest.of(b"base"), Digest.of(b"step"))
    assert {row.id: row.size for row in collector.usage().cache} == before


def test_the_least_lately_used_goes_first_and_from_the_top(store: Store, collector: Collector, clock: Clock) -> None:
    base = make_layer(store, b"b" * 1000)
    mid = make_layer(store, b"m" * 1000)
    top = make_layer(store, b"t" * 1000)
    old = make_layer(store, b"o" * 1000)
    make_record(store, "old", base, old)
    clock.now += 100
    make_record(store, "mid", base, mid)
    make_record(store, "top", base, mid, top)
    clock.now += 100
    assert collector.prune(PrunePolicy(max_used_bytes=4000)).removed == ()
    report = collector.prune(PrunePolicy(max_used_bytes=3500))
    assert [row.id for row in report.removed] == [old.hex]
    assert report.freed_bytes == 1000
    report = collector.prune(PrunePolicy(max_used_bytes=2500))
    assert [row.id for row in report.removed] == [top.hex], "the layer on top before the one below it"
    assert store.cache.get("mid") is not None
    assert store.cache.get("top") is None
    assert collector.prune(PrunePolicy(max_used_bytes=1, reserved_bytes=2000)).removed == ()
    assert collector.prune(PrunePolicy(min_free_bytes=1)).removed == ()
    assert len(collector.prune(PrunePolicy(min_free_bytes=1 << 60)).removed) == 2


def test_a_use_makes_a_record_young_again(store: Store, collector: Collector, clock: Clock) -> None:
    first, second = make_layer(store, b"1"), make_layer(store, b"2")
    make_record(store, "first", first)
    make_record(store, "second", second)
    clock.now += 1000
    assert store.cache.get("first") is not None
    store.cache.flush()
    report = collector.prune(PrunePolicy(keep_duration_seconds=500))
    assert [row.id for row in report.removed] == [second.hex]
    assert store.cache.get("first") is not None
    for text, removed in (("until=24h", 0), ("unused-for=1h30m", 0), ("until=1ms", 1)):
        clock.now += 1
        assert len(collector.prune(PrunePolicy(all=True, filters=(UsageFilter.parse(text),))).removed) == removed, text


def test_without_all_internal_and_shared_rows_stay(store: Store, collector: Collector) -> None:
    everything(store)
    collector.prune(PrunePolicy())
    assert store.cache.get("k1") is not None, "an image shares all of it"
    assert store.cache.get("k2") is None
    assert store.cache_mounts.list() == ()


def test_filters_choose_rows(store: Store, collector: Collector) -> None:
    everything(store)
    report = collector.prune(PrunePolicy(all=True, filters=(UsageFilter.parse("type==exec.cachemount"),)))
    assert {row.type for row in report.removed} == {UsageType.CACHE_MOUNT, UsageType.INTERNAL}
    assert store.cache.get("k2") is not None
    report = collector.prune(PrunePolicy(all=True, filters=(UsageFilter.parse("id=" + Digest.of(b"step").hex[:12]),)))
    assert store.cache.get("k1") is None
    assert store.cache.get("k2") is None
    assert {row.id for row in report.removed} == {Digest.of(b"step").hex, Digest.of(b"other").hex}
    assert store.images.get(X).platforms[0].size == 8


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("type==regular", True),
        ("type==regular,shared", False),
        ("private,immutable", True),
        ("inuse==false", True),
        ("in-use=1", False),
        ("mutable!=true", True),
        ("description~=^RUN", True),
        ("description!=RUN make", False),
        ("parents~=bb", True),
        ("parent==bb", True),
        ("id==aa", True),
        ("id!=aa", False),
    ],
)
def test_filters_hold(text: str, matches: bool) -> None:
    row = CacheUsage("aa11", UsageType.REGULAR, 1, parents=("bb",), description="RUN make")
    assert UsageFilter.parse(text).matches(row) == matches


@pytest.mark.parametrize(
    "text", ["", "until=soon", "until", "nonsense==1", "type", "inuse==perhaps", "description~=(", "shared~=x", "a b"]
)
def test_bad_filters_are_refused(text: str) -> None:
    with pytest.raises(InvalidFilter):
        UsageFilter.parse(text)


@given(text=st.text(max_size=40))
@settings(deadline=None, max_examples=100)
def test_any_filter_is_understood_or_refused(text: str) -> None:
    row = CacheUsage("aa", UsageType.REGULAR, 1)
    try:
        UsageFilter.parse(text).matches(row)
    except InvalidFilter:
        pass


def test_images_are_pruned_by_name_and_use(store: Store, collector: Collector) -> None:
    layers = [make_layer(store, data) for data in (b"1", b"2", b"3")]
    make_image(store, X, layers[0])
    make_image(store, X, layers[1])
    make_image(store, Y, layers[2])
    report = collector.prune_images()
    assert (report.untagged, len(report.deleted)) == ((), 1)
    assert report.freed_bytes > 1
    assert not store.blobs.has(layers[0])
    report = collector.prune_images(all=True, in_use=lambda image: Use("c") if Y in image.names else None)
    assert report.untagged == (X,)
    assert collector.prune_images(all=True, match=lambda image: False).deleted == ()
    assert store.images.get(Y).platforms[0].diff_ids == (layers[2],)


def test_a_kept_source_in_use_stays(store: Store, collector: Collector) -> None:
    everything(store)
    repository = store.root / "remotes" / "git" / "repositories" / "00aa"
    with lock_file(repository.with_name("00aa.lock"), mode=LockMode.SHARED):
        kept = {row.description: row for row in collector.usage().cache if row.type is UsageType.GIT}
        assert kept["git repositories"].in_use
        assert not kept["git trees"].in_use
        collector.prune(ALL)
        assert [path.name for path in (store.root / "remotes").rglob("*")] == [
            "git",
            "repositories",
            "00aa",
            "00aa.lock",
            "deep",
        ]
    report = collector.prune(PrunePolicy(filters=(UsageFilter.parse("type=source.git.checkout"),)))
    assert report.freed_bytes > 0
    assert not (store.root / "remotes").exists()


# --- beside running work ----------------------------------------------------------------------------------------------


def test_what_running_work_stores_or_finds_stays(store: Store, collector: Collector, clock: Clock) -> None:
    found, unused = make_layer(store, b"found", unpacked=True), make_layer(store, b"unused")
    unpack(store, chain_ids((unused, found))[1].hex)
    make_record(store, "found", found)
    make_record(store, "stacked", unused, found)
    clock.now += 10_000
    with store.lease():
        clock.now += 1000
        assert store.cache.get("found") is not None
        made = make_layer(store, b"made")
        with store.blobs.ingest() as ingest:
            ingest.write(b"on its way")
            collector.prune(ALL)
            digest, _ = ingest.commit()
        collector.prune(ALL)
        assert store.layers.present((found, made))
        assert store.blobs.has(digest)
        assert not store.blobs.has(unused)
        assert {row.id for row in collector.usage().cache if row.in_use} >= {found.hex, made.hex}
    collector.prune(ALL)
    assert files(store) == []


def test_a_second_lease_does_not_rely_on_what_the_first_touched(
    store: Store, collector: Collector, clock: Clock
) -> None:
    layer = make_layer(store, b"layer")
    make_record(store, "k", layer)
    first = store.lease()
    clock.now += 1000
    with first:
        clock.now += 1000
        assert store.cache.get("k") is not None
        clock.now += 1000
        second = store.lease()
        second.__enter__()
    clock.now += 1000
    assert store.cache.get("k") is not None
    collector.prune(ALL)
    assert store.layers.present((layer,))
    second.__exit__(None, None, None)


def _lease_and_hang(root: Path, ready: object) -> None:
    with Store(root, clock=time.time) as store, store.lease(), store.active.make() as active:
        make_layer(store, b"of another process")
        (active / "upper").mkdir()
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_killed_build_leaves_nothing_after_the_next_collection(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Store(root, clock=time.time) as store:
        ready = _FORK.Event()
        process = _FORK.Process(target=_lease_and_hang, args=(root, ready))
        process.start()
        assert ready.wait(20)
        collector = Collector(store)
        collector.prune(ALL)
        assert store.blobs.has(Digest.of(b"of another process"))
        assert len(os.listdir(root / "active")) == 1
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with Store(root, clock=time.time):
            assert os.listdir(root / "active") == [], "opening sweeps"
        collector.prune(ALL)
        assert files(store) == []


def test_active_directories_go_with_their_context(store: Store) -> None:
    with store.active.make() as first, store.active.make() as second:
        assert first != second
        (first / "deep" / "er").mkdir(parents=True)
        (first / "deep").chmod(0)
        assert store.active.sweep() == 0
    assert os.listdir(store.root / "active") == []


def test_things_of_others_in_the_active_directory_stay_while_work_runs(store: Store, clock: Clock) -> None:
    clock.now = time.time()
    with store.lease():
        (store.root / "active" / "context-1").mkdir()
        (store.root / "active" / "file").touch()
        with Store(store.root, clock=clock):
            assert sorted(os.listdir(store.root / "active")) == ["context-1", "file"]
        os.utime(store.root / "active" / "context-1", (1, 1))
        assert store.active.sweep() == 1
    assert store.active.sweep() == 1
    assert os.listdir(store.root / "active") == []


def _build_and_check(root: Path, start: object, number: int, failures: object) -> None:
    with Store(root, clock=time.time) as store:
        start.wait()  # type: ignore[attr-defined]
        for round in range(12):
            with store.lease():
                stack: tuple[Digest, ...] = ()
                for step in range(6):
                    key = f"{round % 3}-{step}"
                    with store.cache.lock(key):
                        record = store.cache.get(key)
                        if record is None:
                            stack = (*stack, make_layer(store, f"{key}".encode()))
                            make_record(store, key, *stack)
                        else:
                            stack = record.layers
                try:
                    make_image(store, f"docker.io/library/b{number}:1", *stack)
                    for digest in stack:
                        store.blobs.read(digest, limit_bytes=100)
                except BlobNotFound as error:
                    failures.put(str(error))  # type: ignore[attr-defined]
                store.images.remove(f"docker.io/library/b{number}:1")


def test_builds_and_collections_at_once_never_lose_what_a_build_uses(tmp_path: Path) -> None:
    root = tmp_path / "root"
    start, failures = _FORK.Event(), _FORK.Queue()
    processes = [_FORK.Process(target=_build_and_check, args=(root, start, n, failures)) for n in range(2)]
    for process in processes:
        process.start()
    with Store(root, clock=time.time) as store:
        collector = Collector(store)
        start.set()
        rounds = 0
        while any(process.is_alive() for process in processes):
            collector.prune(replace(ALL, keep_duration_seconds=1e-9))
            rounds += 1
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert failures.empty(), failures.get()
        assert rounds > 1
        collector.prune(ALL)
        assert files(store) == []


def test_work_within_a_transaction_does_not_wait_for_a_collection(store: Store) -> None:
    layer = make_layer(store, b"layer")
    store.database.query("SELECT 1")
    done = threading.Event()

    def work() -> None:
        with store.database.transaction():
            store.layers.register(Layer(layer, 5), description="again")
            assert store.layers.present((layer,))
        done.set()

    with store.leases.exclusive():
        thread = threading.Thread(target=work)
        thread.start()
        assert done.wait(20), "a deadlock: gc will want the database's write lock"
    thread.join()


def test_a_lease_waits_for_a_collection_that_decides(store: Store) -> None:
    order: list[str] = []

    def lease() -> None:
        with store.lease():
            order.append("leased")

    with store.leases.exclusive():
        thread = threading.Thread(target=lease)
        thread.start()
        time.sleep(0.05)
        order.append("decided")
    thread.join()
    assert order == ["decided", "leased"]


def _build_forever(root: Path, number: int) -> None:
    with Store(root, clock=time.time) as store:
        round = 0
        while True:
            round += 1
            with store.lease(), store.active.make() as active:
                (active / "upper").mkdir()
                stack: tuple[Digest, ...] = ()
                for step in range(4):
                    with store.cache.lock(f"{round}-{step}"):
                        record = store.cache.get(f"{round}-{step}")
                        if record is None:
                            stack = (*stack, make_layer(store, f"{round}-{step}".encode() * 50))
                            make_record(store, f"{round}-{step}", *stack)
                        else:
                            stack = record.layers
                make_image(store, f"docker.io/library/i{number}:{round % 5}", *stack, env=f"A={round}")
            if round % 3 == 0:
                Collector(store).prune_images()


def test_nothing_that_was_finished_is_lost_by_kills_at_any_moment(tmp_path: Path) -> None:
    root = tmp_path / "root"
    images = 0
    for number in range(8):
        processes = [_FORK.Process(target=_build_forever, args=(root, n)) for n in range(2)]
        for process in processes:
            process.start()
        time.sleep(0.02 + 0.02 * number)
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join()
        with Store(root, clock=time.time) as store:
            assert store.database.query("PRAGMA integrity_check") == [("ok",)]
            assert os.listdir(root / "active") == []
            for image in store.images.list(dangling=False):
                images += 1
                part = image.choose()
                assert part is not None
                assert store.images.config(part).diff_ids == part.diff_ids
                for digest in part.diff_ids:
                    store.blobs.read(digest, limit_bytes=1000)
            for (key,) in store.database.query("SELECT key FROM cache_record"):
                store.cache.get(key)
    assert images > 0
    with Store(root, clock=time.time) as store:
        collector = Collector(store)
        collector.prune_images(all=True)
        collector.prune(ALL)
        assert files(store) == []
