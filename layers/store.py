"""The store: everything that pybuild keeps, below one root directory.

Owns the root itself: making it, its format's version, opening its parts, and clearing what dead processes left. Never reads
content: its parts do.

    version                     the format's number
    pybuild.db                  metadata (database.py)
    blobs/ ingest/              content by digest (blobs.py)
    layers/ active/             unpacked layers, and layers being made
    cache-mounts/               contents of RUN --mount=type=cache
    remotes/                    what was fetched from elsewhere (kept_sources.py)
    locks/                      files that are only ever locked

Any number of processes can have it open at once. Its parts are imported when they are first asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError

from .active import ActiveDirectories
from .blobs import BlobStore, raise_if_full
from .database import Database, StoreTooNew
from .leases import Leases
from .locks import try_lock_file

if TYPE_CHECKING:
    from .builds import Builds
    from .cache_index import CacheIndex
    from .cache_mounts import CacheMounts
    from .facts import Facts
    from .images import Images
    from .kept_sources import KeptSources
    from .layer_index import LayerIndex
    from .remote_layers import RemoteLayers
    from .stat_index import StatIndex

FORMAT = 1
_DIRECTORIES = ("blobs", "ingest", "layers", "active", "cache-mounts", "locks")
_LASTING_LOCKS = frozenset({"gc", "database"})
PARTIAL_SECONDS = 7 * 86400.0


class StoreUnusable(PybuildError):
    """The root directory can't be made or written."""

    def __init__(self, root: Path, *, reason: str) -> None:
        super().__init__(
            f"the store's directory {os.fspath(root)!r} can't be used: {reason}",
            hint="choose a directory that you can write with --root or PYBUILD_ROOT",
        )
        self.root = root
        self.reason = reason


class Store:
    """An open store; a context manager that closes its database. ``root`` is made if it is missing."""

    def __init__(self, root: Path, *, clock: Callable[[], float]) -> None:
        """``clock``: seconds since the epoch. Raises StoreUnusable, StoreTooNew."""
        self.root = root
        self.clock = clock
        self.locks = root / "locks"
        self._prepare()
        self.database = Database(root / "pybuild.db", lock=self.locks / "database")
        self.leases = Leases(self.locks, clock=clock, is_writing=lambda: self.database.is_writing)
        self.blobs = BlobStore(root, clock=clock, guard=self.leases.shared)
        self.active = ActiveDirectories(root / "active", leases=self.leases)
        self.sweep()

    @cached_property
    def layers(self) -> LayerIndex:
        from .layer_index import LayerIndex

        return LayerIndex(self.database, self.blobs, leases=self.leases, clock=self.clock)

    @property
    def remote_layers(self) -> RemoteLayers:
        return self.layers.remote

    @cached_property
    def images(self) -> Images:
        from .images import Images

        return Images(self.database, self.blobs, layers=self.layers, clock=self.clock)

    @cached_property
    def cache(self) -> CacheIndex:
        """A cache session as old as the store object. Builds of a long-lived process open their own."""
        return self.open_cache()

    @property
    def stat_index(self) -> StatIndex:
        return self.cache.stat_index

    @cached_property
    def cache_mounts(self) -> CacheMounts:
        from .cache_mounts import CacheMounts

        return CacheMounts(self.database, self.root / "cache-mounts", locks=self.locks, clock=self.clock)

    @cached_property
    def kept_sources(self) -> KeptSources:
        from .kept_sources import KeptSources

        return KeptSources(self.root / "remotes")

    @cached_property
    def facts(self) -> Facts:
        from .facts import Facts

        return Facts(self.database, clock=self.clock)

    @cached_property
    def builds(self) -> Builds:
        from .builds import Builds

        return Builds(self.database, clock=self.clock)

    def open_cache(self) -> CacheIndex:
        """A new session with the cache and stat indexes, to be opened before a build looks at its files and flushed at its end."""
        from .cache_index import CacheIndex
        from .stat_index import StatIndex

        return CacheIndex(
            self.database,
            self.layers,
            stat_index=StatIndex(self.database, clock=self.clock),
            locks=self.locks,
            clock=self.clock,
        )

    @contextmanager
    def lease(self) -> Iterator[None]:
        """To be held by whatever stores or uses content, from its beginning to its end: gc takes nothing of it. Flushes the cache session of the
        store at the end."""
        with self.leases.lease():
            try:
                yield
            finally:
                if "cache" in self.__dict__:
                    self.cache.flush()

    def sweep(self) -> None:
        """Remove what dead processes left in ``ingest/`` and ``active/``."""
        self.blobs.sweep(partial_older_than=self.clock() - PARTIAL_SECONDS)
        self.active.sweep()

    def sweep_locks(self) -> None:
        """Remove the lock files of killed processes. All locks here are taken by ``lock_file``, which notices."""
        for name in os.listdir(self.locks):
            if name not in _LASTING_LOCKS:
                with try_lock_file(self.locks / name, transient=True):
                    pass

    def flush(self) -> None:
        """Write what is pending."""
        if "cache" in self.__dict__:
            self.cache.flush()

    def close(self) -> None:
        """Write what is pending and close the database; the store opens it again if it is used again."""
        self.flush()
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        version = self.root / "version"
        try:
            text = version.read_bytes()
        except FileNotFoundError:
            self._create(version)
        except (NotADirectoryError, PermissionError) as error:
            raise StoreUnusable(self.root, reason=os.strerror(error.errno or 0)) from error
        else:
            if text != b"%d\n" % FORMAT:
                if text.strip().isdigit() and int(text) > FORMAT:
                    raise StoreTooNew(self.root)
                raise StoreUnusable(self.root, reason="its version file is not one of pybuild's")
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StoreUnusable(self.root, reason="it is not writable")

    def _create(self, version: Path) -> None:
        try:
            # 0700: layers hold what images hide from ordinary users; the kernel reaches overlay layers without the path.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = {*_DIRECTORIES, "lost+found"}
            strangers = [
                name
                for name in os.listdir(self.root)
                if name not in known and not name.startswith(("pybuild.db", "version"))
            ]
            if strangers:
                raise StoreUnusable(
                    self.root, reason=f"it is not empty and no store of pybuild (it holds {strangers[0]!r})"
                )
            for name in _DIRECTORIES:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
            # The root may have been there with another mode: what builds were given is nobody else's either.
            os.close(os.open(self.root / "pybuild.db", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            draft = self.root / f"version.{os.getpid()}"
            draft.write_bytes(b"%d\n" % FORMAT)
            draft.rename(version)
        except OSError as error:
            raise_if_full(error, self.root)
            raise StoreUnusable(self.root, reason=os.strerror(error.errno or 0)) from error
