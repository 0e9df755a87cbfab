"""A registry in memory that misbehaves on request: what the tests use for everything that docker-registry never does.

Without rules it is an ordinary registry on a loopback port (blobs with Range, uploads in one request or in chunks, mounts, manifests, tags in pages,
referrers). A rule replaces the answer to some requests:

    with FaultRegistry() as registry:
        registry.on("GET", "/blobs/", reset_after(1000), times=3)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import socket
import struct
import termios
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Rule:
    """``action`` answers requests with ``method`` (or "*") whose path contains ``part``, ``times`` times after ``after`` others."""

    method: str
    part: str
    action: Callable[[Exchange], bool | None]
    times: int | None
    after: int = 0
    used: int = 0
    seen: int = 0


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int = 0


class Exchange:
    """A request being answered."""

    def __init__(self, registry: FaultRegistry, handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        self.registry = registry
        self.handler = handler
        self.seen = seen
        self.method, self.path, self.query = seen.method, seen.path, seen.query
        self.headers = seen.headers
        self._body: bytes | None = None

    @property
    def body(self) -> bytes:
        """The request's body, read when it is first asked for."""
        if self._body is None:
            if self.headers.get("transfer-encoding") == "chunked":
                self._body = b"".join(self._chunks())
            else:
                self._body = self.handler.rfile.read(int(self.headers.get("content-length", "0")))
        return self._body

    def _chunks(self) -> list[bytes]:
        parts = []
        while size := int(self.handler.rfile.readline().split(b";")[0], 16):
            parts.append(self.handler.rfile.read(size))
            self.handler.rfile.readline()
        self.handler.rfile.readline()
        return parts

    def start(self, status: int, headers: dict[str, str]) -> None:
        """Send status and headers."""
        self.seen.status = status
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def reply(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """Send a complete answer. Header names with ``_`` for ``-``."""
        _ = self.body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.start(status, {"Content-Length": str(len(body)), **named})
        if self.method != "HEAD":
            self.write(body)
        return True

    def error(self, status: int, code: str, message: str = "", **headers: str) -> bool:
        """Send an error in the specification's form."""
        body = json.dumps({"errors": [{"code": code, "message": message or code.lower()}]}).encode()
        return self.reply(status, body, Content_Type="application/json", **headers)

    def write(self, data: bytes) -> None:
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def reset(self) -> bool:
        """Break the connection with a TCP reset, once the other side's kernel has what was sent before."""
        sock = self.handler.connection
        while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]:
            time.sleep(0.001)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.hang_up()
        return True

    def hang_up(self) -> bool:
        """Close the connection."""
        self.handler.close_connection = True
        try:
            self.handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.handler.connection.close()
        return True

    def ordinary(self) -> None:
        """Answer as if there were no rule."""
        self.registry.answer(self)


