"""What can go wrong between us and a server, and what of it is told.

    RegistryError
    ├── ConnectionFailed       no answer, or it broke: refused, reset, stalled, short, TLS
    ├── UnexpectedStatus       an answer that isn't the one asked for
    │   ├── NotFound (404) · Unauthorized (401) · Denied (403) · RateLimited (429)
    ├── AnswerTooLarge         more bytes than the answer may have
    ├── BadRedirect            a loop, too many, or one that leads nowhere
    └── Offline                the network is not to be used

Owns these errors and the translation of the HTTP library's. Never sends anything.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pybuild.errors import PybuildError

from .redaction import printable, redact_url


class RegistryError(PybuildError):
    """Anything that goes wrong between us and a registry or another server."""


class Offline(RegistryError):
    """A request was needed while the network is not to be used."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{redact_url(url)} is needed, but the network is off", hint="run without --offline")


class ConnectionFailed(RegistryError):
    """The connection couldn't be made or broke. ``kind``: ``connect``, ``resolve``, ``reset``, ``stalled``, ``short``, ``tls``,
    ``url`` or ``protocol``."""

    def __init__(self, url: str, kind: str, reason: str) -> None:
        hint = None
        if kind == "tls":
            host = urlsplit(url).netloc.rpartition("@")[2]
            hint = f'trust its authority with ca = ["FILE"] under [registry."{host}"], or set insecure = true there'
        super().__init__(f"{redact_url(url)}: {reason}", hint=hint)
        self.url = redact_url(url)
        self.kind = kind
        self.reason = reason


class AnswerTooLarge(RegistryError):
    """A server sent more than the answer may have."""

    def __init__(self, url: str, limit: int) -> None:
        super().__init__(f"{redact_url(url)}: the answer is larger than the {limit} bytes that are allowed")
        self.limit = limit


class BadRedirect(RegistryError):
    """Redirects that loop, don't end, or don't lead to HTTP."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{redact_url(url)}: {reason}")


class UnexpectedStatus(RegistryError):
    """An HTTP status that the operation has no use for. ``codes`` and ``detail`` are the registry's own, if it gave any;
    ``retry_after`` is the header's text."""

    def __init__(
        self,
        method: str,
        url: str,
        *,
        status: int,
        codes: tuple[str, ...] = (),
        detail: str = "",
        retry_after: str | None = None,
        hint: str | None = None,
    ) -> None:
        said = f": {detail}" if detail else ""
        super().__init__(f"{method} {redact_url(url)}: {self._word(status)}{said}", hint=hint)
        self.method = method
        self.url = redact_url(url)
        self.status = status
        self.codes = codes
        self.detail = detail
        self.retry_after = retry_after

    @staticmethod
    def _word(status: int) -> str:
        words = {
            400: "bad request",
            401: "authentication required",
            403: "access denied",
            404: "not found",
            405: "not supported by the registry",
            413: "too large for the registry",
            416: "range not satisfiable",
            429: "too many requests",
        }
        word = words.get(status)
        return f"{word} (status {status})" if word else f"unexpected status {status}"


class NotFound(UnexpectedStatus):
    """Status 404."""


class Unauthorized(UnexpectedStatus):
    """Status 401, after whatever credentials there were had been tried."""


class Denied(UnexpectedStatus):
    """Status 403."""


class RateLimited(UnexpectedStatus):
    """Status 429, and waiting as the server asks would take too long."""


def error_detail(body: bytes) -> tuple[tuple[str, ...], str]:
    """The codes and messages of a registry's error body (distribution specification, "Error Codes"), else its first words."""
    import json

    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        text = body[:300].decode("utf-8", "replace").strip()
        return (), "" if text.startswith("<") else printable(text, limit=200)
    errors = value.get("errors")
    codes: list[str] = []
    texts: list[str] = []
    for item in errors[:5] if isinstance(errors, list) else []:
        if not isinstance(item, dict):
            continue
        code, message, detail = item.get("code"), item.get("message"), item.get("detail")
        if isinstance(code, str) and code:
            codes.append(printable(code, limit=60))
        text = message if isinstance(message, str) and message else code if isinstance(code, str) else ""
        if isinstance(detail, str) and detail and detail != text:
            text = f"{text} ({detail})"
        if text:
            texts.append(printable(text, limit=300))
    if not texts:
        for key in ("message", "error_description", "error", "details", "detail"):
            if isinstance(value.get(key), str) and value[key]:
                texts.append(printable(value[key], limit=300))
                break
    return tuple(codes), "; ".join(texts)
