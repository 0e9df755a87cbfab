"""COPY, ADD and WORKDIR: which entries a layer gets, against what BuildKit does in the same place."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from pybuild.builder.contexts_local import LocalContext
from pybuild.builder.copy import plan_copy, plan_make
from pybuild.builder.copy_spool import Spool
from pybuild.builder.copy_tree import MADE_NS, CannotReplace, NotADirectory
from pybuild.builder.graph import FileCopy, FileMake, InlineFile, Unpack
from pybuild.builder.owners import InvalidUser
from pybuild.builder.selection import BaseNotFound, FileChanged, SourceNotFound, check_unchanged, select_copy
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.views import FileView, Node

PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\nstaff:x:50:app\n"


class Tree:
    """A file system in memory: paths to (node, content)."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[Node, bytes]] = {"": (Node(Kind.DIRECTORY, 0o755, 0, 0), b"")}

    def file(
        self, path: str, data: bytes = b"", *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = 5
    ) -> Tree:
        return self.put(path, Node(Kind.FILE, mode, uid, gid, len(data), mtime * 10**9), data)

    def directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = 5) -> Tree:
        return self.put(path, Node(Kind.DIRECTORY, mode, uid, gid, 0, mtime * 10**9))

    def link(self, path: str, target: str) -> Tree:
        return self.put(path, Node(Kind.SYMLINK, 0o777, 0, 0, 0, 5 * 10**9, target))

    def put(self, path: str, node: Node, data: bytes = b"") -> Tree:
        parent = path.rpartition("/")[0]
        if parent not in self.nodes:
            self.directory(parent)
        self.nodes[path] = (node, data)
        return self

    def lookup(self, path: str) -> Node | None:
        known = self.nodes.get(path)
        return None if known is None else known[0]

    def children(self, path: str) -> Sequence[tuple[str, Node]]:
        return tuple(
            (other.rpartition("/")[2], node)
            for other, (node, _) in sorted(self.nodes.items())
            if other and other.rpartition("/")[0] == path
        )

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.nodes[path][1])

    def xattrs(self, path: str) -> Mapping[str, bytes]:
        return {"security.capability": b"cap"} if path.endswith("capable") else {}


def base() -> Tree:
    return Tree().file("etc/passwd", PASSWD).file("etc/group", GROUP)


def copy(
    source: FileView | None,
    sources: Sequence[str],
    destination: str,
    *,
    onto: FileView | None = None,
    **options: object,
) -> dict[str, LayerEntry]:
    """The entries of a COPY, by path."""
    op = replace(FileCopy(tuple(sources), destination), **options)  # type: ignore[arg-type]  # fields by name
    plan = plan_copy(op, parent=onto, source=source, spool=Spool(_no_spool))
    paths = [entry.path for entry in plan.entries]
    assert len(set(paths)) == len(paths)
    return {entry.path: entry for entry in plan.entries}


def _no_spool() -> str:
    raise AssertionError("nothing here needs a spool")


def text(entry: LayerEntry) -> bytes:
    if entry.host_path is not None:
        return Path(entry.host_path).read_bytes()
    assert entry.data is not None
    return entry.data


# --- where things land --------------------------------------------------------------------------------------------------


def test_a_file_lands_under_the_name_that_the_destination_gives() -> None:
    entries = copy(Tree().file("a", b"A"), ["/a"], "/b")
    assert list(entries) == ["b"]
    assert text(entries["b"]) == b"A"


def test_a_trailing_slash_makes_the_destination_a_directory() -> None:
    entries = copy(Tree().file("a"), ["/a"], "/sample/")
    assert list(entries) == ["sample", "sample/a"]
    made = entries["sample"]
    assert (made.kind, made.mode, made.uid, made.mtime_ns) == (Kind.DIRECTORY, 0o755, 0, MADE_NS)


def test_an_existing_directory_takes_the_file_in() -> None:
    assert list(copy(Tree().file("a"), ["/a"], "/d", onto=Tree().directory("d"))) == ["d", "d/a"]