class FaultRegistry:
    """The registry. ``url``, ``host``; ``seen`` has every request; ``blobs``, ``manifests`` and ``tags`` are its content."""

    def __init__(self, *, page_items: int = 100) -> None:
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.seen: list[Seen] = []
        self.rules: list[Rule] = []
        self.released = threading.Event()
        self.monolithic = True
        self.ranges = True
        self.referrers_api = True
        self._page_items = page_items
        self._lock = threading.RLock()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return None

            def handle(self) -> None:
                try:
                    super().handle()
                except (ConnectionError, ValueError, OSError):
                    self.close_connection = True

            def finish(self) -> None:
                try:
                    super().finish()
                except (OSError, ValueError):
                    pass

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
                headers = {k.lower(): v for k, v in self.headers.items()}
                registry._serve(Exchange(registry, self, Seen(self.command, parts.path, query, headers)))

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # http.server's names

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                return None

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FaultRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- for tests ---

    def on(
        self,
        method: str,
        part: str,
        action: Callable[[Exchange], bool | None],
        *,
        times: int | None = None,
        after: int = 0,
    ) -> None:
        """Add a rule; an action that returns False leaves the request to the next rule."""
        self.rules.append(Rule(method, part, action, times, after))

    def add_blob(self, repository: str, data: bytes, *, algorithm: str = "sha256") -> str:
        digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        self.blobs.setdefault(repository, {})[digest] = data
        return digest

    def add_manifest(self, repository: str, target: str, data: bytes, media_type: str) -> str:
        digest = target if ":" in target else f"sha256:{hashlib.sha256(data).hexdigest()}"
        held = self.manifests.setdefault(repository, {})
        held[target] = held[digest] = (media_type, data)
        return digest

    def requests(self, method: str = "*", part: str = "") -> list[Seen]:
        """The requests so far with this method and this in their path."""
        return [seen for seen in self.seen if method in ("*", seen.method) and part in seen.path]

    # --- serving ---

    def _serve(self, exchange: Exchange) -> None:
        with self._lock:
            self.seen.append(exchange.seen)
        for rule in self.rules:
            if rule.method not in ("*", exchange.method) or rule.part not in exchange.path:
                continue
            with self._lock:
                rule.seen += 1
                if rule.seen <= rule.after or (rule.times is not None and rule.used >= rule.times):
                    continue
                rule.used += 1
            if rule.action(exchange) is not False:
                return
        self.answer(exchange)

    def answer(self, x: Exchange) -> None:
        """The ordinary answer."""
        if x.path in ("/v2", "/v2/"):
            x.reply(200, b"{}")
            return
        if x.path == "/v2/_catalog":
            self._page(x, sorted({*self.blobs, *self.manifests}), "repositories")
            return
        match = re.match(r"/v2/(.+?)/(blobs/uploads|blobs|manifests|tags|referrers)/(.*)\Z", x.path)
        if match is None:
            x.error(404, "UNSUPPORTED")
            return
        name, kind, rest = match.groups()
        getattr(self, "_" + kind.replace("/", "_"))(x, name, rest)

    def _page(self, x: Exchange, names: list[str], key: str) -> None:
        count = min(int(x.query.get("n", self._page_items)), self._page_items)
        last = x.query.get("last", "")
        rest = [name for name in names if name > last]
        headers = {}
        if len(rest) > count:
            headers["Link"] = f'<{x.path}?n={count}&last={rest[count - 1]}>; rel="next"'
        x.reply(200, json.dumps({key: rest[:count]}).encode(), Content_Type="application/json", **headers)

    def _tags(self, x: Exchange, name: str, rest: str) -> None:
        held = self.manifests.get(name)
        if held is None:
            x.error(404, "NAME_UNKNOWN")
            return
        self._page(x, sorted(target for target in held if ":" not in target), "tags")

    def _referrers(self, x: Exchange, name: str, digest: str) -> None:
        if not self.referrers_api:
            x.reply(404, b"404 page not found\n", Content_Type="text/plain")
            return
        found = []
        for target, (media_type, data) in self.manifests.get(name, {}).items():
            value = json.loads(data)
            if ":" in target and (value.get("subject") or {}).get("digest") == digest:
                artifact = value.get("artifactType") or value["config"]["mediaType"]
                found.append({"mediaType": media_type, "digest": target, "size": len(data), "artifactType": artifact})
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}).encode()
        x.reply(200, body, Content_Type=OCI_INDEX)

    def _manifests(self, x: Exchange, name: str, target: str) -> None:
        held = self.manifests.setdefault(name, {})
        if x.method == "PUT":
            media_type = x.headers.get("content-type", "")
            digest = self.add_manifest(name, target, x.body, media_type)
            headers = {"Docker_Content_Digest": digest, "Location": f"/v2/{name}/manifests/{digest}"}
            subject = (json.loads(x.body).get("subject") or {}).get("digest")
            if subject and self.referrers_api:
                headers["OCI_Subject"] = subject
            x.reply(201, **headers)
        elif target not in held:
            x.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        elif x.method == "DELETE":
            gone = held[target]
            for key in [key for key, value in held.items() if value == gone]:
                del held[key]
            x.reply(202)
        else:
            media_type, data = held[target]
            digest = target if ":" in target else f"sha256:{hashlib.sha256(data).hexdigest()}"
            if x.method == "HEAD":
                x.start(
                    200, {"Content-Length": str(len(data)), "Content-Type": media_type, "Docker-Content-Digest": digest}
                )
            else:
                x.reply(200, data, Content_Type=media_type, Docker_Content_Digest=digest)

    def _blobs(self, x: Exchange, name: str, digest: str) -> None:
        data = self.blobs.get(name, {}).get(digest)
        if data is None:
            x.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        elif x.method == "HEAD":
            x.start(200, {"Content-Length": str(len(data)), "Docker-Content-Digest": digest})
        elif x.method == "DELETE":
            del self.blobs[name][digest]
            x.reply(202)
        else:
            send_blob(x, data)

    def _blobs_uploads(self, x: Exchange, name: str, session: str) -> None:
        if x.method == "POST":
            mounted = self.blobs.get(x.query.get("from", ""), {}).get(x.query.get("mount", ""))
            if mounted is not None:
                self.blobs.setdefault(name, {})[x.query["mount"]] = mounted
                x.reply(201, Location=f"/v2/{name}/blobs/{x.query['mount']}")
                return
            session = uuid.uuid4().hex
            self.uploads[session] = bytearray()
            x.reply(202, Location=self.location(x, name, session), Range="0-0")
            return
        held = self.uploads.get(session)
        if held is None or x.query.get("at", "") != str(len(held)):
            _ = x.body
            x.error(404, "BLOB_UPLOAD_UNKNOWN", "upload session not known")
        elif x.method == "GET":
            x.reply(204, Location=self.location(x, name, session), Range=f"0-{max(0, len(held) - 1)}")
        elif x.method == "DELETE":
            del self.uploads[session]
            x.reply(204)
        elif x.method == "PATCH":
            start = x.headers.get("content-range", "").partition("-")[0]
            body = x.body
            if start and int(start) != len(held):
                x.error(416, "BLOB_UPLOAD_INVALID")
                return
            held += body
            x.reply(202, Location=self.location(x, name, session), Range=f"0-{max(0, len(held) - 1)}")
        else:
            data = bytes(held) + x.body
            algorithm, _, wanted = x.query.get("digest", "").partition(":")
            if not algorithm or hashlib.new(algorithm, data).hexdigest() != wanted:
                x.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
                return
            del self.uploads[session]
            digest = self.add_blob(name, data, algorithm=algorithm)
            x.reply(201, Location=f"/v2/{name}/blobs/{digest}", Docker_Content_Digest=digest)

    def location(self, x: Exchange, name: str, session: str) -> str:
        """Where the next part goes: it has a query that must be kept and that changes with each part."""
        return f"/v2/{name}/blobs/uploads/{session}?at={len(self.uploads[session])}&state=a%2Fb%3D"


