"""What the recorded builds hold of the store: the rows of ``pybuild du --builds``.

Owns adding up the layers of a build's steps, and which of them other builds have too. Never measures: sizes come from the survey.
"""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.values import dataclass

from .builds import BuildRecord, Builds
from .cache_index import CacheIndex
from .usage import CacheUsage, UsageType


@dataclass(frozen=True, slots=True)
class BuildUsage:
    """A build's part of the cache. ``size``: bytes of all layers that its steps made; ``shared``: the part of it that the steps of
    other builds made as well. What gc took counts nothing."""

    build: BuildRecord
    steps: int
    size: int
    shared: int


def build_usage(builds: Builds, cache: CacheIndex, rows: Sequence[CacheUsage]) -> tuple[BuildUsage, ...]:
    """The recorded builds, the latest first, with what their steps' own layers need."""
    sizes = {row.id: row.size for row in rows if row.type is UsageType.REGULAR}
    found: list[tuple[BuildRecord, set[str]]] = []
    for head in builds.list():
        record = builds.find(head.ref) or head
        layers: set[str] = set()
        for step in record.steps:
            known = cache.peek(step.key) if step.key else None
            if known is not None and known.own:
                layers.update(digest.hex for digest in known.layers[-known.own :])
        found.append((record, layers))
    owners: dict[str, int] = {}
    for _, layers in found:
        for name in layers:
            owners[name] = owners.get(name, 0) + 1
    return tuple(
        BuildUsage(
            record,
            steps=len(record.steps),
            size=sum(sizes.get(name, 0) for name in layers),
            shared=sum(sizes.get(name, 0) for name in layers if owners[name] > 1),
        )
        for record, layers in found
    )
