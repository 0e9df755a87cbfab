"""What a transfer tells while it runs, and how several run at a time. Nothing here prints or talks to a registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Final, TypeVar

from pybuild.errors import Cancelled
from pybuild.layers.digest import Digest
from pybuild.values import dataclass

T = TypeVar("T")
_POLL_SECONDS: Final = 0.2


class TransferState(Enum):
    """Where a blob or manifest is on its way."""

    WAITING = "waiting"
    EXISTS = "already there"
    MOUNTED = "mounted"
    SKIPPED = "skipped"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One blob's or manifest's progress. ``kind``: ``layer``, ``config``, ``manifest`` or ``index``; bytes in ``current`` and ``total``."""

    digest: Digest
    kind: str
    state: TransferState
    current: int
    total: int


OnTransfer = Callable[[Transfer], None]
"""Gets every step of every transfer, from any thread; must not block for long and never raises."""


def silent(transfer: Transfer) -> None:
    """An OnTransfer that drops everything."""


class Stop:
    """Ends transfers early: because the caller asked (``cancel``), or because another of the same run failed."""

    def __init__(self, cancel: threading.Event | None = None) -> None:
        self._cancel = cancel
        self._failed = threading.Event()

    @property
    def stopped(self) -> bool:
        """True if there is no point in going on."""
        return self._failed.is_set() or self.cancelled

    def fail(self) -> None:
        """Something failed: the others need not go on."""
        self._failed.set()

    def check(self) -> None:
        """Raise Cancelled if there is no point in going on."""
        if self.stopped:
            raise Cancelled

    @property
    def cancelled(self) -> bool:
        """True if the caller asked to stop."""
        return self._cancel is not None and self._cancel.is_set()


def run_all(
    tasks: Sequence[Callable[[], T]],
    *,
    parallel: int,
    stop: Stop,
    interrupt: Callable[[Collection[int]], None] = lambda threads: None,
) -> list[T]:
    """Run ``tasks``, at most ``parallel`` at a time, and return their results in order.

    After the first failure the others are told to stop; when all have ended that failure is raised. ``interrupt`` gets the identifiers of
    threads that should stop but may be waiting for the network.
    """
    results: dict[int, T] = {}
    first: list[BaseException] = []
    pending = iter(enumerate(tasks))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number, task = next(pending, (0, None))
            if task is None:
                return
            try:
                stop.check()
                results[number] = task()
            except BaseException as error:
                # The list's first entry is the cause: what follows is others being stopped.
                first.append(error)
                stop.fail()

    # Not an executor: importing concurrent.futures takes 5 ms, with logging, for one loop.
    workers = [threading.Thread(target=work, name=f"transfer-{number}") for number in range(min(parallel, len(tasks)))]

    def wait() -> None:
        # Again and again: who is interrupted may try once more before it looks whether there is a point in it.
        while alive := {each.ident for each in workers if each.ident is not None and each.is_alive()}:
            if stop.stopped:
                interrupt(alive)
            next(each for each in workers if each.ident in alive).join(_POLL_SECONDS)

    try:
        for worker in workers:
            worker.start()
        wait()
    except BaseException:
        stop.fail()
        wait()
        raise
    if stop.cancelled:
        raise Cancelled
    if first:
        raise first[0]
    return [results[number] for number in range(len(tasks))]
