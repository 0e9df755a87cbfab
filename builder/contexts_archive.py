"""Archives as build contexts: recognising a tar by its first bytes, and unpacking one into a scratch directory.

Owns the safety of that: whatever an archive says, nothing is written outside the directory or through a link, and sizes are bounded.
Not for layers (no whiteouts, no owners) nor for ``ADD``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from pybuild.errors import PybuildError
from pybuild.layers.blobs import StoreFull
from pybuild.layers.compression import CorruptStream, StreamTooLarge, decompressed
from pybuild.layers.entries import Kind
from pybuild.layers.tar_read import InvalidTar, TarEntry, TarReader
from pybuild.values import dataclass

HEADER_BYTES: Final = 1024
_BLOCK: Final = 512
_PATH_MAX: Final = 4096  # linux/limits.h
_SECOND: Final = 1_000_000_000
_GZIP: Final = b"\x1f\x8b\x08"
_BZIP2: Final = b"BZh"
_XZ: Final = b"\xfd7zXZ\x00"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"

DEFAULT_LIMIT_BYTES: Final = 256 << 30
DEFAULT_LIMIT_ENTRIES: Final = 5_000_000


class BadContextArchive(PybuildError):
    """The archive is damaged or asks for something that an archive must not do."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"can't unpack the build context archive: {problem}")


@dataclass(frozen=True, slots=True)
class UnpackedArchive:
    """What was unpacked: number of ``entries``, ``size`` of file contents in bytes, ``newest``: the latest modification time of a
    regular file in seconds, None without one."""

    entries: int
    size: int
    newest: float | None


class ByteReader(Protocol):
    """What can be read from: a file, a pipe, a decompressor."""

    def read(self, size: int = -1, /) -> bytes: ...


def is_archive(header: bytes) -> bool:
    """True if ``header`` (the first HEADER_BYTES, or all there is) begins a tar, plain or compressed in a known way."""
    return header.startswith((_GZIP, _BZIP2, _XZ, _ZSTD)) or _is_tar(header)


def _is_tar(header: bytes) -> bool:
    if len(header) < _BLOCK:
        return False
    block = header[:_BLOCK]
    if not any(block):
        return True  # the end-of-archive marker: an empty tar
    field = block[148:156].strip(b" \x00")
    try:
        expected = int(field, 8)
    except ValueError:
        return False
    return expected in (
        sum(block[:148]) + 8 * 32 + sum(block[156:]),
        # Old tars summed signed bytes.
        sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:]),
    )


def unpack_archive(
    stream: ByteReader,
    directory: str,
    *,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    limit_entries: int = DEFAULT_LIMIT_ENTRIES,
) -> UnpackedArchive:
    """Unpack the tar in ``stream`` (which stays open) below ``directory``, an empty directory. ``limit_bytes`` counts what the
    decompressor gives. Raises BadContextArchive, StoreFull."""
    try:
        with decompressed(cast(BinaryIO, stream), limit_bytes=limit_bytes) as plain:
            return _Unpacker(directory, limit_entries=limit_entries).run(TarReader(plain))
    except (CorruptStream, StreamTooLarge, InvalidTar) as error:
        raise BadContextArchive(error.message) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(Path(directory)) from None
        raise BadContextArchive((error.strerror or str(error)).lower()) from None


def newest_file_time(stream: BinaryIO) -> float | None:
    """The latest modification time of a regular file in an archive; None if there is none or ``stream`` isn't one."""
    header = read_up_to(stream, HEADER_BYTES)
    if not is_archive(header):
        return None
    newest: int | None = None
    try:
        with decompressed(cast(BinaryIO, Joined(header, stream))) as plain:
            for entry in TarReader(plain):
                if entry.kind is Kind.FILE and (newest is None or entry.mtime_ns > newest):
                    newest = entry.mtime_ns
    except (CorruptStream, InvalidTar):
        return None
    return None if newest is None else newest / _SECOND


class Joined:
    """Bytes that were read ahead, then the rest of the stream; closing it leaves the stream open."""

    def __init__(self, ahead: bytes, rest: ByteReader) -> None:
        self._ahead = ahead
        self._rest = rest

    def read(self, size: int = -1, /) -> bytes:
        if not self._ahead:
            return self._rest.read(size)
        if size < 0:
            data, self._ahead = self._ahead + self._rest.read(), b""
            return data
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


def read_up_to(stream: ByteReader, size: int) -> bytes:
    """``size`` bytes, fewer only at the end: one read of a pipe gives less."""
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            break
        data += more
    return data