def test_missing_parents_of_the_destination_are_made() -> None:
    assert list(copy(Tree().file("a"), ["/a"], "/x/y/z")) == ["x", "x/y", "x/y/z"]


def test_a_directory_stands_for_its_contents_and_gives_only_its_time() -> None:
    source = Tree().directory("dir", mode=0o700, mtime=77).file("dir/f", b"F").directory("dir/sub", mode=0o711)
    entries = copy(source, ["/dir"], "/out")
    assert list(entries) == ["out", "out/f", "out/sub"]
    assert (entries["out"].mode, entries["out"].mtime_ns) == (0o755, 77 * 10**9)
    assert entries["out/sub"].mode == 0o711


@pytest.mark.parametrize("written", ["/dir", "/dir/", "/dir/."])
def test_a_directory_may_be_written_with_a_slash_or_a_dot(written: str) -> None:
    assert "out/f" in copy(Tree().file("dir/f"), [written], "/out")


def test_an_empty_source_is_the_whole_tree() -> None:
    assert list(copy(Tree().file("a").file("b/c"), [""], "/all")) == ["all", "all/a", "all/b", "all/b/c"]


def test_an_existing_directory_keeps_owner_and_mode() -> None:
    onto = Tree().directory("d", mode=0o750, uid=500, gid=600, mtime=3)
    entries = copy(Tree().file("s/f", b"new", mode=0o600), ["/s"], "/d", onto=onto)
    kept = entries["d"]
    assert (kept.mode, kept.uid, kept.gid) == (0o750, 500, 600)


def test_directories_inside_take_the_sources_metadata() -> None:
    source = Tree().directory("s/sub", mode=0o711, uid=7, gid=8)
    onto = Tree().directory("d/sub", mode=0o755, uid=1)
    entries = copy(source, ["/s"], "/d", onto=onto, keep_owner=True)
    assert (entries["d/sub"].mode, entries["d/sub"].uid, entries["d/sub"].gid) == (0o711, 7, 8)


def test_directories_above_a_change_come_along_with_what_they_were() -> None:
    onto = Tree().directory("a", mode=0o711, uid=3, mtime=44).directory("a/b", mode=0o700, mtime=45)
    entries = copy(Tree().file("f"), ["/f"], "/a/b/f", onto=onto)
    assert list(entries) == ["a", "a/b", "a/b/f"]
    assert (entries["a"].mode, entries["a"].uid, entries["a"].mtime_ns) == (0o711, 3, 44 * 10**9)
    assert (entries["a/b"].mode, entries["a/b"].mtime_ns) == (0o700, 45 * 10**9)


# --- links in the destination -------------------------------------------------------------------------------------------


def test_a_link_in_the_destination_is_followed_inside_the_root() -> None:
    onto = Tree().directory("real").link("link", "/real")
    assert list(copy(Tree().file("f"), ["/f"], "/link/", onto=onto)) == ["real", "real/f"]


def test_a_link_never_leads_out_of_the_root() -> None:
    onto = Tree().link("out", "../../../../etc/evil")
    assert list(copy(Tree().file("f"), ["/f"], "/out", onto=onto)) == ["etc", "etc/evil"]


def test_a_dangling_link_is_followed_too() -> None:
    onto = Tree().link("link", "target")
    assert list(copy(Tree().file("f"), ["/f"], "/link", onto=onto)) == ["target"]


def test_a_loop_of_links_is_an_error() -> None:
    with pytest.raises(Exception, match="too many links"):
        copy(Tree().file("f"), ["/f"], "/a/", onto=Tree().link("a", "b").link("b", "a"))


# --- links in the source ------------------------------------------------------------------------------------------------


def test_a_link_that_is_named_is_followed_and_keeps_its_name() -> None:
    entries = copy(Tree().file("bar", b"bar").link("foo", "bar"), ["/foo"], "/d/")
    assert entries["d/foo"].kind is Kind.FILE
    assert text(entries["d/foo"]) == b"bar"


