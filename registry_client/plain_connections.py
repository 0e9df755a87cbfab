"""Connections without TLS and without a proxy, on the standard library's http.client: what a registry on this machine is reached with.

Owns their pool. Refuses every URL that is not written plainly: ``connections.py`` has the HTTP library for those, for TLS and for proxies.
Why there are two: docs/decisions/plain-connections.md.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pybuild.values import pattern

from .broken_connections import translated_errors
from .exchanges import BodyReader, Response
from .failures import ConnectionFailed

if TYPE_CHECKING:
    from .exchanges import ConnectionUsers, TimeLimits

_IDLE_CONNECTIONS: Final = 32
_SEND_BLOCK_BYTES: Final = 1 << 18

# RFC 3986 without user information, fragments and zones, and with a path that can be sent as it is written.
_PLAIN_URL = pattern(
    r"http://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?"
    r"(/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?(\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)


def is_plain(url: str) -> bool:
    """True for URLs that ``PlainConnections`` can be asked for."""
    return _PLAIN_URL.fullmatch(url) is not None


class _Connection(http.client.HTTPConnection):
    """A connection that remembers which thread uses it."""

    thread = 0


class PlainConnections:
    """Sends requests over connections that are kept and used again. Thread-safe. ``users`` learns of each connection in use."""

    def __init__(self, *, users: ConnectionUsers, limits: TimeLimits) -> None:
        self._users = users
        self._limits = limits
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, int], list[_Connection]] = {}

    def close(self) -> None:
        """Close what isn't in use."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: BodyReader | None, answer_seconds: float
    ) -> Response:
        """One exchange; nothing is repeated and no redirect followed. Raises ConnectionFailed.

        ``headers`` say how long ``body`` is or that it comes in chunks; ``answer_seconds``: how long the server may be silent then.
        """
        parts = urlsplit(url)
        place = parts.hostname or "", parts.port or 80
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        with translated_errors(url):
            connection = self._take(url, place)
            try:
                connection.thread = threading.get_ident()
                self._users.add(connection)
                names = {name.lower() for name in headers}
                connection.putrequest(method, target, skip_host="host" in names, skip_accept_encoding=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                try:
                    connection.endheaders(body, encode_chunked="transfer-encoding" in names)  # type: ignore[arg-type]  # it always says how much
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the server has perhaps answered without waiting for the rest: the answer tells why
                if connection.sock is not None:
                    connection.sock.settimeout(answer_seconds)
                answer = connection.getresponse()
            except BaseException:
                connection.close()
                raise
        raw = _Raw(self, answer, url=url, connection=connection, place=place)
        return Response(method=method, url=url, status=answer.status, headers=_Headers(answer.headers), raw=raw)

    def _take(self, url: str, place: tuple[str, int]) -> _Connection:
        while True:
            with self._lock:
                idle = self._idle.get(place)
                connection = idle.pop() if idle else None
            if connection is None:
                break
            if _is_alive(connection):
                return connection
            connection.close()
        connection = _Connection(*place, timeout=self._limits.connect_seconds, blocksize=_SEND_BLOCK_BYTES)
        try:
            connection.connect()
        except TimeoutError as error:
            raise ConnectionFailed(url, "connect", "no connection within the time limit") from error
        connection.sock.settimeout(self._limits.stall_seconds)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _give_back(self, connection: _Connection, place: tuple[str, int]) -> None:
        if connection.sock is None:  # the server asked to close it
            return
        connection.sock.settimeout(self._limits.stall_seconds)
        with self._lock:
            idle = self._idle.setdefault(place, [])
            if len(idle) < _IDLE_CONNECTIONS:
                idle.append(connection)
                return
        connection.close()


def _is_alive(connection: _Connection) -> bool:
    """False where the server has closed it, or sent what nobody asked for."""
    sock = connection.sock
    before = sock.gettimeout()
    try:
        sock.settimeout(0)
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        sock.settimeout(before)
        return True
    except OSError:
        pass
    return False


class _Raw:
    """The RawBody of an answer."""

    def __init__(
        self,
        pool: PlainConnections,
        answer: http.client.HTTPResponse,
        *,
        url: str,
        connection: _Connection,
        place: tuple[str, int],
    ) -> None:
        self._pool = pool
        self._answer = answer
        self._url = url
        self._connection = connection
        self._place = place
        # http.client knows, too, but read1 of Python 3.11 doesn't count and would wait for more than there is.
        self._left = answer.length

    def read(self, size: int) -> bytes:
        if self._left is not None:
            size = min(size, self._left)
        if size == 0:
            return b""
        with translated_errors(self._url):
            data = self._answer.read1(size)
        if self._left is not None:
            self._left -= len(data)
        return data

    def release(self) -> None:
        self._answer.close()
        self._pool._give_back(self._connection, self._place)

    def drop(self) -> None:
        self._answer.close()
        self._connection.close()


class _Headers(Mapping[str, str]):
    """Case-insensitive; what comes several times is one value with commas (RFC 9110 section 5.2)."""

    def __init__(self, message: http.client.HTTPMessage) -> None:
        self._values: dict[str, tuple[str, str]] = {}
        for name, value in message.items():
            known = self._values.get(name.lower())
            self._values[name.lower()] = (known[0], f"{known[1]}, {value}") if known else (name, value)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._values.values())

    def __len__(self) -> int:
        return len(self._values)
