"""Contents that a planned layer needs and that are no files of this machine: from archives, and from layers that are not unpacked.

Owns where they wait: in memory while they are few and small, then one after another in one file. Interprets nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Protocol

from pybuild.values import dataclass

_SMALL_BYTES: Final = 1 << 16
_MEMORY_BYTES: Final = 16 << 20
_CHUNK_BYTES: Final = 1 << 20


class Readable(Protocol):
    """What contents come from."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, at least one unless the content has ended."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """Where a content is, in the terms of LayerEntry."""

    size: int
    data: bytes | None = None
    host_path: str | None = None
    offset: int | None = None


class Spool:
    """Keeps contents until the layer is written. A context manager, to be left after that; ``directory`` gives an empty directory of this
    machine and is asked only when one is needed."""

    def __init__(self, directory: Callable[[], str]) -> None:
        self._directory = directory
        self._held = ExitStack()
        self._in_memory = 0
        self._path = ""
        self._file: io.FileIO | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def keep(self, source: Readable, size: int) -> Spooled:
        """Read all of ``source``, whose length should be ``size``."""
        if size <= _SMALL_BYTES and self._in_memory + size <= _MEMORY_BYTES:
            parts: list[bytes] = []
            while chunk := source.read(_CHUNK_BYTES):
                parts.append(chunk)
            data = b"".join(parts)
            self._in_memory += len(data)
            return Spooled(len(data), data)
        file = self._file
        if file is None:
            self._path = f"{self._directory()}/contents"
            # Unbuffered: the layer's writer reads it by its path.
            file = self._held.enter_context(io.FileIO(self._path, "x"))
            self._file = file
        start = file.tell()
        while chunk := source.read(_CHUNK_BYTES):
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
        return Spooled(file.tell() - start, None, self._path, start)
