"""A directory on this machine as a build context: a ``FileView`` with the ignore rules applied.

Owns walking it lazily and fast, and remembering what was seen so that one build sees one state. Never follows a symlink, never reads
more than it is asked for, knows nothing of where the directory came from (``contexts.py``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Final

from pybuild.errors import PybuildError
from pybuild.layers.entries import Kind
from pybuild.layers.views import Node
from pybuild.parser.dockerignore import DirectoryState, IgnoreMatcher

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
_FORMAT: Final = 0o170000  # S_IFMT, inode(7): calling it for every file of a context takes as long as the look-up
_REMEMBERED_NODES: Final = 40_000
"""About 20 MB. Beyond it directories are read again when asked for again."""

Children = tuple[tuple[str, Node], ...]


class UnreadableContext(PybuildError):
    """A file or directory of the context can't be read."""

    def __init__(self, path: str, problem: OSError) -> None:
        super().__init__(
            f"failed to read {path or '.'!r} in the build context: {(problem.strerror or str(problem)).lower()}",
            hint="exclude it in .dockerignore if the build doesn't need it",
        )
        self.path = path


class LocalContext:
    """The files below ``root`` that ``ignore`` doesn't exclude. Satisfies ``FileView``; safe for several threads.

    An excluded directory is shown if, thanks to an exception, something below it is kept. Owners are the host's: a copy decides
    what becomes of them.
    """

    def __init__(self, root: str | os.PathLike[str], *, ignore: IgnoreMatcher | None = None) -> None:
        self.root = os.path.abspath(root)
        self.ignore = ignore if ignore is not None and not ignore.empty else None
        self._prefix = self.root if self.root.endswith("/") else self.root + "/"
        self._lists: dict[str, Children] = {}
        self._names: dict[str, dict[str, Node]] = {}
        self._remembered = 0
        self._directories: set[str] = {""}
        self._kept: dict[str, bool] = {}

    def lookup(self, path: str) -> Node | None:
        """See FileView."""
        parent, _, name = path.rpartition("/")
        if not name:
            return self._stat("") if not path else None
        known = self._lists.get(parent)
        if known is not None:
            names = self._names.get(parent)
            if names is None:
                names = self._names[parent] = dict(known)
            return names.get(name)
        if name in (".", "..") or not self._is_directory(parent):
            return None
        node = self._stat(path)
        return node if node is not None and self._shows(path, node.kind is Kind.DIRECTORY) else None

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        """See FileView. Raises UnreadableContext."""
        known = self._lists.get(path)
        if known is not None:
            return known
        if not self._is_directory(path):
            return ()
        listed = self._list(path)
        if self._remembered + len(listed) <= _REMEMBERED_NODES:
            self._remembered += len(listed) + 1
            self._lists[path] = listed
        return listed

    def open(self, path: str) -> BinaryIO:
        """See FileView. Raises UnreadableContext."""
        node = self.lookup(path)
        try:
            if node is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            descriptor = os.open(self._prefix + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise UnreadableContext(path, error) from None
        return os.fdopen(descriptor, "rb")

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        """See FileView: file capabilities, read only now."""
        try:
            value = os.getxattr(self._prefix + path, "security.capability", follow_symlinks=False)
        except OSError:
            return {}
        return {"security.capability": value}

    def _list(self, path: str) -> Children:
        prefix = f"{path}/" if path else ""
        host = self._prefix + prefix
        ignore = self.ignore
        state: DirectoryState | None = None
        if ignore is not None:
            state = ignore.state_of(path)
            if not state.worth_entering:
                return ()
        out: list[tuple[str, Node]] = []
        try:
            with os.scandir(host) as entries:
                for entry in entries:
                    name = entry.name
                    excluded = state is not None and state.excludes(name)
                    if excluded and not (entry.is_dir(follow_symlinks=False) and self._keeps_something(prefix + name)):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                        out.append((name, _node(status, host + name)))
                    except FileNotFoundError:
                        continue  # removed since the directory was read
        except OSError as error:
            raise UnreadableContext(path, error) from None
        out.sort(key=_by_name if all(name.isascii() for name, _ in out) else _by_bytes)
        return tuple(out)

    def _stat(self, path: str) -> Node | None:
        host = self._prefix + path if path else self.root
        try:
            return _node(os.lstat(host) if path else os.stat(host), host)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise UnreadableContext(path, error) from None

    def _is_directory(self, path: str) -> bool:
        """True for a real directory, reached through real directories, that is shown."""
        if path in self._directories:
            return True
        parent, _, name = path.rpartition("/")
        if name in ("", ".", "..") or not self._is_directory(parent):
            return False
        node = self._stat(path)
        if node is None or node.kind is not Kind.DIRECTORY or not self._shows(path, True):
            return False
        self._directories.add(path)
        return True

    def _shows(self, path: str, is_directory: bool) -> bool:
        if self.ignore is None or not self.ignore.excluded(path):
            return True
        return is_directory and self._keeps_something(path)

    def _keeps_something(self, directory: str) -> bool:
        """Whether anything below an excluded directory is kept."""
        assert self.ignore is not None
        known = self._kept.get(directory)
        if known is None:
            known = self._kept[directory] = self._search(directory)
        return known

    def _search(self, directory: str) -> bool:
        assert self.ignore is not None
        state = self.ignore.state_of(directory)
        if not state.worth_entering:
            return False
        below: list[str] = []
        try:
            with os.scandir(f"{self._prefix}{directory}") as entries:
                for entry in entries:
                    if not state.excludes(entry.name):
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        below.append(f"{directory}/{entry.name}")
        except OSError:
            # What is excluded may be unreadable.
            return False
        return any(self._keeps_something(path) for path in below)


def _by_name(item: tuple[str, Node]) -> str:
    return item[0]


def _by_bytes(item: tuple[str, Node]) -> bytes:
    return os.fsencode(item[0])


def _node(status: os.stat_result, host: str) -> Node:
    mode = status.st_mode
    kind = _KINDS[mode & _FORMAT]
    inode = (status.st_dev, status.st_ino)
    target = os.readlink(host) if kind is Kind.SYMLINK else ""
    device = None
    if kind is Kind.CHARACTER or kind is Kind.BLOCK:
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return Node(
        kind,
        mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_size if kind is Kind.FILE else 0,
        status.st_mtime_ns,
        target,
        device,
        inode if status.st_nlink > 1 and kind is Kind.FILE else None,
        host,
        status.st_ctime_ns,
        inode,
    )
