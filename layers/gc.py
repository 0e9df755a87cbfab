"""Garbage collection: what nothing needs any more goes, and of the build cache what was used least lately.

Owns deciding and deleting. Never takes what an image, a cache record that stays, or running work needs (see leases.py); never decides
about containers: who calls says which images they use.

Everything is decided and unlinked while ``locks/gc`` is held exclusively: first the files, then the rows in one transaction. A kill
in between leaves cache records without layers, which count as misses, and a full disk has room for the transaction. Trees are
renamed into ``active/`` and removed after the lock is released.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from pybuild.values import dataclass, replace

from .blobs import StoreFull
from .database import StoreBusy
from .digest import Digest
from .facts import Fact
from .images import Images, StoredImage, Use
from .store import PARTIAL_SECONDS, Store
from .survey import (
    RecordRow,
    Survey,
    fact_id,
    live_names,
    rows_of,
    take_survey,
    tree_size,
    usage_of,
)
from .usage import CacheUsage, Usage, UsageFilter, UsageType

_EVICTED_KEPT = 20_000
_FILE_DIGESTS_KEPT = 2_000_000


@dataclass(frozen=True, slots=True)
class PrunePolicy:
    """What of the build cache may stay.

    ``filters``: only rows that match one of them go (none: all rows); ``keep_duration_seconds``: what was used within it stays;
    ``max_used_bytes``, ``reserved_bytes``, ``min_free_bytes``: as BuildKit's gc policy (0: not set): with any of them, rows go one
    by one, the least lately used first, until the cache is small enough. ``all``: also internal rows and what images share.
    """

    filters: tuple[UsageFilter, ...] = ()
    keep_duration_seconds: float = 0.0
    max_used_bytes: int = 0
    reserved_bytes: int = 0
    min_free_bytes: int = 0
    all: bool = False


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What went, or would go: the rows, and the bytes that this frees."""

    removed: tuple[CacheUsage, ...]
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class ImagePruneReport:
    """Names and images that went, and the bytes that this freed."""

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    freed_bytes: int


