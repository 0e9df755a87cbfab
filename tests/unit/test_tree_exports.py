"""Exports of trees into directories of this machine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pybuild.builder.contexts_local import LocalContext
from pybuild.builder.tree_export import ExportFailed, entries_of, export_directory
from pybuild.layers.entries import Kind

ME = (os.geteuid(), os.getegid())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "d/e").mkdir(parents=True)
    (root / "d/file").write_bytes(b"x" * 3_000_000)
    (root / "d/empty").write_bytes(b"")
    (root / "d/file").chmod(0o4751)
    os.utime(root / "d/file", ns=(0, 1_500_000_000_123_456_789))
    os.link(root / "d/file", root / "linked")
    (root / "link").symlink_to("d/file")
    os.mkfifo(root / "fifo")
    (root / "d").chmod(0o710)
    os.utime(root / "d", (0, 1_000_000_000))
    return root


def test_files_keep_contents_modes_times_and_links(tree: Path, tmp_path: Path):
    out = tmp_path / "made/out"
    written = export_directory(LocalContext(str(tree)), out, owner=ME)
    assert written == 3_000_000
    assert (out / "d/file").read_bytes() == (tree / "d/file").read_bytes()
    status = (out / "d/file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o4751, 1_500_000_000_123_456_789)
    assert os.path.samefile(out / "d/file", out / "linked")
    assert os.readlink(out / "link") == "d/file"
    assert (out / "fifo").is_fifo()
    assert (stat.S_IMODE((out / "d").stat().st_mode), (out / "d").stat().st_mtime) == (0o710, 1_000_000_000)


def test_an_epoch_is_every_time(tree: Path, tmp_path: Path):
    export_directory(LocalContext(str(tree)), tmp_path / "out", owner=ME, epoch=1_200_000_000)
    assert (tmp_path / "out/d/file").stat().st_mtime == 1_200_000_000
    assert (tmp_path / "out/d").stat().st_mtime == 1_200_000_000


def test_what_is_there_is_merged_with_and_what_stands_in_the_way_goes(tree: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "d/other").write_text("kept")
    (out / "d/file").mkdir()
    (out / "d/file/inner").write_text("gone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / "link").symlink_to(elsewhere)
    (out / "d/e").symlink_to(elsewhere)
    export_directory(LocalContext(str(tree)), out, owner=ME)
    assert (out / "d/other").read_text() == "kept"
    assert (out / "d/file").is_file()
    assert not (out / "d/e").is_symlink()
    assert os.readlink(out / "link") == "d/file"
    assert list(elsewhere.iterdir()) == []


def test_a_destination_that_is_a_file_is_an_error(tree: Path, tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ExportFailed, match="can't write the export to"):
        export_directory(LocalContext(str(tree)), tmp_path / "out", owner=ME)


def test_tar_entries_come_in_order_with_hard_links_and_below_a_prefix(tree: Path):
    entries = list(entries_of(LocalContext(str(tree)), prefix="linux_amd64/"))
    assert [(entry.path, entry.kind) for entry in entries] == [
        ("linux_amd64", Kind.DIRECTORY),
        ("linux_amd64/d", Kind.DIRECTORY),
        ("linux_amd64/d/e", Kind.DIRECTORY),
        ("linux_amd64/d/empty", Kind.FILE),
        ("linux_amd64/d/file", Kind.FILE),
        ("linux_amd64/fifo", Kind.FIFO),
        ("linux_amd64/link", Kind.SYMLINK),
        ("linux_amd64/linked", Kind.HARDLINK),
    ]
    assert entries[-1].link == "linux_amd64/d/file"
