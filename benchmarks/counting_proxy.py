"""A TCP proxy that counts what passes: bytes up and down, and HTTP requests.

Owns its threads and sockets. Changes nothing on the way: it reads the requests' heads only to count them.
"""

from __future__ import annotations

import socket
import threading
from types import TracebackType

from pybuild.values import dataclass

_BLOCK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passed. ``up``, ``down``: bytes to and from the server, with all HTTP headers; ``requests``: their first lines' method and path."""

    up: int
    down: int
    requests: tuple[str, ...]


class CountingProxy:
    """Listens on loopback and passes everything to ``port``. A context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._guard = threading.Lock()
        self._up = self._down = 0
        self._requests: list[str] = []

    def __enter__(self) -> CountingProxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def take(self) -> Traffic:
        """What passed since the last call."""
        with self._guard:
            traffic = Traffic(self._up, self._down, tuple(self._requests))
            self._up = self._down = 0
            self._requests.clear()
        return traffic

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._upwards, args=(client, server), name="proxy-up", daemon=True).start()
            threading.Thread(target=self._downwards, args=(client, server), name="proxy-down", daemon=True).start()

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        heads = RequestHeads()
        while block := _received(client):
            found = heads.feed(block)
            with self._guard:
                self._up += len(block)
                self._requests += found
            if not _sent(server, block):
                break
        _end(server)

    def _downwards(self, client: socket.socket, server: socket.socket) -> None:
        while block := _received(server):
            with self._guard:
                self._down += len(block)
            if not _sent(client, block):
                break
        _end(client)
        server.close()


class RequestHeads:
    """Finds the requests in the bytes that one connection's client sends (RFC 9112): heads, bodies by length or in chunks."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        """Bytes of a body, or of a chunk with its line end, that are still to come."""
        self._chunked = False

    def feed(self, block: bytes) -> list[str]:
        """The requests whose heads end in ``block``: ``METHOD path``."""
        found: list[str] = []
        while block:
            if self._left:
                skipped = min(self._left, len(block))
                self._left -= skipped
                block = block[skipped:]
                continue
            self._head += block
            block = b""
            end = b"\r\n" if self._chunked else b"\r\n\r\n"
            head, separator, rest = self._head.partition(end)
            if separator:
                self._head, block = b"", rest
                if self._chunked:
                    size = int(head.partition(b";")[0], 16) if head.strip() else 0
                    self._left = size + 2
                    self._chunked = size > 0
                else:
                    found.append(self._begin(head.decode("latin-1")))
        return found

    def _begin(self, head: str) -> str:
        line, *fields = head.split("\r\n")
        for text in fields:
            name, _, value = text.partition(":")
            if name.lower() == "content-length":
                self._left = int(value)
            self._chunked = self._chunked or (
                name.lower() == "transfer-encoding" and value.strip().lower() == "chunked"
            )
        return line.rpartition(" ")[0]


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_BLOCK_BYTES)
    except OSError:
        return b""


def _sent(connection: socket.socket, block: bytes) -> bool:
    try:
        connection.sendall(block)
    except OSError:
        return False
    return True


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass
