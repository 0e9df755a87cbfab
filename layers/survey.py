"""What the store holds and who needs it, at one moment.

Owns looking at images, cache records, facts, layers, cache mounts, kept sources and loose blobs, how they hang together, and the
rows of ``pybuild du`` made from that. Never deletes anything: gc does, by the same survey.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.values import dataclass

from .blobs import BlobCorrupt, BlobNotFound, BlobTooLarge
from .cache_mounts import CacheMountRecord
from .descriptor import INDEX_TYPES, InvalidDescriptor
from .digest import Digest, InvalidDigest
from .facts import Fact
from .image import Index, InvalidImage, Manifest, chain_ids, media_type_of
from .images import MANIFEST_LIMIT_BYTES, StoredImage
from .kept_sources import KeptSource
from .usage import CacheUsage, ImageUsage, Usage, UsageType

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A cache record as the survey sees it: ``layers`` are diff IDs as text, ``title`` is made of the recipe."""

    key: str
    layers: tuple[str, ...]
    own: int
    title: str
    created: float
    last_used: float
    uses: int


@dataclass(slots=True)
class LayerRow:
    """A layer as the survey sees it: ``disk`` bytes on the disk in all its forms; ``touched``: when its newest form was last used.
    ``blobs``: that hold its bytes, and are here."""

    diff_id: str
    size: int = 0
    description: str = ""
    created: float = 0.0
    blobs: tuple[Digest, ...] = ()
    packed: int = 0
    unpacked: int = 0
    touched: float = 0.0

    @property
    def disk(self) -> int:
        return self.packed + self.unpacked

    def add_blob(self, digest: Digest, *, size: int, touched: float) -> None:
        if digest not in self.blobs:
            self.blobs += (digest,)
            self.packed += size
            self.touched = max(self.touched, touched)


@dataclass(slots=True)
class Survey:
    """Everything in a store at one moment. ``images``, ``facts``: each with all the blobs that it names or that these name; ``mounts``,
    ``kept``: each with its size and whether it is in use."""

    images: list[tuple[StoredImage, frozenset[Digest]]]
    records: list[RecordRow]
    facts: list[tuple[Fact, frozenset[Digest]]]
    layers: dict[str, LayerRow]
    mounts: list[tuple[CacheMountRecord, int, bool]]
    kept: list[tuple[KeptSource, int, bool]]
    blobs: dict[Digest, tuple[int, float]]
    unpacked: dict[str, float]
    horizon: float | None

    def in_use(self, touched: float) -> bool:
        """True of what was touched since the oldest living lease began."""
        return self.horizon is not None and touched >= self.horizon


def take_survey(store: Store, *, horizon: float | None, sizes: Mapping[Path, int]) -> Survey:
    """Look at everything. ``horizon``: of ``Leases.horizon``; ``sizes``: of cache mounts and kept sources, which take a walk to find.
    Costs a stat per blob and unpacked layer, and reads each manifest."""
    with store.database.reading():
        return _survey(store, horizon, sizes)


