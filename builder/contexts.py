"""Opening the main build context from what the user typed: a directory, ``-``, a git repository or a URL.

Owns the choice of the Dockerfile and of the ignore file, and how long unpacked or fetched trees live. Reading trees is
``contexts_local.py``'s, unpacking ``contexts_archive.py``'s, fetching that of the ``RemoteSources`` passed in.

As in the reference, ignore files apply to local directories only: what comes as an archive or from a repository is
taken as it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView
from pybuild.parser.dockerignore import IgnoreMatcher
from pybuild.values import dataclass

from .contexts_local import LocalContext
from .contexts_named import IGNORE_FILE, read_ignore_file
from .git_reference import GitReference, parse_git_reference
from .protocols import HttpFile, RemoteSources

if TYPE_CHECKING:
    from .contexts_archive import ByteReader

DEFAULT_DOCKERFILE: Final = "Dockerfile"
_LINKS: Final = 40
_DOCKERFILE_LIMIT: Final = 64 << 20


class ContextNotFound(PybuildError):
    """The context is neither a directory nor a URL."""

    def __init__(self, context: str, problem: str) -> None:
        super().__init__(
            f"unable to prepare context: path {context!r} {problem}",
            hint="give a directory, a git or HTTP(S) URL, or - for standard input",
        )
        self.context = context


class DockerfileNotFound(PybuildError):
    """No Dockerfile where one should be. ``name`` as the Dockerfile is called; ``tried``: the path or place that was looked at."""

    def __init__(self, name: str, tried: str, problem: str = "no such file or directory") -> None:
        verb = "read" if problem == "is a directory" else "open"
        super().__init__(f"failed to read dockerfile: {verb} {name}: {problem}", hint=f"looked for it at {tried}")
        self.name = name
        self.tried = tried


class ContextKind(Enum):
    LOCAL = "local"
    EMPTY = "empty"
    """Only a Dockerfile came, on standard input."""
    ARCHIVE = "archive"
    """A tar on standard input."""
    GIT = "git"
    HTTP_ARCHIVE = "http-archive"
    HTTP_DOCKERFILE = "http-dockerfile"


@dataclass(frozen=True, slots=True)
class GitOrigin:
    """Where a git context came from; ``commit`` is complete."""

    remote: str
    ref: str
    subdir: str
    commit: str


@dataclass(frozen=True, slots=True)
class OpenedContext:
    """A context ready to be read.

    ``dockerfile_name``: what messages call it; ``ignore``: the rules in force, None without a file, read from ``ignore_name``;
    ``time``: what ``SOURCE_DATE_EPOCH=context`` means here, in seconds: the commit's, Last-Modified, or the newest file of the archive;
    ``digest``: of the bytes that came over HTTP; ``root``: the directory on this machine.
    """

    kind: ContextKind
    view: FileView
    root: str
    dockerfile: bytes
    dockerfile_name: str
    ignore: IgnoreMatcher | None = None
    ignore_name: str = ""
    time: float | None = None
    git: GitOrigin | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class LocalTree:
    """A local directory with its ignore rules, without a Dockerfile: see OpenedContext for the fields."""

    view: LocalContext
    root: str
    ignore: IgnoreMatcher | None
    ignore_name: str


def open_local_context(context: str, *, directory: str, dockerfile: str | None = None) -> LocalTree:
    """The local context ``context`` as a build would see it; ``dockerfile`` (``-f``) need not exist. Raises ContextNotFound."""
    root = os.path.join(directory, context)
    if not os.path.isdir(root):
        raise ContextNotFound(context, "is not a directory" if os.path.exists(root) else "not found")
    path = os.path.join(directory, dockerfile) if dockerfile else os.path.join(root, DEFAULT_DOCKERFILE)
    ignore, name = _ignore_rules(root, path)
    return LocalTree(LocalContext(root, ignore=ignore), root, ignore, name)


def _ignore_rules(root: str, dockerfile: str | None) -> tuple[IgnoreMatcher | None, str]:
    """The rules for the context ``root`` and the name of the file they come from: the Dockerfile's own before ``.dockerignore``."""
    if dockerfile is not None:
        own = f"{dockerfile}.dockerignore"
        ignore = read_ignore_file(own)
        if ignore is not None:
            return ignore, os.path.basename(own)
    ignore = read_ignore_file(os.path.join(root, IGNORE_FILE))
    return ignore, IGNORE_FILE if ignore is not None else ""


