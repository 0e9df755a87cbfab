"""In-memory parts for tests of the solver: snapshots, cache, an executor that is a function. Nothing here touches a disk.

They satisfy the protocols of ``pybuild.builder.protocols``, as the real ones do that integration tests use.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from pybuild.builder.progress import Event, StepDone, StepStarted
from pybuild.builder.protocols import ExitStatus, ProcessSpec, ResolvedImage
from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord, Kind, Layer, LayerEntry, RootOverlay
from pybuild.layers.image import ImageConfig
from pybuild.layers.views import Node

AMD64 = Platform("linux", "amd64")


class Tree:
    """A file system in memory: paths to (node, content). A FileView."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[Node, bytes]] = {"": (Node(Kind.DIRECTORY, 0o755, 0, 0), b"")}

    def file(self, path: str, data: bytes | str = b"", *, mode: int = 0o644, uid: int = 0, mtime: int = 5) -> Tree:
        data = data.encode() if isinstance(data, str) else data
        return self.put(path, Node(Kind.FILE, mode, uid, 0, len(data), mtime * 10**9), data)

    def link(self, path: str, target: str) -> Tree:
        return self.put(path, Node(Kind.SYMLINK, 0o777, 0, 0, 0, 0, target))

    def put(self, path: str, node: Node, data: bytes = b"") -> Tree:
        parent = path.rpartition("/")[0]
        if parent not in self.nodes:
            self.put(parent, Node(Kind.DIRECTORY, 0o755, 0, 0))
        self.nodes[path] = (node, data)
        return self

    def remove(self, path: str) -> None:
        for other in [p for p in self.nodes if p == path or p.startswith(path + "/")]:
            del self.nodes[other]

    def lookup(self, path: str) -> Node | None:
        known = self.nodes.get(path)
        return None if known is None else known[0]

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        return tuple(
            (other.rpartition("/")[2], node)
            for other, (node, _) in sorted(self.nodes.items())
            if other and other.rpartition("/")[0] == path
        )

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.nodes[path][1])

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        return {}

    def read(self, path: str) -> str:
        return self.nodes[path][1].decode()


class MemorySnapshots:
    """Layers as lists of entries; ``views`` counts how often a file system was looked into."""

    def __init__(self) -> None:
        self.layers: dict[Digest, tuple[LayerEntry, ...]] = {}
        self.views = 0
        self._guard = threading.Lock()
        self.active: dict[str, Tree] = {}

    def add(self, tree: Tree) -> Digest:
        """A layer with everything that is in ``tree``."""
        entries = [
            LayerEntry(p, n.kind, n.mode, n.uid, n.gid, n.mtime_ns, n.size, n.target, data)
            for p, (n, data) in sorted(tree.nodes.items())
            if p
        ]
        return self.write_layer((), entries).diff_id

    def has(self, stack: Sequence[Digest]) -> bool:
        return all(diff_id in self.layers for diff_id in stack)

    def tree(self, stack: Sequence[Digest]) -> Tree:
        tree = Tree()
        for diff_id in stack:
            for entry in self.layers[diff_id]:
                if entry.kind is Kind.WHITEOUT:
                    tree.remove(entry.path)
                    continue
                data = _content(entry)
                node = Node(
                    entry.kind, entry.mode, entry.uid, entry.gid, len(data), entry.mtime_ns // 10**9 * 10**9, entry.link
                )
                if entry.kind is Kind.HARDLINK:
                    node, data = tree.nodes[entry.link]
                tree.put(entry.path, node, data)
        return tree

    @contextmanager
    def view(self, stack: Sequence[Digest]) -> Iterator[Tree]:
        self.views += 1
        yield self.tree(stack)

    @contextmanager
    def directories(self, stack: Sequence[Digest]) -> Iterator[tuple[str, ...]]:
        yield tuple(f"/layers/{diff_id.hex[:12]}" for diff_id in stack)

    @contextmanager
    def prepare(self, stack: Sequence[Digest]) -> Iterator[MemoryActive]:
        active = MemoryActive(self, self.tree(stack), f"/active/{id(object())}-{threading.get_ident()}")
        with self._guard:
            self.active[active.root.upper] = active.tree
        yield active
        with self._guard:
            del self.active[active.root.upper]

    def resembles(self, layer: Layer, *, key: str, contents: Mapping[str, str]) -> None:
        """Nothing is unpacked here."""

    def write_layer(self, stack: Sequence[Digest], entries: Sequence[LayerEntry]) -> Layer:
        known = tuple(
            replace(entry, data=_content(entry), host_path=None) if entry.kind is Kind.FILE else entry
            for entry in entries
        )
        diff_id = Digest.of(repr(known).encode())
        with self._guard:
            self.layers[diff_id] = known
        return Layer(diff_id, 0, empty=not known)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        raise AssertionError("no test of the solver's decisions needs a scratch directory")
        yield ""

    @contextmanager
    def cache_mount(self, id: str, *, fresh: bool) -> Iterator[str]:
        raise AssertionError("no test of the solver's decisions needs a cache mount")
        yield ""


