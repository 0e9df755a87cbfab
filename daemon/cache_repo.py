"""``--cache-repo``: a repository with one small manifest for each step, put there as soon as the step has ended.

    tag v1-<hex of the key>     a manifest whose layers are those of the step's stack above its base image; its annotation
                                ``dev.pybuild.cache.step`` is the step's document (builder/cache_format.py), so that one request finds it
    tag i-<hex>                 the latest manifest of an instruction, by stage and text: what ``pybuild why`` compares with

Owns these tags, asking for many at once, and sending in the background. A build that is killed leaves the steps that were sent; nothing
is computed over all steps at the end. Never raises: the first trouble with a repository is told, and then it isn't used any more.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from pybuild.builder.cache_format import (
    STEP_ANNOTATION,
    STEP_TYPE,
    CacheBundle,
    CachedLayer,
    CachedStep,
    bundle_bytes,
    read_bundle,
)
from pybuild.builder.cache_specs import CacheRepository
from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.descriptor import OCI_EMPTY, OCI_MANIFEST, Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.image import Manifest
from pybuild.layers.remote_layers import Origin
from pybuild.registry_client.stores import BlobSource
from pybuild.values import dataclass, replace

from .cache_layers import BlobForm, CacheLayers
from .cache_places import EMPTY_JSON, WithDocuments
from .registries import Registries

if TYPE_CHECKING:
    from pybuild.layers.store import Store
    from pybuild.registry_client.client import Repository

_PARALLEL_QUESTIONS: Final = 8
_SENDERS: Final = 4
_FACT: Final = "cache-repo"
_SENT_SECONDS: Final = 86400.0
_RECIPE_BYTES: Final = 256 << 10
_DRAIN_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Job:
    step: CachedStep
    base: int


class StepRepository:
    """One repository of single steps, for one build. ``blobs``: where the layers' bytes come from; ``describe``: where a layer that isn't in the store lies, or None."""

    def __init__(
        self,
        spec: CacheRepository,
        *,
        store: Store,
        layers: CacheLayers,
        registries: Registries,
        describe: Callable[[Digest], CachedLayer | None],
        aliases: Callable[[str], tuple[str, ...]],
        blobs: BlobSource,
        on_trouble: Callable[[str, PybuildError | OSError], object],
        cancel: threading.Event,
    ) -> None:
        self.spec = spec
        self._store = store
        self._layers = layers
        self._registries = registries
        self._describe = describe
        self._aliases = aliases
        self._blobs = blobs
        self._on_trouble = on_trouble
        self._cancel = cancel
        self._halt = threading.Event()
        self._broken = False
        self._found = False
        self._nothing_there = False
        self._repository: Repository | None = None
        self._guard = threading.Lock()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._uploads: dict[Digest, Future[None]] = {}
        self._seen: set[str] = set()
        self._missing: set[str] = set()
        self._there: set[Digest] = set()
        self.sent_bytes = 0
        self.sent_steps = 0

    @property
    def name(self) -> str:
        return self.spec.ref

    @property
    def origin(self) -> Origin:
        """See BlobPlace."""
        reference = self._connected().reference
        return Origin(reference.host, reference.repository)

    # --- asking -------------------------------------------------------------------------------------------------------

    def lookup(self, keys: Sequence[str]) -> dict[str, CacheBundle]:
        """What the repository has of these keys: bundles with one step each."""
        if self._broken or not keys or not self.spec.read:
            return {}
        # A step that asks again, having waited for another process, learns of that from the store; here a build asks once.
        keys = [key for key in keys if key not in self._missing]
        if len(keys) <= 1:
            found = {key: self._ask(_tag(key)) for key in keys}
        else:
            with ThreadPoolExecutor(min(_PARALLEL_QUESTIONS, len(keys)), "cache-repo") as pool:
                found = dict(zip(keys, pool.map(lambda key: self._ask(_tag(key)), keys)))
        out = {key: bundle for key, bundle in found.items() if bundle is not None and bundle.steps}
        with self._guard:
            self._missing.update(set(keys) - out.keys())
            self._seen.update(out)
            # A registry keeps the blobs that a manifest names.
            self._there.update(
                layer.blob.digest for one in out.values() for layer in one.layers if layer.blob is not None
            )
            self._found = self._found or bool(out)
        return out

    def latest(self, stage: str, instruction: str) -> CachedStep | None:
        """The step of this instruction that was sent last, with its recipe."""
        if self._broken or self._nothing_there or not self.spec.read:
            return None
        bundle = self._ask(_instruction_tag(stage, instruction))
        if bundle is None and not self._found:
            # Nothing was found yet: the repository is new, and asking for every step of a first build would only cost time.
            self._nothing_there = True
        return bundle.steps[0] if bundle is not None and bundle.steps else None

    def _ask(self, tag: str) -> CacheBundle | None:
        from pybuild.registry_client.client import ImageNotFound

        if self._broken:
            return None
        try:
            data = self._connected().get_manifest(tag).data
            manifest = Manifest.from_bytes(data)
            return read_bundle(manifest.annotations.get(STEP_ANNOTATION, "{}").encode())
        except ImageNotFound:
            return None
        except Cancelled:
            raise
        except (PybuildError, OSError) as error:
            self._trouble(error)
            return None

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """See CachePlace."""
        from pybuild.registry_client.fetch import blob_chunks
        from pybuild.registry_client.transfers import Stop

        return blob_chunks(self._connected(), blob, stop=Stop(self._cancel))

    def _connected(self) -> Repository:
        with self._guard:
            if self._repository is None:
                from pybuild.layers.references import Reference

                self._repository = self._registries.client.repository(Reference.parse(self.spec.ref))
            return self._repository

    def _trouble(self, error: PybuildError | OSError) -> None:
        with self._guard:
            told, self._broken = self._broken, True
        if not told:
            self._on_trouble(self.spec.ref, error)

    # --- sending ------------------------------------------------------------------------------------------------------

    def keep(self, step: CachedStep, *, base: int) -> None:
        """Send a step in the background, unless the repository has it."""
        if self._broken or not self.spec.write:
            return
        key = step.record.key
        with self._guard:
            if key in self._seen:
                return
            self._seen.add(key)
            while len(self._threads) < _SENDERS:
                thread = threading.Thread(target=self._send_all, name="cache-repo", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(_Job(step, base))

    def finish(self) -> None:
        """Wait until all is sent; a cancelled build waits only a moment: what has ended shall not be lost, but nobody wants to wait."""
        for _ in self._threads:
            self._queue.put(None)
        deadline: float | None = None
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                if self._cancel.is_set():
                    deadline = deadline or time.monotonic() + _DRAIN_SECONDS
                    if time.monotonic() >= deadline:
                        self._halt.set()
        self._threads.clear()

    def _send_all(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._broken or self._halt.is_set():
                continue
            try:
                self._send(job)
            except Cancelled:
                return
            except (PybuildError, OSError) as error:
                self._trouble(error)

    def _send(self, job: _Job) -> None:
        from pybuild.registry_client.failures import UnexpectedStatus

        step, record = job.step, job.step.record
        fact = f"{self.spec.ref} {record.key}"
        known = self._store.facts.get(_FACT, fact)
        if known is not None and self._store.clock() - known.created < _SENT_SECONDS:
            return
        form = BlobForm(self.spec.compression, self.spec.compression_level)
        layers = []
        for diff_id in dict.fromkeys(record.layers[job.base :]):
            layer = self._layers.described(diff_id, form) if self._layers.has(diff_id) else self._describe(diff_id)
            if layer is None or layer.blob is None:
                return  # gc was faster, or it lies where only others can read it
            layers.append(layer)
        for layer in layers:
            assert layer.blob is not None
            self._upload(layer.blob)
        self._upload(Descriptor(OCI_EMPTY, Digest.of(EMPTY_JSON), len(EMPTY_JSON)))
        aliases = self._aliases(record.key)
        text = _annotation(replace(step, aliases=aliases), layers)
        manifest = Manifest(
            config=Descriptor(OCI_EMPTY, Digest.of(EMPTY_JSON), len(EMPTY_JSON)),
            layers=tuple(layer.blob for layer in layers if layer.blob is not None)
            or (Descriptor(OCI_EMPTY, Digest.of(EMPTY_JSON), len(EMPTY_JSON)),),
            media_type=OCI_MANIFEST,
            annotations={STEP_ANNOTATION: text},
            artifact_type=STEP_TYPE,
        ).to_bytes()
        tags = [_tag(key) for key in (record.key, *aliases)]
        if step.instruction:
            tags.append(_instruction_tag(step.stage, step.instruction))
        try:
            self._put(tags, manifest)
        except UnexpectedStatus:
            # A registry that has lost blobs of manifests that it still has refuses further ones: they are looked for, and sent again.
            with self._guard:
                lost = [layer.blob for layer in layers if layer.blob is not None and layer.blob.digest in self._there]
                self._there.clear()
            if not lost:
                raise
            for blob in lost:
                self._upload(blob)
            self._put(tags, manifest)
        self._store.facts.put(_FACT, fact, value=json.dumps({"digest": str(Digest.of(manifest))}))
        with self._guard:
            self.sent_steps += 1

    def _put(self, tags: Sequence[str], manifest: bytes) -> None:
        for tag in tags:
            self._connected().put_manifest(tag, manifest, media_type=OCI_MANIFEST)

    def _upload(self, blob: Descriptor) -> None:
        """Send a blob once in this build, whoever asks first; the others wait for it."""
        with self._guard:
            if blob.digest in self._there:
                return
            known = self._uploads.get(blob.digest)
            mine = None if known is not None else Future[None]()
            if mine is not None:
                self._uploads[blob.digest] = mine
        if known is not None:
            known.result()
            return
        assert mine is not None
        try:
            from pybuild.registry_client.transfers import Stop
            from pybuild.registry_client.uploads import BlobUpload

            source = WithDocuments(self._blobs, {Digest.of(EMPTY_JSON): EMPTY_JSON})
            repository = self._connected()
            seen = self._store.remote_layers.repositories(repository.reference.host, blob.digest)
            done = BlobUpload(repository, blob, source=source, mount_from=seen, stop=Stop(self._halt)).run()
            with self._guard:
                self.sent_bytes += done.bytes_sent
        except BaseException as error:
            mine.set_exception(error)
            raise
        mine.set_result(None)


def _annotation(step: CachedStep, layers: Sequence[CachedLayer]) -> str:
    record = step.record
    if len(record.recipe) > _RECIPE_BYTES:
        # The single paths may be too many for a manifest; without them `why` still tells what kind of change it was.
        value = json.loads(record.recipe)
        value.pop("seen", None)
        record = replace(record, recipe=json.dumps(value, separators=(",", ":")))
    return bundle_bytes(CacheBundle((replace(step, record=record),), tuple(layers))).decode("ascii")


def _tag(key: str) -> str:
    return f"v1-{key.rpartition(':')[2]}"


def _instruction_tag(stage: str, instruction: str) -> str:
    text = f"{stage}\0{instruction}".encode("utf-8", "surrogateescape")
    return f"i-{hashlib.sha256(text).hexdigest()}"
