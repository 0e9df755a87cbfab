"""What was fetched from elsewhere and kept for the next build: git repositories, their checked-out trees, downloaded files.

Owns finding these below ``remotes/``, and claiming one for removal. Never fetches, and knows nothing of what is in them.

    remotes/<kind>/<group>/<name>        a file or a directory; <kind> is ``git``, ``http``, …
    remotes/<kind>/<group>/<stem>.lock   held, at least shared, while <name> (with or without an extension) is used or made

An entry was last used when it, or its lock, was last modified.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pybuild.values import dataclass

from .digest import Digest
from .locks import try_lock_file

_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class KeptSource:
    """Something kept. ``id``: identifies it in this store; ``last_used`` in seconds since the epoch."""

    id: str
    kind: str
    group: str
    path: Path
    last_used: float

    @property
    def lock(self) -> Path:
        """The lock that its users hold."""
        return self.path.with_name(self.path.name.partition(".")[0] + _LOCK)


class KeptSources:
    """The entries below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def list(self) -> tuple[KeptSource, ...]:
        """All entries, by path."""
        found: list[KeptSource] = []
        for kind in _names(self._directory):
            for group in _names(self._directory / kind):
                for name in _names(self._directory / kind / group):
                    path = self._directory / kind / group / name
                    if name.endswith(_LOCK):
                        continue
                    source = KeptSource(Digest.of(f"{kind}/{group}/{name}".encode()).hex, kind, group, path, 0.0)
                    times = []
                    for each in (path, source.lock):
                        with suppress(OSError):
                            times.append(each.stat(follow_symlinks=False).st_mtime)
                    if times:
                        found.append(KeptSource(source.id, kind, group, path, max(times)))
        return tuple(found)

    def is_used(self, source: KeptSource) -> bool:
        """True if somebody uses or makes the entry."""
        if not source.lock.exists():
            return False
        with try_lock_file(source.lock) as free:
            return not free

    @contextmanager
    def claim(self, source: KeptSource) -> Iterator[bool]:
        """True if nobody uses the entry, and then nobody can until the context ends."""
        if not source.lock.exists():
            yield True
            return
        with try_lock_file(source.lock, transient=True) as free:
            yield free

    def tidy(self) -> None:
        """Remove locks that nobody holds and whose entry is gone, and directories with nothing in them."""
        for kind in _names(self._directory):
            for group in _names(self._directory / kind):
                place = self._directory / kind / group
                names = _names(place)
                stems = {name.partition(".")[0] for name in names if not name.endswith(_LOCK)}
                for name in names:
                    if name.endswith(_LOCK) and name[: -len(_LOCK)] not in stems:
                        with suppress(FileNotFoundError), try_lock_file(place / name, transient=True):
                            pass
                _remove_empty(place)
            _remove_empty(self._directory / kind)
        _remove_empty(self._directory)


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
