"""A build's steps in caches elsewhere: asked for in one batch when this store misses, their layers brought before a step needs them.

Owns when other caches are asked, and what happens when what they promised can't be had: the step counts as missing then, and runs. How
they are asked is the business of whoever satisfies ``RemoteCache``; nothing of it ever fails a build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord

from .cache_format import CachedStep
from .protocols import CacheIndex, Snapshots
from .solver_steps import Step

if TYPE_CHECKING:
    from .solver_run import StepRunner


class RemoteCache(Protocol):
    """Caches elsewhere. Thread-safe. No method raises anything but Cancelled: troubles are told once and count as misses."""

    @property
    def keeps(self) -> bool:
        """Whether ``keep`` does anything."""

    def lookup(self, keys: Sequence[str]) -> Mapping[str, CachedStep]:
        """What is known of these keys, all asked for at once."""

    def bring(self, layers: Sequence[Digest], *, unpack: bool) -> frozenset[Digest]:
        """Have these layers in the store, verified; ``unpack``: steps will need their files. Returns those that could not be had."""

    def keep(self, step: CachedStep, *, base: int) -> None:
        """A step has ended, or was found here: others may want it. Its lowest ``base`` layers are a base image's. Returns at once."""


class Elsewhere:
    """What other caches know of one build's steps."""

    def __init__(self, remote: RemoteCache, cache: CacheIndex, *, snapshots: Snapshots, runner: StepRunner) -> None:
        self._remote = remote
        self._cache = cache
        self._snapshots = snapshots
        self._runner = runner
        self._found: dict[str, CachedStep] | None = None
        self._recorded: set[str] = set()
        self.lazy: dict[Step, CachedStep] = {}
        """Hits whose layers may not be here yet."""

    def find(self, step: Step, steps: Sequence[Step]) -> CacheRecord | None:
        """The record of a step that this store doesn't have. The first question is asked for all of ``steps`` at once."""
        if self._found is None:
            keys = [
                other.recipe.key
                for other in steps
                if not other.is_source and not other.tainted and self._cache.get(other.recipe.key) is None
            ]
            self._found = dict(self._remote.lookup(list(dict.fromkeys(keys))))
        found = self._found.get(step.recipe.key)
        if found is None:
            return None
        self.lazy[step] = found
        return found.record

    def take_content(self, key: str) -> CacheRecord | None:
        """The record of a content key, with its layers brought here already."""
        found = self._remote.lookup((key,)).get(key)
        if found is None or not self._bring((found,), unpack=True):
            return None
        self._cache.put(found.record, aliases=(*found.aliases, key))
        return found.record

    def bring(self, steps: Sequence[Step], *, unpack: bool) -> bool:
        """Have the layers of these steps' results here. False: some could not be had, and their steps are not known any more.

        Raises StepFailed when a base image can't be pulled.
        """
        wanted = [self.lazy[step] for step in steps if step in self.lazy]
        whole = self._bring(wanted, unpack=unpack)
        self._record()
        return whole

    def _bring(self, wanted: Sequence[CachedStep], *, unpack: bool) -> bool:
        stacks = [found.record.layers for found in wanted]
        layers: dict[Digest, None] = {}
        for found in wanted:
            for diff_id in found.record.layers[self._runner.base_count(found.record.layers) :]:
                if not self._snapshots.has((diff_id,)):
                    layers[diff_id] = None
        if not layers:
            self._ensure_bases(stacks)
            return True
        with ThreadPoolExecutor(1, "base") as pool:
            # From different places: neither has to wait for the other.
            bases = pool.submit(self._ensure_bases, stacks)
            lost = self._remote.bring(tuple(layers), unpack=unpack)
            bases.result()
        if lost and self._found is not None:
            self._found = {key: step for key, step in self._found.items() if lost.isdisjoint(step.record.layers)}
            self.lazy = {step: found for step, found in self.lazy.items() if lost.isdisjoint(found.record.layers)}
        return not lost

    def _ensure_bases(self, stacks: Sequence[tuple[Digest, ...]]) -> None:
        for stack in stacks:
            self._runner.ensure_base(stack)

    def _record(self) -> None:
        """What is here completely by now is this store's own, too."""
        for key, found in (self._found or {}).items():
            if key not in self._recorded and self._snapshots.has(found.record.layers):
                self._recorded.add(key)
                self._cache.put(found.record, aliases=tuple(dict.fromkeys((*found.aliases, key))))

    def tell(self, step: Step, record: CacheRecord) -> None:
        """A step of this build has a record now: those who keep steps get it."""
        if not self._remote.keeps:
            return
        note = step.vertex.note
        base = self._runner.base_count(record.layers)
        self._remote.keep(
            CachedStep(record, stage=note.stage, instruction=note.instruction, title=note.title), base=base
        )
