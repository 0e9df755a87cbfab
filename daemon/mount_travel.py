"""Cache mounts that travel: ``--cache-mounts-to`` keeps them in a registry or a directory, ``--cache-mounts-from`` fills empty ones.

Owns the document that lists mounts and their packs, packing and restoring. A mount that has something in it is never touched, and one that no
step is about to use is never fetched. What the destination has already is not sent, nor compressed again. Never raises but Cancelled:
trouble is told once.

    {"version": 1, "mounts": [{"id", "mode", "uid", "gid", "files", "size", "packs": [{"diffID", "mediaType", "digest", "size"}]}]}

It is the configuration (``application/vnd.pybuild.cache-mounts.config.v1+json``) of a manifest whose layers are the packs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from pybuild.builder.cache_format import MOUNTS_TYPE, InvalidCache
from pybuild.builder.cache_specs import MountsPlace
from pybuild.builder.graph import CacheMount, Exec
from pybuild.builder.keys import nonce_of
from pybuild.builder.solver_steps import Step, StepReport
from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.blobs import BlobStore
from pybuild.layers.compression import Compression, ReadAhead, compressor, decompressed
from pybuild.layers.descriptor import OCI_LAYER_ZSTD, Descriptor, InvalidDescriptor
from pybuild.layers.digest import Digest, InvalidDigest
from pybuild.layers.image import Manifest
from pybuild.values import dataclass

from .cache_events import CacheEvents
from .cache_places import CachePlace, Layouts, NoCacheThere, RegistryPlace
from .registries import Registries

if TYPE_CHECKING:
    from pybuild.layers.entries import LayerEntry
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.layers.store import Store

_VERSION: Final = 1
_PARALLEL: Final = 4
_BUSY_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Pack:
    diff_id: Digest
    blob: Descriptor


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mount as the document has it; ``mode``, ``uid``, ``gid`` of its directory."""

    id: str
    mode: int
    uid: int
    gid: int
    files: int
    size: int
    packs: tuple[_Pack, ...]


