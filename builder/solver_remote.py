"""A build's steps in caches elsewhere, and layers that this store only knows: asked for in one batch, brought before a step needs them.

Owns when other caches are asked, what of their answers has to come and what may stay where it is, and what happens when what was promised
can't be had: the step counts as missing then, and runs. How they are asked is the business of whoever satisfies ``RemoteCache`` and
``DistantLayers``; nothing of it ever fails a build.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord

from .cache_format import CachedStep
from .protocols import CacheIndex, Snapshots
from .solver_steps import Step

if TYPE_CHECKING:
    from .solver_run import StepRunner


class DistantLayers(Protocol):
    """Layers that this store knows and may not have. Thread-safe. Raises nothing but Cancelled: troubles are told once."""

    def bring(self, layers: Mapping[Digest, tuple[Digest, ...]], *, unpack: bool) -> frozenset[Digest]:
        """Have these layers in the store, verified; each with a stack that it is the top of. ``unpack``: steps will need their files.
        Returns those that could not be had."""


class RemoteCache(DistantLayers, Protocol):
    """Caches elsewhere. Thread-safe. No method raises anything but Cancelled: troubles are told once and count as misses."""

    @property
    def keeps(self) -> bool:
        """Whether ``keep`` does anything."""

    def lookup(self, keys: Sequence[str]) -> Mapping[str, CachedStep]:
        """What is known of these keys, all asked for at once."""

    def know(self, layers: Sequence[Digest]) -> frozenset[Digest]:
        """Have the store know where these layers can be fetched later, by anybody. Returns those that only this build can have brought."""

    def keep(self, step: CachedStep, *, base: int) -> None:
        """A step has ended, or was found here: others may want it. Its lowest ``base`` layers are a base image's. Returns at once."""


class Elsewhere:
    """What other caches know of one build's steps, and which layers it has to do without."""

    def __init__(
        self,
        remote: RemoteCache | None,
        cache: CacheIndex,
        *,
        layers: DistantLayers | None,
        snapshots: Snapshots,
        runner: StepRunner,
    ) -> None:
        """``remote``: caches elsewhere; ``layers``: brings what this store knows where there are none."""
        self._remote = remote
        self._layers = remote or layers
        self._cache = cache
        self._snapshots = snapshots
        self._runner = runner
        self._found: dict[str, CachedStep] | None = None
        self._recorded: set[str] = set()
        self._lost: set[Digest] = set()

    def is_lost(self, record: CacheRecord) -> bool:
        """True if a layer of the record could not be had."""
        return not self._lost.isdisjoint(record.layers)

    def find(self, step: Step, steps: Sequence[Step]) -> CacheRecord | None:
        """The record of a step that this store doesn't have. The first question is asked for all of ``steps`` at once."""
        if self._remote is None:
            return None
        if self._found is None:
            keys = [
                other.recipe.key
                for other in steps
                if not other.is_source and not other.tainted and self._cache.get(other.recipe.key) is None
            ]
            self._found = dict(self._remote.lookup(list(dict.fromkeys(keys))))
        found = self._found.get(step.recipe.key)
        return None if found is None or self.is_lost(found.record) else found.record

    def take_content(self, key: str) -> CacheRecord | None:
        """The record of a content key, with its layers brought here already."""
        if self._remote is None:
            return None
        found = self._remote.lookup((key,)).get(key)
        if found is None or not self.bring((found.record.layers,), unpack=True):
            return None
        self._cache.put(found.record, aliases=(*found.aliases, key))
        return found.record

    def bring(self, stacks: Sequence[tuple[Digest, ...]], *, unpack: bool) -> bool:
        """Have the layers of these stacks here. False: some could not be had, and what consists of them is not known any more.

        Raises StepFailed when a base image can't be pulled.
        """
        layers = self._missing(stacks)
        if not layers:
            self._ensure_bases(stacks)
            return True
        with ThreadPoolExecutor(1, "base") as pool:
            # From different places: neither has to wait for the other.
            bases = pool.submit(self._ensure_bases, stacks)
            whole = self._fetch(layers, unpack=unpack)
            bases.result()
        return whole

    def _missing(self, stacks: Iterable[tuple[Digest, ...]]) -> dict[Digest, tuple[Digest, ...]]:
        """The layers above base images that are not here, each with its stack."""
        return {
            stack[position]: stack[: position + 1]
            for stack in stacks
            for position in range(self._runner.base_count(stack), len(stack))
            if not self._snapshots.has(stack[position : position + 1])
        }

    def _fetch(self, layers: Mapping[Digest, tuple[Digest, ...]], *, unpack: bool) -> bool:
        lost = frozenset(layers) if self._layers is None else self._layers.bring(layers, unpack=unpack)
        self._lost |= lost
        return not lost

    def _ensure_bases(self, stacks: Sequence[tuple[Digest, ...]]) -> None:
        for stack in stacks:
            self._runner.ensure_base(stack)

    def settle(self, wanted: Sequence[tuple[Digest, ...]]) -> bool:
        """Make the steps that were found this store's own: their layers are here or known here from now on. Of ``wanted`` stacks those are
        brought that only this build can have brought. False: some could not be had."""
        if self._remote is None or not self._found:
            return True
        fresh = {
            key: found
            for key, found in self._found.items()
            if key not in self._recorded and not self.is_lost(found.record)
        }
        layers = self._missing(found.record.layers for found in fresh.values())
        apart = self._remote.know(tuple(layers)) if layers else frozenset()
        if apart:
            needed = self._missing(wanted)
            if not self._fetch({diff_id: needed[diff_id] for diff_id in needed if diff_id in apart}, unpack=False):
                return False
            apart = frozenset(diff_id for diff_id in apart if not self._snapshots.has((diff_id,)))
        for key, found in fresh.items():
            if apart.isdisjoint(found.record.layers):
                self._recorded.add(key)
                self._runner.know_base(found.record.layers)
                self._cache.put(found.record, aliases=tuple(dict.fromkeys((*found.aliases, key))))
        return True

    def tell(self, step: Step, record: CacheRecord) -> None:
        """A step of this build has a record now: those who keep steps get it."""
        if self._remote is None or not self._remote.keeps:
            return
        note = step.vertex.note
        base = self._runner.base_count(record.layers)
        self._remote.keep(
            CachedStep(record, stage=note.stage, instruction=note.instruction, title=note.title), base=base
        )
