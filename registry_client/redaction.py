"""What may be shown of a URL or of a server's text. Never sees a header or a body of ours."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

_WARNING: Final = re.compile(r'299 - "((?:[^"\\]|\\.)*)"\Z')
# Parameters that the distribution specification and the token protocol define and that hold no secret.
_SHOWN: Final = frozenset(
    {"digest", "mount", "from", "n", "last", "ns", "artifactType", "scope", "service", "client_id", "offline_token"}
)


def redact_url(url: str) -> str:
    """The URL without user information, fragment, and the values of parameters that may be signatures or upload states."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return "(unreadable URL)"
    query = "&".join(f"{quote(k, safe='')}={quote(v, safe=':/,*') if k in _SHOWN else '…'}" for k, v in pairs)
    if parts.query and not pairs:
        query = "…"
    return printable(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, "")), limit=500)


def printable(text: str, *, limit: int) -> str:
    """``text`` on one line, without control characters, at most ``limit`` characters."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def url_host(url: str) -> str:
    """The URL's host and port."""
    return urlsplit(url).netloc.rpartition("@")[2]


def warning_text(header: str) -> str:
    """What a Warning header tells the user (distribution specification, "Warnings"), empty if it is another kind."""
    match = _WARNING.match(header.strip()[:4096])
    return "" if match is None else printable(re.sub(r"\\(.)", r"\1", match.group(1)), limit=500)