class MountTravel:
    """The cache mounts of one build."""

    def __init__(
        self,
        *,
        sources: Sequence[MountsPlace],
        targets: Sequence[MountsPlace],
        layouts: Layouts,
        store: Store,
        snapshots: SnapshotStore,
        registries: Registries,
        events: CacheEvents,
        cancel: threading.Event,
    ) -> None:
        """``layouts``: opens the places that are directories."""
        self._layouts = layouts
        self._sources = tuple(sources)
        self._targets = tuple(targets)
        self._store = store
        self._snapshots = snapshots
        self._registries = registries
        self._events = events
        self._cancel = cancel
        self._loaded: list[tuple[CachePlace, MountsPlace, dict[str, _Mount]]] | None = None

    def _place(self, spec: MountsPlace) -> CachePlace:
        if spec.path:
            return self._layouts(spec.path, spec.tag)
        return RegistryPlace(self._registries, spec.ref, cancel=self._cancel)

    # --- restoring ----------------------------------------------------------------------------------------------------

    def before_running(self, steps: Sequence[Step]) -> None:
        """Fill the cache mounts of these steps that are empty, from the first source that has them."""
        if not self._sources:
            return
        wanted = {
            mount.id: None
            for step in steps
            if isinstance(step.op, Exec) and not nonce_of(step.op)
            for mount in _mounts(step.op)
        }
        for id in wanted:
            if self._cancel.is_set():
                raise Cancelled
            self._restore(id)

    def _restore(self, id: str) -> None:
        with self._snapshots.cache_mount(id, fresh=False) as path, _held(path, seconds=0.0) as mine:
            if not mine or os.listdir(path):
                return
            for place, spec, mounts in self._load():
                found = mounts.get(id)
                if found is None or (spec.ids and id not in spec.ids):
                    continue
                step = self._events.begin(f"[internal] restoring cache mount {id}")
                try:
                    self._fill(path, found, place)
                except Cancelled:
                    self._events.end(step, "canceled")
                    raise
                except (PybuildError, OSError) as error:
                    self._events.end(step, self._events.trouble(place.name, error))
                    continue
                self._events.count(step, f"{found.files} files", found.size)
                self._events.end(step)
                return

    def _load(self) -> list[tuple[CachePlace, MountsPlace, dict[str, _Mount]]]:
        if self._loaded is None:
            self._loaded = []
            for spec in self._sources:
                place = self._place(spec)
                try:
                    self._loaded.append((place, spec, _read(place)))
                except NoCacheThere:
                    continue
                except Cancelled:
                    raise
                except (PybuildError, OSError) as error:
                    self._events.trouble(place.name, error)
        return self._loaded

    def _fill(self, path: str, mount: _Mount, place: CachePlace) -> None:
        """Unpack everything beside the mount, then move it in: a mount is filled or empty, never half of it."""
        with self._store.active.make() as scratch:
            blobs = BlobStore(scratch)
            with ThreadPoolExecutor(_PARALLEL, "cache-mount") as pool:
                list(pool.map(lambda pack: _download(pack.blob, place, blobs), mount.packs))
            root = f"{scratch}/root"
            os.mkdir(root, 0o700)
            for pack in mount.packs:
                self._unpack(pack, blobs, root)
            for name in os.listdir(root):
                os.rename(f"{root}/{name}", f"{path}/{name}")
            with suppress(OSError):  # an ordinary user, or ids that aren't mapped
                os.chown(path, mount.uid, mount.gid)
            os.chmod(path, mount.mode)

    def _unpack(self, pack: _Pack, blobs: BlobStore, root: str) -> None:
        from pybuild.layers.unpack import unpack_layer

        hasher = hashlib.new(pack.diff_id.algorithm, usedforsecurity=False)
        with (
            blobs.open(pack.blob.digest) as content,
            ReadAhead(decompressed(content), on_chunk=hasher.update) as stream,
        ):
            unpack_layer(stream, root, ownership=self._snapshots.unpacked.ownership)
        if hasher.hexdigest() != pack.diff_id.hex:
            raise InvalidCache(f"the pack {pack.blob.digest} has other content than it should have")

    # --- keeping ------------------------------------------------------------------------------------------------------

    def save(self, reports: Sequence[StepReport]) -> None:
        """Send the cache mounts of the steps that ran."""
        used = {
            mount.id: None
            for report in reports
            if isinstance(report.step.op, Exec) and not report.cached and not report.error
            for mount in _mounts(report.step.op)
        }
        for spec in self._targets:
            ids = [id for id in used if not spec.ids or id in spec.ids]
            if not ids:
                continue
            step = self._events.begin(f"exporting cache mounts to {spec}")
            try:
                sent = self._save(spec, ids, step)
            except Cancelled:
                self._events.end(step, "canceled")
                raise
            except (PybuildError, OSError) as error:
                self._events.end(step, self._events.trouble(str(spec), error))
                continue
            self._events.count(step, "packs", sent)
            self._events.end(step)

    def _save(self, spec: MountsPlace, ids: Sequence[str], step: str) -> int:
        place = self._place(spec)
        try:
            there = _read(place)
        except NoCacheThere:
            there = {}
        known = {pack.diff_id: pack for mount in there.values() for pack in mount.packs}
        with self._store.active.make() as scratch:
            made = BlobStore(scratch)
            mounts = dict(there)
            for id in ids:
                packed = self._pack(id, spec, known, made, step)
                if packed is not None:
                    mounts[id] = packed
            ordered = [mounts[id] for id in sorted(mounts)]
            packs = {pack.blob.digest: pack.blob for mount in ordered for pack in mount.packs}
            saved = place.save(
                _document(ordered),
                list(packs.values()),
                blobs=_Made(made, packs),
                oci=True,
                config_type=MOUNTS_TYPE,
            )
        return saved.bytes_sent

    def _pack(
        self, id: str, spec: MountsPlace, known: dict[Digest, _Pack], made: BlobStore, step: str
    ) -> _Mount | None:
        from pybuild.layers.tree_packs import pack_tree
        from pybuild.layers.tree_views import DirectoryView

        with self._snapshots.cache_mount(id, fresh=False) as path, _held(path, seconds=_BUSY_SECONDS) as mine:
            if not mine:
                self._events.say(step, f"cache mount {id} is in use and stays behind")
                return None
            view = DirectoryView(path, owners=self._snapshots.unpacked.ownership.owners)
            tree = pack_tree(view, max_bytes=spec.max_size)
            root = os.stat(path)
            if tree.left_out:
                self._events.say(step, f"cache mount {id}: {tree.left_out} files used least lately stay behind")
            with ThreadPoolExecutor(_PARALLEL, "cache-mount") as pool:
                packs = tuple(pool.map(lambda entries: self._write(entries, known, made), tree.packs))
        return _Mount(id, root.st_mode & 0o7777, root.st_uid, root.st_gid, tree.files, tree.size, packs)

    def _write(self, entries: Sequence[LayerEntry], known: dict[Digest, _Pack], made: BlobStore) -> _Pack:
        from pybuild.layers.tar_write import write_tar

        if self._cancel.is_set():
            raise Cancelled
        with made.ingest() as tar:
            write_tar(entries, tar.write)
            diff_id, _ = tar.commit()
        found = known.get(diff_id)
        if found is None:
            with made.open(diff_id) as content, made.ingest() as out:
                with compressor(Compression.ZSTD, out.write, level=3, threads=1) as packer:
                    while chunk := content.read(1 << 20):
                        packer.write(chunk)
                digest, size = out.commit()
            found = _Pack(diff_id, Descriptor(OCI_LAYER_ZSTD, digest, size))
        made.delete(diff_id)
        return found


