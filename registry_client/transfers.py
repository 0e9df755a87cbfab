"""What a transfer tells while it runs, and how several run at a time. Nothing here prints or talks to a registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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
    if not tasks:
        return []
    first: list[BaseException] = []
    threads: set[int] = set()

    def guarded(task: Callable[[], T]) -> T:
        threads.add(threading.get_ident())
        try:
            stop.check()
            return task()
        except BaseException as error:
            # The list's first entry is the cause: what follows is others being stopped.
            first.append(error)
            stop.fail()
            raise

    with ThreadPoolExecutor(min(parallel, len(tasks)), thread_name_prefix="transfer") as pool:
        futures = [pool.submit(guarded, task) for task in tasks]
        try:
            while wait(futures, timeout=_POLL_SECONDS).not_done:
                if stop.stopped:
                    interrupt(threads)
        except BaseException:
            stop.fail()
            interrupt(threads)
            raise
    if stop.cancelled:
        raise Cancelled
    if first:
        raise first[0]
    return [future.result() for future in futures]
