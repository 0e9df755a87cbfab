"""Applying layer tars: what appears, and that nothing ever appears outside of the directory."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybuild.errors import PybuildError
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.tar_read import InvalidTar
from pybuild.layers.tree_views import DirectoryLayer, DirectoryView, EntryLayer, StackView
from pybuild.layers.unpack import InvalidLayer, Unpacked, unpack_layer
from pybuild.layers.views import FileView, Node
from pybuild.layers.xattrs import Owners, Ownership, is_opaque

Member = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, **fields: object) -> Member:
    return entry(name, kind=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str) -> Member:
    return entry(name, kind=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Member:
    return entry(name, kind=tarfile.LNKTYPE, linkname=target)


def whiteout(name: str) -> Member:
    parent, slash, base = name.rpartition("/")
    return entry(parent + slash + ".wh." + base)


def archive(*members: Member) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


class Target:
    """An unpacked layer in a directory with a neighbour that must stay as it is."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.root.mkdir(mode=0o755)
        self.outside = base / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("untouched")
        self.ownership = Ownership.probe(os.fspath(base))
        self.before = self.listing()

    def listing(self) -> list[tuple[str, int, float]]:
        return [(path.name, path.lstat().st_mode, path.lstat().st_mtime_ns) for path in sorted(self.outside.rglob("*"))]

    def unpack(self, *members: Member, lower: Callable[[], FileView] | None = None) -> Unpacked:
        try:
            return unpack_layer(archive(*members), os.fspath(self.root), ownership=self.ownership, lower=lower)
        finally:
            assert self.listing() == self.before

    def layer(self) -> DirectoryLayer:
        return DirectoryLayer(os.fspath(self.root), owners=self.ownership.owners)

    def node(self, path: str) -> Node:
        node = self.layer().lookup(path)
        assert node is not None, path
        return node

    def paths(self) -> list[str]:
        return sorted(os.path.relpath(path, self.root) for path in self.root.rglob("*"))


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


def test_files_directories_and_links_appear_with_their_metadata(target: Target) -> None:
    report = target.unpack(
        directory("d", mode=0o1770, uid=3, gid=4, mtime=100),
        entry("d/f", b"content", mode=0o4751, uid=5, gid=6, mtime=200),
        symlink("d/l", "../anything"),
        hardlink("h", "d/f"),
        entry("p", kind=tarfile.FIFOTYPE, mode=0o640),
    )
    assert report == Unpacked(stands_alone=True, entries=5, skipped=())
    folder, file, link, fifo = (target.node(path) for path in ("d", "d/f", "d/l", "p"))
    assert (folder.kind, folder.mode, folder.uid, folder.gid, folder.mtime_ns) == (
        Kind.DIRECTORY,
        0o1770,
        3,
        4,
        100 * 10**9,
    )
    assert (file.kind, file.mode, file.uid, file.gid, file.mtime_ns) == (Kind.FILE, 0o4751, 5, 6, 200 * 10**9)
    assert (target.root / "d/f").read_bytes() == b"content"
    assert (link.kind, link.target) == (Kind.SYMLINK, "../anything")
    assert file.identity is not None
    assert target.node("h").identity == file.identity
    assert (fifo.kind, fifo.mode) == (Kind.FIFO, 0o640)


def test_a_directory_gets_its_time_and_mode_after_what_is_in_it(target: Target) -> None:
    target.unpack(
        directory("d", mode=0o555, mtime=50), entry("d/f", b"x"), directory("d/e", mode=0o500, mtime=60), entry("d/e/g")
    )
    assert (target.node("d").mode, target.node("d").mtime_ns) == (0o555, 50 * 10**9)
    assert (target.node("d/e").mode, target.node("d/e").mtime_ns) == (0o500, 60 * 10**9)


def test_a_directory_entry_after_its_contents_still_counts(target: Target) -> None:
    report = target.unpack(entry("d/f", b"x"), directory("d", mode=0o711, mtime=5))
    assert report.stands_alone
    assert target.node("d").mode == 0o711


def test_whiteouts_become_character_devices_and_opaque_markers_attributes(target: Target) -> None:
    target.unpack(directory("d"), entry("d/.wh..wh..opq"), whiteout("d/gone"), whiteout("top"), entry(".wh..wh.plnk"))
    for path in ("d/gone", "top"):
        status = (target.root / path).lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == 0
    assert is_opaque(os.fspath(target.root / "d"))
    assert target.paths() == ["d", "d/gone", "top"]


def test_what_replaces_a_whiteout_hides_what_is_below(target: Target) -> None:
    target.unpack(
        whiteout("a"),
        directory("a"),
        directory("b"),
        whiteout("b"),
        whiteout("c"),
        entry("c/x"),
        whiteout("f"),
        entry("f", b"new"),
    )
    for path in "abc":
        assert is_opaque(os.fspath(target.root / path)), path
    assert (target.root / "f").read_bytes() == b"new"
    assert (target.root / "c/x").exists()


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.."])
def test_a_whiteout_without_a_name_is_refused(target: Target, name: str) -> None:
    with pytest.raises(InvalidLayer, match="whiteout"):
        target.unpack(directory("d"), entry(name))


