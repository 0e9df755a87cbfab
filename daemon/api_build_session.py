"""``POST /build?version=2``: what docker's CLI of 20.10 sends for a BuildKit build. Its files come by way of a session, progress goes out as BuildKit's
statuses in the stream's ``aux`` messages.

Owns reading the query into the frontend's attributes, and archives that come in a request of their own. What is built is ``buildkit_api``'s business.
"""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from pybuild.errors import PybuildError

from .api_errors import ApiError, BadParameter, message_of, stream_error

if TYPE_CHECKING:
    from pathlib import Path

    from .api_request import Parameters
    from .api_server import Daemon

_UPLOAD: Final = "upload-request"
_CLIENT: Final = "client-session"
_TRACE: Final = "moby.buildkit.trace"
_IMAGE: Final = "moby.image.id"
_UPLOAD_SECONDS: Final = 60.0
_PIECE: Final = 1 << 20


class SessionBuilds:
    """The builds of one daemon. ``uploads``: archives on their way, by build."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._uploads: dict[str, asyncio.Future[Path]] = {}

    async def build(self, request: web.Request, parameters: Parameters) -> web.StreamResponse:
        """Answer the request: a build's stream, or nothing to an archive."""
        identifier = parameters.text("buildid")
        if identifier.startswith(f"{_UPLOAD}:"):
            return await self._upload(request, identifier.removeprefix(f"{_UPLOAD}:"))
        from .buildkit_api.messages import control_pb2

        exporters = exporters_of(parameters)
        solve = control_pb2.SolveRequest(
            ref=identifier or uuid.uuid4().hex,
            session=parameters.text("session"),
            frontend="dockerfile.v0",
            frontend_attrs=attributes_of(parameters),
            exporters=[control_pb2.Exporter(type=kind, attrs=attributes) for kind, attributes in exporters],
            entitlements=["network.host"] if parameters.text("networkmode") == "host" else [],
        )
        return await self._stream(
            request, solve, uploaded=parameters.text("remote") == _UPLOAD, quiet=parameters.flag("q")
        )

    async def _stream(
        self, request: web.Request, solve: Any, *, uploaded: bool, quiet: bool
    ) -> web.StreamResponse:  # Any: a message
        builds = self._daemon.buildkit.builds
        job = builds.jobs.begin(solve)
        self._daemon.builds[job.ref] = job.cancel
        response = web.StreamResponse(headers={"Content-Type": "application/json"})

        async def send(value: Any) -> None:  # Any: the JSON edge
            await response.write(json.dumps(value, separators=(",", ":")).encode() + b"\r\n")

        running = asyncio.ensure_future(self._solve(job, uploaded=uploaded))
        try:
            await response.prepare(request)
            async for status in job.log.follow():
                if not quiet:
                    aux = base64.b64encode(status.SerializeToString()).decode("ascii")
                    await send({"id": _TRACE, "aux": aux})
            try:
                answer = await running
                image = answer.get("containerimage.config.digest") or answer.get("containerimage.digest")
                if image and quiet:
                    await send({"stream": f"{image}\n"})
                elif image:
                    await send({"id": _IMAGE, "aux": {"ID": image}})
            except PybuildError as error:
                await send(stream_error(message_of(error)))
            await response.write_eof()
            return response
        finally:
            job.cancel.set()
            self._daemon.builds.pop(job.ref, None)
            if not running.done():
                running.cancel()
                with suppress(asyncio.CancelledError, PybuildError):
                    await running

    async def _solve(self, job: Any, *, uploaded: bool) -> dict[str, str]:  # Any: a BuildJob, imported late
        from .buildkit_api.build_errors import rpc_error
        from .buildkit_api.builds import exports_of

        builds = self._daemon.buildkit.builds
        try:
            wanted = job.want(job.request.frontend_attrs)
            if uploaded:
                wanted.archive = await self._uploaded(job.ref)
            return await builds.build(job, wanted, exports_of(job.request))
        except PybuildError as error:
            raise rpc_error(error, job.read) from error
        finally:
            builds.jobs.end(job)

    # --- archives ----------------------------------------------------------------------------------------------------

    async def _upload(self, request: web.Request, identifier: str) -> web.StreamResponse:
        """Keep the archive until its build has ended with it: the two requests come in any order."""
        waiting = self._waiting(identifier)
        if waiting.done():
            raise ApiError(f"the archive of the build {identifier} has come already", status=409)
        try:
            with self._daemon.engine.store.active.make() as scratch:
                path = scratch / "context"
                with path.open("wb") as out:
                    async for data in request.content.iter_chunked(_PIECE):
                        out.write(data)
                waiting.set_result(path)
                with suppress(PybuildError):
                    job = await self._daemon.buildkit.builds.jobs.get(identifier, wait_seconds=_UPLOAD_SECONDS)
                    await job.over.wait()
        finally:
            self._uploads.pop(identifier, None)
        return web.Response(status=200)

    async def _uploaded(self, identifier: str) -> Path:
        try:
            return await asyncio.wait_for(asyncio.shield(self._waiting(identifier)), _UPLOAD_SECONDS)
        except TimeoutError:
            raise BadParameter("the build's archive has not come") from None

    def _waiting(self, identifier: str) -> asyncio.Future[Path]:
        if identifier not in self._uploads:
            self._uploads[identifier] = asyncio.get_running_loop().create_future()
        return self._uploads[identifier]


