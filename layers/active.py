"""Directories below ``active/``: layers being made, scratch space, and trees on their way out.

Owns their names and their owners' locks. Knows nothing of what they hold.

    active/<id>/lock     locked by whoever uses the directory; unlocked means that its owner is dead
    active/<id>/…        whatever the owner puts there
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .leases import Leases
from .locks import try_lock_file, try_own

_LOCK = "lock"
_SERIAL = itertools.count()


class ActiveDirectories:
    """The directories below ``root``."""

    def __init__(self, root: Path, *, leases: Leases) -> None:
        self._root = root
        self._leases = leases

    @contextmanager
    def make(self) -> Iterator[Path]:
        """A new directory (0700) with nothing in it but its lock, removed with what it then holds when the context ends."""
        path, descriptor = self._make()
        try:
            yield path
        finally:
            try:
                _remove(path)
            finally:
                os.close(descriptor)

    def _make(self) -> tuple[Path, int]:
        with self._leases.shared():  # no sweep between the directory and its lock
            while True:
                path = self._root / f"{os.getpid()}-{next(_SERIAL)}"
                try:
                    path.mkdir(mode=0o700)
                except FileExistsError:
                    continue
                descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try_own(descriptor)
                return path, descriptor

    def sweep(self) -> int:
        """Remove the directories of dead processes, and whatever else is here that no running work can have put here. Returns the
        number of things removed."""
        names = [name for name in os.listdir(self._root) if self._seems_dead(name)]
        if not names:
            return 0
        dead: list[Path] = []
        with self._leases.exclusive():
            horizon = self._leases.horizon()
            for name in names:
                path = self._root / name
                with suppress(FileNotFoundError):
                    if self._is_dead(path, horizon):
                        # Out of the way of names that are in use, and still found by the next sweep if this one dies.
                        target = self._root / f"dead-{os.getpid()}-{next(_SERIAL)}"
                        path.rename(target)
                        dead.append(target)
        for path in dead:
            _remove(path)
        return len(dead)

    def _seems_dead(self, name: str) -> bool:
        """A look without waiting for anybody: most directories belong to builds that run."""
        try:
            descriptor = os.open(self._root / name / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            return try_own(descriptor)
        finally:
            os.close(descriptor)

    def _is_dead(self, path: Path, horizon: float | None) -> bool:
        if (path / _LOCK).exists():
            with try_lock_file(path / _LOCK) as free:
                return free
        # Not made by ``make``: it may belong to work whose lease began before it.
        return horizon is None or path.lstat().st_mtime < horizon


def _remove(path: Path) -> None:
    from .trees import remove_tree

    remove_tree(os.fspath(path))
