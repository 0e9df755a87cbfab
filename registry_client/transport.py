"""HTTP for everything that pybuild fetches or sends: pooled connections, retries, redirects, bounds, redaction.

Owns connections. Never knows about credentials, registries or images; an Authorization header that a caller gives goes to the URL's
own origin and to no other. What speaks HTTP is imported once something is sent: ``plain_connections.py``, and ``connections.py`` for TLS,
proxies and unusual URLs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from weakref import WeakSet

from pybuild.errors import Cancelled

from .exchanges import BLOCK_BYTES, Body, BodyReader, BytesBody, Request, Response, TimeLimits, TlsSettings
from .failures import (
    AnswerTooLarge,
    BadRedirect,
    ConnectionFailed,
    Denied,
    NotFound,
    Offline,
    RateLimited,
    RegistryError,
    Unauthorized,
    UnexpectedStatus,
    error_detail,
)
from .links import is_http, resolved
from .redaction import redact_url, url_host, warning_text
from .retry import retry_after_seconds
from .settings import NetworkSettings, RegistrySettings, is_loopback

if TYPE_CHECKING:
    from .connections import LibraryConnections
    from .plain_connections import PlainConnections

_MAX_REDIRECTS: Final = 10
_MAX_RETRY_AFTER_SECONDS: Final = 60.0
_RETRY_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Transport:
    """Sends requests. Thread-safe. A context manager that closes its connections.

    ``log`` gets one redacted line per request, ``on_warning`` what registries want their users to know, each text once. ``sleep``, ``clock`` (monotonic seconds), ``wall_clock`` (seconds since the epoch, for
    Retry-After dates) and ``jitter`` (0..1) are handed in by tests.
    """

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        network: NetworkSettings | None = None,
        *,
        log: Callable[[str], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings or RegistrySettings()
        self.network = network or NetworkSettings()
        self._log = log
        self._on_warning = on_warning
        self._warned: set[tuple[str, str]] = set()
        self._sleep = sleep or self._interruptible_sleep
        self._sleepers: dict[int, threading.Event] = {}
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._plain: PlainConnections | None = None
        self._library: dict[TlsSettings, LibraryConnections] = {}
        self._connections = _ConnectionsInUse()
        self.requests_sent = 0

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            plain, self._plain = self._plain, None
            library, self._library = list(self._library.values()), {}
        if plain is not None:
            plain.close()
        for connections in library:
            connections.close()

    def send(self, request: Request) -> Response:
        """Send, following redirects and repeating after passing troubles as the request allows. Any status may come back.

        Raises ConnectionFailed, RateLimited, BadRedirect, Offline.
        """
        if self.network.offline:
            raise Offline(request.url)
        if not is_http(request.url):
            raise ConnectionFailed(request.url, "url", "that is not a valid HTTP URL")
        waited = 0.0
        attempt = 1
        while True:
            failure: RegistryError | None = None
            wait: float | None = None
            try:
                response = self._send_following(request)
            except ConnectionFailed as error:
                # A refused connection, an unknown name or a bad certificate doesn't pass by itself soon enough to wait for.
                if not request.retry or error.kind not in ("reset", "stalled", "short", "protocol"):
                    raise
                failure = error
            else:
                if response.status not in _RETRY_STATUSES or not request.retry:
                    return response
                wait = retry_after_seconds(response.headers.get("Retry-After"), now=self._wall_clock())
                if wait is not None and wait > min(
                    _MAX_RETRY_AFTER_SECONDS, self.network.retry_budget_seconds - waited
                ):
                    with response:
                        raise response.error(hint=f"the server asks to wait {wait:.0f} seconds; try again later")
            delay = self.pause_seconds(attempt) if wait is None else wait + self._jitter()
            if attempt >= self.network.attempts or waited + delay > self.network.retry_budget_seconds:
                if failure is not None:
                    raise failure
                return response
            if failure is None:
                response.close()
            self._sleep(delay)
            waited += delay
            attempt += 1

    def pause_seconds(self, attempt: int) -> float:
        """How long to wait after failed attempt number ``attempt`` (from 1): doubling from 0.1 s to 10 s, with jitter."""
        ceiling: float = min(10.0, 0.2 * 2.0 ** min(attempt - 1, 10))
        return ceiling * (0.5 + self._jitter() / 2)

    def pause(self, attempt: int, *, cause: RegistryError | None = None) -> None:
        """Wait as ``pause_seconds`` says, or as long as the server asked with ``cause``. Raises ``cause`` if that is too long."""
        header = cause.retry_after if isinstance(cause, UnexpectedStatus) else None
        wait = retry_after_seconds(header, now=self._wall_clock())
        if wait is not None and cause is not None and wait > _MAX_RETRY_AFTER_SECONDS:
            raise cause
        self._sleep(self.pause_seconds(attempt) if wait is None else wait + self._jitter())

    def interrupt(self, threads: Collection[int]) -> None:
        """Break the connections that these threads (by identifier) are using, so that whoever waits on one stops waiting."""
        import socket

        with self._lock:
            sleepers = [event for thread, event in self._sleepers.items() if thread in threads]
        for event in sleepers:
            event.set()
        for connection in self._connections.all():
            sock = connection.sock
            if connection.thread in threads and sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it is closed already

    def _interruptible_sleep(self, seconds: float) -> None:
        thread = threading.get_ident()
        with self._lock:
            event = self._sleepers[thread] = threading.Event()
        try:
            if event.wait(seconds):
                raise Cancelled
        finally:
            with self._lock:
                self._sleepers.pop(thread, None)

    def _send_following(self, request: Request) -> Response:
        method, url, headers, body = request.method, request.url, dict(request.headers), request.body
        seen = {(method, url)}
        while True:
            response = self._send_once(request, method=method, url=url, headers=headers, body=body)
            response.redirected = url != request.url
            location = response.headers.get("Location")
            if not request.follow or response.status not in _REDIRECTS or not location:
                return response
            if response.status not in (307, 308) and method not in ("GET", "HEAD"):
                if response.status != 303:
                    return response
                method, body = "GET", None
            response.close()
            target = resolved(url, location)
            if target is None:
                raise BadRedirect(url, "it redirects to something that is not HTTP")
            if (method, target) in seen:
                raise BadRedirect(url, "its redirects go in a circle")
            if len(seen) > _MAX_REDIRECTS:
                raise BadRedirect(url, f"it redirects more than {_MAX_REDIRECTS} times")
            if origin(target) != origin(url):
                headers = {k: v for k, v in headers.items() if k.lower() not in ("authorization", "cookie")}
            seen.add((method, target))
            url = target

    def _send_once(
        self, request: Request, *, method: str, url: str, headers: Mapping[str, str], body: Body | None
    ) -> Response:
        sent = dict(headers)
        names = {name.lower() for name in sent}
        if "user-agent" not in names:
            sent["User-Agent"] = self.network.user_agent
        if "accept-encoding" not in names:
            # Never let a server compress: digests and ranges are of the bytes as stored.
            sent["Accept-Encoding"] = "identity"
        if body is None:
            if method not in ("GET", "HEAD"):
                sent["Content-Length"] = "0"
        elif body.size is None:
            sent["Transfer-Encoding"] = "chunked"
        else:
            sent["Content-Length"] = str(body.size)
        reader = None if body is None else body.open()
        start = self._clock()
        try:
            response = self._exchange(request, method=method, url=url, headers=sent, body=reader)
        except RegistryError as error:
            self._note(
                f"{method} {redact_url(url)} failed after {(self._clock() - start) * 1000:.0f} ms: {error.message}"
            )
            raise
        finally:
            if reader is not None:
                reader.close()
        self._note(f"{method} {redact_url(url)} {response.status} {(self._clock() - start) * 1000:.0f} ms")
        if self._on_warning is not None and (text := warning_text(response.headers.get("Warning", ""))):
            with self._lock:
                fresh = (url_host(url), text) not in self._warned
                self._warned.add((url_host(url), text))
            if fresh:
                self._on_warning(f"{url_host(url)}: {text}")
        return response

    def _exchange(
        self, request: Request, *, method: str, url: str, headers: Mapping[str, str], body: BodyReader | None
    ) -> Response:
        answer_seconds = request.answer_timeout_seconds or self.network.stall_timeout_seconds
        proxy = self.network.proxies.for_url(url)
        with self._lock:
            self.requests_sent += 1
        if proxy is None and url.startswith("http:"):
            from .plain_connections import is_plain

            if is_plain(url):
                return self._plain_connections().send(
                    method, url, headers=headers, body=body, answer_seconds=answer_seconds
                )
        connections = self._library_connections(self._tls(url))
        return connections.send(method, url, headers=headers, body=body, answer_seconds=answer_seconds, proxy=proxy)

    def _note(self, line: str) -> None:
        if self._log is not None:
            self._log(line)

    def _tls(self, url: str) -> TlsSettings:
        parts = urlsplit(url)
        if parts.scheme != "https":
            return TlsSettings()
        from .certificates import certificates_for

        host = parts.netloc.rpartition("@")[2]
        found = certificates_for(self.settings, host)
        return TlsSettings(bool(self.settings.host(host).insecure), found.ca, found.keypairs)

    def _limits(self) -> TimeLimits:
        return TimeLimits(self.network.connect_timeout_seconds, self.network.stall_timeout_seconds)

    def _plain_connections(self) -> PlainConnections:
        from .plain_connections import PlainConnections

        with self._lock:
            if self._plain is None:
                self._plain = PlainConnections(users=self._connections, limits=self._limits())
            return self._plain

    def _library_connections(self, tls: TlsSettings) -> LibraryConnections:
        from .connections import LibraryConnections

        with self._lock:
            found = self._library.get(tls)
            if found is None:
                found = self._library[tls] = LibraryConnections(tls, users=self._connections, limits=self._limits())
            return found


class _ConnectionsInUse:
    """The ConnectionUsers of a transport. Thread-safe, which a WeakSet is not: it can't be read while others add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: WeakSet[Any] = WeakSet()  # Any: what speaks HTTP is not imported until it is needed

    def add(self, connection: Any) -> None:  # Any: see above
        with self._lock:
            self._connections.add(connection)

    def all(self) -> list[Any]:  # Any: see above
        with self._lock:
            return list(self._connections)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL, the port filled in: what an Authorization header is good for."""
    try:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return "", url, -1  # it can't be asked for either


__all__ = [
    "BLOCK_BYTES",
    "AnswerTooLarge",
    "BadRedirect",
    "Body",
    "BodyReader",
    "BytesBody",
    "ConnectionFailed",
    "Denied",
    "NotFound",
    "Offline",
    "RateLimited",
    "RegistryError",
    "Request",
    "Response",
    "Transport",
    "Unauthorized",
    "UnexpectedStatus",
    "error_detail",
    "is_loopback",
    "origin",
]