def test_later_entries_replace_earlier_ones_of_any_kind(target: Target) -> None:
    target.unpack(
        entry("a", b"1"), entry("a", b"22"),
        directory("b"), entry("b/x"), directory("b/y"), entry("b/y/z"), entry("b", b"file"),
        entry("c", b"file"), directory("c", mode=0o700), entry("c/x"),
        symlink("d", "elsewhere"), entry("d", b"file"),
        directory("e", mode=0o700), directory("e", mode=0o711),
        directory("f"), symlink("f", "a"), directory("g"), entry("g/x"), hardlink("g", "a"),
    )  # fmt: skip
    assert (target.root / "a").read_bytes() == b"22"
    assert (target.root / "b").read_bytes() == b"file"
    assert (target.node("c").kind, target.node("c").mode) == (Kind.DIRECTORY, 0o700)
    assert is_opaque(os.fspath(target.root / "c"))
    assert target.node("d").kind is Kind.FILE
    assert target.node("e").mode == 0o711
    assert not is_opaque(os.fspath(target.root / "e"))
    assert target.node("f").target == "a"
    assert target.node("g").identity == target.node("a").identity


@pytest.mark.parametrize("name", ["../outside/x", "/../../outside/x", "a/../../outside/x", "./../outside/x", "/abs/x"])
def test_names_never_leave_the_root(target: Target, name: str) -> None:
    target.unpack(entry(name, b"x"))
    assert any(path.endswith("/x") for path in target.paths())


def test_links_in_the_archive_are_followed_inside_the_root_only(target: Target) -> None:
    outside = os.fspath(target.outside)
    target.unpack(
        symlink("up", "../outside"), entry("up/one", b"1"),
        symlink("abs", outside), entry("abs/two", b"2"),
        symlink("deep", "x/../../../.."), entry("deep/three", b"3"),
        directory("real"), symlink("alias", "/real"), entry("alias/four", b"4"), directory("alias/sub"), entry("alias/sub/five"),
    )  # fmt: skip
    assert (target.root / "outside/one").read_bytes() == b"1"
    assert (target.root / outside.lstrip("/") / "two").read_bytes() == b"2"
    assert (target.root / "three").read_bytes() == b"3"
    assert (target.root / "real/four").read_bytes() == b"4"
    assert (target.root / "real/sub/five").exists()
    assert target.node("alias").kind is Kind.SYMLINK


def test_a_link_at_the_end_of_a_name_is_replaced_and_not_followed(target: Target) -> None:
    target.unpack(symlink("l", os.fspath(target.outside / "secret")), entry("l", b"replaced"))
    assert (target.root / "l").read_bytes() == b"replaced"


def test_a_hard_link_never_reaches_outside(target: Target) -> None:
    with pytest.raises(InvalidLayer, match="doesn't exist"):
        target.unpack(symlink("up", "../outside"), hardlink("h", "up/secret"))
    with pytest.raises(InvalidLayer, match="doesn't exist"):
        target.unpack(hardlink("h", "../outside/secret"))


def test_a_hard_link_to_a_symlink_links_the_symlink(target: Target) -> None:
    target.unpack(
        symlink("l", "nowhere"),
        hardlink("h", "l"),
        directory("d"),
        symlink("via", "d"),
        entry("d/f", b"x"),
        hardlink("k", "via/f"),
    )
    assert (target.node("h").kind, target.node("h").target) == (Kind.SYMLINK, "nowhere")
    assert target.node("k").identity == target.node("d/f").identity


def test_link_loops_and_files_in_the_way_are_errors(target: Target) -> None:
    with pytest.raises(InvalidLayer, match="too many links"):
        target.unpack(symlink("a", "b"), symlink("b", "a"), entry("a/x"))
    with pytest.raises(InvalidLayer, match="not a directory"):
        target.unpack(entry("f", b"x"), entry("f/x"))


def test_a_cached_directory_is_forgotten_when_it_is_replaced(target: Target) -> None:
    target.unpack(directory("a"), entry("a/1"), directory("b"), symlink("a", "b"), entry("a/2"))
    assert target.paths() == ["a", "b", "b/2"]


def lower() -> FileView:
    return StackView(
        [
            EntryLayer(
                [
                    LayerEntry("etc", Kind.DIRECTORY, mode=0o710, uid=1, gid=2, mtime_ns=7 * 10**9),
                    LayerEntry("etc/conf", Kind.FILE, data=b"below", mode=0o4711, uid=3, gid=4, mtime_ns=8 * 10**9),
                    LayerEntry("etc/link", Kind.SYMLINK, link="conf"),
                    LayerEntry("notdir", Kind.FILE, data=b""),
                ]
            )
        ]
    )


