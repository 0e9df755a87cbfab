"""The image store: which manifests and indexes are images here, and their names.

Owns the tables ``image``, ``image_platform`` and ``tag``. Never parses or completes references (names come in the canonical form, like
``docker.io/library/alpine:3.20`` or ``…@sha256:…``), and never deletes blobs: those go with gc.

An image's layers may be held in another form than its manifest says, or only be known to lie in a registry: the manifest and the
configuration must be there as they are.
A manifest is kept as it came; what an index lists but the store doesn't hold is not offered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError
from pybuild.values import dataclass, field, pattern, replace

from .blobs import BlobStore
from .database import Database, Row
from .descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Platform
from .digest import Digest
from .image import History, ImageConfig, Index, InvalidImage, Manifest
from .layer_index import LayerIndex

if TYPE_CHECKING:
    import sqlite3

MANIFEST_LIMIT_BYTES = 16 << 20
_DEPTH = 4
# Of layers that are known and not here.
_SIZES = "SELECT diff_id, max(layer_size) AS size FROM remote_layer WHERE layer_size IS NOT NULL GROUP BY diff_id"
_HEX_PREFIX = pattern(r"[0-9a-f]{1,64}\Z")


class ImageNotFound(PybuildError):
    """No image in the store has this name or ID."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"no such image: {reference}", hint="`pybuild images` lists what is in the store")
        self.reference = reference


class AmbiguousImage(PybuildError):
    """Several images' IDs begin with what was given."""

    def __init__(self, prefix: str) -> None:
        super().__init__(f"several images have an ID that begins with {prefix!r}", hint="give more digits of the ID")
        self.prefix = prefix


class ImageInUse(PybuildError):
    """An image can't be removed, or not without force."""

    def __init__(self, reference: str, *, reason: str, forceable: bool) -> None:
        how = "must be forced" if forceable else "cannot be forced"
        super().__init__(f"conflict: unable to delete {reference} ({how}) - {reason}")
        self.reference = reference
        self.reason = reason
        self.forceable = forceable


class LayerMissing(PybuildError):
    """An image names a layer that the store does not hold."""

    def __init__(self, descriptor: Descriptor) -> None:
        super().__init__(f"layer {descriptor.digest} of the image is not in the store")
        self.digest = descriptor.digest


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer as an image lists it. ``size``: bytes of the uncompressed tar if known, else of the blob."""

    diff_id: Digest
    descriptor: Descriptor
    size: int


@dataclass(frozen=True, slots=True)
class StoredPlatform:
    """One platform's image. ``config``: the configuration's digest, which is what docker calls the image ID; ``size``: bytes of all
    layers; ``created``: RFC 3339 text or None."""

    platform: Platform
    manifest: Descriptor
    config: Digest
    created: str | None
    layers: tuple[StoredLayer, ...]
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        return tuple(layer.diff_id for layer in self.layers)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image. ``descriptor``: its manifest or index; ``names``: canonical, sorted, empty for a dangling image; ``platforms``: what
    the store holds of it, in the index's order; times in seconds since the epoch."""

    descriptor: Descriptor
    names: tuple[str, ...]
    platforms: tuple[StoredPlatform, ...]
    stored: float
    last_used: float

    def choose(self, platform: Platform | None = None) -> StoredPlatform | None:
        """The part for ``platform`` (its variant if there is that), or the first; None if the store holds none that fits."""
        if platform is None:
            return self.platforms[0] if self.platforms else None
        fitting = [
            part
            for part in self.platforms
            if (part.platform.os, part.platform.architecture) == (platform.os, platform.architecture)
        ]
        exact = [part for part in fitting if part.platform.variant == platform.variant]
        return next(iter(exact or fitting), None)

    def id(self, platform: Platform | None = None) -> Digest:
        """The image ID: the configuration's digest of the chosen platform, else the digest of the manifest or index."""
        part = self.choose(platform) or self.choose()
        return self.descriptor.digest if part is None else part.config


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A line of an image's history: ``layer`` None where the instruction made none; ``size`` in bytes."""

    entry: History
    layer: Digest | None
    size: int