@dataclass
class MemoryActive:
    snapshots: MemorySnapshots
    tree: Tree
    path: str
    before: dict[str, tuple[Node, bytes]] = field(init=False)

    def __post_init__(self) -> None:
        self.before = dict(self.tree.nodes)

    @property
    def root(self) -> RootOverlay:
        return RootOverlay((), self.path, "")

    def commit(self, *, ignore: Sequence[str] = ()) -> Layer:
        entries = [
            LayerEntry(p, n.kind, n.mode, n.uid, n.gid, n.mtime_ns, n.size, n.target, data)
            for p, (n, data) in sorted(self.tree.nodes.items())
            if self.before.get(p) != (n, data)
        ]
        entries += [LayerEntry(p, Kind.WHITEOUT) for p in sorted(self.before) if p not in self.tree.nodes]
        return self.snapshots.write_layer((), entries)


def _content(entry: LayerEntry) -> bytes:
    return Path(entry.host_path).read_bytes() if entry.host_path is not None else entry.data or b""


class MemoryCache:
    """Records in a dictionary; ``reads`` are the files whose digests were asked for in vain."""

    def __init__(self, snapshots: MemorySnapshots) -> None:
        self.records: dict[str, CacheRecord] = {}
        self.gets: list[str] = []
        self._snapshots = snapshots
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self.digests: dict[tuple[object, ...], Digest] = {}
        self.remembered = 0

    def get(self, key: str) -> CacheRecord | None:
        self.gets.append(key)
        record = self.records.get(key)
        return record if record is not None and self._snapshots.has(record.layers) else None

    def put(self, record: CacheRecord, *, aliases: Sequence[str] = ()) -> None:
        for key in (record.key, *aliases):
            self.records[key] = record

    @contextmanager
    def lock(self, key: str, *, cancel: threading.Event | None = None) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            yield

    def file_digest(
        self, path: str, *, inode: tuple[int, int], size: int, mtime_ns: int, ctime_ns: int
    ) -> Digest | None:
        return self.digests.get((path, inode, size, mtime_ns, ctime_ns))

    def file_digests(self, nodes: Sequence[Node]) -> list[str]:
        found = [
            self.digests.get((node.host_path, node.inode, node.size, node.mtime_ns, node.ctime_ns))
            if node.host_path is not None and node.ctime_ns
            else None
            for node in nodes
        ]
        return ["" if digest is None else digest.hex for digest in found]

    def remember_file_digests(self, entries: Sequence[tuple[str, tuple[int, int], int, int, int, Digest]]) -> None:
        self.remembered += len(entries)
        for *stat, digest in entries:
            self.digests[tuple(stat)] = digest


@dataclass
class FunctionExecutor:
    """Runs ``program(tree, spec, on_output)`` for each step, on the step's file system; its return value is the exit code."""

    snapshots: MemorySnapshots
    program: Callable[[Tree, ProcessSpec, Callable[[int, bytes], None]], int]
    ran: list[ProcessSpec] = field(default_factory=list)

    def start(self) -> None:
        """Nothing needs a start."""

    def run(self, spec: ProcessSpec, *, on_output: Callable[[int, bytes], None], cancel: threading.Event) -> ExitStatus:
        self.ran.append(spec)
        return ExitStatus(self.program(self.snapshots.active[spec.root.upper], spec, on_output))

    @property
    def commands(self) -> list[str]:
        return [spec.args[-1] for spec in self.ran]


class MemoryImages:
    """Images by their layers, which come into the snapshots when they are pulled."""

    def __init__(self, snapshots: MemorySnapshots) -> None:
        self._snapshots = snapshots
        self._unpulled: dict[Digest, tuple[LayerEntry, ...]] = {}
        self.images: dict[str, ResolvedImage] = {}
        self.pulled: list[str] = []
        self.known: list[str] = []

    def add(self, reference: str, tree: Tree, *, pulled: bool = True) -> ResolvedImage:
        diff_id = self._snapshots.add(tree)
        if not pulled:
            self._unpulled[diff_id] = self._snapshots.layers.pop(diff_id)
        config = ImageConfig(AMD64, diff_ids=(diff_id,))
        digest = Digest.of(reference.encode())
        image = ResolvedImage(reference, Descriptor("", digest, 1), digest, config, (Descriptor("", diff_id, 1),))
        self.images[reference] = image
        return image

    def resolve(self, reference: str, *, platform: Platform, pull: bool) -> ResolvedImage:
        return self.images[reference.partition("@")[0]]

    def ensure_layers(self, image: ResolvedImage, *, on_progress: Callable[[str, int, int], None]) -> None:
        self.pulled.append(image.reference)
        for diff_id in image.config.diff_ids:
            on_progress(str(diff_id), 1, 1)
            if diff_id in self._unpulled:
                self._snapshots.layers[diff_id] = self._unpulled.pop(diff_id)

    def know_layers(self, image: ResolvedImage) -> None:
        self.known.append(image.reference)


class Events:
    """Collects progress events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def titles(self, *, cached: bool) -> list[str]:
        """The titles of the steps that ended well, cached or not, in the order of their end."""
        names = {event.step: event.title for event in self.events if isinstance(event, StepStarted)}
        return [
            names[event.step]
            for event in self.events
            if isinstance(event, StepDone) and event.cached is cached and event.error is None
        ]

    def reasons(self) -> dict[str, str]:
        """Why steps ran, by title."""
        names = {event.step: event.title for event in self.events if isinstance(event, StepStarted)}
        return {names[e.step]: e.reason for e in self.events if isinstance(e, StepDone) and e.reason}