def send_blob(x: Exchange, data: bytes, *, stop_at: int | None = None) -> bool:
    """Answer with ``data``, or the asked part of it; with ``stop_at`` only so many bytes of the announced ones."""
    headers = {"Content-Type": "application/octet-stream"}
    status, part = 200, data
    match = re.match(r"bytes=(\d+)-(\d*)\Z", x.headers.get("range", ""))
    if match and x.registry.ranges:
        start = int(match.group(1))
        end = min(int(match.group(2) or len(data) - 1), len(data) - 1)
        if start >= len(data):
            return x.reply(416, Content_Range=f"bytes */{len(data)}")
        status, part = 206, data[start : end + 1]
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    x.start(status, {**headers, "Content-Length": str(len(part))})
    x.write(part if stop_at is None else part[:stop_at])
    return True


def _blob_of(x: Exchange) -> bytes:
    match = re.match(r"/v2/(.+?)/blobs/(.*)\Z", x.path)
    assert match is not None
    return x.registry.blobs[match.group(1)][match.group(2)]


def reset_after(count: int) -> Callable[[Exchange], bool]:
    """Send ``count`` bytes of the blob, then reset the connection."""

    def action(x: Exchange) -> bool:
        send_blob(x, _blob_of(x), stop_at=count)
        return x.reset()

    return action


def short_after(count: int) -> Callable[[Exchange], bool]:
    """Send ``count`` bytes of the blob, then close the connection as if that were all."""

    def action(x: Exchange) -> bool:
        send_blob(x, _blob_of(x), stop_at=count)
        return x.hang_up()

    return action


def stall_after(count: int | None) -> Callable[[Exchange], bool]:
    """Send ``count`` bytes of the blob (None: not even the status), then nothing until the registry is closed."""

    def action(x: Exchange) -> bool:
        if count is not None:
            send_blob(x, _blob_of(x), stop_at=count)
        x.registry.released.wait(30)
        return x.hang_up()

    return action


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[Exchange], bool]:
    """A fixed answer."""
    return lambda x: x.reply(status, body, **headers)


def refuse(status: int, code: str, message: str = "", **headers: str) -> Callable[[Exchange], bool]:
    """A fixed error in the specification's form."""
    return lambda x: x.error(status, code, message, **headers)


def hang_up(x: Exchange) -> bool:
    """Close without an answer."""
    return x.hang_up()


def reset_at_once(x: Exchange) -> bool:
    """Reset without an answer."""
    return x.reset()


def endless(x: Exchange) -> bool:
    """A body that never ends, without a length."""
    x.start(200, {"Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"})
    block = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
    while not x.registry.released.is_set():
        x.write(block)
    return True


@dataclass
class Refuser:
    """Bearer or Basic authentication in front of a FaultRegistry: tokens are good for ``uses`` requests."""

    realm: str
    uses: int = 1 << 30
    left: dict[str, int] = field(default_factory=dict)

    def __call__(self, x: Exchange) -> bool:
        given = x.headers.get("authorization", "").removeprefix("Bearer ")
        if self.left.get(given, 0) > 0:
            self.left[given] -= 1
            return False
        return x.error(401, "UNAUTHORIZED", WWW_Authenticate=f'Bearer realm="{self.realm}",service="faults"')

    def issue(self) -> str:
        token = uuid.uuid4().hex
        self.left[token] = self.uses
        return token
