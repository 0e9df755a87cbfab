"""Agents for a build, made when a build asks for one: most have none, and then load neither keys nor servers. Delegates to ``ssh_agent.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pybuild.builder.protocols import Snapshots
from pybuild.builder.request import SshSource


class SshSockets:
    """Satisfies the builder's ``SshAgents``; sockets lie in scratch directories of the store. ``served``: those that there are now, by
    id."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self.served: Mapping[str, str] = {}

    @contextmanager
    def serve(self, sources: Sequence[SshSource]) -> Iterator[Mapping[str, str]]:
        """See SshAgents."""
        from .ssh_agent import serve_agents

        with self._snapshots.scratch() as directory, serve_agents(sources, directory) as sockets:
            self.served = sockets
            try:
                yield sockets
            finally:
                self.served = {}
