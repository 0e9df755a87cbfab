"""Running tasks that depend on each other."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.scheduler import run_tasks
from pybuild.errors import Cancelled


def run(
    tasks: list[int],
    after: dict[int, list[int]],
    work: object,
    *,
    parallelism: int = 3,
    cancel: threading.Event | None = None,
    stop: threading.Event | None = None,
) -> None:
    run_tasks(
        tasks,
        after=after,
        work=work,  # type: ignore[arg-type]  # a callable
        parallelism=parallelism,
        cancel=cancel or threading.Event(),
        stop=stop or threading.Event(),
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.data())
def test_every_task_runs_once_and_after_what_it_needs(count: int, data: st.DataObject) -> None:
    after = {task: data.draw(st.lists(st.integers(0, task - 1), max_size=3)) if task else [] for task in range(count)}
    done: list[int] = []

    def work(task: int) -> None:
        assert set(after[task]) <= set(done)
        done.append(task)

    run(list(range(count)), after, work)
    assert sorted(done) == list(range(count))


def test_earlier_tasks_start_first() -> None:
    done: list[int] = []
    run(list(range(20)), {}, done.append, parallelism=1)
    assert done == list(range(20))


def test_what_is_not_among_the_tasks_counts_as_done() -> None:
    done: list[int] = []
    run([5], {5: [1, 2]}, done.append)
    assert done == [5]


def test_a_failure_is_raised_and_nothing_more_starts() -> None:
    done: list[int] = []
    stop = threading.Event()

    def work(task: int) -> None:
        done.append(task)
        if task == 2:
            raise ValueError("task 2")

    with pytest.raises(ValueError, match="task 2"):
        run(list(range(10)), {}, work, parallelism=1, stop=stop)
    assert (done, stop.is_set()) == ([0, 1, 2], True)


def test_running_tasks_end_before_a_failure_is_raised() -> None:
    ended = threading.Event()

    def work(task: int) -> None:
        if task:
            raise ValueError("quick")
        time.sleep(0.1)
        ended.set()

    with pytest.raises(ValueError, match="quick"):
        run([0, 1], {}, work)
    assert ended.is_set()


def test_the_first_failure_is_the_one_that_counts() -> None:
    first = threading.Event()

    def work(task: int) -> None:
        if task:
            first.wait(5)
            raise ValueError("second")
        first.set()
        raise KeyError("first")

    with pytest.raises((KeyError, ValueError)):
        run([0, 1], {}, work)


def test_cancelling_stops_what_has_not_started() -> None:
    cancel, stop = threading.Event(), threading.Event()
    done: list[int] = []

    def work(task: int) -> None:
        done.append(task)
        cancel.set()
        stop.wait(5)

    with pytest.raises(Cancelled):
        run(list(range(5)), {}, work, parallelism=1, cancel=cancel, stop=stop)
    assert done == [0]


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    run(list(range(50)), {task: [task - 1] for task in range(1, 50)}, lambda task: None)
    assert threading.active_count() == before
