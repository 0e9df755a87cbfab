"""COPY, ADD and WORKDIR: from a selection to the entries of one layer, with BuildKit's results.

Owns where things land (trailing slashes, directories' contents, links in the destination), with which owner and mode. The selection
comes from ``content.py``, the comparison with what is below from ``copy_tree.py``. Writes no layer.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.views import FileView, Node
from pybuild.values import dataclass

from .content import Xattrs
from .copy_modes import ModeChange, parse_mode
from .copy_paths import join, parent_of
from .copy_spool import Spool, Spooled
from .copy_tree import MADE_NS, CannotReplace, PendingTree
from .graph import FileCopy, FileMake, Unpack
from .owners import NO_ACCOUNTS, InvalidUser, Owner, names_accounts, read_accounts
from .selection import Match, Selection, SourceNotFound, select_copy


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """The entries of the layer; ``warnings`` are sentences about what was assumed."""

    entries: tuple[LayerEntry, ...]
    warnings: tuple[str, ...] = ()


def plan_copy(
    op: FileCopy,
    *,
    parent: FileView | None,
    source: FileView | None,
    spool: Spool,
    selection: Selection | None = None,
    xattrs: Mapping[str, Xattrs] | None = None,
    literal: bool = False,
) -> CopyPlan:
    """The layer that ``op`` makes on top of ``parent`` (None for nothing below, as with ``--link``).

    ``source``: the tree it copies from, None if it has only heredocs; ``selection``: what ``select_copy`` found in it, if that is
    known already, and ``xattrs`` its files' attributes; ``literal``: ``source`` is a download, whose names are no patterns. Entries may refer to files of ``source``
    and of ``spool``. Raises SourceNotFound and the errors of ``copy_tree``, ``owners`` and ``archives``.
    """
    owner, warnings = _owner(op.owner, parent)
    mode = None if op.mode is None else parse_mode(op.mode)
    copier = _Copier(PendingTree(parent), op, owner, mode, spool, xattrs)
    if source is not None:
        selection = selection or select_copy(source, op, literal=literal)
        for name, matches in zip(op.sources, selection.sources, strict=True):
            copier.mode = None if name in op.keep_mode else mode
            for match in matches:
                if op.unpack is Unpack.LOCAL and copier.unpack(source, match):
                    continue
                copier.copy(source, match, contents=not literal)
    elif op.sources:
        raise SourceNotFound("/" + op.sources[0].strip("/"))
    copier.mode = mode
    for file in op.inline:
        copier.write(file.name, file.data, file.mode)
    return CopyPlan(tuple(copier.tree.entries()), warnings)


def plan_make(op: FileMake, *, parent: FileView | None) -> CopyPlan:
    """The layer that WORKDIR makes: ``op.directory`` and its missing parents; nothing if it exists."""
    owner, warnings = _owner(op.user, parent)
    tree = PendingTree(parent)
    uid, gid = (0, 0) if owner is None else (owner.uid, owner.gid)
    made_ns = MADE_NS if op.epoch is None else op.epoch * 1_000_000_000
    tree.make_directories(
        tree.resolve(op.directory), mode=op.mode, uid=uid, gid=gid, mtime_ns=made_ns, inherit=owner is None
    )
    return CopyPlan(tuple(tree.entries()), warnings)


def _owner(text: str, parent: FileView | None) -> tuple[Owner | None, tuple[str, ...]]:
    if not text:
        return None, ()
    accounts = NO_ACCOUNTS
    if names_accounts(text):
        if parent is None:
            raise InvalidUser(
                f"owner {text!r} needs the stage's /etc/passwd, which this step can't see",
                hint="use numbers for --chown, or leave out --link",
            )
        accounts = read_accounts(parent)
    owner = accounts.file_owner(text)
    return owner, tuple(f"no entry for {name!r} in the stage: root is used instead" for name in owner.unknown)


@dataclass(slots=True)
class _Copier:
    tree: PendingTree
    op: FileCopy
    owner: Owner | None
    mode: ModeChange | None
    spool: Spool
    known_xattrs: Mapping[str, Xattrs] | None
    matches: int = 0

    def copy(self, source: FileView, match: Match, *, contents: bool) -> None:
        """Copy one match. ``contents``: a directory stands for what is in it."""
        self.matches += 1  # hard links survive within one match
        directory = match.node.kind is Kind.DIRECTORY
        target = self._place(match.name, directory=directory, contents=contents)
        node = match.node
        if not directory:
            self._file(source, match.path, node, target)
            return
        existing = self.tree.lookup(target)
        if existing is None:
            self._directory(node, target, implied=False)
        elif existing.kind is not Kind.DIRECTORY:
            raise CannotReplace(f"cannot copy to non-directory: /{target}", path=target)
        else:
            self.tree.touch_directory(target, mtime_ns=node.mtime_ns)
        self._below(source, match, target)

    def _below(self, source: FileView, match: Match, target: str) -> None:
        base = match.path + "/" if match.path else ""
        prefix = target + "/" if target else ""
        implied = match.implied
        directory = Kind.DIRECTORY
        regular = Kind.FILE
        quick = self._quick(target)
        made = self.tree.made
        for rel, node in match.below:
            if quick is not None and node.kind is regular and node.host_path is not None and node.identity is None:
                # The common case of many files: nothing can be in their way.
                uid, gid, mode = quick
                path = prefix + rel
                made[path] = LayerEntry(
                    path,
                    regular,
                    node.mode if mode is None else mode,
                    uid,
                    gid,
                    node.mtime_ns,
                    node.size,
                    "",
                    None,
                    node.host_path,
                )
            elif node.kind is directory:
                self._directory(node, prefix + rel, implied=rel in implied)
            else:
                self._file(source, base + rel, node, prefix + rel)

    def _quick(self, target: str) -> tuple[int, int, int | None] | None:
        """Owner and mode of plain files copied to ``target``, if they are the same for all and the directory is new and empty."""
        if self.op.keep_owner or not self.tree.is_new(target) or (self.mode is not None and self.mode.octal is None):
            return None
        return (*self._created_owner(), None if self.mode is None else self.mode.octal)

    def write(self, name: str, data: bytes, mode: int) -> None:
        """Copy a heredoc."""
        target = self._place(posixpath.basename(name), directory=False, contents=False)
        node = Node(Kind.FILE, mode, 0, 0, len(data), MADE_NS)
        self._check_file_target(target)
        self.tree.put(self._entry(target, node, content=Spooled(len(data), data)))

    def unpack(self, source: FileView, match: Match) -> bool:
        """Unpack a match that is an archive into the destination; False if it is none."""
        if match.node.kind is not Kind.FILE or not match.node.size:
            return False
        from .archives import is_archive, unpack

        with source.open(match.path) as file:
            if not is_archive(file):
                return False
        target = self.tree.resolve(self.op.destination)
        uid, gid = self._created_owner()
        self.tree.make_directories(target, mode=0o755, uid=uid, gid=gid, inherit=self.owner is None)
        with source.open(match.path) as file:
            unpack(file, self.tree, target, owner=self.owner, spool=self.spool)
        return True

    # --- where ---------------------------------------------------------------------------------------------------------

    def _place(self, name: str, *, directory: bool, contents: bool) -> str:
        """Where a match lands, its directories made."""
        tree, destination = self.tree, self.op.destination
        head, _, tail = destination.rpartition("/")
        self._make(tree.resolve(head if tail not in ("", ".") else destination))
        target = tree.resolve(destination)
        existing = tree.lookup(target)
        if existing is not None and (not contents if directory else existing.kind is Kind.DIRECTORY):
            target = join(target, name) if name else target
        self._make(target if contents and directory and existing is None else parent_of(target))
        return target

    def _make(self, path: str) -> None:
        uid, gid = self._created_owner()
        mode = 0o755 if self.mode is None else self.mode.of_created_directories
        self.tree.make_directories(path, mode=mode, uid=uid, gid=gid, inherit=self.owner is None)

    def _created_owner(self) -> tuple[int, int]:
        return (0, 0) if self.owner is None else (self.owner.uid, self.owner.gid)

    # --- what ----------------------------------------------------------------------------------------------------------

    def _directory(self, node: Node, target: str, *, implied: bool) -> None:
        existing = self.tree.lookup(target)
        if existing is not None and existing.kind is not Kind.DIRECTORY:
            raise CannotReplace(f"cannot copy to non-directory: /{target}", path=target)
        entry = self._entry(target, node)
        if existing is not None and implied:
            # Only its mode is taken over: it was not selected itself.
            entry = LayerEntry(target, Kind.DIRECTORY, node.mode, existing.uid, existing.gid, existing.mtime_ns)
        self.tree.put(entry)

    def _check_file_target(self, target: str) -> None:
        existing = self.tree.lookup(target)
        if existing is not None and existing.kind is Kind.DIRECTORY:
            raise CannotReplace(f"cannot replace to directory /{target} with file", path=target)

    def _file(self, source: FileView, path: str, node: Node, target: str) -> None:
        self._check_file_target(target)
        kind = node.kind
        if kind is Kind.SOCKET:
            # Layers can't hold sockets. From a context it arrives as an empty file, from a stage not at all.
            if not self.op.keep_owner:
                self.tree.put(self._entry(target, node, content=Spooled(0, b"")))
            return
        if kind is not Kind.FILE:
            self.tree.put(self._entry(target, node))
            return
        if node.host_path is not None:
            content = Spooled(node.size, host_path=node.host_path)
        else:
            with source.open(path) as file:
                content = self.spool.keep(file, node.size)
        entry = self._entry(target, node, content=content, xattrs=self._xattrs(source, path))
        self.tree.put(entry, group=None if node.identity is None else (self.matches, node.identity))

    def _xattrs(self, source: FileView, path: str) -> Xattrs:
        # Those of a context are lost on their way in the reference, too: changing the owner takes capabilities away.
        if not self.op.keep_owner:
            return ()
        if self.known_xattrs is not None:
            return self.known_xattrs.get(path, ())
        return tuple(sorted(source.xattrs(path).items()))

    def _entry(
        self,
        target: str,
        node: Node,
        *,
        content: Spooled | None = None,
        xattrs: Xattrs = (),
    ) -> LayerEntry:
        kind = node.kind if content is None else Kind.FILE
        if kind is Kind.SYMLINK:
            mode = 0o777
        elif self.mode is None:
            mode = node.mode
        else:
            mode = self.mode.apply(node.mode, directory=kind is Kind.DIRECTORY)
        if self.owner is not None:
            uid, gid = self.owner.uid, self.owner.gid
        elif self.op.keep_owner:
            uid, gid = node.uid, node.gid
        else:
            uid = gid = 0
        return LayerEntry(
            path=target,
            kind=kind,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=node.mtime_ns,
            size=0 if content is None else content.size,
            link=node.target,
            data=None if content is None else content.data,
            host_path=None if content is None else content.host_path,
            device=node.device or (0, 0),
            xattrs=xattrs,
            offset=None if content is None else content.offset,
        )
