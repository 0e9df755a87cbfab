"""Keeps a long-lived process small: how its allocator behaves, and giving back what it holds without need. Knows no request.

Without it a daemon grows for as long as it runs, though its objects don't: glibc gives each thread an arena of its own, raises the size from
which blocks are mapped (and thereby given back) as soon as one such block was freed, and returns to the kernel only what lies at an
arena's end (mallopt(3), malloc_trim(3)).
"""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pybuild.layers.database import Database

# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_ARENAS: Final = 2
_MAPPED_FROM_BYTES: Final = 256 << 10
_TRIMMED_FROM_BYTES: Final = 1 << 20


def limit_allocator() -> None:
    """Few arenas, and large buffers outside them. To be called before there are threads; does nothing with another C library than glibc."""
    import ctypes

    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIMMED_FROM_BYTES)


def settle() -> None:
    """What is there now stays: the collector needn't look at it again. It collects the oldest generation only when that has grown by a
    quarter, which with all modules in it is many builds' garbage."""
    gc.collect()
    gc.freeze()
    gc.collect()  # how large the oldest generation is counts as of its last collection


def give_back(database: Database) -> None:
    """Collect cycles, empty the database's page caches, and return free memory to the kernel. Takes some ten milliseconds."""
    import ctypes

    gc.collect()
    database.shrink()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
