"""HTTP for everything that pybuild fetches or sends: pooled connections, retries, redirects, bounds, redaction.

Owns connections. Never knows about credentials, registries or images; an Authorization header that a caller gives goes to the URL's
own origin and to no other. requests is imported only here and in ``connections.py``, and only once something is sent.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit
from weakref import WeakSet

from pybuild.errors import Cancelled, PybuildError

from .connections import make_adapter
from .exchanges import BLOCK_BYTES, Body, BodyReader, BytesBody, Request, Response, TlsSettings
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
from .redaction import redact_url, url_host, warning_text
from .retry import retry_after_seconds
from .settings import NetworkSettings, RegistrySettings, is_loopback

if TYPE_CHECKING:
    import ssl

    from requests import PreparedRequest
    from requests.adapters import HTTPAdapter

_SEND_BLOCK_BYTES: Final = 1 << 18
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
        self._adapters: dict[TlsSettings, HTTPAdapter] = {}
        self._connections: WeakSet[Any] = WeakSet()  # Any: urllib3 is not imported until it is needed
        self.requests_sent = 0

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            adapters, self._adapters = list(self._adapters.values()), {}
        for adapter in adapters:
            adapter.close()

    def send(self, request: Request) -> Response:
        """Send, following redirects and repeating after passing troubles as the request allows. Any status may come back.

        Raises ConnectionFailed, RateLimited, BadRedirect, Offline.
        """
        if self.network.offline:
            raise Offline(request.url)
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
            connections = list(self._connections)
            sleepers = [event for thread, event in self._sleepers.items() if thread in threads]
        for event in sleepers:
            event.set()
        for connection in connections:
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
            target = urljoin(url, location)
            parts = urlsplit(target)
            if parts.scheme not in ("http", "https") or not parts.hostname:
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
        import requests

        tls = self._tls(url)
        with translated_errors(url):
            adapter = self._adapter(tls)
            prepared = requests.Request(method, url, headers=dict(headers)).prepare()
        prepared.headers.setdefault("User-Agent", self.network.user_agent)
        # Never let a server compress: digests and ranges are of the bytes as stored.
        prepared.headers.setdefault("Accept-Encoding", "identity")
        if url.isascii():
            prepared.url = url  # as it was signed, not as requests would write it
        reader = None
        if body is not None:
            reader = body.open()
            prepared.body = reader  # type: ignore[assignment]  # urllib3 reads any object with read()
            if body.size is not None:
                prepared.headers["Content-Length"] = str(body.size)
            else:
                prepared.headers["Transfer-Encoding"] = "chunked"
        elif method in ("POST", "PUT", "PATCH"):
            prepared.headers["Content-Length"] = "0"
        start = self._clock()
        try:
            response = self._exchange(request, prepared, adapter=adapter, url=url, tls=tls)
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
        self, request: Request, prepared: PreparedRequest, *, adapter: HTTPAdapter, url: str, tls: TlsSettings
    ) -> Response:
        proxy = self.network.proxies.for_url(url)
        stall = request.answer_timeout_seconds or self.network.stall_timeout_seconds
        with self._lock:
            self.requests_sent += 1
        with translated_errors(url):
            answer = adapter.send(
                prepared,
                stream=True,
                timeout=(self.network.connect_timeout_seconds, stall),
                verify=not tls.insecure,
                proxies={"http": proxy, "https": proxy} if proxy else {},
            )
        return Response(
            method=prepared.method or "",
            url=url,
            status=answer.status_code,
            headers=answer.headers,
            raw=_Raw(answer.raw, url),
        )

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

    def _adapter(self, tls: TlsSettings) -> HTTPAdapter:
        with self._lock:
            adapter = self._adapters.get(tls)
            if adapter is None:
                adapter = self._adapters[tls] = make_adapter(
                    context=lambda: _tls_context(tls),
                    insecure=tls.insecure,
                    connections=self._connections,
                    stall_timeout_seconds=self.network.stall_timeout_seconds,
                    block_bytes=_SEND_BLOCK_BYTES,
                )
            return adapter


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL, the port filled in: what an Authorization header is good for."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    try:
        port = parts.port or default
    except ValueError:
        port = -1
    return parts.scheme, (parts.hostname or "").lower(), port


def _tls_context(tls: TlsSettings) -> ssl.SSLContext:
    from .certificates import tls_context

    return tls_context(insecure=tls.insecure, ca=tls.ca, keypairs=tls.keypairs)


class _Raw:
    """The RawBody of urllib3's response."""

    def __init__(self, response: Any, url: str) -> None:  # Any: urllib3 is not imported until it is needed
        self._response = response
        self._url = url
        # Older versions of urllib3 only have read(), which waits for the whole block.
        self._read = getattr(response, "read1", None) or response.read

    def read(self, size: int) -> bytes:
        with translated_errors(self._url):
            data: bytes = self._read(size, decode_content=False)
        return data

    def release(self) -> None:
        self._response.release_conn()

    def drop(self) -> None:
        self._response.close()


class translated_errors:
    """Turns the HTTP library's exceptions inside it into ConnectionFailed for ``url``."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, PybuildError) or not isinstance(error, Exception):
            return
        failure = _connection_failed(self._url, error)
        if failure is not None:
            raise failure from error


def _connection_failed(url: str, error: Exception) -> ConnectionFailed | None:
    import http.client
    import socket
    import ssl

    import urllib3.exceptions as lower

    # requests' own exceptions are OSErrors.
    if not isinstance(error, lower.HTTPError | http.client.HTTPException | OSError | ValueError):
        return None
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return ConnectionFailed(url, "resolve", "the host name can't be resolved")
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = getattr(cause, "verify_message", "") or "verification failed"
            return ConnectionFailed(url, "tls", f"the server's certificate is not trusted ({reason})")
        if isinstance(cause, ConnectionRefusedError):
            return ConnectionFailed(url, "connect", "the connection was refused")
    for cause in causes:
        if isinstance(cause, lower.ConnectTimeoutError) and not isinstance(cause, lower.NewConnectionError):
            return ConnectionFailed(url, "connect", "no connection within the time limit")
        if isinstance(cause, TimeoutError | lower.ReadTimeoutError):
            return ConnectionFailed(url, "stalled", "the server stopped answering")
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            wrong = "WRONG_VERSION_NUMBER" in str(cause) or "HTTP_REQUEST" in str(cause) or "RECORD_LAYER" in str(cause)
            if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                return ConnectionFailed(url, "reset", "the connection was closed")
            reason = "the server doesn't speak TLS" if wrong else f"TLS failed ({cause.reason or 'unknown reason'})"
            return ConnectionFailed(url, "tls", reason)
        if isinstance(cause, lower.IncompleteRead | http.client.IncompleteRead):
            return ConnectionFailed(url, "short", "the answer ended before its length")
        if isinstance(cause, http.client.RemoteDisconnected | ConnectionError):
            return ConnectionFailed(url, "reset", "the connection was closed by the server")
    for cause in causes:
        if isinstance(cause, lower.ProxyError):
            return ConnectionFailed(url, "connect", "the proxy refused or can't be reached")
        if isinstance(cause, OSError) and cause.errno is not None:
            import os

            return ConnectionFailed(url, "connect", os.strerror(cause.errno).lower())
    return ConnectionFailed(url, "protocol", "the server's answer is not valid HTTP")


def _causes(error: BaseException) -> Iterator[BaseException]:
    # The libraries wrap each other's exceptions in arguments and attributes as well as in __cause__.
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending and len(seen) < 50:
        item = pending.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        pending += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]


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
