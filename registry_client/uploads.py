"""Putting one blob into a repository (distribution specification, "Pushing Blobs"): mount, one request, or chunks; with resume.

Owns upload sessions. Never decides which blobs are needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import BinaryIO, Final
from urllib.parse import quote, urlsplit

from pybuild.layers.descriptor import Descriptor
from pybuild.values import dataclass

from .client import Repository
from .stores import BlobSource
from .transfers import Stop
from .transport import BodyReader, BytesBody, ConnectionFailed, RegistryError, Request, Response, UnexpectedStatus

_CHUNK_BYTES: Final = 16 << 20
_ASK_BYTES: Final = 128 << 10
_MOUNT_TRIES: Final = 3
_STUCK_TRIES: Final = 2
_RANGE = re.compile(r"(?:bytes[= ])?0-(\d{1,18})\Z")
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_LOST: Final = frozenset({400, 404, 409, 410, 416, 499})
_RESUMABLE: Final = ("reset", "stalled", "short", "protocol")


class UploadFailed(RegistryError):
    """A blob couldn't be uploaded; the message has the registry's own words."""


class Outcome(Enum):
    """How a blob came to be in the repository."""

    EXISTS = "existing"
    MOUNTED = "mounted"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What became of one blob, and the bytes that were sent for it, repeated ones included."""

    outcome: Outcome
    bytes_sent: int = 0


@dataclass(slots=True)
class _Session:
    """An upload session: the URL to go on at (it changes with every answer), what the registry has, and its wish for chunks."""

    url: str
    offset: int = 0
    chunk_bytes: int = 0


class _Lost(Exception):
    """The registry doesn't know the session any more."""

    def __init__(self, cause: RegistryError) -> None:
        super().__init__()
        self.cause = cause


