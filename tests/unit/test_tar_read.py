"""Reading tars that others wrote: every format, exact content, bounded memory, errors with an offset."""

from __future__ import annotations

import base64
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.tar_read import InvalidTar, TarEntry, TarReader, clean_path
from pybuild.layers.tar_write import write_tar


def entries(data: bytes) -> list[TarEntry]:
    return list(TarReader(io.BytesIO(data)))


def contents(data: bytes) -> dict[str, bytes]:
    reader = TarReader(io.BytesIO(data))
    return {entry.path: reader.read() for entry in reader}


def python_tar(*infos: tuple[tarfile.TarInfo, bytes], format: int, pax: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, pax_headers=pax, errors="surrogateescape") as tar:
        for info, data in infos:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def info(name: str, **fields: object) -> tarfile.TarInfo:
    result = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(result, key, value)
    return result


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_every_kind_of_entry_is_read_in_every_format(format: int) -> None:
    data = python_tar(
        (info("dir", type=tarfile.DIRTYPE, mode=0o1777, uid=5, gid=6, mtime=100), b""),
        (info("dir/file", mode=0o4755), b"content" * 1000),
        (info("link", type=tarfile.SYMTYPE, linkname="../dir"), b""),
        (info("hard", type=tarfile.LNKTYPE, linkname="./dir/file"), b""),
        (info("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (info("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=17), b""),
        (info("fifo", type=tarfile.FIFOTYPE), b""),
        format=format,
    )
    directory, file, link, hard, null, disk, fifo = entries(data)
    assert (directory.path, directory.kind, directory.mode) == ("dir", Kind.DIRECTORY, 0o1777)
    assert (directory.uid, directory.gid, directory.mtime_ns) == (5, 6, 100_000_000_000)
    assert (file.kind, file.mode, file.size) == (Kind.FILE, 0o4755, 7000)
    assert (link.kind, link.link) == (Kind.SYMLINK, "../dir")
    assert (hard.kind, hard.link, hard.size) == (Kind.HARDLINK, "dir/file", 0)
    assert (null.kind, null.device, disk.kind, disk.device) == (Kind.CHARACTER, (1, 3), Kind.BLOCK, (8, 17))
    assert fifo.kind is Kind.FIFO
    assert contents(data)["dir/file"] == b"content" * 1000
    assert data[file.data_offset : file.data_offset + 7000] == b"content" * 1000


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_long_and_odd_names_and_large_numbers_are_read(format: int) -> None:
    names = ["n" * 300, "d/" * 150 + "leaf", "ünïcode", "bad\udcffbytes"]
    data = python_tar(
        *((info(name, uid=1 << 25, gid=1 << 26), b"x") for name in names),
        (info("s", type=tarfile.SYMTYPE, linkname="t" * 400), b""),
        (info("old", mtime=-100), b""),
        format=format,
    )
    found = entries(data)
    assert [entry.path for entry in found[:4]] == names
    assert {(entry.uid, entry.gid) for entry in found[:4]} == {(1 << 25, 1 << 26)}
    assert found[4].link == "t" * 400
    assert found[5].mtime_ns == -100_000_000_000


def test_ustar_prefixes_are_joined() -> None:
    name = "d" * 120 + "/" + "n" * 90
    assert entries(python_tar((info(name), b""), format=tarfile.USTAR_FORMAT))[0].path == name


def test_a_v7_directory_is_known_by_its_slash() -> None:
    block = bytearray(512)
    block[:4] = b"dir/"
    block[100:108] = b"0000755\0"
    block[124:136] = b"00000000000 "
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    (entry,) = entries(bytes(block) + bytes(1024))
    assert (entry.path, entry.kind, entry.mode) == ("dir", Kind.DIRECTORY, 0o755)


def test_fractional_times_and_attributes_come_from_pax_records() -> None:
    records = {
        "mtime": "12.345678901234",
        "SCHILY.xattr.user.a": "value=with\nodd",
        "LIBARCHIVE.xattr.user.%62": base64.b64encode(b"\x00\xff").decode().rstrip("="),
        "LIBARCHIVE.xattr.user.a": base64.b64encode(b"SCHILY wins").decode(),
    }
    (entry,) = entries(python_tar((info("f", pax_headers=records), b""), format=tarfile.PAX_FORMAT))
    assert entry.mtime_ns == 12_345_678_901
    assert entry.xattrs == (("user.a", b"value=with\nodd"), ("user.b", b"\x00\xff"))


