"""From an upper directory (made by hand, as overlayfs would leave it) to the entries of a layer."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from pybuild.layers.changes import Changes, UnsupportedOverlay, overlay_changes, tree_changes
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.tree_views import DirectoryView, StackView

SECOND = 10**9


class Overlay:
    """A lower and an upper directory. Times are fixed so that only what a test changes differs."""

    def __init__(self, base: Path) -> None:
        self.lower = base / "lower"
        self.upper = base / "upper"
        self.lower.mkdir(mode=0o755)
        self.upper.mkdir(mode=0o755)

    def file(self, side: Path, path: str, data: str = "", *, mtime_ns: int = 5 * SECOND, mode: int = 0o644) -> Path:
        target = side / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(data)
        target.chmod(mode)
        os.utime(target, ns=(mtime_ns, mtime_ns))
        return target

    def directory(self, side: Path, path: str, mode: int = 0o755) -> Path:
        target = side / path
        target.mkdir(parents=True, exist_ok=True)
        target.chmod(mode)
        return target

    def whiteout(self, path: str) -> None:
        target = self.upper / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(target, stat.S_IFCHR, 0)

    def opaque(self, path: str) -> None:
        os.setxattr(self.upper / path, "user.overlay.opaque", b"y")

    def changes(self, *ignore: str) -> Changes:
        return overlay_changes(os.fspath(self.upper), StackView([os.fspath(self.lower)]), ignore=ignore)

    def summary(self, *ignore: str) -> list[str]:
        return [describe(entry) for entry in self.changes(*ignore).entries]


def describe(entry: LayerEntry) -> str:
    suffix = {
        Kind.DIRECTORY: "/",
        Kind.WHITEOUT: " gone",
        Kind.HARDLINK: f" = {entry.link}",
        Kind.SYMLINK: f" -> {entry.link}",
    }
    return entry.path + suffix.get(entry.kind, "")


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    return Overlay(tmp_path)


def test_nothing_changed_gives_no_entries_and_stands_for_any_stack(overlay: Overlay) -> None:
    assert overlay.changes() == Changes((), exact=True)


def test_new_and_changed_files_bring_their_parents(overlay: Overlay) -> None:
    overlay.file(overlay.lower, "a/b/old", "1")
    overlay.file(overlay.upper, "a/b/old", "2")
    overlay.file(overlay.upper, "a/c/new", "x")
    assert overlay.summary() == ["a/", "a/b/", "a/b/old", "a/c/", "a/c/new"]
    assert overlay.changes().exact


def test_entries_carry_all_metadata_and_where_the_content_is(overlay: Overlay) -> None:
    path = overlay.file(overlay.upper, "f", "12345", mode=0o6755, mtime_ns=7 * SECOND + 3)
    (entry,) = overlay.changes().entries
    assert entry == LayerEntry(
        "f",
        Kind.FILE,
        mode=0o6755,
        uid=os.getuid(),
        gid=os.getgid(),
        mtime_ns=7 * SECOND + 3,
        size=5,
        host_path=os.fspath(path),
    )


def test_a_directory_counts_for_its_mode_but_not_for_its_time(overlay: Overlay) -> None:
    overlay.directory(overlay.lower, "same")
    overlay.directory(overlay.lower, "mode")
    os.utime(overlay.directory(overlay.upper, "same"), ns=(9, 9))
    overlay.directory(overlay.upper, "mode", 0o700)
    assert overlay.summary() == ["mode/"]
    # The directory that was copied up for nothing would hide what another stack has there.
    assert not overlay.changes().exact


def test_a_file_counts_for_its_time_its_mode_and_its_size(overlay: Overlay) -> None:
    for name in ("time", "mode", "size", "fraction"):
        overlay.file(overlay.lower, name, "same", mtime_ns=5 * SECOND + 5)
    overlay.file(overlay.upper, "time", "same", mtime_ns=6 * SECOND + 5)
    overlay.file(overlay.upper, "mode", "same", mtime_ns=5 * SECOND + 5, mode=0o600)
    overlay.file(overlay.upper, "size", "same!", mtime_ns=5 * SECOND + 5)
    overlay.file(overlay.upper, "fraction", "same", mtime_ns=5 * SECOND + 6)
    assert overlay.summary() == ["fraction", "mode", "size", "time"]


def test_a_file_that_was_copied_up_and_left_alone_is_no_change(overlay: Overlay) -> None:
    overlay.file(overlay.lower, "d/f", "same", mtime_ns=5 * SECOND + 5)
    overlay.file(overlay.upper, "d/f", "same", mtime_ns=5 * SECOND + 5)
    assert overlay.summary() == []
    assert not overlay.changes().exact


def test_contents_decide_where_times_have_lost_their_fraction(overlay: Overlay) -> None:
    for name, before, after in (("same", "content", "content"), ("other", "content", "CONTENT"), ("empty", "", "")):
        overlay.file(overlay.lower, name, before)
        overlay.file(overlay.upper, name, after)
    assert overlay.summary() == ["other"]


def test_whiteouts_count_only_where_something_was(overlay: Overlay) -> None:
    overlay.file(overlay.lower, "d/old")
    overlay.directory(overlay.lower, "tree/below")
    overlay.whiteout("d/old")
    overlay.whiteout("d/never")
    overlay.whiteout("tree")
    assert overlay.summary() == ["d/", "d/old gone", "tree gone"]


def test_a_directory_made_again_gives_one_whiteout_per_lost_name(overlay: Overlay) -> None:
    for path in ("d/gone", "d/sub/x", "d/lost/y", "d/changed", "d/same"):
        overlay.file(overlay.lower, path, "before")
    overlay.file(overlay.upper, "d/changed", "after!", mtime_ns=6 * SECOND)
    overlay.file(overlay.upper, "d/same", "before")
    overlay.file(overlay.upper, "d/sub/new")
    overlay.opaque("d")
    expected = ["d/", "d/changed", "d/gone gone", "d/lost gone", "d/sub/", "d/sub/new", "d/sub/x gone"]
    assert sorted(overlay.summary()) == expected
    assert not overlay.changes().exact


def test_the_mark_that_every_new_directory_gets_means_nothing(overlay: Overlay) -> None:
    overlay.file(overlay.lower, "was_file")
    overlay.file(overlay.upper, "new/f")
    overlay.file(overlay.upper, "was_file/f")
    overlay.opaque("new")
    overlay.opaque("was_file")
    changes = overlay.changes()
    assert [describe(entry) for entry in changes.entries] == ["new/", "new/f", "was_file/", "was_file/f"]
    assert changes.exact
    assert changes.unmarked == ("new", "was_file")


def test_what_takes_the_place_of_another_kind_is_the_new_entry_alone(overlay: Overlay) -> None:
    overlay.file(overlay.lower, "d/x")
    overlay.file(overlay.lower, "e/x")
    overlay.file(overlay.upper, "d", "now a file")
    (overlay.upper / "e").symlink_to("d")
    assert overlay.summary() == ["d", "e -> d"]


def test_hard_links_made_together_stay_together(overlay: Overlay) -> None:
    path = overlay.file(overlay.upper, "b/first", "x")
    (overlay.upper / "a").hardlink_to(path)
    overlay.directory(overlay.upper, "c")
    (overlay.upper / "c/third").hardlink_to(path)
    assert overlay.summary() == ["a", "b/", "b/first = a", "c/", "c/third = a"]


def test_a_new_name_of_an_unchanged_file_is_a_file_of_its_own(overlay: Overlay) -> None:
    overlay.file(overlay.lower, "old", "x", mtime_ns=5 * SECOND + 1)
    path = overlay.file(overlay.upper, "old", "x", mtime_ns=5 * SECOND + 1)
    (overlay.upper / "new").hardlink_to(path)
    assert overlay.summary() == ["new"]


def test_a_changed_file_in_an_opaque_directory_keeps_its_unchanged_names(overlay: Overlay) -> None:
    overlay.file(overlay.lower, "d/kept", "x", mtime_ns=5 * SECOND + 1)
    path = overlay.file(overlay.upper, "d/kept", "x", mtime_ns=5 * SECOND + 1)
    (overlay.upper / "d/more").hardlink_to(path)
    overlay.opaque("d")
    assert sorted(overlay.summary()) == ["d/", "d/kept = d/more", "d/more"]


def test_sockets_and_private_attributes_are_left_out(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(overlay.upper)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
    path = overlay.file(overlay.upper, "f")
    os.setxattr(path, "user.secret", b"x")
    assert [(entry.path, entry.xattrs) for entry in overlay.changes().entries] == [("f", ())]


def test_stubs_leave_no_trace_unless_something_was_put_into_them(overlay: Overlay) -> None:
    overlay.directory(overlay.lower, "etc")
    overlay.file(overlay.lower, "etc/hosts", "")
    overlay.file(overlay.upper, "etc/resolv.conf", "")
    overlay.file(overlay.upper, "etc/hosts", "", mode=0o600)
    overlay.directory(overlay.upper, "cache/deep")
    overlay.file(overlay.upper, "used/deep/f", "kept")
    changes = overlay.changes("etc/resolv.conf", "etc/hosts", "cache", "cache/deep", "used", "used/deep")
    assert [describe(entry) for entry in changes.entries] == ["etc/", "etc/hosts", "used/", "used/deep/", "used/deep/f"]
    assert changes.stubs == ("cache", "etc/resolv.conf")


def test_a_rename_that_overlayfs_stored_as_a_reference_is_an_error(overlay: Overlay) -> None:
    os.setxattr(overlay.directory(overlay.upper, "moved"), "user.overlay.redirect", b"/old")
    with pytest.raises(UnsupportedOverlay, match="moved"):
        overlay.changes()


def test_without_an_overlay_both_trees_are_compared(overlay: Overlay) -> None:
    for side in (overlay.lower, overlay.upper):
        overlay.file(side, "same/f", "x")
        overlay.file(side, "d/kept", "x")
    overlay.file(overlay.lower, "d/gone")
    overlay.file(overlay.lower, "lost/deep/f")
    overlay.file(overlay.lower, "turned")
    overlay.file(overlay.upper, "turned/f")
    overlay.file(overlay.upper, "d/new")
    overlay.file(overlay.upper, "etc/stub")
    lower, upper = (DirectoryView(os.fspath(side)) for side in (overlay.lower, overlay.upper))
    entries = tree_changes(lower, upper, ignore=("etc/stub", "etc"))
    assert sorted(describe(entry) for entry in entries) == [
        "d/",
        "d/gone gone",
        "d/new",
        "lost gone",
        "turned/",
        "turned/f",
    ]
