"""Passes connections of a step's socket on to a socket of the host (an ssh agent), as long as the step lives.

Understands nothing of what is said over them, and listens on nothing by itself: the listening socket comes from the sandbox.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from pybuild.errors import PybuildError

CHUNK = 64 << 10


class SocketForwarder:
    """One thread that accepts on ``listeners`` and forwards to ``upstreams``, position by position: paths of the host's sockets, or what opens a
    connection without waiting.

    Owns the listeners; leaving the context ends the thread and closes every connection.
    """

    def __init__(self, listeners: Sequence[int], upstreams: Sequence[str | Callable[[], socket.socket]]) -> None:
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._pending: dict[socket.socket, bytes] = {}
        self._ended: set[socket.socket] = set()
        self._listeners: dict[socket.socket, str | Callable[[], socket.socket]] = {}
        for descriptor, upstream in zip(listeners, upstreams, strict=True):
            listener = socket.socket(fileno=descriptor)
            listener.setblocking(False)
            self._listeners[listener] = upstream
            self._selector.register(listener, selectors.EVENT_READ)
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="socket-forwarder", daemon=True)

    def __enter__(self) -> SocketForwarder:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join()
        for end in (*self._listeners, *self._peers):
            end.close()
        self._selector.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _serve(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.fileobj == self._stop_read:
                    return
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end in self._listeners:
                    self._accept(end)
                    continue
                if events & selectors.EVENT_WRITE and end in self._peers:
                    self._flush(end)
                if events & selectors.EVENT_READ and end in self._peers:
                    self._receive(end)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        try:
            upstream = _opened(self._listeners[listener])
        except (OSError, PybuildError):
            client.close()
            return
        for end, peer in ((client, upstream), (upstream, client)):
            end.setblocking(False)
            self._peers[end] = peer
            self._selector.register(end, selectors.EVENT_READ)

    def _receive(self, end: socket.socket) -> None:
        try:
            data = end.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._ended.update(() if data else (end,))
        peer = self._peers[end]
        self._pending[peer] = data
        self._flush(peer)

    def _flush(self, end: socket.socket) -> None:
        """Write what is pending for ``end``; read on from its peer only when that is done."""
        data = self._pending.pop(end, b"")
        try:
            sent = end.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(end)
            return
        peer = self._peers[end]
        if sent < len(data):
            self._pending[end] = data[sent:]
        elif peer in self._ended:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)
            if end in self._ended:
                self._close(end)
                return
        for one in (end, peer):
            self._watch(one)

    def _watch(self, end: socket.socket) -> None:
        wanted = 0
        if end not in self._ended and self._peers[end] not in self._pending:
            wanted |= selectors.EVENT_READ
        if end in self._pending:
            wanted |= selectors.EVENT_WRITE
        known = self._selector.get_map().get(end.fileno())
        if known is not None and not wanted:
            self._selector.unregister(end)
        elif known is None and wanted:
            self._selector.register(end, wanted)
        elif known is not None and known.events != wanted:
            self._selector.modify(end, wanted)

    def _close(self, end: socket.socket) -> None:
        for one in (end, self._peers[end]):
            if one.fileno() in self._selector.get_map():
                self._selector.unregister(one)
            self._peers.pop(one, None)
            self._pending.pop(one, None)
            self._ended.discard(one)
            one.close()


def _opened(upstream: str | Callable[[], socket.socket]) -> socket.socket:
    if not isinstance(upstream, str):
        return upstream()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.connect(upstream)
    except OSError:
        made.close()
        raise
    return made
