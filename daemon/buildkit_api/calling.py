"""Connections whose peer's services we call: one request and response, or streams of both. Never retries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import unquote

from h2.errors import ErrorCodes

from .framing import Messages
from .http2 import Http2Connection, Http2Stream, StreamFailed
from .messages import common_pb2
from .rpc import Code, Detail, Metadata, RpcError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    Q = TypeVar("Q", bound=Message)
    R = TypeVar("R", bound=Message)
else:
    Q, R = TypeVar("Q"), TypeVar("R")

_PSEUDO_HEADERS: Final = ((":method", "POST"), (":scheme", "http"), (":authority", "localhost"))
_HEADERS: Final = (("te", "trailers"), ("content-type", "application/grpc"))
_CODES_OF_RESETS: Final = {
    int(ErrorCodes.CANCEL): Code.CANCELLED,
    int(ErrorCodes.REFUSED_STREAM): Code.UNAVAILABLE,
    int(ErrorCodes.ENHANCE_YOUR_CALM): Code.RESOURCE_EXHAUSTED,
}


class ClientCall(Generic[Q, R]):
    """A call under way. A context manager: leaving it before the end cancels the call."""

    def __init__(self, stream: Http2Stream, response: type[R], path: str) -> None:
        self._stream = stream
        self._response = response
        self._path = path
        self._messages = Messages(stream)
        self._is_sending = True

    async def __aenter__(self) -> ClientCall[Q, R]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.reset()

    async def send(self, message: Q, *, end: bool = False) -> None:
        """Send a message, the last one with ``end``. Raises RpcError."""
        try:
            await self._messages.send(message, end=end)
        except StreamFailed as error:
            # The peer has ended the call early: its status says why.
            raise await self._status_instead(error) from error
        self._is_sending = not end

    async def finish_sending(self) -> None:
        """There are no more messages from us. What is wrong with the call, ``receive`` tells."""
        if self._is_sending:
            self._is_sending = False
            with suppress(StreamFailed):
                await self._stream.write(b"", end=True)

    async def receive(self) -> R | None:
        """The peer's next message; None when it has ended the call with status OK. Raises RpcError: any other status, or the connection ended."""
        try:
            headers = await self._stream.received_headers()
            if headers.first(":status") != "200":
                raise RpcError(Code.UNAVAILABLE, f"the client answered {self._path} with {headers.first(':status')}")
            message = await self._messages.receive(self._response)
        except StreamFailed as error:
            raise self._error(error) from error
        if message is None:
            self._check(self._stream.trailers or headers)
        return message

    async def _status_instead(self, failure: StreamFailed) -> RpcError:
        try:
            async with asyncio.timeout(5):
                while await self.receive() is not None:
                    pass
        except RpcError as error:
            return error
        except TimeoutError:
            pass
        return self._error(failure)

    def _error(self, failure: StreamFailed) -> RpcError:
        code = Code.UNAVAILABLE if failure.code is None else _CODES_OF_RESETS.get(failure.code, Code.INTERNAL)
        return RpcError(code, f"the client went away in {self._path}: {failure.message}")

    def _check(self, trailers: Metadata) -> None:
        text = trailers.first("grpc-status", "2")
        number = int(text) if text.isascii() and text.isdecimal() else 2
        if number == 0:
            return
        code = Code(number) if number in list(Code) else Code.UNKNOWN
        message = (
            unquote(trailers.first("grpc-message"), errors="replace") or f"{self._path} failed: {code.name.lower()}"
        )
        raise RpcError(code, message, details=_details(trailers.binary("grpc-status-details-bin")))


def _details(data: bytes) -> tuple[Detail, ...]:
    from google.protobuf.message import DecodeError

    try:
        status = common_pb2.Status.FromString(data)
    except DecodeError:
        return ()
    return tuple(Detail(detail.type_url, detail.value) for detail in status.details)


class Channel:
    """A connection as its client."""

    def __init__(self, connection: Http2Connection) -> None:
        self.connection = connection

    def stream(self, path: str, response: type[R], *, metadata: Iterable[tuple[str, str]] = ()) -> ClientCall[Q, R]:
        """Begin a call. Raises RpcError."""
        try:
            opened = self.connection.open([*_PSEUDO_HEADERS, (":path", path), *_HEADERS, *metadata])
        except StreamFailed as error:
            raise RpcError(Code.UNAVAILABLE, f"the client has gone: {error.message}") from error
        return ClientCall(opened, response, path)

    async def unary(
        self,
        path: str,
        request: Message,
        *,
        response: type[R],
        metadata: Iterable[tuple[str, str]] = (),
        timeout_seconds: float | None = None,
    ) -> R:
        """One request, one response. Raises RpcError."""
        opened: ClientCall[Message, R]
        try:
            async with asyncio.timeout(timeout_seconds):
                opened = self.stream(path, response, metadata=metadata)
                async with opened as call:
                    await call.send(request, end=True)
                    found = await call.receive()
                    if found is None:
                        raise RpcError(Code.INTERNAL, f"the client answered {path} with nothing")
                    await call.receive()
                    return found
        except TimeoutError as error:
            raise RpcError(Code.DEADLINE_EXCEEDED, f"the client didn't answer {path} in time") from error
