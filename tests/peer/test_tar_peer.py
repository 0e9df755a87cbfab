"""Our tars as GNU tar and Python's tarfile read them, and theirs as we read them."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from pybuild.layers.compression import Compression, compressor, decompressed
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.tar_read import TarReader
from pybuild.layers.tar_write import write_tar
from pybuild.layers.trees import remove_tree
from pybuild.layers.unpack import unpack_layer
from pybuild.layers.xattrs import Ownership

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar"),
]

ENTRIES = [
    LayerEntry("d", Kind.DIRECTORY, mode=0o1755, mtime_ns=100 * 10**9),
    LayerEntry("d/f", Kind.FILE, mode=0o4711, data=b"content", mtime_ns=200 * 10**9),
    LayerEntry("d/hard", Kind.HARDLINK, link="d/f"),
    LayerEntry("d/link", Kind.SYMLINK, link="../" + "t" * 150, mtime_ns=10**9),
    LayerEntry("d/" + "n" * 200, Kind.FILE, data=b"long", mtime_ns=10**9),
    LayerEntry("d/" + "p" * 90 + "/" + "q" * 90, Kind.FILE, data=b"prefix", mtime_ns=10**9),
    LayerEntry("d/" + "p" * 90, Kind.DIRECTORY, mtime_ns=10**9),
    LayerEntry("ünïcode €", Kind.FILE, data=b"name", mtime_ns=10**9),
    LayerEntry("bytes\udcff\udc80", Kind.FILE, data=b"raw", mtime_ns=10**9),
    LayerEntry("fifo", Kind.FIFO, mode=0o600, mtime_ns=10**9),
    LayerEntry("old", Kind.FILE, data=b"", mtime_ns=-5 * 10**9),
    LayerEntry("big", Kind.FILE, data=bytes(range(256)) * 20_000, mtime_ns=10**9),
]


def our_tar(path: Path) -> Path:
    with path.open("wb") as out:
        write_tar(ENTRIES, out.write)
    return path


def listing(root: Path) -> dict[bytes, tuple[object, ...]]:
    out: dict[bytes, tuple[object, ...]] = {}
    for folder, directories, files in os.walk(os.fsencode(root)):
        for name in directories + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content: bytes = b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            out[os.path.relpath(path, os.fsencode(root))] = (
                status.st_mode,
                status.st_mtime_ns,
                status.st_nlink,
                content,
            )
    return out


def test_gnu_tar_and_we_unpack_our_tars_to_the_same(tmp_path: Path) -> None:
    tar = our_tar(tmp_path / "our.tar")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    result = subprocess.run(
        ["tar", "-xpf", tar, "-C", theirs], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    assert result.returncode == 0, result.stderr
    with tar.open("rb") as stream:
        unpack_layer(stream, os.fspath(ours), ownership=Ownership.probe(os.fspath(tmp_path)))
    assert listing(ours) == listing(theirs)
    assert len(listing(ours)) == len(ENTRIES)


def test_python_reads_our_tars_as_they_were_meant(tmp_path: Path) -> None:
    with tarfile.open(our_tar(tmp_path / "our.tar"), errors="surrogateescape") as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert members.keys() == {entry.path for entry in ENTRIES}
    for entry in ENTRIES:
        member = members[entry.path]
        if entry.kind is not Kind.HARDLINK:
            mode = 0o777 if entry.kind is Kind.SYMLINK else entry.mode
            assert (member.mode, member.mtime) == (mode, entry.mtime_ns // 10**9)


def fill(root: Path) -> None:
    root.mkdir()
    (root / "d").mkdir(mode=0o750)
    (root / "d/f").write_text("content")
    (root / "d/hard").hardlink_to(root / "d/f")
    (root / "d/link").symlink_to("x" * 150)
    (root / ("d/" + "l" * 180)).write_text("long name")
    (root / "ünï").write_text("unicode")
    Path(os.fsdecode(os.fsencode(root) + b"/raw\xff")).write_text("bytes")
    with (root / "sparse").open("wb") as file:
        for position in (0, 1 << 20, 5 << 20, (9 << 20) + 17):
            file.seek(position)
            file.write(b"island" * 10)
        file.truncate(12 << 20)
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(10**9, 1_500_000_000_123_456_789), follow_symlinks=False)


@pytest.mark.parametrize(
    "flags",
    [
        ["--format=v7"],
        ["--format=ustar"],
        ["--format=oldgnu"],
        ["--format=gnu"],
        ["--format=gnu", "--sparse"],
        ["--format=posix"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=posix", "--xattrs"],
    ],
    ids=" ".join,
)
def test_every_format_of_gnu_tar_is_unpacked_as_gnu_tar_does(tmp_path: Path, flags: list[str]) -> None:
    source, theirs, ours = tmp_path / "source", tmp_path / "theirs", tmp_path / "ours"
    fill(source)
    if flags[0] in ("--format=v7", "--format=ustar"):  # which can't hold these
        (source / "d/link").unlink()
        (source / ("d/" + "l" * 180)).unlink()
    tar = tmp_path / "t.tar"
    subprocess.run(["tar", *flags, "-cf", tar, "-C", source, "."], check=True)
    theirs.mkdir()
    subprocess.run(["tar", "-xpf", tar, "-C", theirs], check=True)
    ours.mkdir()
    with tar.open("rb") as stream:
        report = unpack_layer(stream, os.fspath(ours), ownership=Ownership.probe(os.fspath(tmp_path)))
    assert report.stands_alone
    assert listing(ours) == listing(theirs)
    if "--sparse" in flags:
        assert (ours / "sparse").stat().st_blocks * 512 < 1 << 20
        with tar.open("rb") as stream:
            reader = TarReader(stream)
            sizes = {entry.path: len(reader.read()) for entry in reader}
        assert sizes["sparse"] == 12 << 20


@pytest.mark.parametrize(("kind", "tool"), [(Compression.GZIP, "gzip"), (Compression.ZSTD, "zstd")])
def test_compressors_and_we_read_each_other(kind: Compression, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    data = os.urandom(300_000) + b"text " * 500_000
    packed = bytearray()
    with compressor(kind, packed.extend, threads=2) as out:
        out.write(data)
    assert subprocess.run([tool, "-dc"], input=bytes(packed), capture_output=True, check=True).stdout == data
    theirs = subprocess.run([tool, "-c"], input=data, capture_output=True, check=True).stdout
    assert decompressed(io.BytesIO(theirs)).readall() == data


def test_a_tar_of_many_files_is_the_same_from_both_sides(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    entries = []
    for number in range(3000):
        path = source / f"f{number}"
        path.write_bytes(bytes([number % 256]) * (number % 2000))
        entries.append(LayerEntry(path.name, Kind.FILE, size=number % 2000, host_path=os.fspath(path), mtime_ns=10**9))
    with (tmp_path / "t.tar").open("wb") as out:
        write_tar(entries, out.write)
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "t.tar", "-C", target], check=True)
    assert subprocess.run(["diff", "-r", source, target]).returncode == 0
    remove_tree(os.fspath(target))
    assert not target.exists()
