"""Views of directories and of stacks of layers: what overlayfs would show, without mounting it.

Owns ``DirectoryView``, ``StackView`` and link resolution inside of a view; single layers are ``layer_sources``'s. Never writes, never mounts, never follows a link by the kernel's hand.

A stack is looked at as overlayfs does it (kernel documentation, ``filesystems/overlayfs.rst``): the topmost layer that has a name
decides; directories of several layers merge down to the first that is opaque or to a layer that has no directory there;
a whiteout ends the search.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Final

from pybuild.errors import PybuildError

from .entries import Kind
from .layer_sources import IMPLIED, Tree
from .layer_sources import DirectoryLayer as DirectoryLayer
from .layer_sources import EntryLayer as EntryLayer
from .layer_sources import LayerSource as LayerSource
from .layer_sources import NotAFile as NotAFile
from .views import FileView, Node
from .xattrs import Owners

_MAX_LINKS: Final = 255


class TooManyLinks(PybuildError):
    """Resolving a path meets more symlinks than any sane tree has: a loop."""

    def __init__(self, path: str) -> None:
        super().__init__(f"too many links in {'/' + path!r}")
        self.path = path


def resolve(view: FileView, path: str, *, follow_last: bool) -> tuple[str, Node | None]:
    """The real path of ``path``, and what is there: no element but perhaps the last is a link, ``..`` and absolute links stay
    inside the root, and elements that don't exist are kept as they are (a dangling link gives its target's path).

    ``follow_last``: also follow a link at the end. Raises TooManyLinks.
    """
    pending = path.split("/")[::-1]
    real: list[str] = []
    links = 0
    node: Node | None = view.lookup("")
    missing = False
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if real:
                real.pop()
            missing, node = False, None
            continue
        real.append(part)
        # Nothing is below what is missing; only ".." leads back to what may exist.
        node = None if missing else view.lookup("/".join(real))
        missing = missing or node is None
        if node is not None and node.kind is Kind.SYMLINK and (follow_last or _more(pending)):
            links += 1
            if links > _MAX_LINKS:
                raise TooManyLinks(path)
            if node.target.startswith("/"):
                real.clear()
            else:
                real.pop()
            pending += node.target.split("/")[::-1]
            node = None
    where = "/".join(real)
    return where, view.lookup(where) if node is None and not missing else node


def _more(pending: Sequence[str]) -> bool:
    return any(part not in ("", ".") for part in pending)


# --- views --------------------------------------------------------------------------------------------------------------


class DirectoryView:
    """A plain directory of this machine as a FileView: nothing in it means anything special. It must not change meanwhile."""

    def __init__(self, root: str, *, owners: Owners = Owners.NATIVE) -> None:
        self._tree = Tree(root, owners)

    def lookup(self, path: str) -> Node | None:
        return self._tree.lookup(path)

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        return _sorted(self._tree.children(path))

    def open(self, path: str) -> BinaryIO:
        return self._tree.open(path)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        return self._tree.xattrs(path)


def _sorted(children: Mapping[str, Node]) -> Sequence[tuple[str, Node]]:
    return sorted(children.items(), key=lambda item: os.fsencode(item[0]))


# --- stacks -------------------------------------------------------------------------------------------------------------

_Found = tuple[Node, tuple[LayerSource, ...]]


class StackView:
    """Layers on top of each other, lowest first, as a FileView. Remembers which layers take part in each directory it has seen."""

    def __init__(self, layers: Sequence[LayerSource | str], *, owners: Owners = Owners.NATIVE) -> None:
        """``layers``: unpacked ones as directories (``str``), others as sources; ``owners``: how the former keep owners."""
        sources = [DirectoryLayer(layer, owners=owners) if isinstance(layer, str) else layer for layer in layers]
        top_first = tuple(reversed(sources))
        roots = (source.lookup("") for source in top_first if isinstance(source, DirectoryLayer))
        root = next((node for node in roots if node is not None), IMPLIED)
        # Directories only: (what is shown, the layers that take part, topmost first); None where there is no directory.
        self._directories: dict[str, _Found | None] = {"": (root, top_first)}

    def _directory(self, path: str) -> _Found | None:
        try:
            return self._directories[path]
        except KeyError:
            found = self._find(path)
            if found is not None and found[0].kind is not Kind.DIRECTORY:
                found = None
            self._directories[path] = found
            return found

    def _find(self, path: str) -> _Found | None:
        """What is shown at ``path``, and for a directory the layers that take part in it, for others the one that has it."""
        parent = self._directory(path.rpartition("/")[0])
        if parent is None:
            return None
        shown: Node | None = None
        parts: list[LayerSource] = []
        for layer in parent[1]:
            node = layer.lookup(path)
            if node is None:
                continue
            if node.kind is not Kind.DIRECTORY:
                if shown is None:
                    return None if node.kind is Kind.WHITEOUT else (node, (layer,))
                break
            parts.append(layer)
            if shown is None or shown is IMPLIED:
                shown = node
            if layer.is_opaque(path):
                break
        return None if shown is None else (shown, tuple(parts))

    def lookup(self, path: str) -> Node | None:
        if path in self._directories:
            found = self._directories[path]
            if found is not None:
                return found[0]
        found = self._find(path)
        if found is None:
            return None
        if found[0].kind is Kind.DIRECTORY:
            self._directories[path] = found
        return found[0]

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        directory = self._directory(path)
        if directory is None:
            return ()
        layers = directory[1]
        if len(layers) == 1:
            only = layers[0].children(path)
            return _sorted({name: node for name, node in only.items() if node.kind is not Kind.WHITEOUT})
        shown: dict[str, Node] = {}
        for layer in layers:
            for name, node in layer.children(path).items():
                if name not in shown:
                    shown[name] = node
                    if node is IMPLIED:
                        # A lower layer may say what this directory is like.
                        found = self._directory(f"{path}/{name}" if path else name)
                        shown[name] = node if found is None else found[0]
        return _sorted({name: node for name, node in shown.items() if node.kind is not Kind.WHITEOUT})

    def open(self, path: str) -> BinaryIO:
        found = self._find(path) if path else None
        if found is None or found[0].kind is not Kind.FILE:
            raise NotAFile(path)
        return found[1][0].open(path)

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        found = self._find(path) if path else None
        return {} if found is None else found[1][0].xattrs(path)
