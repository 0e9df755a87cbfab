"""An HTTP gate before a registry on loopback: counts what goes through, and can lose blobs or close altogether.

A module for tests to import. Changes no answer but those of the blobs that it was told to lose.
"""

from __future__ import annotations

import http.client
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})\Z")
_BLOCK_BYTES = 64 << 10
_HOP = {"connection", "transfer-encoding", "keep-alive"}


class CountingGate:
    """``down``, ``up``: bytes of bodies to and from the client; ``blob_reads``: digests of the blobs that were sent; ``lost``: digests that
    are answered with 404 from now on; ``stalls``: blobs' answers stop in their middle until the gate is closed, and ``stalled`` is set then."""

    def __init__(self, port: int) -> None:
        self.down = self.up = 0
        self.blob_reads: list[str] = []
        self.lost: set[str] = set()
        self.loses_all = False
        self.stalls = False
        self.stalled = threading.Event()
        self._over = threading.Event()
        self._guard = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                found = _BLOB.match(self.path.partition("?")[0])
                if found and self.command in ("GET", "HEAD") and (gate.loses_all or found[2] in gate.lost):
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                try:
                    upstream.request(self.command, self.path, body=body or None, headers=dict(self.headers))
                    answer = upstream.getresponse()
                    content = answer.read()
                finally:
                    upstream.close()
                with gate._guard:
                    gate.up += len(body)
                    gate.down += len(content)
                    if found and self.command == "GET" and answer.status == 200:
                        gate.blob_reads.append(found[2])
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP and not (name.lower() == "content-length" and self.command != "HEAD"):
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if gate.stalls and found and self.command == "GET":
                    self.wfile.write(content[: len(content) // 2])
                    gate.stalled.set()
                    gate._over.wait()
                    self.close_connection = True
                    return
                for start in range(0, len(content), _BLOCK_BYTES):
                    self.wfile.write(content[start : start + _BLOCK_BYTES])

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _pass

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._open = False

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def reset(self) -> None:
        """Count from nothing."""
        with self._guard:
            self.down = self.up = 0
            self.blob_reads.clear()

    def close(self) -> None:
        """Be gone: nobody is let in any more."""
        if self._open:
            self._open = False
            self._over.set()
            self._server.shutdown()
            self._server.server_close()

    def __enter__(self) -> CountingGate:
        self._open = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
