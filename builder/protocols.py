"""What the builder needs from the machine, the store and the registries. Others satisfy these structurally.

Concrete parts are constructed in ``pybuild.daemon.engine`` only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord, Layer, LayerEntry, RootOverlay
from pybuild.layers.image import ImageConfig
from pybuild.layers.views import FileView, Node
from pybuild.values import dataclass

# --- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """A reference resolved to one platform: manifest and configuration only, no layers pulled yet.

    ``layers`` are the manifest's descriptors, lowest first; ``config.diff_ids`` has the same length. ``index`` is the digest
    that the reference itself had (an index's, or the manifest's). ``asked_for``: the platform that the build wanted it for, once it is
    part of one; the image may be for another.
    """

    reference: str
    manifest: Descriptor
    index: Digest
    config: ImageConfig
    layers: tuple[Descriptor, ...]
    asked_for: Platform | None = None


class ImageSource(Protocol):
    """Finds images: the local store, registries, mirrors, layouts."""

    def resolve(self, reference: str, *, platform: Platform, pull: bool) -> ResolvedImage:
        """Resolve ``reference``; ``pull`` asks the registry even if the store knows it. Raises PybuildError (not found, refused)."""

    def ensure_layers(self, image: ResolvedImage, *, on_progress: Callable[[str, int, int], None]) -> None:
        """Bring every layer into the store and unpack it, so that ``Snapshots`` can stack its diff IDs. ``on_progress`` gets
        (layer digest, bytes done, bytes total)."""

    def know_layers(self, image: ResolvedImage) -> None:
        """Have the store know every layer, so that it can be fetched when it is needed. Raises PybuildError."""


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostMount:
    """Bind ``source`` (host path, file or directory; no symlink is followed in its last element) on ``target``."""

    source: str
    target: str
    readonly: bool


@dataclass(frozen=True, slots=True)
class OverlayMount:
    """A writable view whose writes are thrown away: an overlay of ``lower`` (lowest first) with a throw-away upper on ``target``; ``source``
    is the path inside it that is shown. With ``readonly`` nothing can be written."""

    lower: tuple[str, ...]
    source: str
    target: str
    readonly: bool
    scratch: str
    """An empty host directory for upper and work."""


@dataclass(frozen=True, slots=True)
class TemporaryMount:
    """A tmpfs of ``size`` bytes (0: default) on ``target``."""

    target: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class DataMount:
    """A file with this content on a tmpfs, bound on ``target``: never on a disk. For secrets and scripts."""

    target: str
    data: bytes
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class SocketMount:
    """A unix socket made for the step on ``target``; each connection is forwarded to ``upstream`` (a host socket path)."""

    target: str
    upstream: str
    mode: int
    uid: int
    gid: int


ProcessMount: TypeAlias = HostMount | OverlayMount | TemporaryMount | DataMount | SocketMount


@dataclass(frozen=True, slots=True)
class Terminal:
    """A person's terminal. ``size``: rows and columns; ``kind``: as TERM has it; ``connection``: the socket that leads to it
    (``daemon/terminal.py`` has its messages), None for this process's own."""

    size: tuple[int, int] = (24, 80)
    kind: str = "xterm"
    connection: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to run isolated. Users and groups are numbers already, mounts concrete and in the order they are made.

    ``network``: ``default``, ``none`` or ``host``; ``insecure``: all capabilities, no seccomp, no masks; ``extra_hosts``: (name,
    address); ``ulimits``: (name, soft, hard); ``resources``: limits by name, as ``builder/resources.py`` reads them; ``shm_size`` bytes (0: 64 MiB); ``resolv_conf``: None takes the host's.
    ``terminal``: the process gets a controlling terminal (for ``--on-error=shell``) that shows and takes what this one does. ``stdin``: this descriptor is its
    standard input; None: there is none, as for RUN.
    """

    root: RootOverlay
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    mounts: tuple[ProcessMount, ...] = ()
    network: str = "default"
    insecure: bool = False
    hostname: str = "buildkitsandbox"
    extra_hosts: tuple[tuple[str, str], ...] = ()
    shm_size: int = 0
    ulimits: tuple[tuple[str, int, int], ...] = ()
    cgroup_parent: str = ""
    resources: tuple[tuple[str, str], ...] = ()
    resolv_conf: str | None = None
    terminal: Terminal | None = None
    stdin: int | None = None


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How the process ended: ``code`` 0–255, or ``signal`` set and ``code`` 128+signal."""

    code: int
    signal: int | None = None


