"""Graphs of low-level operations that are no more than a source: a repository, or a download, unpacked or not. Clients look into such, for a Dockerfile or
a policy, before they build.

Owns recognising them and showing their files. Every other graph is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .attributes import require_frontend
from .build_jobs import operations
from .messages import files_pb2

if TYPE_CHECKING:
    from pybuild.builder.contexts import ContextRemotes

    from .messages import common_pb2

GO_DIRECTORY: Final = 1 << 31
GO_SYMLINK: Final = 1 << 27
"""Bits of Go's fs.FileMode."""

_FILE_LIMIT: Final = 16 << 20
_SCHEMES: Final = ("git", "http", "https")


class NoSuchFile(PybuildError):
    """A source hasn't got the file. Clients know it by its words."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: no such file or directory")


@dataclass(frozen=True, slots=True)
class GraphSource:
    """One source. ``unpack``: what is downloaded is an archive whose files are meant."""

    identifier: str
    attributes: Mapping[str, str]
    unpack: bool = False

    @classmethod
    def of(cls, definition: common_pb2.Definition) -> GraphSource:
        """The source that a graph is. Raises PybuildError for every other graph."""
        found = operations(definition)
        sources = [each.source for each in found if each.source.identifier]
        if len(sources) != 1 or len(found) > 3 or sources[0].identifier.partition("://")[0] not in _SCHEMES:
            require_frontend("", {})
        # A source and the operation that names the result; with one between them, it is copied out of its archive.
        return cls(sources[0].identifier, dict(sources[0].attrs), unpack=len(found) == 3)

    @contextmanager
    def opened(self, remotes: ContextRemotes, *, scratch: Path) -> Iterator[SourceFiles]:
        """The files, until the context ends. Raises PybuildError."""
        if not self.identifier.startswith("git://"):
            yield SourceFiles(self._downloaded(remotes, scratch))
            return
        place, _, fragment = self.identifier.partition("#")
        ref, _, subdirectory = fragment.partition(":")
        remote = self.attributes.get("git.fullurl") or f"https://{place.removeprefix('git://')}"
        checksum = self.attributes.get("git.checksum", "")
        commit = remotes.git_commit(remote, ref, checksum=checksum)
        with remotes.git_tree(
            remote, commit=commit, ref=ref, subdir=subdirectory, keep_git_dir=False, submodules=False
        ) as root:
            yield SourceFiles(Path(root))

    def _downloaded(self, remotes: ContextRemotes, scratch: Path) -> Path:
        import shutil

        from pybuild.builder.contexts_archive import unpack_archive

        file = remotes.http(self.identifier, checksum=None)
        root = scratch / "source"
        root.mkdir()
        if self.unpack:
            with open(file.path, "rb") as archive:
                unpack_archive(archive, str(root))
        else:
            name = os.path.basename(self.attributes.get("http.filename") or file.filename) or "index"
            shutil.copyfile(file.path, root / name)
        return root


class SourceFiles:
    """Files below a directory of ours; links that lead out of it lead nowhere."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)

    def read(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """A file's bytes; ``length`` 0: all. Raises NoSuchFile, PybuildError."""
        place = self._place(path)
        if not os.path.isfile(place):
            raise NoSuchFile(path)
        with open(place, "rb") as source:
            source.seek(offset)
            data = source.read(min(length or _FILE_LIMIT + 1, _FILE_LIMIT + 1))
        if len(data) > _FILE_LIMIT:
            raise PybuildError(f"{path}: the file is larger than {_FILE_LIMIT >> 20} MiB")
        return data

    def describe(self, path: str) -> files_pb2.Stat:
        """What is known of a file or directory. Raises NoSuchFile."""
        return _stat(os.path.basename(path.rstrip("/")) or "/", self._place(path))

    def names(self, path: str) -> list[files_pb2.Stat]:
        """What a directory holds. Raises NoSuchFile."""
        place = self._place(path)
        if not os.path.isdir(place):
            raise NoSuchFile(path)
        return [_stat(name, os.path.join(place, name)) for name in sorted(os.listdir(place))]

    def _place(self, path: str) -> str:
        place = os.path.realpath(os.path.join(self._root, os.path.normpath("/" + path).lstrip("/")))
        if place != self._root and not place.startswith(self._root + "/"):
            raise NoSuchFile(path)
        if not os.path.lexists(place):
            raise NoSuchFile(path)
        return place


def _stat(name: str, place: str) -> files_pb2.Stat:
    found = os.lstat(place)
    mode = stat.S_IMODE(found.st_mode) & 0o777
    if stat.S_ISDIR(found.st_mode):
        mode |= GO_DIRECTORY
    elif stat.S_ISLNK(found.st_mode):
        mode |= GO_SYMLINK
    return files_pb2.Stat(path=os.fsencode(name), mode=mode, size=found.st_size, mod_time=found.st_mtime_ns)
