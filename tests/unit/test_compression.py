"""Compression both ways: bytes that only the input decides, and readers that notice damage and bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.compression import (
    Compression,
    CorruptStream,
    ReadAhead,
    StreamTooLarge,
    compressor,
    decompressed,
    sniff,
)

CHANCE = random.Random(4)
LARGE = b"".join(CHANCE.randbytes(2000) + b"some text that repeats " * 90 for _ in range(900))


def compress(
    kind: Compression, data: bytes, *, level: int | None = None, threads: int = 1, piece: int = 1 << 20
) -> bytes:
    out = bytearray()
    with compressor(kind, out.extend, level=level, threads=threads) as writer:
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
    return bytes(out)


def expand(data: bytes) -> bytes:
    return decompressed(io.BytesIO(data)).readall()


@pytest.mark.parametrize("kind", list(Compression))
@pytest.mark.parametrize("data", [b"", b"x", LARGE[: 1 << 20], LARGE[: (1 << 20) + 1], LARGE])
def test_what_is_compressed_comes_back(kind: Compression, data: bytes) -> None:
    packed = compress(kind, data, threads=2)
    assert expand(packed) == data
    if kind is Compression.GZIP:
        assert gzip.decompress(packed) == data
    if kind is Compression.ZSTD:
        assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read() == data


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.ZSTD])
@pytest.mark.parametrize("level", [None, 1, 3, 9])
def test_output_depends_on_neither_threads_nor_pieces(kind: Compression, level: int | None) -> None:
    expected = compress(kind, LARGE, level=level)
    assert compress(kind, LARGE, level=level, threads=2, piece=70_001) == expected
    assert compress(kind, LARGE, level=level, threads=3, piece=3 << 20) == expected
    assert len(expected) < len(LARGE)


@pytest.mark.parametrize("level", range(10))
def test_every_gzip_level_is_one_valid_member(level: int) -> None:
    packed = compress(Compression.GZIP, LARGE[:1_500_000], level=level, threads=2)
    reader = zlib.decompressobj(31)
    assert reader.decompress(packed) == LARGE[:1_500_000]
    assert reader.eof
    assert not reader.unused_data
    # No name and no time (RFC 1952).
    assert packed[3] == 0
    assert packed[4:8] == bytes(4)


def test_higher_gzip_levels_give_smaller_results() -> None:
    sizes = [len(compress(Compression.GZIP, LARGE, level=level)) for level in (1, 6, 9)]
    assert sizes[0] > sizes[1] >= sizes[2]


def test_incompressible_pieces_cost_no_room_and_hide_none_of_what_repeats() -> None:
    noise, text = CHANCE.randbytes(1 << 20), b"some text that repeats " * 20_000
    for mixed in (noise, noise + text + noise[::-1], text + noise[:300_000] + text, noise[:140_000] + text * 3 + noise):
        packed = compress(Compression.GZIP, mixed, threads=2, piece=333_333)
        assert gzip.decompress(packed) == mixed
        assert packed == compress(Compression.GZIP, mixed)
        random_bytes = len(mixed) - mixed.count(b"some text that repeats ") * len(b"some text that repeats ")
        assert len(packed) < random_bytes * 1.001 + 20_000


@pytest.mark.parametrize(("kind", "level"), [(Compression.GZIP, 10), (Compression.ZSTD, 23), (Compression.GZIP, -1)])
def test_a_level_that_does_not_exist_is_a_usage_error(kind: Compression, level: int) -> None:
    with pytest.raises(UsageError, match=str(level)):
        compressor(kind, lambda data: None, level=level)


def test_names_and_media_types_map_both_ways() -> None:
    assert Compression.parse("zstd") is Compression.ZSTD
    with pytest.raises(UsageError, match="estargz"):
        Compression.parse("estargz")
    for kind in Compression:
        assert Compression.of_media_type(kind.oci_media_type) is kind
        assert Compression.of_media_type(kind.docker_media_type) is kind
    assert Compression.of_media_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip") is Compression.GZIP


PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_streams_are_recognised_by_content_and_may_be_joined(kind: str) -> None:
    pack = PACKERS[kind]
    packed = pack(b"first " * 1000) + pack(b"") + pack(b"second" * 50_000)
    assert sniff(packed[:6]) == kind
    stream = decompressed(io.BytesIO(packed))
    assert stream.kind == kind
    assert stream.readall() == b"first " * 1000 + b"second" * 50_000


@pytest.mark.parametrize("kind", PACKERS)
def test_a_stream_that_arrives_byte_by_byte_is_read(kind: str) -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(1)

    data = LARGE[:5000]
    assert decompressed(Trickle(PACKERS[kind](data) * 2)).readall() == data * 2


@pytest.mark.parametrize("kind", PACKERS)
def test_a_truncated_stream_is_noticed_wherever_it_ends(kind: str) -> None:
    packed = PACKERS[kind](LARGE[:3000])
    for length in [*range(6, len(packed), 37), len(packed) - 1]:
        with pytest.raises(CorruptStream):
            expand(packed[:length])


@pytest.mark.parametrize("kind", PACKERS)
def test_a_truncated_second_member_is_noticed(kind: str) -> None:
    packed = PACKERS[kind](LARGE[:3000])
    for length in (7, 40, len(packed) - 1):
        with pytest.raises(CorruptStream):
            expand(packed + packed[:length])


@pytest.mark.parametrize("kind", PACKERS)
def test_a_damaged_checksum_is_noticed(kind: str) -> None:
    packed = bytearray(PACKERS[kind](LARGE[:200_000]))
    packed[len(packed) // 2] ^= 4
    with pytest.raises(CorruptStream):
        expand(bytes(packed))


def test_zero_padding_after_gzip_is_ignored_and_anything_else_refused() -> None:
    assert expand(gzip.compress(b"data") + bytes(10_000)) == b"data"
    with pytest.raises(CorruptStream, match="follows"):
        expand(gzip.compress(b"data") + b"rubbish!")


def test_gzip_headers_with_every_optional_field_are_read() -> None:
    body = gzip.compress(b"payload" * 100, mtime=5)[10:]
    header = (
        b"\x1f\x8b\x08"
        + bytes([2 | 4 | 8 | 16])
        + b"\x01\x02\x03\x04\x02\x03"
        + b"\x04\x00abcd"
        + b"name\0"
        + b"note\0"
    )
    checksum = (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    assert expand(header + checksum + body) == b"payload" * 100


def test_skippable_zstd_frames_are_passed_over() -> None:
    skippable = b"\x52\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"ignored"
    frame = zstandard.ZstdCompressor().compress(LARGE[:50_000])
    assert expand(skippable + frame + skippable + frame + skippable) == LARGE[:50_000] * 2


def test_plain_content_is_passed_through() -> None:
    for data in (b"", b"a", b"plain", LARGE):
        stream = decompressed(io.BytesIO(data))
        assert stream.kind == ""
        assert stream.readall() == data


@pytest.mark.parametrize("kind", PACKERS)
def test_a_bomb_is_stopped_at_the_limit_in_bounded_pieces(kind: str) -> None:
    packed = PACKERS[kind](bytes(64 << 20))
    stream = decompressed(io.BytesIO(packed), limit_bytes=8 << 20)
    sizes: list[int] = []
    with pytest.raises(StreamTooLarge):
        sizes.extend(len(chunk) for chunk in iter(stream.next_chunk, b""))
    assert sum(sizes) <= 8 << 20
    assert max(sizes) <= 2 << 20


def test_a_zstd_frame_that_asks_for_a_huge_window_is_refused() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
    with pytest.raises(CorruptStream):
        expand(frame)


def test_reading_in_small_steps_gives_the_same() -> None:
    stream = decompressed(io.BytesIO(compress(Compression.ZSTD, LARGE)))
    parts = []
    while part := stream.read(123_457):
        parts.append(part)
    assert b"".join(parts) == LARGE
    with io.BufferedReader(decompressed(io.BytesIO(compress(Compression.GZIP, LARGE)))) as buffered:
        assert buffered.read(1000) == LARGE[:1000]
        assert buffered.read() == LARGE[1000:]


def test_read_ahead_hands_on_content_chunks_and_errors() -> None:
    packed = gzip.compress(LARGE)
    seen: list[bytes] = []
    with ReadAhead(decompressed(io.BytesIO(packed)), on_chunk=seen.append) as stream:
        parts = []
        while part := stream.read(100_000):
            parts.append(part)
    assert b"".join(parts) == LARGE == b"".join(seen)
    with ReadAhead(decompressed(io.BytesIO(packed[:-1]))) as stream, pytest.raises(CorruptStream):
        list(iter(stream.next_chunk, b""))


def test_closing_read_ahead_early_stops_its_thread() -> None:
    stream = ReadAhead(decompressed(io.BytesIO(gzip.compress(bytes(64 << 20)))), depth=1)
    stream.read(10)
    stream.close()
    assert not stream._thread.is_alive()


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(PACKERS)), st.binary(max_size=400), st.integers(0, 300), st.binary(max_size=6))
def test_damage_gives_an_error_of_ours_or_data_but_nothing_else(
    kind: str, data: bytes, where: int, patch: bytes
) -> None:
    packed = bytearray(PACKERS[kind](data))
    packed[where : where + len(patch)] = patch
    try:
        decompressed(io.BytesIO(bytes(packed)), limit_bytes=1 << 20).readall()
    except PybuildError:
        pass
