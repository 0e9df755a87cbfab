"""gRPC's messages on a stream: a flag, four bytes of length, the message. Compresses nothing and refuses what is compressed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from .http2 import Http2Stream
from .rpc import Code, RpcError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")

MESSAGE_LIMIT_BYTES: Final = 64 << 20
"""BuildKit's own limit is 16 MiB; its clients send no more."""

_HEAD_BYTES: Final = 5


class Messages:
    """The messages of one stream. Receiving is for one task; sending for any number, each message stays whole."""

    def __init__(self, stream: Http2Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._position = 0
        self._sending = asyncio.Lock()

    async def receive(self, kind: type[M]) -> M | None:
        """The next message; None at the end. Raises RpcError, StreamFailed."""
        if not await self._have(_HEAD_BYTES):
            if len(self._buffer) > self._position:
                raise RpcError(Code.INTERNAL, "the stream ends within a message")
            return None
        head = self._buffer[self._position : self._position + _HEAD_BYTES]
        size = int.from_bytes(head[1:], "big")
        if head[0]:
            raise RpcError(Code.UNIMPLEMENTED, "compressed messages are not supported")
        if size > MESSAGE_LIMIT_BYTES:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is larger than the limit of {MESSAGE_LIMIT_BYTES}"
            )
        if not await self._have(_HEAD_BYTES + size):
            raise RpcError(Code.INTERNAL, "the stream ends within a message")
        begin = self._position + _HEAD_BYTES
        data = bytes(self._buffer[begin : begin + size])
        self._position = begin + size
        return _parsed(kind, data)

    async def send(self, message: Message, *, end: bool = False) -> None:
        """Send one message, waiting while the peer doesn't read. Raises StreamFailed."""
        data = message.SerializeToString()
        async with self._sending:
            await self._stream.write(b"\0" + len(data).to_bytes(4, "big") + data, end=end)

    async def _have(self, count: int) -> bool:
        """Wait until ``count`` bytes are there; False if the stream ends before."""
        while len(self._buffer) - self._position < count:
            data = await self._stream.read()
            if not data:
                return False
            if self._position:
                del self._buffer[: self._position]
                self._position = 0
            self._buffer += data
        return True


def _parsed(kind: type[M], data: bytes) -> M:
    from google.protobuf.message import DecodeError

    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RpcError(Code.INTERNAL, f"a message is not a valid {kind.__name__}") from error
    return message
