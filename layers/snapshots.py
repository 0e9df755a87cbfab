"""Layers being made: a directory to run a step in, its changes as a layer; layers from entries; views of stacks.

Owns ``active/`` as far as layers are made there, and the order of things: changes → canonical tar → blob, then the upper directory moves
to ``layers/``, so that the next step finds its files without unpacking anything. Never mounts: it hands out directories.

Nothing is synced to the disk per step: a blob that a power cut damaged is noticed by its digest and made again.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from pybuild.errors import PybuildError

from .active import ActiveDirectories
from .blobs import BlobStore
from .cache_mounts import CacheMounts
from .digest import Digest
from .entries import Kind, Layer, LayerEntry, RootOverlay
from .facts import Facts
from .layer_index import LayerIndex
from .leases import Leases
from .unpacked import UnpackedLayers
from .views import FileView, Node
from .xattrs import OPAQUE, OWNER, Owners

if TYPE_CHECKING:  # a build that finds everything in the cache makes no layer
    from .changes import Changes
    from .tree_views import StackView

_VIEWS: Final = 8


class SnapshotFinished(PybuildError):
    """A snapshot was committed already."""

    def __init__(self) -> None:
        super().__init__("the snapshot has been committed already")


class SnapshotStore:
    """The snapshots of one store; satisfies the builder's ``Snapshots``. Every method may be called from any thread and process."""

    def __init__(
        self,
        root: Path,
        *,
        blobs: BlobStore,
        layers: LayerIndex,
        leases: Leases,
        cache_mounts: CacheMounts,
        active: ActiveDirectories,
        facts: Facts | None = None,
        overlay: bool = True,
    ) -> None:
        """``facts``: see ``UnpackedLayers``; ``overlay``: False where overlays can't be mounted; steps then run in full copies."""
        self._blobs = blobs
        self._index = layers
        self._cache_mounts = cache_mounts
        self._overlay = overlay
        self._active = active
        self.unpacked = UnpackedLayers(root, blobs=blobs, index=layers, leases=leases, active=active, facts=facts)
        self._leases = leases
        self._views_epoch: int | None = None
        self._views: dict[tuple[Digest, ...], StackView] = {}
        self._guard = threading.Lock()

    # --- stacks -------------------------------------------------------------------------------------------------------

    def has(self, stack: Sequence[Digest]) -> bool:
        """True if every layer's bytes are in the store (unpacked or not)."""
        return self._index.present(stack)

    def _held(self) -> AbstractContextManager[None]:
        """What is used from now on stays until the context ends; nothing to do where a whole build holds a lease."""
        return self._leases.lease() if self._leases.epoch is None else nullcontext()

    @contextmanager
    def view(self, stack: Sequence[Digest]) -> Iterator[FileView]:
        """The file system that the stack gives. Layers that are still tars are looked at as tars."""
        with self._held():
            yield self._view(tuple(stack))

    def _view(self, stack: tuple[Digest, ...]) -> StackView:
        epoch = self._leases.epoch
        with self._guard:
            if epoch is None or epoch != self._views_epoch:
                # Without a lease gc may take what a view reads from.
                self._views.clear()
                self._views_epoch = epoch
            found = self._views.pop(stack, None)
            if found is not None:
                self._views[stack] = found
                return found
        made = self.unpacked.view(stack)
        with self._guard:
            self._views[stack] = made
            while len(self._views) > _VIEWS:
                del self._views[next(iter(self._views))]
        return made

    @contextmanager
    def directories(self, stack: Sequence[Digest]) -> Iterator[tuple[str, ...]]:
        """Host directories to stack as overlay lowers, lowest first. At most 100 or so, however deep the stack."""
        with self._held():
            yield self.unpacked.directories(stack)

    # --- layers -------------------------------------------------------------------------------------------------------

    @contextmanager
    def prepare(self, stack: Sequence[Digest]) -> Iterator[ActiveLayer]:
        """A writable snapshot on top of ``stack``, removed when the context ends unless it was committed."""
        with self._held(), self._active.make() as directory:
            yield self._prepare(tuple(stack), os.fspath(directory))

    def _prepare(self, stack: tuple[Digest, ...], directory: str) -> ActiveLayer:
        upper, work = f"{directory}/upper", f"{directory}/work"
        os.mkdir(upper, 0o755)
        os.mkdir(work, 0o700)
        if not self._overlay and stack:
            from .trees import copy_view

            copy_view(self._view(stack), upper, ownership=self.unpacked.ownership)
            lower: tuple[str, ...] = ()
        else:
            lower = self.unpacked.directories(stack)
        if lower:
            _copy_root(lower[-1], upper, self.unpacked.ownership.owners)
        else:
            os.chmod(upper, 0o755)
        return ActiveLayer(self, stack, RootOverlay(lower, upper, work))

    def commit(self, stack: tuple[Digest, ...], root: RootOverlay, *, ignore: Sequence[str]) -> Layer:
        """For ActiveLayer."""
        from .changes import overlay_changes, tree_changes
        from .tree_views import DirectoryView, StackView

        owners = self.unpacked.ownership.owners
        if stack and not root.lower:
            entries = tree_changes(self._view(stack), DirectoryView(root.upper, owners=owners), ignore=ignore)
            return self._write(entries)
        changes = overlay_changes(root.upper, StackView(root.lower, owners=owners), owners=owners, ignore=ignore)
        layer = self._write(changes.entries)
        chain = self.unpacked.chain((*stack, layer.diff_id))
        exact = _tidy(root, changes)
        self.unpacked.publish(root.upper, layer.diff_id if exact else chain[-1])
        return layer

    def write_layer(self, stack: Sequence[Digest], entries: Sequence[LayerEntry]) -> Layer:
        """Make a layer from entries in one pass. Nothing is unpacked: views read it from its tar until a step needs it mounted.

        Parents that ``entries`` lack are added as they are in ``stack``, so that the layer stands alone.
        """
        return self._write((*self._missing_parents(tuple(stack), entries), *entries))

    def resembles(self, layer: Layer, *, key: str, contents: Mapping[str, str]) -> None:
        """Tell what helps to unpack a layer that ``write_layer`` just made: ``key`` names the step that made it, whatever it found;
        ``contents``: the sha256 (hex) of files by their path on this machine."""
        self.unpacked.resembles(layer.diff_id, key=key, contents=contents)

    def merge_layers(self, base: Sequence[Digest], own: Sequence[Digest]) -> Layer:
        """Make one layer that changes ``base`` as all of ``own`` do, lowest first."""
        from .changes import tree_changes
        from .tree_views import StackView

        owners = self.unpacked.ownership.owners
        directories = self.unpacked.directories((*base, *own))
        lower = StackView(self.unpacked.directories(base), owners=owners)
        return self._write(tree_changes(lower, StackView(directories, owners=owners)))

    def _write(self, entries: Sequence[LayerEntry]) -> Layer:
        from .tar_write import write_tar

        with self._blobs.ingest() as ingest:
            summary = write_tar(entries, ingest.write)
            digest, size = ingest.commit()
        layer = Layer(digest, size, empty=summary.entries == 0)
        self._index.register(layer)
        self.unpacked.remember(digest, summary.ordered, summary.offsets)
        return layer

    def _missing_parents(self, stack: tuple[Digest, ...], entries: Sequence[LayerEntry]) -> Iterator[LayerEntry]:
        known = {entry.path for entry in entries}
        missing: set[str] = set()
        for entry in entries:
            parent = entry.path.rpartition("/")[0]
            while parent and parent not in known and parent not in missing:
                missing.add(parent)
                parent = parent.rpartition("/")[0]
        if not missing:
            return
        view = self._view(stack)
        for path in missing:
            node = view.lookup(path)
            if node is None or node.kind is not Kind.DIRECTORY:
                node = Node(Kind.DIRECTORY, 0o755, 0, 0)
            yield LayerEntry(path, Kind.DIRECTORY, mode=node.mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns)

    def unpack_stream(self, stack: Sequence[Digest], stream: BinaryIO) -> Layer:
        """Unpack the topmost layer of ``stack`` while its blob arrives (see ``UnpackedLayers.unpack_stream``)."""
        return self.unpacked.unpack_stream(stack, stream)

    # --- other space --------------------------------------------------------------------------------------------------

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """An empty directory on the store's file system, removed afterwards."""
        with self._active.make() as directory:
            path = f"{directory}/scratch"
            os.mkdir(path, 0o700)
            yield path

    @contextmanager
    def cache_mount(self, id: str, *, fresh: bool) -> Iterator[str]:
        """The directory of a cache mount by id (shared between builds); ``fresh`` empties it first."""
        with self._cache_mounts.use(id) as directory:
            path = os.fspath(directory)
            if fresh:
                from .trees import remove_tree

                for name in os.listdir(path):
                    remove_tree(f"{path}/{name}")
            yield path


