"""Finds what changed: from an overlay's upper directory over the view of what lies below, or from two views of whole trees.

Owns the rules of what becomes an entry of the layer; they are those of containerd's and BuildKit's overlay differ, so that the same
step gives the same layer. Never mounts, never writes, never reads contents except where only they can tell a change.

- A directory is recorded when it is new or its mode, owner or attributes changed, never for its time; a file also for its size and
  its time. Where both times have no fraction (unpacked from a tar) contents decide.
- Whatever is recorded brings its parent directories along. The root itself is never recorded.
- A whiteout whose name no lower layer has is dropped. An opaque directory is compared name by name with the lower one: one
  whiteout per lost name. What replaces something of another kind is recorded alone.
- Hard links count among what is recorded: a new name of a lower layer's file is a file of its own.
- Sockets are left out, and of the attributes all but ``security.capability``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .entries import Kind, LayerEntry
from .tree_views import DirectoryLayer, StackView
from .views import FileView, Node
from .xattrs import Owners, is_redirected, layer_xattrs

_COMPARE_BYTES: Final = 1 << 18
_SECOND: Final = 1_000_000_000


class UnsupportedOverlay(PybuildError):
    """The upper directory uses an overlay feature that a layer can't express."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"overlayfs stored the renamed directory {path!r} as a reference",
            hint="overlays must be mounted with redirect_dir=nofollow (or off)",
        )
        self.path = path


@dataclass(frozen=True, slots=True)
class Changes:
    """``exact``: the upper directory, once it is tidied up, holds just what the entries say, so it can stand for the layer on top of
    any stack and not only of the one it was made on.

    Tidying up: removing ``stubs`` (paths, parents before what is in them), which no layer should show, and the opaque marks of
    ``unmarked`` (paths): overlayfs puts one on every new directory although nothing is hidden.
    """

    entries: tuple[LayerEntry, ...]
    exact: bool
    stubs: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()


def overlay_changes(
    upper: str, lower: FileView, *, owners: Owners = Owners.NATIVE, ignore: Collection[str] = ()
) -> Changes:
    """What the overlay upper directory ``upper`` changes over ``lower``, in walk order.

    ``ignore``: paths that were made for mounts; left out where they still are empty and new. Raises UnsupportedOverlay.
    """
    walk = _OverlayWalk(DirectoryLayer(upper, owners=owners), lower, frozenset(ignore))
    walk.directory("", new=False)
    return Changes(tuple(walk.record.result()), walk.exact, tuple(walk.stubs), tuple(walk.unmarked))


def tree_changes(lower: FileView, upper: FileView, *, ignore: Collection[str] = ()) -> tuple[LayerEntry, ...]:
    """What changes the tree ``lower`` into ``upper``, where no overlay has kept account: both are walked. ``ignore`` as above."""
    stubs = _Stubs(upper, lower, frozenset(ignore))
    record = _Record(upper)
    for change in _compare(lower, upper, ""):
        if not stubs.covers(change.path, change.node):
            record.add(change)
    return tuple(record.result())


@dataclass(frozen=True, slots=True)
class _Change:
    """``node`` None: the path is gone. ``same``: nothing changed, but it may be a name of a file that did."""

    path: str
    node: Node | None
    same: bool = False


class _Record:
    """Collects entries: parents come along, hard links find each other."""

    def __init__(self, upper: FileView) -> None:
        self._upper = upper
        self._entries: dict[str, LayerEntry] = {}
        self._links: dict[tuple[int, int], str] = {}
        self._unchanged: list[tuple[str, Node]] = []

    def add(self, change: _Change) -> None:
        path, node = change.path, change.node
        if node is None:
            self._parents(path)
            self._entries[path] = LayerEntry(path, Kind.WHITEOUT)
        elif node.kind is Kind.SOCKET:
            return
        elif change.same:
            self._unchanged.append((path, node))
        else:
            self._parents(path)
            self._entries[path] = self._entry(path, node)

    def holds(self, path: str) -> bool:
        return path in self._entries

    def result(self) -> Iterator[LayerEntry]:
        for path, node in self._unchanged:
            if node.identity in self._links and path not in self._entries:
                self._parents(path)
                self._entries[path] = self._entry(path, node)
        yield from self._entries.values()

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            node = self._upper.lookup(parent)
            if node is None:
                raise PybuildError(f"{'/' + parent!r} vanished while its layer was made")
            self._parents(parent)
            self._entries[parent] = self._entry(parent, node)

    def _entry(self, path: str, node: Node) -> LayerEntry:
        if node.identity is not None:
            source = self._links.setdefault(node.identity, path)
            if source != path:
                return LayerEntry(path, Kind.HARDLINK, link=source)
        return LayerEntry(
            path,
            node.kind,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            size=node.size,
            link=node.target,
            host_path=node.host_path if node.kind is Kind.FILE else None,
            device=node.device or (0, 0),
            xattrs=self._xattrs(path, node) if node.kind is Kind.FILE else (),
        )

    def _xattrs(self, path: str, node: Node) -> tuple[tuple[str, bytes], ...]:
        if node.host_path is not None:
            return layer_xattrs(node.host_path)
        return tuple(sorted(self._upper.xattrs(path).items()))


