"""The blob store: content by digest, atomically, idempotently, verified."""

# ruff: noqa: PT012  — what is to fail is the use of a context, which takes several lines

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.blobs import BlobCorrupt, BlobNotFound, BlobStore, BlobTooLarge, StoreFull, raise_if_full
from pybuild.layers.digest import Digest
from pybuild.layers.locks import LockMode, lock_file, try_lock_file

_FORK = multiprocessing.get_context("fork")
HELLO = Digest.of(b"hello")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def leftovers(blobs: BlobStore) -> list[str]:
    directory = blobs.root / "ingest"
    return sorted(os.listdir(directory)) if directory.exists() else []


def test_what_is_written_is_read_back(blobs: BlobStore) -> None:
    digest = blobs.write(b"hello")
    assert digest == HELLO
    assert blobs.has(digest)
    assert blobs.size(digest) == 5
    assert blobs.read(digest, limit_bytes=5) == b"hello"
    with blobs.open(digest, size=5) as reader:
        assert reader.read() == b"hello"
    assert list(blobs) == [digest]
    assert leftovers(blobs) == []


def test_writing_twice_changes_nothing(blobs: BlobStore) -> None:
    first = blobs.path(blobs.write(b"hello")).stat()
    second = blobs.path(blobs.write(b"hello")).stat()
    assert first.st_ino == second.st_ino
    with blobs.ingest() as ingest:
        ingest.write(b"hello")
        assert ingest.commit() == (HELLO, 5)
    assert blobs.path(HELLO).stat().st_ino == first.st_ino
    assert list(blobs) == [HELLO]


@given(
    chunks=st.lists(st.binary(max_size=300_000), max_size=6), algorithm=st.sampled_from(["sha256", "sha384", "sha512"])
)
@settings(deadline=None, max_examples=30)
def test_any_chunks_give_the_digest_of_their_sum(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], algorithm: str
) -> None:
    blobs = BlobStore(tmp_path_factory.getbasetemp() / "chunks")
    data = b"".join(chunks)
    with blobs.ingest(algorithm=algorithm) as ingest:
        for chunk in chunks:
            ingest.write(chunk)
        digest, size = ingest.commit()
    assert digest == Digest(algorithm, hashlib.new(algorithm, data).hexdigest())
    assert size == len(data)
    assert blobs.read(digest, limit_bytes=1 << 30) == data


def test_a_missing_blob_is_an_error_that_names_it(blobs: BlobStore) -> None:
    for call in (lambda: blobs.open(HELLO), lambda: blobs.size(HELLO), lambda: blobs.read(HELLO, limit_bytes=9)):
        with pytest.raises(BlobNotFound, match=HELLO.hex):
            call()
    assert not blobs.has(HELLO)
    assert not blobs.touch(HELLO)
    blobs.delete(HELLO)
    assert list(blobs) == []


def test_a_blob_that_is_too_large_is_not_read(blobs: BlobStore) -> None:
    blobs.write(b"hello")
    with pytest.raises(BlobTooLarge):
        blobs.read(HELLO, limit_bytes=4)


@pytest.mark.parametrize("content", [b"hellO", b"hello!", b"hell", b""])
def test_damaged_content_is_noticed_by_the_last_byte_and_removed(blobs: BlobStore, content: bytes) -> None:
    blobs.write(b"hello")
    blobs.path(HELLO).write_bytes(content)
    with pytest.raises(BlobCorrupt), blobs.open(HELLO) as reader:
        while reader.read(2):
            pass
    assert not blobs.has(HELLO)
    blobs.write(b"hello")
    blobs.path(HELLO).write_bytes(content)
    with pytest.raises(BlobCorrupt):
        blobs.read(HELLO, limit_bytes=99)
    assert not blobs.has(HELLO)


def test_the_last_byte_is_not_handed_out_unverified(blobs: BlobStore) -> None:
    data = bytes(300_000)
    digest = blobs.write(data)
    blobs.path(digest).write_bytes(bytes(299_999) + b"x")
    with blobs.open(digest) as reader:
        got = 0
        with pytest.raises(BlobCorrupt):
            while chunk := reader.read(65536):
                got += len(chunk)
    assert got < len(data)


