"""The unpacked layers of a store: ``layers/<hex>/``, made when somebody needs files and not only bytes.

Owns that directory. Never makes layers, never looks for their bytes elsewhere than in the store.

    layers/<hex>/fs          the layer in overlay-lower form. <hex> is its diff ID's if it stands alone, else the chain ID's of the
                             stack that it was unpacked on (implied parents, hard links to lower files, and uppers of a step
                             that hold more than their tar)
    layers/<hex>/listing     of some: what the layer holds, for comparing (see difference.py)
    layers/<hex>/changes     instead of fs/, of a layer that resembles another one: changes/base names that one's directory, and
                             changes/fs over its fs/ shows the layer
    layers/<hex>/merged-<n>  the 50 layers that end with this chain ID as one (n = 1), or 50 of such (n = 2), … by hard links

Each appears by an atomic rename. Its directory's modification time is when it was last used (see leases.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from pybuild.errors import PybuildError

from .active import ActiveDirectories
from .blobs import BlobStore
from .digest import Digest
from .entries import Layer, LayerEntry
from .facts import Facts
from .layer_index import LayerIndex, LayerNotFound
from .leases import Leases
from .locks import lock_file
from .xattrs import Ownership

if TYPE_CHECKING:  # a build that finds everything in the cache looks into no layer
    from .difference import Likeness
    from .tree_views import EntryLayer, LayerSource, StackView
    from .unpack import Unpacked

_BLOCK_LAYERS: Final = 50
# overlayfs takes 500 (fs/overlayfs/ovl_entry.h); mounting and looking up cost more with each.
_STACKED_LAYERS: Final = 100
_CHAINS: Final = 16
_INDEXED_ENTRIES: Final = 100_000  # some hundred bytes each
_ENTRY_BYTES: Final = 256
_REMEMBERED_ENTRIES: Final = 50_000
_ALIKE: Final = 2
_LAYER_WEIGHT: Final = 400  # of a layer by itself, in entries: dictionaries, and a descriptor once it is read
_FACT: Final = "unpacked"


def _weight(layer: EntryLayer | None) -> int:
    return _LAYER_WEIGHT + (layer.size if layer is not None else 0)


def _distinct(paths: Sequence[str]) -> tuple[str, ...]:
    """``paths`` (lowest first) without what changes nothing, as overlayfs refuses a directory that comes twice: of equal layers the
    topmost shows all that a lower one could, and whatever hides that in between is below it."""
    last = {path: position for position, path in enumerate(paths)}
    return tuple(path for position, path in enumerate(paths) if last[path] == position)


class WrongDiffId(PybuildError):
    """A layer's content is not what the image configuration says."""

    def __init__(self, expected: Digest, *, found: Digest) -> None:
        super().__init__(
            f"the layer's content has the diff ID {found}, not {expected}",
            hint="the image is damaged, or its configuration belongs to other layers",
        )
        self.expected = expected
        self.found = found


class _NotYet(Exception):
    """A layer needs lower ones that are still on their way."""