def test_global_pax_headers_are_passed_over() -> None:
    data = python_tar((info("f", mtime=7), b"x"), format=tarfile.PAX_FORMAT, pax={"comment": "c", "mtime": "99"})
    (entry,) = entries(data)
    assert (entry.path, entry.mtime_ns) == ("f", 7_000_000_000)
    only_global = python_tar(format=tarfile.PAX_FORMAT, pax={"comment": "c"})
    assert entries(only_global) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [("a/b", "a/b"), ("./a", "a"), ("/a//b/", "a/b"), ("../../a", "a"), ("a/../../b", "b"), ("a/./b/..", "a"), (".", ""), ("", ""),
     ("/", ""), ("...", "..."), ("a..b", "a..b")],
)  # fmt: skip
def test_paths_are_made_clean_and_never_leave_the_root(name: str, path: str) -> None:
    assert clean_path(name) == path


def test_an_archive_without_end_blocks_is_accepted_and_one_cut_short_is_not() -> None:
    data = python_tar((info("f"), b"x" * 1000), format=tarfile.USTAR_FORMAT)
    assert [entry.path for entry in entries(data[:1536])] == ["f"]
    for length in (100, 511, 513, 1400, 1535):
        with pytest.raises(InvalidTar) as caught:
            entries(data[:length])
        assert str(caught.value.offset) in str(caught.value)


def test_a_lone_zero_block_inside_is_refused() -> None:
    data = python_tar((info("f"), b""), format=tarfile.USTAR_FORMAT)
    with pytest.raises(InvalidTar, match="zero block"):
        entries(data[:512] + bytes(512) + data[:512] + bytes(1024))


def test_a_wrong_checksum_is_refused_with_its_offset() -> None:
    data = bytearray(python_tar((info("a"), b""), (info("b"), b""), format=tarfile.USTAR_FORMAT))
    data[512] ^= 1
    with pytest.raises(InvalidTar, match="checksum") as caught:
        entries(bytes(data))
    assert caught.value.offset == 512


def test_signed_checksums_of_old_writers_are_accepted() -> None:
    data = bytearray(python_tar((info("n\xe9\xe8"), b""), format=tarfile.USTAR_FORMAT))
    data[148:156] = b"        "
    signed = sum(byte - 256 if byte > 127 else byte for byte in data[:512])
    data[148:156] = b"%06o\0 " % signed
    assert len(entries(bytes(data))) == 1


def pax_bomb(size: int) -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = b"x"
    block[124:136] = b"%011o\0" % size
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(2048)


def test_oversized_extended_headers_are_refused_before_they_are_read() -> None:
    with pytest.raises(InvalidTar, match="extended header"):
        entries(pax_bomb(1 << 32))


def test_an_unknown_type_is_refused() -> None:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = b"M"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(InvalidTar, match="unknown type"):
        entries(bytes(block) + bytes(1024))


def sparse_tar(records: dict[str, str], stored: bytes) -> bytes:
    return python_tar((info("GNUSparseFile.0/f", pax_headers=records), stored), format=tarfile.PAX_FORMAT)


SPARSE = {
    "0.1": sparse_tar(
        {
            "GNU.sparse.name": "f",
            "GNU.sparse.size": "10000",
            "GNU.sparse.numblocks": "2",
            "GNU.sparse.map": "1000,4,9996,4",
        },
        b"headtail",
    ),
    "1.0": sparse_tar(
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f", "GNU.sparse.realsize": "10000"},
        b"2\n1000\n4\n9996\n4\n".ljust(512, b"\0") + b"headtail",
    ),
}


@pytest.mark.parametrize("version", SPARSE)
def test_sparse_files_expand_to_their_real_content(version: str, tmp_path: Path) -> None:
    expected = bytes(1000) + b"head" + bytes(8992) + b"tail"
    (entry,) = entries(SPARSE[version])
    assert (entry.path, entry.size, entry.sparse) == ("f", 10000, ((1000, 4), (9996, 4)))
    assert contents(SPARSE[version]) == {"f": expected}
    reader = TarReader(io.BytesIO(SPARSE[version]))
    next(iter(reader))
    with (tmp_path / "out").open("wb") as out:
        reader.copy_to(out.fileno())
    assert (tmp_path / "out").read_bytes() == expected


@pytest.mark.parametrize("sparse_map", ["9996,4,1000,4", "1000,4,9998,4", "1000,4", "1000,4,2000,99", "1000,4,2000,x"])
def test_a_sparse_map_that_does_not_fit_is_refused(sparse_map: str) -> None:
    with pytest.raises(InvalidTar):
        entries(
            sparse_tar({"GNU.sparse.name": "f", "GNU.sparse.size": "10000", "GNU.sparse.map": sparse_map}, b"headtail")
        )


def test_content_can_be_read_in_pieces_left_out_or_taken_as_a_file() -> None:
    data = python_tar(
        (info("a"), b"a" * 3000), (info("b"), b"b" * 2_500_000), (info("c"), b"c"), format=tarfile.PAX_FORMAT
    )
    reader = TarReader(io.BytesIO(data))
    for entry in reader:
        match entry.path:
            case "a":
                assert reader.read(10) == b"a" * 10
            case "b":
                assert reader.content().read() == b"b" * 2_500_000
            case _:
                assert reader.read() == b"c"
                assert reader.read() == b""
    reader.drain()
    assert reader.offset == len(data)


