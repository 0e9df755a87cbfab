"""Reading Retry-After (RFC 9110 section 10.2.3). Never waits."""

from __future__ import annotations

from email.utils import parsedate_to_datetime


def retry_after_seconds(value: str | None, *, now: float) -> float | None:
    """Seconds to wait, from a number of seconds or a date; ``now`` in seconds since the epoch. None if absent or senseless."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:18])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
