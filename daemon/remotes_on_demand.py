"""Remote sources for one build, made when the first one is asked for: most builds fetch nothing, and then import no HTTP client.

Delegates; decides nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.builder.graph import GitSource, HttpSource
from pybuild.builder.protocols import HttpFile
from pybuild.layers.digest import Digest

from .registries import Registries

if TYPE_CHECKING:
    from .remotes import RemoteFetcher


class RemotesOnDemand:
    """Satisfies the builder's ``ContextRemotes`` and ``EpochSource``. See ``RemoteFetcher`` for the parameters."""

    def __init__(
        self,
        directory: Path,
        registries: Registries,
        *,
        secrets: Mapping[str, bytes],
        cancel: threading.Event,
        ssh_socket: Callable[[], str | None] = lambda: None,
    ) -> None:
        """``ssh_socket``: the agent for repositories behind ssh, asked for with the first source."""
        self._directory = directory
        self._ssh_socket = ssh_socket
        self._registries = registries
        self._secrets = secrets
        self._cancel = cancel

    @cached_property
    def _fetcher(self) -> RemoteFetcher:
        from .git_command import GitSettings
        from .remotes import RemoteFetcher

        return RemoteFetcher(
            self._directory,
            self._registries.client.transport,
            wall_clock=time.time,
            git=GitSettings(environment=self._registries.variables, ssh_auth_sock=self._ssh_socket()),
            secrets=self._secrets,
            cancel=self._cancel,
        )

    def http(self, url: str, *, checksum: Digest | None) -> HttpFile:
        """See RemoteSources."""
        return self._fetcher.http(url, checksum=checksum)

    def http_time(self, source: HttpSource) -> int | None:
        """See EpochSource."""
        return self._fetcher.http_time(source)

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        """See RemoteSources."""
        return self._fetcher.git_commit(remote, ref, checksum=checksum)

    def git_tree(
        self, remote: str, *, commit: str, ref: str, subdir: str, keep_git_dir: bool, submodules: bool
    ) -> AbstractContextManager[str]:
        """See RemoteSources."""
        return self._fetcher.git_tree(
            remote, commit=commit, ref=ref, subdir=subdir, keep_git_dir=keep_git_dir, submodules=submodules
        )

    def git_commit_time(self, remote: str, commit: str) -> float:
        """See ContextRemotes."""
        return self._fetcher.git_commit_time(remote, commit)

    def git_time(self, source: GitSource) -> int | None:
        """See EpochSource."""
        return self._fetcher.git_time(source)
