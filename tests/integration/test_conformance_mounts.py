"""RUN --mount of every type, seen from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, refused, write_files

pytestmark = pytest.mark.integration


def test_binds_and_temporary_file_systems_are_there_for_one_step_only(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"testfile": "contents0", "b.txt": "bar\n", "sub/deep/x": "x"})
    out = build_files(
        pybuild,
        """
FROM busybox AS base
RUN --mount=target=/context [ "$(cat /context/testfile)" == "contents0" ]
RUN --mount=target=/mytmp,type=tmpfs touch /mytmp/foo && [ "$(stat -c %a /mytmp)" = 1777 ]
RUN [ ! -f /mytmp/foo ] && [ ! -e /mytmp ] && [ ! -e /context ]
RUN --mount=type=tmpfs,target=/dev/shm,size=128m mount | grep /dev/shm > /tmpfssize
RUN --mount=source=.,target=/tmp/test --mount=source=b.txt,target=/tmp/b.txt cat /tmp/test/testfile /tmp/b.txt > /both
RUN --mount=source=sub/deep,target=/in ls /in > /deep && ! touch /in/y 2>/dev/null && [ ! -e /in/y ]
RUN --mount=source=sub,target=/in,rw touch /in/y && [ -e /in/y ] && rm -rf /in/deep
RUN --mount=source=b.txt,target=/in,rw echo more >> /in && grep more /in
RUN --mount=source=sub,target=/in --mount=type=tmpfs,target=/in/deep --mount=source=b.txt,target=/in/deep/b cat /in/deep/b > /nested
WORKDIR /w
RUN --mount=target=relative ls relative/testfile /w/relative/testfile
RUN ls -R /w /in 2>/dev/null > /left || true
FROM scratch
COPY --from=base /tmpfssize /both /deep /nested /left /
""",
        context,
    )
    assert "size=131072k" in (out / "tmpfssize").read_text()
    assert (out / "both").read_text() == "contents0bar\n"
    assert (out / "deep").read_text() == "x\n"
    assert (out / "nested").read_text() == "bar\n"
    assert (out / "left").read_text() == "/w:\n"
    assert (context / "b.txt").read_text() == "bar\n"
    assert sorted(path.name for path in (context / "sub").rglob("*")) == ["deep", "x"]


@pytest.mark.parametrize(
    ("flag", "texts"),
    [
        ("--mont=target=/mytmp,type=tmpfs", ["unknown flag: --mont", "did you mean mount?"]),
        ("--mount=typ=tmpfs", ["unexpected key 'typ'", "did you mean type?"]),
        ("--mount=type=tmp", ['unsupported mount type "tmp"', "did you mean tmpfs?"]),
        (
            "--mount=from=$ttt,type=cache,target=/tmp",
            ["'from' doesn't support variable expansion, define alias stage instead"],
        ),
    ],
)
def test_mistakes_in_mounts_are_named(pybuild: Command, tmp_path: Path, flag: str, texts: list[str]) -> None:
    message = refused(pybuild, f"FROM busybox\nENV ttt=test\nRUN {flag} /bin/true\n", tmp_path / "c")
    for text in (*texts, "Dockerfile:3", ">>> RUN --mo"):
        assert text in message


def test_a_writable_bind_is_known_by_its_content(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
from busybox AS build
copy cachebust /
run mkdir out && echo foo > out/foo

from busybox as second
RUN --mount=from=build,src=out,target=/out,rw touch /out/bar && cat /dev/urandom | head -c 100 | sha256sum > /unique

from scratch
COPY --from=second /unique /unique
"""
    unique = set()
    for content in ("0", "1"):
        context = write_files(tmp_path / f"c{content}", {"cachebust": content})
        unique.add((build_files(pybuild, dockerfile, context) / "unique").read_bytes())
    assert len(unique) == 1


