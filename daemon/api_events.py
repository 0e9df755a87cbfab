"""Events: what happened to images and to the daemon, for ``docker events``. Keeps the last ones; never blocks whoever reports."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from pybuild.values import dataclass, field

from .api_request import Filters
from .api_versions import ApiVersion

FILTERS: Final = (
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
)
_KEPT: Final = 1024
_WAITING_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class DaemonEvent:
    """Something that happened. ``kind``: image, builder, daemon, later container…; ``actor``: an ID or name; ``time_ns``: when."""

    kind: str
    action: str
    actor: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_ns: int = 0

    def to_json(self, version: ApiVersion) -> dict[str, Any]:  # Any: the JSON edge
        """The message. Versions before 1.52 had the fields of API 1.21 beside it."""
        out: dict[str, Any] = {}
        if version < (1, 52):
            out["status"] = self.action
            if self.kind in ("image", "container"):
                out["id"] = self.actor
            if self.kind == "container":
                out["from"] = self.attributes.get("image", "")
        return {
            **out,
            "Type": self.kind,
            "Action": self.action,
            "Actor": {"ID": self.actor, "Attributes": dict(self.attributes)},
            "scope": "local",
            "time": self.time_ns // 1_000_000_000,
            "timeNano": self.time_ns,
        }

    def passes(self, filters: Filters) -> bool:
        """True if every kind of filter lets the event through."""
        return all(self._passes(name, wanted) for name, wanted in filters.values.items() if wanted)

    def _passes(self, name: str, wanted: tuple[str, ...]) -> bool:
        match name:
            case "type":
                return self.kind in wanted
            case "event":
                return any(self.action == text or self.action.startswith(f"{text}: ") for text in wanted)
            case "scope":
                return "local" in wanted
            case "label":
                return all(self._has_label(text) for text in wanted)
            case "image":
                names = {self.actor, self.attributes.get("name", "")} if self.kind == "image" else set()
                names |= {self.attributes["image"]} if "image" in self.attributes else set()
                names |= {_untagged(text) for text in names}
                return any(
                    text in names or (len(text) >= 12 and self.actor.removeprefix("sha256:").startswith(text))
                    for text in wanted
                )
            case _:
                return self.kind == name and any(
                    text == self.attributes.get("name") or self.actor.startswith(text) for text in wanted
                )

    def _has_label(self, text: str) -> bool:
        key, equals, value = text.partition("=")
        return key in self.attributes and (not equals or self.attributes[key] == value)


def _untagged(name: str) -> str:
    head, slash, last = name.partition("@")[0].rpartition("/")
    return head + slash + last.partition(":")[0]


class Events:
    """The events of one daemon. ``report`` may be called from any thread."""

    def __init__(self, *, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._kept: deque[DaemonEvent] = deque(maxlen=_KEPT)
        self._listeners: set[Listener] = set()
        self._last_ns = 0

    def report(self, kind: str, action: str, actor: str, **attributes: str) -> None:
        """Something happened now."""
        with self._lock:
            # Strictly growing: "since" the last one seen must not show it again or skip its neighbour.
            self._last_ns = max(self._clock_ns(), self._last_ns + 1)
            event = DaemonEvent(kind, action, actor, dict(attributes), self._last_ns)
            self._kept.append(event)
            for listener in self._listeners:
                listener.put(event)

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Listener]:
        """The events that are kept and, without a gap, those to come."""
        listener = Listener(asyncio.get_running_loop())
        with self._lock:
            listener.past = tuple(self._kept)
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def close(self) -> None:
        """End all listening."""
        with self._lock:
            for listener in self._listeners:
                listener.put(None)


class Listener:
    """One client that listens. ``past``: what was kept when it came."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[DaemonEvent | None] = asyncio.Queue()
        self.past: tuple[DaemonEvent, ...] = ()

    def put(self, event: DaemonEvent | None) -> None:
        """From any thread. A client that doesn't read is let go rather than remembered for."""
        if self._queue.qsize() > _WAITING_LIMIT:
            event = None
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def next(self, *, timeout_seconds: float | None) -> DaemonEvent | None:
        """The next event; None at the end or when the time is over."""
        try:
            return await asyncio.wait_for(self._queue.get(), timeout_seconds)
        except TimeoutError:
            return None
