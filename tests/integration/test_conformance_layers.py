"""What layers contain, entry by entry, in exported OCI layouts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_image, write_files

pytestmark = pytest.mark.integration


def test_every_run_and_every_workdir_but_the_root_is_a_layer(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"file": "x"})
    image = build_image(
        pybuild,
        """
FROM busybox
RUN true
WORKDIR /tmp
WORKDIR /
COPY file /
COPY file /
COPY nothing* /
RUN touch -d @1000000000 /home && : directory
RUN touch -d @1000000000 /file
""",
        context,
    )
    assert image.empty_layers[1:] == [False, False, True, False, False, False, False, False]
    assert [image.names(n) for n in range(1, len(image.layers))] == [[], [], ["file"], [], [], [], ["file"]]


def test_the_first_run_brings_the_folders_that_the_kernel_is_mounted_on(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        """
FROM scratch
COPY --from=busybox /bin/busybox /bin/sh
RUN : first
RUN : second
RUN --mount=type=tmpfs,target=/var/tmp/x --mount=type=bind,target=/mnt --mount=type=cache,target=/root/.cache : third
""",
        tmp_path / "c",
    )
    assert [(entry.name, entry.kind, entry.mode, entry.owner) for entry in image.layers[1]] == [
        ("dev/", "dir", 0o755, (0, 0)),
        ("proc/", "dir", 0o755, (0, 0)),
        ("sys/", "dir", 0o755, (0, 0)),
    ]
    assert image.layers[2] == image.layers[3] == ()


def test_lost_names_are_whiteouts_and_replaced_ones_are_just_the_new_entry(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        """
FROM busybox
RUN mkdir -p d/sub e f g; touch d/one d/sub/two e/in f/in g/in h
RUN rm -rf d && mkdir d && touch d/new
RUN rm -rf e && touch e && rm -rf f && ln -s g f
RUN rm -rf g h && mkdir h
RUN touch new && rm new; mkdir gone && rm -r gone
""",
        tmp_path / "c",
    )
    assert sorted(image.names(2)) == ["d/", "d/.wh.one", "d/.wh.sub", "d/new"]
    assert [(entry.name, entry.kind) for entry in image.layers[3]] == [("e", "file"), ("f", "symlink")]
    assert sorted((entry.name, entry.kind) for entry in image.layers[4]) == [(".wh.g", "file"), ("h/", "dir")]
    assert image.layers[5] == ()


def test_hard_links_stay_within_one_layer(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"d/one": "x"})
    os.link(context / "d/one", context / "d/two")
    image = build_image(
        pybuild,
        """
FROM busybox
COPY d /d
RUN ln /d/one /three
RUN echo y > /a && ln /a /b
""",
        context,
    )
    copied = [(entry.name, entry.kind, entry.link) for entry in image.layers[1]]
    assert copied == [("d/", "dir", ""), ("d/one", "file", ""), ("d/two", "hardlink", "d/one")]
    assert [(entry.name, entry.kind) for entry in image.layers[2]] == [("three", "file")]
    assert image.entry(2, "three").content == b"x"
    assert [(entry.name, entry.kind, entry.link) for entry in image.layers[3]] == [
        ("a", "file", ""),
        ("b", "hardlink", "a"),
    ]


def test_modes_times_and_owners_of_the_context(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"d/run": "x", "d/private": "y", "top": "z"})
    (context / "d/run").chmod(0o4751)
    (context / "d").chmod(0o1770)
    os.chown(context / "d/private", 1234, 1235)
    os.setxattr(context / "top", "user.note", b"n")
    os.utime(context / "d/private", ns=(0, 1_500_000_000_123_456_789))
    image = build_image(pybuild, "FROM busybox\nUSER 7\nCOPY d /a/b/d\nCOPY top /\nCOPY d/private /kept\n", context)
    assert {entry.name: (entry.mode, entry.owner) for entry in image.layers[1]} == {
        "a/": (0o755, (0, 0)),
        "a/b/": (0o755, (0, 0)),
        "a/b/d/": (0o755, (0, 0)),  # made for the copy: only what is in the source keeps its mode
        "a/b/d/private": (0o600, (0, 0)),
        "a/b/d/run": (0o4751, (0, 0)),
    }
    assert not [key for key in image.entry(2, "top").pax if "xattr" in key.lower()]
    assert int(image.entry(3, "kept").mtime) == 1_500_000_000


def test_copies_between_stages_keep_owners_and_modes(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        """
FROM busybox AS from
RUN mkdir -p /s/dir && touch /s/dir/file /s/setuid && chown 10:20 /s/dir /s/dir/file && chmod 2750 /s/dir && chmod 6755 /s/setuid && mkfifo /s/fifo && ln -s nowhere /s/dangling
FROM busybox
USER 33
COPY --from=from /s /t/
COPY --from=from --chown=www-data --chmod=u=rwX,go=rX /s/dir /u/
""",
        tmp_path / "c",
    )
    assert {entry.name: (entry.kind, entry.mode & 0o7777, entry.owner) for entry in image.layers[1]} == {
        "t/": ("dir", 0o755, (0, 0)),
        "t/dangling": ("symlink", 0o777, (0, 0)),
        "t/dir/": ("dir", 0o2750, (10, 20)),
        "t/dir/file": ("file", 0o644, (10, 20)),
        "t/fifo": ("fifo", 0o644, (0, 0)),
        "t/setuid": ("file", 0o6755, (0, 0)),
    }
    assert {entry.owner for entry in image.layers[2]} == {(33, 33)}


def test_steps_leave_no_trace_of_their_resolver_files_and_devices(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        """
FROM busybox
RUN cat /etc/hosts /etc/resolv.conf > /dev/null; echo x > /dev/shm/x; touch /tmp/kept
""",
        tmp_path / "c",
    )
    assert image.names(1) == ["tmp/", "tmp/kept"]
    assert image.entry(1, "tmp/").mode == 0o1777


def test_a_volume_neither_makes_its_folder_nor_freezes_it(pybuild: Command, tmp_path: Path):
    image = build_image(pybuild, "FROM busybox\nVOLUME /data\nRUN mkdir /data && echo x > /data/x\n", tmp_path / "c")
    assert image.empty_layers[1:] == [True, False]
    assert image.names(1) == ["data/", "data/x"]
    assert image.config["Volumes"] == {"/data": {}}


def test_two_builds_in_two_stores_give_the_same_layers(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"d/one": "x", "d/two": "y"})
    os.utime(context / "d", (0, 0))
    text = "FROM busybox\nCOPY d /d\nWORKDIR /w\nRUN touch -d @5 /w/file /w\n"
    first = build_image(pybuild, text, context, "--no-cache", "--source-date-epoch=10")
    second = build_image(pybuild, text, context, "--no-cache", "--source-date-epoch=10")
    assert first.manifest == second.manifest
