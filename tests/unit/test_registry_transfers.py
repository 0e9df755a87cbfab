"""Several transfers at a time, scopes of tokens, origins of blobs."""

from __future__ import annotations

import threading
import time

import pytest

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import Digest
from pybuild.registry_client.auth import merged_scopes
from pybuild.registry_client.stores import RememberedOrigins
from pybuild.registry_client.transfers import Stop, run_all


def test_results_come_in_order_from_at_most_so_many_threads() -> None:
    running: list[int] = []
    most = [0]
    lock = threading.Lock()

    def task(number: int) -> int:
        with lock:
            running.append(number)
            most[0] = max(most[0], len(running))
        time.sleep(0.01 * (5 - number % 5))
        with lock:
            running.remove(number)
        return number

    assert run_all([lambda n=n: task(n) for n in range(10)], parallel=3, stop=Stop()) == list(range(10))  # type: ignore[misc]  # a default argument binds n
    assert most[0] == 3
    assert run_all([], parallel=3, stop=Stop()) == []


def test_the_first_failure_is_raised_and_stops_the_others() -> None:
    stop = Stop()
    ended: list[str] = []

    def fails() -> None:
        raise PybuildError("the cause")

    def long() -> None:
        try:
            while True:
                stop.check()
                time.sleep(0.005)
        finally:
            ended.append("long")

    with pytest.raises(PybuildError, match="the cause"):
        run_all([long, fails, long, long], parallel=2, stop=stop)
    assert ended == ["long"]


def test_a_task_that_waits_for_something_is_interrupted() -> None:
    woken = threading.Event()
    cancel = threading.Event()
    stop = Stop(cancel)
    threads: set[int] = set()

    def waits() -> None:
        threads.add(threading.get_ident())
        woken.wait(20)
        stop.check()

    threading.Timer(0.05, cancel.set).start()
    interrupted: set[int] = set()

    def interrupt(identifiers: object) -> None:
        interrupted.update(identifiers)  # type: ignore[call-overload]  # a collection of thread identifiers
        woken.set()

    start = time.monotonic()
    with pytest.raises(Cancelled):
        run_all([waits], parallel=4, stop=stop, interrupt=interrupt)
    assert time.monotonic() - start < 5
    assert interrupted == threads


def test_scopes_are_merged_per_resource() -> None:
    assert merged_scopes(["repository:a/b:pull", "repository:a/b:push,pull", "repository:c:pull"]) == {
        "repository:a/b:pull,push",
        "repository:c:pull",
    }
    assert merged_scopes(["registry:catalog:*"]) == {"registry:catalog:*"}
    assert merged_scopes([]) == frozenset()


def test_the_latest_origin_of_a_blob_comes_first() -> None:
    origins = RememberedOrigins()
    one, two = Digest.of(b"1"), Digest.of(b"2")
    origins.remember("r.example", "a", (one, two))
    origins.remember("r.example", "b", (one,))
    origins.remember("r.example", "a", (one,))
    assert origins.repositories("r.example", one) == ("a", "b")
    assert origins.repositories("r.example", two) == ("a",)
    assert origins.repositories("other.example", one) == ()
