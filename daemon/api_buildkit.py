"""Where BuildKit's clients come in: ``/grpc`` and ``/session``, each upgraded from HTTP/1.1, and connections that begin with HTTP/2 right away.

Owns telling the two kinds of connection apart and handing them over. What is answered is ``buildkit_api``'s business, which is imported with the first such
connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final

from aiohttp import web

from pybuild.errors import PybuildError

from .api_errors import ApiError

if TYPE_CHECKING:
    from .api_server import Daemon, Router
    from .buildkit_api.builds import Builds
    from .buildkit_api.messages import session_pb2
    from .buildkit_api.rpc import ServerCall
    from .buildkit_api.serving import Server
    from .buildkit_api.sessions import Sessions

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SWITCH: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


class Buildkit:
    """BuildKit's side of one daemon: made whole when it is first needed."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @cached_property
    def sessions(self) -> Sessions:
        """The open sessions."""
        from .buildkit_api.sessions import Sessions

        return Sessions()

    @cached_property
    def builds(self) -> Builds:
        """The builds of its clients."""
        from .buildkit_api.builds import Builds

        return Builds(self._daemon, self.sessions)

    @cached_property
    def server(self) -> Server:
        """The services, for any number of connections."""
        from .buildkit_api.control import register
        from .buildkit_api.messages import session_pb2
        from .buildkit_api.rpc import Services
        from .buildkit_api.serving import Server

        services = Services()
        services.stream("/moby.buildkit.v1.Control/Session", session_pb2.BytesMessage, self._session_in_a_call)
        register(services, daemon=self._daemon, builds=self.builds)
        return Server(services)

    async def _session_in_a_call(self, call: ServerCall[session_pb2.BytesMessage, session_pb2.BytesMessage]) -> None:
        """Control.Session: the call's messages are the bytes of a connection, on which we are the client."""
        from .buildkit_api.messages import session_pb2
        from .buildkit_api.tunnel import run_tunnel

        async def receive() -> bytes | None:
            message = await call.receive()
            return None if message is None else message.data

        async def send(data: bytes) -> None:
            await call.send(session_pb2.BytesMessage(data=data))

        session = self.sessions.begin(call.metadata)
        try:
            await run_tunnel(session.channel.connection, receive=receive, send=send)
        finally:
            self.sessions.end(session)

    def connection(self) -> asyncio.Protocol:
        """For one more connection whose client calls our services."""
        return self.server.connection()

    def close(self) -> None:
        """End every connection and session."""
        if "server" in self.__dict__:
            self.server.close()
        if "sessions" in self.__dict__:
            self.sessions.close()


class BuildkitRoutes:
    """The endpoints of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def register(self, router: Router) -> None:
        router.add("POST", "/grpc", self.grpc)
        router.add("POST", "/session", self.session)

    async def grpc(self, request: web.Request) -> web.StreamResponse:
        """We are the server."""
        _require_upgrade(request)
        return await _switched(request, self._daemon.buildkit.connection())

    async def session(self, request: web.Request) -> web.StreamResponse:
        """The client is the server."""
        _require_upgrade(request)
        from .buildkit_api.rpc import Metadata

        sessions = self._daemon.buildkit.sessions
        try:
            session = sessions.begin(Metadata(request.headers.items()))
        except PybuildError as error:
            raise ApiError(error.message, status=400) from error
        try:
            return await _switched(request, session.channel.connection)
        finally:
            sessions.end(session)


def _require_upgrade(request: web.Request) -> None:
    if request.headers.get("Upgrade", "").lower() != "h2c" or request.transport is None:
        raise ApiError("this endpoint needs a connection that is upgraded to h2c", status=400)


class _Switched(web.StreamResponse):
    """What aiohttp gets to see of a connection that is not its own any more."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


async def _switched(request: web.Request, protocol: asyncio.Protocol) -> web.StreamResponse:
    """Hand the request's connection over to ``protocol``, and wait for its end."""
    transport, before, task = request.transport, request.protocol, asyncio.current_task()
    assert transport is not None  # checked before
    assert task is not None
    loop = asyncio.get_running_loop()
    # aiohttp hears of the end when it is through with the request: earlier, and it would cancel this.
    task.add_done_callback(lambda _: loop.call_soon(before.connection_lost, None))
    watched = _Watched(protocol)
    transport.write(_SWITCH)
    transport.set_protocol(watched)
    protocol.connection_made(transport)
    try:
        await watched.lost.wait()
    finally:
        transport.close()
    response = _Switched(status=101)
    response.force_close()
    return response


class _Watched(asyncio.Protocol):
    """Passes everything on, and tells of the end."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
        self.lost.set()


class FirstBytes(asyncio.Protocol):
    """Waits for a connection's first bytes, and hands it to whom they are for: HTTP/2 to ``http2()``, everything else to ``http1()``."""

    def __init__(self, *, http1: Callable[[], asyncio.Protocol], http2: Callable[[], asyncio.Protocol]) -> None:
        self._http1 = http1
        self._http2 = http2
        self._transport: asyncio.Transport | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._data += data
        if len(self._data) < len(_PREFACE) and _PREFACE.startswith(self._data):
            return
        protocol = (self._http2 if self._data.startswith(_PREFACE) else self._http1)()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._data)
