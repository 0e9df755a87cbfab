"""The builds that run for clients of BuildKit's API, by the reference that the client made up, and the results that it has asked for in each.

Builds nothing: keeps what several calls of one client have to find.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Final

from pybuild.values import dataclass, field

from .messages import common_pb2, control_pb2, gateway_pb2
from .rpc import Code, RpcError
from .status_log import StatusLog

if TYPE_CHECKING:
    from pathlib import Path

    from pybuild.parser import Dockerfile

    from .graph_sources import GraphSource

_KEPT_SECONDS: Final = 30.0
"""How long the progress of a build can still be asked for after its end."""

_RESULT: Final = "pybuild-result://"


@dataclass(slots=True, eq=False)
class Wanted:
    """A result that a client has asked for, to be built when it is needed. ``inputs``: results of other builds by name; ``source``: the source,
    when that is all there is; ``archive``: the context, when it
    has come already; ``layout``: the image as an OCI layout with its digest, once another build needs it; ``contexts``: results of other
    builds that it has found."""

    id: str
    attributes: Mapping[str, str]
    cache_from: tuple[tuple[str, Mapping[str, str]], ...] = ()
    inputs: Mapping[str, common_pb2.Definition] = field(default_factory=dict)
    source: GraphSource | None = None
    archive: Path | None = None
    layout: asyncio.Task[tuple[Path, str]] | None = None
    contexts: dict[str, str] = field(default_factory=dict)


class BuildJob:
    """One build. ``returned``: what the client that drives it by itself ends with; ``cancel``: ends its work;
    ``over``: set at its end."""

    def __init__(self, request: control_pb2.SolveRequest, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.ref = request.ref
        self.log = StatusLog(loop)
        self.cancel = threading.Event()
        self.over = asyncio.Event()
        self.returned: asyncio.Future[gateway_pb2.ReturnRequest] = loop.create_future()
        self.wanted: dict[str, Wanted] = {}
        self.read: Dockerfile | None = None
        self._held = ExitStack()
        self._users = 1
        self._directory: Path | None = None

    def directory(self, make: Callable[[], AbstractContextManager[Path]]) -> Path:
        """A directory that lasts as long as the build."""
        if self._directory is None:
            self._directory = self._held.enter_context(make())
        return self._directory

    def use(self, other: BuildJob) -> None:
        """What ``other`` has made is needed until this build ends."""
        other._users += 1
        self._held.callback(other._leave)

    def close(self) -> None:
        """The build is over."""
        self.over.set()
        self.log.finish()
        self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._held.close()

    def dockerfile(self, dockerfile: Dockerfile) -> None:
        """The build has read its Dockerfile."""
        self.read = dockerfile
        self.log.dockerfile(dockerfile)

    def want(
        self,
        attributes: Mapping[str, str],
        *,
        cache_from: tuple[tuple[str, Mapping[str, str]], ...] = (),
        inputs: Mapping[str, common_pb2.Definition] | None = None,
        source: GraphSource | None = None,
    ) -> Wanted:
        """Note a result under a new identifier."""
        wanted = Wanted(uuid.uuid4().hex, dict(attributes), cache_from, dict(inputs or {}), source)
        self.wanted[wanted.id] = wanted
        return wanted

    def find(self, id: str) -> Wanted:
        """The result ``id``. Raises RpcError."""
        found = self.wanted.get(id)
        if found is None:
            raise RpcError(Code.NOT_FOUND, f"no such result: {id}")
        return found

    def definition(self, wanted: Wanted) -> common_pb2.Definition:
        """The result as a graph: clients pass it on as an input of another build, and look at no more than its form."""
        source = common_pb2.Op()
        source.source.identifier = f"{_RESULT}{self.ref}/{wanted.id}"
        first = source.SerializeToString(deterministic=True)
        last = common_pb2.Op()
        from pybuild.layers.digest import Digest

        last.inputs.add(digest=str(Digest.of(first)))
        definition = common_pb2.Definition()
        getattr(definition, "def").extend([first, last.SerializeToString(deterministic=True)])
        # To clients a graph without metadata is none.
        definition.metadata[last.inputs[0].digest].SetInParent()
        return definition


class BuildJobs:
    """All builds of a daemon."""

    def __init__(self) -> None:
        self._jobs: dict[str, BuildJob] = {}
        self._changed = asyncio.Event()

    @property
    def all(self) -> tuple[BuildJob, ...]:
        return tuple(self._jobs.values())

    def begin(self, request: control_pb2.SolveRequest) -> BuildJob:
        """A new build. Raises RpcError."""
        if not request.ref or request.ref in self._jobs:
            raise RpcError(
                Code.ALREADY_EXISTS if request.ref else Code.INVALID_ARGUMENT, f"build {request.ref!r} exists"
            )
        job = BuildJob(request, asyncio.get_running_loop())
        self._jobs[request.ref] = job
        self._changed.set()
        self._changed = asyncio.Event()
        return job

    def end(self, job: BuildJob) -> None:
        """The build is over; who asks soon still learns how it went."""
        job.close()
        asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._jobs.pop, job.ref, None)

    async def get(self, ref: str, *, wait_seconds: float = 10.0) -> BuildJob:
        """The build ``ref``: calls of one client may overtake each other. Raises RpcError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_seconds
        while ref not in self._jobs:
            rest = until - loop.time()
            if rest <= 0:
                raise RpcError(Code.NOT_FOUND, f"no such job {ref}")
            try:
                await asyncio.wait_for(self._changed.wait(), rest)
            except TimeoutError:
                continue
        return self._jobs[ref]

    def result_of(self, definition: common_pb2.Definition) -> tuple[BuildJob, Wanted] | None:
        """The result that a graph passed on stands for; None if it is some other graph. Raises RpcError."""
        for operation in operations(definition):
            identifier = operation.source.identifier
            if identifier.startswith(_RESULT):
                ref, _, id = identifier.removeprefix(_RESULT).partition("/")
                job = self._jobs.get(ref)
                if job is None:
                    raise RpcError(Code.NOT_FOUND, f"no such job {ref}")
                return job, job.find(id)
        return None


def operations(definition: common_pb2.Definition) -> list[common_pb2.Op]:
    """The operations of a graph. Raises RpcError."""
    from google.protobuf.message import DecodeError

    try:
        return [common_pb2.Op.FromString(data) for data in getattr(definition, "def")]
    except DecodeError:
        raise RpcError(Code.INVALID_ARGUMENT, "the graph can't be understood") from None
