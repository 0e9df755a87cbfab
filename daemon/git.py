"""Git repositories as sources: what a reference names, and trees of commits, kept for the next build.

Owns a cache of bare repositories and of checked-out trees that several processes share. How git is run is ``git_command.py``'s, how
a tree is made ``git_checkout.py``'s. Never changes a remote.

    directory/
        repositories/<sha256 of the remote>/         bare, grows by fetches; refs/cache/… keep what was fetched
        repositories/<sha256 of the remote>.lock     exclusive for fetching, shared for reading
        trees/<key>/tree                             a checkout, never changed
        trees/<key>.lock                             shared while the tree is used, exclusive while it is made
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.locks import LockMode, lock_file, try_lock_file
from pybuild.values import dataclass

from .git_checkout import Checkout, check_out, make_removable
from .git_command import GitCommand, GitFailed, plain_url

_COMMIT: Final = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_HEX: Final = re.compile(r"[0-9a-fA-F]+\Z")
_NO_DEPTH: Final = re.compile(r"--depth|shallow|dumb http")
_NOT_SERVED: Final = re.compile(r"not our ref|unadvertised object|Server does not allow request")


class RefNotFound(PybuildError):
    """The remote has no such branch, tag or commit."""

    def __init__(self, remote: str, ref: str) -> None:
        super().__init__(f"repository does not contain ref {ref}: {plain_url(remote)}")
        self.ref = ref


class GitChecksumMismatch(PybuildError):
    """What the reference names is not the commit that was asked for."""

    def __init__(self, checksum: str, *, actual: str) -> None:
        super().__init__(f"expected checksum to match {checksum}, got {actual}")
        self.checksum = checksum


@dataclass(frozen=True, slots=True)
class GitRevision:
    """What a reference names: ``commit``; ``ref``: its full name, or the commit itself; ``tag``: the object of an annotated tag, else ""."""

    commit: str
    ref: str
    tag: str = ""

    def check(self, checksum: str) -> None:
        """Raises GitChecksumMismatch unless ``checksum`` begins the commit's or the annotated tag's id; PybuildError if it isn't one."""
        if not checksum:
            return
        if not _HEX.match(checksum):
            raise PybuildError(f"invalid checksum {checksum} for Git URL, expected hex commit hash")
        if not self.commit.startswith(checksum.lower()) and not (self.tag and self.tag.startswith(checksum.lower())):
            actual = f"{self.tag} or {self.commit}" if self.tag else self.commit
            raise GitChecksumMismatch(checksum, actual=actual)


