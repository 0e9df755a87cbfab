"""Requests and answers as values, independent of the HTTP library: bodies that can be sent again, answers that are read within bounds.

Never opens a connection.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from pybuild.values import dataclass, field

from .failures import (
    AnswerTooLarge,
    ConnectionFailed,
    Denied,
    NotFound,
    RateLimited,
    RegistryError,
    Unauthorized,
    UnexpectedStatus,
    error_detail,
)

BLOCK_BYTES: Final = 256 << 10
_ERROR_BODY_BYTES: Final = 64 << 10
_DRAIN_BYTES: Final = 64 << 10


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


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """For connections, in seconds: until one is there, and without any progress while something is sent."""

    connect_seconds: float
    stall_seconds: float


class ConnectionUsers(Protocol):
    """Where connections say that they are in use; each has ``sock`` and ``thread``, its user's identifier."""

    def add(self, connection: Any, /) -> None: ...  # Any: http.client's or the HTTP library's


class RawBody(Protocol):
    """The connection behind an answer. Raises ConnectionFailed when it breaks."""

    def read(self, size: int) -> bytes:
        """What has arrived, at most ``size`` bytes; nothing at the end."""

    def release(self) -> None:
        """Everything is read: the connection can be used again."""

    def drop(self) -> None:
        """Close the connection."""


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
        length, total = self.length, 0
        while True:
            block = self._raw.read(size)
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
        return kind(
            self.method,
            self.url,
            status=self.status,
            codes=codes,
            detail=detail,
            retry_after=self.headers.get("Retry-After"),
            hint=hint,
        )

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
            raw.release()
        else:
            raw.drop()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and not self._ended:
            self._raw.drop()  # who was interrupted must not wait for the rest
        else:
            self.close()