def test_a_wrong_size_is_refused_when_opening(blobs: BlobStore) -> None:
    blobs.write(b"hello")
    with pytest.raises(BlobCorrupt, match="5 bytes instead of 6"):
        blobs.open(HELLO, size=6)
    assert blobs.has(HELLO), "the descriptor may be what is wrong"


def test_a_truncated_blob_heals_when_it_is_written_again(blobs: BlobStore) -> None:
    for again in (lambda: blobs.write(b"hello"), lambda: _ingest(blobs, b"hello")):
        blobs.write(b"hello")
        blobs.path(HELLO).write_bytes(b"")
        again()
        assert blobs.read(HELLO, limit_bytes=5) == b"hello"


def _ingest(blobs: BlobStore, data: bytes) -> None:
    with blobs.ingest() as ingest:
        ingest.write(data)
        ingest.commit()


def test_without_commit_nothing_is_stored(blobs: BlobStore) -> None:
    with blobs.ingest() as ingest:
        ingest.write(b"hello")
    with pytest.raises(KeyError), blobs.ingest() as ingest:
        ingest.write(b"hello")
        raise KeyError
    assert list(blobs) == []
    assert leftovers(blobs) == []


@pytest.mark.parametrize("tmpfile", [True, False], ids=["nameless", "named"])
def test_wrong_content_is_refused_and_nothing_kept(blobs: BlobStore, tmpfile: bool) -> None:
    blobs._tmpfile = tmpfile
    for expected, size, data in [
        (HELLO, None, b"hellO"),
        (HELLO, 5, b"hell"),
        (HELLO, 5, b"hello!"),
        (None, 4, b"hello"),
    ]:
        with pytest.raises(BlobCorrupt), blobs.ingest(expected=expected, expected_size=size) as ingest:
            ingest.write(data)
            ingest.commit()
    assert list(blobs) == []
    assert leftovers(blobs) == []


def test_named_temporaries_work_where_nameless_files_dont(blobs: BlobStore) -> None:
    blobs._tmpfile = False
    with blobs.ingest() as ingest:
        ingest.write(b"hello")
        assert len(leftovers(blobs)) == 1
        assert BlobStore(blobs.root).sweep(partial_older_than=time.time() + 99) == 0, "its owner lives"
        ingest.commit()
    _ingest(blobs, b"hello")
    assert blobs.read(HELLO, limit_bytes=5) == b"hello"
    assert leftovers(blobs) == []


def test_an_interrupted_download_goes_on_where_it_stopped(blobs: BlobStore) -> None:
    with pytest.raises(ConnectionError), blobs.ingest(expected=HELLO, expected_size=5, partial_key="url") as ingest:
        ingest.write(b"hel")
        raise ConnectionError
    with blobs.ingest(expected=HELLO, expected_size=5, partial_key="other") as ingest:
        assert ingest.offset == 0
    with blobs.ingest(expected=HELLO, expected_size=5, partial_key="url") as ingest:
        assert ingest.offset == 3
        ingest.write(b"lo")
        assert ingest.commit() == (HELLO, 5)
    assert leftovers(blobs) == []


def test_a_download_that_ended_early_is_kept_for_the_next_attempt(blobs: BlobStore) -> None:
    with pytest.raises(BlobCorrupt, match="ended after 3 bytes"):
        with blobs.ingest(expected=HELLO, expected_size=5, partial_key="url") as ingest:
            ingest.write(b"hel")
            ingest.commit()
    with blobs.ingest(expected=HELLO, expected_size=5, partial_key="url") as ingest:
        assert ingest.offset == 3


def test_a_server_that_cannot_resume_starts_again(blobs: BlobStore) -> None:
    with blobs.ingest(expected=HELLO, partial_key="url") as ingest:
        ingest.write(b"xyz")
    with blobs.ingest(expected=HELLO, partial_key="url") as ingest:
        assert ingest.offset == 3
        ingest.restart()
        assert ingest.offset == 0
        ingest.write(b"hello")
        ingest.commit()
    assert blobs.read(HELLO, limit_bytes=5) == b"hello"