def test_implied_parents_take_their_metadata_from_below(target: Target) -> None:
    report = target.unpack(entry("etc/new", b"x"), entry("other/new"), entry("notdir/x"), lower=lower)
    assert not report.stands_alone
    node = target.node("etc")
    assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o710, 1, 2, 7 * 10**9)
    assert (target.node("other").mode, target.node("other").uid) == (0o755, 0)
    assert target.node("notdir").mode == 0o755


def test_a_hard_link_to_a_file_below_copies_it_up(target: Target) -> None:
    report = target.unpack(directory("d"), hardlink("d/h", "etc/conf"), hardlink("d/l", "etc/link"), lower=lower)
    assert not report.stands_alone
    node = target.node("d/h")
    assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o4711, 3, 4, 8 * 10**9)
    assert (target.root / "d/h").read_bytes() == b"below"
    assert node.identity == target.node("etc/conf").identity
    assert target.node("etc").mode == 0o710
    assert target.node("d/l").target == "conf"


def test_a_hard_link_to_nothing_is_an_error_even_with_layers_below(target: Target) -> None:
    with pytest.raises(InvalidLayer, match="etc/missing"):
        target.unpack(hardlink("h", "etc/missing"), lower=lower)
    with pytest.raises(InvalidLayer):
        target.unpack(hardlink("h2", "etc"), lower=lower)


def test_a_layer_that_needs_nothing_never_asks_for_what_is_below(target: Target) -> None:
    def forbidden() -> FileView:
        raise AssertionError("asked")

    assert target.unpack(directory("a"), entry("a/f"), hardlink("h", "a/f"), lower=forbidden).stands_alone


def test_private_attributes_from_an_archive_are_dropped(target: Target) -> None:
    records = {
        "SCHILY.xattr.user.kept": "yes",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.pybuild.owner": "0:0",
    }
    target.unpack(
        entry("f", b"x", pax_headers=records, uid=os.getuid(), gid=os.getgid()), directory("d", pax_headers=records)
    )
    assert os.listxattr(target.root / "f") == ["user.kept"]
    assert not is_opaque(os.fspath(target.root / "d"))


def test_a_device_that_would_be_a_whiteout_is_skipped(target: Target) -> None:
    report = target.unpack(entry("zero", kind=tarfile.CHRTYPE, devmajor=0, devminor=0))
    assert report.skipped == ("zero",)
    assert target.paths() == []


def test_owners_are_recorded_where_files_cannot_be_given_away(tmp_path: Path) -> None:
    ownership = Ownership(Owners.RECORDED, "user.overlay.opaque", os.getuid(), os.getgid())
    data = archive(
        directory("d", uid=11, gid=12),
        entry("d/f", b"x", uid=13, gid=14),
        entry("mine", uid=os.getuid(), gid=os.getgid()),
    )
    unpack_layer(data, os.fspath(tmp_path), ownership=ownership)
    assert (tmp_path / "d/f").stat().st_uid == os.getuid()
    view = DirectoryView(os.fspath(tmp_path), owners=Owners.RECORDED)
    owners = [(node.uid, node.gid) for node in (view.lookup("d"), view.lookup("d/f"), view.lookup("mine")) if node]
    assert owners == [(11, 12), (13, 14), (os.getuid(), os.getgid())]
    assert view.xattrs("d/f") == {}


def test_many_directories_are_handled_with_few_descriptors(target: Target) -> None:
    members = [entry(f"d{n % 400}/s{n}/f", b"x") for n in range(1200)]
    before = len(os.listdir("/proc/self/fd"))
    target.unpack(*members)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len([path for path in target.paths() if path.endswith("/f")]) == 1200


def test_sparse_content_keeps_its_holes(target: Target) -> None:
    records = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "s",
        "GNU.sparse.realsize": str(64 << 20),
    }
    target.unpack(entry("GNUSparseFile.0/s", b"1\n1048576\n3\n".ljust(512, b"\0") + b"abc", pax_headers=records))
    status = (target.root / "s").stat()
    assert status.st_size == 64 << 20
    assert status.st_blocks < 1000
    with (target.root / "s").open("rb") as file:
        file.seek(1 << 20)
        assert file.read(4) == b"abc\0"


def test_a_truncated_archive_is_an_error(target: Target) -> None:
    data = archive(entry("f", b"x" * 5000)).getvalue()[:3000]
    with pytest.raises(InvalidTar):
        unpack_layer(io.BytesIO(data), os.fspath(target.root), ownership=target.ownership)


names = st.lists(st.sampled_from(["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "c"]), min_size=1, max_size=4).map(
    "/".join
)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(names, kinds, st.sampled_from(["a", "../..", "/", "b/../../outside", "../outside", "/a/b", "."])),
        max_size=10,
    )
)
def test_no_archive_ever_writes_outside(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, str]]
) -> None:
    target = Target(tmp_path_factory.mktemp("unpack"))
    try:
        target.unpack(*(entry(name, kind=kind, linkname=link, mode=0o755) for name, kind, link in members))
    except PybuildError:
        pass
    assert sorted(os.listdir(target.root.parent)) == ["outside", "root"]