def _survey(store: Store, horizon: float | None, sizes: Mapping[Path, int]) -> Survey:
    blobs: dict[Digest, tuple[int, float]] = {}
    for digest in store.blobs:
        with suppress(FileNotFoundError):
            found = store.blobs.path(digest).stat()
            blobs[digest] = (found.st_size, found.st_mtime)
    unpacked: dict[str, float] = {}
    with suppress(FileNotFoundError), os.scandir(store.root / "layers") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                unpacked[entry.name] = entry.stat(follow_symlinks=False).st_mtime
    layers: dict[str, LayerRow] = {}
    for diff_id, size, description, created in store.database.each(
        "SELECT diff_id, size, description, created FROM layer"
    ):
        layers[diff_id] = LayerRow(diff_id, size, description, created)
    for diff_id, text in store.database.each("SELECT diff_id, digest FROM layer_blob"):
        digest = Digest.parse(text)
        if digest in blobs:
            layers[diff_id].add_blob(digest, size=blobs[digest][0], touched=blobs[digest][1])
    for diff_id, touched in store.database.each("SELECT diff_id, max(touched) FROM remote_layer GROUP BY diff_id"):
        row = layers.setdefault(diff_id, LayerRow(diff_id))
        row.touched = max(row.touched, touched)
    records = list(_records(store, layers))
    images = [(image, _image_blobs(store, image)) for image in store.images.list()]
    for image, _ in images:
        for part in image.platforms:
            for diff_id in map(str, part.diff_ids):
                layers.setdefault(diff_id, LayerRow(diff_id))
    for row in layers.values():
        digest = Digest.parse(row.diff_id)
        if digest in blobs:
            row.add_blob(digest, size=blobs[digest][0], touched=blobs[digest][1])
    _find_unpacked(images, records, layers, unpacked)
    facts = [(fact, _closure(store, fact.blobs)) for fact in store.facts.list()]
    mounts: list[tuple[CacheMountRecord, int, bool]] = []
    for mount in store.cache_mounts.list():
        with store.cache_mounts.claim(mount.directory.name) as free:
            mounts.append((mount, sizes.get(mount.directory, 0), not free))
    kept: list[tuple[KeptSource, int, bool]] = []
    for source in store.kept_sources.list():
        used = horizon is not None and source.last_used >= horizon
        kept.append((source, sizes.get(source.path, 0), used or store.kept_sources.is_used(source)))
    return Survey(images, records, facts, layers, mounts, kept, blobs, unpacked, horizon)


def _records(store: Store, layers: dict[str, LayerRow]) -> Iterator[RecordRow]:
    """The cache records, and in ``layers`` every layer that one names. They are most of a store: so each layer's name is one text that all
    share, and of the recipes only the titles stay."""
    for key, text, own, recipe, *times in store.database.each(
        "SELECT key, layers, own, recipe, created, last_used, uses FROM cache_record"
    ):
        stack = tuple(layers.setdefault(diff_id, LayerRow(diff_id)).diff_id for diff_id in text.split())
        yield RecordRow(key, stack, own, title_of(recipe) if own else "", *times)


def _stacks(
    images: Sequence[tuple[StoredImage, frozenset[Digest]]], records: Sequence[RecordRow]
) -> Iterator[tuple[str, ...]]:
    for image, _ in images:
        for part in image.platforms:
            yield tuple(map(str, part.diff_ids))
    for record in records:
        yield record.layers


