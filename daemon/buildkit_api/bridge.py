"""moby.buildkit.v1.frontend.LLBBridge: what clients ask in the middle of a build that they drive by themselves. Only the Dockerfile frontend is there
to be asked; graphs of their own and containers are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pybuild.errors import PybuildError

from .attributes import missing_capabilities, require_frontend, subrequest_of
from .build_errors import rpc_error, unsupported_capability
from .build_jobs import BuildJob, Wanted
from .capabilities import FRONTEND_CAPS, LLB_CAPS, capabilities, worker
from .graph_sources import GO_DIRECTORY, GraphSource
from .messages import files_pb2, gateway_pb2
from .rpc import Code, RpcError

if TYPE_CHECKING:
    from pybuild.daemon.api_server import Daemon

    from .builds import Builds
    from .rpc import ServerCall, Services

_SERVICE: Final = "/moby.buildkit.v1.frontend.LLBBridge/"
_BUILD_ID: Final = "buildkit-controlapi-buildid"

Call = Any  # Any: a ServerCall of the method's messages


class Bridge:
    """The service of one daemon."""

    def __init__(self, daemon: Daemon, builds: Builds) -> None:
        self._daemon = daemon
        self._builds = builds

    def register(self, services: Services) -> None:
        unary = services.unary
        unary(_SERVICE + "Ping", gateway_pb2.PingRequest, self.ping)
        unary(_SERVICE + "Solve", gateway_pb2.SolveRequest, self.solve)
        unary(_SERVICE + "Evaluate", gateway_pb2.EvaluateRequest, self.evaluate)
        unary(_SERVICE + "Return", gateway_pb2.ReturnRequest, self.finish)
        unary(_SERVICE + "Inputs", gateway_pb2.InputsRequest, self.inputs)
        unary(_SERVICE + "ReadFile", gateway_pb2.ReadFileRequest, self.read_file)
        unary(_SERVICE + "StatFile", gateway_pb2.StatFileRequest, self.stat_file)
        unary(_SERVICE + "ReadDir", gateway_pb2.ReadDirRequest, self.read_dir)
        unary(_SERVICE + "ResolveImageConfig", gateway_pb2.ResolveImageConfigRequest, self.resolve_image)
        unary(_SERVICE + "ResolveSourceMeta", gateway_pb2.ResolveSourceMetaRequest, self.resolve_source)
        unary(_SERVICE + "Warn", gateway_pb2.WarnRequest, self.warn)

    async def ping(self, request: gateway_pb2.PingRequest, call: Call) -> gateway_pb2.PongResponse:
        await self._job(call)
        return gateway_pb2.PongResponse(
            frontend_api_caps=capabilities(FRONTEND_CAPS),
            llb_caps=capabilities(LLB_CAPS),
            workers=[worker(self._daemon)],
        )

    async def solve(self, request: gateway_pb2.SolveRequest, call: Call) -> gateway_pb2.SolveResponse:
        job = await self._job(call)
        try:
            if not request.frontend and getattr(request.definition, "def"):
                wanted = job.want({}, source=GraphSource.of(request.definition))
                return _result(job, wanted)
            require_frontend(request.frontend, request.frontend_opt)
            for name in missing_capabilities(request.frontend_opt):
                raise unsupported_capability(name)
            wanted = job.want(
                request.frontend_opt,
                cache_from=tuple((each.type, dict(each.attrs)) for each in request.cache_imports),
                inputs=request.frontend_inputs,
            )
        except PybuildError as error:
            raise rpc_error(error, None) from error
        question = subrequest_of(request.frontend_opt)
        if question is not None:
            answer = await self._builds.answer(job, question.name, wanted)
            return gateway_pb2.SolveResponse(result=gateway_pb2.Result(metadata=answer))
        if request.evaluate:
            await self._builds.layout(job, wanted)
        return _result(job, wanted)

    async def evaluate(self, request: gateway_pb2.EvaluateRequest, call: Call) -> gateway_pb2.EvaluateResponse:
        job = await self._job(call)
        await self._builds.layout(job, job.find(request.ref))
        return gateway_pb2.EvaluateResponse()

    async def finish(self, request: gateway_pb2.ReturnRequest, call: Call) -> gateway_pb2.ReturnResponse:
        job = await self._job(call)
        if not job.returned.done():
            job.returned.set_result(request)
        return gateway_pb2.ReturnResponse()

    async def inputs(self, request: gateway_pb2.InputsRequest, call: Call) -> gateway_pb2.InputsResponse:
        job = await self._job(call)
        return gateway_pb2.InputsResponse(definitions=job.request.frontend_inputs)

    async def read_file(self, request: gateway_pb2.ReadFileRequest, call: Call) -> gateway_pb2.ReadFileResponse:
        job = await self._job(call)
        offset, length = request.range.offset, request.range.length
        data = await self._builds.look(
            job, _source(job, request.ref), lambda files: files.read(request.file_path, offset=offset, length=length)
        )
        return gateway_pb2.ReadFileResponse(data=data)

    async def stat_file(self, request: gateway_pb2.StatFileRequest, call: Call) -> gateway_pb2.StatFileResponse:
        job = await self._job(call)
        wanted = job.find(request.ref)
        if wanted.source is None and request.path.strip("/") in ("", "."):
            # How older clients have a result made: they ask for its root.
            await self._builds.layout(job, wanted)
            return gateway_pb2.StatFileResponse(stat=files_pb2.Stat(path=b"/", mode=GO_DIRECTORY | 0o755))
        found = await self._builds.look(job, _source(job, request.ref), lambda files: files.describe(request.path))
        return gateway_pb2.StatFileResponse(stat=found)

    async def read_dir(self, request: gateway_pb2.ReadDirRequest, call: Call) -> gateway_pb2.ReadDirResponse:
        job = await self._job(call)
        found = await self._builds.look(job, _source(job, request.ref), lambda files: files.names(request.dir_path))
        return gateway_pb2.ReadDirResponse(entries=found)

    async def resolve_image(
        self, request: gateway_pb2.ResolveImageConfigRequest, call: Call
    ) -> gateway_pb2.ResolveImageConfigResponse:
        job = await self._job(call)
        found = await self._builds.resolve(
            job, request.ref, platform=request.platform, pull=request.resolve_mode == "pull"
        )
        return gateway_pb2.ResolveImageConfigResponse(
            digest=str(found.index), config=found.config.to_bytes(), ref=found.reference
        )

    async def resolve_source(
        self, request: gateway_pb2.ResolveSourceMetaRequest, call: Call
    ) -> gateway_pb2.ResolveSourceMetaResponse:
        job = await self._job(call)
        response = gateway_pb2.ResolveSourceMetaResponse(source=request.source)
        scheme, _, name = request.source.identifier.partition("://")
        if scheme == "docker-image":
            found = await self._builds.resolve(
                job, name, platform=request.platform, pull=request.resolve_mode == "pull"
            )
            response.image.digest = str(found.index)
            if not request.image.no_config:
                response.image.config = found.config.to_bytes()
        return response

    async def warn(self, request: gateway_pb2.WarnRequest, call: Call) -> gateway_pb2.WarnResponse:
        return gateway_pb2.WarnResponse()

    async def _job(self, call: ServerCall[Any, Any]) -> BuildJob:  # Any: of every method's messages
        ref = call.metadata.first(_BUILD_ID)
        if not ref:
            raise RpcError(Code.INVALID_ARGUMENT, "the call names no build")
        return await self._builds.jobs.get(ref)


def _result(job: BuildJob, wanted: Wanted) -> gateway_pb2.SolveResponse:
    ref = gateway_pb2.Ref(id=wanted.id, **_definition(job.definition(wanted)))
    return gateway_pb2.SolveResponse(result=gateway_pb2.Result(ref=ref))


def _definition(value: Any) -> Mapping[str, Any]:  # Any: a message; ``def`` is a keyword
    return {"def": value}


def _source(job: BuildJob, id: str) -> GraphSource:
    found = job.find(id).source
    if found is None:
        raise RpcError(Code.UNIMPLEMENTED, "files of a result can't be read while it is built")
    return found
