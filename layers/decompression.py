"""Decompresses streams by what they contain, not by what they are called: gzip, zstd, bzip2, xz, or nothing at all.

Owns telling a complete stream from a truncated or damaged one, and bounds on what comes out. Codecs are imported when they are first
used. ``ReadAhead`` does it in a thread of its own.
"""

from __future__ import annotations

import io
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from pybuild.errors import PybuildError

if TYPE_CHECKING:
    import zstandard

_INPUT_BYTES: Final = 1 << 18
_OUTPUT_BYTES: Final = 1 << 20
_GZIP_HEADER_BYTES: Final = 1 << 17
# What `zstd -d` accepts without --long; also bounds the memory that a hostile frame can ask for.
_ZSTD_WINDOW_BYTES: Final = 1 << 27


class CorruptStream(PybuildError):
    """Compressed content is damaged or ends too early. ``kind``: gzip, zstd, bzip2, xz."""

    def __init__(self, kind: str, *, what: str) -> None:
        super().__init__(f"invalid {kind} stream: {what}")
        self.kind = kind


class StreamTooLarge(PybuildError):
    """Content decompresses to more than its reader accepts."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the content decompresses to more than the {limit_bytes} bytes allowed here")
        self.limit_bytes = limit_bytes


# --- decompression -----------------------------------------------------------------------------------------------------

MAGIC_BYTES: Final = 6
"""How much of a stream's beginning ``sniff`` looks at."""


def sniff(prefix: bytes) -> str:
    """``gzip``, ``zstd``, ``bzip2`` or ``xz`` by the first bytes of a stream, ``""`` if it is none of them."""
    if prefix.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    # RFC 8878, 3.1: a frame, or a skippable frame in front of it
    if prefix.startswith(b"\x28\xb5\x2f\xfd") or (prefix[1:4] == b"\x2a\x4d\x18" and prefix[0] & 0xF0 == 0x50):
        return "zstd"
    if prefix.startswith(b"BZh"):
        return "bzip2"
    if prefix.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    return ""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Decoder(Protocol):
    """What bz2, lzma and igzip have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


class DecompressedStream(io.RawIOBase):
    """What a stream holds once it is decompressed, whatever it was compressed with; read as it is if it wasn't.

    ``kind`` is what ``sniff`` found. Reading raises CorruptStream, also when the source ends inside of a compressed stream, and
    StreamTooLarge beyond ``limit_bytes``. Closing it does not close the source.
    """

    def __init__(self, source: _Readable, *, limit_bytes: int | None = None) -> None:
        prefix = b""
        while len(prefix) < MAGIC_BYTES and (more := source.read(MAGIC_BYTES - len(prefix))):
            prefix += more
        self.kind = sniff(prefix)
        self._chunks: _Chunks
        match self.kind:
            case "":
                self._chunks = _Plain(source, prefix)
            case "zstd":
                self._chunks = _ZstdFrames(source, prefix)
            case _:
                self._chunks = _Members(source, prefix, self.kind)
        self._left = limit_bytes
        self._limit = limit_bytes
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def next_chunk(self) -> bytes:
        """The next piece of content, of a size that suits the codec; ``b""`` at the end. Not to be mixed with ``read``."""
        chunk = self._chunks.read()
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0:
                raise StreamTooLarge(self._limit or 0)
        return chunk

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        if not self._pending:
            self._pending = memoryview(self.next_chunk())
        count = min(len(buffer), len(self._pending))
        memoryview(buffer)[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, at least one unless the content has ended; all that is left if ``size`` is negative."""
        if size < 0:
            return self.readall()
        if not self._pending:
            self._pending = memoryview(self.next_chunk())
        out = self._pending[:size]
        self._pending = self._pending[size:]
        return bytes(out)

    def readall(self) -> bytes:
        parts = [bytes(self._pending)]
        self._pending = memoryview(b"")
        while chunk := self.next_chunk():
            parts.append(chunk)
        return b"".join(parts)


def decompressed(source: BinaryIO, *, limit_bytes: int | None = None) -> DecompressedStream:
    """Read ``source`` decompressed, by its content and not by its name. ``limit_bytes`` bounds what comes out."""
    return DecompressedStream(source, limit_bytes=limit_bytes)


