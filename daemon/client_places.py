"""Caches in directories of the client's machine, for a build in a daemon: each request is a channel. Both sides, as they are one protocol.

    daemon → client   frame C {"token", "kind": "cache", "path", "reference", "action", …}
    manifest, read    client: D… with the bytes, then R; or X
    save              daemon: D… with the document, then R {"layers", "oci", "config_type"}; then for each N {digest} that the client
                      sends: D… with the blob, then R, or X. At the end the client sends R with what was done, or X

The client opens only directories that its build names, and writes only to those that it exports to. Digests are checked on the receiving side: a
blob that a directory has isn't sent.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from pybuild.builder.cache_format import CacheBundle
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest

from .cache_places import DOCUMENT_BYTES, LayoutPlace, NoCacheThere, Saved, bundle_from, whole_blob
from .channels import CallChannels, PatientReader
from .wire import WireError, dumps, error_from, error_payload, frame, loads, read_frames

if TYPE_CHECKING:
    from pybuild.registry_client.stores import BlobSource

    from .connection import Channel

_PIECE: Final = 1 << 18


class ClientPlace:
    """A CachePlace in the client's directory ``path``."""

    def __init__(self, path: str, *, reference: str, channels: CallChannels, cancel: threading.Event) -> None:
        self._path = path
        self._reference = reference
        self._channels = channels
        self._cancel = cancel

    @property
    def name(self) -> str:
        return self._path

    origin = None

    def manifest(self) -> bytes:
        """See CachePlace."""
        return b"".join(self._asked({"action": "manifest"}))

    def load(self) -> CacheBundle:
        """See CachePlace."""
        return bundle_from(self.manifest(), read=self.read)

    def read(self, descriptor: Descriptor) -> bytes:
        """See CachePlace."""
        return whole_blob(descriptor, self.chunks(descriptor))

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """See CachePlace."""
        return self._asked({"action": "read", "blob": blob})

    def _asked(self, request: Mapping[str, Any]) -> Iterator[bytes]:  # Any: values that the wire knows
        wanted = {"path": self._path, "reference": self._reference, **request}
        with self._channels.open("cache", wanted) as near:
            yield from _pieces(read_frames(PatientReader(near, self._cancel).read))

    def save(
        self, document: bytes, layers: Sequence[Descriptor], *, blobs: BlobSource, oci: bool, config_type: str
    ) -> Saved:
        """See CachePlace."""
        wanted = {"path": self._path, "reference": self._reference, "action": "save"}
        with self._channels.open("cache", wanted) as near:
            stream = PatientReader(near, self._cancel)
            _send(stream.write, (document[at : at + _PIECE] for at in range(0, len(document), _PIECE)))
            stream.write(frame(b"R", dumps({"layers": tuple(layers), "oci": oci, "config_type": config_type})))
            for kind, payload in read_frames(stream.read):
                if kind != b"N":
                    saved = _result(kind, payload)
                    return Saved(
                        saved["descriptor"], unchanged=bool(saved["unchanged"]), bytes_sent=int(saved["bytes_sent"])
                    )
                digest = Digest.parse(str(loads(payload)))
                if digest not in {layer.digest for layer in layers}:
                    raise WireError("the client asks for a blob that is not of the cache")
                try:
                    with blobs.open(digest) as file:
                        _send(stream.write, iter(lambda: file.read(_PIECE), b""))  # used at once
                except (PybuildError, OSError) as error:
                    told = error if isinstance(error, PybuildError) else PybuildError(str(error))
                    stream.write(frame(b"X", error_payload(told)))
                    raise
                stream.write(frame(b"R", dumps(None)))
        raise WireError("the client ended the export without a result")


def serve_caches(readable: Iterable[str], writable: Iterable[str]) -> Callable[[Channel, Mapping[str, Any]], None]:
    """Serves what a daemon asks of these directories, absolute paths; see ``client_channels.Serve``."""
    may_read, may_write = frozenset(readable), frozenset(writable)

    def serve(channel: Channel, wanted: Mapping[str, Any]) -> None:  # Any: values of ours
        path, action = str(wanted.get("path")), wanted.get("action")
        place = LayoutPlace(Path(path), reference=str(wanted.get("reference")))
        try:
            if path not in (may_write if action == "save" else may_read | may_write):
                raise WireError(f"the daemon asks for {path!r}, which the build doesn't name")
            match action:
                case "manifest":
                    data = place.manifest()
                    _send(channel.write, (data[at : at + _PIECE] for at in range(0, len(data), _PIECE)))
                    result: object = None
                case "read":
                    _send(channel.write, place.chunks(wanted["blob"]))
                    result = None
                case "save":
                    result = _saved(channel, place)
                case _:
                    raise WireError("the daemon asks for something unknown of a cache")
        except (PybuildError, OSError) as error:
            told = error if isinstance(error, PybuildError) else PybuildError(f"{path}: {error.strerror or error}")
            with suppress(OSError):
                channel.write(frame(b"X", error_payload(told)))
            return
        channel.write(frame(b"R", dumps(result)))

    return serve


def _saved(channel: Channel, place: LayoutPlace) -> dict[str, object]:
    frames = read_frames(lambda size: _exactly(channel, size))
    parts: list[bytes] = []
    size = 0
    for kind, payload in frames:
        if kind == b"D":
            size += len(payload)
            if size > DOCUMENT_BYTES:
                raise WireError("the cache's document is too large")
            parts.append(payload)
            continue
        given = _result(kind, payload)
        saved = place.save(
            b"".join(parts),
            given["layers"],
            blobs=_DaemonsBlobs(channel, frames),
            oci=bool(given["oci"]),
            config_type=str(given["config_type"]),
        )
        return {"descriptor": saved.descriptor, "unchanged": saved.unchanged, "bytes_sent": saved.bytes_sent}
    raise WireError("the daemon ended the export early")


class _DaemonsBlobs:
    """A BlobSource of what the daemon exports; one blob at a time."""

    def __init__(self, channel: Channel, frames: Iterator[tuple[bytes, bytes]]) -> None:
        self._channel = channel
        self._frames = frames

    def has(self, digest: Digest) -> bool:
        return True

    def size(self, digest: Digest) -> int:
        raise WireError("the size of a daemon's blob is in its descriptor")

    def open(self, digest: Digest) -> BinaryIO:
        """Ask for it."""
        self._channel.write(frame(b"N", dumps(str(digest))))
        return cast(BinaryIO, io.BufferedReader(_Pieces(_pieces(self._frames)), _PIECE))


class _Pieces(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # Any: the buffer protocol
        while not self._left:
            self._left = next(self._pieces, b"")
            if not self._left:
                return 0
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def _pieces(frames: Iterator[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for kind, payload in frames:
        if kind != b"D":
            _result(kind, payload)
            return
        yield payload
    raise WireError("the connection to the client's directory broke")


def _result(kind: bytes, payload: bytes) -> Any:  # Any: values of ours
    if kind == b"R":
        return loads(payload)
    if kind == b"X":
        error = error_from(payload)
        raise NoCacheThere(error.message) if getattr(error, "kind", "") == "NoCacheThere" else error
    raise WireError(f"the other side sent something unexpected ({kind!r})")


def _send(write: Callable[[bytes], object], pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        write(frame(b"D", piece))


def _exactly(channel: Channel, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        data = channel.read(size)
        if not data:
            break
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