class UnpackedLayers:
    """Finds, makes and hands out unpacked layers. A stack is a sequence of diff IDs, lowest first."""

    def __init__(
        self,
        root: Path,
        *,
        blobs: BlobStore,
        index: LayerIndex,
        leases: Leases,
        active: ActiveDirectories,
        facts: Facts | None = None,
    ) -> None:
        """``facts``: where it is remembered which unpacked layer others may resemble; without it none is compared."""
        self._layers = os.fspath(root / "layers")
        self._locks = root / "locks"
        self._blobs = blobs
        self._index = index
        self._leases = leases
        self._active = active
        self._chains: list[tuple[tuple[Digest, ...], list[Digest]]] = []
        # What was found and touched during the lease of this epoch.
        self._epoch: int | None = None
        self._known: set[str] = set()
        self._found: dict[Digest, tuple[str, ...]] = {}
        self._facts = facts
        self._alike: dict[Digest, Likeness] = {}
        self._last: tuple[Digest, Sequence[LayerEntry], Sequence[int]] | None = None
        self._indexed: dict[Digest, EntryLayer | None] = {}
        self._written: dict[Digest, tuple[int, Sequence[LayerEntry], Sequence[int]]] = {}
        self._guard = threading.Lock()

    @cached_property
    def ownership(self) -> Ownership:
        """What this process may do to files of the store."""
        return Ownership.probe(self._layers)

    # --- names --------------------------------------------------------------------------------------------------------

    def chain(self, stack: Sequence[Digest]) -> list[Digest]:
        """The chain ID of every prefix (image specification, ``config.md``)."""
        wanted = tuple(stack)
        out: list[Digest] = []
        # Stacks grow at their end: most of a deep one was computed for the step before.
        for known, chain in reversed(self._chains):
            common = min(len(known), len(wanted))
            if common > len(out) and known[:common] == wanted[:common]:
                out = chain[:common]
                if common == len(wanted):
                    return out
        for diff_id in wanted[len(out) :]:
            out.append(diff_id if not out else Digest.of(f"{out[-1]} {diff_id}".encode()))
        with self._guard:
            self._chains.append((wanted, out[:]))
            del self._chains[:-_CHAINS]
        return out

    def _refresh(self) -> None:
        epoch = self._leases.epoch
        if epoch is None or epoch != self._epoch:
            self._known, self._found, self._epoch = set(), {}, epoch

    def _present(self, path: str) -> bool:
        """True if ``layers/<path>`` is there; it is then kept for the running lease."""
        self._refresh()
        if path in self._known:
            return True
        full = f"{self._layers}/{path}"
        if not os.path.isdir(full):
            return False
        with self._leases.shared():
            try:
                os.utime(os.path.dirname(full))
            except FileNotFoundError:
                return False
            if not os.path.isdir(full):
                return False
        self._known.add(path)
        return True

    def _find(self, diff_id: Digest, chain_id: Digest) -> tuple[str, ...] | None:
        """The directory of a layer: one, or that of a similar layer and what differs, lowest first."""
        self._refresh()
        found = self._found.get(chain_id)
        if found is not None:
            return found
        for name in (chain_id.hex, diff_id.hex):
            found = self._directories_of(name)
            if found is not None:
                self._found[chain_id] = found
                return found
        return None

    def _directories_of(self, name: str) -> tuple[str, ...] | None:
        if self._present(f"{name}/fs"):
            return (f"{self._layers}/{name}/fs",)
        if self._facts is None or not self._present(f"{name}/changes"):
            return None
        changes = f"{self._layers}/{name}/changes"
        with open(f"{changes}/base", encoding="ascii") as file:
            base = file.read()
        # gc knows nothing of this tie: without its base the difference is worth nothing, and the layer is unpacked whole.
        return (f"{self._layers}/{base}/fs", f"{changes}/fs") if self._present(f"{base}/fs") else None

    # --- handing out --------------------------------------------------------------------------------------------------

    def sources(self, stack: Sequence[Digest]) -> list[LayerSource | str]:
        """Something to look at for every layer: its directory, or its tar; unpacks only what is neither."""
        out: list[LayerSource | str] = []
        for position, (diff_id, chain_id) in enumerate(zip(stack, self.chain(stack), strict=True)):
            found = self._find(diff_id, chain_id)
            indexed = None if found is not None else self._index_of(diff_id)
            if indexed is not None:
                out.append(indexed)
            else:
                out += found or self._unpack(stack[: position + 1], chain_id)
        return out

    def view(self, stack: Sequence[Digest]) -> StackView:
        """What the stack shows."""
        from .tree_views import StackView

        return StackView(self.sources(stack), owners=self.ownership.owners)

    def remember(self, diff_id: Digest, entries: Sequence[LayerEntry], offsets: Sequence[int]) -> None:
        """Keep what is known of a layer's tar that was just written, so that looking at it needs no reading of it."""
        with self._guard:
            # For ``resembles``, which is told at once or never.
            self._last = (diff_id, entries, offsets)
        weight = _LAYER_WEIGHT + len(entries) + sum(len(entry.data) for entry in entries if entry.data) // _ENTRY_BYTES
        if weight > _REMEMBERED_ENTRIES:
            return
        with self._guard:
            self._written[diff_id] = (weight, entries, offsets)
            while sum(each[0] for each in self._written.values()) > _REMEMBERED_ENTRIES:
                del self._written[next(iter(self._written))]

    def _index_of(self, diff_id: Digest) -> EntryLayer | None:
        if self._index.tar_blob(diff_id) is None:
            # Perhaps gc took the tar since it was looked at.
            with self._guard:
                self._indexed.pop(diff_id, None)
            return None
        with self._guard:
            if diff_id in self._indexed:
                found = self._indexed.pop(diff_id)
                self._indexed[diff_id] = found  # the last of the dictionary was used last
                return found
        from .tar_index import index_tar
        from .tree_views import EntryLayer

        tar = os.fspath(self._blobs.path(diff_id))
        with self._guard:
            written = self._written.pop(diff_id, None)
        found = index_tar(tar) if written is None else EntryLayer(written[1], tar=tar, offsets=written[2])
        with self._guard:
            self._indexed[diff_id] = found
            while len(self._indexed) > 1 and sum(map(_weight, self._indexed.values())) > _INDEXED_ENTRIES:
                del self._indexed[next(iter(self._indexed))]
        return found

    def directories(self, stack: Sequence[Digest]) -> tuple[str, ...]:
        """The directories of all layers, unpacked as far as needed; of a deep stack the lower part is merged."""
        chains = self.chain(stack)
        found = [self._find(diff_id, chain_id) for diff_id, chain_id in zip(stack, chains, strict=True)]
        missing = [position for position, path in enumerate(found) if path is None]
        if len(missing) == 1:
            found[missing[0]] = self._unpack(stack[: missing[0] + 1], chains[missing[0]])
        elif missing:
            from concurrent.futures import ThreadPoolExecutor

            # Decompression and hashing leave the interpreter to others: more threads than cores gain nothing.
            with ThreadPoolExecutor(min(len(missing), len(os.sched_getaffinity(0)), 4), "unpack") as pool:
                made = pool.map(lambda position: self._unpack(stack[: position + 1], chains[position]), missing)
                for position, path in zip(missing, made, strict=True):
                    found[position] = path
        paths = [path for path in found if path is not None]
        if sum(map(len, paths)) > _STACKED_LAYERS:
            # Merged directories stand for whole layers.
            for position, path in enumerate(paths):
                if len(path) > 1:
                    paths[position] = self._unpack(stack[: position + 1], chains[position], whole=True)
            return self._within_limits([path for (path,) in paths], chains)
        return _distinct([path for several in paths for path in several])

    # --- making -------------------------------------------------------------------------------------------------------

    def _unpack(self, stack: Sequence[Digest], chain_id: Digest, *, whole: bool = False) -> tuple[str, ...]:
        diff_id = stack[-1]
        likeness = self._alike.get(diff_id)
        # By chain ID: whoever waits here with a lock of its own waits for a shorter stack, so never in a circle.
        with lock_file(self._locks / f"unpack-{chain_id.hex}", transient=True):
            found = self._find(diff_id, chain_id)
            if found is not None and not (whole and len(found) > 1):
                return found
            if likeness is not None and not whole:
                found = self._unpack_difference(stack, chain_id, likeness)
                if found is not None:
                    self._alike.pop(diff_id, None)
                    return found
            blobs = self._index.blobs(diff_id)
            if blobs:
                with self._blobs.open(blobs[0].digest) as content:
                    self._apply(stack, chain_id, content, verify=blobs[0].digest != diff_id)
            elif self._index.tar_blob(diff_id) is not None:
                with self._blobs.open(diff_id) as content:
                    self._apply(stack, chain_id, content, verify=False)
            else:
                raise LayerNotFound(diff_id)
        self._found.pop(chain_id, None)
        found = self._find(diff_id, chain_id)
        if found is None:
            raise LayerNotFound(diff_id)
        if likeness is not None:
            self._keep_listing(diff_id, likeness, found)
            self._alike.pop(diff_id, None)
        return found

    def resembles(self, diff_id: Digest, *, key: str, contents: Mapping[str, str]) -> None:
        """Tell of a layer that was just made: layers of the same ``key`` probably resemble it; ``contents``: the sha256 (hex) of files that it
        was made of, by their path on this machine."""
        with self._guard:
            last, self._last = self._last, None
            written = (
                last[1:] if last is not None and last[0] == diff_id else self._written.get(diff_id, (0, (), ()))[1:]
            )
        entries, offsets = written
        if self._facts is None or not entries:
            return
        from .difference import WORTHWHILE, Likeness, listing

        lines = listing(entries, contents) if len(entries) >= WORTHWHILE else None
        if lines is not None:
            with self._guard:
                self._alike[diff_id] = Likeness(key, entries, offsets, lines)
                if len(self._alike) > _ALIKE:
                    del self._alike[next(iter(self._alike))]

    def _keep_listing(self, diff_id: Digest, likeness: Likeness, found: tuple[str, ...]) -> None:
        """Remember a whole layer as one that later ones may resemble."""
        assert self._facts is not None
        if found != (f"{self._layers}/{diff_id.hex}/fs",):
            return
        from .difference import encode

        with self._active.make() as directory:
            path = f"{directory}/listing"
            with open(path, "wb") as file:
                file.write(encode(likeness.lines))
            self.publish(path, diff_id, part="listing")
        self._facts.put(_FACT, likeness.key, value=str(diff_id))

    def _unpack_difference(
        self, stack: Sequence[Digest], chain_id: Digest, likeness: Likeness
    ) -> tuple[str, ...] | None:
        """Unpack only what differs from a layer that is there; None if there is none that helps."""
        from .difference import difference, read_listing
        from .tar_write import write_tar
        from .unpack import unpack_layer

        assert self._facts is not None
        diff_id = stack[-1]
        fact = self._facts.get(_FACT, likeness.key)
        if fact is None or self._index.tar_blob(diff_id) is None:
            return None
        base = Digest.parse(fact.value).hex
        old = read_listing(f"{self._layers}/{base}/listing") if self._present(f"{base}/fs") else None
        if old is None:
            return None
        tar = os.fspath(self._blobs.path(diff_id))
        view: list[StackView] = []

        def is_below(path: str) -> bool:
            view[:] = view or [self.view(stack[:-1])]
            return view[0].lookup(path) is not None

        found = difference(likeness, old, tar=tar, is_below=is_below)
        if found is None:
            return None
        entries, anywhere = found
        if not anywhere and chain_id == diff_id:
            return None  # the lowest layer of a stack: under its only name others would find it on higher places, too
        with self._active.make() as directory:
            changes = f"{directory}/changes"
            os.makedirs(f"{changes}/fs", 0o755)
            os.chmod(f"{changes}/fs", 0o755)
            with open(f"{changes}/base", "x", encoding="ascii") as file:
                file.write(base)
            with open(f"{directory}/tar", "x+b") as part:
                write_tar(entries, part.write)
                part.seek(0)
                unpack_layer(part, f"{changes}/fs", ownership=self.ownership)
            self.publish(changes, diff_id if anywhere else chain_id, part="changes")
        return self._find(diff_id, chain_id)

    def unpack_stream(self, stack: Sequence[Digest], stream: BinaryIO) -> Layer:
        """Unpack the topmost layer of ``stack`` from its blob's bytes as they arrive, whatever they are compressed with.

        The layers below are only asked for if the layer does not stand alone; if they aren't in the store yet, the layer is verified
        all the same and left to be unpacked from its blob when it is needed. Returns the layer, not registered. Raises
        WrongDiffId (and nothing is kept), InvalidTar, InvalidLayer, CorruptStream, and what ``stream`` raises.
        """
        return self._apply(stack, self.chain(stack)[-1], stream, verify=True, may_wait=True)

    def _apply(
        self, stack: Sequence[Digest], chain_id: Digest, content: BinaryIO, *, verify: bool, may_wait: bool = False
    ) -> Layer:
        from .decompression import ReadAhead, decompressed
        from .unpack import unpack_layer

        diff_id = stack[-1]
        hasher = hashlib.new(diff_id.algorithm, usedforsecurity=False)
        size = 0

        def account(chunk: bytes) -> None:
            nonlocal size
            size += len(chunk)
            if verify:
                hasher.update(chunk)

        with self._active.make() as directory:
            target = f"{directory}/fs"
            os.mkdir(target, 0o755)
            os.chmod(target, 0o755)
            unpacked: Unpacked | None
            with ReadAhead(decompressed(content), on_chunk=account) as stream:
                try:
                    unpacked = unpack_layer(
                        stream, target, ownership=self.ownership, lower=lambda: self._below(stack[:-1], may_wait)
                    )
                except _NotYet:
                    unpacked = None
                    while stream.next_chunk():
                        continue
            if verify and hasher.hexdigest() != diff_id.hex:
                raise WrongDiffId(diff_id, found=Digest(diff_id.algorithm, hasher.hexdigest()))
            if unpacked is not None:
                self.publish(target, diff_id if unpacked.stands_alone else chain_id)
        return Layer(diff_id, size, empty=unpacked is not None and unpacked.entries == 0)

    def _below(self, stack: Sequence[Digest], may_wait: bool) -> StackView:
        try:
            return self.view(stack)
        except LayerNotFound:
            if may_wait:
                raise _NotYet from None
            raise

    def publish(self, directory: str, name: Digest, *, part: str = "fs") -> None:
        """Move a finished directory, on the store's file system, to its place. If somebody was faster it stays where it is."""
        home = f"{self._layers}/{name.hex}"
        with self._leases.shared():
            try:
                os.mkdir(home, 0o755)
            except FileExistsError:
                os.utime(home)
            try:
                os.rename(directory, f"{home}/{part}")
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    # --- deep stacks --------------------------------------------------------------------------------------------------

    def _within_limits(self, paths: list[str], chains: Sequence[Digest]) -> tuple[str, ...]:
        """Replace the lower part of a deep stack, in blocks, by merged directories. A block is merged once for all stacks that share it,
        so the cost per layer stays the same however deep the stack grows."""
        parts = list(zip(paths, chains, strict=True))
        level = 1
        while len(parts) > _STACKED_LAYERS:
            count = (len(parts) - _BLOCK_LAYERS) // _BLOCK_LAYERS
            blocks = [parts[n * _BLOCK_LAYERS : (n + 1) * _BLOCK_LAYERS] for n in range(count)]
            merged = [
                (self._merged([path for path, _ in block], block[-1][1], level), block[-1][1]) for block in blocks
            ]
            parts = [*merged, *parts[count * _BLOCK_LAYERS :]]
            level += 1
        return _distinct([path for path, _ in parts])

    def _merged(self, paths: list[str], chain_id: Digest, level: int) -> str:
        from .trees import merge_layers

        part = f"merged-{level}"
        place = f"{chain_id.hex}/{part}"
        if not self._present(place):
            with lock_file(self._locks / f"merge-{chain_id.hex}", transient=True):
                if not self._present(place):
                    with self._active.make() as directory:
                        target = f"{directory}/{part}"
                        os.mkdir(target, 0o755)
                        merge_layers(paths, target, opaque=self.ownership.opaque)
                        self.publish(target, chain_id, part=part)
        return f"{self._layers}/{place}"
