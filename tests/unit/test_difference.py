"""A layer that resembles an unpacked one is unpacked as its difference: with it over the other the same files are seen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.layers.difference import Likeness, difference, encode, listing, read_listing
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind, Layer, LayerEntry
from pybuild.layers.gc import Collector, PrunePolicy
from pybuild.layers.layer_sources import EntryLayer
from pybuild.layers.snapshots import SnapshotStore
from pybuild.layers.store import Store
from pybuild.layers.tar_write import write_tar
from pybuild.layers.tree_views import StackView
from pybuild.layers.trees import remove_tree
from pybuild.layers.views import FileView
from pybuild.layers.xattrs import Owners
from pybuild.values import replace

NAMES = st.sampled_from(["a", "b", "c"])
Tree = dict[str, LayerEntry]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Plain entries by path, all parents included."""
    out: Tree = {}
    for parts in draw(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=12)):
        path = "/".join(parts)
        parents = ["/".join(parts[:length]) for length in range(1, len(parts))]
        if any(out[parent].kind is not Kind.DIRECTORY for parent in parents if parent in out) or path in out:
            continue
        for parent in parents:
            out.setdefault(parent, LayerEntry(parent, Kind.DIRECTORY, mode=draw(st.sampled_from([0o755, 0o700]))))
        kind = draw(st.sampled_from([Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK]))
        mtime = draw(st.sampled_from([0, 10**9]))
        match kind:
            case Kind.FILE:
                data = draw(st.sampled_from([b"", b"x", b"yy"]))
                out[path] = LayerEntry(path, kind, mode=0o644, data=data, size=len(data), mtime_ns=mtime)
            case Kind.SYMLINK:
                out[path] = LayerEntry(path, kind, mode=0o777, link=draw(NAMES))
            case _:
                out[path] = LayerEntry(path, kind, mtime_ns=mtime)
    return out


def shown(view: FileView, path: str = "") -> dict[str, object]:
    """All that can be seen of a view."""
    out: dict[str, object] = {}
    for name, node in view.children(path):
        where = f"{path}/{name}" if path else name
        data = b""
        if node.kind is Kind.FILE:
            with view.open(where) as file:
                data = file.read()
        out[where] = (node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.target, data)
        if node.kind is Kind.DIRECTORY:
            out |= shown(view, where)
    return out


def likeness(tree: Tree, tar: Path) -> Likeness:
    with tar.open("wb") as file:
        summary = write_tar(tree.values(), file.write)
    lines = listing(summary.ordered, {})
    assert lines is not None
    return Likeness("key", summary.ordered, summary.offsets, lines)


@settings(deadline=None, max_examples=400)
@given(below=trees(), old=trees(), new=trees(), keep=st.integers(0, 12))
def test_the_difference_over_the_old_layer_shows_the_new_one_on_any_stack_it_is_good_for(
    tmp_path_factory: pytest.TempPathFactory, below: Tree, old: Tree, new: Tree, keep: int
) -> None:
    # Much in common, as it is with layers that are compared.
    shared = dict(list(old.items())[:keep])
    parents = {path for path, entry in shared.items() if entry.kind is not Kind.DIRECTORY}
    new = {p: e for p, e in new.items() if not any(p.startswith(other + "/") for other in parents)} | shared
    new = {p: e for p, e in new.items() if all(new.get(q, e).kind is Kind.DIRECTORY for q in ancestors(p))}
    directory = tmp_path_factory.mktemp("difference")
    made = likeness(new, directory / "new.tar")
    lower = StackView([EntryLayer(below.values())], owners=Owners.NATIVE)
    found = difference(
        made,
        likeness(old, directory / "old.tar").lines,
        tar=os.fspath(directory / "new.tar"),
        is_below=lambda path: lower.lookup(path) is not None,
    )
    if found is None:
        return
    entries, anywhere = found
    for bottom in [below, {}] if anywhere else [below]:
        layers = [EntryLayer(tree.values()) for tree in (bottom, old)]
        together = StackView([*layers, EntryLayer(entries)], owners=Owners.NATIVE)
        whole = StackView([layers[0], EntryLayer(new.values())], owners=Owners.NATIVE)
        assert shown(together) == shown(whole)


def ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def test_a_listing_survives_its_file(tmp_path: Path) -> None:
    tree = {"d": LayerEntry("d", Kind.DIRECTORY), "d/\udcff": LayerEntry("d/\udcff", Kind.FILE, data=b"x", size=1)}
    lines = listing(list(tree.values()), {})
    assert lines is not None
    (tmp_path / "listing").write_bytes(encode(lines))
    assert read_listing(os.fspath(tmp_path / "listing")) == lines
    assert read_listing(os.fspath(tmp_path / "missing")) is None


@pytest.mark.parametrize(
    "entry",
    [
        LayerEntry("f", Kind.WHITEOUT),
        LayerEntry("f", Kind.HARDLINK, link="g"),
        LayerEntry("f", Kind.CHARACTER, device=(1, 3)),
        LayerEntry("f", Kind.FILE, host_path="/unknown", size=1),
        LayerEntry("f", Kind.FILE, data=b"x", xattrs=(("security.capability", b"c"),)),
        LayerEntry("new\nline", Kind.FILE, data=b"x"),
    ],
)
def test_layers_that_are_not_plain_are_not_compared(entry: LayerEntry) -> None:
    assert listing([entry], {}) is None


# --- in a store ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", clock=time.time) as opened:
        with opened.lease():
            yield opened
    remove_tree(os.fspath(tmp_path / "store"))


def snapshots_of(store: Store) -> SnapshotStore:
    return SnapshotStore(
        store.root,
        blobs=store.blobs,
        layers=store.layers,
        leases=store.leases,
        cache_mounts=store.cache_mounts,
        active=store.active,
        facts=store.facts,
    )