def test_a_bind_of_the_context_notices_what_changed(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM busybox AS base
RUN --mount=source=.,target=/tmp/test --mount=source=b.txt,target=/tmp/b.txt cat /tmp/test/a.txt /tmp/b.txt > /combined.txt
FROM scratch
COPY --from=base /combined.txt /
"""
    for text in ("foo\n", "updated\n"):
        context = write_files(tmp_path / "c", {"a.txt": text, "b.txt": "bar\n"})
        assert (build_files(pybuild, dockerfile, context) / "combined.txt").read_text() == text + "bar\n"


def test_cache_mounts_are_known_by_id_and_take_values_from_the_stage(pybuild: Command, tmp_path: Path) -> None:
    pybuild.build(
        """
ARG META_PATH=/tmp/meta
FROM busybox AS owner
RUN --mount=type=cache,target=/mycache,uid=1001,gid=1002,mode=0751 [ "$(stat -c "%u %g %f" /mycache)" == "1001 1002 41e9" ]

FROM busybox AS ids
ENV SOME_PATH=/cache1
ARG MNT_TYPE=cache
RUN --mount=type=cache,target=/cache1 touch /cache1/foo
RUN --mount=type=cache,target=/cache2 [ ! -f /cache2/foo ]
RUN --mount=type=cache,target=$SOME_PATH [ -f $SOME_PATH/foo ]
RUN --mount=type=$MNT_TYPE,target=/cache2 touch /cache2/foo
RUN --mount=type=cache,target=/cache2 [ -f /cache2/foo ]
RUN --mount=type=cache,target=/cache1,ro ! touch /cache1/bar 2>/dev/null

FROM busybox AS stage1
ENV MNT_ID=mine
ENV MNT_TYPE2=cache
RUN --mount=type=cache,id=mine,target=/abcabc touch /abcabc/foo
RUN --mount=type=$MNT_TYPE2,id=$MNT_ID,target=/cbacba [ -f /cbacba/foo ]

FROM stage1 AS stage2
ARG META_PATH
RUN --mount=type=$MNT_TYPE2,id=$MNT_ID,target=/whatever [ -f /whatever/foo ]
RUN --mount=type=cache,id=mine,target=$META_PATH [ -f /tmp/meta/foo ]
RUN --mount=type=bind,from=stage1,source=/etc,target=$META_PATH [ -f /tmp/meta/passwd ]

FROM busybox AS seed
RUN mkdir /init && echo one > /init/file && chown 7:8 /init/file && chmod 700 /init && chown 9 /init

FROM busybox AS seeded
RUN --mount=type=cache,id=seeded,from=seed,source=/init,target=/c [ "$(stat -c %u:%g /c/file)" = 7:8 ] && \\
    [ "$(stat -c %a:%u /c)" = 700:9 ] && echo two > /c/second
RUN --mount=type=cache,id=seeded,from=seed,source=/init,target=/c [ -f /c/second ]

FROM scratch
COPY --from=owner /etc/passwd p1
COPY --from=ids /etc/passwd p2
COPY --from=stage2 /etc/passwd p3
COPY --from=seeded /etc/passwd p4
""",
        tmp_path / "c",
    )


def test_steps_with_nested_cache_mounts_run_side_by_side(pybuild: Command, tmp_path: Path) -> None:
    stages = "".join(
        f"FROM busybox AS b{n}\nRUN --mount=type=cache,target=/foo/bar --mount=type=cache,target=/foo/bar/baz echo {n}\n"
        for n in range(4)
    )
    copies = "".join(f"COPY --from=b{n} /etc/passwd p{n}\n" for n in range(4))
    for _ in range(3):
        pybuild.build(f"{stages}FROM scratch\n{copies}", tmp_path / "c", "--no-cache")


def test_the_source_of_a_cache_mount_stays_inside_the_cache(pybuild: Command, tmp_path: Path) -> None:
    message = refused(
        pybuild,
        """
FROM busybox AS init
RUN --mount=type=cache,id=sourceescape,target=/cache mkdir -p /cache/sel && echo benign > /cache/sel/benign.txt

FROM init AS link
RUN --mount=type=cache,id=sourceescape,target=/cache rm -rf /cache/sel && ln -s /etc /cache/sel

FROM link AS victim
RUN --mount=type=cache,id=sourceescape,source=sel,target=/victim cat /victim/passwd

FROM scratch
COPY --from=victim /etc/passwd /passwd
""",
        tmp_path / "c",
        "--no-cache",
    )
    assert ">>> RUN --mount=type=cache,id=sourceescape,source=sel" in message


def test_locked_and_private_caches_are_not_shared(pybuild: Command, tmp_path: Path) -> None:
    # Each of the two steps fails if the other one is in the same directory at the same time.
    body = "if [ -e /c/busy ]; then exit 1; fi; touch /c/busy; sleep 0.2; rm /c/busy"
    stages = "".join(
        f"FROM busybox AS {sharing}{n}\nRUN --mount=type=cache,id={sharing},sharing={sharing},target=/c {body}; : {n}\n"
        for sharing in ("locked", "private")
        for n in range(2)
    )
    copies = "".join(
        f"COPY --from={name}{n} /etc/passwd {name}{n}\n" for name in ("locked", "private") for n in range(2)
    )
    pybuild.build(f"{stages}FROM scratch\n{copies}", tmp_path / "c")


def test_mount_points_are_not_left_in_the_layer(pybuild: Command, tmp_path: Path) -> None:
    image = build_image(
        pybuild,
        """
FROM busybox
RUN --mount=target=/a/b/c --mount=type=cache,target=/etc/cache --mount=type=tmpfs,target=/d --mount=type=secret,target=/s/t,id=x true
RUN --mount=type=tmpfs,target=/e/f touch /e/kept
""",
        tmp_path / "c",
        "--secret=id=x,env=PATH",
    )
    assert [name for name in image.names(-2) if name not in ("dev/", "proc/", "sys/")] == []
    assert [name for name in image.names(-1) if not name.startswith("e/f")] == ["e/", "e/kept"]
