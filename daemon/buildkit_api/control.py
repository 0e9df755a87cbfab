"""moby.buildkit.v1.Control, except sessions: builds, their progress, usage and pruning of the cache, workers, the history of builds.

Turns calls into the engine's and values into messages. How a build is made up is ``builds.py``'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pybuild.errors import PybuildError

from .attributes import require_frontend
from .bridge import Bridge
from .build_errors import rpc_error
from .build_jobs import BuildJob, Wanted
from .builds import exports_of
from .capabilities import version, worker
from .messages import common_pb2, control_pb2, gateway_pb2
from .rpc import Code, Detail, RpcError
from .status_log import set_time

if TYPE_CHECKING:
    from pybuild.daemon.api_server import Daemon
    from pybuild.layers.usage import CacheUsage

    from .builds import Builds
    from .rpc import Services

_SERVICE: Final = "/moby.buildkit.v1.Control/"
_NANOSECONDS: Final = 1_000_000_000

Call = Any  # Any: a ServerCall of the method's messages


def register(services: Services, *, daemon: Daemon, builds: Builds) -> None:
    """Make the services of ``daemon`` answer; ``builds`` runs what they ask for."""
    Control(daemon, builds).register(services)
    Bridge(daemon, builds).register(services)


class Control:
    """The service of one daemon."""

    def __init__(self, daemon: Daemon, builds: Builds) -> None:
        self._daemon = daemon
        self._builds = builds

    def register(self, services: Services) -> None:
        services.unary(_SERVICE + "Info", control_pb2.InfoRequest, self.info)
        services.unary(_SERVICE + "ListWorkers", control_pb2.ListWorkersRequest, self.list_workers)
        services.unary(_SERVICE + "DiskUsage", control_pb2.DiskUsageRequest, self.disk_usage)
        services.server_stream(_SERVICE + "Prune", control_pb2.PruneRequest, self.prune)
        services.unary(_SERVICE + "Solve", control_pb2.SolveRequest, self.solve)
        services.server_stream(_SERVICE + "Status", control_pb2.StatusRequest, self.status)
        services.server_stream(_SERVICE + "ListenBuildHistory", control_pb2.BuildHistoryRequest, self.history)
        services.unary(_SERVICE + "UpdateBuildHistory", control_pb2.UpdateBuildHistoryRequest, self.update_history)

    async def info(self, request: control_pb2.InfoRequest, call: Call) -> control_pb2.InfoResponse:
        return control_pb2.InfoResponse(buildkit_version=version())

    async def list_workers(
        self, request: control_pb2.ListWorkersRequest, call: Call
    ) -> control_pb2.ListWorkersResponse:
        record = worker(self._daemon)
        wanted = [text.partition("==") for text in request.filter if text.startswith("id==")]
        shown = not wanted or any(value == record.id for _, _, value in wanted)
        return control_pb2.ListWorkersResponse(record=[record] if shown else [])

    # --- builds ------------------------------------------------------------------------------------------------------

    async def solve(self, request: control_pb2.SolveRequest, call: Call) -> control_pb2.SolveResponse:
        job = self._builds.jobs.begin(request)
        try:
            exports = exports_of(request)
            if request.HasField("source_policy") and request.source_policy.rules:
                raise PybuildError("source policies can't be sent over this API", hint="use pybuild -H")
            wanted = await self._wanted(job)
            if wanted is None:
                return control_pb2.SolveResponse()
            return control_pb2.SolveResponse(exporter_response=await self._builds.build(job, wanted, exports))
        except PybuildError as error:
            raise rpc_error(error, job.read) from error
        finally:
            job.cancel.set()
            self._builds.jobs.end(job)

    async def _wanted(self, job: BuildJob) -> Wanted | None:
        """The result that is to be exported; None if there is none, as after a question. Raises RpcError, PybuildError."""
        request = job.request
        if request.frontend:
            require_frontend(request.frontend, request.frontend_attrs)
            return job.want(request.frontend_attrs, inputs=request.frontend_inputs)
        if getattr(request.definition, "def"):
            require_frontend("", {})
        # The client drives the build, and says what its result is.
        returned = await job.returned
        if returned.HasField("error"):
            raise _their_error(returned.error)
        id = _ref_of(returned.result)
        return job.find(id) if id else None

    async def status(self, request: control_pb2.StatusRequest, call: Call) -> None:
        job = await self._builds.jobs.get(request.ref)
        async for status in job.log.follow():
            await call.send(status)

    async def history(self, request: control_pb2.BuildHistoryRequest, call: Call) -> None:
        """No builds are kept for this: who waits for one to begin or end waits as long as he likes."""
        if not request.early_exit:
            await asyncio.Event().wait()

    async def update_history(
        self, request: control_pb2.UpdateBuildHistoryRequest, call: Call
    ) -> control_pb2.UpdateBuildHistoryResponse:
        # Clients finalize every build, to read its record: there is nothing to be waited for.
        return control_pb2.UpdateBuildHistoryResponse()

    # --- the cache ---------------------------------------------------------------------------------------------------

    async def disk_usage(self, request: control_pb2.DiskUsageRequest, call: Call) -> control_pb2.DiskUsageResponse:
        from pybuild.layers.usage import UsageFilter

        filters = [UsageFilter.parse(text) for text in request.filter if text]
        usage = await self._daemon.work.call_long(self._daemon.engine.usage)
        rows = [row for row in usage.cache if not filters or any(each.matches(row) for each in filters)]
        return control_pb2.DiskUsageResponse(record=[_usage_record(row) for row in rows])

    async def prune(self, request: control_pb2.PruneRequest, call: Call) -> None:
        from pybuild.layers.gc import Collector, PrunePolicy
        from pybuild.layers.usage import UsageFilter

        policy = PrunePolicy(
            filters=tuple(UsageFilter.parse(text) for text in request.filter if text),
            keep_duration_seconds=request.keep_duration / _NANOSECONDS,
            max_used_bytes=request.max_used_space,
            reserved_bytes=request.reserved_space,
            min_free_bytes=request.min_free_space,
            all=request.all,
        )
        store = self._daemon.engine.store
        report = await self._daemon.work.call_long(lambda: Collector(store).prune(policy))
        self._daemon.events.report("builder", "prune", "", reclaimed=str(report.freed_bytes))
        for row in report.removed:
            await call.send(_usage_record(row))


def _ref_of(result: gateway_pb2.Result) -> str:
    match result.WhichOneof("result"):
        case "ref":
            return result.ref.id
        case "ref_deprecated":
            return result.ref_deprecated
        case "refs":
            return next((ref.id for _, ref in sorted(result.refs.refs.items()) if ref.id), "")
        case "refs_deprecated":
            return next((id for _, id in sorted(result.refs_deprecated.refs.items()) if id), "")
        case _:
            return ""


def _their_error(status: common_pb2.Status) -> RpcError:
    """What the client ended its build with, handed back to it."""
    try:
        code = Code(status.code)
    except ValueError:
        code = Code.UNKNOWN
    details = [Detail(each.type_url, each.value) for each in status.details]
    return RpcError(code if code is not Code.OK else Code.UNKNOWN, status.message, details=details)


def _usage_record(row: CacheUsage) -> control_pb2.UsageRecord:
    record = control_pb2.UsageRecord(
        id=row.id,
        mutable=row.mutable,
        in_use=row.in_use,
        size=row.size,
        usage_count=row.usage_count,
        description=row.description,
        record_type=row.type.value,
        shared=row.shared,
        parents=row.parents,
    )
    set_time(record.created_at, row.created)
    if row.last_used is not None:
        set_time(record.last_used_at, row.last_used)
    return record
