"""Build contexts of clients, kept between builds so that only what changed has to be sent.

Owns the trees below ``remotes/context/`` and bringing one to what a client lists. Never opens or follows a link that a client sent.

    remotes/context/<group>/<key>.lock       held while a build uses <key>
    remotes/context/<group>/<key>/index      the rows of the tree, JSON; missing while the tree is changed
    remotes/context/<group>/<key>/arriving-… a file that is not complete yet
    remotes/context/<group>/<key>/tree/…     the files
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind
from pybuild.layers.holes import is_hole
from pybuild.layers.locks import try_lock_file
from pybuild.layers.tar_read import TarReader
from pybuild.layers.trees import remove_tree

from .context_listing import ListedPath, checked, listing_text
from .wire import WireError

_COPIES: Final = 256
"""Of one directory at a time: a bake of many targets builds them all at once."""

_CHUNK: Final = 1 << 20
_DRAFT: Final = "arriving-"


class ArrivingFile:
    """A file on its way, beside the tree until it is complete. A context manager: leaving it puts the file into its place, or drops it after an error."""

    def __init__(self, draft: str, place: str) -> None:
        self._draft = draft
        self._place = place
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._out = os.fdopen(descriptor, "wb")
        self._hole = False

    def __enter__(self) -> ArrivingFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.drop()

    def write(self, data: bytes) -> None:
        """The next bytes; long runs of zeros become holes."""
        self._hole = is_hole(data)
        if self._hole:
            self._out.seek(len(data), os.SEEK_CUR)
        else:
            self._out.write(data)

    def finish(self) -> None:
        """It is complete."""
        if self._hole:
            self._out.truncate()
        self._out.close()
        if _is(self._place, stat.S_ISDIR):
            remove_tree(self._place)
        os.rename(self._draft, self._place)

    def drop(self) -> None:
        """It will never be complete."""
        self._out.close()
        os.unlink(self._draft)


class KeptContext:
    """One tree, locked. ``root``: where its files are."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._index = directory / "index"
        self.root = directory / "tree"
        self._changed: set[str] = set()
        self._arrivals = 0

    def is_current(self, text: str) -> bool:
        """Whether the tree is just what the list ``text`` (see ``listing_text``) says: then there is nothing to do."""
        try:
            return self._index.read_text(encoding="ascii") == text
        except (OSError, ValueError):
            return False

    def missing(self, rows: Iterable[ListedPath]) -> list[ListedPath]:
        """Bring the tree to ``rows`` as far as it goes without content. Returns the files whose content is needed. Raises WireError."""
        wanted = checked(tuple(rows))
        known = self._known()
        with suppress(FileNotFoundError):
            self._index.unlink()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._directory.glob(f"{_DRAFT}*"):  # by a daemon that was killed
            left.unlink()
        for path in sorted(known, key=lambda text: text.count("/"), reverse=True):
            if path not in wanted or wanted[path].kind is not known[path].kind:
                self._remove(path)
        needed: list[ListedPath] = []
        for path, row in wanted.items():
            before = known.get(path)
            if before == row and (row.stamp or row.kind is not Kind.FILE):
                continue  # nobody else writes here
            self._changed.add(path)
            same = before is not None and before.kind is row.kind
            host = self._host(path)
            match row.kind:
                case Kind.DIRECTORY:
                    if not _is(host, stat.S_ISDIR):
                        self._remove(path)
                        os.mkdir(host, 0o700)
                case Kind.FILE:
                    unchanged = same and before is not None and row.stamp and _content(before) == _content(row)
                    if not unchanged or not _is(host, stat.S_ISREG):
                        needed.append(row)
                case Kind.SYMLINK:
                    if not same or before is None or before.link != row.link or not _is(host, stat.S_ISLNK):
                        self._remove(path)
                        os.symlink(row.link, host)
                case Kind.FIFO:
                    if not _is(host, stat.S_ISFIFO):
                        self._remove(path)
                        os.mkfifo(host, 0o600)
                case _:
                    pass  # links come when their files are there
        return needed

    def fill(self, needed: Iterable[ListedPath], archive: BinaryIO) -> int:
        """Write the files of ``archive``, which must be ``needed``. Returns the bytes written. Raises WireError, InvalidTar."""
        waiting = {row.path: row for row in needed}
        written = 0
        if waiting:
            reader = TarReader(archive)
            for entry in reader:
                row = waiting.pop(entry.path, None)
                if row is None or entry.kind is not Kind.FILE:
                    raise WireError(f"the build context brings {entry.path[:100]!r}, which was not asked for")
                written += self._write(row.path, reader)
        if waiting:
            raise WireError(f"the build context lacks {min(waiting)[:100]!r}")
        return written

    def _write(self, path: str, reader: TarReader) -> int:
        written = 0
        with self.arriving(path) as file:
            while data := reader.read(_CHUNK):
                file.write(data)
                written += len(data)
        return written

    def arriving(self, path: str) -> ArrivingFile:
        """A file that ``missing`` asked for, to be written; several may arrive at a time. Raises OSError."""
        self._arrivals += 1
        return ArrivingFile(f"{self._directory}/{_DRAFT}{self._arrivals}", self._host(path))

    def finish(self, rows: Iterable[ListedPath]) -> None:
        """Links, modes and times; then the tree is what ``rows`` say."""
        listed = tuple(rows)
        for row in listed:
            if row.kind is Kind.HARDLINK and (row.path in self._changed or row.link in self._changed):
                self._changed.add(row.path)
                self._remove(row.path)
                os.link(self._host(row.link), self._host(row.path), follow_symlinks=False)
        # Deepest first: a directory's time is set when nothing below it changes any more.
        for row in reversed(listed):
            if row.kind is not Kind.DIRECTORY and row.path not in self._changed:
                continue
            host = self._host(row.path)
            if row.kind is not Kind.SYMLINK and os.lstat(host).st_mode & 0o7777 != row.mode:
                os.chmod(host, row.mode)
            if os.lstat(host).st_mtime_ns != row.mtime_ns:
                os.utime(host, ns=(row.mtime_ns, row.mtime_ns), follow_symlinks=False)
        draft = self._directory / "index.draft"
        draft.write_text(listing_text(listed), encoding="ascii")
        draft.replace(self._index)

    def _known(self) -> dict[str, ListedPath]:
        try:
            return {row.path: row for row in map(ListedPath.from_json, json.loads(self._index.read_bytes()))}
        except (OSError, ValueError, WireError):
            # Nothing is known of what a killed daemon left half-way.
            if self.root.exists():
                remove_tree(os.fspath(self.root))
            return {}

    def _remove(self, path: str) -> None:
        host = self._host(path)
        if _is(host, stat.S_ISDIR):
            remove_tree(host)
        else:
            with suppress(FileNotFoundError):
                os.unlink(host)

    def _host(self, path: str) -> str:
        return f"{self.root}/{path}"


def _content(row: ListedPath) -> tuple[int, str]:
    return row.size, row.stamp


def _is(host: str, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(os.lstat(host).st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def kept_context(remotes: Path, *, client: str, place: str) -> Iterator[KeptContext]:
    """The tree for the directory ``place`` of ``client``, for as long as the context lasts. Several builds of one directory at a time get trees
    of their own."""
    group = remotes / "context" / Digest.of(client.encode()).hex[:16]
    key = Digest.of(place.encode("utf-8", "surrogateescape")).hex[:32]
    with ExitStack() as stack:
        for copy in range(_COPIES):
            name = key if copy == 0 else f"{key}-{copy}"
            group.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stack.enter_context(try_lock_file(group / f"{name}.lock")):
                directory = group / name
                directory.mkdir(mode=0o700, exist_ok=True)
                yield KeptContext(directory)
                os.utime(directory)
                return
        raise WireError(f"{_COPIES} builds of this directory are running already")
