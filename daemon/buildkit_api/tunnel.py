"""A connection inside a stream of messages: Control.Session, through which a client that has one gRPC connection offers its session.

Owns the transport that the inner connection writes to. Understands nothing of what goes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from .http2 import Http2Connection

_HIGH_WATER_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 32 << 10
"""What docker's and BuildKit's own ends of such a stream send and expect at a time."""


class TunnelTransport(asyncio.Transport):
    """Keeps what is written until ``pump`` sends it; tells the protocol to wait when that is much."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._buffer = bytearray()
        self._changed = asyncio.Event()
        self._closing = False
        self._paused = False

    def write(self, data: Any) -> None:  # Any: the buffer protocol
        if self._closing:
            return
        self._buffer += data
        self._changed.set()
        if len(self._buffer) > _HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._changed.set()

    def abort(self) -> None:
        self._buffer.clear()
        self.close()

    async def pump(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send what is written until the transport is closed."""
        while True:
            while self._buffer:
                data = bytes(self._buffer[:_PIECE_BYTES])
                del self._buffer[:_PIECE_BYTES]
                await send(data)
                if self._paused and len(self._buffer) <= _HIGH_WATER_BYTES // 2:
                    self._paused = False
                    self._protocol.resume_writing()
            if self._closing:
                return
            self._changed.clear()
            await self._changed.wait()


async def run_tunnel(
    protocol: Http2Connection,
    *,
    receive: Callable[[], Awaitable[bytes | None]],
    send: Callable[[bytes], Awaitable[None]],
) -> None:
    """Let ``protocol`` talk through ``receive`` (None: the end) and ``send`` until either side ends it."""
    transport = TunnelTransport(protocol)
    protocol.connection_made(transport)

    async def incoming() -> None:
        while not transport.is_closing():
            data = await receive()
            if data is None:
                return
            protocol.data_received(data)

    tasks = [asyncio.ensure_future(incoming()), asyncio.ensure_future(transport.pump(send))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        transport.close()
        protocol.connection_lost(None)
        for task in tasks:
            task.cancel()
            # What broke the outer stream is told by the outer stream.
            with suppress(BaseException):
                await task
