"""Content digests as the OCI image specification writes them (``descriptor.md``, "Digests").

Owns parsing and computing; refuses to know where content is kept.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO

from pybuild.errors import PybuildError
from pybuild.values import dataclass, pattern

if TYPE_CHECKING:
    import hashlib

_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = pattern(r"[0-9a-f]+\Z")
CHUNK_BYTES = 1 << 20


class InvalidDigest(PybuildError):
    """The text is not ``algorithm:hex`` with a supported algorithm and the right length."""

    def __init__(self, text: str) -> None:
        super().__init__(f"invalid digest {text[:160]!r}", hint="a digest looks like sha256:<64 hex digits>")
        self.text = text


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm and its lower-case hex value; ``str()`` gives ``sha256:…``."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``algorithm:hex``. Raises InvalidDigest."""
        algorithm, separator, value = text.partition(":")
        if not separator or _LENGTHS.get(algorithm) != len(value) or not _HEX.match(value):
            raise InvalidDigest(text)
        return cls(sys.intern(algorithm), value)  # one text for the many digests of a survey

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls(algorithm, new_hasher(algorithm, data).hexdigest())

    @classmethod
    def of_stream(cls, stream: BinaryIO, algorithm: str = "sha256") -> Digest:
        """The digest of all that is left in ``stream``, which the caller closes."""
        hasher = new_hasher(algorithm)
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
        return cls(algorithm, hasher.hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def new_hasher(algorithm: str, data: bytes = b"") -> hashlib._Hash:
    """A hash of one of the algorithms of digests, begun with ``data``. OpenSSL is loaded by the first: listing images needs none."""
    import hashlib

    return hashlib.new(algorithm, data, usedforsecurity=False)
