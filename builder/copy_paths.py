"""Paths in a tree of files: resolving symbolic links without ever leaving the root.

Owns link resolution over any ``lookup`` (a view, or a view with pending changes on top). Opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from pybuild.errors import PybuildError
from pybuild.layers.entries import Kind
from pybuild.layers.views import Node

Lookup: TypeAlias = Callable[[str], Node | None]

_MAX_LINKS: Final = 255


class TooManyLinks(PybuildError):
    """A path runs through a loop of symbolic links, or through more than 255 of them."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{'/' + path}: too many links")
        self.path = path


def resolve(lookup: Lookup, path: str, *, follow_last: bool = True) -> str:
    """``path`` without symbolic links, ``.`` and ``..``, relative to the root; what doesn't exist is kept as it is written.

    ``..`` at the root stays there, absolute link targets start at the root. Raises TooManyLinks.
    """
    pending = [part for part in reversed(path.split("/")) if part and part != "."]
    done: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            if done:
                done.pop()
            continue
        if not pending and not follow_last:
            done.append(part)
            break
        candidate = "/".join((*done, part))
        node = lookup(candidate)
        if node is None or node.kind is not Kind.SYMLINK:
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise TooManyLinks(path)
        if node.target.startswith("/"):
            done.clear()
        pending += [piece for piece in reversed(node.target.split("/")) if piece and piece != "."]
    return "/".join(done)


def join(parent: str, name: str) -> str:
    """``name`` below ``parent``; ``""`` is the root as a parent, and the parent itself as a name."""
    return f"{parent}/{name}" if parent and name else parent or name


def parent_of(path: str) -> str:
    """The directory that holds ``path``; the root's is the root."""
    return path.rpartition("/")[0]