def test_a_beginning_that_proves_wrong_is_thrown_away(blobs: BlobStore) -> None:
    with blobs.ingest(expected=HELLO, partial_key="url") as ingest:
        ingest.write(b"xyz")
    with pytest.raises(BlobCorrupt), blobs.ingest(expected=HELLO, partial_key="url") as ingest:
        ingest.write(b"lo")
        ingest.commit()
    assert leftovers(blobs) == []


def test_the_second_downloader_waits_and_finds_the_blob(blobs: BlobStore) -> None:
    order: list[str] = []

    def second() -> None:
        with blobs.ingest(expected=HELLO, partial_key="url") as ingest:
            order.append("second")
            assert ingest.exists

    with blobs.ingest(expected=HELLO, partial_key="url") as ingest:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        ingest.write(b"hello")
        order.append("first")
        ingest.commit()
    thread.join()
    assert order == ["first", "second"]
    assert leftovers(blobs) == []


@pytest.mark.parametrize("key", [None, "url"])
def test_what_exists_may_be_written_again_all_the_same(blobs: BlobStore, key: str | None) -> None:
    with blobs.ingest(expected=HELLO, partial_key=key) as ingest:
        ingest.write(b"a longer beginning")
    blobs.write(b"hello")
    with blobs.ingest(expected=HELLO, expected_size=5, partial_key=key) as ingest:
        assert ingest.exists
        assert ingest.offset == 0
        ingest.write(b"hello")
        assert ingest.commit() == (HELLO, 5)
    assert blobs.read(HELLO, limit_bytes=99) == b"hello"
    with blobs.ingest(expected=HELLO, partial_key=key) as ingest:
        assert ingest.exists
    assert leftovers(blobs) == []


def _hang_in_ingest(root: Path, key: str | None, tmpfile: bool, ready: object) -> None:
    blobs = BlobStore(root)
    blobs._tmpfile = tmpfile
    with blobs.ingest(partial_key=key) as ingest:
        ingest.write(b"x" * 1_000_000)
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


@pytest.mark.parametrize(("key", "tmpfile", "left"), [(None, True, 0), (None, False, 1), ("url", True, 1)])
def test_a_killed_writer_leaves_only_what_the_next_run_sweeps(
    blobs: BlobStore, key: str | None, tmpfile: bool, left: int
) -> None:
    ready = _FORK.Event()
    process = _FORK.Process(target=_hang_in_ingest, args=(blobs.root, key, tmpfile, ready))
    process.start()
    assert ready.wait(20)
    assert blobs.sweep(partial_older_than=time.time() + 99) == 0, "its owner lives"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(blobs) == []
    assert len(leftovers(blobs)) == left
    if key is not None:
        assert blobs.sweep(partial_older_than=0) == 0, "a young beginning is kept for resuming"
    assert blobs.sweep(partial_older_than=time.time() + 99) == left
    assert leftovers(blobs) == []


def _write_same(root: Path, start: object, count: int) -> None:
    blobs = BlobStore(root)
    start.wait()  # type: ignore[attr-defined]
    for number in range(count):
        blobs.write(b"%d" % number * 100)


