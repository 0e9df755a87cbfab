"""Channels of a call: byte streams in both directions between a call's work and its client, for what the client's machine has (an ssh agent, a
terminal, standard input, a cache's directory).

    daemon → client   in the call: frame C, JSON {"token", "kind", …}: "come for this"
    client → daemon   POST /pybuild/channel/<token>, chunked: what the client says; the answer's body is what the daemon says

Owns the tokens and one end of each stream. Knows nothing of what is said.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pybuild.errors import Cancelled

from .wire import dumps, frame

_LOOK_SECONDS = 0.5


class Channels:
    """The channels of one daemon that their clients haven't come for yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, socket.socket] = {}

    def open(self) -> tuple[str, socket.socket]:
        """A token and the near end of a new channel; what is written to it waits for the client."""
        near, far = socket.socketpair()
        token = secrets.token_hex(16)
        with self._lock:
            self._waiting[token] = far
        return token, near

    def claim(self, token: str) -> socket.socket | None:
        """The far end, once."""
        with self._lock:
            return self._waiting.pop(token, None)

    def forget(self, token: str) -> None:
        """The call is over: nobody may come for it any more."""
        far = self.claim(token)
        if far is not None:
            far.close()


class CallChannels:
    """Opens channels for one call; leaving the context forgets those that nobody came for."""

    def __init__(self, channels: Channels, send: Callable[[bytes], None]) -> None:
        self._channels = channels
        self._send = send
        self._tokens: list[str] = []

    def __enter__(self) -> CallChannels:
        return self

    def __exit__(self, *_: object) -> None:
        for token in self._tokens:
            self._channels.forget(token)

    def open(
        self, kind: str, wanted: Mapping[str, Any] | None = None
    ) -> socket.socket:  # Any: values that the wire knows
        """The near end of a channel that the client is told of; the caller closes it."""
        token, near = self._channels.open()
        self._tokens.append(token)
        self._send(frame(b"C", dumps({"token": token, "kind": kind, **(wanted or {})})))
        return near


class PatientReader:
    """Reads from a channel's near end; a cancelled call ends it, also when the client never comes. Raises Cancelled."""

    def __init__(self, near: socket.socket, cancel: threading.Event) -> None:
        self._near = near
        self._cancel = cancel
        near.settimeout(_LOOK_SECONDS)

    def read(self, size: int) -> bytes:
        """Just ``size`` bytes, less only at the end."""
        parts: list[bytes] = []
        while size:
            try:
                data = self._near.recv(min(size, 1 << 18))
            except TimeoutError:
                if self._cancel.is_set():
                    raise Cancelled from None
                continue
            if not data:
                break
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._near.send(view) :]
            except TimeoutError:
                if self._cancel.is_set():
                    raise Cancelled from None
