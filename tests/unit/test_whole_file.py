"""Destinations that users name: files appear whole or not at all, and what is no plain file stays what it is."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from pybuild.layers.whole_file import whole_file


def write(path: Path, data: bytes) -> None:
    with whole_file(path) as out:
        out.write(data)


def test_a_file_is_made_and_replaced(tmp_path: Path):
    for data in (b"long content", b"short"):
        write(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"old")

    def fail() -> None:
        with whole_file(tmp_path / "file") as out:
            out.write(b"new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_symbolic_link_is_followed_and_stays(tmp_path: Path):
    (tmp_path / "link").symlink_to("target")
    for data in (b"made", b"replaced"):
        write(tmp_path / "link", data)
        assert (tmp_path / "target").read_bytes() == data
        assert os.readlink(tmp_path / "link") == "target"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write(pipe, b"content")
    reader.join(10)
    assert got == [b"content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device needs root")
def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        write(device, b"content")
    except PermissionError:
        pytest.skip("devices can't be made or used here")
    assert stat.S_ISCHR(device.stat().st_mode)
    assert os.listdir(tmp_path) == ["null"]


def test_what_cant_be_written_says_so(tmp_path: Path):
    with pytest.raises(IsADirectoryError):
        write(tmp_path, b"")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "file", b"")
