"""Reading a blob from a registry to its end, whatever happens on the way.

Owns resuming: broken, short and stalled answers go on with Range where they stopped, redirects that expired are asked for again, mirrors
that fail are left. Never stores anything and never hashes: the receiver verifies the digest.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Final

from pybuild.layers.descriptor import Descriptor

from .client import ContentMismatch, ImageNotFound, Repository
from .endpoints import Endpoint
from .redaction import redact_url
from .transfers import Stop
from .transport import ConnectionFailed, NotFound, RegistryError, Response

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")
_PASSING: Final = frozenset({400, 401, 403, 404, 408, 410, 429, 500, 502, 503, 504})
_PROGRESS_BYTES: Final = 64 << 10
_RESUMES: Final = 40
_RESUME_EVERY_BYTES: Final = 8 << 20


class _Troubled(Exception):
    """This try is over; the next may go on where it stopped."""

    def __init__(self, cause: RegistryError) -> None:
        super().__init__()
        self.cause = cause


def blob_chunks(
    repository: Repository, descriptor: Descriptor, *, offset: int = 0, stop: Stop | None = None
) -> Iterator[bytes]:
    """The bytes of a blob from ``offset`` to its end, exactly ``descriptor.size - offset`` of them.

    Mirrors first, then the registry, then the descriptor's own URLs if it is a foreign layer. Raises ImageNotFound, ContentMismatch
    (longer or shorter than its size), RegistryError, Cancelled.
    """
    position = offset
    failure: RegistryError | None = None
    for source in _sources(repository, descriptor):
        try:
            for chunk in _resuming(repository, source, descriptor=descriptor, offset=position, stop=stop or Stop()):
                position += len(chunk)
                yield chunk
            return
        except RegistryError as error:
            # The registry itself comes last (foreign layers aside): its failure is the one to tell.
            failure = error
    if isinstance(failure, NotFound):
        raise ImageNotFound(repository.reference.with_digest(descriptor.digest), hint=failure.hint) from failure
    raise failure or RegistryError(f"there is no place to read {descriptor.digest} from")


class _Source:
    """One place to read the blob from."""

    def __init__(
        self, open_at: Callable[[int], Response], *, where: str, refused: Callable[[Response], RegistryError]
    ) -> None:
        self.open_at = open_at
        self.where = where
        self.refused = refused


def _sources(repository: Repository, descriptor: Descriptor) -> Iterator[_Source]:
    for endpoint in repository.endpoints:
        if not endpoint.down or endpoint is repository.registry:
            yield _registry_source(repository, endpoint, descriptor)
    for url in descriptor.urls:
        if url.startswith(("https://", "http://")):
            yield _foreign_source(repository, url)


def _foreign_source(repository: Repository, url: str) -> _Source:
    return _Source(
        lambda at: repository.open_url(url, offset=at),
        where=redact_url(url),
        refused=lambda response: response.error(),
    )


def _registry_source(repository: Repository, endpoint: Endpoint, descriptor: Descriptor) -> _Source:
    return _Source(
        lambda at: repository.open_blob(endpoint, descriptor.digest, offset=at),
        where=str(endpoint),
        refused=lambda response: repository.client.refused(response, endpoint.credentials_host),
    )


def _resuming(
    repository: Repository, source: _Source, *, descriptor: Descriptor, offset: int, stop: Stop
) -> Iterator[bytes]:
    transport = repository.client.transport
    position = offset
    failures = resumes = 0
    most = _RESUMES + descriptor.size // _RESUME_EVERY_BYTES
    while position < descriptor.size or (offset == position == 0 and resumes == 0):
        start = position
        try:
            for chunk in _one_answer(source, descriptor=descriptor, offset=position, stop=stop):
                position += len(chunk)
                yield chunk
            if position == descriptor.size:
                return
            raise _Troubled(
                ContentMismatch(
                    f"{source.where}: {descriptor.digest} ended after {position} of {descriptor.size} bytes"
                )
            )
        except _Troubled as trouble:
            # Every try that brings something on counts as a new start, within reason.
            failures = 1 if position - start >= _PROGRESS_BYTES else failures + 1
            resumes += 1
            if failures >= transport.network.attempts or resumes > most:
                raise trouble.cause from trouble.cause.__cause__
            stop.check()
            transport.pause(failures)


def _one_answer(source: _Source, *, descriptor: Descriptor, offset: int, stop: Stop) -> Iterator[bytes]:
    try:
        response = source.open_at(offset)
    except ConnectionFailed as error:
        if error.kind in ("reset", "stalled", "short", "protocol"):
            raise _Troubled(error) from error
        raise
    with response:
        skip = _skip(source, response, descriptor=descriptor, offset=offset)
        left = descriptor.size - offset
        try:
            for block in response.chunks():
                stop.check()
                chunk = block
                if skip:
                    chunk = block[skip:]
                    skip = max(0, skip - len(block))
                    if not chunk:
                        continue
                left -= len(chunk)
                if left < 0:
                    raise ContentMismatch(
                        f"{source.where}: {descriptor.digest} is longer than its {descriptor.size} bytes"
                    )
                yield chunk
        except ConnectionFailed as error:
            raise _Troubled(error) from error


def _skip(source: _Source, response: Response, *, descriptor: Descriptor, offset: int) -> int:
    # How many bytes of this answer we have already. Servers may ignore a Range (200) or answer another one than was asked for.
    if response.status == 200:
        if response.length is not None and response.length > descriptor.size:
            raise ContentMismatch(
                f"{source.where}: {descriptor.digest} has {response.length} bytes, its manifest says {descriptor.size}"
            )
        return offset
    if response.status == 206:
        match = _RANGE.match(response.headers.get("Content-Range", "").strip())
        if match is None:
            raise _Troubled(RegistryError(f"{source.where} answered a part without saying which"))
        start, total = int(match.group(1)), match.group(3)
        if total != "*" and int(total) != descriptor.size:
            raise ContentMismatch(
                f"{source.where}: {descriptor.digest} has {total} bytes, its manifest says {descriptor.size}"
            )
        if start > offset:
            raise _Troubled(RegistryError(f"{source.where} answered another part than was asked for"))
        return offset - start
    if response.status == 416 and offset:
        raise ContentMismatch(f"{source.where}: {descriptor.digest} is shorter than its {descriptor.size} bytes")
    if response.redirected and response.status in _PASSING:
        # A signed URL that ran out: ask the registry for a new one.
        raise _Troubled(source.refused(response))
    raise source.refused(response)


class BlobReader(io.RawIOBase):
    """A blob of a registry as a seekable file: what a copy uploads from. Seeking asks for the rest anew."""

    def __init__(self, repository: Repository, descriptor: Descriptor, *, stop: Stop | None = None) -> None:
        super().__init__()
        self._repository = repository
        self._descriptor = descriptor
        self._stop = stop
        self._position = 0
        self._chunks: Iterator[bytes] | None = None
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._descriptor.size}[whence]
        target = min(max(0, base + offset), self._descriptor.size)
        if target != self._position:
            self._drop()
            self._position = target
        return target

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer has no public name
        if not self._rest and self._position < self._descriptor.size:
            if self._chunks is None:
                self._chunks = blob_chunks(self._repository, self._descriptor, offset=self._position, stop=self._stop)
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        return count

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            chunks.close()  # type: ignore[attr-defined]  # it is a generator
        self._rest = memoryview(b"")
