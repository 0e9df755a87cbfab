"""Connections through the HTTP library, requests: TLS, proxies and unusual URLs, with our TLS context and time limits for stalls.

Owns what requests and urllib3 have to be made to do; the only module that imports them. Which connection is for what is ``transport.py``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import requests
import requests.adapters
import urllib3
from urllib3 import exceptions as lower
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .broken_connections import LibraryErrors, translated_errors
from .certificates import tls_context
from .exchanges import BodyReader, Response

if TYPE_CHECKING:
    import socket
    import ssl

    from .exchanges import ConnectionUsers, TimeLimits, TlsSettings

_POOL_CONNECTIONS: Final = 32
_SEND_BLOCK_BYTES: Final = 1 << 18
_ERRORS: Final = LibraryErrors(
    any=(lower.HTTPError,),  # requests' own exceptions are OSErrors
    unconnected=(lower.ConnectTimeoutError,),
    refused=(lower.NewConnectionError,),
    stalled=(lower.ReadTimeoutError,),
    short=(lower.IncompleteRead,),
    proxy=(lower.ProxyError,),
)


class LibraryConnections:
    """Sends requests over pooled connections that check certificates as ``tls`` says. Thread-safe. ``users`` learns of each connection in use."""

    def __init__(self, tls: TlsSettings, *, users: ConnectionUsers, limits: TimeLimits) -> None:
        self._tls = tls
        self._limits = limits
        self._adapter = _adapter(tls, users=users, stall_seconds=limits.stall_seconds)

    def close(self) -> None:
        """Close all connections."""
        self._adapter.close()

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: BodyReader | None,
        answer_seconds: float,
        proxy: str | None,
    ) -> Response:
        """One exchange, as ``PlainConnections.send``; ``proxy``: the proxy's URL. Raises ConnectionFailed."""
        with translated_errors(url, library=_ERRORS):
            prepared = requests.Request(method, url, headers=dict(headers)).prepare()
            if url.isascii():
                prepared.url = url  # as it was signed, not as requests would write it
            prepared.body = body  # type: ignore[assignment]  # urllib3 reads any object with read()
            answer = self._adapter.send(
                prepared,
                stream=True,
                timeout=(self._limits.connect_seconds, answer_seconds),
                verify=not self._tls.insecure,
                proxies={"http": proxy, "https": proxy} if proxy else {},
            )
        return Response(
            method=prepared.method or method,
            url=url,
            status=answer.status_code,
            headers=answer.headers,
            raw=_Raw(answer.raw, url),
        )


class _Raw:
    """The RawBody of urllib3's response."""

    def __init__(self, response: Any, url: str) -> None:  # Any: read1 depends on urllib3's version
        self._response = response
        self._url = url
        # Older versions of urllib3 only have read(), which waits for the whole block.
        self._read = getattr(response, "read1", None) or response.read

    def read(self, size: int) -> bytes:
        with translated_errors(self._url, library=_ERRORS):
            data: bytes = self._read(size, decode_content=False)
        return data

    def release(self) -> None:
        self._response.release_conn()

    def drop(self) -> None:
        self._response.close()


def _adapter(tls: TlsSettings, *, users: ConnectionUsers, stall_seconds: float) -> requests.adapters.HTTPAdapter:
    # urllib3 applies the connect timeout to everything until the request is sent. A registry that takes its time to write what it is
    # sent would run into it, so the limit is changed as soon as the connection is up.
    def relax(sock: socket.socket | None) -> None:
        import socket

        if sock is not None:
            sock.settimeout(stall_seconds)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    class Used:
        """Remembers which thread uses the connection."""

        thread = 0

        def putrequest(self, *args: Any, **kwargs: Any) -> None:  # Any: http.client's own signature
            self.thread = threading.get_ident()
            users.add(self)
            super().putrequest(*args, **kwargs)  # type: ignore[misc]  # the classes below have it

    class PlainConnection(Used, HTTPConnection):
        def connect(self) -> None:
            super().connect()
            relax(self.sock)

    class TlsConnection(Used, HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            relax(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    pools = {"http": PlainPool, "https": TlsPool}

    class Adapter(requests.adapters.HTTPAdapter):
        _context: ssl.SSLContext | None = None

        def _tls_context(self) -> ssl.SSLContext:
            if self._context is None:
                self._context = tls_context(insecure=tls.insecure, ca=tls.ca, keypairs=tls.keypairs)
            return self._context

        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # Any: requests' own signature
            super().init_poolmanager(*args, blocksize=_SEND_BLOCK_BYTES, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # Any: requests' own signature
            manager = super().proxy_manager_for(proxy, blocksize=_SEND_BLOCK_BYTES, **kwargs)
            manager.pool_classes_by_scheme = pools
            return manager

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # Any: requests' own signature
            # requests would load its own bundle of authorities here, beside the system's that the context has.
            if url.lower().startswith("https"):
                conn.cert_reqs = "CERT_REQUIRED" if verify else "CERT_NONE"
                conn.ssl_context = self._tls_context()
                conn.conn_kw["ssl_context"] = conn.ssl_context

    if tls.insecure:
        # Whoever sets insecure = true knows; the library's warning would be printed among our output.
        urllib3.disable_warnings(lower.InsecureRequestWarning)
    return Adapter(pool_connections=16, pool_maxsize=_POOL_CONNECTIONS)