class _Unpacker:
    def __init__(self, directory: str, *, limit_entries: int) -> None:
        self._root = directory
        self._limit_entries = limit_entries
        self._real: set[str] = {""}
        self._directory_times: dict[str, tuple[int, int]] = {}
        self._size = 0

    def run(self, archive: TarReader) -> UnpackedArchive:
        entries = 0
        newest: int | None = None
        for entry in archive:
            entries += 1
            if entries > self._limit_entries:
                raise BadContextArchive(f"it has more than {self._limit_entries} entries")
            if entry.kind is Kind.FILE and (newest is None or entry.mtime_ns > newest):
                newest = entry.mtime_ns
            self._unpack(archive, entry)
        # Children change their directory's time, so these come last; modes too, or a read-only one couldn't be filled.
        for path, (mode, mtime_ns) in sorted(self._directory_times.items(), reverse=True):
            host = self._host(path)
            os.chmod(host, mode)
            os.utime(host, ns=(mtime_ns, mtime_ns))
        return UnpackedArchive(entries, self._size, None if newest is None else newest / _SECOND)

    def _host(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _unpack(self, archive: TarReader, entry: TarEntry) -> None:
        path = entry.path
        if ".." in entry.name and ".." in entry.name.split("/"):
            raise BadContextArchive(f"{entry.name!r} leaves the archive")  # no tool writes such a name
        if len(path) >= _PATH_MAX:
            raise BadContextArchive(f"{path[:100]!r}… is too long a path")
        if not path:
            if entry.kind is Kind.DIRECTORY:
                self._directory_times[""] = (entry.mode | 0o500, entry.mtime_ns)
            return
        self._make_parents(path.rpartition("/")[0])
        host = self._host(path)
        if entry.kind is Kind.DIRECTORY:
            self._clear(path, host, keep_directory=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(host, 0o700)
            self._real.add(path)
            self._directory_times[path] = (entry.mode | 0o500, entry.mtime_ns)
            return
        match entry.kind:
            case Kind.FILE:
                self._file(archive, entry, path, host)
                return
            case Kind.HARDLINK:
                self._clear(path, host, keep_directory=False)
                self._hard_link(entry, host)
                return
            case Kind.SYMLINK:
                self._clear(path, host, keep_directory=False)
                os.symlink(entry.link, host)
            case Kind.FIFO:
                self._clear(path, host, keep_directory=False)
                os.mkfifo(host, 0o600)
                os.chmod(host, entry.mode)
            case _:
                self._clear(path, host, keep_directory=False)
                kind = stat.S_IFCHR if entry.kind is Kind.CHARACTER else stat.S_IFBLK
                os.mknod(host, kind | 0o600, os.makedev(*entry.device))
                os.chmod(host, entry.mode)
        os.utime(host, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)

    def _make_parents(self, path: str) -> None:
        """Every parent must be a real directory: nothing is written through a symbolic link."""
        missing: list[str] = []
        while path not in self._real:
            missing.append(path)
            path = path.rpartition("/")[0]
        for path in reversed(missing):
            try:
                os.mkdir(self._host(path), 0o755)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(self._host(path)).st_mode):
                    raise BadContextArchive(f"an entry lies below {path!r}, which is not a directory") from None
            self._real.add(path)

    def _clear(self, path: str, host: str, *, keep_directory: bool) -> None:
        """Make room: a later entry of the same name replaces the earlier one."""
        try:
            status = os.lstat(host)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            if not keep_directory:
                try:
                    os.rmdir(host)
                except OSError:
                    raise BadContextArchive(
                        f"{path!r} is a directory with entries and something else as well"
                    ) from None
                self._real.discard(path)
                self._directory_times.pop(path, None)
            return
        os.unlink(host)

    def _file(self, archive: TarReader, entry: TarEntry, path: str, host: str) -> None:
        self._size += entry.size
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(host, flags, 0o600)
        except FileExistsError:
            self._clear(path, host, keep_directory=False)
            descriptor = os.open(host, flags, 0o600)
        try:
            archive.copy_to(descriptor)
            os.fchmod(descriptor, entry.mode)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)

    def _hard_link(self, entry: TarEntry, host: str) -> None:
        target = entry.link
        try:
            if not target or not self._is_real(target.rpartition("/")[0]):
                raise FileNotFoundError
            os.link(self._host(target), host, follow_symlinks=False)
        except OSError:
            raise BadContextArchive(f"{entry.name!r} is a link to {target!r}, which is not in the archive") from None

    def _is_real(self, path: str) -> bool:
        if path in self._real:
            return True
        parent = path.rpartition("/")[0]
        if not self._is_real(parent):
            return False
        try:
            real = stat.S_ISDIR(os.lstat(self._host(path)).st_mode)
        except OSError:
            return False
        if real:
            self._real.add(path)
        return real