class Context:
    """300 files on this machine that a COPY would take."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        for number in range(300):
            (root / f"f{number}").write_text(f"content {number}")

    def copy(self, snapshots: SnapshotStore, stack: Sequence[Digest] = ()) -> Layer:
        entries = [LayerEntry("src", Kind.DIRECTORY)]
        contents: Mapping[str, str] = {}
        for path in sorted(self.root.iterdir()):
            size = path.stat().st_size
            entries.append(LayerEntry(f"src/{path.name}", Kind.FILE, mode=0o644, size=size, host_path=os.fspath(path)))
            contents = {**contents, os.fspath(path): Digest.of(path.read_bytes()).hex}
        layer = snapshots.write_layer(stack, entries)
        snapshots.resembles(layer, key="COPY . /src", contents=contents)
        return layer


def files(paths: Sequence[str]) -> dict[str, object]:
    return shown(StackView(paths, owners=Owners.NATIVE))


def whole(store: Store, layer: Layer, stack: Sequence[Digest] = ()) -> dict[str, object]:
    """What the layer shows by its tar alone."""
    return shown(snapshots_of(store).unpacked.view((*stack, layer.diff_id)))


def test_only_what_changed_is_unpacked(store: Store, tmp_path: Path) -> None:
    snapshots, context = snapshots_of(store), Context(tmp_path / "context")
    first = context.copy(snapshots)
    with snapshots.directories([first.diff_id]) as paths:
        assert len(paths) == 1
    (context.root / "f7").write_text("changed")
    (context.root / "new").write_text("new")
    second = context.copy(snapshots)
    with snapshots.directories([second.diff_id]) as paths:
        base, changes = paths
        assert sorted(os.listdir(f"{changes}/src")) == ["f7", "new"]
        seen = files(paths)
    assert Path(base).parent.name == first.diff_id.hex
    assert seen["src/f7"] != files([base])["src/f7"]
    assert seen == whole(store, second)
    # Another process finds it, too.
    with snapshots_of(store).directories([second.diff_id]) as again:
        assert again == paths


def test_a_removed_file_is_whited_out_where_nothing_is_below(store: Store, tmp_path: Path) -> None:
    snapshots, context = snapshots_of(store), Context(tmp_path / "context")
    with snapshots.directories([context.copy(snapshots).diff_id]):
        pass
    (context.root / "f7").unlink()
    second = context.copy(snapshots)
    bottom = snapshots.write_layer((), [LayerEntry("other", Kind.DIRECTORY)])
    with snapshots.directories([bottom.diff_id, second.diff_id]) as paths:
        assert len(paths) == 3
        assert files(paths) == whole(store, second, [bottom.diff_id])
    # On a stack that has the removed path the layer doesn't hide it: there it is unpacked whole.
    below = snapshots.write_layer(
        (), [LayerEntry("src", Kind.DIRECTORY), LayerEntry("src/f7", Kind.FILE, data=b"below")]
    )
    stack = [below.diff_id, second.diff_id]
    with snapshots.directories(stack) as paths:
        assert len(paths) == 2
        assert "src/f7" in files(paths)


def test_without_its_base_a_layer_is_unpacked_whole(store: Store, tmp_path: Path) -> None:
    snapshots, context = snapshots_of(store), Context(tmp_path / "context")
    first = context.copy(snapshots)
    with snapshots.directories([first.diff_id]):
        pass
    (context.root / "f7").write_text("changed")
    second = context.copy(snapshots)
    with snapshots.directories([second.diff_id]) as paths:
        assert len(paths) == 2
    remove_tree(os.fspath(store.root / "layers" / first.diff_id.hex))
    with snapshots_of(store).directories([second.diff_id]) as paths:
        assert len(paths) == 1
        assert files(paths) == whole(store, second)


def test_in_a_deep_stack_layers_are_unpacked_whole(store: Store, tmp_path: Path) -> None:
    snapshots, context = snapshots_of(store), Context(tmp_path / "context")
    with snapshots.directories([context.copy(snapshots).diff_id]):
        pass
    (context.root / "f7").write_text("changed")
    second = context.copy(snapshots)
    many = [snapshots.write_layer((), [LayerEntry(f"d{n}", Kind.DIRECTORY)]).diff_id for n in range(99)]
    with snapshots.directories([second.diff_id]) as paths:
        assert len(paths) == 2
    with snapshots.directories([second.diff_id, *many]) as paths:
        assert len(paths) == 100
        assert files(paths)["src/f7"] == whole(store, second)["src/f7"]


def test_gc_leaves_base_and_difference_to_running_work(store: Store, tmp_path: Path) -> None:
    snapshots, context = snapshots_of(store), Context(tmp_path / "context")
    with snapshots.directories([context.copy(snapshots).diff_id]):
        pass
    (context.root / "f7").write_text("changed")
    with snapshots.directories([context.copy(snapshots).diff_id]):
        pass
    assert len(os.listdir(store.root / "layers")) == 2
    with Store(store.root, clock=lambda: time.time() + 10_000) as later:
        Collector(later).prune(PrunePolicy(all=True))
    # What a living lease has touched stays.
    assert len(os.listdir(store.root / "layers")) == 2


def test_too_much_change_makes_a_new_base(store: Store, tmp_path: Path) -> None:
    snapshots, context = snapshots_of(store), Context(tmp_path / "context")
    with snapshots.directories([context.copy(snapshots).diff_id]):
        pass
    for number in range(200):
        (context.root / f"f{number}").write_text("all new")
    second = context.copy(snapshots)
    with snapshots.directories([second.diff_id]) as paths:
        assert len(paths) == 1
    (context.root / "f250").write_text("one more")
    with snapshots.directories([context.copy(snapshots).diff_id]) as paths:
        assert len(paths) == 2
        assert Path(paths[0]).parent.name == second.diff_id.hex


def test_entries_of_a_difference_are_read_from_the_tar(tmp_path: Path) -> None:
    tree = {"f": LayerEntry("f", Kind.FILE, data=b"new", size=3, mode=0o644)}
    made = likeness(tree, tmp_path / "tar")
    old = likeness({"f": replace(tree["f"], data=b"old")}, tmp_path / "old").lines
    assert difference(made, old, tar="x", is_below=lambda path: False) is None  # more than half has changed
    many = {f"g{n}": LayerEntry(f"g{n}", Kind.FILE, data=b"same", size=4) for n in range(3)}
    made = likeness(tree | many, tmp_path / "tar")
    old = likeness({"f": replace(tree["f"], data=b"old")} | many, tmp_path / "old").lines
    found = difference(made, old, tar=os.fspath(tmp_path / "tar"), is_below=lambda path: False)
    assert found is not None
    ((entry,), anywhere) = found
    assert anywhere
    assert entry.host_path == os.fspath(tmp_path / "tar")
    assert entry.offset == made.offsets[0]
