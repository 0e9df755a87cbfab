"""What pull, push and copy need of a place that keeps blobs. Protocols only: the store, layouts and archives satisfy them.

Whoever implements ``commit`` verifies: a blob is visible under its digest only when its bytes have that digest and size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest
from pybuild.values import dataclass


class BlobSource(Protocol):
    """Blobs to be read."""

    def has(self, digest: Digest) -> bool:
        """True if the blob is there, whole."""

    def size(self, digest: Digest) -> int:
        """Its length in bytes. Raises PybuildError if it isn't there."""

    def open(self, digest: Digest) -> BinaryIO:
        """Open it; the caller closes it. Raises PybuildError if it isn't there."""


class BlobIngest(Protocol):
    """A blob being written."""

    @property
    def offset(self) -> int:
        """How many bytes there are already: more than 0 at the start when an earlier try left some."""

    @property
    def exists(self) -> bool:
        """True if another process has finished the expected blob while this one waited: nothing is to be written."""

    def write(self, data: bytes, /) -> object:
        """Append."""

    def commit(self) -> object:
        """Verify digest and size, then make the blob visible. Raises BlobCorrupt, leaving nothing, if they differ."""


class BlobStore(BlobSource, Protocol):
    """Blobs to be read and written."""

    def ingest(
        self, *, expected: Digest | None = None, expected_size: int | None = None, partial_key: str | None = None
    ) -> AbstractContextManager[BlobIngest]:
        """Write a blob. What was written and not committed is kept for the next ``ingest`` with the same ``partial_key``, dropped without
        one."""


class LayerSink(Protocol):
    """Takes a layer's bytes as they arrive, to unpack them meanwhile. Made per layer, used from one thread."""

    def write(self, data: bytes, /) -> object:
        """The next bytes, as the registry sends them (compressed or not)."""

    def commit(self) -> object:
        """The blob is complete and verified: keep what was made of it."""


@dataclass(frozen=True, slots=True)
class LayerDownload:
    """A layer that is about to be downloaded: its descriptor, its diff ID and its place in the stack (0 is the lowest)."""

    descriptor: Descriptor
    diff_id: Digest
    position: int
    diff_ids: tuple[Digest, ...]


LayerSinkFactory = Callable[[LayerDownload], AbstractContextManager[LayerSink] | None]
"""Makes the sink of a layer, or None to have it unpacked later. Leaving the context without ``commit`` throws away what was made."""


class BlobOrigins(Protocol):
    """Remembers which repositories have a blob, for mounting it from one repository of a registry into another."""

    def repositories(self, host: str, digest: Digest) -> tuple[str, ...]:
        """Repositories at ``host`` where the blob was seen, the latest first."""

    def remember(self, host: str, repository: str, digests: tuple[Digest, ...]) -> None:
        """The blobs were seen in ``repository``."""


class RememberedOrigins:
    """BlobOrigins in memory."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Digest], dict[str, None]] = {}

    def repositories(self, host: str, digest: Digest) -> tuple[str, ...]:
        return tuple(reversed(tuple(self._seen.get((host, digest), ()))))

    def remember(self, host: str, repository: str, digests: tuple[Digest, ...]) -> None:
        for digest in digests:
            names = self._seen.setdefault((host, digest), {})
            names.pop(repository, None)
            names[repository] = None
