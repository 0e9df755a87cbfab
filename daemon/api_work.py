"""Between the event loop and the engine's threads: blocking work runs in threads, its output reaches the client as it comes, the
client's body reaches the work as it is read, and a client that goes away cancels.

Memory stays flat: output waits when the client doesn't read, and bodies are never held. Knows nothing of what is worked on.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, Final, ParamSpec, TypeVar, cast

from aiohttp import web

from pybuild.errors import Cancelled, PybuildError

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader

P = ParamSpec("P")
T = TypeVar("T")

_OUTPUT_LIMIT_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 20
_QUICK_THREADS: Final = 8
_LONG_THREADS: Final = 64
"""Streams worked on at a time; more wait. Each thread keeps a connection to the database."""


class Output(io.RawIOBase):
    """What the work writes and the client gets. ``write`` may be called from any thread and waits while the client is slow; after the
    client has gone it raises Cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        self._chunks: list[bytes] = []
        self._waiting = 0
        self._closed = False
        self._wake = asyncio.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:  # Any: the buffer protocol, as RawIOBase has it
        chunk = bytes(data)
        with self._changed:
            while self._waiting > _OUTPUT_LIMIT_BYTES and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Cancelled
            self._waiting += len(chunk)
            self._chunks.append(chunk)
            first = len(self._chunks) == 1
        if first:
            self._loop.call_soon_threadsafe(self._wake.set)
        return len(chunk)

    def send(self, data: bytes) -> None:
        """``write`` for those who need no count."""
        self.write(data)

    def message(self, value: Mapping[str, Any]) -> None:  # Any: the JSON edge
        """Write one JSON message as docker does: an object and CR LF."""
        self.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\r\n")

    def abandon(self) -> None:
        """The client has gone: whoever writes is told."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify_all()

    def finish(self) -> None:
        """Wake the loop at the end of the work."""
        self._wake.set()

    async def take(self) -> bytes:
        """What was written since the last call, waiting for something; empty after ``finish``."""
        await self._wake.wait()
        with self._changed:
            self._wake.clear()
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._waiting = 0
            self._changed.notify_all()
        return data


class _Body(io.RawIOBase):
    """A request's body for a thread of the work."""

    def __init__(self, content: StreamReader, loop: asyncio.AbstractEventLoop, cancel: threading.Event) -> None:
        self._content = content
        self._loop = loop
        self._cancel = cancel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # Any: the buffer protocol, as RawIOBase has it
        if self._cancel.is_set():
            raise Cancelled
        future = asyncio.run_coroutine_threadsafe(self._content.read(len(buffer)), self._loop)
        try:
            data = future.result()
        except (Exception, asyncio.CancelledError) as error:
            # Whatever aiohttp says about a connection that broke in the middle of a body: the client has gone.
            self._cancel.set()
            raise Cancelled from error
        buffer[: len(data)] = data
        return len(data)


class Job:
    """What streaming work gets. ``body``: the request's, to be read once; ``output``: to the client; ``cancel``: set when the client
    goes away or the daemon stops."""

    __slots__ = ("body", "cancel", "output")

    def __init__(self, *, body: BinaryIO, output: Output, cancel: threading.Event) -> None:
        self.body = body
        self.output = output
        self.cancel = cancel


class Work:
    """Runs the engine's work for the event loop. ``ended``: how much of it has ended so far."""

    def __init__(self) -> None:
        self._quick = ThreadPoolExecutor(_QUICK_THREADS, thread_name_prefix="api")
        self._long = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="work")
        self._running: set[threading.Event] = set()
        self.ended = 0
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        """How many streams are worked on."""
        return len(self._running)

    async def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something short in a thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._quick, lambda: function(*args, **kwargs))
        finally:
            self.ended += 1

    async def call_long(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that may take its time (the network, the collector) in a thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._long, lambda: function(*args, **kwargs))
        finally:
            self.ended += 1

    async def stream(
        self,
        request: web.Request,
        produce: Callable[[Job], None],
        *,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        tell: Callable[[Job, PybuildError], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> web.StreamResponse:
        """Answer with what ``produce`` writes. The status line is sent with the first byte: an error before it is raised here, and becomes
        an answer with its own status; a later one is written by ``tell``, or breaks the connection off.
        """
        loop = asyncio.get_running_loop()
        cancel = cancel or threading.Event()
        output = Output(loop)
        body = cast(BinaryIO, io.BufferedReader(_Body(request.content, loop, cancel), _READ_BYTES))
        job = Job(body=body, output=output, cancel=cancel)
        response = web.StreamResponse(headers={"Content-Type": content_type, **(headers or {})})
        with self._lock:
            self._running.add(cancel)
        done: Future[None] = self._long.submit(produce, job)
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(output.finish))
        try:
            while True:
                data = await output.take()
                if not data and done.done():
                    break
                if data and not response.prepared:
                    await response.prepare(request)
                if data:
                    await response.write(data)
                if done.done():
                    output.finish()
            await self._conclude(done, job, response, request, tell)
        except (asyncio.CancelledError, ConnectionError):
            cancel.set()
            output.abandon()
            # The work's own clean-up (mounts, processes, leases) is waited for: the next request must not find half of it.
            await asyncio.shield(_ended(done))
            raise
        finally:
            with self._lock:
                self._running.discard(cancel)
                self.ended += 1
        return response

    async def _conclude(
        self,
        done: Future[None],
        job: Job,
        response: web.StreamResponse,
        request: web.Request,
        tell: Callable[[Job, PybuildError], None] | None,
    ) -> None:
        error = done.exception()
        if error is None:
            if not response.prepared:
                await response.prepare(request)
            await response.write_eof()
            return
        if not response.prepared:
            raise error
        if tell is None or not isinstance(error, PybuildError):
            # Half of an archive must not look like a whole one.
            if request.transport is not None:
                request.transport.abort()
            raise error
        tell(job, error)
        await response.write(await job.output.take())
        await response.write_eof()

    def cancel_all(self) -> None:
        """Tell all streaming work to end."""
        with self._lock:
            for cancel in self._running:
                cancel.set()

    def close(self) -> None:
        """Wait for the threads."""
        self._quick.shutdown(wait=True, cancel_futures=True)
        self._long.shutdown(wait=True, cancel_futures=True)


async def _ended(done: Future[None]) -> None:
    try:
        await asyncio.wrap_future(done)
    except BaseException:  # the client has gone: nobody is left to be told
        return
