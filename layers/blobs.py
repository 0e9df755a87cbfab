"""The blob store: content by digest, each blob one file that appears by an atomic link or rename.

Owns ``blobs/`` and ``ingest/`` of a root. Knows nothing of what the content means, nor of who still needs it.

    blobs/<algorithm>/<hex>     complete content; never changed once there
    ingest/<pid>-<n>            content being written, owned by a lock on the file itself (only where O_TMPFILE is missing)
    ingest/partial-<hex>        the beginning of a download, kept for the next attempt; the lock says that somebody is at it

What a killed process leaves is unlocked: ``sweep`` removes it. Nothing is synced to the disk per blob; ``sync`` is one barrier
for all. A blob that a power cut damaged is found by whoever reads it, and removed, so that it is made or fetched again.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from pybuild.errors import PybuildError

from .digest import CHUNK_BYTES, Digest, InvalidDigest, new_hasher
from .holes import is_hole
from .locks import is_current, open_locked, try_own

_PARTIAL = "partial-"
_SERIAL = itertools.count()


class StoreFull(PybuildError):
    """The disk, or the quota, of the store is used up."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"no space left on the device that holds {os.fspath(path)!r}",
            hint="free space with `pybuild prune`, or put the store elsewhere with --root",
        )
        self.path = path


class BlobNotFound(PybuildError):
    """The store does not hold this content."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"blob {digest} is not in the store")
        self.digest = digest


class BlobCorrupt(PybuildError):
    """Content does not have the digest or the size that it should have."""

    def __init__(self, digest: Digest, *, what: str) -> None:
        super().__init__(f"blob {digest} is corrupt: {what}")
        self.digest = digest


class BlobTooLarge(PybuildError):
    """Content is larger than its reader accepts."""

    def __init__(self, digest: Digest, *, size: int, limit_bytes: int) -> None:
        super().__init__(f"blob {digest} has {size} bytes, more than the {limit_bytes} allowed here")
        self.digest = digest
        self.size = size
        self.limit_bytes = limit_bytes


def raise_if_full(error: OSError, path: Path) -> None:
    """Raise StoreFull if ``error`` means that the disk or the quota is used up."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StoreFull(path) from error