def unpacked_names(stack: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(diff ID, directory name) of every form in which the layers of a stack may be unpacked: by diff ID and by chain ID."""
    digests = tuple(map(Digest.parse, stack))
    for text, digest, chain in zip(stack, digests, chain_ids(digests), strict=True):
        yield text, digest.hex
        if chain != digest:
            yield text, chain.hex


def _find_unpacked(
    images: Sequence[tuple[StoredImage, frozenset[Digest]]],
    records: Sequence[RecordRow],
    layers: dict[str, LayerRow],
    unpacked: dict[str, float],
) -> None:
    """An unpacked layer is taken to need as many bytes as its tar: exact counting would be a walk of all files."""
    if not unpacked:
        return
    seen: set[str] = set()
    for stack in _prefix_free(_stacks(images, records)):
        for diff_id, name in unpacked_names(stack):
            if name in unpacked and name not in seen:
                seen.add(name)
                row = layers[diff_id]
                row.unpacked += row.size
                row.touched = max(row.touched, unpacked[name])
    for row in layers.values():
        name = row.diff_id.partition(":")[2]
        if name in unpacked and name not in seen:
            row.unpacked += row.size
            row.touched = max(row.touched, unpacked[name])


def _prefix_free(stacks: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The stacks that no other one begins with: the steps of one stage give one chain, not one for each step."""
    previous: tuple[str, ...] | None = None
    for stack in sorted(set(stacks)):
        if previous is not None and stack[: len(previous)] != previous:
            yield previous
        previous = stack
    if previous is not None:
        yield previous


def live_names(stacks: Iterator[tuple[str, ...]]) -> set[str]:
    """The directory names of all unpacked forms of these stacks' layers."""
    return {name for stack in _prefix_free(stacks) for _, name in unpacked_names(stack)}


def _image_blobs(store: Store, image: StoredImage) -> frozenset[Digest]:
    return _closure(store, (image.descriptor.digest,))


_UNREADABLE = (BlobNotFound, BlobCorrupt, BlobTooLarge, InvalidImage, InvalidDescriptor, InvalidDigest)


def _closure(store: Store, roots: Sequence[Digest]) -> frozenset[Digest]:
    """``roots`` and, where these are manifests or indexes, all that they name, as far as it is here."""
    found: set[Digest] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest in found:
            continue
        found.add(digest)
        try:
            if store.blobs.size(digest) > MANIFEST_LIMIT_BYTES:
                continue
            with open(store.blobs.path(digest), "rb") as file:
                if file.read(1) != b"{":
                    continue
            data = store.blobs.read(digest, limit_bytes=MANIFEST_LIMIT_BYTES)
            media_type = media_type_of(data)
            if media_type in INDEX_TYPES:
                waiting += [child.digest for child in Index.from_bytes(data).manifests]
            else:
                manifest = Manifest.from_bytes(data)
                found.add(manifest.config.digest)
                found.update(layer.digest for layer in manifest.layers)
        except (*_UNREADABLE, FileNotFoundError):
            continue
    return frozenset(found)


def rows_of(survey: Survey) -> list[CacheUsage]:
    """The build cache's rows: each layer that a record, or nothing, needs; cache mounts; facts with content; loose blobs."""
    of_images = {str(diff_id) for image, _ in survey.images for part in image.platforms for diff_id in part.diff_ids}
    parents: dict[str, str] = {}
    titles: dict[str, str] = {}
    last_used: dict[str, float] = {}
    uses: dict[str, int] = {}
    for record in sorted(survey.records, key=lambda record: record.created):
        for below, diff_id in zip(("", *record.layers), record.layers, strict=False):
            parents.setdefault(diff_id, below)
            last_used[diff_id] = max(last_used.get(diff_id, 0.0), record.last_used)
        for diff_id in record.layers[len(record.layers) - record.own :] if record.own else ():
            titles.setdefault(diff_id, record.title)
            uses[diff_id] = uses.get(diff_id, 0) + record.uses
    rows: list[CacheUsage] = []
    for layer in survey.layers.values():
        diff_id = layer.diff_id
        if diff_id not in last_used and (diff_id in of_images or not layer.disk):
            continue
        below = parents.get(diff_id, "")
        rows.append(
            CacheUsage(
                id=diff_id.partition(":")[2],
                type=UsageType.REGULAR,
                size=layer.disk,
                parents=(below.partition(":")[2],) if below else (),
                description=layer.description or titles.get(diff_id, ""),
                shared=diff_id in of_images,
                in_use=survey.in_use(layer.touched),
                created=layer.created,
                last_used=last_used.get(diff_id),
                usage_count=uses.get(diff_id, 0),
            )
        )
    rows += _mount_rows(survey)
    rows += _kept_rows(survey)
    held: set[Digest] = set()
    held.update(*(blobs for _, blobs in survey.images), *(layer.blobs for layer in survey.layers.values()))
    rows += _fact_rows(survey, held)
    rows += _loose_rows(survey, held)
    rows.sort(key=lambda row: (row.size, row.id))
    return rows


def _mount_rows(survey: Survey) -> Iterator[CacheUsage]:
    for mount, size, in_use in survey.mounts:
        yield CacheUsage(
            id=mount.directory.name,
            type=UsageType.CACHE_MOUNT,
            size=size,
            description=f"cached mount {mount.id}",
            mutable=True,
            in_use=in_use,
            created=mount.created,
            last_used=mount.last_used,
            usage_count=mount.uses,
        )


def _kept_rows(survey: Survey) -> Iterator[CacheUsage]:
    for source, size, in_use in survey.kept:
        yield CacheUsage(
            id=source.id,
            type=UsageType.GIT if source.kind == "git" else UsageType.SOURCE,
            size=size,
            description=f"{source.kind} {source.group}",
            in_use=in_use,
            created=source.last_used,
            last_used=source.last_used,
        )


def fact_id(fact: Fact) -> str:
    """The identifier of a fact's row."""
    return Digest.of(f"{fact.kind}\0{fact.key}".encode("utf-8", "surrogateescape")).hex


def _fact_rows(survey: Survey, held: set[Digest]) -> Iterator[CacheUsage]:
    for fact, closure in survey.facts:
        size = sum(survey.blobs[digest][0] for digest in closure if digest in survey.blobs and digest not in held)
        if size:
            yield CacheUsage(
                id=fact_id(fact),
                type=UsageType.SOURCE,
                size=size,
                description=f"{fact.kind} {fact.key}",
                in_use=survey.in_use(fact.last_used),
                created=fact.created,
                last_used=fact.last_used,
                usage_count=fact.uses,
            )


def _loose_rows(survey: Survey, held: set[Digest]) -> Iterator[CacheUsage]:
    known = held.union(*(closure for _, closure in survey.facts))
    for digest, (size, touched) in survey.blobs.items():
        if digest not in known:
            yield CacheUsage(
                id=digest.hex,
                type=UsageType.INTERNAL,
                size=size,
                description="unreferenced content",
                in_use=survey.in_use(touched),
                created=touched,
            )


def title_of(recipe: str) -> str:
    """A short text for people from a recipe (JSON, see ``pybuild.builder.keys``), in BuildKit's words; empty if it says too little."""
    try:
        value = json.loads(recipe)
    except (ValueError, RecursionError):
        return ""
    op = value.get("op") if isinstance(value, dict) else None
    if not isinstance(op, dict):
        return ""
    kind = str(op.get("type") or "")
    words = [
        *_words(op.get("args")),
        *_words(op.get("sources")),
        *_words(op.get("destination")),
        *_words(op.get("directory")),
    ]
    text = " ".join(" ".join(["mount / from exec" if kind == "run" else kind, *words]).split())
    return text if len(text) <= 200 else text[:199] + "…"


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(word) for word in value] if isinstance(value, list) else []