def attributes_of(parameters: Parameters) -> dict[str, str]:
    """The query as attributes of the Dockerfile frontend. Raises BadParameter."""
    found: dict[str, str] = {}
    for key, value in parameters.string_map("buildargs").items():
        if value is not None:
            found[f"build-arg:{key}"] = value
    for key, value in parameters.string_map("labels").items():
        found[f"label:{key}"] = value or ""
    for name, key in (("target", "target"), ("dockerfile", "filename"), ("cgroupparent", "cgroup-parent")):
        if parameters.text(name):
            found[key] = parameters.text(name)
    remote = parameters.text("remote")
    if remote not in ("", _CLIENT, _UPLOAD):
        found["context"] = remote
    if parameters.flag("nocache"):
        found["no-cache"] = ""
    found["image-resolve-mode"] = "pull" if parameters.flag("pull") else "local"
    platform = parameters.text("platform")
    if platform:
        found["platform"] = platform
    network = parameters.text("networkmode")
    if network in ("host", "none"):
        found["force-network-mode"] = network
    elif network not in ("", "default", "bridge"):
        raise BadParameter(f"network mode {network!r} not supported by buildkit")
    if parameters.number("shmsize") > 0:
        found["shm-size"] = str(parameters.number("shmsize"))
    hosts = [_host(text) for text in parameters.texts("extrahosts") if text]
    if hosts:
        found["add-hosts"] = ",".join(hosts)
    limits = parameters.json("ulimits")
    if limits:
        try:
            found["ulimit"] = ",".join(f"{each['Name']}={each['Soft']}:{each['Hard']}" for each in limits)
        except (TypeError, KeyError):
            raise BadParameter("error reading ulimits: Name, Soft and Hard are needed") from None
    sources = parameters.string_list("cachefrom")
    if sources:
        found["cache-from"] = ",".join(sources)
    return found


def exporters_of(parameters: Parameters) -> list[tuple[str, dict[str, str]]]:
    """The exporters: what ``outputs`` says, else the image store under the tags. Raises BadParameter."""
    given = parameters.json("outputs") or []
    names = ",".join(parameters.texts("t"))
    tags = {"name": names} if names else {}
    squash = {"squash": "true"} if parameters.flag("squash") else {}
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise BadParameter("error reading outputs: an array of objects is needed")
    if len(given) > 1:
        raise BadParameter("multiple outputs not supported")
    if not given or given[0].get("Type") in ("", "moby", "image"):
        attributes = {} if not given else {str(k): str(v) for k, v in (given[0].get("Attrs") or {}).items()}
        attributes.pop("type", None)
        return [("moby", {**tags, **squash, **attributes})]
    attributes = {str(name): str(value) for name, value in (given[0].get("Attrs") or {}).items()}
    kind = str(given[0]["Type"]) if "Type" in given[0] else ""
    return [] if kind == "cacheonly" else [(kind, {**attributes, **(tags if kind in ("oci", "docker") else {})})]


def _host(text: str) -> str:
    name, sign, address = text.partition(":")
    if not sign or not address:
        raise BadParameter(f"invalid host {text}")
    return f"{name}={'127.0.0.1' if address == 'host-gateway' else address}"