def test_draining_reaches_the_very_end_of_the_stream() -> None:
    data = python_tar((info("a"), b"x"), format=tarfile.PAX_FORMAT) + b"trailing" * 100
    reader = TarReader(io.BytesIO(data))
    assert len(list(reader)) == 1
    reader.drain()
    assert reader.offset == len(data)


def test_our_own_tars_come_back_as_they_went_in() -> None:
    sent = [
        LayerEntry("d", Kind.DIRECTORY, mode=0o700, uid=1, gid=2, mtime_ns=3_000_000_000),
        LayerEntry("d/f", Kind.FILE, mode=0o644, data=b"data", xattrs=(("security.capability", b"\0=\n\xff"),)),
        LayerEntry("d/l", Kind.SYMLINK, mode=0o777, link="é" * 80),
        LayerEntry("z" * 200, Kind.CHARACTER, device=(5, 1), uid=3_000_000_000),
    ]
    out = bytearray()
    write_tar(sent, out.extend)
    for entry, read in zip(sent, entries(bytes(out)), strict=True):
        assert (read.path, read.kind, read.mode, read.uid, read.gid) == (
            entry.path,
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
        )
        assert (read.mtime_ns, read.link, read.device, read.xattrs) == (
            entry.mtime_ns,
            entry.link,
            entry.device,
            entry.xattrs,
        )


paths = st.lists(
    st.binary(min_size=1, max_size=60).map(lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))),
    min_size=1,
    max_size=4,
).map("/".join).filter(lambda path: clean_path(path) == path)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(
    path=paths,
    link=st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150),
    mode=st.integers(0, 0o7777),
    owner=st.tuples(st.integers(0, (1 << 32) - 2), st.integers(0, (1 << 32) - 2)),
    seconds=st.integers(-(1 << 33), 1 << 33),
    xattrs=st.dictionaries(st.sampled_from(["user.x", "security.capability"]), st.binary(max_size=40)),
    data=st.binary(max_size=2000),
)
def test_whatever_is_written_is_read_back(
    path: str, link: str, mode: int, owner: tuple[int, int], seconds: int, xattrs: dict[str, bytes], data: bytes
) -> None:
    common = {"mode": mode, "uid": owner[0], "gid": owner[1], "mtime_ns": seconds * 1_000_000_000}
    pairs = tuple(sorted(xattrs.items()))
    out = bytearray()
    write_tar(
        [
            LayerEntry(path, Kind.FILE, data=data, xattrs=pairs, **common),  # type: ignore[arg-type]  # mypy joins the values
            LayerEntry("~", Kind.SYMLINK, link=link),
        ],
        out.extend,
    )
    reader = TarReader(io.BytesIO(bytes(out)))
    seen = {entry.path: (entry, reader.read()) for entry in reader}
    entry, content = seen[path]
    assert content == (data if path != "~" else b"")
    assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs) == (
        mode, owner[0], owner[1], seconds * 1_000_000_000, pairs,
    ) or path == "~"  # fmt: skip
    assert seen["~"][0].link == link


SEEDS = [
    python_tar((info("d/f", pax_headers={"mtime": "1.5"}), b"data"), (info("n" * 150), b""), format=tarfile.PAX_FORMAT),
    python_tar((info("n" * 150, uid=1 << 25), b"data"), (info("l", type=tarfile.LNKTYPE, linkname="x"), b""), format=tarfile.GNU_FORMAT),
    *SPARSE.values(),
]  # fmt: skip


def with_checksums(data: bytearray) -> bytes:
    for start in range(0, len(data) - 511, 512):
        block = data[start : start + 512]
        block[148:156] = b"        "
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(data)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=12)), max_size=4),
    st.booleans(),
)
def test_a_damaged_archive_gives_entries_or_our_error(
    seed: bytes, patches: list[tuple[int, bytes]], repair: bool
) -> None:
    data = bytearray(seed)
    for where, patch in patches:
        where %= len(data)
        data[where : where + len(patch)] = patch
    damaged = with_checksums(bytearray(data)) if repair else bytes(data)
    reader = TarReader(io.BytesIO(damaged))
    offset = 0
    try:
        for entry in reader:
            assert ".." not in entry.path.split("/")
            total = 0
            while part := reader.read(1 << 16):
                total += len(part)
                if total > 1 << 20:
                    break
        reader.drain()
    except InvalidTar as error:
        offset = error.offset
    assert 0 <= offset <= len(damaged) + 512


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=3000))
def test_any_bytes_give_entries_or_our_error(data: bytes) -> None:
    try:
        contents(data)
    except InvalidTar:
        pass