class _Chunks(ABC):
    @abstractmethod
    def read(self) -> bytes: ...


class _Plain(_Chunks):
    def __init__(self, source: _Readable, prefix: bytes) -> None:
        self._source = source
        self._prefix = prefix

    def read(self) -> bytes:
        if self._prefix:
            prefix, self._prefix = self._prefix, b""
            return prefix + self._source.read(_OUTPUT_BYTES)
        return self._source.read(_OUTPUT_BYTES)


def _decoder(kind: str) -> _Decoder:
    decoder: _Decoder
    match kind:
        case "gzip":
            from isal import igzip_lib

            decoder = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
        case "bzip2":
            import bz2

            decoder = bz2.BZ2Decompressor()
        case _:
            import lzma

            decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 30)
    return decoder


class _Members(_Chunks):
    """Streams of one codec, one after the other, as gzip, bzip2 and xz allow; zero bytes after the last one are padding."""

    def __init__(self, source: _Readable, prefix: bytes, kind: str) -> None:
        self._source = source
        self._kind = kind
        self._input = self._whole_header(prefix)
        self._decoder: _Decoder | None = _decoder(kind)
        self._codec_errors = _codec_errors(kind)

    def read(self) -> bytes:
        while self._decoder is not None:
            decoder = self._decoder
            if decoder.needs_input and not self._input:
                self._input = self._source.read(_INPUT_BYTES)
                if not self._input:
                    raise CorruptStream(self._kind, what="it ends too early")
            data, self._input = self._input, b""
            try:
                out = decoder.decompress(data, _OUTPUT_BYTES)
            except self._codec_errors as error:
                raise CorruptStream(self._kind, what=str(error).lower()) from error
            if decoder.eof:
                self._next_member(decoder.unused_data)
            if out:
                return out
        return b""

    def _next_member(self, rest: bytes) -> None:
        self._decoder = None
        rest = rest.lstrip(b"\0")
        while len(rest) < MAGIC_BYTES and (more := self._source.read(_INPUT_BYTES)):
            rest = (rest + more).lstrip(b"\0")
        if not rest:
            return
        if sniff(rest) != self._kind:
            raise CorruptStream(self._kind, what="something else follows its end")
        self._input, self._decoder = self._whole_header(rest), _decoder(self._kind)

    def _whole_header(self, data: bytes) -> bytes:
        # igzip computes a header's own checksum (FHCRC, RFC 1952) wrongly when the header comes in pieces.
        if self._kind == "gzip" and len(data) > 3 and data[3] & 2:
            while len(data) < _GZIP_HEADER_BYTES and (more := self._source.read(_INPUT_BYTES)):
                data += more
        return data


def _codec_errors(kind: str) -> tuple[type[BaseException], ...]:
    match kind:
        case "gzip":
            from isal import igzip_lib

            igzip_error: Any = igzip_lib.error  # a class, which its stub takes for an instance
            return (igzip_error, EOFError, ValueError)
        case "bzip2":
            return (OSError, EOFError, ValueError)
        case _:
            import lzma

            return (lzma.LZMAError, EOFError, ValueError, MemoryError)


class _ZstdFrames(_Chunks):
    """zstd frames one after the other. The library's reader bounds its output but can't tell an end from a truncation, so the
    frames are followed here block by block."""

    def __init__(self, source: _Readable, prefix: bytes) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._frames = _FrameFollower(source, prefix)
        decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        frames: Any = self._frames  # it has the one method that the library calls, but isn't a whole IO[bytes]
        self._reader: zstandard.ZstdDecompressionReader = decoder.stream_reader(
            frames, read_size=_INPUT_BYTES, read_across_frames=True
        )

    def read(self) -> bytes:
        try:
            out = self._reader.read(_OUTPUT_BYTES)
        except self._error as error:
            raise CorruptStream("zstd", what=str(error).removeprefix("zstd decompress error: ").lower()) from error
        if not out and not self._frames.complete:
            raise CorruptStream("zstd", what="it ends too early")
        return bytes(out)


