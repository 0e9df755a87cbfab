"""Long runs of zeros become holes, and the content stays what it was."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from pybuild.layers.blobs import BlobStore
from pybuild.layers.digest import Digest
from pybuild.layers.holes import is_hole
from pybuild.layers.tar_read import TarReader

MIB = 1 << 20
CONTENTS = {
    "only zeros": bytes(3 * MIB),
    "zeros at the end": b"x" * MIB + bytes(2 * MIB),
    "zeros at the beginning": bytes(2 * MIB) + b"x" * 10,
    "zeros between": b"x" + bytes(3 * MIB) + b"y",
    "a single byte within": bytes(MIB + 17) + b"x" + bytes(2 * MIB),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_blob_with_zeros_is_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "root").mkdir()
    blobs = BlobStore(tmp_path / "root", clock=lambda: 0.0)
    with blobs.ingest() as ingest:
        for start in range(0, len(content), MIB):
            ingest.write(memoryview(content)[start : start + MIB])
        digest, size = ingest.commit()
    assert (digest, size) == (Digest.of(content), len(content))
    assert blobs.path(digest).read_bytes() == content


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_file_of_an_archive_with_zeros_is_whole(tmp_path: Path, content: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("f")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    reader = TarReader(io.BytesIO(out.getvalue()))
    next(iter(reader))
    file = tmp_path / "f"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    reader.copy_to(descriptor)
    os.close(descriptor)
    assert file.read_bytes() == content


def test_holes_take_no_space(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    blobs = BlobStore(tmp_path / "root", clock=lambda: 0.0)
    with blobs.ingest() as ingest:
        for _ in range(32):
            ingest.write(bytes(MIB))
        digest, _ = ingest.commit()
    assert blobs.path(digest).stat().st_blocks * 512 < MIB


def test_what_is_short_or_not_zero_is_no_hole() -> None:
    assert is_hole(bytes(MIB))
    assert is_hole(memoryview(bytes(MIB)))
    assert not is_hole(bytes(100))
    assert not is_hole(b"")
    assert not is_hole(bytes(MIB - 7) + b"x" + bytes(6))