class ContextRemotes(RemoteSources, Protocol):
    """RemoteSources, and the time of a commit."""

    def git_commit_time(self, remote: str, commit: str) -> float:
        """The committer time of a commit (peeled), in seconds since the epoch."""


@contextlib.contextmanager
def open_context(
    context: str,
    *,
    directory: str,
    dockerfile: str | None,
    stdin: BinaryIO | None,
    remotes: ContextRemotes,
    scratch: str | os.PathLike[str],
    keep_git_dir: bool = False,
    hide_ignored_definition: bool = False,
    ignore_directory: str | None = None,
) -> Iterator[OpenedContext]:
    """Open ``context`` as typed and give it until the block ends.

    ``directory``: what relative paths, ``-f`` included, are relative to; ``dockerfile``: ``-f`` as typed; ``stdin``: read for ``-``,
    left open; ``scratch``: an existing directory in which others are made; ``keep_git_dir``: for git contexts whose URL doesn't say;
    ``hide_ignored_definition``: see BuildRequest; ``ignore_directory``: where a local context's ignore file is, if not in the context.
    Raises UsageError, ContextNotFound, DockerfileNotFound, BadContextArchive and what ``remotes`` raises.
    """
    with contextlib.ExitStack() as stack:
        opener = _Opener(
            directory=directory,
            dockerfile=dockerfile,
            stdin=stdin,
            remotes=remotes,
            scratch=os.fspath(scratch),
            stack=stack,
            hide=hide_ignored_definition,
            ignore_directory=ignore_directory,
        )
        yield opener.open(context, keep_git_dir)


