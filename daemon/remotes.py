"""Remote sources of builds: files over HTTP(S) and git trees, fetched once and kept under the store.

Owns the wiring of downloads and git behind ``builder.protocols.RemoteSources`` and what a build learned already, so that it asks a
server once. The work is done by ``registry_client.download`` and ``git.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pybuild.builder.contexts_archive import newest_file_time
from pybuild.builder.graph import GitSource, HttpSource
from pybuild.builder.protocols import HttpFile
from pybuild.layers.digest import Digest
from pybuild.registry_client.download import Downloader
from pybuild.registry_client.transport import Transport

from .git import GitRepositories, GitRevision
from .git_checkout import Checkout
from .git_command import GitCommand, GitSettings


class RemoteFetcher:
    """Satisfies ``RemoteSources``, and tells the times that SOURCE_DATE_EPOCH asks for. For one build; safe for several threads.

    ``directory``: kept between builds and shared by processes; ``secrets``: values by id, for HTTP_AUTH_… and GIT_AUTH_…;
    ``wall_clock``: seconds since the epoch; ``cancel`` ends git; ``on_progress`` gets (URL, bytes so far, total or 0).
    """

    def __init__(
        self,
        directory: Path,
        transport: Transport,
        *,
        wall_clock: Callable[[], float],
        git: GitSettings | None = None,
        secrets: Mapping[str, bytes] | None = None,
        cancel: threading.Event | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._downloader = Downloader(
            transport, directory / "http", wall_clock=wall_clock, secrets=secrets, on_progress=on_progress
        )
        self._repositories = GitRepositories(
            GitCommand(git or GitSettings(), secrets=secrets, cancel=cancel), directory / "git"
        )
        self._lock = threading.Lock()
        self._locks: dict[tuple[str, ...], threading.Lock] = {}
        self._files: dict[tuple[str, ...], HttpFile] = {}
        self._revisions: dict[tuple[str, ...], GitRevision] = {}

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def http(self, url: str, *, checksum: Digest | None) -> HttpFile:
        """See RemoteSources."""
        key = ("http", url, str(checksum or ""))
        with self._once(key):
            known = self._files.get(key)
            if known is None:
                found = self._downloader.fetch(url, checksum=checksum)
                known = self._files[key] = HttpFile(found.path, found.digest, found.filename, found.last_modified)
            return known

    def http_time(self, source: HttpSource) -> int | None:
        """Last-Modified, else the newest regular file of the archive that ``source`` is, in seconds; None if neither is known."""
        file = self.http(source.url, checksum=source.checksum)
        if file.last_modified is not None:
            return int(file.last_modified)
        with open(file.path, "rb") as stream:
            newest = newest_file_time(stream)
        return None if newest is None else int(newest)

    # --- git ---------------------------------------------------------------------------------------------------------

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        """See RemoteSources. ``checksum``: the beginning of the commit's id, or of its annotated tag's, that is expected."""
        revision = self._revision(remote, ref)
        revision.check(checksum)
        return revision.commit

    @contextmanager
    def git_tree(
        self, remote: str, *, commit: str, ref: str, subdir: str, keep_git_dir: bool, submodules: bool
    ) -> Iterator[str]:
        """See RemoteSources."""
        if keep_git_dir and ref != commit:
            revision = self._revision(remote, ref)
            ref = revision.ref if revision.commit == commit else ""
        checkout = Checkout(commit, ref=ref, subdir=subdir.strip("/"), keep_git_dir=keep_git_dir, submodules=submodules)
        with self._repositories.tree(remote, checkout) as path:
            yield path

    def git_commit_time(self, remote: str, commit: str) -> float:
        """The committer's time of a commit, in seconds since the epoch."""
        return self._repositories.commit_time(remote, commit)

    def git_time(self, source: GitSource) -> int | None:
        """The committer's time of the commit that ``source`` names, in seconds."""
        commit = source.commit or self.git_commit(source.remote, source.ref, checksum=source.checksum)
        return int(self._repositories.commit_time(source.remote, commit, ref=source.ref))

    # -----------------------------------------------------------------------------------------------------------------

    def prune(self, *, before: float, now: float) -> None:
        """Remove what no build has used since ``before``; both in seconds since the epoch."""
        self._downloader.prune(keep_seconds=now - before)
        self._repositories.prune(before=before)

    def _revision(self, remote: str, ref: str) -> GitRevision:
        key = ("git", remote, ref)
        with self._once(key):
            known = self._revisions.get(key)
            if known is None:
                known = self._revisions[key] = self._repositories.resolve(remote, ref)
            return known

    @contextmanager
    def _once(self, key: tuple[str, ...]) -> Iterator[None]:
        """One thread at a time per source: the others wait for its answer."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            yield
