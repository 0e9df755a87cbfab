"""Trees that RUN mounts: stacks of layers as overlays, contexts as directories of this machine.

Owns deciding whether a context's directory can be shown as it is, and otherwise making a copy that shows what the context shows, owned by
root. Mounts nothing itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeAlias

from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView, Node
from pybuild.values import dataclass, field

from .copy_paths import join, resolve
from .graph import BindMount
from .protocols import HostMount, OverlayMount, ProcessMount, Snapshots
from .selection import Match, SourceNotFound, select_path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StackTree:
    """The root file system of a stack of layers."""

    stack: tuple[Digest, ...]

    @property
    def identity(self) -> str:
        return " ".join(map(str, self.stack))


@dataclass(slots=True, eq=False)
class ViewTree:
    """A tree that is only known as a view: a context or a download. ``root_owner``: whose files are root's inside of a step;
    ``held`` keeps copies until the build ends; ``identity``: what names its content."""

    view: FileView
    root_owner: tuple[int, int]
    held: ExitStack
    snapshots: Snapshots
    identity: str = ""
    _copies: dict[str, str] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def host_path(self, path: str) -> str:
        """A path of this machine that shows ``path`` of the view and nothing more. Raises SourceNotFound."""
        with self._guard:
            known = self._copies.get(path)
            if known is None:
                match = select_path(self.view, path).sources[0][0]
                known = match.node.host_path
                if known is None or not self._shown_as_is(match):
                    known = self._copy(match)
                self._copies[path] = known
            return known

    def _shown_as_is(self, match: Match) -> bool:
        """True if nothing below is left out by the view, and everything is root's already."""
        owner = self.root_owner
        shown: dict[str, int] = {"": 0}
        for rel, node in ((match.path, match.node), *match.below):
            if (node.uid, node.gid) != owner or node.host_path is None:
                return False
            if node is not match.node:
                parent = rel.rpartition("/")[0]
                shown[parent] += 1
                if node.kind is Kind.DIRECTORY:
                    shown[rel] = 0
        if match.node.kind is not Kind.DIRECTORY:
            return True
        assert match.node.host_path is not None
        return all(len(os.listdir(join(match.node.host_path, rel))) == count for rel, count in shown.items())

    def _copy(self, match: Match) -> str:
        directory = self.held.enter_context(self.snapshots.scratch())
        target = f"{directory}/tree"
        copy_tree(self.view, match, target)
        return target


MountTree: TypeAlias = StackTree | ViewTree


def copy_tree(view: FileView, match: Match, target: str, *, owners: bool = False) -> None:
    """Make a copy of a selection at ``target`` of this machine. ``owners``: keep them, where this process may."""
    links: dict[tuple[int, int], str] = {}
    directories: list[tuple[str, Node]] = []
    base = match.path + "/" if match.path else ""
    for path, place, node in (
        (match.path, target, match.node),
        *((base + rel, f"{target}/{rel}", node) for rel, node in match.below),
    ):
        if node.kind is Kind.DIRECTORY:
            os.makedirs(place, mode=0o700, exist_ok=True)
            directories.append((place, node))
            continue
        if node.kind is Kind.SYMLINK:
            os.symlink(node.target, place)
        elif node.kind is Kind.FILE:
            if node.identity is not None and node.identity in links:
                os.link(links[node.identity], place)
                continue
            with view.open(path) as source, open(place, "xb") as out:
                while chunk := source.read(_CHUNK_BYTES):
                    out.write(chunk)
            if node.identity is not None:
                links[node.identity] = place
        elif node.kind is Kind.FIFO:
            os.mkfifo(place)
        else:
            continue  # devices and sockets of a context can't be made by everybody, and are no use to a step
        _dress(place, node, owners=owners)
    for place, node in reversed(directories):
        _dress(place, node, owners=owners)


def _dress(place: str, node: Node, *, owners: bool) -> None:
    if owners:
        try:
            os.chown(place, node.uid, node.gid, follow_symlinks=False)
        except PermissionError:
            owners = False
    if node.kind is not Kind.SYMLINK:
        os.chmod(place, node.mode)
    os.utime(place, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def mount_tree(tree: MountTree, mount: BindMount, *, held: ExitStack, snapshots: Snapshots) -> ProcessMount:
    """The mount that shows ``mount.source`` of a tree; what is written to it is thrown away. Raises SourceNotFound."""
    if isinstance(tree, StackTree):
        directories = held.enter_context(snapshots.directories(tree.stack))
        with snapshots.view(tree.stack) as view:
            source = resolve(view.lookup, mount.source)
            node = view.lookup(source)
        if node is None:
            raise SourceNotFound("/" + mount.source.strip("/"))
        scratch = held.enter_context(snapshots.scratch())
        return OverlayMount(directories, source, mount.target, mount.readonly, scratch)
    host_path = tree.host_path(mount.source)
    if mount.readonly:
        return HostMount(host_path, mount.target, readonly=True)
    scratch = held.enter_context(snapshots.scratch())
    if os.path.isdir(host_path):
        return OverlayMount((host_path,), "", mount.target, readonly=False, scratch=scratch)
    import shutil

    # A single file has no directory to put an overlay on: its writable form is a copy.
    copied = shutil.copy2(host_path, f"{scratch}/file")
    return HostMount(copied, mount.target, readonly=False)


def content_root(tree: MountTree, path: str, *, held: ExitStack, snapshots: Snapshots) -> tuple[FileView, Match]:
    """The view of a tree and everything below ``path`` in it. Raises SourceNotFound."""
    view = tree.view if isinstance(tree, ViewTree) else held.enter_context(snapshots.view(tree.stack))
    matches: Sequence[Match] = select_path(view, path).sources[0]
    return view, matches[0]