class Collector:
    """Looks after the space of one store. Works beside running builds, in any process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sizes: dict[Path, tuple[float, int]] = {}

    def usage(self) -> Usage:
        """What the store holds, by image and by row of the cache."""
        sizes = self._measure()
        with self._store.leases.exclusive():
            survey = take_survey(self._store, horizon=self._store.leases.horizon(), sizes=sizes)
        return usage_of(survey)

    def _measure(self) -> dict[Path, int]:
        """Sizes of cache mounts and kept sources; one that wasn't used since it was measured is not measured again."""
        found: dict[Path, tuple[float, int]] = {}
        uses = [(mount.directory, mount.last_used) for mount in self._store.cache_mounts.list()]
        uses += [(source.path, source.last_used) for source in self._store.kept_sources.list()]
        for path, last_used in uses:
            known = self._sizes.get(path)
            if known is None or known[0] != last_used:
                known = (last_used, tree_size(path))
            found[path] = known
        self._sizes = found
        return {path: size for path, (_, size) in found.items()}

    def collect(self) -> int:
        """Remove what nothing refers to: after images were removed, or builds were killed. Returns the bytes freed."""
        return self._run(None, dry_run=False).freed_bytes

    def prune(self, policy: PrunePolicy, *, dry_run: bool = False) -> PruneReport:
        """Remove from the build cache what ``policy`` doesn't keep, and what nothing refers to. Raises StoreFull, StoreBusy."""
        report = self._run(
            lambda survey, rows: self._choose(survey, rows, policy), dry_run=dry_run, everything=_takes_all(policy)
        )
        if not dry_run and _takes_all(policy):
            with suppress(StoreBusy):
                self._store.database.compact()
        return report

    def prune_images(
        self,
        *,
        all: bool = False,
        match: Callable[[StoredImage], bool] | None = None,
        in_use: Callable[[StoredImage], Use | None] | None = None,
    ) -> ImagePruneReport:
        """Remove images without a name, or ``all`` that nothing uses; ``match``: only these."""
        untagged: list[str] = []
        deleted: list[Digest] = []
        images: Images = self._store.images
        for image in images.list():
            if (image.names and not all) or (match is not None and not match(image)):
                continue
            if in_use is not None and in_use(image) is not None:
                continue
            if images.discard(image):
                untagged += image.names
                deleted.append(image.id())
        # An image may be left under another manifest.
        gone = tuple(identifier for identifier in dict.fromkeys(deleted) if not images.with_config(identifier))
        return ImagePruneReport(tuple(untagged), gone, self.collect())

    def enforce(self, max_used_bytes: int) -> int:
        """Hold the build cache to a cap, also while builds run: what they use stays. Returns the bytes freed."""
        return self.prune(PrunePolicy(max_used_bytes=max_used_bytes, all=True)).freed_bytes

    def _run(
        self,
        choose: Callable[[Survey, list[CacheUsage]], list[CacheUsage]] | None,
        *,
        dry_run: bool,
        everything: bool = False,
    ) -> PruneReport:
        try:
            return self._run_once(choose, dry_run=dry_run, everything=everything)
        except StoreFull:
            if dry_run:
                raise
            # The files are gone by now, so there is room for the database to forget them.
            return self._run_once(choose, dry_run=dry_run, everything=everything)

    def _run_once(
        self, choose: Callable[[Survey, list[CacheUsage]], list[CacheUsage]] | None, *, dry_run: bool, everything: bool
    ) -> PruneReport:
        sizes = self._measure()
        with ExitStack() as stack:
            trash = None if dry_run else stack.enter_context(self._store.active.make())
            with self._store.leases.exclusive():
                survey = take_survey(self._store, horizon=self._store.leases.horizon(), sizes=sizes)
                # Without a choice the rows are not needed, which there may be many of.
                rows = [] if choose is None else rows_of(survey)
                plan = _Plan(survey, [] if choose is None else choose(survey, rows), everything=everything)
                if trash is not None:
                    mounts = self._unlink(survey, plan, trash)
                    self._forget(survey, plan, mounts=mounts, everything=everything)
            if not dry_run:
                now = self._store.clock()
                self._store.blobs.sweep(partial_older_than=now + 1.0 if everything else now - PARTIAL_SECONDS)
                self._store.active.sweep()
                self._store.sweep_locks()
        return PruneReport(tuple(filter(plan.removes, rows)), plan.freed_bytes)

    # --- deciding -----------------------------------------------------------------------------------------------------

    def _choose(self, survey: Survey, rows: list[CacheUsage], policy: PrunePolicy) -> list[CacheUsage]:
        total = sum(row.size for row in rows if not row.shared)
        keep = self._bytes_to_keep(policy, total)
        if keep is not None and total <= keep:
            return []
        now = self._store.clock()
        candidates = [
            row
            for row in rows
            if not row.in_use
            and (policy.all or not (row.shared or row.type is UsageType.INTERNAL))
            and not (
                policy.keep_duration_seconds
                and now - max(row.last_used or 0.0, row.created) < policy.keep_duration_seconds
            )
            and (not policy.filters or any(each.matches(row, now=now) for each in policy.filters))
        ]
        if keep is None:
            return candidates
        depth = {diff_id: n for record in survey.records for n, diff_id in enumerate(record.layers)}
        # A layer was used when whatever lies on it was: so what is on top is never younger, and goes first.
        candidates.sort(key=lambda row: (row.last_used or row.created, -depth.get(f"sha256:{row.id}", 0), row.id))
        chosen: list[CacheUsage] = []
        for row in candidates:
            if total <= keep:
                break
            chosen.append(row)
            total -= 0 if row.shared else row.size
        return chosen

    def _bytes_to_keep(self, policy: PrunePolicy, total: int) -> int | None:
        """BuildKit's rule (its gc policy documentation): at most ``max_used``, less if the disk needs room, at least ``reserved``."""
        if not (policy.max_used_bytes or policy.reserved_bytes or policy.min_free_bytes):
            return None
        keep = policy.max_used_bytes
        if policy.min_free_bytes:
            free = shutil.disk_usage(self._store.root).free
            excess = policy.min_free_bytes - free
            if excess > 0:
                keep = total - excess if keep == 0 else min(keep, total - excess)
            elif keep == 0:
                keep = total
        return max(keep, policy.reserved_bytes)

    # --- doing --------------------------------------------------------------------------------------------------------

    def _forget(self, survey: Survey, plan: _Plan, *, mounts: Sequence[str], everything: bool) -> None:
        now = self._store.clock()
        with self._store.database.transaction() as connection:
            connection.executemany(
                "DELETE FROM cache_record WHERE key = ?", [(record.key,) for record in plan.dead_records]
            )
            connection.executemany(
                "INSERT OR REPLACE INTO cache_evicted VALUES (?, ?)",
                [(record.key, now) for record in plan.dead_records],
            )
            connection.execute(
                "DELETE FROM cache_evicted WHERE key NOT IN (SELECT key FROM cache_evicted ORDER BY time DESC LIMIT ?)",
                (_EVICTED_KEPT,),
            )
            connection.executemany("DELETE FROM cache_mount WHERE directory = ?", [(name,) for name in mounts])
            connection.executemany("DELETE FROM layer WHERE diff_id = ?", [(diff_id,) for diff_id in plan.dead_layers])
            connection.executemany(
                "DELETE FROM remote_layer WHERE diff_id = ?", [(diff_id,) for diff_id in plan.dead_layers]
            )
            connection.executemany(
                "DELETE FROM layer_blob WHERE digest = ?",
                [(text,) for (text,) in connection.execute("SELECT DISTINCT digest FROM layer_blob").fetchall()
                 if Digest.parse(text) not in survey.blobs or Digest.parse(text) in plan.dead_blobs],
            )  # fmt: skip
            connection.execute(
                "DELETE FROM blob_origin WHERE seen < ? AND digest NOT IN (SELECT digest FROM layer_blob)"
                " AND digest NOT IN (SELECT digest FROM remote_layer)",
                (float("inf") if survey.horizon is None else survey.horizon,),
            )
            connection.executemany(
                "DELETE FROM fact WHERE kind = ? AND key = ?", [(fact.kind, fact.key) for fact in plan.dead_facts]
            )
            if everything and survey.horizon is None:
                connection.execute("DELETE FROM file_digest")
            else:
                (count,) = connection.execute("SELECT count(*) FROM file_digest").fetchone()
                if count > _FILE_DIGESTS_KEPT:
                    connection.execute("DELETE FROM file_digest")

    def _unlink(self, survey: Survey, plan: _Plan, trash: Path) -> list[str]:
        """Take away files and directories. Returns the names of the cache mounts that are gone."""
        for digest in plan.dead_blobs:
            self._store.blobs.delete(digest)
        for name in plan.dead_unpacked:
            with suppress(FileNotFoundError):
                (self._store.root / "layers" / name).rename(trash / f"layer-{name}")
        mounts = {row.id for row in plan.chosen if row.type is UsageType.CACHE_MOUNT}
        gone: list[str] = []
        for name in (mount.directory.name for mount, _, _ in survey.mounts):
            if name in mounts:
                with self._store.cache_mounts.claim(name) as free:
                    if free:
                        with suppress(FileNotFoundError):
                            (self._store.root / "cache-mounts" / name).rename(trash / f"mount-{name}")
                        gone.append(name)
        chosen = {row.id for row in plan.chosen}
        for source, _, _ in survey.kept:
            if source.id in chosen:
                with self._store.kept_sources.claim(source) as free, suppress(FileNotFoundError):
                    if free:
                        source.path.rename(trash / f"kept-{source.id}")
        self._store.kept_sources.tidy()
        return gone