class ActiveLayer:
    """A layer being made by a process; satisfies the builder's ``ActiveSnapshot``."""

    def __init__(self, store: SnapshotStore, stack: tuple[Digest, ...], root: RootOverlay) -> None:
        self._store = store
        self._stack = stack
        self._root = root
        self._committed = False

    @property
    def root(self) -> RootOverlay:
        return self._root

    def commit(self, *, ignore: Sequence[str] = ()) -> Layer:
        """Make the layer from what changed; the overlay must not be mounted any more. Raises SnapshotFinished the second time."""
        if self._committed:
            raise SnapshotFinished
        self._committed = True
        return self._store.commit(self._stack, self._root, ignore=ignore)


def _copy_root(source: str, target: str, owners: Owners) -> None:
    """An overlay's root has the mode and owner of its upper directory."""
    status = os.stat(source)
    mine = os.stat(target)
    if (status.st_uid, status.st_gid) != (mine.st_uid, mine.st_gid):
        os.chown(target, status.st_uid, status.st_gid)
    if owners is Owners.RECORDED:
        with suppress(OSError):
            os.setxattr(target, OWNER, os.getxattr(source, OWNER))
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _tidy(root: RootOverlay, changes: Changes) -> bool:
    """Make the upper directory what its layer says, as far as possible. True if it then stands for the layer on any stack."""
    for path in changes.unmarked:
        for name in OPAQUE:
            with suppress(OSError):
                os.removexattr(f"{root.upper}/{path}", name)
    for path in changes.stubs:
        from .trees import remove_tree

        parent = f"{root.upper}/{path.rpartition('/')[0]}"
        times = os.stat(parent)
        remove_tree(f"{root.upper}/{path}")
        os.utime(parent, ns=(times.st_atime_ns, times.st_mtime_ns))
    status = os.stat(root.upper)
    # The root has no entry in the tar: a layer for every stack has the root that unpacking gives it.
    plain = stat.S_IMODE(status.st_mode) == 0o755 and (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    return changes.exact and plain
