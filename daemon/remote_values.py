"""Values that a call over the daemon gives where the engine's own would be too much to send. Data only."""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.layers.builds import BuildRecord
from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.images import HistoryEntry
from pybuild.layers.references import Reference
from pybuild.values import dataclass

from .engine import LoadedImage


@dataclass(frozen=True, slots=True)
class ImageHistory:
    """An image's history, the last step first, and its ID."""

    id: Digest
    entries: tuple[HistoryEntry, ...]


@dataclass(frozen=True, slots=True)
class PullSummary:
    """What a pull brought: the part of ``PulledImage`` that is shown."""

    reference: Reference
    descriptor: Descriptor
    bytes_received: int
    layers_existing: int


@dataclass(frozen=True, slots=True)
class BuildCauses:
    """A recorded build and, by step's key, why its steps ran."""

    record: BuildRecord
    causes: Mapping[str, tuple[str, ...]]


__all__ = ["BuildCauses", "ImageHistory", "LoadedImage", "PullSummary"]