def usage_of(survey: Survey) -> Usage:
    """What ``pybuild du`` shows."""
    needed: list[tuple[StoredImage, dict[str, int]]] = []
    for image, blobs in survey.images:
        sizes: dict[str, int] = {}
        in_layers: set[Digest] = set()
        for diff_id in {str(diff_id) for part in image.platforms for diff_id in part.diff_ids}:
            layer = survey.layers[diff_id]
            sizes[diff_id] = layer.disk
            in_layers.update(layer.blobs)
        for digest in blobs - in_layers:
            if digest in survey.blobs:
                sizes[str(digest)] = survey.blobs[digest][0]
        needed.append((image, sizes))
    owners: dict[str, int] = {}
    for _, sizes in needed:
        for name in sizes:
            owners[name] = owners.get(name, 0) + 1
    images = tuple(
        ImageUsage(image, sum(sizes.values()), sum(size for name, size in sizes.items() if owners[name] > 1))
        for image, sizes in needed
    )
    return Usage(images, tuple(rows_of(survey)), sum(layer.disk for layer in survey.layers.values()))


def tree_size(path: Path | str) -> int:
    """Bytes on the disk of a tree, each hard link counted; what can't be read counts nothing."""
    total = 0
    waiting: list[str] = [os.fspath(path)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total
