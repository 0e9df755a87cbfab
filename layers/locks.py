"""File locks between threads and processes, which the kernel drops when their owner dies.

Owns the locking protocol over ``flock(2)``. Never stores anything in a lock file, and knows nothing of what is protected.

A lock belongs to an open file description, so two threads of one process exclude each other like two processes do, and a
thread that takes the same lock twice waits for itself. A *transient* lock's file is removed by its last owner:

    open(O_CREAT) → flock → is the path still this inode? ─no→ close, again from the start
                                                          └yes→ … → unlink → close
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from pybuild.errors import Cancelled

_POLL_SECONDS = 0.02


class LockMode(Enum):
    """How a lock is shared."""

    SHARED = fcntl.LOCK_SH
    EXCLUSIVE = fcntl.LOCK_EX


@contextmanager
def lock_file(
    path: Path, *, mode: LockMode = LockMode.EXCLUSIVE, transient: bool = False, cancel: threading.Event | None = None
) -> Iterator[None]:
    """Hold the lock at ``path``, waiting for it; the file is made if it is missing, its directory must exist.

    ``transient``: remove the file afterwards. ``cancel``: stop waiting and raise Cancelled once it is set.
    """
    descriptor = open_locked(path, mode=mode, cancel=cancel)
    try:
        yield
    finally:
        if transient and (mode is LockMode.EXCLUSIVE or _flock(descriptor, LockMode.EXCLUSIVE)):
            with suppress(FileNotFoundError):
                os.unlink(path)
        os.close(descriptor)


@contextmanager
def try_lock_file(path: Path, *, mode: LockMode = LockMode.EXCLUSIVE, transient: bool = False) -> Iterator[bool]:
    """Like ``lock_file``, but gives False at once if somebody else holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _flock(descriptor, mode):
            os.close(descriptor)
            yield False
            return
        if is_current(path, descriptor):
            break
        os.close(descriptor)
    try:
        yield True
    finally:
        if transient and (mode is LockMode.EXCLUSIVE or _flock(descriptor, LockMode.EXCLUSIVE)):
            with suppress(FileNotFoundError):
                os.unlink(path)
        os.close(descriptor)


def try_own(descriptor: int) -> bool:
    """Take the exclusive lock of an open file for as long as it is open; False if another open of it holds it."""
    return _flock(descriptor, LockMode.EXCLUSIVE)


def is_current(path: Path, descriptor: int) -> bool:
    """True if ``path`` still names the open file: nobody has removed or replaced it meanwhile."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def open_locked(path: Path, *, mode: LockMode = LockMode.EXCLUSIVE, cancel: threading.Event | None = None) -> int:
    """Open the file at ``path``, made if it is missing, once its lock is ours: the lock goes when the caller closes the file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _flock(descriptor, mode):
                if cancel is None:
                    fcntl.flock(descriptor, mode.value)
                else:
                    # flock(2) can't be interrupted from another thread, so a wait that may be cancelled has to poll.
                    while not _flock(descriptor, mode):
                        if cancel.wait(_POLL_SECONDS):
                            raise Cancelled
            if is_current(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, mode: LockMode) -> bool:
    try:
        fcntl.flock(descriptor, mode.value | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
