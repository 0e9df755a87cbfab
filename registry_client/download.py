"""Downloads of plain files over HTTP(S), for ADD and remote contexts: resumed when they break, revalidated when they are known.

Owns the cache of downloads and the credentials' way into the request; talking HTTP is ``transport.py``'s. Never logs or stores a
secret, never unpacks anything.

    directory/
        files/sha256-<hex>     contents by digest
        urls/<sha256>.json     what is known of a URL: {"url", "digest", "etag", "last_modified", "fetched", "filename"}
        urls/<sha256>.lock     held while the URL is being fetched
        partial/               being written
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import CHUNK_BYTES, Digest
from pybuild.layers.locks import lock_file
from pybuild.values import asdict, dataclass

from .redaction import redact_url
from .transport import AnswerTooLarge, ConnectionFailed, Request, Response, Transport

AUTH_HEADER_SECRET: Final = "HTTP_AUTH_HEADER_"
AUTH_TOKEN_SECRET: Final = "HTTP_AUTH_TOKEN_"
DEFAULT_LIMIT_BYTES: Final = 1 << 40
_ATTEMPTS_WITHOUT_PROGRESS: Final = 5
# A file may change twice within the second that Last-Modified can tell; one this old when it was fetched didn't.
_SAFE_AGE_SECONDS: Final = 2.0
_RANGE: Final = re.compile(r"bytes\s+(\d+)-\d+/(\d+|\*)\Z", re.IGNORECASE)


class DownloadFailed(PybuildError):
    """The server's answer isn't the file. ``status``: its HTTP status."""

    def __init__(self, url: str, status: int, *, hint: str | None = None) -> None:
        super().__init__(f"failed to download {redact_url(url)}: invalid response status {status}", hint=hint)
        self.url = redact_url(url)
        self.status = status


class ChecksumMismatch(PybuildError):
    """The file isn't the one that was asked for."""

    def __init__(self, url: str, *, expected: Digest, actual: Digest) -> None:
        super().__init__(f"digest mismatch for {redact_url(url)}: {actual} (expected: {expected})")
        self.expected = expected
        self.actual = actual


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file on this machine. ``filename``: the server's, else from the URL; ``last_modified``: seconds since the epoch, None if the server
    didn't tell; ``fresh``: bytes came over the network now."""

    path: str
    digest: Digest
    filename: str
    last_modified: float | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class _Known:
    url: str
    digest: str
    etag: str
    last_modified: str
    fetched: float
    filename: str