class GitRepositories:
    """Resolves and fetches. Safe for several threads and processes."""

    def __init__(self, command: GitCommand, directory: Path) -> None:
        self._git = command
        self._repositories = directory / "repositories"
        self._trees = directory / "trees"

    def resolve(self, remote: str, ref: str) -> GitRevision:
        """Ask ``remote`` what ``ref`` (a branch, a tag, either in full; a commit; "" for HEAD) names. Raises RefNotFound, GitFailed."""
        _check_remote(remote)
        if ref.startswith("-"):
            raise PybuildError(f'invalid git ref "{ref}"')
        if _COMMIT.match(ref):
            return GitRevision(ref, ref)
        url = plain_url(remote)
        patterns = (ref, f"{ref}^{{}}") if ref else ("HEAD",)
        out = self._git.run(
            "ls-remote", "--symref", "--", url, *patterns, remote=remote, action=f"failed to fetch remote {url}"
        )
        found: dict[str, str] = {}
        head = ""
        for line in out.decode("utf-8", "surrogateescape").splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: ") and name == "HEAD":
                head = value.removeprefix("ref: ")
            else:
                found[name] = value
        return _default(found, head, url) if not ref else _named(found, ref, url)

    @contextmanager
    def tree(self, remote: str, checkout: Checkout) -> Iterator[str]:
        """The directory of a checked-out tree, held against removal until the block ends. Raises GitFailed and more."""
        _check_remote(remote)
        key = hashlib.sha256("\0".join((remote, *checkout.identity)).encode("utf-8", "surrogateescape")).hexdigest()
        self._trees.mkdir(parents=True, exist_ok=True)
        lock = self._trees / f"{key}.lock"
        final = self._trees / key
        while True:
            with lock_file(lock, mode=LockMode.SHARED):
                if final.is_dir():
                    os.utime(lock)
                    yield str(final / "tree")
                    return
            with lock_file(lock):
                if not final.is_dir():
                    self._make(remote, checkout, final)

    def commit_time(self, remote: str, commit: str, *, ref: str = "") -> float:
        """The committer's time of ``commit`` (an annotated tag is peeled), seconds since the epoch. Fetches what is missing."""
        with self._repository(remote, commit, ref) as git_dir:
            return self._time(git_dir, commit)

    def prune(self, *, before: float) -> int:
        """Remove trees and repositories that aren't in use and weren't used since ``before`` (seconds since the epoch). Gives the
        number of entries removed."""
        removed = 0
        for directory in (self._trees, self._repositories):
            with suppress(FileNotFoundError):
                for lock in sorted(directory.glob("*.lock")):
                    with suppress(FileNotFoundError):
                        if lock.stat().st_mtime >= before:
                            continue
                    with try_lock_file(lock, transient=True) as owned:
                        if owned:
                            _remove(directory / lock.stem)
                            removed += 1
                for leftover in directory.glob("new-*"):
                    if leftover.stat().st_mtime < before:
                        _remove(leftover)
        return removed

    # --- the cache ---------------------------------------------------------------------------------------------------

    def _make(self, remote: str, checkout: Checkout, final: Path) -> None:
        made = Path(tempfile.mkdtemp(prefix="new-", dir=self._trees))
        try:
            with self._repository(remote, checkout.commit, checkout.ref) as git_dir:
                kept_ref = self._kept_ref(git_dir, remote, checkout) if checkout.keep_git_dir else ""
                check_out(
                    self._git,
                    checkout,
                    git_dir=git_dir,
                    remote=remote,
                    directory=made,
                    kept_ref=kept_ref,
                    time=self._time(git_dir, checkout.commit),
                )
            os.rename(made, final)
        except BaseException:
            _remove(made)
            raise

    def _kept_ref(self, git_dir: str, remote: str, checkout: Checkout) -> str:
        """A ref of the bare repository for the commit, by way of its annotated tag if that is how it was found."""
        if checkout.ref.startswith("refs/tags/"):
            name = _kept(checkout.ref)
            try:
                if not self._points_to(git_dir, name, checkout.commit):
                    self._fetch_once(
                        Path(git_dir), remote, ("--depth=1", "--no-tags", plain_url(remote), f"+{checkout.ref}:{name}")
                    )
                if self._points_to(git_dir, name, checkout.commit):
                    return name
            except GitFailed:
                pass  # the tag has gone or moved meanwhile: the commit alone will do
        name = _kept(checkout.commit)
        self._git.run(
            "update-ref", name, f"{checkout.commit}^{{commit}}", git_dir=git_dir, action="failed to keep a commit"
        )
        return name

    def _points_to(self, git_dir: str, ref: str, commit: str) -> bool:
        try:
            out = self._git.run(
                "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", git_dir=git_dir, action="looking up a ref"
            )
        except GitFailed:
            return False
        return out.decode().strip() == commit

    @contextmanager
    def _repository(self, remote: str, commit: str, ref: str) -> Iterator[str]:
        """The bare repository of ``remote``, with ``commit`` in it, held against removal."""
        key = hashlib.sha256(remote.encode("utf-8", "surrogateescape")).hexdigest()
        self._repositories.mkdir(parents=True, exist_ok=True)
        lock = self._repositories / f"{key}.lock"
        path = self._repositories / key
        while True:
            with lock_file(lock, mode=LockMode.SHARED):
                if self._has(path, commit):
                    os.utime(lock)
                    yield str(path)
                    return
            with lock_file(lock):
                if not self._has(path, commit):
                    self._fetch(path, remote, commit, ref)

    def _has(self, path: Path, commit: str) -> bool:
        if not (path / "HEAD").exists():
            return False
        try:
            self._git.run("cat-file", "-e", f"{commit}^{{tree}}", git_dir=str(path), action="looking up a commit")
        except GitFailed:
            return False
        return True

    def _fetch(self, path: Path, remote: str, commit: str, ref: str) -> None:
        url = plain_url(remote)
        object_format = "sha256" if len(commit) == 64 else "sha1"
        if (path / "HEAD").exists() and not self._has_format(path, object_format):
            _remove(path)
        if not (path / "HEAD").exists():
            self._git.run(
                "init", "--bare", "--quiet", "--template=", f"--object-format={object_format}", "--", str(path),
                action=f"failed to init repo for {url}",
            )  # fmt: skip
        with suppress(FileNotFoundError):  # of a fetch that was killed
            (path / "shallow.lock").unlink()
        attempts: list[tuple[str, ...]] = []
        if ref and not _COMMIT.match(ref):
            attempts.append(("--depth=1", "--no-tags", url, f"+{ref}:{_kept(ref)}"))
        attempts.append(("--depth=1", "--no-tags", url, f"+{commit}:{_kept(commit)}"))
        # The server gives neither single commits nor the one wanted under that name any more: take all there is.
        everything = ("--tags", "--force", url, "+refs/heads/*:refs/cache/heads/*")
        attempts.append((*(("--unshallow",) if (path / "shallow").exists() else ()), *everything))
        failure: GitFailed | None = None
        for attempt in attempts:
            try:
                self._fetch_once(path, remote, attempt)
            except GitFailed as error:
                failure = error
                # A name that has gone, or a commit that isn't served, may still be found by the next attempt.
                if not _NOT_SERVED.search(error.output) and "couldn't find remote ref" not in error.output:
                    raise
            if self._has(path, commit):
                return
        if failure is not None and not _NOT_SERVED.search(failure.output):
            raise failure
        raise RefNotFound(remote, commit)

    def _fetch_once(self, path: Path, remote: str, arguments: tuple[str, ...]) -> None:
        action = f"failed to fetch remote {plain_url(remote)}"
        try:
            self._git.run(
                "fetch", "--quiet", "--update-head-ok", *arguments, remote=remote, git_dir=str(path), action=action
            )
        except GitFailed as error:
            whole = tuple(argument for argument in arguments if argument not in ("--depth=1", "--unshallow"))
            if whole == arguments or not _NO_DEPTH.search(error.output):
                raise
            self._git.run(
                "fetch", "--quiet", "--update-head-ok", *whole, remote=remote, git_dir=str(path), action=action
            )

    def _has_format(self, path: Path, object_format: str) -> bool:
        try:
            out = self._git.run("rev-parse", "--show-object-format", git_dir=str(path), action="reading a repository")
        except GitFailed:
            return False
        return out.decode().strip() == object_format

    def _time(self, git_dir: str, commit: str) -> float:
        out = self._git.run(
            "log", "-1", "--format=%ct", f"{commit}^{{commit}}", git_dir=git_dir, action="failed to get commit time"
        )
        return float(out)


