"""HTTP for everything that pybuild fetches or sends: pooled connections, retries, redirects, bounds, redaction.

Owns connections. Never knows about credentials, registries or images; an Authorization header that a caller gives goes to the URL's
own origin and to no other. Only this module and its ``pools`` import requests, and only once something is sent.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urljoin, urlsplit

from pybuild.values import dataclass, field

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
    translated_errors,
)
from .redaction import redact_url
from .retry import retry_after_seconds
from .settings import NetworkSettings, RegistrySettings, is_loopback

if TYPE_CHECKING:
    import ssl

    from requests import PreparedRequest
    from requests.adapters import HTTPAdapter

BLOCK_BYTES: Final = 256 << 10
_SEND_BLOCK_BYTES: Final = 1 << 18
_ERROR_BODY_BYTES: Final = 64 << 10
_DRAIN_BYTES: Final = 64 << 10
_MAX_REDIRECTS: Final = 10
_MAX_RETRY_AFTER_SECONDS: Final = 60.0
_RETRY_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Body(Protocol):
    """What a request sends. ``open`` gives a fresh reader at the start; its ``close`` is called by the transport."""

    @property
    def size(self) -> int | None:
        """Length in bytes, None if it isn't known (sent in HTTP chunks then)."""

    def open(self) -> BodyReader: ...


class BodyReader(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BytesBody:
    """A request body that is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> BodyReader:
        import io

        return io.BytesIO(self.data)


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``retry``: repeat it when the answer is a passing trouble (only what may be repeated); ``follow``: follow
    redirects; ``answer_timeout_seconds``: how long the server may be silent, None for the general limit."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    retry: bool = True
    follow: bool = True
    answer_timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How a host's certificate is checked, and what we show it. Paths of PEM files; hashable, as it keys the pools."""

    insecure: bool = False
    ca: tuple[str, ...] = ()
    keypairs: tuple[tuple[str, str], ...] = ()


class Response:
    """An answer whose body is still to be read. A context manager; closing returns the connection to the pool if little is left."""

    def __init__(self, *, method: str, url: str, status: int, headers: Mapping[str, str], raw: RawBody) -> None:
        self.method = method
        self.url = url
        """Where the answer came from, after redirects."""
        self.status = status
        self.headers = headers
        """Case-insensitive."""
        self.redirected = False
        self._raw = raw
        self._ended = False

    @property
    def length(self) -> int | None:
        """The Content-Length, None if there is none that makes sense."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def chunks(self, size: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The body as it is sent, in blocks of up to ``size`` bytes, each as soon as it is there: what arrived before a break is
        never lost. Raises ConnectionFailed if it breaks, stalls or ends short."""
        # Older versions of urllib3 only have read(), which waits for the whole block.
        read = getattr(self._raw, "read1", None) or self._raw.read
        length, total = self.length, 0
        while True:
            with translated_errors(self.url):
                block = read(size, decode_content=False)
            if not block:
                break
            total += len(block)
            yield block
        if length is not None and total < length and self.method != "HEAD" and self.status not in (204, 304):
            raise ConnectionFailed(self.url, "short", "the answer ended before its length")
        self._ended = True

    def read(self, limit: int) -> bytes:
        """The whole body. Raises AnswerTooLarge if it has more than ``limit`` bytes, without reading on."""
        if (self.length or 0) > limit:
            raise AnswerTooLarge(self.url, limit)
        parts: list[bytes] = []
        total = 0
        for block in self.chunks(min(BLOCK_BYTES, limit + 1)):
            total += len(block)
            if total > limit:
                raise AnswerTooLarge(self.url, limit)
            parts.append(block)
        return b"".join(parts)

    def error(self, *, hint: str | None = None) -> UnexpectedStatus:
        """This answer as an error, with what its body says (bounded). Reads the body."""
        codes, detail = error_detail(self._error_body())
        kinds: dict[int, type[UnexpectedStatus]] = {401: Unauthorized, 403: Denied, 404: NotFound, 429: RateLimited}
        kind = kinds.get(self.status, UnexpectedStatus)
        return kind(self.method, self.url, status=self.status, codes=codes, detail=detail, hint=hint)

    def _error_body(self) -> bytes:
        kept = b""
        try:
            for block in self.chunks(4096):
                kept += block
                if len(kept) >= _ERROR_BODY_BYTES:
                    break
        except RegistryError:
            pass
        return kept[:_ERROR_BODY_BYTES]

    def close(self) -> None:
        """Give the connection back, or drop it when more is left than is worth reading. Idempotent."""
        raw = self._raw
        try:
            if not self._ended and self.length is not None and self.length <= _DRAIN_BYTES:
                for _ in self.chunks(_DRAIN_BYTES):
                    pass
        except RegistryError:
            pass
        if self._ended:
            raw.release_conn()
        else:
            raw.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawBody(Protocol):
    """The part of urllib3's response that is used."""

    def read(self, amt: int | None = None, decode_content: bool | None = None) -> bytes: ...

    def close(self) -> None: ...

    def release_conn(self) -> None: ...


class Transport:
    """Sends requests. Thread-safe. A context manager that closes its connections.

    ``log`` gets one redacted line per request. ``sleep``, ``clock`` (monotonic seconds), ``wall_clock`` (seconds since the epoch, for
    Retry-After dates) and ``jitter`` (0..1) are handed in by tests.
    """

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        network: NetworkSettings | None = None,
        *,
        log: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings or RegistrySettings()
        self.network = network or NetworkSettings()
        self._log = log
        self._sleep = sleep
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._adapters: dict[TlsSettings, HTTPAdapter] = {}
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
                if attempt >= self.network.attempts:
                    return response
                response.close()
            if failure is not None and attempt >= self.network.attempts:
                raise failure
            delay = self.pause_seconds(attempt) if wait is None else wait + self._jitter()
            if waited + delay > self.network.retry_budget_seconds:
                if failure is not None:
                    raise failure
                return response
            self._sleep(delay)
            waited += delay
            attempt += 1

    def pause_seconds(self, attempt: int) -> float:
        """How long to wait after failed attempt number ``attempt`` (from 1): doubling from 0.1 s to 10 s, with jitter."""
        ceiling: float = min(10.0, 0.2 * 2.0 ** min(attempt - 1, 10))
        return ceiling * (0.5 + self._jitter() / 2)

    def pause(self, attempt: int) -> None:
        """Wait as ``pause_seconds`` says."""
        self._sleep(self.pause_seconds(attempt))

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
            method=prepared.method or "", url=url, status=answer.status_code, headers=answer.headers, raw=answer.raw
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
                adapter = self._adapters[tls] = _make_adapter(tls, self.network)
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


def _make_adapter(tls: TlsSettings, network: NetworkSettings) -> HTTPAdapter:
    from .pools import make_adapter

    return make_adapter(
        context=lambda: _tls_context(tls),
        stall_timeout_seconds=network.stall_timeout_seconds,
        block_bytes=_SEND_BLOCK_BYTES,
    )


def _tls_context(tls: TlsSettings) -> ssl.SSLContext:
    from .certificates import tls_context

    return tls_context(insecure=tls.insecure, ca=tls.ca, keypairs=tls.keypairs)


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
    "is_loopback",
    "origin",
]
