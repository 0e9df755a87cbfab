"""Connections whose peer calls our services: a task for each call, statuses for all that goes wrong. Owns no service but the health check."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

from h2.errors import ErrorCodes

from pybuild.errors import Cancelled, PybuildError

from .framing import Messages
from .http2 import Http2Connection, Http2Stream, StreamFailed
from .messages import common_pb2, health_pb2
from .rpc import Code, Metadata, Method, RpcError, ServerCall, Services

LOG: Final = logging.getLogger("pybuild.daemon")
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])\Z")
_UNIT_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_MESSAGE: Final = 16384
"""Of a status, in a header that clients limit."""


class _Call:
    """One call: a ServerCall."""

    def __init__(self, stream: Http2Stream, path: str, metadata: Metadata, request: Any) -> None:
        self.path = path
        self.metadata = metadata
        self._stream = stream
        self._messages = Messages(stream)
        self._request = request  # Any: a class of messages
        self._begun = False

    async def receive(self) -> Any:  # Any: a message of the method's type
        return await self._messages.receive(self._request)

    async def send(self, message: Any, /) -> None:
        self._begin()
        await self._messages.send(message)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._stream.send_headers([(":status", "200"), ("content-type", "application/grpc")])

    @property
    def has_failed(self) -> bool:
        """Whether the caller can't be told anything any more."""
        return self._stream.failure is not None

    def finish(self, error: RpcError | None) -> None:
        """Send the status. Raises StreamFailed."""
        headers = [] if self._begun else [(":status", "200"), ("content-type", "application/grpc")]
        code, message = (Code.OK, "") if error is None else (error.code, error.message)
        headers.append(("grpc-status", str(int(code))))
        if message:
            headers.append(("grpc-message", quote(message[:_LONGEST_MESSAGE], safe=" !#$&'()*+,/:;<=>?@[]^`{|}~\"\\")))
        if error is not None and error.details:
            headers.append(("grpc-status-details-bin", _details(error)))
        self._stream.send_headers(headers, end=True)


def _details(error: RpcError) -> str:
    status = common_pb2.Status(code=int(error.code), message=error.message)
    for detail in error.details:
        status.details.add(type_url=detail.type_url, value=detail.value)
    return base64.b64encode(status.SerializeToString()).decode("ascii").rstrip("=")


class Server:
    """Serves ``services`` on any number of connections."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._connections: set[Http2Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: set[_Call] = set()
        services.unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, self._health)

    def connection(self) -> Http2Connection:
        """The protocol for one more connection."""
        self._connections = {each for each in self._connections if not each.closed.is_set()}
        made = Http2Connection(accept=self._accept)
        self._connections.add(made)
        return made

    def close(self) -> None:
        """End every connection; their calls are cancelled, and the callers told why."""
        for call in list(self._calls):
            with suppress(StreamFailed):
                call.finish(RpcError(Code.UNAVAILABLE, "the daemon is stopping"))
        for task in list(self._tasks):
            task.cancel()
        for connection in self._connections:
            connection.close()

    async def _health(
        self,
        request: health_pb2.HealthCheckRequest,
        call: ServerCall[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        known = {path.split("/")[1] for path in self._services.methods}
        if request.service and request.service not in known:
            raise RpcError(Code.NOT_FOUND, f"there is no service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def _accept(self, stream: Http2Stream) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        stream.on_failure = _canceller(task)

    async def _serve(self, stream: Http2Stream) -> None:
        headers = stream.headers or Metadata()
        try:
            if not headers.first("content-type").startswith("application/grpc"):
                # A browser or curl: it gets an answer that it understands.
                stream.send_headers([(":status", "415")], end=True)
                return
            path = headers.first(":path")
            method = self._services.methods.get(path)
            call = _Call(stream, path, headers, None if method is None else method.request)
            self._calls.add(call)
            try:
                call.finish(await self._outcome(call, method, _timeout(headers)))
            finally:
                self._calls.discard(call)
        except StreamFailed:  # nobody is left to be told
            return
        finally:
            # A caller that is still sending is told that nobody reads.
            stream.reset(ErrorCodes.NO_ERROR)

    async def _outcome(self, call: _Call, method: Method | None, timeout: float | None) -> RpcError | None:
        try:
            if method is None:
                service, _, name = call.path.strip("/").rpartition("/")
                return RpcError(Code.UNIMPLEMENTED, f"unknown method {name} for service {service}")
            async with asyncio.timeout(timeout):
                await method.handler(call)
        except RpcError as error:
            return error
        except TimeoutError:
            return RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        except StreamFailed as error:
            if call.has_failed:
                raise
            # Of another connection.
            return RpcError(Code.UNAVAILABLE, error.message)
        except Cancelled as error:
            return RpcError(Code.CANCELLED, error.message)
        except PybuildError as error:
            return RpcError(Code.UNKNOWN, error.message)
        except Exception as error:
            LOG.exception("internal error", extra={"path": call.path})
            return RpcError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}")
        return None


def _canceller(task: asyncio.Task[None]) -> Callable[[], None]:
    def cancel() -> None:
        task.cancel()

    return cancel


def _timeout(headers: Metadata) -> float | None:
    found = _TIMEOUT.match(headers.first("grpc-timeout"))
    return int(found[1]) * _UNIT_SECONDS[found[2]] if found else None
