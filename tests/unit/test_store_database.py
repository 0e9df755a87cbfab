"""The database: transactions, many threads and processes, versions, damage; and the store's root."""

# ruff: noqa: PT012  — what is to fail is the use of a context, which takes several lines

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pybuild.layers.database import Database, StoreDamaged, StoreTooNew
from pybuild.layers.store import Store, StoreUnusable

_FORK = multiprocessing.get_context("fork")


def put(database: Database, kind: str, key: str) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?, '', '', 0, 0, 0)", (kind, key))


def count(database: Database) -> int:
    (number,) = database.query("SELECT count(*) FROM fact")[0]
    assert isinstance(number, int)
    return number


def test_a_failed_transaction_leaves_no_trace(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    put(database, "a", "1")
    with pytest.raises(KeyError), database.transaction():
        put(database, "a", "2")
        raise KeyError
    assert count(database) == 1
    with database.transaction():
        put(database, "a", "3")
        put(database, "a", "4")
    assert count(database) == 3
    database.close()
    assert count(database) == 3, "a closed database opens again"


def test_an_inner_failure_that_is_caught_keeps_the_outer_transaction(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    with database.transaction():
        put(database, "a", "1")
        with pytest.raises(StoreDamaged, match="no such table"), database.transaction() as connection:
            connection.execute("SELECT * FROM nowhere")
        put(database, "a", "2")
    assert count(database) == 2


def _many(path: Path, name: str, start: object) -> None:
    database = Database(path)
    start.wait()  # type: ignore[attr-defined]
    for number in range(50):
        put(database, name, str(number))


def test_processes_and_threads_create_and_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "db"
    start = _FORK.Event()
    processes = [_FORK.Process(target=_many, args=(path, f"p{n}", start)) for n in range(3)]
    for process in processes:
        process.start()
    database = Database(path)

    def work(name: str) -> None:
        for number in range(50):
            put(database, name, str(number))

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(3)]
    start.set()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert count(database) == 300


def _hang_in_transaction(path: Path, ready: object) -> None:
    database = Database(path)
    put(database, "finished", "1")
    with database.transaction():
        put(database, "unfinished", "1")
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_killed_process_loses_what_it_had_not_committed_and_nothing_else(tmp_path: Path) -> None:
    ready = _FORK.Event()
    process = _FORK.Process(target=_hang_in_transaction, args=(tmp_path / "db", ready))
    process.start()
    assert ready.wait(20)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    database = Database(tmp_path / "db")
    assert database.query("SELECT kind FROM fact") == [("finished",)]
    put(database, "goes on", "1")


def _child_reads(database: Database, result: object) -> None:
    result.put(count(database))  # type: ignore[attr-defined]


def test_a_forked_child_uses_a_connection_of_its_own(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    put(database, "a", "1")
    parent = database.connection
    result = _FORK.Queue()
    process = _FORK.Process(target=_child_reads, args=(database, result))
    process.start()
    assert result.get(timeout=20) == 1
    process.join()
    assert database.connection is parent


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    newer = Database(tmp_path / "db")
    newer.connection.execute("PRAGMA user_version=999")
    with pytest.raises(StoreTooNew):
        Database(tmp_path / "db").query("SELECT 1")


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database at all, but long enough" * 100)
    with pytest.raises(StoreDamaged, match="not a database"):
        Database(tmp_path / "db").query("SELECT 1")


def test_the_store_makes_its_root_and_finds_it_again(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    with Store(root, clock=time.time) as store:
        put(store.database, "a", "1")
    assert root.stat().st_mode & 0o777 == 0o700
    with Store(root, clock=time.time) as store:
        assert count(store.database) == 1


def _open_store(root: Path, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    with Store(root, clock=time.time) as store:
        put(store.database, "a", str(os.getpid()))


def test_processes_that_make_the_same_root_at_once_all_succeed(tmp_path: Path) -> None:
    start = _FORK.Event()
    processes = [_FORK.Process(target=_open_store, args=(tmp_path / "root", start)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with Store(tmp_path / "root", clock=time.time) as store:
        assert count(store.database) == 4


def test_only_the_owner_can_read_what_builds_were_given(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    with Store(root, clock=time.time) as store:
        store.database.row("SELECT 1")
        modes = {path.name: path.stat().st_mode & 0o077 for path in root.iterdir() if path.name != "version"}
    assert "pybuild.db" in modes
    assert not any(modes.values()), modes


def test_a_newer_or_a_strange_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Store(root, clock=time.time).close()
    (root / "version").write_text("2\n")
    with pytest.raises(StoreTooNew):
        Store(root, clock=time.time)
    (root / "version").write_text("something else")
    with pytest.raises(StoreUnusable, match="version file"):
        Store(root, clock=time.time)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").mkdir()
    with pytest.raises(StoreUnusable, match="letters"):
        Store(tmp_path / "home", clock=time.time)
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusable):
        Store(tmp_path / "file", clock=time.time)


def test_the_blob_store_imports_nothing_heavy() -> None:
    code = "import sys, pybuild.layers.store; print([m for m in ('sqlite3', 'ctypes', 'lark', 'requests', 'zstandard', 'isal', 'tempfile') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"