def test_a_link_inside_a_copied_directory_stays_a_link() -> None:
    entries = copy(Tree().link("s/l", "/nowhere"), ["/s"], "/d")
    assert (entries["d/l"].kind, entries["d/l"].link) == (Kind.SYMLINK, "/nowhere")


def test_links_on_the_way_to_the_source_are_followed() -> None:
    source = Tree().file("sub/foo", b"x").link("link", "sub")
    assert text(copy(source, ["/link/foo"], "/foo")["foo"]) == b"x"


def test_links_that_a_wildcard_finds_are_followed() -> None:
    source = Tree().file("sub/baz", b"baz").link("sub/second", "baz").link("sub/l1", "second").file("sub/lfile", b"l")
    entries = copy(source, ["/sub/l*"], "/all/")
    assert {path: text(entries[path]) for path in ("all/l1", "all/lfile")} == {"all/l1": b"baz", "all/lfile": b"l"}


# --- wildcards ----------------------------------------------------------------------------------------------------------


def test_a_wildcard_that_finds_nothing_gives_an_empty_layer() -> None:
    assert copy(Tree().file("a"), ["/nomatch*"], "/d/") == {}


def test_a_wildcard_copies_each_directorys_contents() -> None:
    source = Tree().file("dir1/a").file("dir2/b")
    assert list(copy(source, ["/dir*"], "/d/")) == ["d", "d/a", "d/b"]


def test_wildcards_may_stand_in_the_middle() -> None:
    source = Tree().file("sub/dir1/dir2/foo")
    assert list(copy(source, ["/sub/*/dir2/foo"], "/x/bar")) == ["x", "x/bar"]


def test_a_wildcard_below_a_missing_directory_is_an_error() -> None:
    with pytest.raises(BaseNotFound, match="lstat /none: no such file or directory"):
        copy(Tree(), ["/none/*"], "/d/")


def test_a_missing_path_is_named_in_the_error() -> None:
    with pytest.raises(SourceNotFound, match='"/foo": not found'):
        copy(Tree(), ["/foo"], "/d/")


# --- replacing ----------------------------------------------------------------------------------------------------------


def test_a_file_cannot_replace_a_directory() -> None:
    with pytest.raises(CannotReplace, match="cannot replace to directory /d/f with file"):
        copy(Tree().file("f"), ["/f"], "/d", onto=Tree().directory("d/f"))


def test_a_directory_cannot_be_copied_onto_a_file() -> None:
    with pytest.raises(CannotReplace, match="cannot copy to non-directory: /d"):
        copy(Tree().file("s/x"), ["/s"], "/d", onto=Tree().file("d"))


def test_a_file_cannot_be_on_the_way() -> None:
    with pytest.raises(NotADirectory, match="mkdir /d: not a directory"):
        copy(Tree().file("f"), ["/f"], "/d/f", onto=Tree().file("d"))


def test_a_file_replaces_a_link_in_its_place() -> None:
    entries = copy(Tree().file("s/l", b"x"), ["/s"], "/d", onto=Tree().link("d/l", "/elsewhere"))
    assert entries["d/l"].kind is Kind.FILE


# --- what is equal already ----------------------------------------------------------------------------------------------


def test_copying_an_identical_file_again_gives_an_empty_layer() -> None:
    assert copy(Tree().file("f", b"x", mtime=9), ["/f"], "/f", onto=Tree().file("f", b"x", mtime=9)) == {}


@pytest.mark.parametrize("changed", [{"mtime": 10}, {"data": b"y"}, {"mode": 0o600}, {"uid": 3}])
def test_anything_that_differs_makes_an_entry(changed: dict[str, object]) -> None:
    below = Tree().file("f", **({"data": b"x", "mtime": 9} | changed))  # type: ignore[arg-type]  # fields by name
    assert list(copy(Tree().file("f", b"x", mtime=9), ["/f"], "/f", onto=below)) == ["f"]