def _default(found: dict[str, str], head: str, url: str) -> GitRevision:
    commit = found.get("HEAD", "")
    if not _COMMIT.match(commit):
        raise PybuildError(f"could not find default branch for repository: {url}")
    return GitRevision(commit, head or commit)


def _named(found: dict[str, str], ref: str, url: str) -> GitRevision:
    """Branches win over tags of the same name, as in git checkout."""
    full = f"refs/{ref.removeprefix('refs/')}"
    branch = f"refs/heads/{ref.removeprefix('refs/heads/')}"
    tag = f"refs/tags/{ref.removeprefix('refs/tags/')}"
    for name in (full, branch, tag):
        value = found.get(name, "")
        if _COMMIT.match(value):
            # A full tag name is as annotated as a short one.
            peeled = found.get(f"{name}^{{}}", "") if name == tag else ""
            return GitRevision(peeled, name, value) if peeled else GitRevision(value, name)
    raise RefNotFound(url, ref)


def _check_remote(remote: str) -> None:
    # git would take it for an option, or (ext::, fd::) for a program to run.
    if remote.startswith("-") or "::" in remote.split("/", 1)[0]:
        raise PybuildError(f"invalid git remote {plain_url(remote)!r}")


def _kept(ref: str) -> str:
    """The name under which a fetched ref is kept, so that the next fetch can build on it. Hashed: ``a`` and ``a/b`` may follow each other."""
    return "refs/cache/" + hashlib.sha256(ref.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def _remove(path: Path) -> None:
    make_removable(path)
    shutil.rmtree(path, ignore_errors=True)