def _takes_all(policy: PrunePolicy) -> bool:
    return policy == replace(PrunePolicy(), all=True)


class _Plan:
    """What goes if the chosen rows go."""

    def __init__(self, survey: Survey, chosen: Sequence[CacheUsage], *, everything: bool) -> None:
        self.chosen = frozenset(chosen)
        going = {f"sha256:{row.id}" for row in chosen if row.type is UsageType.REGULAR}
        self.dead_records: list[RecordRow] = []
        live_records: list[RecordRow] = []
        for record in survey.records:
            dead = everything if not record.layers else bool(going.intersection(record.layers))
            (self.dead_records if dead else live_records).append(record)
        image_stacks = [tuple(map(str, part.diff_ids)) for image, _ in survey.images for part in image.platforms]
        live_stacks = [*image_stacks, *(record.layers for record in live_records)]
        live_layers = {diff_id for stack in live_stacks for diff_id in stack}
        # A dead record's stack that running work has touched layer by layer may still be unpacked under chain IDs.
        held = {row.diff_id for row in survey.layers.values() if survey.in_use(row.touched)}
        live_layers |= held
        self.dead_facts: list[Fact] = []
        needed: set[Digest] = set()
        gone = {row.id for row in chosen if row.type is UsageType.SOURCE}
        gone_blobs = {digest for diff_id in going - live_layers for digest in survey.layers[diff_id].blobs}
        for fact, blobs in survey.facts:
            if (
                fact_id(fact) in gone
                or not gone_blobs.isdisjoint(blobs)
                or (everything and not survey.in_use(fact.last_used))
            ):
                self.dead_facts.append(fact)
            else:
                needed |= blobs
        # What a resolved reference stands for is kept with its layers, though no step may have used it yet.
        live_layers |= {row.diff_id for row in survey.layers.values() if not needed.isdisjoint(row.blobs)}
        self.dead_layers = {diff_id for diff_id in survey.layers if diff_id not in live_layers}
        for _, blobs in survey.images:
            needed |= blobs
        for diff_id in live_layers:
            needed.update(survey.layers[diff_id].blobs)
        self.dead_blobs = {
            digest
            for digest, (_, touched) in survey.blobs.items()
            if digest not in needed and not survey.in_use(touched)
        }
        self._dead_hex = {digest.hex for digest in self.dead_blobs}
        held_stacks = (record.layers for record in self.dead_records if held.issuperset(record.layers))
        names = live_names(itertools.chain(live_stacks, held_stacks))
        names |= {diff_id.partition(":")[2] for diff_id in live_layers}
        self.dead_unpacked = [
            name for name, touched in survey.unpacked.items() if name not in names and not survey.in_use(touched)
        ]
        unpacked_sizes = {row.diff_id: row.unpacked for row in survey.layers.values()}
        self.freed_bytes = (
            sum(survey.blobs[digest][0] for digest in self.dead_blobs)
            + sum(unpacked_sizes[diff_id] for diff_id in self.dead_layers)
            + sum(row.size for row in chosen if row.type is UsageType.CACHE_MOUNT)
            + sum(size for source, size, _ in survey.kept if source.id in {row.id for row in chosen})
        )

    def removes(self, row: CacheUsage) -> bool:
        """True of a row that was chosen, or goes because nothing refers to it then."""
        match row.type:
            case UsageType.REGULAR:
                return row in self.chosen or f"sha256:{row.id}" in self.dead_layers
            case UsageType.INTERNAL:
                return row in self.chosen or row.id in self._dead_hex
            case _:
                return row in self.chosen
