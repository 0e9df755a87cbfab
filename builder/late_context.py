"""A main context whose files come when it is known which of them are read.

Owns which paths graphs read of it, and the moment: the first look. How files come is the business of whoever passes in a ``LateContext``.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from .graph import BindMount, CacheMount, ContextSource, Exec, FileCopy, Vertex

if TYPE_CHECKING:
    from pybuild.layers.views import FileView

    from .request import LateContext

EVERYTHING: Final = "/"


class LateViews(Mapping[str, "FileView"]):
    """``views`` by the names of contexts; whoever looks at ``name`` first waits until ``paths`` of it have come. For several threads."""

    def __init__(self, views: Mapping[str, FileView], name: str, *, late: LateContext, paths: tuple[str, ...]) -> None:
        self._views = views
        self._name = name
        self._late = late
        self._paths = paths
        self._lock = threading.Lock()
        self._has_come = False

    def __getitem__(self, name: str) -> FileView:
        """Raises KeyError, and what bringing the files raises."""
        if name == self._name:
            with self._lock:
                if not self._has_come:
                    self._late.bring(self._paths)
                    self._has_come = True
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def paths_read(targets: Iterable[Vertex], name: str) -> tuple[str, ...]:
    """What graphs read of the context ``name``: absolute paths and globs, ``EVERYTHING`` alone if one of them is that."""
    found: set[str] = set()
    seen: set[Vertex] = set()
    waiting = list(targets)
    while waiting:
        vertex = waiting.pop()
        if vertex in seen:
            continue
        seen.add(vertex)
        waiting += vertex.inputs
        for position, source in enumerate(vertex.inputs):
            if isinstance(source.op, ContextSource) and source.op.name == name:
                found.update(posixpath.normpath(f"/{path.lstrip('/')}") for path in _paths(vertex, position))
    return (EVERYTHING,) if EVERYTHING in found else tuple(sorted(found))


def _paths(vertex: Vertex, position: int) -> Iterable[str]:
    match vertex.op:
        case FileCopy(sources=sources):
            return sources
        case Exec(mounts=mounts):
            return [
                mount.source
                for mount in mounts
                if isinstance(mount, (BindMount, CacheMount)) and mount.input == position
            ]
        case _:
            return (EVERYTHING,)
