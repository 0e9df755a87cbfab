"""One call to a daemon over a unix socket or TCP, with TLS where that is wanted. Speaks HTTP/1.1 and frames; knows no call's meaning."""

from __future__ import annotations

import http.client
import io
import json
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pybuild import __version__
from pybuild.errors import Cancelled, PybuildError, UsageError
from pybuild.values import dataclass

from .api_own_names import CONTENT_TYPE
from .wire import read_frames

_CONNECT_SECONDS: Final = 10
_ERROR_BYTES: Final = 1 << 16
_PORT: Final = 2376
_PLAIN_PORT: Final = 2375


class DaemonUnreachable(PybuildError):
    """No daemon answers at the address."""

    def __init__(self, address: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(
            f"can't talk to the daemon at {address}: {reason}", hint=hint or "is `pybuild daemon` running there?"
        )
        self.address = address


class DaemonRefused(PybuildError):
    """The daemon answered with an HTTP error."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class DaemonAddress:
    """Where a daemon is. ``path``: of a unix socket, else ``host`` and ``port``; ``certificates``: the directory with ``ca.pem``, ``cert.pem`` and
    ``key.pem`` as docker has it, None for TCP without TLS."""

    text: str
    path: str = ""
    host: str = ""
    port: int = 0
    certificates: Path | None = None

    @classmethod
    def parse(cls, text: str, variables: Mapping[str, str]) -> DaemonAddress:
        """``unix://PATH`` or ``tcp://HOST[:PORT]``; TLS by DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, as the docker CLI has it. Raises
        UsageError."""
        scheme, separator, rest = text.partition("://")
        if not separator and text.startswith("/"):
            return cls(f"unix://{text}", path=text)
        if scheme == "unix" and rest.startswith("/"):
            return cls(text, path=rest)
        if scheme == "tcp" and rest:
            certificates = None
            if variables.get("DOCKER_TLS_VERIFY") or variables.get("DOCKER_TLS"):
                home = variables.get("HOME", "/")
                certificates = Path(variables.get("DOCKER_CERT_PATH") or os.path.join(home, ".docker"))
            host, colon, port = rest.rstrip("/").rpartition(":")
            if not colon:
                host, port = port, str(_PORT if certificates else _PLAIN_PORT)
            if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
                return cls(text, host=host.strip("[]"), port=int(port), certificates=certificates)
        raise UsageError(f"invalid daemon address {text!r}", hint="use unix:///PATH or tcp://HOST:PORT")


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to a DaemonAddress."""

    def __init__(self, address: DaemonAddress) -> None:
        super().__init__("daemon" if address.path else address.host, address.port or None)
        self._address = address

    def connect(self) -> None:
        address = self._address
        if address.path:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(_CONNECT_SECONDS)
            made.connect(address.path)
        else:
            made = socket.create_connection((address.host, address.port), _CONNECT_SECONDS)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if address.certificates is not None:
                made.settimeout(_CONNECT_SECONDS)
                secured = _tls(address.certificates).wrap_socket(made, server_hostname=address.host)
                secured.setblocking(False)
                self.sock = _SharedTls(secured)
                return
        made.settimeout(None)
        self.sock = made


class _SharedTls:
    """A TLS connection that one thread reads while another writes: OpenSSL wants one at a time. As much of a socket as http.client needs."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self._secured = secured
        self._lock = threading.Lock()

    def _patiently(self, action: Callable[[], int]) -> int:
        while True:
            poll = select.poll()
            try:
                with self._lock:
                    return action()
            except ssl.SSLWantReadError:
                poll.register(self._secured, select.POLLIN)
            except ssl.SSLWantWriteError:
                poll.register(self._secured, select.POLLOUT)
            poll.poll()

    def recv_into(self, buffer: memoryview | bytearray) -> int:
        return self._patiently(lambda: self._secured.recv_into(buffer))

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._patiently(lambda: self._secured.send(view)) :]  # noqa: B023  # called at once

    def makefile(self, mode: str) -> io.BufferedReader:
        """For reading, which is all that an HTTP answer needs."""
        return io.BufferedReader(_SharedTlsReader(self))

    def shutdown(self, how: int) -> None:
        socket.socket.shutdown(self._secured, how)

    def close(self) -> None:
        self._secured.close()


class _SharedTlsReader(io.RawIOBase):
    def __init__(self, shared: _SharedTls) -> None:
        self._shared = shared

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # Any: the buffer protocol
        return self._shared.recv_into(buffer)


def _tls(directory: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.fspath(directory / "ca.pem"))
    certificate, key = directory / "cert.pem", directory / "key.pem"
    if certificate.exists():
        context.load_cert_chain(certificate, key)
    return context


class Exchange:
    """A call that runs: pieces go out in ``send``, frames come in from ``frames``."""

    def __init__(self, connection: _Connection, address: DaemonAddress) -> None:
        self._connection = connection
        self._address = address
        self._response: http.client.HTTPResponse | None = None

    def send(self, data: bytes) -> None:
        """Send a piece of the body. Raises DaemonUnreachable unless the daemon has something to say about it."""
        if not data:
            return
        try:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))
        except (BrokenPipeError, ConnectionResetError):
            return  # it answered already: the answer tells why
        except OSError as error:
            raise DaemonUnreachable(self._address.text, (error.strerror or str(error)).lower()) from error

    def end(self) -> None:
        """The body is over."""
        with suppress(OSError):
            self._connection.send(b"0\r\n\r\n")

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """Kind and payload of what comes back; may be called again to go on. Raises DaemonUnreachable, DaemonRefused."""
        if self._response is None:
            self._response = self._open()
        try:
            yield from read_frames(self._read)
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachable(self._address.text, "the connection broke") from error

    def _read(self, size: int) -> bytes:
        assert self._response is not None
        data = self._response.read(size)
        return data

    def _open(self) -> http.client.HTTPResponse:
        try:
            response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachable(self._address.text, "it closed the connection without an answer") from error
        if response.status != 200 or response.headers.get("Content-Type") != CONTENT_TYPE:
            data = response.read(_ERROR_BYTES)
            try:
                message = str(json.loads(data)["message"])
            except (ValueError, KeyError, TypeError):
                message = f"it answered with status {response.status}"
            if response.status == 404 and "page not found" in message:
                message = "it is not a daemon of pybuild, or one of another version"
            raise DaemonRefused(f"the daemon at {self._address.text}: {message}", status=response.status)
        return response


class Channel:
    """A byte stream in both directions; one thread may read while another writes. A context manager that closes it."""

    def __init__(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._response.close()

    def read(self, size: int) -> bytes:
        """What is there, at most ``size`` bytes; empty at the end."""
        try:
            return self._response.read1(size)
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return b""

    def write(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        if data:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Nothing more will be written."""
        self._connection.send(b"0\r\n\r\n")

    def shutdown(self) -> None:
        """End it from another thread."""
        with suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)