def test_a_directory_that_only_got_another_time_is_left_out() -> None:
    onto = Tree().directory("d", mtime=1).file("d/f", b"x")
    assert copy(Tree().directory("s", mtime=2).file("s/f", b"x"), ["/s"], "/d", onto=onto) == {}


# --- owners and modes ---------------------------------------------------------------------------------------------------


def test_files_of_a_context_become_roots() -> None:
    entry = copy(Tree().file("f", uid=1000, gid=1000), ["/f"], "/f")["f"]
    assert (entry.uid, entry.gid) == (0, 0)


def test_files_of_a_stage_keep_their_owner_but_made_directories_are_roots() -> None:
    entries = copy(Tree().file("s/f", uid=7, gid=8), ["/s"], "/d", keep_owner=True)
    assert (entries["d/f"].uid, entries["d/f"].gid, entries["d"].uid) == (7, 8, 0)


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        ("1234", (1234, 1234)),
        ("1234:5", (1234, 5)),
        ("app", (1000, 1001)),
        ("app:staff", (1000, 50)),
        ("5:staff", (5, 50)),
        ("root", (0, 0)),
        ("nobody-here", (0, 0)),
    ],
)
def test_chown_takes_names_of_the_stage(owner: str, expected: tuple[int, int]) -> None:
    entries = copy(Tree().file("s/f", uid=9), ["/s"], "/d/e", onto=base(), owner=owner, keep_owner=True)
    assert {(entry.uid, entry.gid) for entry in entries.values()} == {expected}


def test_chown_leaves_existing_directories_alone() -> None:
    onto = base().directory("d", uid=500, gid=600)
    entries = copy(Tree().file("f"), ["/f"], "/d/", onto=onto, owner="300:400")
    assert (entries["d"].uid, entries["d/f"].uid) == (500, 300)


def test_names_need_a_stage_to_look_them_up_in() -> None:
    with pytest.raises(InvalidUser, match="needs the stage's /etc/passwd"):
        copy(Tree().file("f"), ["/f"], "/f", owner="app", link=True)


def test_chmod_in_octal_reaches_made_directories_and_everything_copied() -> None:
    source = Tree().file("s/f", mode=0o644).directory("s/sub", mode=0o755)
    entries = copy(source, ["/s"], "/p/d", mode="0770")
    assert {path: oct(entry.mode) for path, entry in entries.items()} == dict.fromkeys(
        ["p", "p/d", "p/d/f", "p/d/sub"], "0o770"
    )


def test_chmod_of_zero_is_a_mode_too() -> None:
    assert copy(Tree().file("f"), ["/f"], "/f", mode="0")["f"].mode == 0


def test_symbolic_chmod_with_capital_x_spares_plain_files() -> None:
    source = Tree().file("s/f", mode=0o600).file("s/x", mode=0o700).directory("s/sub", mode=0o700)
    entries = copy(source, ["/s"], "/d", mode="u=rwX,go=rX")
    assert [oct(entries[path].mode) for path in ("d/f", "d/x", "d/sub")] == ["0o644", "0o755", "0o755"]


def test_setuid_survives_and_links_are_not_changed() -> None:
    source = Tree().file("s/su", mode=0o4755).link("s/l", "su")
    entries = copy(source, ["/s"], "/d")
    assert (entries["d/su"].mode, entries["d/l"].mode) == (0o4755, 0o777)


def test_capabilities_come_from_stages_but_not_from_contexts() -> None:
    source = Tree().file("capable")
    assert copy(source, ["/capable"], "/c", keep_owner=True)["c"].xattrs == (("security.capability", b"cap"),)
    assert copy(source, ["/capable"], "/c")["c"].xattrs == ()


# --- excluding, parents -------------------------------------------------------------------------------------------------


