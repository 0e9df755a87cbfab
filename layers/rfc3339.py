"""Times as images have them: RFC 3339 texts and seconds since the epoch. Reads no clock."""

from __future__ import annotations

import math
import time


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, as Go prints it: no fraction when there is none, no trailing zeros."""
    # By hand: every build needs this, and importing datetime costs more than a cached step.
    part, whole = math.modf(seconds)
    carry, micro = divmod(round(part * 1e6), 1_000_000)
    moment = time.gmtime(whole + carry)
    text = f"{moment[0]:04d}-{moment[1]:02d}-{moment[2]:02d}T{moment[3]:02d}:{moment[4]:02d}:{moment[5]:02d}"
    fraction = f"{micro:06d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def parse_rfc3339(text: str) -> float | None:
    """Seconds since the epoch of RFC 3339 text with up to nine fractional digits, None if it is something else."""
    from datetime import datetime

    try:
        head, dot, tail = text.partition(".")
        if dot:
            digits = len(tail) - len(tail.lstrip("0123456789"))
            text = f"{head}.{tail[:digits][:6].ljust(6, '0')}{tail[digits:]}"
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
