"""``POST /pybuild/call/{method}``: what ``pybuild -H`` uses. One line of JSON with the arguments, then what belongs to them; frames come back.

Reads and writes while the other side does the same: a build's context is asked for in the middle of the call. What calls do is
``remote_calls.py``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Final

from aiohttp import web

from pybuild import __version__
from pybuild.errors import Cancelled, PybuildError

from .api_errors import ApiError
from .api_own_names import CONTENT_TYPE
from .api_request import registry_credentials
from .api_work import Job
from .channels import CallChannels, Channels
from .remote_calls import METHODS, Call
from .wire import WireError, decode, dumps, error_payload, frame

if TYPE_CHECKING:
    from .api_server import Daemon, Router


_ARGUMENTS_LIMIT: Final = 512 << 20
"""A list of some million paths."""
_CHANNEL_BYTES: Final = 64 << 10


class OwnRoutes:
    """The endpoint of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._channels = Channels()

    def register(self, router: Router) -> None:
        router.add("POST", "/pybuild/call/{method}", self.call)
        router.add("POST", "/pybuild/channel/{token}", self.channel)

    async def channel(self, request: web.Request) -> web.StreamResponse:
        """A client comes for a channel of a call of its own: whoever knows the token."""
        far = self._channels.claim(request.match_info["token"])
        if far is None:
            raise ApiError("no call waits for this channel", status=404)
        reader, writer = await asyncio.open_unix_connection(sock=far)
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        await response.prepare(request)

        async def inwards() -> None:
            with contextlib.suppress(OSError):
                while data := await request.content.readany():
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()

        task = asyncio.create_task(inwards())
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHANNEL_BYTES):
                    await response.write(data)
                await response.write_eof()
        finally:
            task.cancel()
            writer.close()
        response.force_close()
        return response

    async def call(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        client = request.headers.get("User-Agent", "")
        if client.startswith("pybuild/") and client != f"pybuild/{__version__}":
            # What is sent are the engine's own values, and those change from version to version.
            raise ApiError(
                f"the client is {client.replace('/', ' ')[:40]} and this daemon pybuild {__version__}: calls need the same version on both sides",
                status=400,
            )
        function = METHODS.get(method)
        if function is None:
            raise ApiError(
                f"this daemon knows no call {method!r}", status=404, hint="are both sides of the same version?"
            )
        credentials = registry_credentials(request)

        def work(job: Job) -> None:
            try:
                with (
                    self._daemon.engine.acting_for(credentials) as engine,
                    CallChannels(self._channels, job.output.send) as channels,
                ):
                    call = Call(
                        engine=engine,
                        arguments=_arguments(job),
                        body=job.body,
                        send=job.output.send,
                        cancel=job.cancel,
                        channels=channels,
                    )
                    result = function(call)
                self._tell(method, call, result)
                job.output.send(frame(b"R", dumps(result)))
            except Cancelled:
                raise
            except PybuildError as error:
                job.output.send(frame(b"X", error_payload(error)))

        return await self._daemon.work.stream(request, work, content_type=CONTENT_TYPE)

    def _tell(self, method: str, call: Call, result: object) -> None:
        """Events and figures, as for docker's clients."""
        events, arguments = self._daemon.events, call.arguments
        self._daemon.metrics.add(
            "pybuild_context_bytes_total",
            call.context_bytes,
            help="bytes of build contexts that clients of our own sent",
        )
        match method:
            case "build":
                self._daemon.metrics.add("pybuild_builds_total", help="builds by outcome", outcome="done")
                identifier = getattr(result, "image_id", None)
                if identifier:
                    events.report("image", "create", identifier, name=identifier)
                    for tag in arguments["request"].tags:
                        events.report("image", "tag", identifier, name=tag)
            case "pull" | "push":
                events.report("image", method, arguments["name"], name=arguments["name"])
            case "tag":
                events.report("image", "tag", arguments["source"], name=arguments["target"])
            case "remove_image":
                for name in getattr(result, "untagged", ()):
                    events.report("image", "untag", name, name=name)
                for digest in getattr(result, "deleted", ()):
                    events.report("image", "delete", str(digest), name=str(digest))
            case "load_images" | "import_image" | "prune" | "prune_images":
                words = {"load_images": "load", "import_image": "import"}
                events.report("builder" if method == "prune" else "image", words.get(method, "prune"), "")
            case _:
                pass


def _arguments(job: Job) -> dict[str, object]:
    line = job.body.readline(_ARGUMENTS_LIMIT)
    if not line.endswith(b"\n"):
        raise WireError("a call without arguments, or with too many")
    try:
        value = decode(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise WireError("the arguments of a call are not valid JSON") from error
    if not isinstance(value, dict):
        raise WireError("the arguments of a call must be names with values")
    return value
