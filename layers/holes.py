"""What of a file needs no writing: long runs of zeros, which are left as holes. Looks at bytes only; reads and writes nothing."""

from __future__ import annotations

from typing import Final

_LEAST_BYTES: Final = 1 << 16
"""Shorter runs aren't worth a file in pieces."""


def is_hole(data: bytes | memoryview) -> bool:
    """True if the chunk is long and holds nothing but zeros."""
    size = len(data)
    # Three bytes tell of nearly every chunk that it isn't; comparing whole ones is memcmp(3).
    return size >= _LEAST_BYTES and not (data[0] or data[size // 2] or data[-1]) and bytes(data) == bytes(size)