class _FrameFollower:
    """Passes a zstd stream on and follows its structure (RFC 8878, 3.1): frame headers and block headers, skipping what they
    announce. ``complete``: what was read so far ends at the end of a frame."""

    def __init__(self, source: _Readable, prefix: bytes) -> None:
        self._source = source
        self._prefix = prefix
        self._skip = 0
        self._partial = b""
        self._step: Callable[[bytes], int] = self._magic
        self._needed = 4
        self._checksum = False
        self.complete = True

    def read(self, size: int) -> bytes:
        if self._prefix:
            data, self._prefix = self._prefix, b""
        else:
            data = self._source.read(size)
        self._follow(data)
        return data

    def _follow(self, data: bytes) -> None:
        position, length = 0, len(data)
        while position < length:
            if self._skip:
                step = min(self._skip, length - position)
                self._skip -= step
                position += step
                continue
            missing = self._needed - len(self._partial)
            self._partial += data[position : position + missing]
            position += missing
            if len(self._partial) >= self._needed:
                head, self._partial = self._partial, b""
                self._skip = self._step(head)
        between = self._step == self._magic and not self._partial
        self.complete = between and not self._skip

    def _expect(self, step: Callable[[bytes], int], needed: int) -> None:
        self._step, self._needed = step, needed

    def _magic(self, head: bytes) -> int:
        if head == b"\x28\xb5\x2f\xfd":
            self._expect(self._descriptor, 1)
        else:  # a skippable frame; anything else is refused by the library
            self._expect(self._skippable, 4)
        return 0

    def _skippable(self, head: bytes) -> int:
        self._expect(self._magic, 4)
        return int.from_bytes(head, "little")

    def _descriptor(self, head: bytes) -> int:
        flags = head[0]
        single_segment, self._checksum = flags >> 5 & 1, bool(flags >> 2 & 1)
        size_bytes = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
        self._expect(self._block, 3)
        return (1 - single_segment) + (0, 1, 2, 4)[flags & 3] + size_bytes

    def _block(self, head: bytes) -> int:
        header = int.from_bytes(head, "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        stored = 1 if kind == 1 else size  # a run-length block holds one byte, whatever it stands for
        if last:
            self._expect(self._magic, 4)
            return stored + (4 if self._checksum else 0)
        return stored


# --- read-ahead --------------------------------------------------------------------------------------------------------


class ReadAhead(io.RawIOBase):
    """Reads a stream in a thread of its own, up to ``depth`` chunks ahead, so that decompressing goes on beside what uses it.

    ``on_chunk`` is called in that thread with every chunk (to hash it). Closing stops the thread, at the latest after the read
    that it is in; it closes neither ``source``. Errors of the source are raised where its content would have come.
    """

    def __init__(
        self, source: DecompressedStream, *, depth: int = 4, on_chunk: Callable[[bytes], object] | None = None
    ) -> None:
        self._source = source
        self._on_chunk = on_chunk
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(depth)
        self._stopping = False
        self._ended = False
        self._pending = memoryview(b"")
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping:
                chunk = self._source.next_chunk()
                if chunk and self._on_chunk is not None:
                    self._on_chunk(chunk)
                self._queue.put(chunk)
                if not chunk:
                    return
        except BaseException as error:  # raised again by the reading thread
            self._queue.put(error)

    def readable(self) -> bool:
        return True

    def next_chunk(self) -> bytes:
        """The next piece of content, ``b""`` at the end. Not to be mixed with ``read``."""
        if self._ended:
            return b""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = not item
        return item

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, at least one unless the content has ended."""
        if not self._pending:
            self._pending = memoryview(self.next_chunk())
        if size < 0:
            size = len(self._pending)
        out = self._pending[:size]
        self._pending = self._pending[size:]
        return bytes(out)

    def close(self) -> None:
        if not self.closed:
            self._stopping = True
            while not self._ended and self._thread.is_alive():
                try:
                    self._queue.get(timeout=0.01)
                except queue.Empty:
                    continue
            self._thread.join()
        super().close()
