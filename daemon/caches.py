"""The caches of one build that lie elsewhere: all sources asked as one, layers brought from whichever has them, exports to all targets.

Satisfies the builder's ``RemoteCache`` and ``BuildCaches``. Owns telling of troubles: each place's first one is a warning, and then the place
counts as empty. Sources with a document are read once, when the store first misses something; a build that is cached here asks nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from pybuild.builder.assemble import BuiltImage
from pybuild.builder.cache_format import (
    CONFIG_TYPE,
    INLINE_KEY,
    CacheBundle,
    CachedLayer,
    CachedStep,
    bundle_bytes,
    bundle_json,
)
from pybuild.builder.cache_select import base_count, exported_steps
from pybuild.builder.cache_specs import (
    CacheMode,
    CacheRepository,
    CacheSource,
    CacheTarget,
    CacheType,
    MountsPlace,
)
from pybuild.builder.progress import Progress
from pybuild.builder.solver_steps import Result, Step, StepReport
from pybuild.builder.why import PreviousStep
from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.remote_layers import Origin, RemoteLayer
from pybuild.registry_client.transfers import Stop, run_all
from pybuild.values import dataclass, replace

from .cache_events import CacheEvents
from .cache_layers import BlobForm, BlobPlace, BlobsOnDemand, CacheLayers
from .cache_places import CachePlace, Layouts, NoCacheThere, RegistryPlace
from .cache_repo import StepRepository
from .registries import Registries

if TYPE_CHECKING:
    from pybuild.layers.cache_index import CacheIndex
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.layers.store import Store

    from .lazy_layers import LazyLayers
    from .mount_travel import MountTravel

_PARALLEL_SOURCES: Final = 4
_PARALLEL_LAYERS: Final = 6
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Known:
    """Where a layer lies: who has it, and what it is."""

    place: BlobPlace
    layer: CachedLayer


class BuildCachesHere:
    """The caches of one build. Thread-safe; ``close`` waits for what is being sent."""

    def __init__(
        self,
        *,
        sources: Sequence[CacheSource],
        targets: Sequence[CacheTarget],
        repositories: Sequence[CacheRepository],
        layouts: Layouts,
        store: Store,
        snapshots: SnapshotStore,
        cache: CacheIndex,
        registries: Registries,
        lazy: LazyLayers,
        progress: Progress,
        cancel: threading.Event,
        inline: bool = False,
        siblings: Sequence[str] = (),
        mounts_from: Sequence[MountsPlace] = (),
        mounts_to: Sequence[MountsPlace] = (),
    ) -> None:
        """``layouts``: opens the caches that lie in directories; ``lazy``: fetches what the store knows to be elsewhere; ``inline``: images carry their own cache; ``siblings``: names that the
        image is pushed to before the caches are exported."""
        self._siblings = (*siblings, *(spec.ref for spec in repositories))
        self._inline = inline or any(target.type is CacheType.INLINE for target in targets)
        self._layouts = layouts
        self._store = store
        self._cache = cache
        self._registries = registries
        self._cancel = cancel
        self._events = CacheEvents(progress, clock=store.clock)
        self._layers = CacheLayers(store, snapshots)
        self._lazy = lazy
        self._targets = tuple(targets)
        self._places = [self._source(source) for source in sources]
        self._repositories = [
            StepRepository(
                spec,
                store=store,
                layers=self._layers,
                registries=registries,
                describe=self._described,
                aliases=self._aliases,
                blobs=lazy.blobs,
                on_trouble=self._events.trouble,
                cancel=cancel,
            )
            for spec in repositories
        ]
        self._mounts: MountTravel | None = None
        if mounts_from or mounts_to:
            from .mount_travel import MountTravel

            self._mounts = MountTravel(
                sources=mounts_from,
                targets=mounts_to,
                layouts=layouts,
                store=store,
                snapshots=snapshots,
                registries=registries,
                events=self._events,
                cancel=cancel,
            )
        self._guard = threading.Lock()
        self._loaded = False
        self._steps: dict[str, CachedStep] = {}
        self._known: dict[Digest, list[_Known]] = {}
        for target in self._targets:
            for warning in target.warnings:
                self._events.warn(warning)

    # --- asking -------------------------------------------------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """Whether single steps are sent as they end."""
        return any(repository.spec.write for repository in self._repositories)

    def lookup(self, keys: Sequence[str]) -> Mapping[str, CachedStep]:
        """See RemoteCache."""
        self._load()
        found = {key: self._steps[key] for key in keys if key in self._steps}
        for repository in self._repositories:
            missing = [key for key in keys if key not in found]
            for key, bundle in repository.lookup(missing).items():
                self._learn(bundle, repository)
                found[key] = bundle.steps[0]
        return found

    def _load(self) -> None:
        with self._guard:
            if self._loaded or not self._places:
                self._loaded = True
                return
            self._loaded = True
            bundles = self._all([partial(self._read, place) for place in self._places], _PARALLEL_SOURCES)
        # Earlier options count first.
        for place, bundle in reversed(list(zip(self._places, bundles))):
            if bundle is not None:
                self._learn(bundle, place)

    def _read(self, place: CachePlace) -> CacheBundle | None:
        step = self._events.begin(f"importing cache manifest from {place.name}")
        try:
            bundle = place.load()
        except NoCacheThere as error:
            self._events.say(step, f"nothing imported: {error.message}")
            self._events.end(step)
            return None
        except Cancelled:
            self._events.end(step, "canceled")
            raise
        except (PybuildError, OSError) as error:
            self._events.end(step, self._events.trouble(place.name, error))
            return None
        self._events.end(step)
        return bundle

    def _learn(self, bundle: CacheBundle, place: BlobPlace) -> None:
        with self._guard:
            for step in bundle.steps:
                for key in (*step.aliases, step.record.key):
                    self._steps[key] = step
            for layer in bundle.layers:
                if layer.blob is not None:
                    known = self._known.setdefault(layer.diff_id, [])
                    if all(other.place is not place for other in known):
                        known.insert(0, _Known(place, layer))

    def previous_steps(self) -> list[PreviousStep]:
        """The steps of the caches' builds, for explaining misses where nothing was built yet."""
        with self._guard:
            steps = {step.record.key: step for step in self._steps.values()}
        return [
            PreviousStep(step.stage, step.instruction, step.title, step.record.key, step.record.recipe)
            for step in steps.values()
            if step.record.recipe
        ]

    def latest_step(self, stage: str, instruction: str) -> PreviousStep | None:
        """See BuildCaches."""
        for repository in self._repositories:
            step = repository.latest(stage, instruction)
            if step is not None:
                record = step.record
                return PreviousStep(step.stage, step.instruction, step.title, record.key, record.recipe)
        return None

    # --- bringing -----------------------------------------------------------------------------------------------------

    def know(self, layers: Sequence[Digest]) -> frozenset[Digest]:
        """See RemoteCache. What lies in registries can be fetched by anybody."""
        found: dict[Origin, list[RemoteLayer]] = {}
        apart: set[Digest] = set()
        with self._guard:
            for diff_id in layers:
                places = [known for known in self._known.get(diff_id, ()) if known.place.origin is not None]
                for known in places:
                    layer = known.layer
                    if known.place.origin is not None and layer.blob is not None:
                        found.setdefault(known.place.origin, []).append(
                            RemoteLayer(diff_id, layer.blob, layer.level, layer.size, layer.empty, layer.created)
                        )
                if not places:
                    apart.add(diff_id)
        for origin, described in found.items():
            self._store.remote_layers.learn(described, origin)
        return frozenset(diff_id for diff_id in apart if not self._store.layers.available((diff_id,)))

    def bring(self, layers: Mapping[Digest, tuple[Digest, ...]], *, unpack: bool) -> frozenset[Digest]:
        """See DistantLayers."""
        if not layers:
            return frozenset()
        step = self._events.begin("[internal] pulling cached layers")
        # Big ones first, so that none is left over at the end.
        order = sorted(layers, key=self._blob_size, reverse=True)
        try:
            came = self._all(
                [partial(self._bring_one, diff_id, layers[diff_id], step, unpack=unpack) for diff_id in order],
                _PARALLEL_LAYERS,
            )
        finally:
            self._events.end(step)
        return frozenset(diff_id for diff_id, here in zip(order, came) if not here)

    def _all(self, tasks: Sequence[Callable[[], T]], parallel: int) -> list[T]:
        """Raises Cancelled, without waiting for a registry that doesn't answer."""
        return run_all(
            tasks,
            parallel=parallel,
            stop=Stop(self._cancel),
            interrupt=lambda threads: self._registries.client.transport.interrupt(threads),
        )

    def _blob_size(self, diff_id: Digest) -> int:
        known = self._known.get(diff_id)
        return known[0].layer.blob.size if known and known[0].layer.blob else 0

    def _bring_one(self, diff_id: Digest, stack: Sequence[Digest], step: str, *, unpack: bool) -> bool:
        with self._guard:
            places = list(self._known.get(diff_id, ()))
        for known in places:
            if self._cancel.is_set():
                return False
            try:
                received = self._layers.fetch(known.layer, known.place, stack=stack, unpack=unpack, cancel=self._cancel)
            except Cancelled:
                return False
            except (PybuildError, OSError) as error:
                self._events.trouble(known.place.name, error)
                continue
            if known.layer.blob is not None and received:
                self._events.count(step, str(known.layer.blob.digest), received)
            return True
        return self._lazy.bring_one(diff_id, stack, unpack=unpack)

    def _described(self, diff_id: Digest) -> CachedLayer | None:
        with self._guard:
            known = self._known.get(diff_id)
        if known:
            return known[0].layer
        for remote in self._store.remote_layers.of(diff_id):
            created = self._store.clock() if remote.created is None else remote.created
            return CachedLayer(
                diff_id, remote.size or 0, remote.empty, created=created, blob=remote.blob, level=remote.level
            )
        return None

    def _aliases(self, key: str) -> tuple[str, ...]:
        step = self._steps.get(key)
        own = step.aliases if step is not None and step.record.key == key else ()
        return tuple(sorted({*self._cache.aliases(key), *own}))

    # --- giving -------------------------------------------------------------------------------------------------------

    def keep(self, step: CachedStep, *, base: int) -> None:
        """See RemoteCache."""
        for repository in self._repositories:
            repository.keep(step, base=base)

    def with_inline(
        self,
        images: Sequence[BuiltImage],
        results: Sequence[Result],
        *,
        reports: Sequence[StepReport],
        bases: Sequence[tuple[Digest, ...]],
    ) -> tuple[BuiltImage, ...]:
        """See BuildCaches."""
        if not self._inline:
            return tuple(images)
        out = []
        for image, result in zip(images, results, strict=True):
            steps = exported_steps(reports, (result,), mode=CacheMode.MIN, step_of=self._step_of)
            document = bundle_json(CacheBundle(steps, self._plain_layers(steps, bases)), blobs=False, recipes=False)
            out.append(replace(image, config=image.config.with_(extra={**image.config.extra, INLINE_KEY: document})))
        return tuple(out)

    def before_running(self, steps: Sequence[Step]) -> None:
        """See BuildCaches."""
        if self._mounts is not None:
            self._mounts.before_running(steps)

    def export(
        self, *, reports: Sequence[StepReport], results: Sequence[Result], bases: Sequence[tuple[Digest, ...]]
    ) -> Descriptor | None:
        """Send the build's steps to every target. Raises PybuildError only for a target that asked for it (ignore-error=false)."""
        if self._mounts is not None:
            self._mounts.save(reports)
        last: Descriptor | None = None
        for target in self._targets:
            if target.type is CacheType.INLINE:
                continue
            step = self._events.begin(f"exporting cache to {_kind(target)}")
            try:
                last = self._export(target, step, reports, results, bases)
            except Cancelled:
                self._events.end(step, "canceled")
                raise
            except (PybuildError, OSError) as error:
                self._events.end(step, self._events.trouble(str(target), error))
                if not target.ignore_errors:
                    if isinstance(error, PybuildError):
                        raise
                    raise PybuildError(f"cache {target}: {error}") from error
                continue
            self._events.end(step)
        return last

    def _export(
        self,
        target: CacheTarget,
        step: str,
        reports: Sequence[StepReport],
        results: Sequence[Result],
        bases: Sequence[tuple[Digest, ...]],
    ) -> Descriptor:
        form = BlobForm(target.compression, target.compression_level, force=target.force_compression)
        steps = exported_steps(reports, results, mode=target.mode, step_of=self._step_of)
        wanted = _own_layers(steps, bases)
        if form.force:
            # Those that can't be brought are told of, and stay as they are.
            self.bring({diff_id: (diff_id,) for diff_id in wanted if not self._layers.has(diff_id)}, unpack=False)
        here = [diff_id for diff_id in wanted if self._layers.has(diff_id)]
        self._events.say(step, "preparing build cache for export")
        self._layers.prepare(here, form)
        layers: dict[Digest, CachedLayer] = {diff_id: self._layers.described(diff_id, form) for diff_id in here}
        for diff_id in wanted:
            known = self._described(diff_id)
            if diff_id not in layers and known is not None and known.blob is not None:
                layers[diff_id] = known
        # A step whose layers nobody has can't be used by anybody.
        complete = tuple(
            one for one in steps if all(d in layers for d in one.record.layers[base_count(one.record.layers, bases) :])
        )
        ordered = tuple(layers[diff_id] for diff_id in _own_layers(complete, bases))
        by_blob = {layer.blob.digest: layer for layer in ordered if layer.blob is not None}
        source = BlobsOnDemand(
            self._lazy.blobs,
            sizes={digest: layer.blob.size for digest, layer in by_blob.items() if layer.blob is not None},
            bring=lambda digest: self._bring_blob(by_blob[digest]),
        )
        saved = self._target(target).save(
            bundle_bytes(CacheBundle(complete, ordered)),
            [layer.blob for layer in by_blob.values() if layer.blob is not None],
            blobs=source,
            oci=target.oci,
            config_type=CONFIG_TYPE,
        )
        self._events.count(step, f"writing cache manifest {saved.descriptor.digest}", saved.bytes_sent)
        return saved.descriptor

    def _bring_blob(self, layer: CachedLayer) -> None:
        if self.bring({layer.diff_id: (layer.diff_id,)}, unpack=False):
            raise PybuildError(f"the layer {layer.diff_id} could not be fetched from where it was")

    def _step_of(self, key: str) -> CachedStep | None:
        record = self._cache.peek(key)
        if record is None:
            return self._steps.get(key)
        return CachedStep(record if record.key == key else replace(record, key=key), aliases=self._aliases(key))

    def _plain_layers(
        self, steps: Sequence[CachedStep], bases: Sequence[tuple[Digest, ...]]
    ) -> tuple[CachedLayer, ...]:
        out = []
        for diff_id in _own_layers(steps, bases):
            layer = self._store.layers.get(diff_id)
            (created,) = self._store.layers.created((diff_id,))
            known = (
                self._described(diff_id)
                if layer is None
                else CachedLayer(diff_id, layer.size, layer.empty, created, None)
            )
            if known is not None:
                out.append(replace(known, blob=None))
        return tuple(out)

    # --- places -------------------------------------------------------------------------------------------------------

    def _source(self, source: CacheSource) -> CachePlace:
        match source.type:
            case CacheType.LOCAL:
                return self._layouts(source.path, source.digest or source.tag)
            case CacheType.S3:
                from .cache_s3 import S3Place

                assert source.bucket is not None
                return S3Place(source.bucket)
            case _:
                return RegistryPlace(self._registries, source.ref, cancel=self._cancel)

    def _target(self, target: CacheTarget) -> CachePlace:
        match target.type:
            case CacheType.LOCAL:
                return self._layouts(target.path, target.tag)
            case CacheType.S3:
                from .cache_s3 import S3Place

                assert target.bucket is not None
                return S3Place(target.bucket)
            case _:
                return RegistryPlace(
                    self._registries,
                    target.ref,
                    cancel=self._cancel,
                    siblings=self._siblings,
                    origins=self._store.remote_layers,
                )

    # --- end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for what is being sent."""
        for repository in self._repositories:
            with self._shown(repository):
                repository.finish()

    @contextmanager
    def _shown(self, repository: StepRepository) -> Iterator[None]:
        before = repository.sent_steps
        yield
        if repository.sent_steps:
            step = self._events.begin(f"exporting steps to {repository.name}")
            self._events.say(step, f"{repository.sent_steps} steps sent, {repository.sent_steps - before} at the end")
            self._events.count(step, "blobs", repository.sent_bytes)
            self._events.end(step)


def _own_layers(steps: Sequence[CachedStep], bases: Sequence[tuple[Digest, ...]]) -> tuple[Digest, ...]:
    """The layers of the steps' stacks that no base image has, each once."""
    found: dict[Digest, None] = {}
    for step in steps:
        stack = step.record.layers
        for diff_id in stack[base_count(stack, bases) :]:
            found[diff_id] = None
    return tuple(found)


def _kind(target: CacheTarget) -> str:
    names: dict[CacheType, str] = {
        CacheType.REGISTRY: "registry",
        CacheType.LOCAL: "client directory",
        CacheType.S3: "Amazon S3",
    }
    return names[target.type]
