"""What a context holds, as a list that can be compared: the client's side sends it, the daemon's side keeps the last one.

Owns the rows, the walk that makes them and the check of rows that come from elsewhere. Reads no content.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.views import FileView, Node
from pybuild.values import dataclass

from .wire import WireError

_RACY_NS: Final = 2_000_000_000
_LONGEST_PATH: Final = 4095
_LETTERS: Final = {Kind.FILE: "f", Kind.DIRECTORY: "d", Kind.SYMLINK: "l", Kind.FIFO: "p", Kind.HARDLINK: "h"}
_KINDS: Final = {letter: kind for kind, letter in _LETTERS.items()}


@dataclass(frozen=True, slots=True)
class ListedPath:
    """One path of a context. ``link``: a symlink's target, or the earlier path of the same file; ``stamp``: differs whenever the file was changed on
    the client's machine; empty if that can't be known yet: such a file is always sent."""

    path: str
    kind: Kind
    mode: int
    size: int = 0
    mtime_ns: int = 0
    link: str = ""
    stamp: str = ""

    def to_json(self) -> list[Any]:  # Any: the JSON edge
        return [self.path, _LETTERS[self.kind], self.mode, self.size, self.mtime_ns, self.link, self.stamp]

    @classmethod
    def from_json(cls, value: object) -> ListedPath:
        """Raises WireError."""
        match value:
            case [str(path), str(letter), int(mode), int(size), int(mtime_ns), str(link), str(stamp)] if (
                letter in _KINDS and size >= 0 and 0 <= mode < 0o10000
            ):
                return cls(path, _KINDS[letter], mode, size, mtime_ns, link, stamp)
            case _:
                raise WireError("the list of the build context can't be understood")


def listing_text(rows: Iterable[ListedPath]) -> str:
    """The rows as one text, JSON in ASCII."""
    return json.dumps([row.to_json() for row in rows], separators=(",", ":"))


def rows_from(text: str) -> tuple[ListedPath, ...]:
    """The rows of ``listing_text``. Raises WireError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("the list of the build context can't be understood") from error
    if not isinstance(value, list):
        raise WireError("the list of the build context can't be understood")
    return tuple(map(ListedPath.from_json, value))


def list_view(view: FileView, *, also: Sequence[str] = (), now_ns: int | None = None) -> tuple[ListedPath, ...]:
    """All of ``view``, parents before children. ``also``: host paths relative to the view's directory that are sent although the ignore rules
    exclude them, as (docker) clients do with the Dockerfile."""
    now = time.time_ns() if now_ns is None else now_ns
    rows: dict[str, ListedPath] = {}
    first_of: dict[tuple[int, int], str] = {}
    pending = [("", child) for child in reversed(view.children(""))]
    while pending:
        parent, (name, node) = pending.pop()
        path = f"{parent}/{name}" if parent else name
        if node.kind in _LETTERS:
            rows[path] = _row(path, node, first_of, now)
        if node.kind is Kind.DIRECTORY:
            pending.extend((path, child) for child in reversed(view.children(path)))
    for path in also:
        if path not in rows:
            rows |= _forced(view, path, rows)
    return tuple(rows.values())


def _row(path: str, node: Node, first_of: dict[tuple[int, int], str], now: int) -> ListedPath:
    kind, link = node.kind, node.target
    if node.kind is Kind.FILE and node.identity is not None:
        earlier = first_of.setdefault(node.identity, path)
        if earlier != path:
            kind, link = Kind.HARDLINK, earlier
    stamp = ""
    # Git's rule for racy files: one that changed just now may change again without its time telling.
    if kind is Kind.FILE and max(node.mtime_ns, node.ctime_ns) < now - _RACY_NS:
        stamp = f"{node.inode[0]}:{node.inode[1]}:{node.mtime_ns}:{node.ctime_ns}"
    return ListedPath(path, kind, node.mode, node.size if kind is Kind.FILE else 0, node.mtime_ns, link, stamp)


def _forced(view: FileView, path: str, rows: dict[str, ListedPath]) -> dict[str, ListedPath]:
    """The row of an excluded file and those of its directories; nothing if it isn't a plain file reached through plain directories."""
    root = getattr(view, "root", "")
    out: dict[str, ListedPath] = {}
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        here = "/".join(parts[:length])
        try:
            status = os.lstat(os.path.join(root, here))
        except OSError:
            return {}
        is_last = length == len(parts)
        kind = _kind(status)
        if kind is not (Kind.FILE if is_last else Kind.DIRECTORY):
            return {}
        if here not in rows:
            out[here] = ListedPath(
                here, kind, status.st_mode & 0o7777, status.st_size if is_last else 0, status.st_mtime_ns
            )
    return out


def _kind(status: os.stat_result) -> Kind | None:
    import stat

    if stat.S_ISREG(status.st_mode):
        return Kind.FILE
    return Kind.DIRECTORY if stat.S_ISDIR(status.st_mode) else None


def entries_to_send(root: str, rows: Iterable[ListedPath]) -> list[LayerEntry]:
    """The contents of ``rows`` as entries of a tar, read from below ``root`` when it is written."""
    return [
        LayerEntry(
            row.path,
            Kind.FILE,
            mode=row.mode,
            mtime_ns=row.mtime_ns,
            size=row.size,
            host_path=os.path.join(root, row.path),
        )
        for row in rows
    ]


def checked(rows: Sequence[ListedPath]) -> dict[str, ListedPath]:
    """Rows from elsewhere by path: every path is plain, is there once, and lies in a directory that is listed before it; a hard link's source is
    an earlier file. Raises WireError."""
    found: dict[str, ListedPath] = {}
    for row in rows:
        parent, _, name = row.path.rpartition("/")
        if (
            name in ("", ".", "..")
            or row.path.startswith("/")
            or "\0" in row.path
            or len(os.fsencode(row.path)) > _LONGEST_PATH
            or row.path in found
        ):
            raise WireError(f"the list of the build context holds an impossible path: {row.path[:100]!r}")
        if parent and (parent not in found or found[parent].kind is not Kind.DIRECTORY):
            raise WireError(f"the list of the build context has no directory for {row.path[:100]!r}")
        if row.kind is Kind.HARDLINK and (row.link not in found or found[row.link].kind is not Kind.FILE):
            raise WireError(f"the list of the build context has no file for the link {row.path[:100]!r}")
        found[row.path] = row
    return found