def test_exclude_is_relative_to_each_source() -> None:
    source = Tree().file("dir1/a.png").file("dir1/b.txt").file("dir2/c.png").file("dir2/d/e.png")
    assert list(copy(source, ["/dir*"], "/o/", exclude=("*.png",))) == ["o", "o/b.txt", "o/d", "o/d/e.png"]


def test_exclude_with_an_exception_brings_the_directories_above() -> None:
    source = Tree().file("s/d/keep").file("s/d/drop")
    assert list(copy(source, ["/s"], "/o", exclude=("d", "!d/keep"))) == ["o", "o/d", "o/d/keep"]


def test_everything_may_be_excluded() -> None:
    assert list(copy(Tree().file("s/a"), ["/s"], "/o", exclude=("*",))) == ["o"]


def test_parents_keeps_the_path() -> None:
    source = Tree().directory("foo1", mode=0o700).file("foo1/foo2/bar", b"x").file("foo1/foo2/baz")
    entries = copy(source, ["/foo1/foo2/bar"], "/", parents=True)
    assert list(entries) == ["foo1", "foo1/foo2", "foo1/foo2/bar"]
    assert entries["foo1"].mode == 0o700


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/t/a/b/./c/d", ["o", "o/c", "o/c/d", "o/c/d/e", "o/c/d/e/bay", "o/c/d/foo"]),
        ("/t/a/./*/c/d/foo", ["o", "o/b", "o/b/c", "o/b/c/d", "o/b/c/d/foo"]),
        ("/t/a/b*/./c/**/bay", ["o", "o/c", "o/c/d", "o/c/d/e", "o/c/d/e/bay"]),
        ("/t/a/b/./c2*", ["o"]),
        ("/t/nothing*/here", ["o"]),
    ],
)
def test_parents_with_pivot_and_wildcards(pattern: str, expected: list[str]) -> None:
    source = Tree().file("t/a/b/c/d/foo").file("t/a/b/c/d/e/bay").file("t/a/b2/x")
    assert list(copy(source, [pattern], "/o/", parents=True)) == expected


def test_parents_of_a_missing_file_is_an_error() -> None:
    with pytest.raises(SourceNotFound, match='"/test/nonexistent-file": not found'):
        copy(Tree().file("test/a"), ["/test/nonexistent-file"], "/o/", parents=True)


# --- special files ------------------------------------------------------------------------------------------------------


