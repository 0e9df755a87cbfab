"""URLs without the credentials in them, for whatever is stored or shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

_MASK = "xxxxx"


def mask_credentials(text: str) -> str:
    """``https://user:password@host/path`` as ``https://xxxxx:xxxxx@host/path``; what is no URL stays as it is."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return text
    user_info, at, host = parts.netloc.rpartition("@")
    if not parts.scheme or not at:
        return text
    user, colon, password = user_info.partition(":")
    masked = (_MASK if user else "") + (f":{_MASK}" if colon and password else colon)
    return urlunsplit(parts._replace(netloc=f"{masked}@{host}"))