class _OverlayWalk:
    def __init__(self, layer: DirectoryLayer, lower: FileView, ignore: frozenset[str]) -> None:
        self._layer = layer
        self._lower = lower
        # The upper directory alone, whiteouts hidden: what is really there.
        self._alone = StackView([layer])
        self._stubs = _Stubs(self._alone, lower, ignore)
        self.record = _Record(self._alone)
        self.stubs: list[str] = []
        self.unmarked: list[str] = []
        self.exact = True

    def directory(self, path: str, *, new: bool) -> None:
        """Record what is below ``path``, which is a directory of the upper layer. ``new``: lower layers have none there."""
        below = self._layer.children(path)
        for name in sorted(below):
            where = f"{path}/{name}" if path else name
            self._node(where, below[name], None if new else self._lower.lookup(where))

    def _node(self, path: str, node: Node, before: Node | None) -> None:
        if node.kind is Kind.WHITEOUT:
            if before is not None:
                self.record.add(_Change(path, None))
            else:
                self.exact = False
            return
        if self._stubs.covers(path, node):
            self.stubs.append(path)
            return
        same = before is not None and _is_same(self._lower, before, self._alone, node, path)
        if not same:
            self.record.add(_Change(path, node))
        if node.kind is Kind.SOCKET:
            self.exact = False
        if node.kind is not Kind.DIRECTORY:
            self.exact = self.exact and not same
            return
        new = before is None or before.kind is not Kind.DIRECTORY
        if node.host_path is not None and is_redirected(node.host_path):
            raise UnsupportedOverlay(path)
        if self._layer.is_opaque(path):
            if not new:
                self._opaque_directory(path)
                return
            self.unmarked.append(path)
        self.directory(path, new=new)
        if same and not self.record.holds(path):
            self.exact = False  # copied up for nothing that a layer shows

    def _opaque_directory(self, path: str) -> None:
        self.exact = False
        for change in _compare(self._lower, self._alone, path):
            if self._stubs.covers(change.path, change.node):
                self.stubs.append(change.path)
            else:
                self.record.add(change)


def _compare(lower: FileView, upper: FileView, path: str) -> Iterator[_Change]:
    """Walk both directories at ``path``, name by name."""
    before = dict(lower.children(path))
    after = dict(upper.children(path))
    for name in sorted(before.keys() | after.keys()):
        where = f"{path}/{name}" if path else name
        old, new = before.get(name), after.get(name)
        if new is None:
            yield _Change(where, None)
            continue
        same = old is not None and _is_same(lower, old, upper, new, where)
        if not same:
            yield _Change(where, new)
        elif new.identity is not None:
            yield _Change(where, new, same=True)
        if new.kind is Kind.DIRECTORY:
            if old is not None and old.kind is Kind.DIRECTORY:
                yield from _compare(lower, upper, where)
            else:
                yield from _all_new(upper, where)


def _all_new(upper: FileView, path: str) -> Iterator[_Change]:
    for name, node in upper.children(path):
        where = f"{path}/{name}"
        yield _Change(where, node)
        if node.kind is Kind.DIRECTORY:
            yield from _all_new(upper, where)


def _is_same(lower: FileView, old: Node, upper: FileView, new: Node, path: str) -> bool:
    if (old.kind, old.mode, old.uid, old.gid, old.device) != (new.kind, new.mode, new.uid, new.gid, new.device):
        return False
    match new.kind:
        case Kind.DIRECTORY:
            return True
        case Kind.SYMLINK:
            if old.mtime_ns != new.mtime_ns:
                return False
            return new.mtime_ns % _SECOND != 0 or old.target == new.target
        case Kind.FILE:
            if old.size != new.size or old.mtime_ns != new.mtime_ns or lower.xattrs(path) != upper.xattrs(path):
                return False
            # A time without fraction may have lost it on the way through a tar: it proves nothing.
            return new.mtime_ns % _SECOND != 0 or not new.size or _same_content(lower, upper, path)
        case _:
            return old.mtime_ns == new.mtime_ns


def _same_content(lower: FileView, upper: FileView, path: str) -> bool:
    with lower.open(path) as one, upper.open(path) as other:
        while True:
            left, right = one.read(_COMPARE_BYTES), other.read(_COMPARE_BYTES)
            if left != right:
                return False
            if not left:
                return True


class _Stubs:
    """Empty files and directories that were made to mount something on them, and that are still nothing else."""

    def __init__(self, upper: FileView, lower: FileView, ignore: frozenset[str]) -> None:
        self._upper = upper
        self._lower = lower
        self._ignore = ignore

    def covers(self, path: str, node: Node | None) -> bool:
        if node is None or path not in self._ignore or self._lower.lookup(path) is not None:
            return False
        if node.kind is Kind.DIRECTORY:
            return all(self.covers(f"{path}/{name}", child) for name, child in self._upper.children(path))
        return node.kind is Kind.FILE and node.size == 0