@dataclass(frozen=True, slots=True)
class Removal:
    """What ``Images.remove`` did: names taken away, IDs of images that are gone."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """A use of an image by others (a container): the reason against removing it; ``forceable``: if force overrides it."""

    reason: str
    forceable: bool = True


class Images:
    """The images of one store. Every method may be called from any thread and process."""

    def __init__(self, database: Database, blobs: BlobStore, *, layers: LayerIndex, clock: Callable[[], float]) -> None:
        self._database = database
        self._blobs = blobs
        self._layers = layers
        self._clock = clock

    def put(self, name: str | None, descriptor: Descriptor) -> StoredImage:
        """Make the manifest or index of ``descriptor``, whose blob is in the store, an image, and give it ``name``, taken from another
        image if need be. Idempotent.

        Raises BlobNotFound, LayerMissing, InvalidImage, InvalidDescriptor, BlobCorrupt; nothing has changed then.
        """
        parts = self._parts(descriptor, depth=_DEPTH)
        now = self._clock()
        digest = str(descriptor.digest)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO image VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET"
                " media_type = excluded.media_type, last_used = excluded.last_used",
                (digest, descriptor.media_type, descriptor.size, json.dumps(dict(descriptor.annotations)), now, now),
            )
            connection.execute("DELETE FROM image_platform WHERE image = ?", (digest,))
            connection.executemany(
                "INSERT INTO image_platform VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_part_row(digest, position, part) for position, part in enumerate(parts)],
            )
            if name is not None:
                self._set_tag(connection, name, descriptor.digest, now)
        return self.get(digest)

    def _parts(self, descriptor: Descriptor, *, depth: int) -> list[StoredPlatform]:
        """The images below a manifest or index. The document that the caller named must be there; what an index lists needn't."""
        data = self._blobs.read(descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
        self._blobs.touch(descriptor.digest)
        if descriptor.media_type in INDEX_TYPES:
            if depth == 0:
                raise InvalidImage("the index nests too many indexes")
            parts: list[StoredPlatform] = []
            for child in Index.from_bytes(data).manifests:
                if child.media_type in (INDEX_TYPES | MANIFEST_TYPES) and self._blobs.has(child.digest):
                    parts += self._parts(child, depth=depth - 1)
            return parts
        if descriptor.media_type not in MANIFEST_TYPES:
            raise InvalidImage(f"{descriptor.digest} is neither a manifest nor an index but {descriptor.media_type!r}")
        manifest = Manifest.from_bytes(data)
        config_bytes = self._blobs.read(manifest.config.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
        self._blobs.touch(manifest.config.digest)
        if not manifest.config.media_type.endswith(("image.config.v1+json", "container.image.v1+json")):
            self._require_blobs(manifest)
            return []  # an artifact: a name, but no image
        config = ImageConfig.from_bytes(config_bytes)
        if "unknown" in (config.platform.os, config.platform.architecture):
            self._require_blobs(manifest)
            return []  # an attestation
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidImage(
                f"the manifest lists {len(manifest.layers)} layers, its configuration {len(config.diff_ids)}"
            )
        for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=True):
            if not self._blobs.touch(layer.digest) and not self._layers.available((diff_id,)):
                raise LayerMissing(layer)
        pairs = zip(config.diff_ids, manifest.layers, strict=True)
        layers = tuple(StoredLayer(diff_id, layer, layer.size) for diff_id, layer in pairs)
        slim = replace(descriptor, platform=None, annotations={})
        created = config.created if isinstance(config.created, str) else None
        return [StoredPlatform(config.platform, slim, manifest.config.digest, created, layers, config.labels)]

    def _require_blobs(self, manifest: Manifest) -> None:
        for layer in manifest.layers:
            if not self._blobs.touch(layer.digest):
                raise LayerMissing(layer)

    def find(self, *references: str) -> StoredImage | None:
        """The image that the first of ``references`` to fit names: a canonical name, a digest (of manifest, index, or configuration), or the
        beginning of an image ID in hexadecimal. None if none fits. Raises AmbiguousImage."""
        for reference in references:
            digest = self._resolve(reference)
            if digest is not None:
                return self._load([digest])[0]
        return None

    def get(self, *references: str) -> StoredImage:
        """Like ``find``. Raises ImageNotFound, AmbiguousImage."""
        image = self.find(*references)
        if image is None:
            raise ImageNotFound(references[-1] if references else "")
        return image

    def _resolve(self, reference: str) -> str | None:
        row = self._database.row("SELECT image FROM tag WHERE name = ?", (reference,))
        if row is not None:
            return str(row[0])
        _, _, digest = reference.rpartition("@")
        if ":" in digest and "/" not in digest:
            row = self._database.row(
                "SELECT digest FROM image WHERE digest = ?1 UNION ALL"
                " SELECT image FROM image_platform WHERE config = ?1 OR manifest = ?1",
                (digest,),
            )
            if row is not None:
                return str(row[0])
        prefix = digest.removeprefix("sha256:")
        if not _HEX_PREFIX.match(prefix):
            return None
        start = f"sha256:{prefix}"
        rows = self._database.query(
            "SELECT digest, digest FROM image WHERE digest >= ?1 AND digest < ?2 UNION"
            " SELECT image, config FROM image_platform WHERE config >= ?1 AND config < ?2",
            (start, start + "g"),
        )
        if len({row[0] for row in rows}) > 1:
            # One ID may have several manifests (compressions): that is no ambiguity, the newest stands for it.
            if len({row[1] for row in rows}) > 1:
                raise AmbiguousImage(prefix)
            newest = self._database.row(
                "SELECT i.digest FROM image i JOIN image_platform p ON p.image = i.digest WHERE p.config = ?"
                " ORDER BY i.stored DESC LIMIT 1",
                (rows[0][1],),
            )
            return None if newest is None else str(newest[0])
        return str(rows[0][0]) if rows else None

    def with_config(self, config: Digest) -> tuple[StoredImage, ...]:
        """All images with this configuration: one ID under several manifests, whose layers are compressed differently."""
        rows = self._database.query("SELECT DISTINCT image FROM image_platform WHERE config = ?", (str(config),))
        return tuple(image for (digest,) in rows for image in self._load([digest]))

    def list(self, *, dangling: bool | None = None) -> tuple[StoredImage, ...]:
        """All images, or only those without (or only those with) a name; the latest stored first."""
        digests = [row[0] for row in self._database.query("SELECT digest FROM image ORDER BY stored DESC, digest")]
        images = self._load(digests)
        return tuple(image for image in images if dangling is None or dangling is not bool(image.names))

    def names(self) -> dict[str, Digest]:
        """Every name and the digest of what it names, sorted."""
        rows = self._database.query("SELECT name, image FROM tag ORDER BY name")
        return {row[0]: Digest.parse(row[1]) for row in rows}

    def config(self, part: StoredPlatform) -> ImageConfig:
        """The configuration. Raises BlobNotFound, BlobCorrupt, InvalidImage."""
        return ImageConfig.from_bytes(self._blobs.read(part.config, limit_bytes=MANIFEST_LIMIT_BYTES))

    def history(self, part: StoredPlatform) -> tuple[HistoryEntry, ...]:
        """The history, the latest instruction first, each with its layer; layers that no entry tells of get an empty one."""
        layers = list(part.layers)
        out: list[HistoryEntry] = []
        for entry in self.config(part).history:
            if entry.empty_layer or not layers:
                out.append(HistoryEntry(entry, None, 0))
            else:
                layer = layers.pop(0)
                out.append(HistoryEntry(entry, layer.diff_id, layer.size))
        out += [HistoryEntry(History(), layer.diff_id, layer.size) for layer in layers]
        return tuple(reversed(out))

    def tag(self, source: str | Digest, name: str) -> None:
        """Give the image ``source`` (as ``get`` takes it) a further name, taken from another image if need be. Raises ImageNotFound."""
        image = self.get(str(source))
        with self._database.transaction() as connection:
            self._set_tag(connection, name, image.descriptor.digest, self._clock())

    def _set_tag(self, connection: sqlite3.Connection, name: str, digest: Digest, now: float) -> None:
        connection.execute(
            "INSERT INTO tag VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
            " image = excluded.image, updated = excluded.updated",
            (name, str(digest), now),
        )

    def touch(self, image: StoredImage) -> None:
        """Mark the image used now."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE image SET last_used = ? WHERE digest = ?", (self._clock(), str(image.descriptor.digest))
            )

    def remove(
        self,
        *references: str,
        force: bool = False,
        in_use: Callable[[StoredImage], Use | None] | None = None,
    ) -> Removal:
        """Remove what ``references`` name, by docker's rules.

        A name: it goes, and the image with it if that was its last name. An ID: all names and the image go; with several
        tags only by force. ``in_use``: asked before an image goes. Blobs stay until gc.
        ``references`` are alternatives for one image, as in ``get``. Raises ImageNotFound, AmbiguousImage, ImageInUse.
        """
        with self._database.transaction() as connection:
            image = self.get(*references)
            name = next((text for text in references if text in image.names), None)
            tags = [other for other in image.names if "@" not in other]
            if name is not None:
                going = [name]
                rest = [other for other in image.names if other != name]
                # A digest name only says where the image came from: it doesn't outlive the repository's last tag.
                repository = _repository(name)
                if not any("@" not in other and _repository(other) == repository for other in rest):
                    going += [other for other in rest if "@" in other and _repository(other) == repository]
                    rest = [other for other in rest if other not in going]
                if rest:
                    self._drop_names(connection, going)
                    return Removal(untagged=tuple(going))
            else:
                going = list(image.names)
                if len(tags) > 1 and not force:
                    raise ImageInUse(
                        references[-1], reason="image is referenced in multiple repositories", forceable=True
                    )
            use = None if in_use is None else in_use(image)
            if use is not None and not (force and use.forceable):
                raise ImageInUse(references[-1], reason=use.reason, forceable=use.forceable)
            self._drop_names(connection, going)
            if use is not None:
                # Forced although something still runs from it: docker leaves the content, without a name.
                return Removal(untagged=tuple(going))
            self._drop_image(connection, image.descriptor.digest)
            return Removal(untagged=tuple(going), deleted=(image.id(),))

    def discard(self, image: StoredImage) -> bool:
        """Forget an image with all its names, unless it has got others meanwhile. Returns whether it is gone; idempotent."""
        digest = image.descriptor.digest
        with self._database.transaction() as connection:
            names = self._database.query("SELECT name FROM tag WHERE image = ?", (str(digest),))
            if not {name for (name,) in names} <= set(image.names):
                return False
            self._drop_image(connection, digest)
        return True

    def _drop_names(self, connection: sqlite3.Connection, names: Sequence[str]) -> None:
        connection.executemany("DELETE FROM tag WHERE name = ?", [(name,) for name in names])

    def _drop_image(self, connection: sqlite3.Connection, digest: Digest) -> None:
        connection.execute("DELETE FROM tag WHERE image = ?", (str(digest),))
        connection.execute("DELETE FROM image WHERE digest = ?", (str(digest),))

    def _load(self, digests: Sequence[str]) -> tuple[StoredImage, ...]:
        if not digests:
            return ()
        narrow = len(digests) == 1
        where, only = ("WHERE {} = ?", (digests[0],)) if narrow else ("", ())
        names: dict[str, list[str]] = {}
        for name, image in self._database.query(
            f"SELECT name, image FROM tag {where.format('image')} ORDER BY name", only
        ):
            names.setdefault(image, []).append(name)
        part_rows = self._database.query(
            "SELECT image, manifest, media_type, size, config, platform, created, labels, layers"
            f" FROM image_platform {where.format('image')} ORDER BY image, position",
            only,
        )
        sizes = self._layer_sizes(part_rows, narrow=narrow)
        parts: dict[str, list[StoredPlatform]] = {}
        for row in part_rows:
            parts.setdefault(row[0], []).append(_part(row, sizes))
        heads = {
            row[0]: row
            for row in self._database.query(
                f"SELECT digest, media_type, size, annotations, stored, last_used FROM image {where.format('digest')}",
                only,
            )
        }
        return tuple(
            StoredImage(
                Descriptor(head[1], Digest.parse(head[0]), head[2], annotations=json.loads(head[3])),
                tuple(names.get(digest, ())),
                tuple(parts.get(digest, ())),
                head[4],
                head[5],
            )
            for digest in digests
            if (head := heads.get(digest)) is not None
        )

    def _layer_sizes(self, part_rows: Sequence[Row], *, narrow: bool) -> dict[str, int]:
        if not narrow:
            return dict(self._database.query(f"{_SIZES} UNION ALL SELECT diff_id, size FROM layer"))
        sizes: dict[str, int] = {}
        for diff_id in {layer[0] for row in part_rows for layer in json.loads(row[8])}:
            found = self._database.row(
                f"SELECT size FROM layer WHERE diff_id = ?1 UNION ALL SELECT size FROM ({_SIZES}) WHERE diff_id = ?1",
                (diff_id,),
            )
            if found is not None:
                sizes[diff_id] = found[0]
        return sizes


def _repository(name: str) -> str:
    """The name without its tag or digest: a colon before the last slash belongs to a port."""
    plain = name.partition("@")[0]
    head, slash, tail = plain.rpartition("/")
    return head + slash + tail.partition(":")[0]


def _part_row(image: str, position: int, part: StoredPlatform) -> tuple[str | int | None, ...]:
    layers = [[str(layer.diff_id), layer.descriptor.to_json()] for layer in part.layers]
    return (
        image,
        position,
        str(part.manifest.digest),
        part.manifest.media_type,
        part.manifest.size,
        str(part.config),
        json.dumps(part.platform.to_json()),
        part.created,
        json.dumps(dict(part.labels)),
        json.dumps(layers),
    )


def _part(row: Row, sizes: Mapping[str, int]) -> StoredPlatform:
    _, manifest, media_type, size, config, platform, created, labels, layers = row
    stored: list[StoredLayer] = []
    for diff_id, value in json.loads(layers):
        descriptor = Descriptor.from_json(value)
        stored.append(StoredLayer(Digest.parse(diff_id), descriptor, sizes.get(diff_id, descriptor.size)))
    return StoredPlatform(
        Platform.from_json(json.loads(platform)),
        Descriptor(media_type, Digest.parse(manifest), size),
        Digest.parse(config),
        created,
        tuple(stored),
        json.loads(labels),
    )
