"""Git sources as ADD, remote contexts and named contexts write them: ``https://host/repository.git#ref:directory`` and
the query form ``?ref=…&tag=…&branch=…&subdir=…&checksum=…&keep-git-dir=…&submodules=…&mtime=…&fetch-by-commit=…``.

Owns telling them from paths and plain URLs, and parsing. Never contacts a server.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from pybuild.errors import PybuildError
from pybuild.values import dataclass, pattern, replace

_SCHEME: Final = pattern(r"[a-zA-Z0-9]+://")
_SCP: Final = pattern(r"([a-zA-Z0-9-_]+)@([a-zA-Z0-9-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?\Z", re.DOTALL)
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_FLAGS: Final = frozenset({"submodules", "keep-git-dir", "fetch-by-commit"})
_COMMIT: Final = pattern(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")


class InvalidGitReference(PybuildError):
    """The text is a git reference, but one of its parts is wrong."""


@dataclass(frozen=True, slots=True)
class GitReference:
    """A parsed git source. ``remote`` is what git itself is given; ``ref`` "" means the remote's HEAD. ``keep_git_dir`` and
    ``submodules`` are None when not written. ``fetch_by_commit``: ``checksum`` is the commit, whatever ``ref`` names."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool | None = None
    fetch_by_commit: bool = False

    @property
    def fixed_commit(self) -> str:
        """The commit when it is known without asking the remote, else ""."""
        if self.fetch_by_commit and _COMMIT.match(self.checksum):
            return self.checksum
        return self.ref if _COMMIT.match(self.ref) else ""

    @property
    def known_commit(self) -> str:
        """The same where there is no checksum to compare it with, else ""."""
        return self.fixed_commit if self.fetch_by_commit or not self.checksum else ""


def parse_git_reference(text: str, *, as_context: bool = False) -> GitReference | None:
    """Read ``text``, or give None if it isn't a git reference. ``as_context`` also takes ``github.com/owner/name``, which as an
    ADD source is a path. Raises InvalidGitReference."""
    if text.startswith(("./", "../")):
        return None
    if text.startswith("github.com/"):
        return _from_url(f"https://{text}") if as_context else None
    scheme = _SCHEME.match(text)
    if scheme is not None:
        name = scheme[0][:-3].lower()
        if name in {"http", "https"}:
            try:
                path = urlsplit(text).path
            except ValueError:
                return None
            return _from_url(text) if path.endswith(".git") else None
        return _from_url(text) if name in {"git", "ssh"} else None
    scp = _SCP.match(text)
    if scp is None:
        return None
    user, host, path, query, fragment = scp.groups()
    return _with_options(f"{user}@{host}:{path}", query or "", fragment or "")


def _from_url(text: str) -> GitReference | None:
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    remote = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    return _with_options(remote, parts.query, unquote(parts.fragment))


def _with_options(remote: str, query: str, fragment: str) -> GitReference:
    ref, _, subdir = fragment.partition(":")
    if subdir:
        subdir = posixpath.normpath(f"/{subdir}").lstrip("/")
    out = GitReference(remote=remote, ref=ref, subdir=subdir)
    tag = branch = ""
    for key, values in parse_qs(query, keep_blank_values=True).items():
        if len(values) > 1:
            raise InvalidGitReference(f'query "{key}" has multiple values')
        value = values[0]
        if not value and key not in _FLAGS:
            raise InvalidGitReference(f'query "{key}" has no value')
        match key:
            case "ref":
                out = replace(out, ref=_agreed("ref", out.ref, value))
            case "tag":
                tag = value if value.startswith("refs/tags/") else f"refs/tags/{value}"
            case "branch":
                branch = value if value.startswith("refs/heads/") else f"refs/heads/{value}"
            case "subdir":
                out = replace(out, subdir=_agreed("subdir", out.subdir, value))
            case "checksum" | "commit":
                out = replace(out, checksum=value)
            case "keep-git-dir":
                out = replace(out, keep_git_dir=_flag(key, value))
            case "submodules":
                out = replace(out, submodules=_flag(key, value))
            case "fetch-by-commit":
                out = replace(out, fetch_by_commit=_flag(key, value))
            case "mtime":
                # Only checked: here files always have the commit's time, so that a checkout is the same at any time.
                if value not in {"checkout", "commit"}:
                    raise InvalidGitReference(f'invalid mtime value: "{value}" (must be "checkout" or "commit")')
            case _:
                raise InvalidGitReference(
                    f'unexpected query "{key}"',
                    hint="known: ref, tag, branch, subdir, checksum, keep-git-dir, submodules, mtime, fetch-by-commit",
                )
    if tag:
        out = replace(out, ref=_agreed("ref", out.ref, tag))
    if branch:
        if tag:
            raise InvalidGitReference("branch conflicts with tag")
        out = replace(out, ref=_agreed("ref", out.ref, branch))
    return out


def _agreed(what: str, one: str, other: str) -> str:
    if one and one != other:
        raise InvalidGitReference(f'{what} conflicts: "{one}" vs "{other}"')
    return other


def _flag(key: str, value: str) -> bool:
    if not value or value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidGitReference(f'invalid {key} value: "{value}"')
