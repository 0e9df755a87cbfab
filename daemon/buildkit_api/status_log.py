"""The progress of one build as BuildKit's stream of statuses: vertexes, statuses, logs, warnings.

Owns the mapping from our events and what late readers still get to see. Sends nothing: readers follow.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from pybuild.builder.progress import BuildWarning, Event, StepDone, StepLog, StepProgress, StepStarted

from .messages import control_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from pybuild.parser import Dockerfile

_KEPT_LOG_BYTES: Final = 32 << 20
"""Of output of a build. What readers have read makes place for more; otherwise new output is left out: no client holds up a build."""

_CLIPPED: Final = b"\n[output clipped: it comes faster than it is read]\n"

_READ_AT_ONCE: Final = 64
_DOCKERFILE_STEP: Final = "[internal] load build definition from "


class StatusMapping:
    """Turns events into statuses. ``dockerfile``: the file that warnings show lines of, once it is known."""

    def __init__(self) -> None:
        self.dockerfile: Dockerfile | None = None
        self._vertexes: dict[str, StepStarted] = {}
        self._counted: dict[tuple[str, str], float] = {}
        self._definition = ""

    @property
    def unfinished(self) -> tuple[StepStarted, ...]:
        """The steps that have begun and not ended."""
        return tuple(self._vertexes.values())

    def status(self, event: Event) -> control_pb2.StatusResponse:
        """What a client is told of ``event``."""
        out = control_pb2.StatusResponse()
        match event:
            case StepStarted():
                self._vertexes[event.step] = event
                if event.title.startswith(_DOCKERFILE_STEP):
                    self._definition = event.step
                self._vertex(out, event)
            case StepDone():
                started = self._vertexes.pop(event.step, None) or StepStarted(event.step, "", event.time)
                vertex = self._vertex(out, started)
                set_time(vertex.completed, event.time)
                vertex.cached = event.cached
                vertex.error = event.error or ""
            case StepLog():
                out.logs.add(vertex=event.step, stream=event.stream, msg=event.data)
                set_time(out.logs[0].timestamp, event.time)
            case StepProgress():
                self._count(out, event)
            case BuildWarning():
                self._warning(out, event)
        return out

    def _vertex(self, out: control_pb2.StatusResponse, event: StepStarted) -> control_pb2.Vertex:
        vertex = out.vertexes.add(digest=event.step, name=printable(event.title), inputs=event.inputs)
        set_time(vertex.started, event.time)
        return vertex

    def _count(self, out: control_pb2.StatusResponse, event: StepProgress) -> None:
        key = (event.step, event.id)
        started = self._counted.setdefault(key, event.time)
        # What a transfer comes to isn't known before its end: BuildKit gives no total, and clients then show one number.
        total = 0 if event.id.startswith("transferring ") else event.total
        status = out.statuses.add(id=printable(event.id), vertex=event.step, current=event.current, total=total)
        set_time(status.timestamp, event.time)
        set_time(status.started, started)
        if event.done:
            set_time(status.completed, event.time)
            del self._counted[key]

    def _warning(self, out: control_pb2.StatusResponse, event: BuildWarning) -> None:
        text = f"{event.rule}: {event.message}" if event.rule else event.message
        if event.lines is not None:
            # As the linter of BuildKit writes it: clients show this text as it is.
            text += f" (line {event.lines[0]})"
        warning = out.warnings.add(
            vertex=event.step or self._definition, level=1, short=text.encode("utf-8", "replace"), url=event.url
        )
        if event.detail:
            warning.detail.append(event.detail.encode("utf-8", "replace"))
        if event.lines is not None:
            place = warning.ranges.add()
            place.start.line, place.end.line = event.lines
        if self.dockerfile is not None:
            warning.info.filename = printable(self.dockerfile.filename)
            warning.info.data = self.dockerfile.text.encode("utf-8", "surrogateescape")
            warning.info.language = "Dockerfile"


class StatusLog:
    """A Progress that keeps statuses for readers on the event loop ``loop``. Thread-safe."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._mapping = StatusMapping()
        self._kept: list[control_pb2.StatusResponse | None] = []  # None: output that was forgotten
        self._looked_at = 0  # up to here ``_kept`` has no output that can be forgotten
        self._log_bytes = 0
        self._clipped: set[str] = set()
        self._readers: list[_Reader] = []
        self._finished = False

    def dockerfile(self, dockerfile: Dockerfile) -> None:
        """The build has read its Dockerfile."""
        with self._lock:
            self._mapping.dockerfile = dockerfile

    def emit(self, event: Event) -> None:
        """See Progress."""
        with self._lock:
            if self._finished:
                return
            if isinstance(event, StepLog):
                if not self._has_room(len(event.data)):
                    self._clipped.add(event.step)
                    return
                self._log_bytes += len(event.data)
            if isinstance(event, (StepLog, StepDone)) and event.step in self._clipped:
                self._clipped.discard(event.step)
                self._kept.append(self._mapping.status(StepLog(event.step, 1, _CLIPPED, event.time)))
            self._kept.append(self._mapping.status(event))
        self._wake()

    def _has_room(self, size: int) -> bool:
        """Whether there is room for so much output, forgetting the oldest that every reader has."""
        if self._log_bytes + size <= _KEPT_LOG_BYTES:
            return True
        read_by_all = min((reader.position for reader in self._readers), default=0)
        while self._looked_at < read_by_all and self._log_bytes > _KEPT_LOG_BYTES // 2:
            status = self._kept[self._looked_at]
            if status is not None and status.logs:
                self._log_bytes -= sum(len(log.msg) for log in status.logs)
                self._kept[self._looked_at] = None
            self._looked_at += 1
        return self._log_bytes + size <= _KEPT_LOG_BYTES

    def finish(self) -> None:
        """The build is over: readers come to their end."""
        with self._lock:
            self._finished = True
        self._wake()

    def _wake(self) -> None:
        def wake() -> None:
            for reader in self._readers:
                reader.wake.set()

        try:
            self._loop.call_soon_threadsafe(wake)
        except RuntimeError:
            return  # the daemon has stopped: nobody reads

    async def follow(self) -> AsyncIterator[control_pb2.StatusResponse]:
        """Every status that is kept, from the first one on, until the build is over."""
        reader = _Reader()
        with self._lock:
            self._readers.append(reader)
        try:
            while True:
                with self._lock:
                    new, finished = self._kept[reader.position : reader.position + _READ_AT_ONCE], self._finished
                for status in new:
                    if status is not None:
                        yield status
                    reader.position += 1
                if new:
                    continue
                if finished:
                    return
                await reader.wake.wait()
                reader.wake.clear()
        finally:
            with self._lock:
                self._readers.remove(reader)


class _Reader:
    """``position``: how many statuses it has taken."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.position = 0


def set_time(timestamp: Timestamp, seconds: float) -> None:
    """Seconds since the epoch, to the microsecond."""
    micros = round(seconds * 1_000_000)
    timestamp.seconds, rest = divmod(micros, 1_000_000)
    timestamp.nanos = rest * 1000


def printable(text: str) -> str:
    """Text for a message: names of files needn't be valid."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
