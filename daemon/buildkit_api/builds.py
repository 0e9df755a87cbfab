"""Builds for clients of BuildKit's API: brings what the client has, builds with the engine, sends what it gets.

The same engine and the same request as for every other build. Knows no methods of the API: ``control.py`` and ``bridge.py`` do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pybuild.builder.outputs import Output, OutputType
from pybuild.daemon.machine import host_platform
from pybuild.errors import Cancelled, PybuildError
from pybuild.values import dataclass, replace

from . import subrequests
from .attributes import build_request, cache_imports, remote_context, sources_of
from .build_errors import rpc_error
from .build_jobs import BuildJob, BuildJobs, Wanted
from .client_caches import Cache, ClientCaches, require_kinds
from .client_contexts import ClientContexts
from .client_outputs import ClientOutput, client_outputs, exporter_response, send_outputs
from .rpc import Code, RpcError
from .session_blocking import SessionAgents, SessionCredentials, SessionSecrets

if TYPE_CHECKING:
    from pybuild.builder.build import BuildResult
    from pybuild.builder.progress import Progress
    from pybuild.builder.protocols import ResolvedImage
    from pybuild.builder.request import BuildRequest
    from pybuild.daemon.api_server import Daemon
    from pybuild.daemon.remotes_on_demand import RemotesOnDemand

    from .graph_sources import GraphSource, SourceFiles
    from .messages import common_pb2, control_pb2
    from .sessions import Session, Sessions

T = TypeVar("T")
_REMOTES: Final = "remotes"


@dataclass(frozen=True, slots=True)
class Exports:
    """What becomes of a result: exporters and caches, by kind with their attributes."""

    exporters: tuple[tuple[str, Mapping[str, str]], ...] = ()
    cache_to: tuple[Cache, ...] = ()
    cache_from: tuple[Cache, ...] = ()


def exports_of(request: control_pb2.SolveRequest) -> Exports:
    """What a request says of it, in the forms of all versions. Raises PybuildError."""
    exporters = [(each.type, dict(each.attrs)) for each in request.exporters]
    if not exporters and request.exporter_deprecated:
        exporters = [(request.exporter_deprecated, dict(request.exporter_attrs_deprecated))]
    targets = [(each.type, dict(each.attrs)) for each in request.cache.exports]
    if request.cache.export_ref_deprecated:
        targets.append(
            ("registry", {**request.cache.export_attrs_deprecated, "ref": request.cache.export_ref_deprecated})
        )
    sources = [(each.type, dict(each.attrs)) for each in request.cache.imports]
    sources += [("registry", {"ref": ref}) for ref in request.cache.import_refs_deprecated]
    require_kinds(targets, word="exporter")
    require_kinds(sources, word="importer")
    return Exports(tuple(exporters), tuple(targets), tuple(sources))


class Builds:
    """Runs the builds of one daemon."""

    def __init__(self, daemon: Daemon, sessions: Sessions) -> None:
        self._daemon = daemon
        self._sessions = sessions
        self.jobs = BuildJobs()

    async def build(self, job: BuildJob, wanted: Wanted, exports: Exports) -> dict[str, str]:
        """Build and export; the answer of the exporters. Raises RpcError."""
        session = await self._session(job)
        async with AsyncExitStack() as stack:
            scratch = await stack.enter_async_context(self._scratch())
            try:
                outputs = client_outputs(exports.exporters, scratch=scratch)
                caches = ClientCaches(session, scratch)
                request = await self._request(
                    job, wanted, session, stack, scratch=scratch, exports=exports, caches=caches
                )
                request = replace(request, outputs=_outputs(outputs), squash=_squash(exports))
                result = await self._run(job, request, session, scratch=scratch, progress=job.log)
                self._report(result, request)
                response = exporter_response(result.metadata)
                await send_outputs(outputs, session, response=response)
                await caches.send()
            except (PybuildError, OSError) as error:
                raise _told(error, job) from error
        return response

    async def layout(self, job: BuildJob, wanted: Wanted) -> tuple[Path, str]:
        """The result as an OCI layout of this machine, held until ``job`` ends, and its digest: made once. Raises RpcError."""
        if wanted.layout is None:
            wanted.layout = asyncio.ensure_future(self._layout(job, wanted))
        return await asyncio.shield(wanted.layout)

    async def _layout(self, job: BuildJob, wanted: Wanted) -> tuple[Path, str]:
        session = await self._session(job)
        place = job.directory(self._daemon.engine.store.active.make)
        async with AsyncExitStack() as stack:
            scratch = await stack.enter_async_context(self._scratch())
            try:
                request = await self._request(
                    job,
                    wanted,
                    session,
                    stack,
                    scratch=scratch,
                    exports=Exports(),
                    caches=ClientCaches(session, scratch),
                )
                root = place / f"result-{wanted.id}"
                output = Output(type=OutputType.OCI, dest=str(root), tar=False, compression="uncompressed")
                request = replace(request, outputs=(output,), provenance=None, sbom=None)
                result = await self._run(job, request, session, scratch=scratch, progress=job.log)
            except (PybuildError, OSError) as error:
                raise _told(error, job) from error
        return root, str(result.metadata["containerimage.digest"])

    async def answer(self, job: BuildJob, name: str, wanted: Wanted) -> Mapping[str, bytes]:
        """The answer to a question about the Dockerfile. Raises RpcError."""
        subrequests.require_known(name)
        if name == subrequests.DESCRIBE:
            return subrequests.describe()
        session = await self._session(job)
        async with AsyncExitStack() as stack:
            scratch = await stack.enter_async_context(self._scratch())
            try:
                request = await self._request(
                    job,
                    wanted,
                    session,
                    stack,
                    scratch=scratch,
                    exports=Exports(),
                    caches=ClientCaches(session, scratch),
                    files=False,
                )
                return await self._threaded(job, session, lambda: self._answer(name, request, job, scratch))
            except (PybuildError, OSError) as error:
                raise _told(error, job) from error

    async def look(self, job: BuildJob, source: GraphSource, ask: Callable[[SourceFiles], T]) -> T:
        """What ``ask`` finds in a source. Raises RpcError."""
        session = await self._session(job)
        store = self._daemon.engine.store

        def work() -> T:
            with (
                store.lease(),
                store.active.make() as scratch,
                source.opened(self._remotes(job), scratch=scratch) as files,
            ):
                return ask(files)

        try:
            return await self._threaded(job, session, work)
        except (PybuildError, OSError) as error:
            raise _told(error, job) from error

    async def resolve(
        self, job: BuildJob, reference: str, *, platform: common_pb2.Platform, pull: bool
    ) -> ResolvedImage:
        """What a client's reference to an image is. Raises RpcError."""
        from pybuild.builder.platforms import parse_platform
        from pybuild.daemon.image_source import StoreImageSource
        from pybuild.layers.references import Reference

        session = await self._session(job)
        loop = asyncio.get_running_loop()
        text = "/".join(name for name in (platform.os, platform.architecture, platform.variant) if name)
        machine = host_platform()

        def work() -> ResolvedImage:
            wanted = parse_platform(text, default=machine) if text else machine
            # Not as it came: a layout's path would be one of this machine.
            name = Reference.parse(reference).canonical
            with self._daemon.engine.acting_for(SessionCredentials(session, loop)) as engine, engine.store.lease():
                images = StoreImageSource(
                    engine.store,
                    engine.snapshots,
                    engine.registries,
                    lazy=engine.lazy_layers(cancel=job.cancel),
                    cancel=job.cancel,
                )
                return images.resolve(name, platform=wanted, pull=pull)

        try:
            return await self._threaded(job, session, work)
        except (PybuildError, OSError) as error:
            raise _told(error, job) from error

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """A directory for as long as the context lasts. What is in it then may be a whole image: threads remove it."""
        made = self._daemon.engine.store.active.make()
        path = await asyncio.to_thread(made.__enter__)
        try:
            yield path
        finally:
            await asyncio.to_thread(made.__exit__, None, None, None)

    # --- what a build is made of -------------------------------------------------------------------------------------

    async def _session(self, job: BuildJob) -> Session:
        if not job.request.session:
            raise RpcError(Code.INVALID_ARGUMENT, "the build has no session")
        return await self._sessions.get(job.request.session)

    async def _request(
        self,
        job: BuildJob,
        wanted: Wanted,
        session: Session,
        stack: AsyncExitStack,
        *,
        scratch: Path,
        exports: Exports,
        caches: ClientCaches,
        files: bool = True,
    ) -> BuildRequest:
        """The request with everything that the client has, on this machine."""
        named_caches = exports.cache_from or wanted.cache_from or tuple(cache_imports(wanted.attributes))
        sources = sources_of(wanted.attributes, inputs=wanted.inputs, archive=wanted.archive is not None)
        request = build_request(
            wanted.attributes,
            machine=host_platform(),
            entitlements=tuple(job.request.entitlements),
            cache_from=await caches.sources(named_caches) if files else (),
            cache_to=caches.targets(exports.cache_to),
        )
        contexts = ClientContexts(
            self._sessions,
            session,
            sources,
            self._daemon.engine.store.root / _REMOTES,
            scratch,
            job.cancel,
            wanted.archive,
        )
        request = await contexts.bring(request, stack, files=files)
        if not files:
            return request
        named = dict(request.named_contexts)
        for context, name in sources.inputs.items():
            if context not in wanted.contexts:
                wanted.contexts[context] = await self._input(job, wanted, context, name)
            named[context] = wanted.contexts[context]
        return replace(request, named_contexts=named)

    async def _input(self, job: BuildJob, wanted: Wanted, context: str, name: str) -> str:
        """A context that is the result of another build, or a repository that the client described as a graph."""
        text = wanted.attributes.get(f"input:git_state_{context}") or wanted.attributes.get(f"input:context:{context}")
        if text:
            return remote_context(text)
        found = self.jobs.result_of(wanted.inputs[name]) if name in wanted.inputs else None
        if found is None:
            raise PybuildError(
                f"the context {context} is a graph of low-level operations (LLB), which can't be built",
                hint="give a directory, an image or a repository",
            )
        # The other build may end before this one does.
        job.use(found[0])
        root, digest = await self.layout(*found)
        return f"oci-layout://{root}@{digest}"

    # --- the engine's part -------------------------------------------------------------------------------------------

    async def _run(
        self, job: BuildJob, request: BuildRequest, session: Session, *, scratch: Path, progress: Progress
    ) -> BuildResult:
        loop = asyncio.get_running_loop()

        def work() -> BuildResult:
            agents = SessionAgents(session, loop, directory=scratch)
            try:
                with self._daemon.engine.acting_for(SessionCredentials(session, loop)) as engine:
                    return engine.build(
                        replace(request, secret_values=SessionSecrets(session, loop), agents=agents),
                        progress=progress,
                        cancel=job.cancel,
                        on_dockerfile=job.dockerfile,
                    )
            finally:
                agents.close()

        metrics, started, outcome = self._daemon.metrics, time.monotonic(), "failed"
        try:
            result = await self._threaded(job, session, work)
            outcome = "done"
            return result
        except Cancelled:
            outcome = "cancelled"
            raise
        finally:
            metrics.add("pybuild_builds_total", help="builds by outcome", outcome=outcome)
            metrics.observe(
                "pybuild_build_seconds", time.monotonic() - started, help="how long builds took", outcome=outcome
            )

    async def _threaded(self, job: BuildJob, session: Session, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread. Its clean-up is waited for, whatever happens; a caller or a session that goes away ends it. Raises Cancelled and what
        the work raises."""
        running = asyncio.ensure_future(self._daemon.work.call_long(work))
        gone = asyncio.ensure_future(session.ended.wait())
        try:
            await asyncio.wait((running, gone), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                job.cancel.set()
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            job.cancel.set()
            await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()  # the caller has gone: nobody is left to be told
            raise
        finally:
            gone.cancel()

    def _answer(self, name: str, request: BuildRequest, job: BuildJob, scratch: Path) -> Mapping[str, bytes]:
        engine = self._daemon.engine
        return subrequests.answer(name, request, engine=engine, remotes=self._remotes(job), scratch=scratch)

    def _remotes(self, job: BuildJob) -> RemotesOnDemand:
        from pybuild.daemon.remotes_on_demand import RemotesOnDemand

        engine = self._daemon.engine
        return RemotesOnDemand(engine.store.root / _REMOTES, engine.registries, secrets={}, cancel=job.cancel)

    def _report(self, result: BuildResult, request: BuildRequest) -> None:
        """Events, as for docker's other clients."""
        kept = [output for output in result.outputs if output.type is OutputType.IMAGE and output.store]
        if not kept or not result.image_id:
            return
        from pybuild.layers.references import Reference

        events = self._daemon.events
        events.report("image", "create", result.image_id, name=result.image_id)
        for output in kept:
            for name in output.names:
                familiar = Reference.parse(name).with_default_tag().familiar
                events.report("image", "tag", result.image_id, name=familiar)


def _outputs(outputs: Sequence[ClientOutput]) -> tuple[Output, ...]:
    return tuple(each.output for each in outputs) or (Output(type=OutputType.CACHE_ONLY),)


def _squash(exports: Exports) -> bool:
    return any(attributes.get("squash", "") in ("1", "true") for _, attributes in exports.exporters)


def _told(error: PybuildError | OSError, job: BuildJob) -> RpcError:
    if isinstance(error, OSError):
        return RpcError(Code.UNKNOWN, str(error))
    if job.cancel.is_set():
        error = Cancelled()
    return rpc_error(error, job.read)