class Executor(Protocol):
    def start(self) -> None:
        """Told as soon as it is known that a step will run, so that what steps need can start in the meantime. Idempotent."""

    def run(
        self,
        spec: ProcessSpec,
        *,
        on_output: Callable[[int, bytes], None],
        cancel: threading.Event,
    ) -> ExitStatus:
        """Run to the end. ``on_output(stream, data)`` is called from one thread, stream 1 or 2, in the order written to each.
        Setting ``cancel`` kills every process of the step within a second and raises Cancelled. Raises PybuildError
        when the sandbox can't be set up or the program can't be started (naming it)."""


# --- snapshots -------------------------------------------------------------------------------------------------------


class ActiveSnapshot(Protocol):
    """A layer being made by a process. Discarded on exit unless committed."""

    @property
    def root(self) -> RootOverlay: ...

    def commit(self, *, ignore: Sequence[str] = ()) -> Layer:
        """Make the layer from what changed. ``ignore``: paths that were made for mounts, to be left out when they are still the
        empty stubs, together with the change of their parents' mtime."""


class Snapshots(Protocol):
    """Layers and stacks of them. A stack is a tuple of diff IDs, lowest first."""

    def has(self, stack: Sequence[Digest]) -> bool:
        """True if every layer's bytes are in the store (unpacked or not)."""

    def view(self, stack: Sequence[Digest]) -> AbstractContextManager[FileView]:
        """The file system that the stack gives, without mounting it; unpacks what is needed."""

    def directories(self, stack: Sequence[Digest]) -> AbstractContextManager[tuple[str, ...]]:
        """Host directories to stack as overlay lowers, lowest first, held against gc until the context ends."""

    def prepare(self, stack: Sequence[Digest]) -> AbstractContextManager[ActiveSnapshot]:
        """A writable snapshot on top of ``stack``."""

    def write_layer(self, stack: Sequence[Digest], entries: Sequence[LayerEntry]) -> Layer:
        """Make a layer from entries in one pass: canonical tar, hash, store. Nothing is unpacked."""

    def resembles(self, layer: Layer, *, key: str, contents: Mapping[str, str]) -> None:
        """Tell what may help to unpack a layer that was just written: ``key`` names the step, whatever it copied: layers of the
        same key probably resemble each other; ``contents``: the sha256 (hex) of files that it was made of, by their path on this machine."""

    def scratch(self) -> AbstractContextManager[str]:
        """An empty directory on the store's file system, removed afterwards."""

    def cache_mount(self, id: str, *, fresh: bool) -> AbstractContextManager[str]:
        """The directory of a cache mount by id (shared between builds); ``fresh`` empties it first."""


# --- cache -----------------------------------------------------------------------------------------------------------


class CacheIndex(Protocol):
    """Records of finished steps by key, in this store."""

    def get(self, key: str) -> CacheRecord | None:
        """The record, if its layers are all still there or can be fetched; marks it used."""

    def put(self, record: CacheRecord, *, aliases: Sequence[str] = ()) -> None:
        """Remember a record, also under further keys. Idempotent."""

    def lock(self, key: str, *, cancel: threading.Event | None = None) -> AbstractContextManager[None]:
        """Hold the right to run the step of this key, among all processes that share the store. Setting ``cancel`` ends the wait
        with Cancelled."""

    def file_digest(
        self, path: str, *, inode: tuple[int, int], size: int, mtime_ns: int, ctime_ns: int
    ) -> Digest | None:
        """A file's digest from the stat index, or None when it must be read."""

    def file_digests(self, nodes: Sequence[Node]) -> list[str]:
        """The sha256 (hex) of many files of this machine, ``""`` for each that must be read."""

    def remember_file_digests(self, entries: Sequence[tuple[str, tuple[int, int], int, int, int, Digest]]) -> None:
        """Add (path, inode, size, mtime_ns, ctime_ns, digest) rows; entries that might be racy are dropped."""


# --- remote sources ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HttpFile:
    """A downloaded file: where it is on this machine, its digest, the name the server gave it (or the URL's last element), and
    its Last-Modified in seconds since the epoch (None if the server gave none)."""

    path: str
    digest: Digest
    filename: str
    last_modified: float | None


class RemoteSources(Protocol):
    """Fetches what ADD and remote contexts name. Credentials come from the secrets given at construction; never in errors or logs."""

    def http(self, url: str, *, checksum: Digest | None) -> HttpFile:
        """Download (or revalidate with ETag / Last-Modified) ``url``. Raises PybuildError (status, checksum mismatch)."""

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        """The commit id that ``ref`` (branch, tag, commit or empty for HEAD) names at ``remote``. ``checksum``: how the commit's id,
        or that of its annotated tag, must begin. Raises PybuildError (no such ref, checksum mismatch)."""

    def git_tree(
        self, remote: str, *, commit: str, ref: str, subdir: str, keep_git_dir: bool, submodules: bool
    ) -> AbstractContextManager[str]:
        """A host directory with the tree of ``commit`` (below ``subdir``), held until the context ends."""


Secrets: TypeAlias = Mapping[str, bytes]
