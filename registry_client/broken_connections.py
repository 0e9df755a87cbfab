"""What an exception of the connection below an exchange means, in our words.

Owns the translation into ConnectionFailed, for http.client and for the HTTP library, which tells its own exceptions. Never sends anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .failures import ConnectionFailed


@dataclass(frozen=True, slots=True)
class LibraryErrors:
    """An HTTP library's own exceptions, by what they mean. ``any``: all of them; ``unconnected``: no connection within the time limit
    (but not ``refused``, which may derive from it)."""

    any: tuple[type[Exception], ...] = ()
    unconnected: tuple[type[Exception], ...] = ()
    refused: tuple[type[Exception], ...] = ()
    stalled: tuple[type[Exception], ...] = ()
    short: tuple[type[Exception], ...] = ()
    proxy: tuple[type[Exception], ...] = ()


class translated_errors:
    """Turns exceptions of the standard library and of ``library`` inside it into ConnectionFailed for ``url``."""

    __slots__ = ("_library", "_url")

    def __init__(self, url: str, *, library: LibraryErrors | None = None) -> None:
        self._url = url
        self._library = library

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, PybuildError) or not isinstance(error, Exception):
            return
        failure = _connection_failed(self._url, error, self._library or LibraryErrors())
        if failure is not None:
            raise failure from error


def _connection_failed(url: str, error: Exception, library: LibraryErrors) -> ConnectionFailed | None:
    import http.client
    import socket
    import ssl

    if not isinstance(error, (http.client.HTTPException, OSError, ValueError, *library.any)):
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
        if isinstance(cause, library.unconnected) and not isinstance(cause, library.refused):
            return ConnectionFailed(url, "connect", "no connection within the time limit")
        if isinstance(cause, (TimeoutError, *library.stalled)):
            return ConnectionFailed(url, "stalled", "the server stopped answering")
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            wrong = "WRONG_VERSION_NUMBER" in str(cause) or "HTTP_REQUEST" in str(cause) or "RECORD_LAYER" in str(cause)
            if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                return ConnectionFailed(url, "reset", "the connection was closed")
            reason = "the server doesn't speak TLS" if wrong else f"TLS failed ({cause.reason or 'unknown reason'})"
            return ConnectionFailed(url, "tls", reason)
        if isinstance(cause, (http.client.IncompleteRead, *library.short)):
            return ConnectionFailed(url, "short", "the answer ended before its length")
        if isinstance(cause, http.client.RemoteDisconnected | ConnectionError):
            return ConnectionFailed(url, "reset", "the connection was closed by the server")
    for cause in causes:
        if isinstance(cause, library.proxy):
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
