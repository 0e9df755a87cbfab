"""One HTTP/2 connection over any asyncio transport, as server or as client: streams of headers and bytes, flow control, keep-alive.

The protocol itself is h2's; this owns the waiting and the limits. Knows nothing of messages. Whatever a peer sends ends at worst its own connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings

from pybuild.errors import PybuildError

from .rpc import Metadata

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113, section 3.4: how a client's connection begins."""

_STREAM_WINDOW_BYTES: Final = 4 << 20
_CONNECTION_WINDOW_BYTES: Final = 16 << 20
"""What a peer may send that nobody has read: the bound of what is held for it."""

_FRAME_BYTES: Final = 128 << 10
"""Fewer frames than of the least size that all must take: each costs the same, whatever it holds."""

_STREAMS: Final = 1024
_UNREAD_CONTROL_BYTES: Final = 4 << 20
"""A peer that makes us answer (pings, settings) without reading the answers is cut off."""

_SILENCE_SECONDS: Final = 60.0
"""After that long without a byte the peer is pinged; after as long again without an answer it counts as gone."""


class StreamFailed(PybuildError):
    """A stream can't go on: the peer reset it (``code``: RFC 9113, section 7), or the connection ended (``code`` is None)."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Http2Stream:
    """One stream. Reading and writing are for one task each. ``ended``: set when neither side can send any more."""

    def __init__(self, connection: Http2Connection, number: int) -> None:
        self._connection = connection
        self.number = number
        self.headers: Metadata | None = None
        self.trailers: Metadata | None = None
        self.failure: StreamFailed | None = None
        self.on_failure: Callable[[], None] | None = None
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._received_all = False
        self._sent_all = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def received_headers(self) -> Metadata:
        """The peer's headers, when they come. Raises StreamFailed."""
        while self.headers is None:
            self._raise_failure()
            if self._received_all:
                raise StreamFailed("the peer ended the stream without headers")
            await self._wait_readable()
        return self.headers

    async def read(self) -> bytes:
        """What has come, waiting for something; empty at the end. Gives the peer room for as much again. Raises StreamFailed."""
        while not self._chunks:
            if self._received_all:
                return b""
            self._raise_failure()
            await self._wait_readable()
        data, room = self._chunks.popleft()
        self._connection.give_room(self, room)
        return data

    async def _wait_readable(self) -> None:
        self._readable.clear()
        await self._readable.wait()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    # --- writing -----------------------------------------------------------------------------------------------------

    def send_headers(self, headers: Iterable[tuple[str, str]], *, end: bool = False) -> None:
        """Send headers, or trailers. Raises StreamFailed."""
        self._raise_failure()
        self._connection.send_headers(self, list(headers), end=end)
        self._sent(end)

    async def write(self, data: bytes | memoryview, *, end: bool = False) -> None:
        """Send bytes, waiting for the peer to make room. Raises StreamFailed."""
        view = memoryview(data)
        while True:
            self._raise_failure()
            if self._sent_all:
                raise StreamFailed("the peer has ended the stream")
            room = self._connection.room(self)
            if room or not view:
                self._connection.send_data(self, view[:room], end=end and len(view) <= room)
                view = view[room:]
                if not view:
                    self._sent(end)
                    return
                continue
            self._writable.clear()
            await self._writable.wait()

    def reset(self, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """Give the stream up, unless both sides are through already."""
        self._connection.reset(self, code)

    @property
    def is_over(self) -> bool:
        """Whether both sides have sent everything, or the stream failed."""
        return self.failure is not None or (self._received_all and self._sent_all)

    def _sent(self, end: bool) -> None:
        if end:
            self._sent_all = True
            self._connection.forget_if_over(self)

    # --- what the connection tells -----------------------------------------------------------------------------------

    def take(self, data: bytes, room: int) -> None:
        self._chunks.append((data, room))
        self._readable.set()

    def take_end(self) -> None:
        self._received_all = True
        self._readable.set()

    def fail(self, failure: StreamFailed) -> None:
        if self._received_all and failure.code is not None and self.on_failure is None:
            # All of the answer is there to be read: the peer only doesn't want more from us. A caller that resets has given the call up.
            self._sent_all = True
        elif not self.is_over:
            self.failure = failure
            if self.on_failure is not None:
                self.on_failure()
        self._readable.set()
        self._writable.set()

    def wake_writer(self) -> None:
        self._writable.set()

    def wake_reader(self) -> None:
        self._readable.set()

    def unread(self) -> int:
        """The room that was not given back for what nobody has read."""
        return sum(room for _, room in self._chunks)


class Http2Connection(asyncio.Protocol):
    """The connection. ``accept`` is called with each stream that the peer opens (it makes this side the server); without it this side is the client.
    ``closed`` is set when the connection has ended."""

    def __init__(self, *, accept: Callable[[Http2Stream], None] | None = None) -> None:
        self._accept = accept
        self._h2 = H2Connection(
            H2Configuration(client_side=accept is None, header_encoding=None, validate_outbound_headers=False)
        )
        self._streams: dict[int, Http2Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._can_write = True
        self._flushing = False
        self._unread_control = 0
        self._heard = self._loop.time()
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_ending = False
        self.closed = asyncio.Event()

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        is_client = self._accept is None
        values = {
            SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
            SettingCodes.MAX_CONCURRENT_STREAMS: _STREAMS,
            SettingCodes.MAX_FRAME_SIZE: _FRAME_BYTES,
        }
        if is_client:
            values[SettingCodes.ENABLE_PUSH] = 0
        self._h2.local_settings = Settings(client=is_client, initial_values=values)
        self._h2.max_inbound_frame_size = _FRAME_BYTES
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES - 65535)
        self._flush()
        self._timer = self._loop.call_later(_SILENCE_SECONDS, self._look)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._asked = False
        try:
            events = self._h2.receive_data(data)
        except ProtocolError as error:
            self._end(f"the peer broke the protocol: {error}")
            return
        for event in events:
            self._handle(event)
        self._flush_soon()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._fail_all("the connection ended")

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._unread_control = 0
        self._wake_writers()

    # --- for whoever has the connection ------------------------------------------------------------------------------

    def open(self, headers: Iterable[tuple[str, str]]) -> Http2Stream:
        """A new stream, as the client. Raises StreamFailed."""
        if self.closed.is_set() or self._is_ending:
            raise StreamFailed("the connection has ended")
        try:
            stream = Http2Stream(self, self._h2.get_next_available_stream_id())
            self._streams[stream.number] = stream
            self.send_headers(stream, list(headers), end=False)
        except H2Error as error:
            self._streams.pop(stream.number, None)
            raise StreamFailed(f"no stream can be opened: {error}") from error
        return stream

    def close(self) -> None:
        """Say good-bye and end it."""
        self._end("the connection was closed")

    # --- for streams -------------------------------------------------------------------------------------------------

    def send_headers(self, stream: Http2Stream, headers: list[tuple[str, str]], *, end: bool) -> None:
        self._checked(lambda: self._h2.send_headers(stream.number, headers, end_stream=end))

    def send_data(self, stream: Http2Stream, data: memoryview, *, end: bool) -> None:
        self._checked(lambda: self._h2.send_data(stream.number, bytes(data), end_stream=end))

    def room(self, stream: Http2Stream) -> int:
        """How many bytes can be sent on ``stream`` in one frame now."""
        if not self._can_write:
            return 0
        try:
            window = self._h2.local_flow_control_window(stream.number)
        except H2Error as error:
            raise StreamFailed("the stream has ended") from error
        return max(0, min(window, self._h2.max_outbound_frame_size))

    def give_room(self, stream: Http2Stream, room: int) -> None:
        if room and not self.closed.is_set():
            try:
                self._h2.acknowledge_received_data(room, stream.number)
            except H2Error:  # the stream ended meanwhile; h2 has counted the bytes for the connection
                pass
            self._flush_soon()

    def reset(self, stream: Http2Stream, code: ErrorCodes) -> None:
        if stream.is_over or self.closed.is_set():
            return
        self._give_back(stream)
        try:
            self._h2.reset_stream(stream.number, code)
        except H2Error:  # the peer was faster
            pass
        self._streams.pop(stream.number, None)
        stream.failure = StreamFailed("the stream was given up", code=code)
        stream.wake_reader()
        stream.wake_writer()
        self._flush_soon()

    def forget_if_over(self, stream: Http2Stream) -> None:
        if stream.is_over:
            self._streams.pop(stream.number, None)

    def _checked(self, send: Callable[[], None]) -> None:
        try:
            send()
        except H2Error as error:
            raise StreamFailed(f"nothing can be sent: {error}") from error
        self._flush_soon()

    # --- events ------------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        number = getattr(event, "stream_id", None)
        stream = self._streams.get(number) if number else None
        match event:
            case DataReceived():
                room = event.flow_controlled_length or 0
                if stream is None:
                    self._h2.acknowledge_received_data(room, event.stream_id)
                elif event.data:
                    stream.take(event.data, room)
                else:
                    self.give_room(stream, room)
            case RequestReceived():
                self._begin(event)
            case ResponseReceived() | TrailersReceived() if stream is not None:
                received = Metadata(_decoded(event.headers))
                if stream.headers is None:
                    stream.headers = received
                else:
                    stream.trailers = received
                stream.wake_reader()
            case StreamEnded() if stream is not None:
                stream.take_end()
                self.forget_if_over(stream)
            case StreamReset() if stream is not None:
                self._streams.pop(event.stream_id, None)
                self._give_back(stream)
                code = int(event.error_code or 0)
                stream.fail(StreamFailed(f"the peer ended the stream (code {code})", code=code))
            case WindowUpdated():
                if stream is not None:
                    stream.wake_writer()
                elif not event.stream_id:
                    self._wake_writers()
            case RemoteSettingsChanged():
                self._wake_writers()
            case ConnectionTerminated():
                self._terminated(event)
            case _:
                pass

    def _begin(self, event: RequestReceived) -> None:
        if self._accept is None or self._is_ending:
            return
        stream = Http2Stream(self, event.stream_id)
        stream.headers = Metadata(_decoded(event.headers))
        self._streams[stream.number] = stream
        self._accept(stream)

    def _terminated(self, event: ConnectionTerminated) -> None:
        """GOAWAY: streams up to ``last_stream_id`` may go on unless there was an error."""
        self._is_ending = True
        last = event.last_stream_id or 0
        if event.error_code or not self._streams:
            self._end("the peer ended the connection")
            return
        if self._accept is None:
            for stream in [each for each in self._streams.values() if each.number > last]:
                self._streams.pop(stream.number, None)
                stream.fail(StreamFailed("the peer ended the connection"))

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _give_back(self, stream: Http2Stream) -> None:
        """The connection's room for what a failed stream holds unread: it will never be read."""
        room = stream.unread()
        if room:
            try:
                self._h2.acknowledge_received_data(room, stream.number)
            except H2Error:
                pass

    def _wake_writers(self) -> None:
        for stream in list(self._streams.values()):
            stream.wake_writer()

    def _flush_soon(self) -> None:
        """Write what h2 has ready at the end of this round of the loop: many small frames become one write."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        data = self._h2.data_to_send()
        if not data or self._transport is None or self._transport.is_closing():
            return
        if not self._can_write:
            self._unread_control += len(data)
            if self._unread_control > _UNREAD_CONTROL_BYTES:
                self._transport.abort()
                return
        self._transport.write(data)

    def _look(self) -> None:
        """Notice a peer that has silently gone."""
        silent = self._loop.time() - self._heard
        if silent >= _SILENCE_SECONDS:
            if self._asked:
                if self._transport is not None:
                    self._transport.abort()
                return
            self._asked = True
            self._h2.ping(b"pybuild?")
            self._flush()
            silent = 0.0
        self._timer = self._loop.call_later(max(1.0, _SILENCE_SECONDS - silent), self._look)

    def _end(self, reason: str) -> None:
        if not self.closed.is_set():
            try:
                self._h2.close_connection()
            except H2Error:  # h2 has its own last words ready
                pass
            self._flush()
        if self._transport is not None:
            self._transport.close()
        self._fail_all(reason)

    def _fail_all(self, reason: str) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        if self._timer is not None:
            self._timer.cancel()
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.fail(StreamFailed(reason))


def _decoded(headers: Iterable[tuple[bytes, bytes]] | None) -> list[tuple[str, str]]:
    return [(name.decode("utf-8", "replace"), value.decode("utf-8", "replace")) for name, value in headers or ()]
