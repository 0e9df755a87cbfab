"""Makes a directory tree of a commit: the same bytes, modes and times on every machine.

Owns the checkout of one commit from a bare repository, its submodules, its ``.git`` directory where that is kept, and the choice of a
subdirectory. Files are 0644 or 0755, directories 0755, whatever the umask; times are the commit's. Never fetches the commit itself.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .git_command import GitCommand, GitFailed, plain_url


class BadSubdirectory(PybuildError):
    """The subdirectory isn't in the tree, or one of its elements is no directory."""

    def __init__(self, subdir: str, element: str, problem: str) -> None:
        super().__init__(f'invalid subdir {subdir}: {problem} "{element}"')
        self.subdir = subdir


@dataclass(frozen=True, slots=True)
class Checkout:
    """What is to be checked out. ``ref``: the full name by which the commit was found (it stays in a kept ``.git``) or ""; ``subdir``:
    relative, "" for the whole tree."""

    commit: str
    ref: str = ""
    subdir: str = ""
    keep_git_dir: bool = False
    submodules: bool = True

    @property
    def identity(self) -> tuple[str, ...]:
        """What the tree depends on, apart from the remote."""
        kept = self.ref if self.keep_git_dir and not self.subdir else ""
        return self.commit, self.subdir, str(self.keep_git_dir), str(self.submodules), kept


def check_out(
    git: GitCommand, checkout: Checkout, *, git_dir: str, remote: str, directory: Path, kept_ref: str, time: float
) -> None:
    """Make ``directory/tree``.

    ``git_dir``: the bare repository, which has the commit; ``kept_ref``: a ref in it that is the commit, or a tag of it; ``time``: what
    all times are set to, in seconds. Raises GitFailed, BadSubdirectory.
    """
    whole = directory / "whole"
    whole.mkdir()
    os.chmod(whole, 0o755)
    action = f"failed to checkout remote {plain_url(remote)}"
    keeps = checkout.keep_git_dir and not checkout.subdir
    private = whole / ".git"
    object_format = "sha256" if len(checkout.commit) == 64 else "sha1"
    git.run("init", "--quiet", "--template=", f"--object-format={object_format}", "--", str(whole), action=action)
    if keeps:
        source = f"{kept_ref}:{checkout.ref}" if checkout.ref.startswith("refs/") else kept_ref
        git.run(
            "fetch", "--quiet", "--no-tags", "--update-head-ok", "--depth=1", "--", f"file://{git_dir}", source,
            git_dir=str(private), protocols=("file",), action=action,
        )  # fmt: skip
    else:
        _borrow_objects(private, Path(git_dir))
    commit = f"{checkout.commit}^{{commit}}"
    git.run("update-ref", "--no-deref", "HEAD", commit, git_dir=str(private), action=action)
    git.run("config", "remote.origin.url", plain_url(remote), git_dir=str(private), action=action)
    git.run("read-tree", "--reset", "-u", "HEAD", git_dir=str(private), work_tree=str(whole), action=action)
    if checkout.submodules and (whole / ".gitmodules").is_file():
        _update_submodules(git, whole, remote)
    if keeps:
        _settle(git, private)
    else:
        shutil.rmtree(private)
        _drop_links(str(whole))
    chosen = _subdirectory(whole, checkout.subdir)
    _set_times(str(chosen), int(time * 1_000_000_000))
    os.rename(chosen, directory / "tree")
    if checkout.subdir:
        shutil.rmtree(whole)


def make_removable(path: Path) -> None:
    """Give the owner back the right to empty every directory below ``path``."""
    for parent, _, _ in os.walk(path):
        with suppress(OSError):
            os.chmod(parent, 0o700)


def _borrow_objects(private: Path, shared: Path) -> None:
    info = private / "objects" / "info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "alternates").write_text(f"{shared}/objects\n")
    with suppress(FileNotFoundError):
        shutil.copyfile(shared / "shallow", private / "shallow")


def _update_submodules(git: GitCommand, whole: Path, remote: str) -> None:
    action = f"failed to update submodules for {plain_url(remote)}"
    update = ("submodule", "--quiet", "update", "--init", "--recursive")
    try:
        git.run(*update, "--depth=1", remote=remote, cwd=str(whole), action=action)
    except GitFailed as error:
        # Servers that give neither a part of the history nor a commit that no ref names.
        if "transport" in error.output and "not allowed" in error.output:
            raise
        git.run(*update, remote=remote, cwd=str(whole), action=action)


def _settle(git: GitCommand, private: Path) -> None:
    """Leave a ``.git`` that is the same every time: no logs, and an index that knows nothing of this machine's inodes."""
    for name in ("FETCH_HEAD", "ORIG_HEAD", "index"):
        with suppress(FileNotFoundError):
            (private / name).unlink()
    shutil.rmtree(private / "logs", ignore_errors=True)
    refspec = "+refs/heads/*:refs/remotes/origin/*"
    git.run("config", "remote.origin.fetch", refspec, git_dir=str(private), action="failed to configure the checkout")
    git.run("read-tree", "HEAD", git_dir=str(private), action="failed to write the index")


def _drop_links(directory: str) -> None:
    """Remove the ``.git`` files of submodules, which point to what is gone; a repository can't have a file of that name."""
    with os.scandir(directory) as entries:
        below = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif entry.name == ".git":
                os.unlink(entry.path)
    for path in below:
        _drop_links(path)


def _subdirectory(whole: Path, subdir: str) -> Path:
    path = whole
    for element in subdir.split("/"):
        if element in ("", "."):
            continue
        path = path / element
        shown = str(path.relative_to(whole))
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            raise BadSubdirectory(subdir, shown, "the repository has no") from None
        if element == ".." or not stat.S_ISDIR(mode):
            raise BadSubdirectory(subdir, shown, f'git subpath "{subdir}" contains non-directory')
    return path


def _set_times(path: str, time_ns: int) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _set_times(entry.path, time_ns)
            else:
                os.utime(entry.path, ns=(time_ns, time_ns), follow_symlinks=False)
    os.utime(path, ns=(time_ns, time_ns))