class BlobUpload:
    """The upload of one blob.

    ``source`` is read from the start as often as needed. ``mount_from``: repositories of the same registry that have the blob, this one
    perhaps among them; ``guesses``: others that may have it, of which just the first is tried: a failed mount costs as much as it would save.
    ``on_bytes`` gets how far the upload is.
    """

    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        *,
        source: BlobSource,
        mount_from: Sequence[str] = (),
        guesses: Sequence[str] = (),
        on_bytes: Callable[[int], None] = lambda count: None,
        stop: Stop | None = None,
    ) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._source = source
        sure = [name for name in mount_from if name != repository.name][:_MOUNT_TRIES]
        maybe = [name for name in guesses if name != repository.name and name not in sure][:1]
        self._mount_from = (*sure, *maybe)
        self._sure = len(sure)
        self._known_here = repository.name in mount_from
        self._on_bytes = on_bytes
        self._stop = stop or Stop()
        self._transport = repository.client.transport
        self._answer_seconds = self._transport.network.answer_timeout_seconds
        self._sent = 0

    def run(self) -> Uploaded:
        """Make sure that the repository has the blob. Raises RegistryError, Cancelled."""
        if self._known_here and self._exists():
            return Uploaded(Outcome.EXISTS)
        session: _Session | None = None
        for number, name in enumerate(self._mount_from):
            if session is not None:
                if number >= self._sure:
                    break
                self._abandon(session)
            mounted, session = self._mount(name)
            if mounted:
                return Uploaded(Outcome.MOUNTED)
        # A failed mount has opened a session; asking still pays for blobs that cost more than a request.
        ask = session is None or self._descriptor.size > _ASK_BYTES
        if ask and not self._known_here and self._exists():
            if session is not None:
                self._abandon(session)
            return Uploaded(Outcome.EXISTS)
        self._send(session)
        return Uploaded(Outcome.SENT, self._sent)

    def _exists(self) -> bool:
        return self._repository.head_blob(self._descriptor.digest, scopes=self._repository.push_scopes) is not None

    # --- sessions ---

    def _mount(self, name: str) -> tuple[bool, _Session | None]:
        # Without the right to read the other repository a registry may refuse the token, the request, or quietly open a session.
        scopes = self._repository.push_scopes | {f"repository:{name}:pull"}
        query = [("mount", str(self._descriptor.digest)), ("from", name)]
        try:
            with self._post(scopes, query) as response:
                if response.status == 201:
                    return True, None
                return False, self._opened(response) if response.status == 202 else None
        except RegistryError:
            return False, None

    def _start(self) -> _Session:
        with self._post(self._repository.push_scopes, []) as response:
            if response.status != 202:
                raise self._refused(response)
            return self._opened(response)

    def _post(self, scopes: frozenset[str], query: list[tuple[str, str]]) -> Response:
        return self._repository.registry.send(
            "POST",
            f"{self._repository.name}/blobs/uploads/",
            scopes=scopes,
            repository=self._repository.name,
            query=query,
        )

    def _opened(self, response: Response) -> _Session:
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        session = _Session(self._location(response))
        if least.isascii() and least.isdigit() and len(least) < 12:
            session.chunk_bytes = int(least)
        return session

    def _location(self, response: Response) -> str:
        location = response.headers.get("Location")
        if not location:
            raise RegistryError(f"{self._repository.registry} opened an upload without saying where to send it")
        return self._repository.registry.absolute(response, location)

    def _abandon(self, session: _Session) -> None:
        try:
            self._request("DELETE", session.url, retry=False).close()
        except RegistryError:
            pass  # the registry drops sessions that nobody ends

    # --- sending ---

    def _send(self, session: _Session | None) -> None:
        failures = stuck = 0
        chunked = False
        while True:
            reached = 0
            try:
                if stuck >= _STUCK_TRIES and self._descriptor.size > _CHUNK_BYTES:
                    # Something in front of the registry may close connections over bodies that it finds too large.
                    chunked = True
                session = session or self._start()
                reached = session.offset
                chunked = self._deliver(session, chunked=chunked)
                if not chunked:
                    return
                session = None  # refused as one request: again, in chunks
                continue
            except _Lost as lost:
                failure, session = lost.cause, None
            except ConnectionFailed as error:
                if error.kind not in _RESUMABLE:
                    raise
                failure = error
            except UnexpectedStatus as error:
                if error.status not in _PASSING:
                    raise
                failure = error
            failures += 1
            if failures >= self._transport.network.attempts:
                raise failure
            self._stop.check()
            self._transport.pause(failures, cause=failure)
            if session is not None:
                session = self._inquire(session)
            if session is not None and session.offset > reached:
                failures = stuck = 0
            else:
                stuck += 1

    def _deliver(self, session: _Session, *, chunked: bool) -> bool:
        # True if the registry (or what is in front of it) takes no body of this size.
        size = self._descriptor.size
        if session.offset == 0 and not chunked:
            body = _BlobBody(self, 0, size)
            with self._request("PUT", self._with_digest(session.url), body=body) as response:
                if response.status in (200, 201, 204):
                    self._check_stored(response)
                    return False
                if response.status == 413 and size > _CHUNK_BYTES:
                    return True
                raise self._failed(response)
        step = max(_CHUNK_BYTES, session.chunk_bytes) if chunked else size
        while session.offset < size:
            end = min(size, session.offset + step)
            headers = {"Content-Range": f"{session.offset}-{end - 1}"}
            with self._request(
                "PATCH", session.url, body=_BlobBody(self, session.offset, end), headers=headers
            ) as response:
                if response.status not in (201, 202, 204):
                    raise self._failed(response)
                session.url = self._location(response)
                before, session.offset = session.offset, _reached(response, default=end)
                if not before < session.offset <= end:
                    raise _Lost(RegistryError(f"{self._repository.registry} counts other bytes than were sent"))
        with self._request("PUT", self._with_digest(session.url), body=BytesBody(b"")) as response:
            if response.status not in (200, 201, 204):
                raise self._failed(response)
            self._check_stored(response)
        return False

    def _inquire(self, session: _Session) -> _Session | None:
        # Where to go on ("Resuming a push"). docker's registry says 0-0 for nothing and for one byte alike.
        try:
            with self._request("GET", session.url) as response:
                offset = _reached(response, default=0) if response.status in (200, 202, 204) else 0
                if offset <= 1 or offset > self._descriptor.size:
                    return None
                location = response.headers.get("Location")
                url = self._repository.registry.absolute(response, location) if location else session.url
                return _Session(url, offset, session.chunk_bytes)
        except RegistryError:
            return None

    def _request(
        self,
        method: str,
        url: str,
        *,
        body: _BlobBody | BytesBody | None = None,
        headers: dict[str, str] | None = None,
        retry: bool | None = None,
    ) -> Response:
        content = {} if body is None else {"Content-Type": "application/octet-stream"}
        return self._repository.registry.send_request(
            Request(
                method,
                url,
                headers=content | (headers or {}),
                body=body,
                retry=body is None if retry is None else retry,
                answer_timeout_seconds=self._answer_seconds,
            ),
            scopes=self._repository.push_scopes,
            repository=self._repository.name,
        )

    def _with_digest(self, url: str) -> str:
        separator = "&" if urlsplit(url).query else "?"
        return f"{url}{separator}digest={quote(str(self._descriptor.digest), safe=':')}"

    def _check_stored(self, response: Response) -> None:
        text = response.headers.get("Docker-Content-Digest", "").strip()
        own = self._descriptor.digest
        if text.startswith(f"{own.algorithm}:") and text != str(own):
            raise UploadFailed(f"{self._repository.registry} stored {own} under another digest")

    def _failed(self, response: Response) -> Exception:
        error = self._refused(response)
        # What a registry says to a session that it lost looks like a refusal; "digest invalid" and the like are real ones.
        final = {"DIGEST_INVALID", "SIZE_INVALID", "DENIED", "NAME_INVALID", "UNSUPPORTED", "NAME_UNKNOWN"}
        if response.status in _LOST and not final & set(error.codes):
            return _Lost(error)
        return error

    def _refused(self, response: Response) -> UnexpectedStatus:
        return self._repository.client.refused(response, self._repository.registry.credentials_host)

    # --- for the body ---

    def open_at(self, offset: int) -> BinaryIO:
        """The blob's content from ``offset``."""
        file = self._source.open(self._descriptor.digest)
        if offset and file.seekable():
            file.seek(offset)
        elif offset:
            left = offset
            while left and (block := file.read(min(left, 1 << 20))):
                left -= len(block)
        return file

    def count(self, position: int, count: int) -> None:
        """``count`` bytes were taken to be sent, up to ``position``."""
        self._stop.check()
        self._sent += count
        self._on_bytes(position)


class _BlobBody:
    """A part of the blob as a request's body."""

    def __init__(self, upload: BlobUpload, start: int, end: int) -> None:
        self._upload = upload
        self._start = start
        self._end = end

    @property
    def size(self) -> int:
        return self._end - self._start

    def open(self) -> BodyReader:
        return _BlobBodyReader(self._upload, self._start, self._end)


class _BlobBodyReader:
    def __init__(self, upload: BlobUpload, start: int, end: int) -> None:
        self._upload = upload
        self._position = start
        self._end = end
        self._file = upload.open_at(start)

    def read(self, size: int, /) -> bytes:
        block = self._file.read(min(size, self._end - self._position))
        self._position += len(block)
        if block:
            self._upload.count(self._position, len(block))
        elif self._position < self._end:
            raise UploadFailed(f"a blob ended {self._end - self._position} bytes before its size")
        return block

    def close(self) -> None:
        self._file.close()


def _reached(response: Response, *, default: int) -> int:
    match = _RANGE.match(response.headers.get("Range", "").strip())
    return default if match is None else int(match.group(1)) + 1
