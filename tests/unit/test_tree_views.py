"""Views: what a stack of layers shows, and links that never lead out of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.tar_index import index_tar
from pybuild.layers.tar_write import write_tar
from pybuild.layers.tree_views import (
    DirectoryView,
    EntryLayer,
    LayerSource,
    NotAFile,
    StackView,
    TooManyLinks,
    resolve,
)
from pybuild.layers.views import FileView


def directory(path: str, mode: int = 0o755) -> LayerEntry:
    return LayerEntry(path, Kind.DIRECTORY, mode=mode)


def file(path: str, data: bytes = b"") -> LayerEntry:
    return LayerEntry(path, Kind.FILE, mode=0o644, data=data)


def link(path: str, target: str) -> LayerEntry:
    return LayerEntry(path, Kind.SYMLINK, link=target)


def gone(path: str) -> LayerEntry:
    return LayerEntry(path, Kind.WHITEOUT)


def on_disk(base: Path, entries: list[LayerEntry], opaque: list[str]) -> str:
    """The same layer unpacked by hand, in overlay form."""
    base.mkdir(parents=True)
    for entry in entries:
        path = base / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        match entry.kind:
            case Kind.DIRECTORY:
                path.mkdir(exist_ok=True)
                path.chmod(entry.mode)
            case Kind.FILE:
                path.write_bytes(entry.data or b"")
                path.chmod(entry.mode)
            case Kind.SYMLINK:
                path.symlink_to(entry.link)
            case Kind.HARDLINK:
                path.hardlink_to(base / entry.link)
            case _:
                os.mknod(path, stat.S_IFCHR, 0)
    for path_text in opaque:
        os.setxattr(base / path_text, "user.overlay.opaque", b"y")
    return os.fspath(base)


FORMS = ["unpacked", "entries", "mixed"]


class Stack:
    """Builds a view of the same layers in one of the forms that a layer can have."""

    def __init__(self, base: Path, form: str) -> None:
        self._base = base
        self._form = form
        self._layers: list[LayerSource | str] = []

    def add(self, *entries: LayerEntry, opaque: tuple[str, ...] = ()) -> Stack:
        number = len(self._layers)
        if self._form == "unpacked" or (self._form == "mixed" and number % 2):
            self._layers.append(on_disk(self._base / str(number), list(entries), list(opaque)))
        else:
            self._layers.append(EntryLayer(entries, opaque=opaque))
        return self

    def view(self) -> StackView:
        return StackView(self._layers)


@pytest.fixture(params=FORMS)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Stack:
    return Stack(tmp_path, request.param)


def tree(view: FileView, path: str = "") -> list[str]:
    out: list[str] = []
    for name, node in view.children(path):
        where = f"{path}/{name}" if path else name
        out.append(where + {Kind.DIRECTORY: "/", Kind.SYMLINK: "@"}.get(node.kind, ""))
        found = view.lookup(where)
        assert found is not None
        assert (found.kind, found.mode) == (node.kind, node.mode)
        out += tree(view, where)
    return out


def test_directories_of_all_layers_merge_and_the_topmost_decides(stack: Stack) -> None:
    view = (
        stack.add(directory("d", 0o700), file("d/a", b"old"), file("d/b"))
        .add(directory("d", 0o711), file("d/a", b"newer"), file("d/c"))
        .view()
    )
    assert tree(view) == ["d/", "d/a", "d/b", "d/c"]
    with view.open("d/a") as content:
        assert content.read() == b"newer"
    node = view.lookup("d")
    assert node is not None
    assert node.mode == 0o711


def test_whiteouts_hide_files_and_whole_directories(stack: Stack) -> None:
    view = (
        stack.add(directory("d"), file("d/a"), directory("d/sub"), file("d/sub/x"), file("f"))
        .add(directory("d"), gone("d/a"), gone("d/sub"), gone("f"))
        .view()
    )
    assert tree(view) == ["d/"]
    for path in ("d/a", "d/sub", "d/sub/x", "f"):
        assert view.lookup(path) is None
    with pytest.raises(NotAFile):
        view.open("f")


def test_what_comes_back_above_a_whiteout_starts_empty(stack: Stack) -> None:
    view = stack.add(directory("d"), file("d/a")).add(gone("d")).add(directory("d"), file("d/b")).view()
    assert tree(view) == ["d/", "d/b"]
    assert view.lookup("d/a") is None


def test_opaque_directories_hide_lower_ones(stack: Stack) -> None:
    view = (
        stack.add(directory("d"), file("d/a"), directory("d/s"), file("d/s/x"))
        .add(directory("d"), directory("d/s"), file("d/b"), opaque=("d",))
        .view()
    )
    assert tree(view) == ["d/", "d/b", "d/s/"]
    assert view.lookup("d/s/x") is None


def test_a_non_directory_between_directories_ends_the_merge(stack: Stack) -> None:
    view = stack.add(directory("d"), file("d/a")).add(file("d")).add(directory("d"), file("d/b")).view()
    assert tree(view) == ["d/", "d/b"]


def test_a_file_or_link_on_top_hides_a_directory(stack: Stack) -> None:
    view = (
        stack.add(directory("d"), file("d/a"), directory("e"), file("e/a")).add(file("d", b"x"), link("e", "d")).view()
    )
    assert tree(view) == ["d", "e@"]
    assert view.lookup("d/a") is None
    assert view.lookup("e/a") is None
    assert view.children("e") == ()


def test_nothing_is_found_through_a_symlink(stack: Stack) -> None:
    view = stack.add(directory("real"), file("real/f"), link("l", "real")).view()
    assert view.lookup("l/f") is None
    assert view.children("l") == ()
    with pytest.raises(NotAFile):
        view.open("l/f")
    with pytest.raises(NotAFile):
        view.open("l")


def test_hard_links_share_an_identity_that_nothing_else_has(stack: Stack) -> None:
    view = stack.add(file("a", b"x"), LayerEntry("b", Kind.HARDLINK, link="a"), file("c", b"x")).view()
    a, b, c = (view.lookup(name) for name in "abc")
    assert a
    assert b
    assert c
    assert a.identity == b.identity is not None
    assert c.identity is None
    with view.open("b") as content:
        assert content.read() == b"x"


def test_names_are_sorted_by_their_bytes(stack: Stack) -> None:
    names = ["b", "B", "ä", "a-", "a", "\udcff"]
    view = stack.add(*(file(name) for name in names)).view()
    assert [name for name, _ in view.children("")] == sorted(names, key=os.fsencode)


def test_odd_paths_are_simply_not_there(stack: Stack) -> None:
    view = stack.add(directory("d"), file("f")).view()
    for path in ("x", "d/x", "f/x", "x" * 300, "d/" + "y" * 5000):
        assert view.lookup(path) is None
        assert view.children(path) == ()
    root = view.lookup("")
    assert root is not None
    assert root.kind is Kind.DIRECTORY


def test_an_implied_directory_looks_like_the_one_below_it(tmp_path: Path) -> None:
    view = StackView([EntryLayer([directory("d", 0o711)]), EntryLayer([file("d/f"), file("e/f")])])
    assert [(name, node.mode) for name, node in view.children("")] == [("d", 0o711), ("e", 0o755)]


@pytest.mark.parametrize(
    ("path", "follow", "expected"),
    [
        ("d/f", True, "d/f"),
        ("l/f", True, "d/f"),
        ("l", True, "d"),
        ("l", False, "l"),
        ("l/", False, "l"),
        ("abs/f", True, "d/f"),
        ("d/up/f", True, "f"),
        ("far/f", True, "f"),
        ("../../d/./f", True, "d/f"),
        ("d/../l/f", True, "d/f"),
        ("dangling", True, "no/where"),
        ("dangling", False, "dangling"),
        ("dangling/below", True, "no/where/below"),
        ("missing/a/../b", True, "missing/b"),
        ("chain", True, "d"),
        ("", True, ""),
        ("/", True, ""),
        ("f/x", True, "f/x"),
    ],
)
def test_links_are_resolved_inside_the_root(stack: Stack, path: str, follow: bool, expected: str) -> None:
    view = stack.add(
        directory("d"), file("d/f"), file("f"), link("l", "d"), link("abs", "/d"), link("d/up", ".."),
        link("far", "../../../.."), link("dangling", "/no/where"), link("chain", "l"),
    ).view()  # fmt: skip
    found, node = resolve(view, path, follow_last=follow)
    assert found == expected
    assert node == view.lookup(expected)


def test_a_loop_of_links_is_an_error_and_not_an_endless_search(stack: Stack) -> None:
    view = stack.add(link("a", "b"), link("b", "a"), link("self", "self/x")).view()
    for path in ("a", "a/x", "self"):
        with pytest.raises(TooManyLinks):
            resolve(view, path, follow_last=True)


def test_a_plain_directory_is_shown_as_it_is(tmp_path: Path) -> None:
    root = on_disk(
        tmp_path / "r", [directory("d"), file("d/f", b"x"), link("l", "/etc"), file(".wh.f"), gone("null")], []
    )
    view = DirectoryView(root)
    assert tree(view) == [".wh.f", "d/", "d/f", "l@", "null"]
    node = view.lookup("d/f")
    assert node is not None
    assert node.host_path == os.path.join(root, "d/f")
    assert node.inode == (os.stat(node.host_path).st_dev, os.stat(node.host_path).st_ino)
    assert view.lookup("l/passwd") is None


def test_opening_a_fifo_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(NotAFile):
        DirectoryView(os.fspath(tmp_path)).open("p")


def test_a_tar_of_ours_is_looked_at_without_unpacking(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"s" * 5000)
    entries = [
        directory("d", 0o711), file("d/f", b"small"), LayerEntry("d/h", Kind.HARDLINK, link="d/f"), link("l", "d/f"), gone("old"),
        LayerEntry("big", Kind.FILE, size=5000, host_path=os.fspath(tmp_path / "source"), uid=7, mtime_ns=3 * 10**9 + 5),
    ]  # fmt: skip
    with (tmp_path / "tar").open("wb") as out:
        write_tar(entries, out.write)
    (tmp_path / "source").unlink()
    layer = index_tar(os.fspath(tmp_path / "tar"))
    assert layer is not None
    view = StackView([EntryLayer([file("old")]), layer])
    assert tree(view) == ["big", "d/", "d/f", "d/h", "l@"]
    big = view.lookup("big")
    assert big is not None
    assert (big.uid, big.size, big.mtime_ns, big.host_path) == (7, 5000, 3 * 10**9, None)
    with view.open("big") as content:
        assert content.read() == b"s" * 5000
    with view.open("d/h") as content:
        assert content.read() == b"small"


def test_a_tar_with_entries_behind_its_own_links_needs_unpacking(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "tar", "w") as tar:
        info = tarfile.TarInfo("l")
        info.type, info.linkname = tarfile.SYMTYPE, "d"
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("l/f"))
    assert index_tar(os.fspath(tmp_path / "tar")) is None
