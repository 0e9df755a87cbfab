"""Compresses streams as images have them: gzip, zstd, or not at all. Reading them is ``decompression``'s, whose names are also here.

Owns the choice of codec, level and threads; never looks at what it compresses. Output depends on the input, the kind and the
level alone, never on the number of threads or on how the input was cut into writes. Codecs are imported when they are first used.

A gzip stream is one member with a bare header (RFC 1952: no name, no time). It is made of blocks of 1 MiB of input, each
deflated on its own with the 32 KiB before it as dictionary and ended on a byte boundary, so that threads can share the work.
Above level 3, runs of pieces of a block that samples show to be incompressible (media, archives, keys) are deflated on their own
by igzip's first level, which passes over such bytes 14 times as fast as zlib-ng and still takes what the samples missed.
"""

from __future__ import annotations

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias, assert_never

from pybuild.errors import UsageError

from .decompression import CorruptStream as CorruptStream
from .decompression import DecompressedStream as DecompressedStream
from .decompression import ReadAhead as ReadAhead
from .decompression import StreamTooLarge as StreamTooLarge
from .decompression import decompressed as decompressed
from .decompression import sniff as sniff
from .descriptor import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_FOREIGN_GZIP,
    OCI_LAYER_FOREIGN_ZSTD,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
)

_BLOCK_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 17
_SAMPLE_BYTES: Final = 1 << 11
_WINDOW_BYTES: Final = 1 << 15

Sink: TypeAlias = Callable[[bytes], object]


class Compression(Enum):
    """How a layer's tar is stored in its blob. Values are the names that ``compression=`` takes."""

    UNCOMPRESSED = "uncompressed"
    GZIP = "gzip"
    ZSTD = "zstd"

    @property
    def oci_media_type(self) -> str:
        """The layer media type of the OCI image specification."""
        return {"uncompressed": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}[self.value]

    @property
    def docker_media_type(self) -> str:
        """The layer media type of Docker's schema 2 manifests."""
        return {"uncompressed": DOCKER_LAYER, "gzip": DOCKER_LAYER_GZIP, "zstd": DOCKER_LAYER_ZSTD}[self.value]

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read a name. Raises UsageError."""
        try:
            return cls(text)
        except ValueError:
            names = ", ".join(kind.value for kind in cls)
            raise UsageError(f"unsupported compression type {text!r}", hint=f"one of: {names}") from None

    @classmethod
    def of_media_type(cls, media_type: str) -> Compression:
        """The compression that a layer's media type announces; what is unknown counts as uncompressed."""
        if media_type in (OCI_LAYER_GZIP, DOCKER_LAYER_GZIP, OCI_LAYER_FOREIGN_GZIP) or media_type.endswith("gzip"):
            return cls.GZIP
        if media_type in (OCI_LAYER_ZSTD, DOCKER_LAYER_ZSTD, OCI_LAYER_FOREIGN_ZSTD) or media_type.endswith("zstd"):
            return cls.ZSTD
        return cls.UNCOMPRESSED


# --- compression -------------------------------------------------------------------------------------------------------


