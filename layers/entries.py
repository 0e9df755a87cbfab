"""Values of the layer machinery that others hand in and get back. No I/O, no behaviour."""

from __future__ import annotations

from enum import Enum

from pybuild.values import dataclass

from .digest import Digest


class Kind(Enum):
    """What a path is. HARDLINK and WHITEOUT occur in layers only, never in a view."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHARACTER = "character"
    BLOCK = "block"
    FIFO = "fifo"
    SOCKET = "socket"
    HARDLINK = "hardlink"
    WHITEOUT = "whiteout"


@dataclass(frozen=True, slots=True)
class RootOverlay:
    """A root file system to be mounted: ``lower`` lowest first, host paths; ``upper``/``work`` host paths.

    With no ``lower`` the root is ``upper`` itself, bound.
    """

    lower: tuple[str, ...]
    upper: str
    work: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in the store. ``diff_id`` is its uncompressed tar's digest; ``size`` that tar's length in bytes. ``empty`` if the tar has no entry."""

    diff_id: Digest
    size: int
    empty: bool = False


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """One entry of a layer to be written. ``path`` relative, no leading slash; ``kind`` says which fields matter.

    Content: ``host_path`` (read while writing), or ``data``, or ``link`` (a symlink's target, or the path of an earlier entry of
    this layer for HARDLINK). WHITEOUT removes ``path`` of the layers below. ``mtime_ns`` may have
    a fraction; ``xattrs`` sorted pairs. ``offset``: the content is the ``size`` bytes of ``host_path`` from there on (an archive
    that holds the file); None means the whole of ``host_path``.
    """

    path: str
    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: str = ""
    data: bytes | None = None
    host_path: str | None = None
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """A finished step. ``layers``: the diff IDs of the whole stack that is its result; ``own``: how many of them, at the top, the step made;
    ``recipe``: what went into the key, readable, as canonical JSON text."""

    key: str
    layers: tuple[Digest, ...]
    own: int
    recipe: str
    created: float
