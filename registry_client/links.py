"""What servers' headers refer to: URLs that may be relative, or none at all, and Link headers (RFC 8288) for the pages of lists. Values only."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

_LINK = re.compile(r"<([^<>]*)>((?:[ \t]*;[ \t]*[^\s,;=]+(?:[ \t]*=[ \t]*(?:\"(?:[^\"\\]|\\.)*\"|[^\s,;\"]*))?)*)")
_PARAMETER = re.compile(r";[ \t]*([^\s,;=]+)[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,;\"]*))")
_LIMIT = 16 << 10


def is_http(url: str) -> bool:
    """False for what is no URL of a web server: another scheme, no host, an impossible port or address."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def resolved(url: str, location: str) -> str | None:
    """The URL that ``location`` means in an answer from ``url``, None if it is none of a web server."""
    try:
        target = urljoin(url, location)
    except ValueError:
        return None
    return target if is_http(target) else None


def next_link(header: str) -> str | None:
    """The target of the link whose relation is ``next``, as it is written (perhaps relative); None if there is none."""
    for match in _LINK.finditer(header[:_LIMIT]):
        for parameter in _PARAMETER.finditer(match.group(2)):
            value = parameter.group(2) if parameter.group(2) is not None else parameter.group(3)
            if parameter.group(1).lower() == "rel" and "next" in value.lower().split():
                return match.group(1).strip() or None
    return None
