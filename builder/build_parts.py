"""What a build runs on, and what it gives: the values that ``build.py`` takes and returns. Does nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.values import dataclass, field

from .assemble import BuiltImage
from .contexts import ContextRemotes
from .exec_settings import OnFailure
from .exporters import ExportParts
from .outputs import Output
from .progress import BuildWarning
from .protocols import CacheIndex, Executor, ImageSource, Snapshots
from .recording import BuildStore
from .request import SshSource
from .source_date_epoch import EpochSource

if TYPE_CHECKING:
    from .cache_build import BuildCaches
    from .solver_remote import DistantLayers


class LayerTimes(Protocol):
    """Tells when layers were made."""

    def created(self, stack: Sequence[Digest]) -> tuple[float, ...]:
        """Seconds since the epoch, one for each layer of ``stack``."""


class SshAgents(Protocol):
    """Makes the agents' sockets that steps are connected to."""

    def serve(self, sources: Sequence[SshSource]) -> AbstractContextManager[Mapping[str, str]]:
        """Sockets of this machine by id, until the context ends. Raises PybuildError for what is neither a socket nor a key."""


class RecordedRecipes(Protocol):
    """Tells what went into finished steps."""

    def recipe_of(self, key: str) -> str | None: ...

    def evicted(self, key: str) -> float | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildParts:
    """The concrete parts that a build runs on. ``preload`` loads what the stat index knows
    below a directory; ``platform``: this machine's; ``scratch``: a directory for unpacked contexts; ``clock``
    gives seconds since the epoch; ``entitlements``: what the configuration permits; ``nonce``: a text that was never given before;
    ``provenance_environment``: what the configuration adds to provenance; ``caches``: those that lie elsewhere, None without any; ``distant``: brings layers that the store only knows;
    ``on_failure``: what is done with a failed process; ``cold``: no step can be cached."""

    executor: Executor
    snapshots: Snapshots
    cache: CacheIndex
    images: ImageSource
    remotes: ContextRemotes
    epochs: EpochSource
    exports: ExportParts
    builds: BuildStore
    recipes: RecordedRecipes
    layer_times: LayerTimes
    ssh: SshAgents
    preload: Callable[[str], object]
    platform: Platform
    scratch: str
    clock: Callable[[], float]
    nonce: Callable[[], str]
    max_parallelism: int
    entitlements: frozenset[str]
    cold: bool = False
    provenance_environment: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON from the configuration
    caches: BuildCaches | None = None
    distant: DistantLayers | None = None
    on_failure: OnFailure | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build gave. ``image_id``: the image's configuration digest (of the index with several platforms), None where no image was
    made; ``metadata``: buildx's ``--metadata-file`` content; ``outputs``: what was asked for, defaults filled in."""

    ref: str
    image_id: str | None
    metadata: Mapping[str, Any]  # Any: the JSON edge
    outputs: tuple[Output, ...]
    warnings: tuple[BuildWarning, ...] = ()
    images: tuple[BuiltImage, ...] = ()
