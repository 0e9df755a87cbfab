"""``RUN --mount=type=cache``: which directory a cache mount gets, shared as asked.

Owns the sharing modes (by locks on the directories, so they hold between processes and end with them), the first content and owner
of a new cache. The directories come from the store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import ExitStack
from typing import Final

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import Digest

from .contexts_local import LocalContext
from .copy_paths import resolve
from .execute_trees import MountTree, content_root, copy_tree
from .graph import CacheMount, CacheSharing
from .protocols import HostMount, Snapshots
from .selection import SourceNotFound

_POLL_SECONDS: Final = 0.05
_MOST_COPIES: Final = 1000


class CacheMountBusy(PybuildError):
    """Too many steps use a cache mount, and all its copies, at once."""

    def __init__(self, id: str) -> None:
        super().__init__(f"cache mount {id!r} is in use by too many steps", hint="give it sharing=locked")
        self.id = id


class CacheMountPool:
    """The cache mounts of one build."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._emptied: set[str] = set()
        self._guard = threading.Lock()

    def mount(
        self,
        mount: CacheMount,
        tree: MountTree | None,
        *,
        fresh: bool,
        held: ExitStack,
        cancel: threading.Event,
        mounted: dict[str, str],
    ) -> HostMount:
        """The directory for ``mount``, held until ``held`` closes. ``tree``: its first content; ``fresh``: begin this build with an empty
        one; ``mounted``: directories that this step has already, by id. Raises SourceNotFound, Cancelled."""
        id = mount.id if tree is None else f"{mount.id}:{Digest.of(tree.identity.encode()).hex[:32]}"
        directory = mounted.get(id)
        if directory is None:
            directory = mounted[id] = self._directory(id, mount, tree, fresh=fresh, held=held, cancel=cancel)
        return HostMount(self._inside(directory, mount.source), mount.target, mount.readonly)

    def _directory(
        self,
        id: str,
        mount: CacheMount,
        tree: MountTree | None,
        *,
        fresh: bool,
        held: ExitStack,
        cancel: threading.Event,
    ) -> str:
        for number in range(1, _MOST_COPIES):
            # When a cache is taken, the others get further ones, which later steps find again.
            name = id if number == 1 else f"{id}#{number}"
            with ExitStack() as trying:
                directory = trying.enter_context(self._snapshots.cache_mount(name, fresh=False))
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                trying.callback(os.close, descriptor)
                if fresh and self._first(name) and not self._emptied_now(descriptor, name):
                    continue
                if self._locked(descriptor, mount.sharing, cancel):
                    with self._guard:
                        self._prepare(directory, mount, tree)
                    held.push(trying.pop_all())
                    return directory
        raise CacheMountBusy(mount.id)

    def _first(self, name: str) -> bool:
        """Whether this build hasn't had this cache yet."""
        with self._guard:
            first = name not in self._emptied
            self._emptied.add(name)
            return first

    def _emptied_now(self, descriptor: int, name: str) -> bool:
        """Empty a cache, unless somebody uses it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with self._snapshots.cache_mount(name, fresh=True):
            return True

    def _locked(self, descriptor: int, sharing: CacheSharing, cancel: threading.Event) -> bool:
        how = fcntl.LOCK_SH if sharing is CacheSharing.SHARED else fcntl.LOCK_EX
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if sharing is not CacheSharing.LOCKED:
                    return False
            if cancel.wait(_POLL_SECONDS):
                raise Cancelled

    def _prepare(self, directory: str, mount: CacheMount, tree: MountTree | None) -> None:
        """Give a new cache its content, mode and owner."""
        with os.scandir(directory) as entries:
            if next(entries, None) is not None:
                return
        if tree is not None:
            with ExitStack() as held:
                view, match = content_root(tree, "", held=held, snapshots=self._snapshots)
                copy_tree(view, match, directory, owners=True)
            return
        os.chmod(directory, mount.mode)
        if mount.uid or mount.gid:
            try:
                os.chown(directory, mount.uid, mount.gid)
            except OSError as error:
                # An ordinary user can't give it away, or not to ids that aren't mapped (EINVAL); those who were meant to write to it
                # still shall.
                if error.errno not in (errno.EPERM, errno.EINVAL):
                    raise
                os.chmod(directory, mount.mode | 0o777)

    def _inside(self, directory: str, source: str) -> str:
        if not source.strip("/"):
            return directory
        view = LocalContext(directory)
        node = view.lookup(resolve(view.lookup, source))
        if node is None or node.host_path is None:
            raise SourceNotFound("/" + source.strip("/"))
        return node.host_path