class Compressor(ABC):
    """Takes bytes by ``write`` and gives compressed ones to its sink, from the writing thread; ``close`` completes the stream.

    A context manager: closes on success; on an exception it drops what is unfinished. The sink is not closed.
    """

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take more input. The buffer may be reused afterwards."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and the trailer, and stop the threads."""

    @abstractmethod
    def abandon(self) -> None:
        """Stop the threads without completing the stream. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def compressor(kind: Compression, sink: Sink, *, level: int | None = None, threads: int | None = None) -> Compressor:
    """A compressor of ``kind`` that writes to ``sink``.

    ``level``: None for the default; gzip 0–9, zstd 0–22 (0: the default). ``threads``: at most so many; None takes
    those that this process may run on. Raises UsageError for a level that doesn't exist.
    """
    count = len(os.sched_getaffinity(0)) if threads is None else max(1, threads)
    match kind:
        case Compression.UNCOMPRESSED:
            return _Identity(sink)
        case Compression.GZIP:
            return _Gzip(sink, level=level, threads=count)
        case Compression.ZSTD:
            return _Zstd(sink, level=level, threads=count)
        case _:
            assert_never(kind)


def check_level(kind: Compression, level: int | None) -> None:
    """Raise UsageError if ``kind`` has no such level."""
    highest = {Compression.GZIP: 9, Compression.ZSTD: 22, Compression.UNCOMPRESSED: 22}[kind]
    if level is not None and not 0 <= level <= highest:
        raise UsageError(f"compression level {level} is invalid for {kind.value}", hint=f"use 0 to {highest}")


class _Identity(Compressor):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._sink(bytes(data))
        return len(data)

    def close(self) -> None:
        return None

    def abandon(self) -> None:
        return None


class _Zstd(Compressor):
    def __init__(self, sink: Sink, *, level: int | None, threads: int) -> None:
        check_level(Compression.ZSTD, level)
        import zstandard

        self._sink = sink
        # Workers cut the input into jobs of a fixed size, so their number doesn't show in the output, but having none does.
        self._zstd = zstandard.ZstdCompressor(level=level or 3, threads=threads, write_checksum=True).compressobj()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        if out := self._zstd.compress(data):
            self._sink(out)
        return len(data)

    def close(self) -> None:
        if out := self._zstd.flush():
            self._sink(out)

    def abandon(self) -> None:
        return None


class _RawDeflater(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


_SYNC_FLUSH: Final = 2  # zlib.h; the same in every codec
_FINISH: Final = 4
_GZIP_DEFAULT_LEVEL: Final = 6
_GZIP_END: Final = b"\x03\x00"  # RFC 1951: a final block with fixed codes and nothing in it


def _deflaters(level: int) -> Callable[[bytes], _RawDeflater]:
    """Makes raw deflate streams (with a preset dictionary) of ``level``.

    igzip is the fastest up to its highest level, 3, whose size is that of zlib's first; above, zlib-ng gives zlib's sizes at more
    than twice its speed. The standard library's zlib stands in where zlib-ng is missing: valid, but other bytes.
    """
    codec: Any  # three modules with one interface and no common type
    if 1 <= level <= 3:
        from isal import isal_zlib as codec
    else:
        try:
            from zlib_ng import zlib_ng as codec
        except ImportError:
            import zlib as codec
    method, make = codec.DEFLATED, codec.compressobj

    def deflater(dictionary: bytes) -> _RawDeflater:
        stream: _RawDeflater
        if dictionary:
            stream = make(level, method, -15, zdict=dictionary)
        else:
            stream = make(level, method, -15)
        return stream

    return deflater


class _Gzip(Compressor):
    def __init__(self, sink: Sink, *, level: int | None, threads: int) -> None:
        check_level(Compression.GZIP, level)
        from isal import isal_zlib

        self._sink = sink
        self._crc32: Callable[[bytes, int], int] = isal_zlib.crc32
        self._level = _GZIP_DEFAULT_LEVEL if level is None else level
        self._deflater = _deflaters(self._level)
        self._quick = _deflaters(1) if self._level > 3 else None
        self._block = bytearray()
        self._dictionary = b""
        self._crc = 0
        self._length = 0
        self._threads = threads
        self._workers: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: deque[_Job] = deque()
        # RFC 1952, 2.3: magic, deflate, no flags, no time, XFL as gzip(1) sets it, OS 255 (unknown)
        sink(b"\x1f\x8b\x08\x00\x00\x00\x00\x00" + {9: b"\x02", 1: b"\x04"}.get(self._level, b"\x00") + b"\xff")

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data)
        start, length = 0, len(view)
        while start < length:
            room = _BLOCK_BYTES - len(self._block)
            self._block += view[start : start + room]
            start += room
            if len(self._block) == _BLOCK_BYTES:
                self._submit()
        return length

    def close(self) -> None:
        if self._block:
            if self._workers:
                self._submit()
            else:
                self._emit(self._next_job().run(self._deflater, self._quick))
        while self._running:
            self._collect()
        self._sink(_GZIP_END + self._crc.to_bytes(4, "little") + (self._length & 0xFFFFFFFF).to_bytes(4, "little"))
        self.abandon()

    def abandon(self) -> None:
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.join()
        self._workers = []
        self._running.clear()

    def _next_job(self) -> _Job:
        data = bytes(self._block)
        self._block.clear()
        job = _Job(data, self._dictionary)
        self._dictionary = data[-_WINDOW_BYTES:]
        return job

    def _submit(self) -> None:
        job = self._next_job()
        if self._threads == 1:
            self._emit(job.run(self._deflater, self._quick))
            return
        if len(self._workers) < self._threads:
            worker = threading.Thread(target=self._work, name="gzip", daemon=True)
            worker.start()
            self._workers.append(worker)
        self._running.append(job)
        self._jobs.put(job)
        while len(self._running) > 2 * self._threads or (self._running and self._running[0].done.is_set()):
            self._collect()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.run(self._deflater, self._quick)
            except BaseException as error:  # handed to the writing thread
                job.error = error
            job.done.set()

    def _collect(self) -> None:
        job = self._running.popleft()
        job.done.wait()
        if job.error is not None:
            raise job.error
        self._emit(job)

    def _emit(self, job: _Job) -> None:
        # Checksums of blocks can't be joined without zlib's crc32_combine; igzip's CRC is too fast to matter here.
        self._crc = self._crc32(job.data, self._crc)
        self._length += len(job.data)
        self._sink(job.output)


class _Job:
    """One block being deflated."""

    __slots__ = ("data", "dictionary", "done", "error", "output")

    def __init__(self, data: bytes, dictionary: bytes) -> None:
        self.data = data
        self.dictionary = dictionary
        self.output = b""
        self.done = threading.Event()
        self.error: BaseException | None = None

    def run(self, deflater: Callable[[bytes], _RawDeflater], quick: Callable[[bytes], _RawDeflater] | None) -> _Job:
        """``quick``: what makes the streams of incompressible pieces; None if ``deflater`` is as quick itself."""
        runs = [(0, len(self.data), False)] if quick is None else _runs(self.data, quick)
        parts: list[bytes] = []
        for start, end, incompressible in runs:
            before = self.data[start - _WINDOW_BYTES : start] if start else self.dictionary
            stream = quick(b"") if quick is not None and incompressible else deflater(before)
            parts += (stream.compress(self.data[start:end]), stream.flush(_SYNC_FLUSH))
        self.output = b"".join(parts)
        return self


def _runs(data: bytes, quick: Callable[[bytes], _RawDeflater]) -> list[tuple[int, int, bool]]:
    """``data`` as runs: where each starts and ends, and whether it is incompressible as far as samples tell."""
    runs: list[tuple[int, int, bool]] = []
    for start in range(0, len(data), _PIECE_BYTES):
        end = min(start + _PIECE_BYTES, len(data))
        incompressible = end - start == _PIECE_BYTES and _incompressible(data, start, quick)
        if runs and runs[-1][2] == incompressible:
            start = runs.pop()[0]
        runs.append((start, end, incompressible))
    return runs


def _incompressible(data: bytes, start: int, quick: Callable[[bytes], _RawDeflater]) -> bool:
    sample = b"".join(data[at : at + _SAMPLE_BYTES] for at in range(start, start + _PIECE_BYTES, _PIECE_BYTES // 4))
    stream = quick(b"")
    return len(stream.compress(sample)) + len(stream.flush(_SYNC_FLUSH)) > len(sample) * 0.97