def open_channel(address: DaemonAddress, token: str) -> Channel:
    """Come for a channel that the daemon told of. Raises DaemonUnreachable, DaemonRefused."""
    connection = _Connection(address)
    try:
        connection.connect()
        connection.putrequest("POST", f"/pybuild/channel/{quote(token)}", skip_accept_encoding=True)
        connection.putheader("Content-Type", CONTENT_TYPE)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise DaemonUnreachable(address.text, str(error).lower()) from error
    if response.status != 200:
        connection.close()
        raise DaemonRefused(f"the daemon at {address.text} has no such channel", status=response.status)
    return Channel(connection, response)


@contextmanager
def exchange(
    address: DaemonAddress, method: str, *, headers: Iterable[tuple[str, str]], cancel: threading.Event | None
) -> Iterator[Exchange]:
    """Begin the call ``method``. When ``cancel`` is set the connection ends, and with it the daemon's work. Raises DaemonUnreachable,
    Cancelled."""
    connection = _Connection(address)
    over = threading.Event()
    try:
        try:
            connection.connect()
        except (OSError, ssl.SSLError) as error:
            raise DaemonUnreachable(address.text, (getattr(error, "strerror", None) or str(error)).lower()) from error
        connection.putrequest("POST", f"/pybuild/call/{quote(method)}", skip_accept_encoding=True)
        for name, value in (
            ("Content-Type", CONTENT_TYPE),
            ("Transfer-Encoding", "chunked"),
            ("User-Agent", f"pybuild/{__version__}"),
            *headers,
        ):
            connection.putheader(name, value)
        connection.endheaders()
        if cancel is not None:
            threading.Thread(target=_end_when, args=(cancel, over, connection), daemon=True).start()
        try:
            yield Exchange(connection, address)
        except DaemonUnreachable:
            if cancel is not None and cancel.is_set():
                raise Cancelled from None
            raise
    finally:
        over.set()
        connection.close()


def _end_when(cancel: threading.Event, over: threading.Event, connection: _Connection) -> None:
    while not over.wait(0.1):
        if cancel.is_set():
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            return