def test_hard_links_survive_within_one_source(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/b").write_bytes(b"x")
    os.link(tmp_path / "s/b", tmp_path / "s/a")
    entries = copy(LocalContext(tmp_path), ["/s"], "/d")
    assert (entries["d/a"].kind, entries["d/b"].kind, entries["d/b"].link) == (Kind.FILE, Kind.HARDLINK, "d/a")


def test_hard_links_between_two_sources_become_two_files(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"x")
    os.link(tmp_path / "b", tmp_path / "a")
    entries = copy(LocalContext(tmp_path), ["/a", "/b"], "/d/")
    assert {entries["d/a"].kind, entries["d/b"].kind} == {Kind.FILE}


def test_a_socket_of_a_context_becomes_an_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.sock")
        entry = copy(LocalContext(tmp_path), ["/"], "/")["s.sock"]
    assert (entry.kind, entry.size, entry.data) == (Kind.FILE, 0, b"")


def test_a_heredoc_is_a_file_with_its_own_mode() -> None:
    op = FileCopy((), "/d/", inline=(InlineFile("hello.sh", b"echo\n"), InlineFile("two", b"2")))
    plan = plan_copy(op, parent=None, source=None, spool=Spool(_no_spool))
    assert [(e.path, e.mode, e.data) for e in plan.entries[1:]] == [
        ("d/hello.sh", 0o644, b"echo\n"),
        ("d/two", 0o644, b"2"),
    ]


# --- archives -----------------------------------------------------------------------------------------------------------


def archive(
    *members: tuple[str, bytes | None], links: Mapping[str, str] | None = None, compress: bool = False
) -> bytes:
    """A tar: names with contents (None: a directory), then symbolic links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mtime = 3, 4, 99
            if data is None:
                info.type = tarfile.DIRTYPE
                info.mode = 0o750
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.SYMTYPE
            info.linkname = target
            tar.addfile(info)
    return gzip.compress(out.getvalue()) if compress else out.getvalue()


def add(
    files: Mapping[str, bytes], sources: Sequence[str], destination: str, **options: object
) -> dict[str, LayerEntry]:
    tree = Tree()
    for name, data in files.items():
        tree.file(name, data)
    return copy(tree, sources, destination, unpack=Unpack.LOCAL, **options)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize("compress", [False, True])
def test_an_archive_is_unpacked_with_its_metadata(compress: bool) -> None:
    entries = add({"t.tar": archive(("foo", b"content0"), compress=compress)}, ["/t.tar"], "/dest")
    assert list(entries) == ["dest", "dest/foo"]
    foo = entries["dest/foo"]
    assert (foo.data, foo.uid, foo.gid, foo.mtime_ns, entries["dest"].uid) == (b"content0", 3, 4, 99 * 10**9, 0)


def test_wildcards_may_name_archives() -> None:
    files = {"a.tar": archive(("foo", b"1")), "b.tar": archive(("bar", b"2"))}
    assert list(add(files, ["/*.tar"], "/dest")) == ["dest", "dest/bar", "dest/foo"]


def test_chown_applies_to_what_is_unpacked() -> None:
    entries = add({"t.tar": archive(("foo", b"x"))}, ["/t.tar"], "/out/", owner="100:200")
    assert {(e.uid, e.gid) for e in entries.values()} == {(100, 200)}


@pytest.mark.parametrize("owner", ["", "100:200"])
def test_what_a_hard_links_header_says_counts_for_the_file_under_all_its_names(owner: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, mode in (
            ("f", tarfile.REGTYPE, 0o640),
            ("g", tarfile.LNKTYPE, 0o644),
            ("h", tarfile.LNKTYPE, 0o700),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.uid, info.mtime = (
                kind,
                "f" if name != "f" else "",
                mode,
                mode,
                mode,
            )
            tar.addfile(info)
    entries = add({"t.tar": out.getvalue()}, ["/t.tar"], "/", owner=owner)
    assert [entries[name].kind for name in "fgh"] == [Kind.FILE, Kind.HARDLINK, Kind.HARDLINK]
    expected = (0o700, 100 if owner else 0o700, 200 if owner else 0, 0o700 * 10**9)
    assert {(e.mode, e.uid, e.gid, e.mtime_ns) for e in entries.values()} == {expected}


def test_a_mode_leaves_sources_alone_that_keep_theirs() -> None:
    source = Tree().file("0/kept", mode=0o640).file("1/changed", mode=0o640)
    entries = copy(source, ["/0/", "/1/"], "/out/", mode="700", keep_mode=("/0/",))
    assert (entries["out/kept"].mode, entries["out/changed"].mode) == (0o640, 0o700)


def test_archives_inside_a_directory_stay_packed() -> None:
    assert list(add({"d/t.tar": archive(("foo", b"x"))}, ["/d"], "/o")) == ["o", "o/t.tar"]


def test_what_is_no_archive_is_copied() -> None:
    import lzma

    assert list(add({"f.xz": lzma.compress(b"no tar"), "e.tar": b""}, ["/f.xz", "/e.tar"], "/o/")) == [
        "o",
        "o/e.tar",
        "o/f.xz",
    ]


def test_parents_that_an_archive_implies_are_made() -> None:
    entries = add({"t.tar": archive(("etc/dnf/dnf.conf", b"x"))}, ["/t.tar"], "/")
    assert list(entries) == ["etc", "etc/dnf", "etc/dnf/dnf.conf"]
    assert (entries["etc"].mode, entries["etc"].uid) == (0o755, 0)


def test_an_archive_unpacks_through_absolute_links_within_the_destination() -> None:
    onto = Tree().directory("run").directory("var").link("var/run", "/run")
    payload = archive(("var/run/act/", None), ("var/run/act/HEAD", b"ref"))
    assert list(add({"p.tar": payload}, ["/p.tar"], "/", onto=onto)) == ["run", "run/act", "run/act/HEAD"]


def test_an_archive_cannot_leave_the_destination_through_its_own_link() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo("d")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../etc"
        tar.addfile(link)
        info = tarfile.TarInfo("d/passwd")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    entries = add({"t.tar": out.getvalue()}, ["/t.tar"], "/app/", onto=base())
    assert "etc/passwd" not in entries
    assert "app/etc/passwd" in entries


def test_names_that_lead_out_stay_inside() -> None:
    entries = add({"t.tar": archive(("../../evil", b"x"), ("/a/../../b", b"y"))}, ["/t.tar"], "/app/")
    assert {"app/evil", "app/b"} <= set(entries)


def test_a_directory_that_an_archive_puts_over_a_removed_one_hides_what_was_there() -> None:
    onto = Tree().file("d/old").file("d/same")
    payload = archive(("d", b"file now"), ("d/", None), ("d/same", b"new"))
    entries = add({"t.tar": payload}, ["/t.tar"], "/", onto=onto)
    assert {path: e.kind for path, e in entries.items()} == {
        "d": Kind.DIRECTORY,
        "d/old": Kind.WHITEOUT,
        "d/same": Kind.FILE,
    }


def test_a_file_of_an_archive_may_replace_a_directory() -> None:
    entries = add({"t.tar": archive(("d", b"x"))}, ["/t.tar"], "/", onto=Tree().file("d/old"))
    assert {path: e.kind for path, e in entries.items()} == {"d": Kind.FILE}


# --- WORKDIR ------------------------------------------------------------------------------------------------------------


def test_workdir_makes_what_is_missing_as_the_user() -> None:
    plan = plan_make(FileMake("/srv/app", user="app"), parent=base().directory("srv", uid=5))
    assert [(e.path, e.uid, e.gid, e.mode) for e in plan.entries] == [
        ("srv", 5, 0, 0o755),
        ("srv/app", 1000, 1001, 0o755),
    ]


def test_workdir_on_a_directory_that_exists_changes_nothing() -> None:
    assert plan_make(FileMake("/d"), parent=Tree().directory("d", mode=0o700)).entries == ()


def test_workdir_of_a_bare_number_has_the_same_group() -> None:
    (entry,) = plan_make(FileMake("/d", user="1234"), parent=None).entries
    assert (entry.uid, entry.gid) == (1234, 1234)


# --- the same input, the same layer -------------------------------------------------------------------------------------


def test_two_plans_of_the_same_input_are_equal(tmp_path: Path) -> None:
    for name in ("z", "a", "m/x", "m/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    first = copy(LocalContext(tmp_path), ["/"], "/new/place/")
    assert first == copy(LocalContext(tmp_path), ["/"], "/new/place/")


def test_a_file_that_changes_while_it_is_copied_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    view = LocalContext(tmp_path)
    selection = select_copy(view, FileCopy(("/f",), "/f"))
    check_unchanged(selection)
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FileChanged, match="was changed while it was being copied"):
        check_unchanged(selection)


def test_very_deep_trees_are_walked(tmp_path: Path) -> None:
    tree = Tree()
    path = "/".join("d" for _ in range(1500))
    for end in range(1, len(path) + 1, 2):
        tree.put(path[:end], Node(Kind.DIRECTORY, 0o755, 0, 0))

    class Deep(Tree):
        def children(self, path: str) -> Sequence[tuple[str, Node]]:
            below = f"{path}/d" if path else "d"
            return (("d", self.nodes[below][0]),) if below in self.nodes else ()

    deep = Deep()
    deep.nodes = tree.nodes
    for exclude in ((), ("x",)):
        selection = select_copy(deep, FileCopy(("/",), "/", exclude=exclude))
        assert selection.count == 1501