class _Hasher(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class _VerifiedFile(io.RawIOBase):
    """Hashes what is read and checks it when the last byte is reached, before that byte is handed out."""

    def __init__(self, file: io.FileIO, digest: Digest, size: int, on_corrupt: Callable[[], None]) -> None:
        self._file = file
        self._digest = digest
        self._left = size
        self._on_corrupt = on_corrupt
        self._hasher: _Hasher = new_hasher(digest.algorithm)
        self._checked = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        if not len(buffer):
            return 0
        count = self._file.readinto(buffer) or 0
        self._hasher.update(memoryview(buffer)[:count])
        self._left -= count
        if (count == 0 or self._left <= 0) and not self._checked:
            self._checked = True
            if self._left or self._hasher.hexdigest() != self._digest.hex:
                self._on_corrupt()
                raise BlobCorrupt(self._digest, what="the stored content has changed")
        return count

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


class Ingest:
    """Content on its way into the store: a context manager given by ``BlobStore.ingest``.

    ``offset``: bytes that are already there (of an earlier attempt), so where to go on; ``exists``: another process has
    finished the expected blob meanwhile, nothing needs to be written.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        algorithm: str,
        expected: Digest | None,
        expected_size: int | None,
        partial_key: str | None,
    ) -> None:
        self._store = store
        self._algorithm = algorithm
        self._expected = expected
        self._expected_size = expected_size
        self._partial = None if partial_key is None else store.partial_path(partial_key)
        self._hasher: _Hasher = new_hasher(algorithm)
        self._path: Path | None = None
        self._file: io.BufferedWriter
        self._committed = False
        self.offset = 0
        self.exists = False

    def __enter__(self) -> Ingest:
        with self._store.full_disk_is_an_error():
            if self._partial is None:
                self._file, self._path = self._store.temporary()
            else:
                self._file, self._path = self._store.open_partial(self._partial), self._partial
        self.exists = self._expected is not None and self._store.touch(self._expected)
        if self.exists:
            self.restart()
        elif self._partial is not None:
            self._take_up()
        return self

    def _take_up(self) -> None:
        with open(os.dup(self._file.fileno()), "rb", buffering=0) as begun:
            while chunk := begun.read(CHUNK_BYTES):
                self._hasher.update(chunk)
                self.offset += len(chunk)
        if self._expected_size is not None and self.offset > self._expected_size:
            self.restart()
        self._file.seek(self.offset)

    def restart(self) -> None:
        """Forget what is there: the sender can't go on from ``offset``."""
        self._file.seek(0)
        self._file.truncate(0)
        self._hasher = new_hasher(self._algorithm)
        self.offset = 0

    def write(self, chunk: bytes | memoryview) -> int:
        """Append a chunk. Raises StoreFull, or BlobCorrupt as soon as there is more than was expected."""
        self._hasher.update(chunk)
        self.offset += len(chunk)
        if self._expected_size is not None and self.offset > self._expected_size:
            raise self._wrong(f"more than the {self._expected_size} bytes that were announced")
        with self._store.full_disk_is_an_error():
            if is_hole(chunk):
                self._file.seek(self.offset)
            else:
                self._file.write(chunk)
        return len(chunk)

    def commit(self) -> tuple[Digest, int]:
        """Put the content into the store; idempotent there. Returns its digest and size. Raises BlobCorrupt (and keeps nothing)
        if it isn't what was expected."""
        digest = Digest(self._algorithm, self._hasher.hexdigest())
        if self._expected_size is not None and self.offset != self._expected_size:
            if self.offset < self._expected_size and self._partial is not None:
                # Not wrong, only not finished: the next attempt goes on from here.
                raise BlobCorrupt(self._expected or digest, what=f"it ended after {self.offset} bytes")
            raise self._wrong(f"{self.offset} bytes instead of {self._expected_size}")
        if self._expected is not None and digest != self._expected:
            raise self._wrong(f"its content has the digest {digest}")
        with self._store.full_disk_is_an_error():
            self._file.truncate(self.offset)  # it may end with a hole
            self._store.place(self._file.fileno(), self._path, digest, self.offset)
        self._committed = True
        return digest, self.offset

    def _wrong(self, what: str) -> BlobCorrupt:
        if self._partial is not None:
            with suppress(FileNotFoundError):
                self._partial.unlink()
            self._partial = None
        return BlobCorrupt(self._expected or Digest(self._algorithm, self._hasher.hexdigest()), what=what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk was reported by write; here nothing is kept that depends on the flush
            self._file.flush()
        if self._path is not None and not self._committed and (self._partial is None or self.offset == 0):
            with suppress(FileNotFoundError):
                self._path.unlink()
        with suppress(OSError):
            self._file.close()


class BlobStore:
    """Content by digest below ``root``. Every method may be called from any thread and process."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], float] | None = None,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        read_only: bool = False,
    ) -> None:
        """``clock``: seconds since the epoch, for the time a blob was last used; the file system's own clock without it. ``guard``: held
        while a blob is looked for and marked used, so that gc comes before or after. ``read_only``: somebody else's blobs: nothing is
        touched, nor removed when it is found to be corrupt."""
        self.root = root
        self._blobs = root / "blobs"
        self._ingest = root / "ingest"
        self._blobs_text = os.fspath(self._blobs)
        self._clock = clock
        self._guard = guard
        self._read_only = read_only
        self._tmpfile = hasattr(os, "O_TMPFILE")

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be. Whoever opens it directly does without verification."""
        return self._blobs / digest.algorithm / digest.hex

    def has(self, digest: Digest) -> bool:
        """True if the blob is there."""
        return os.path.exists(f"{self._blobs_text}/{digest.algorithm}/{digest.hex}")

    def touch(self, digest: Digest) -> bool:
        """Mark the blob used now, which keeps it from gc while a lease lives. False if it isn't there. Idempotent."""
        if self._read_only:
            return self.has(digest)
        times = None
        if self._clock is not None:
            now = int(self._clock() * 1e9)
            times = (now, now)
        path = f"{self._blobs_text}/{digest.algorithm}/{digest.hex}"
        try:
            with self._guard():
                if times is None:
                    os.utime(path)
                else:
                    os.utime(path, ns=times)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.EROFS:
                return self.has(digest)
            raise
        return True

    def size(self, digest: Digest) -> int:
        """The blob's size in bytes. Raises BlobNotFound."""
        try:
            return os.stat(f"{self._blobs_text}/{digest.algorithm}/{digest.hex}").st_size
        except FileNotFoundError:
            raise BlobNotFound(digest) from None

    def open(self, digest: Digest, *, size: int | None = None) -> BinaryIO:
        """A reader, closed by the caller, that has verified the content once its last byte is read. ``size``: the bytes that
        a descriptor says. Raises BlobNotFound; BlobCorrupt here or while reading, and the blob is then gone."""
        try:
            file = io.FileIO(self.path(digest), "rb")
        except FileNotFoundError:
            raise BlobNotFound(digest) from None
        length = os.fstat(file.fileno()).st_size
        if size is not None and size != length:
            file.close()
            raise BlobCorrupt(digest, what=f"{length} bytes instead of {size}")
        return io.BufferedReader(_VerifiedFile(file, digest, length, lambda: self.delete(digest)), 1 << 16)

    def read(self, digest: Digest, *, limit_bytes: int) -> bytes:
        """The verified content of a small blob. Raises BlobNotFound, BlobTooLarge, BlobCorrupt."""
        try:
            with open(self.path(digest), "rb", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size
                if length > limit_bytes:
                    raise BlobTooLarge(digest, size=length, limit_bytes=limit_bytes)
                data = file.read()
        except FileNotFoundError:
            raise BlobNotFound(digest) from None
        if Digest.of(data, digest.algorithm) != digest:
            self.delete(digest)
            raise BlobCorrupt(digest, what="the stored content has changed")
        return data

    def write(self, data: bytes, *, algorithm: str = "sha256") -> Digest:
        """Store ``data`` and return its digest; idempotent. Raises StoreFull, and then nothing was stored."""
        digest = Digest.of(data, algorithm)
        try:
            known = os.stat(self.path(digest)).st_size == len(data)
        except FileNotFoundError:
            known = False
        if known and self.touch(digest):
            return digest
        with self.ingest(algorithm=algorithm, expected=digest, expected_size=len(data)) as ingest:
            ingest.write(data)
            ingest.commit()
        return digest

    def ingest(
        self,
        *,
        algorithm: str = "sha256",
        expected: Digest | None = None,
        expected_size: int | None = None,
        partial_key: str | None = None,
    ) -> Ingest:
        """Stream content into the store:

            with blobs.ingest(expected=digest) as ingest:
                ingest.write(chunk)
                digest, size = ingest.commit()

        Without ``commit`` nothing is stored. With ``partial_key`` (any text that names this very content) what was written before
        a failure is found again by the next ingest of the same key (``offset``), and only one of them runs at a time.
        The digest has ``expected``'s algorithm, else ``algorithm``.
        """
        return Ingest(
            self,
            algorithm=algorithm if expected is None else expected.algorithm,
            expected=expected,
            expected_size=expected_size,
            partial_key=partial_key,
        )

    def adopt(self, path: Path, digest: Digest) -> None:
        """Take over a file on the store's file system, whose content the caller has verified; idempotent. The file is gone from ``path``
        afterwards. Raises StoreFull."""
        with self.full_disk_is_an_error():
            self.place(-1, path, digest, path.stat().st_size)

    def delete(self, digest: Digest) -> None:
        """Remove the blob if it is there; idempotent. Readers that have it open can finish."""
        if self._read_only:
            return
        with suppress(FileNotFoundError):
            os.unlink(self.path(digest))

    def __iter__(self) -> Iterator[Digest]:
        """Every blob that is there, in no order."""
        try:
            algorithms = os.listdir(self._blobs)
        except FileNotFoundError:
            return
        for algorithm in algorithms:
            for name in os.listdir(self._blobs / algorithm):
                with suppress(InvalidDigest):
                    yield Digest.parse(f"{algorithm}:{name}")

    def sweep(self, *, partial_older_than: float) -> int:
        """Remove what dead processes left in ``ingest/``: unfinished content at once, beginnings of downloads if they were last
        written before ``partial_older_than`` (seconds since the epoch). Returns the number of files removed."""
        removed = 0
        try:
            names = os.listdir(self._ingest)
        except FileNotFoundError:
            return 0
        for name in names:
            path = self._ingest / name
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if name.startswith(_PARTIAL) and os.fstat(descriptor).st_mtime >= partial_older_than:
                        continue
                    if try_own(descriptor) and is_current(path, descriptor):
                        path.unlink()
                        removed += 1
                finally:
                    os.close(descriptor)
        return removed

    def sync(self) -> None:
        """One barrier: everything stored so far survives a power cut (``syncfs(2)``)."""
        import ctypes

        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if not hasattr(libc, "syncfs"):
                os.sync()
            elif libc.syncfs(descriptor):
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error), os.fspath(self.root))
        finally:
            os.close(descriptor)

    # --- for Ingest ---------------------------------------------------------------------------------------------------

    @contextmanager
    def full_disk_is_an_error(self) -> Iterator[None]:
        """Turn ENOSPC and EDQUOT into StoreFull."""
        try:
            yield
        except OSError as error:
            raise_if_full(error, self.root)
            raise

    def partial_path(self, key: str) -> Path:
        """The file that keeps the beginning of the download named ``key``."""
        return self._ingest / (_PARTIAL + Digest.of(os.fsencode(key)).hex)

    def temporary(self) -> tuple[io.BufferedWriter, Path | None]:
        """A new file in ``ingest/`` owned by this process: without a name where the file system can do that."""
        self._ingest.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC
        if self._tmpfile:
            try:
                return _writer(os.open(self._ingest, flags | os.O_TMPFILE, 0o600)), None
            except OSError as error:
                # EISDIR: a kernel, EOPNOTSUPP: a file system without it (open(2), O_TMPFILE).
                if error.errno not in (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
                    raise
                self._tmpfile = False
        while True:
            path = self._ingest / f"{os.getpid()}-{next(_SERIAL)}"
            with suppress(FileExistsError):
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                if try_own(descriptor) and is_current(path, descriptor):
                    return _writer(descriptor), path
                os.close(descriptor)  # a sweep came between the open and the lock

    def open_partial(self, path: Path) -> io.BufferedWriter:
        """Open and own the beginning of a download, waiting for whoever is at it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return _writer(open_locked(path))

    def place(self, descriptor: int, path: Path | None, digest: Digest, size: int) -> None:
        """Give the written file its place; one that is there already, and complete, stays."""
        target = self.path(digest)
        if self._complete(target, size) and self.touch(digest):
            if path is not None:
                path.unlink()
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path is not None:
                os.rename(path, target)
            else:
                # linkat(2): a file without a name gets one through its /proc link. Python calls linkat, which alone follows that,
                # only if it is given a directory; the path is absolute.
                os.link(f"/proc/self/fd/{descriptor}", target, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            if not self._complete(target, size):
                self._replace(descriptor, target)
        except FileNotFoundError:  # no /proc here
            self._replace(descriptor, target)
        if self._clock is not None:
            self.touch(digest)

    def _complete(self, target: Path, size: int) -> bool:
        try:
            return os.stat(target).st_size == size
        except FileNotFoundError:
            return False

    def _replace(self, descriptor: int, target: Path) -> None:
        """Put a nameless file over a damaged one, or where /proc is not mounted: by a copy with a name."""
        self._tmpfile, before = False, self._tmpfile
        try:
            file, path = self.temporary()
        finally:
            self._tmpfile = before
        with file, open(os.dup(descriptor), "rb") as source:
            source.seek(0)
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
            file.flush()
            if path is not None:
                os.rename(path, target)


def _writer(descriptor: int) -> io.BufferedWriter:
    return io.BufferedWriter(io.FileIO(descriptor, "r+b"), 1 << 18)