class _Opener:
    def __init__(
        self,
        *,
        directory: str,
        dockerfile: str | None,
        stdin: BinaryIO | None,
        remotes: ContextRemotes,
        scratch: str,
        stack: contextlib.ExitStack,
        hide: bool,
        ignore_directory: str | None,
    ) -> None:
        self._hide = hide
        self._ignore_directory = ignore_directory
        self._directory = directory
        self._dockerfile = dockerfile or None
        self._stdin = stdin
        self._remotes = remotes
        self._scratch = scratch
        self._stack = stack

    def open(self, context: str, keep_git_dir: bool) -> OpenedContext:
        if context == "-":
            return self._standard_input()
        if not context:
            raise UsageError("a build context is needed", hint="usually it is the current directory: pybuild build .")
        path = os.path.join(self._directory, context)
        if os.path.isdir(path):
            return self._local(path)
        git = parse_git_reference(context, as_context=True)
        if git is not None:
            return self._git(git, keep_git_dir)
        if context.startswith(("http://", "https://")):
            return self._http(context)
        raise ContextNotFound(context, "is not a directory" if os.path.exists(path) else "not found")

    # --- the kinds ---------------------------------------------------------------------------------------------------

    def _local(self, root: str) -> OpenedContext:
        elsewhere = self._dockerfile_elsewhere()
        found: str | None = None
        if elsewhere is None:
            path = os.path.join(self._directory, self._dockerfile or os.path.join(root, DEFAULT_DOCKERFILE))
            content, name, found = _read_local_dockerfile(path)
        else:
            content, name = elsewhere
        ignore, ignore_name = _ignore_rules(self._ignore_directory or root, found)
        return OpenedContext(
            ContextKind.LOCAL,
            LocalContext(root, ignore=ignore),
            root=root,
            dockerfile=content,
            dockerfile_name=name,
            ignore=ignore,
            ignore_name=ignore_name,
        )

    def _standard_input(self) -> OpenedContext:
        if self._dockerfile == "-":
            raise UsageError("invalid argument: can't use stdin for both build context and dockerfile")
        if self._stdin is None:
            raise UsageError("the build context is to come from standard input, but there is none")
        # Imported here, as tarfile costs more than opening a directory does.
        from .contexts_archive import HEADER_BYTES, Joined, is_archive, read_up_to, unpack_archive

        header = read_up_to(self._stdin, HEADER_BYTES)
        if not header:
            raise ContextNotFound("-", "has nothing in it: standard input is empty")
        root = self._make_directory()
        if is_archive(header):
            unpacked = unpack_archive(Joined(header, self._stdin), root)
            view = LocalContext(root)
            content, name = self._dockerfile_in(view)
            if self._hide:
                _hide_ignored(root, name)
            return OpenedContext(
                ContextKind.ARCHIVE, view, root=root, dockerfile=content, dockerfile_name=name, time=unpacked.newest
            )
        if self._dockerfile is not None:
            raise UsageError("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
        content = _bounded(Joined(header, self._stdin))
        return OpenedContext(
            ContextKind.EMPTY, LocalContext(root), root=root, dockerfile=content, dockerfile_name=DEFAULT_DOCKERFILE
        )

    def _git(self, reference: GitReference, keep_git_dir: bool) -> OpenedContext:
        commit = reference.known_commit or self._remotes.git_commit(
            reference.remote, reference.ref, checksum=reference.checksum
        )
        keep = keep_git_dir if reference.keep_git_dir is None else reference.keep_git_dir
        root = self._stack.enter_context(
            self._remotes.git_tree(
                reference.remote,
                commit=commit,
                ref=reference.ref,
                subdir=reference.subdir,
                keep_git_dir=keep,
                submodules=reference.submodules is not False,
            )
        )
        view = LocalContext(root)
        content, name = self._dockerfile_in(view)
        return OpenedContext(
            ContextKind.GIT,
            view,
            root=root,
            dockerfile=content,
            dockerfile_name=name,
            time=self._remotes.git_commit_time(reference.remote, commit),
            git=GitOrigin(reference.remote, reference.ref, reference.subdir, commit),
        )

    def _http(self, url: str) -> OpenedContext:
        from .contexts_archive import HEADER_BYTES, is_archive, unpack_archive

        file = self._remotes.http(url, checksum=None)
        root = self._make_directory()
        with open(file.path, "rb") as stream:
            header = stream.read(HEADER_BYTES)
            stream.seek(0)
            if is_archive(header):
                unpacked = unpack_archive(stream, root)
                view = LocalContext(root)
                content, name = self._dockerfile_in(view)
                return OpenedContext(
                    ContextKind.HTTP_ARCHIVE,
                    view,
                    root=root,
                    dockerfile=content,
                    dockerfile_name=name,
                    time=file.last_modified if file.last_modified is not None else unpacked.newest,
                    digest=file.digest,
                )
        return self._http_dockerfile(file, root)

    def _http_dockerfile(self, file: HttpFile, root: str) -> OpenedContext:
        """The one file is the Dockerfile and, as in the reference, the whole context under the name ``context``."""
        import shutil

        target = os.path.join(root, "context")
        shutil.copyfile(file.path, target)
        os.chmod(target, 0o600)
        if file.last_modified is not None:
            os.utime(target, (file.last_modified, file.last_modified))
        elsewhere = self._dockerfile_elsewhere()
        if elsewhere is None:
            with open(target, "rb") as stream:
                elsewhere = _bounded(stream), "context"
        content, name = elsewhere
        return OpenedContext(
            ContextKind.HTTP_DOCKERFILE,
            LocalContext(root),
            root=root,
            dockerfile=content,
            dockerfile_name=name,
            time=file.last_modified,
            digest=file.digest,
        )

    # --- the Dockerfile ----------------------------------------------------------------------------------------------

    def _dockerfile_elsewhere(self) -> tuple[bytes, str] | None:
        """A Dockerfile that is neither beside nor in the context: on standard input or behind a URL."""
        name = self._dockerfile
        if name == "-":
            if self._stdin is None:
                raise UsageError("the Dockerfile is to come from standard input, but there is none")
            return _bounded(self._stdin), DEFAULT_DOCKERFILE
        if name is not None and name.startswith(("http://", "https://")):
            file = self._remotes.http(name, checksum=None)
            with open(file.path, "rb") as stream:
                return _bounded(stream), DEFAULT_DOCKERFILE
        return None

    def _dockerfile_in(self, view: LocalContext) -> tuple[bytes, str]:
        """The Dockerfile of a context that isn't a directory of the user's: a relative ``-f`` is a path inside it."""
        elsewhere = self._dockerfile_elsewhere()
        if elsewhere is not None:
            return elsewhere
        if self._dockerfile is not None and os.path.isabs(self._dockerfile):
            content, name, _ = _read_local_dockerfile(self._dockerfile)
            return content, name
        name = os.path.normpath(self._dockerfile or DEFAULT_DOCKERFILE)
        candidates = [name]
        if os.path.basename(name) == DEFAULT_DOCKERFILE:
            candidates.append(os.path.join(os.path.dirname(name), DEFAULT_DOCKERFILE.lower()))
        for candidate in candidates:
            path = _resolve(view, candidate)
            if path is None:
                continue
            node = view.lookup(path)
            if node is not None and node.kind is Kind.FILE:
                with view.open(path) as stream:
                    return _bounded(stream), candidate
            if node is not None and node.kind is Kind.DIRECTORY:
                raise DockerfileNotFound(name, f"{name} in the build context", "is a directory")
        raise DockerfileNotFound(name, f"{name} in the build context")

    def _make_directory(self) -> str:
        import tempfile

        path = tempfile.mkdtemp(prefix="context-", dir=self._scratch)
        self._stack.callback(_remove_tree, path)
        return path


def _read_local_dockerfile(path: str) -> tuple[bytes, str, str]:
    """Content, name and path of a Dockerfile of the user's; ``dockerfile`` is taken where ``Dockerfile`` is missing."""
    directory, name = os.path.split(path)
    names = [name, name.lower()] if name == DEFAULT_DOCKERFILE else [name]
    for candidate in names:
        found = os.path.join(directory, candidate)
        try:
            with open(found, "rb") as stream:
                return _bounded(stream), candidate, found
        except (FileNotFoundError, NotADirectoryError):
            continue
        except IsADirectoryError:
            raise DockerfileNotFound(name, path, "is a directory") from None
        except OSError as error:
            raise DockerfileNotFound(name, path, (error.strerror or str(error)).lower()) from None
    raise DockerfileNotFound(name, path)


def _hide_ignored(root: str, dockerfile: str) -> None:
    """A client sends the Dockerfile and the ignore file in any case; what the ignore file excludes of them is no part of the context."""
    ignore = read_ignore_file(os.path.join(root, IGNORE_FILE))
    for name in () if ignore is None else (dockerfile, IGNORE_FILE):
        if ignore is not None and ignore.excluded(name):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(root, name))


def _resolve(view: FileView, path: str) -> str | None:
    """Follow links inside the view; None if the path leads out, nowhere or around."""
    pending = [part for part in path.split("/") if part]
    done: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if done:
                done.pop()
            continue
        here = "/".join([*done, part])
        node = view.lookup(here)
        if node is None:
            return None
        if node.kind is Kind.SYMLINK:
            links += 1
            if links > _LINKS:
                return None
            if node.target.startswith("/"):
                done = []
            pending = [*node.target.split("/"), *pending]
            continue
        done.append(part)
    return "/".join(done)


def _bounded(stream: ByteReader) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        data = stream.read(1 << 20)
        if not data:
            return b"".join(pieces)
        pieces.append(data)
        size += len(data)
        if size > _DOCKERFILE_LIMIT:
            raise PybuildError(f"failed to read dockerfile: it is larger than {_DOCKERFILE_LIMIT >> 20} MiB")


def _remove_tree(path: str) -> None:
    """Remove a tree that may have directories its owner can't write to."""
    import shutil

    with contextlib.suppress(FileNotFoundError):
        for parent, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(parent, 0o700)
        shutil.rmtree(path, ignore_errors=True)
