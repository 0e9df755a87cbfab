"""The canonical tar: what it holds, in which order, and that only its entries decide its bytes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.tar_write import FileChanged, InvalidEntry, TarSummary, canonical_order, write_tar

SECOND = 1_000_000_000


def tar_bytes(*entries: LayerEntry) -> bytes:
    out = bytearray()
    summary = write_tar(entries, out.extend)
    assert summary.size == len(out)
    return bytes(out)


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return tar.getmembers()


def file(path: str, data: bytes = b"", **fields: object) -> LayerEntry:
    return LayerEntry(path, Kind.FILE, data=data, **fields)  # type: ignore[arg-type]  # the fields are passed on


def test_an_empty_layer_is_two_zero_blocks() -> None:
    data = tar_bytes()
    assert data == bytes(1024)
    # The digest of every empty layer in the world.
    assert Digest.of(data).hex == "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"


def test_the_bytes_of_a_small_layer_never_change() -> None:
    data = tar_bytes(
        LayerEntry("etc", Kind.DIRECTORY, mode=0o755, mtime_ns=SECOND),
        file("etc/hello", b"hello\n", mode=0o4755, uid=1000, gid=1001, mtime_ns=1_700_000_000 * SECOND + 999),
        LayerEntry("etc/link", Kind.SYMLINK, link="hello"),
        LayerEntry("etc/other", Kind.HARDLINK, link="etc/hello"),
        LayerEntry("etc/gone", Kind.WHITEOUT, mtime_ns=5, uid=3),
        LayerEntry(
            "ünïcode" + "x" * 120, Kind.DIRECTORY, uid=3_000_000, xattrs=(("security.capability", b"\x01\x00"),)
        ),
    )
    assert hashlib.sha256(data).hexdigest() == "feb978ffde25cecdc4815d7980004f9c95907c6ddef5e01bea560cd7fab874e5"


def test_entries_follow_a_sorted_walk_whatever_the_order_they_came_in() -> None:
    paths = ["a", "a/b", "a/b/c", "a.txt", "a-b", "b"]
    entries = [LayerEntry(path, Kind.DIRECTORY) for path in paths]
    expected = tar_bytes(*entries)
    for seed in range(5):
        random.Random(seed).shuffle(entries)
        assert tar_bytes(*entries) == expected
    assert [member.name for member in members(expected)] == ["a", "a/b", "a/b/c", "a-b", "a.txt", "b"]


def test_the_last_entry_for_a_path_wins() -> None:
    data = tar_bytes(file("f", b"old"), file("f", b"newer"))
    assert [(member.name, member.size) for member in members(data)] == [("f", 5)]


def test_metadata_is_written_without_fraction_or_names() -> None:
    (member,) = members(tar_bytes(file("f", b"x", mode=0o6755, uid=7, gid=8, mtime_ns=12 * SECOND + 999_999_999)))
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o6755, 7, 8, 12)
    assert (member.uname, member.gname, member.pax_headers) == ("", "", {})


def test_a_time_before_the_epoch_survives() -> None:
    (member,) = members(tar_bytes(file("f", mtime_ns=-5 * SECOND + 1)))
    assert member.mtime == -5


def test_whiteouts_have_their_prefix_and_no_metadata() -> None:
    data = tar_bytes(
        LayerEntry("d", Kind.DIRECTORY), LayerEntry("d/gone", Kind.WHITEOUT, uid=5, mtime_ns=SECOND, mode=0o644)
    )
    whiteout = members(data)[1]
    assert whiteout.name == "d/.wh.gone"
    assert (whiteout.type, whiteout.size, whiteout.uid, whiteout.mtime, whiteout.mode) == (tarfile.REGTYPE, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "path",
    ["n" * 99, "n" * 100, "n" * 101, "d" * 100 + "/" + "n" * 99, "d" * 155 + "/" + "n" * 100, "d" * 156 + "/n", "d/" * 200 + "x",
     "ünïcode", "d/" + "é" * 60, "bad\udcff\udc80name", " leading", "new\nline", "d" * 100 + "/é"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK])
def test_names_of_any_length_and_bytes_survive(path: str, kind: Kind) -> None:
    data = tar_bytes(LayerEntry(path, kind, link=path, data=b"" if kind is Kind.FILE else None))
    (member,) = members(data)
    assert member.name == path
    if kind is Kind.SYMLINK:
        assert member.linkname == path


def test_large_numbers_use_pax_records() -> None:
    (member,) = members(tar_bytes(file("f", uid=1 << 31, gid=0o10000000, mtime_ns=(1 << 33) * SECOND)))
    assert (member.uid, member.gid, member.mtime) == (1 << 31, 0o10000000, 1 << 33)
    assert member.pax_headers == {"uid": str(1 << 31), "gid": str(0o10000000), "mtime": str(1 << 33)}


def test_a_size_beyond_eight_gigabytes_uses_a_pax_record(tmp_path: Path) -> None:
    from pybuild.layers.tar_write import HeaderWriter

    header = HeaderWriter().header(LayerEntry("f", Kind.FILE, size=1 << 33, host_path=str(tmp_path / "f")))
    info = tarfile.TarInfo.frombuf(header[:512], "utf-8", "strict")
    assert info.type == tarfile.XHDTYPE
    assert header[512 : 512 + info.size] == b"19 size=8589934592\n"


def test_devices_and_fifos_keep_their_type_and_numbers() -> None:
    null, disk, fifo = members(
        tar_bytes(
            LayerEntry("a", Kind.CHARACTER, device=(1, 3), mode=0o666),
            LayerEntry("b", Kind.BLOCK, device=(259, 65536)),
            LayerEntry("c", Kind.FIFO),
        )
    )
    assert (null.type, null.devmajor, null.devminor) == (tarfile.CHRTYPE, 1, 3)
    assert (disk.type, disk.devmajor, disk.devminor) == (tarfile.BLKTYPE, 259, 65536)
    assert fifo.type == tarfile.FIFOTYPE


def test_extended_attributes_are_schily_records_with_any_bytes() -> None:
    value = b"\x01\x00\x00\x02=\n\xff\x00"
    data = tar_bytes(file("f", xattrs=(("security.capability", value),)))
    assert b" SCHILY.xattr.security.capability=" + value + b"\n" in data
    (member,) = members(data)
    assert member.pax_headers["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape") == value


def test_a_record_length_counts_its_own_digits() -> None:
    for length in range(80, 110):
        (member,) = members(tar_bytes(file("f", xattrs=(("user.x", b"v" * length),))))
        assert member.pax_headers["SCHILY.xattr.user.x"] == "v" * length


def test_the_first_name_of_a_hard_linked_file_holds_the_content() -> None:
    entries = (
        file("m", b"content", mode=0o600, uid=4),
        LayerEntry("a", Kind.HARDLINK, link="m"),
        LayerEntry("z", Kind.HARDLINK, link="a"),
    )
    first, second, third = members(tar_bytes(*entries))
    assert (first.name, first.type, first.size) == ("a", tarfile.REGTYPE, 7)
    assert (second.name, second.type, second.linkname, second.size) == ("m", tarfile.LNKTYPE, "a", 0)
    assert (third.name, third.linkname) == ("z", "a")
    assert {(member.mode, member.uid) for member in (first, second, third)} == {(0o600, 4)}


@pytest.mark.parametrize(
    "entries",
    [
        (LayerEntry("a", Kind.HARDLINK, link="missing"),),
        (LayerEntry("a", Kind.HARDLINK, link="b"), LayerEntry("b", Kind.HARDLINK, link="a")),
        (LayerEntry("a", Kind.DIRECTORY), LayerEntry("b", Kind.HARDLINK, link="a")),
        (LayerEntry("", Kind.DIRECTORY),),
        (LayerEntry("/abs", Kind.DIRECTORY),),
        (LayerEntry("a/../b", Kind.DIRECTORY),),
        (LayerEntry("./a", Kind.DIRECTORY),),
        (LayerEntry("a/", Kind.DIRECTORY),),
        (LayerEntry("a//b", Kind.DIRECTORY),),
        (LayerEntry("..", Kind.DIRECTORY),),
        (LayerEntry("a\0b", Kind.DIRECTORY),),
        (LayerEntry("a", Kind.SYMLINK, link="a\0b"),),
        (LayerEntry("a", Kind.SOCKET),),
        (LayerEntry("a", Kind.FILE, size=3),),
    ],
)
def test_entries_that_no_layer_can_hold_are_refused(entries: tuple[LayerEntry, ...]) -> None:
    with pytest.raises(InvalidEntry):
        tar_bytes(*entries)


def test_dotted_names_are_not_mistaken_for_parent_references() -> None:
    names = ["...", "..a", "a..", ".hidden/..x", "a.b/.c"]
    assert len(canonical_order(LayerEntry(name, Kind.DIRECTORY) for name in names)) == len(names)


def host_file(path: Path, data: bytes) -> LayerEntry:
    path.write_bytes(data)
    return LayerEntry(path.name, Kind.FILE, size=len(data), host_path=os.fspath(path))


def test_contents_of_all_sizes_come_from_the_host(tmp_path: Path) -> None:
    chance = random.Random(1)
    sizes = [0, 1, 511, 512, 513, 100_000, 262_143, 262_144, (1 << 20) - 512, 1 << 20, (1 << 20) + 1, 3_500_000]
    contents = {f"f{n:02}": chance.randbytes(size) for n, size in enumerate(sizes)}
    entries = [host_file(tmp_path / name, data) for name, data in contents.items()]
    out = bytearray()
    summary = write_tar(entries, out.extend, digests=True)
    assert summary.size == len(out)
    assert dict(summary.file_digests) == {name: Digest.of(data) for name, data in contents.items()}
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert {name: tar.extractfile(name).read() for name in tar.getnames()} == contents  # type: ignore[union-attr]  # all are files


def test_thousands_of_small_files_use_several_slabs(tmp_path: Path) -> None:
    entries = [host_file(tmp_path / f"f{n:04}", bytes([n % 251]) * (n % 3000)) for n in range(1500)]
    data = tar_bytes(*entries)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for n, member in enumerate(tar.getmembers()):
            assert tar.extractfile(member).read() == bytes([n % 251]) * (n % 3000)  # type: ignore[union-attr]  # all are files


def test_a_sparse_file_is_written_with_its_holes_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.seek(3 << 20)
        out.write(b"end")
    size = path.stat().st_size
    data = tar_bytes(LayerEntry("sparse", Kind.FILE, size=size, host_path=os.fspath(path)))
    assert data[512 : 512 + size] == bytes(3 << 20) + b"end"


def test_content_may_be_a_part_of_a_host_file(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(b"x" * 700 + b"small" + b"y" * 300 + b"z" * 2_000_000)
    data = tar_bytes(
        LayerEntry("a", Kind.FILE, size=5, host_path=os.fspath(archive), offset=700),
        LayerEntry("b", Kind.FILE, size=1_500_000, host_path=os.fspath(archive), offset=1005),
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.extractfile("a").read() == b"small"  # type: ignore[union-attr]  # a file
        assert tar.extractfile("b").read() == b"z" * 1_500_000  # type: ignore[union-attr]  # a file


@pytest.mark.parametrize("size", [100, 2_000_000])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_changed_its_size_is_an_error_that_names_it(tmp_path: Path, size: int, change: int) -> None:
    entry = host_file(tmp_path / "moving", bytes(size))
    (tmp_path / "moving").write_bytes(bytes(size + change))
    with pytest.raises(FileChanged, match="moving"):
        tar_bytes(entry)


def test_a_file_that_was_removed_or_replaced_is_an_error(tmp_path: Path) -> None:
    entry = host_file(tmp_path / "f", b"data")
    (tmp_path / "f").unlink()
    with pytest.raises(FileChanged, match="was removed"):
        tar_bytes(entry)
    (tmp_path / "f").symlink_to("/etc/passwd")
    with pytest.raises(FileChanged, match="symlink"):
        tar_bytes(entry)
    (tmp_path / "f").unlink()
    (tmp_path / "f").mkdir()
    with pytest.raises(FileChanged, match="directory"):
        tar_bytes(entry)


def test_an_error_of_the_sink_reaches_the_caller(tmp_path: Path) -> None:
    entries = [host_file(tmp_path / f"f{n}", bytes(900_000)) for n in range(20)]

    def full(view: memoryview) -> None:
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space left"):
        write_tar(entries, full)


def test_the_summary_counts_entries_and_bytes() -> None:
    entries = (file("a", b"x"), file("b"))
    expected = TarSummary(size=2560, entries=2, ordered=entries, offsets=(512, 1536))
    assert write_tar(entries[::-1], lambda view: None) == expected