def test_processes_that_write_the_same_blobs_at_once_all_succeed(blobs: BlobStore) -> None:
    start = _FORK.Event()
    processes = [_FORK.Process(target=_write_same, args=(blobs.root, start, 200)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(blobs)) == 200
    for digest in blobs:
        blobs.read(digest, limit_bytes=1 << 20)


def test_touch_uses_the_clock_that_was_given(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, clock=lambda: 1000.5)
    digest = blobs.write(b"hello")
    assert blobs.path(digest).stat().st_mtime == 1000.5


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a tmpfs: a barrier on a busy disk takes seconds")
def test_a_barrier_for_all_blobs() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        blobs = BlobStore(Path(directory))
        blobs.write(b"hello")
        blobs.sync()
        assert blobs.has(HELLO)


def test_a_full_disk_and_a_used_up_quota_are_recognised(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(StoreFull) as caught:
            raise_if_full(OSError(number, os.strerror(number)), tmp_path)
        assert isinstance(caught.value, PybuildError)
        assert caught.value.hint is not None
    raise_if_full(OSError(errno.EIO, "other"), tmp_path)


def test_a_full_device_gives_store_full(blobs: BlobStore) -> None:
    with pytest.raises(StoreFull), blobs.ingest() as ingest:
        os.dup2(os.open("/dev/full", os.O_WRONLY), ingest._file.fileno())
        for _ in range(3):
            ingest.write(b"x" * (1 << 20))
    assert list(blobs) == []
    assert leftovers(blobs) == []


def test_locks_exclude_threads_and_vanish(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path, transient=True):
        with try_lock_file(path) as held:
            assert not held
        with try_lock_file(path, mode=LockMode.SHARED) as held:
            assert not held
    assert not path.exists()
    with lock_file(path, mode=LockMode.SHARED), try_lock_file(path, mode=LockMode.SHARED, transient=True) as held:
        assert held
    assert path.exists(), "another held it"


def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path) -> None:
    cancel = threading.Event()
    with lock_file(tmp_path / "lock"):
        threading.Timer(0.05, cancel.set).start()
        with pytest.raises(Cancelled), lock_file(tmp_path / "lock", cancel=cancel):
            pass


def test_a_transient_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    worst: list[int] = []

    def work() -> None:
        for _ in range(60):
            with lock_file(tmp_path / "lock", transient=True):
                inside.append(1)
                worst.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 360
    assert max(worst) == 1
    assert not (tmp_path / "lock").exists()


class BlobStoreModel(RuleBasedStateMachine):
    """Whatever is done in whatever order, the store holds what a dictionary would."""

    contents = st.binary(max_size=20)
    keys = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.blobs = BlobStore(Path(self.directory.name))
        self.known: dict[Digest, bytes] = {}
        self.begun: dict[str, bytes] = {}

    def teardown(self) -> None:
        self.directory.cleanup()

    @rule(data=contents)
    def write(self, data: bytes) -> None:
        digest = self.blobs.write(data)
        self.known[digest] = data

    @rule(data=contents, named=st.booleans(), finish=st.booleans())
    def stream(self, data: bytes, named: bool, finish: bool) -> None:
        self.blobs._tmpfile = not named
        with self.blobs.ingest() as ingest:
            for at in range(len(data)):
                ingest.write(data[at : at + 1])
            if finish:
                digest, size = ingest.commit()
                assert size == len(data)
                self.known[digest] = data

    @rule(key=keys, data=contents, finish=st.booleans(), restart=st.booleans())
    def download(self, key: str, data: bytes, finish: bool, restart: bool) -> None:
        with self.blobs.ingest(partial_key=key) as ingest:
            before = self.begun.get(key, b"")
            assert ingest.offset == len(before)
            if restart:
                ingest.restart()
                before = b""
            ingest.write(data)
            self.begun[key] = before + data
            if finish:
                digest, _ = ingest.commit()
                self.known[digest] = self.begun.pop(key)

    @rule(data=contents)
    def refuse(self, data: bytes) -> None:
        with pytest.raises(BlobCorrupt), self.blobs.ingest(expected=Digest.of(b"something else entirely")) as ingest:
            ingest.write(data)
            ingest.commit()

    @rule(data=contents)
    def delete(self, data: bytes) -> None:
        self.blobs.delete(Digest.of(data))
        self.known.pop(Digest.of(data), None)

    @rule()
    def sweep(self) -> None:
        assert self.blobs.sweep(partial_older_than=time.time() + 99) == sum(map(bool, self.begun.values()))
        self.begun.clear()

    @invariant()
    def holds_what_a_dictionary_holds(self) -> None:
        assert set(self.blobs) == set(self.known)
        for digest, data in self.known.items():
            assert self.blobs.read(digest, limit_bytes=99) == data
        assert len(leftovers(self.blobs)) == sum(map(bool, self.begun.values()))


TestBlobStoreModel = BlobStoreModel.TestCase
TestBlobStoreModel.settings = settings(deadline=None, max_examples=25, stateful_step_count=20)
