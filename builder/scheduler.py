"""Running tasks that depend on each other, in a bounded number of threads.

Owns the order: a task starts when what it depends on is done, earlier ones first; the first failure (or cancelling) stops what has not
started. Knows nothing of what tasks do.
"""

from __future__ import annotations

import heapq
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pybuild.errors import Cancelled

Task = TypeVar("Task")

_POLL_SECONDS = 0.1


def run_tasks(
    tasks: Sequence[Task],
    *,
    after: Mapping[Task, Sequence[Task]],
    work: Callable[[Task], None],
    parallelism: int,
    cancel: threading.Event,
    stop: threading.Event,
) -> None:
    """Do ``work`` for each of ``tasks``, when those that ``after`` names for it are done (only those in ``tasks`` count).

    At most ``parallelism`` at once. ``cancel`` is only watched; ``stop`` is set when nothing more shall run, and running work is
    expected to end soon then. Returns when all is done; otherwise raises the first error, or Cancelled, once nothing
    runs any more.
    """
    order = {task: position for position, task in enumerate(tasks)}
    waiting: dict[int, int] = {}
    followers: dict[int, list[int]] = {}
    for task, position in order.items():
        needed = {order[other] for other in after.get(task, ()) if other in order}
        waiting[position] = len(needed)
        for other in needed:
            followers.setdefault(other, []).append(position)
    ready = [position for position, count in waiting.items() if not count]
    heapq.heapify(ready)
    finished: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
    threads = _Threads(min(max(parallelism, 1), len(tasks)), lambda position: work(tasks[position]), finished)
    running = done = 0
    failure: BaseException | None = None
    try:
        while done < len(tasks):
            if cancel.is_set() and failure is None:
                failure = Cancelled()
                stop.set()
            while ready and running < threads.count and failure is None:
                threads.give(heapq.heappop(ready))
                running += 1
            if failure is not None and not running:
                break
            try:
                position, error = finished.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            running -= 1
            done += 1
            if error is not None:
                # What others report after the first failure is mostly that they were stopped because of it.
                failure = failure or error
                stop.set()
                continue
            for follower in followers.get(position, ()):
                waiting[follower] -= 1
                if not waiting[follower]:
                    heapq.heappush(ready, follower)
    except BaseException:
        stop.set()
        raise
    finally:
        threads.end()
    if failure is not None:
        raise failure


class _Threads:
    """Workers that are started as they are needed."""

    def __init__(
        self,
        count: int,
        work: Callable[[int], None],
        finished: queue.SimpleQueue[tuple[int, BaseException | None]],
    ) -> None:
        self.count = count
        self._work = work
        self._finished = finished
        self._jobs: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._given = 0
        self._idle = threading.Semaphore(0)

    def give(self, position: int) -> None:
        if not self._idle.acquire(blocking=False) and len(self._threads) < self.count:
            thread = threading.Thread(target=self._run, name=f"step-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(position)

    def end(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (position := self._jobs.get()) is not None:
            error: BaseException | None = None
            try:
                self._work(position)
            except BaseException as caught:  # handed to the thread that waits
                error = caught
            self._idle.release()
            self._finished.put((position, error))