class Downloader:
    """Fetches URLs into ``directory``, which several processes may share.

    ``secrets``: values by id; those named ``HTTP_AUTH_HEADER_<host>`` and ``HTTP_AUTH_TOKEN_<host>`` are sent to that host and to no
    other. ``limit_bytes`` bounds a file; ``on_progress`` gets (URL without secrets, bytes so far, total or 0); ``wall_clock``:
    seconds since the epoch.
    """

    def __init__(
        self,
        transport: Transport,
        directory: Path,
        *,
        wall_clock: Callable[[], float],
        secrets: Mapping[str, bytes] | None = None,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._transport = transport
        self._files = directory / "files"
        self._urls = directory / "urls"
        self._partial = directory / "partial"
        self._wall_clock = wall_clock
        self._secrets = secrets or {}
        self._limit_bytes = limit_bytes
        self._on_progress = on_progress

    def fetch(self, url: str, *, checksum: Digest | None = None) -> Downloaded:
        """Download ``url``, or only ask whether what is known of it is still right. With a known ``checksum`` nothing is asked.

        Raises DownloadFailed, ChecksumMismatch and the transport's errors.
        """
        for directory in (self._files, self._urls, self._partial):
            directory.mkdir(parents=True, exist_ok=True)
        if checksum is not None:
            path = self._file(checksum)
            if path.exists():
                known = self._load(self._key(url))
                if known is not None and known.digest == str(checksum):
                    return self._result(known, fresh=False)
                return Downloaded(str(path), checksum, file_name(url, None), None, False)
        key = self._key(url)
        with lock_file(self._urls / f"{key}.lock"):
            result = self._fetch_locked(url, key)
        if checksum is None:
            return result
        actual = result.digest
        if checksum.algorithm != actual.algorithm:
            with open(result.path, "rb") as stream:
                actual = Digest.of_stream(stream, checksum.algorithm)
        if actual != checksum:
            raise ChecksumMismatch(url, expected=checksum, actual=actual)
        if str(self._file(checksum)) != result.path:
            with suppress(FileExistsError):
                os.link(result.path, self._file(checksum))
        return Downloaded(result.path, checksum, result.filename, result.last_modified, result.fresh)

    def prune(self, *, keep_seconds: float) -> int:
        """Forget what wasn't fetched or confirmed for so long. Gives the bytes freed."""
        oldest = self._wall_clock() - keep_seconds
        freed = 0
        for directory in (self._urls, self._files, self._partial):
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if status.st_atime < oldest and status.st_mtime < oldest and not entry.name.endswith(".lock"):
                            os.unlink(entry.path)
                            freed += status.st_size if status.st_nlink == 1 else 0
        return freed

    # --- one URL -----------------------------------------------------------------------------------------------------

    def _fetch_locked(self, url: str, key: str) -> Downloaded:
        known = self._load(key)
        headers = self._authorization(url)
        if known is not None:
            headers |= self._conditions(known)
        if known is not None and known.etag and self._confirmed(known, url, headers):
            self._touch(key, known)
            return self._result(known, fresh=False)
        with self._transport.send(Request("GET", url, headers)) as response:
            if known is not None and (response.status == 304 or self._unchanged(known, response)):
                self._touch(key, known)
                return self._result(known, fresh=False)
            if response.status != 200:
                raise self._refused(url, response)
            return self._result(self._store(url, key, response), fresh=True)

    def _confirmed(self, known: _Known, url: str, headers: Mapping[str, str]) -> bool:
        """Ask for the headers only: some servers give tags but answer a conditional GET with everything, as if it had none."""
        try:
            with self._transport.send(Request("HEAD", url, headers)) as response:
                if response.status == 304:
                    return response.headers.get("ETag", known.etag) == known.etag
                return self._unchanged(known, response)
        except Cancelled:
            raise
        except PybuildError:
            return False  # a server without HEAD; the GET tells what is wrong

    def _store(self, url: str, key: str, response: Response) -> _Known:
        descriptor, path = tempfile.mkstemp(dir=self._partial)
        try:
            with os.fdopen(descriptor, "wb") as out:
                digest = self._save(url, response, out)
            os.chmod(path, 0o600)
            os.replace(path, self._file(digest))
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise
        known = _Known(
            url=redact_url(url),
            digest=str(digest),
            etag=response.headers.get("ETag", ""),
            last_modified=response.headers.get("Last-Modified", ""),
            fetched=self._wall_clock(),
            filename=file_name(url, response.headers.get("Content-Disposition")),
        )
        temporary = self._partial / f"{key}.json"
        temporary.write_text(json.dumps(asdict(known)))
        os.replace(temporary, self._urls / f"{key}.json")
        return known

    def _save(self, url: str, response: Response, out: BinaryIO) -> Digest:
        """Write the body, decoded if the server says that it is encoded: that is what the reference stores."""
        hasher = hashlib.sha256(usedforsecurity=False)
        total = response.length or 0
        if total > self._limit_bytes:
            raise AnswerTooLarge(url, self._limit_bytes)
        encoded = response.headers.get("Content-Encoding", "").strip().lower() in ("gzip", "x-gzip")
        blocks: Iterator[bytes] = self._body(url, response, total)
        if encoded:
            blocks = _gunzipped(blocks, url)
        written = 0
        for block in blocks:
            written += len(block)
            if written > self._limit_bytes:
                raise AnswerTooLarge(url, self._limit_bytes)
            hasher.update(block)
            out.write(block)
        return Digest("sha256", hasher.hexdigest())

    def _body(self, url: str, response: Response, total: int) -> Iterator[bytes]:
        """The body's bytes, going on with ranges where the connection breaks."""
        done = 0
        failures = 0
        current: Response | None = response
        validator = _strong_validator(response)
        while True:
            try:
                if current is None:
                    current = self._again(url, done, validator)
                with _closing(current, keep=current is response):
                    for block in self._rest(current, done):
                        failures = 0
                        done += len(block)
                        if self._on_progress is not None:
                            self._on_progress(redact_url(url), done, total)
                        yield block
                if total and done < total:
                    raise ConnectionFailed(url, "short", "the answer ended before its length")
                return
            except ConnectionFailed:
                failures += 1
                if validator is None or failures >= _ATTEMPTS_WITHOUT_PROGRESS:
                    raise
                current = None
                self._transport.pause(failures)

    def _again(self, url: str, offset: int, validator: str | None) -> Response:
        headers = self._authorization(url)
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": validator or ""}
        response = self._transport.send(Request("GET", url, headers))
        if response.status not in (200, 206):
            with response:
                raise self._refused(url, response)
        if _strong_validator(response) not in (validator, None):
            with response:
                raise PybuildError(f"{redact_url(url)} changed while it was being downloaded")
        return response

    def _rest(self, response: Response, done: int) -> Iterator[bytes]:
        """What of the answer lies beyond ``done``: a server may ignore the range, or answer an earlier one."""
        start = 0
        if response.status == 206:
            found = _RANGE.match(response.headers.get("Content-Range", "").strip())
            if found is None or int(found[1]) > done:
                raise ConnectionFailed(
                    response.url, "protocol", "the server answers another range than the one asked for"
                )
            start = int(found[1])
        skip = done - start
        for block in response.chunks(CHUNK_BYTES):
            if skip >= len(block):
                skip -= len(block)
                continue
            yield block[skip:]
            skip = 0

    def _refused(self, url: str, response: Response) -> DownloadFailed:
        hint = None
        if response.status in (401, 403):
            host = urlsplit(url).hostname or ""
            hint = f"give credentials as the secret {AUTH_TOKEN_SECRET}{host} or {AUTH_HEADER_SECRET}{host}"
        return DownloadFailed(url, response.status, hint=hint)

    # --- what is known -----------------------------------------------------------------------------------------------

    def _authorization(self, url: str) -> dict[str, str]:
        host = urlsplit(url).hostname or ""
        token = self._secrets.get(AUTH_TOKEN_SECRET + host)
        header = self._secrets.get(AUTH_HEADER_SECRET + host)
        if token is not None:
            return {"Authorization": "Bearer " + token.decode("latin-1").strip("\r\n")}
        if header is not None:
            return {"Authorization": header.decode("latin-1").strip("\r\n")}
        return {}

    def _key(self, url: str) -> str:
        # What needed credentials must not be given to a build without them.
        credentials = "\0".join(f"{name}: {value}" for name, value in self._authorization(url).items())
        return hashlib.sha256(f"{url}\0{credentials}".encode("utf-8", "surrogateescape")).hexdigest()

    def _conditions(self, known: _Known) -> dict[str, str]:
        if known.etag:
            return {"If-None-Match": known.etag}
        modified = _seconds(known.last_modified)
        if modified is not None and known.fetched - modified > _SAFE_AGE_SECONDS:
            return {"If-Modified-Since": known.last_modified}
        return {}

    def _unchanged(self, known: _Known, response: Response) -> bool:
        """Some servers send everything again under the same tag."""
        tag = response.headers.get("ETag", "")
        return response.status == 200 and bool(tag) and not tag.startswith("W/") and tag == known.etag

    def _load(self, key: str) -> _Known | None:
        try:
            known = _Known(**json.loads((self._urls / f"{key}.json").read_text()))
            digest = Digest.parse(known.digest)
        except (OSError, ValueError, TypeError, PybuildError):
            return None
        return known if self._file(digest).exists() else None

    def _touch(self, key: str, known: _Known) -> None:
        for path in (self._urls / f"{key}.json", self._file(Digest.parse(known.digest))):
            with suppress(OSError):
                os.utime(path)

    def _file(self, digest: Digest) -> Path:
        return self._files / f"{digest.algorithm}-{digest.hex}"

    def _result(self, known: _Known, *, fresh: bool) -> Downloaded:
        digest = Digest.parse(known.digest)
        return Downloaded(str(self._file(digest)), digest, known.filename, _seconds(known.last_modified), fresh)


@contextmanager
def _closing(response: Response, *, keep: bool) -> Iterator[None]:
    try:
        yield
    finally:
        if not keep:  # the first answer is closed by whoever sent the request
            response.close()


def _strong_validator(response: Response) -> str | None:
    """What If-Range may carry (RFC 9110 section 13.1.5): a strong tag, else a date; None if the answer can't be resumed."""
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified") or None


def _seconds(date: str) -> float | None:
    if not date:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _gunzipped(blocks: Iterator[bytes], url: str) -> Iterator[bytes]:
    decoder = None
    try:
        for block in blocks:
            while block:
                decoder = decoder or zlib.decompressobj(wbits=31)
                yield decoder.decompress(block, CHUNK_BYTES)
                if decoder.eof:
                    block, decoder = decoder.unused_data, None
                else:
                    block = decoder.unconsumed_tail
    except zlib.error:
        raise ConnectionFailed(url, "protocol", "the answer is not the gzip that it claims to be") from None
    if decoder is not None:
        yield decoder.flush()
        if decoder.eof:
            return
        raise ConnectionFailed(url, "short", "the answer ends in the middle of its gzip")


def file_name(url: str, disposition: str | None) -> str:
    """The name for a download: Content-Disposition's, else the URL's last element, else ``download``."""
    if disposition:
        message = Message()
        message["Content-Disposition"] = disposition
        given = message.get_filename("")
        if given and not given.endswith("/"):
            return _safe(given)
    return _safe(unquote(urlsplit(url).path, errors="surrogateescape"))


def _safe(name: str) -> str:
    base = posixpath.basename(posixpath.normpath("/" + name.strip()))
    if base in ("", ".", "..") or any(unicodedata.category(character) == "Cc" for character in base):
        return "download"
    return base
