"""Connections of the HTTP library: pools with our TLS context, time limits for stalls, and connections that know who uses them.

Owns what requests and urllib3 have to be made to do. Sends nothing; which connection is for what is ``transport.py``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

if TYPE_CHECKING:
    import ssl

    from requests.adapters import HTTPAdapter

_POOL_CONNECTIONS: Final = 32


def make_adapter(
    *,
    context: Callable[[], ssl.SSLContext],
    insecure: bool,
    connections: WeakSet[Any],  # Any: urllib3 is not imported until it is needed
    stall_timeout_seconds: float,
    block_bytes: int,
) -> HTTPAdapter:
    """An adapter whose pools use ``context`` for TLS (made when first needed) and send bodies in blocks of ``block_bytes``."""
    import socket

    import urllib3
    from requests.adapters import HTTPAdapter as Base
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    # urllib3 applies the connect timeout to everything until the request is sent. A registry that takes its time to write what it is
    # sent would run into it, so the limit is changed as soon as the connection is up.
    def relax(sock: socket.socket | None) -> None:
        if sock is not None:
            sock.settimeout(stall_timeout_seconds)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    class Used:
        """Remembers which thread uses the connection."""

        thread = 0

        def putrequest(self, *args: Any, **kwargs: Any) -> None:  # Any: http.client's own signature
            self.thread = threading.get_ident()
            connections.add(self)
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

    class Adapter(Base):
        _context: ssl.SSLContext | None = None

        def _tls_context(self) -> ssl.SSLContext:
            if self._context is None:
                self._context = context()
            return self._context

        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # Any: requests' own signature
            super().init_poolmanager(*args, blocksize=block_bytes, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # Any: requests' own signature
            manager = super().proxy_manager_for(proxy, blocksize=block_bytes, **kwargs)
            manager.pool_classes_by_scheme = pools
            return manager

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # Any: requests' own signature
            # requests would load its own bundle of authorities here, beside the system's that the context has.
            if url.lower().startswith("https"):
                conn.cert_reqs = "CERT_REQUIRED" if verify else "CERT_NONE"
                conn.ssl_context = self._tls_context()
                conn.conn_kw["ssl_context"] = conn.ssl_context

    if insecure:
        # Whoever sets insecure = true knows; the library's warning would be printed among our output.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return Adapter(pool_connections=16, pool_maxsize=_POOL_CONNECTIONS)