class _Made:
    """The packs as a BlobSource: those made now are here, the others are where they go already."""

    def __init__(self, made: BlobStore, packs: dict[Digest, Descriptor]) -> None:
        self._blobs = made
        self._packs = packs

    def has(self, digest: Digest) -> bool:
        return digest in self._packs

    def size(self, digest: Digest) -> int:
        return self._packs[digest].size

    def open(self, digest: Digest) -> Any:  # Any: BinaryIO, of the store that has it
        return self._blobs.open(digest)


def _mounts(op: Exec) -> Iterator[CacheMount]:
    """The cache mounts that travel: those with a first content of their own are made from it."""
    for mount in op.mounts:
        if isinstance(mount, CacheMount) and mount.input is None:
            yield mount


@contextmanager
def _held(path: str, *, seconds: float) -> Iterator[bool]:
    """Hold a mount's directory for oneself, as steps that use it do (``execute_caches.py``); False if others don't let go."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield True
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(_POLL_SECONDS)
    finally:
        os.close(descriptor)


def _download(blob: Descriptor, place: CachePlace, blobs: BlobStore) -> None:
    with blobs.ingest(expected=blob.digest, expected_size=blob.size) as ingest:
        if not ingest.exists:
            for chunk in place.chunks(blob):
                ingest.write(chunk)
            ingest.commit()


def _document(mounts: Sequence[_Mount]) -> bytes:
    value = {
        "version": _VERSION,
        "mounts": [
            {
                "id": mount.id,
                "mode": mount.mode,
                "uid": mount.uid,
                "gid": mount.gid,
                "files": mount.files,
                "size": mount.size,
                "packs": [
                    {
                        "diffID": str(pack.diff_id),
                        "mediaType": pack.blob.media_type,
                        "digest": str(pack.blob.digest),
                        "size": pack.blob.size,
                    }
                    for pack in mount.packs
                ],
            }
            for mount in mounts
        ],
    }
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _read(place: CachePlace) -> dict[str, _Mount]:
    """The mounts that a place has. Raises NoCacheThere, InvalidCache, PybuildError."""
    manifest = Manifest.from_bytes(place.manifest())
    if manifest.config.media_type != MOUNTS_TYPE:
        raise InvalidCache(f"it holds {manifest.config.media_type[:100]!r}, which are no cache mounts")
    try:
        value = json.loads(place.read(manifest.config))
        if value["version"] != _VERSION:
            raise InvalidCache(f"the cache mounts' document has version {value['version']!r}, not {_VERSION}")
        mounts = [_mount(item) for item in value["mounts"]]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, InvalidDigest, InvalidDescriptor) as error:
        raise InvalidCache(f"the cache mounts' document can't be read ({type(error).__name__}: {error})") from error
    return {mount.id: mount for mount in mounts}


def _mount(value: dict[str, Any]) -> _Mount:  # Any: the JSON edge
    numbers = [value[name] for name in ("mode", "uid", "gid", "files", "size")]
    if not isinstance(value["id"], str) or not all(isinstance(n, int) and 0 <= n < 1 << 62 for n in numbers):
        raise TypeError("a field is of another type")
    mode, uid, gid, files, size = numbers
    packs = tuple(_Pack(Digest.parse(pack["diffID"]), Descriptor.from_json(pack)) for pack in value["packs"])
    return _Mount(value["id"], mode & 0o7777, uid, gid, files, size, packs)
