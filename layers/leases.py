"""Leases: how gc knows what running work needs.

Owns ``locks/gc`` and ``locks/lease-*``. Never removes content itself.

Work that stores or uses content holds a lease from its beginning to its end; each thing it stores or finds in the store is touched
(its file's modification time becomes now). gc takes nothing that was touched since the oldest living lease began. A lease is a locked
file whose modification time is its beginning, so that it dies with its process. gc decides and deletes with ``locks/gc`` held
exclusively; touching a thing together with asking whether it is there holds it shared, so that it is either found and kept or not found.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .locks import LockMode, is_current, lock_file, try_lock_file, try_own

_LEASE = "lease-"
_SLACK_SECONDS = 60.0  # for a clock that was set back while a build ran
_SERIAL = itertools.count()


class Leases:
    """The leases of the store whose lock files are in ``directory``."""

    def __init__(
        self, directory: Path, *, clock: Callable[[], float], is_writing: Callable[[], bool] = lambda: False
    ) -> None:
        """``clock``: seconds since the epoch; ``is_writing``: true while this thread holds the database's write lock, which gc needs too: to
        wait for gc then would be a deadlock."""
        self._directory = directory
        self._gc = directory / "gc"
        self._clock = clock
        self._guard = threading.Lock()
        self._active = 0
        self._epoch = 0
        self._held = threading.local()
        self._is_writing = is_writing

    @property
    def epoch(self) -> int | None:
        """A number that is new with each lease begun in this process, None while it has none. What was touched in an epoch needs
        no touch again in it."""
        return self._epoch if self._active else None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep from gc everything that any process touches from now on until the context ends."""
        with self.shared():
            descriptor, path = self._begin()
        try:
            with self._guard:
                self._active += 1
                self._epoch += 1
            yield
        finally:
            with self._guard:
                self._active -= 1
            with suppress(FileNotFoundError):
                path.unlink()
            os.close(descriptor)

    def _begin(self) -> tuple[int, Path]:
        while True:
            path = self._directory / f"{_LEASE}{os.getpid()}-{next(_SERIAL)}"
            with suppress(FileExistsError):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                now = int(self._clock() * 1e9)
                if try_own(descriptor) and is_current(path, descriptor):
                    os.utime(descriptor, ns=(now, now))
                    return descriptor, path
                os.close(descriptor)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep gc from deciding or deleting; for a moment only. To be taken before the database's write lock if both are needed: it does
        nothing after that."""
        if getattr(self._held, "shared", False) or self._is_writing():
            yield
            return
        with lock_file(self._gc, mode=LockMode.SHARED):
            self._held.shared = True
            try:
                yield
            finally:
                self._held.shared = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only gc, while nobody touches anything."""
        with lock_file(self._gc):
            yield

    def horizon(self) -> float | None:
        """What was touched at or after this time (seconds since the epoch) is needed by running work; None if none runs.
        To be called within ``exclusive``; forgets the leases of dead processes."""
        oldest: float | None = None
        for name in os.listdir(self._directory):
            if not name.startswith(_LEASE):
                continue
            path = self._directory / name
            with suppress(FileNotFoundError):
                began = path.stat().st_mtime
                with try_lock_file(path, transient=True) as dead:
                    if not dead:
                        oldest = began if oldest is None else min(oldest, began)
        return None if oldest is None else oldest - _SLACK_SECONDS
