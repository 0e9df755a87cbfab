"""What a later build runs again, and what it finds: seen from the command line."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, read_blobs, refused, write_files

pytestmark = pytest.mark.integration


def cached(stderr: str) -> dict[str, bool]:
    """For each step of a stage by its text, whether it came from the cache."""
    titles = dict(re.findall(r"^#(\d+) \[[^]]*\d+/\d+\] (.*)$", stderr, re.MULTILINE))
    return {title: f"#{number} CACHED" in stderr for number, title in titles.items()}


def test_without_the_cache_everything_or_a_stage_runs_again(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM busybox AS s0
RUN cat /dev/urandom | head -c 100 | sha256sum | tee unique
FROM busybox AS s1
RUN cat /dev/urandom | head -c 100 | sha256sum | tee unique2
FROM scratch
COPY --from=s0 unique /
COPY --from=s1 unique2 /
"""

    def built(*arguments: str) -> tuple[str, str]:
        out = build_files(pybuild, dockerfile, tmp_path / "c", *arguments)
        return (out / "unique").read_text(), (out / "unique2").read_text()

    first, again, filtered = built(), built("--no-cache"), built("--no-cache-filter=s1")
    assert first[0] != again[0]
    assert first[1] != again[1]
    assert again[0] == filtered[0]
    assert filtered[1] not in (first[1], again[1])
    assert built() == filtered


def test_without_the_cache_cache_mounts_are_fresh_but_dressed(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM busybox AS base
ARG FOO=abc
RUN --mount=type=cache,target=/cache,mode=0773 touch /cache/$FOO && ls -l /cache | wc -l > /out && stat -c %a /cache >> /out
FROM scratch
COPY --from=base /out /
"""
    for arguments, expected in (
        ((), "2"),
        (("--no-cache", "--build-arg=FOO=def"), "2"),
        (("--build-arg=FOO=ghi",), "3"),
    ):
        out = build_files(pybuild, dockerfile, tmp_path / "c", *arguments)
        assert (out / "out").read_text() == f"{expected}\n773\n"


def test_a_renamed_file_is_noticed_by_a_wildcard(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"file1": "foo"})
    dockerfile = "FROM busybox\nCOPY file* /files/\nRUN ls /files/file1\n"
    pybuild.build(dockerfile, context)
    (context / "file1").rename(context / "file2")
    assert "No such file or directory" in refused(pybuild, dockerfile, context)


def test_only_what_depends_on_a_change_runs_again(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"a": "1", "b/x": "1", "b/y": "1", "c": "1"})
    dockerfile = "FROM busybox\nCOPY a /\nRUN echo after a\nCOPY b /b/\nRUN echo after b\nADD c /\n"
    names = ["COPY a /", "RUN echo after a", "COPY b /b/", "RUN echo after b", "ADD c /"]

    def run() -> int:
        """How many of the steps came from the cache."""
        found = cached(pybuild.build(dockerfile, context).stderr)
        flags = [found[name] for name in names]
        assert flags == sorted(flags, reverse=True)
        return sum(flags)

    assert [run(), run()] == [0, 5]
    os.utime(context / "a", (1, 1))
    (context / "unrelated").write_text("x")
    assert run() == 5
    stat = (context / "b/x").stat()
    (context / "b/x").write_text("2")
    os.utime(context / "b/x", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run() == 2
    (context / "c").chmod(0o755)
    assert run() == 4
    (context / "b/new").write_text("")
    assert run() == 2
    (context / "b/new").unlink()
    assert run() == 5


def test_a_stage_that_becomes_the_same_again_invalidates_nothing(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM busybox AS build
COPY source /
RUN wc -l < /source > /out
FROM busybox
COPY --from=build /out /
RUN echo after
"""
    for content, expected in (("one\n", False), ("two\n", True)):
        context = write_files(tmp_path / "c", {"source": content})
        found = cached(pybuild.build(dockerfile, context).stderr)
        assert (found["COPY --from=build /out /"], found["RUN echo after"]) == (expected, expected)


def test_an_equal_build_gives_an_equal_image(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"foo": "foo-contents"})
    dockerfile = "FROM busybox\nENV foo=bar\nCOPY foo /\nRUN echo bar > bar\n"
    ids = []
    for name in ("example.com/moby/dockerfileids:test", "example.com/moby/dockerfileids2:test"):
        pybuild.build(dockerfile, context, "-t", name, f"--iidfile={tmp_path / 'id'}")
        ids.append((tmp_path / "id").read_text())
        pybuild.build(dockerfile, context, f"--output=type=oci,dest={tmp_path / 'o.tar'}")
        index = json.loads(read_blobs(tmp_path / "o.tar")["index.json"])
        ids.append(index["manifests"][0]["digest"])
    assert ids[:2] == ids[2:]


def test_arguments_and_variables_invalidate_what_may_use_them(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM busybox\nRUN echo before\nARG A\nRUN echo after\nARG HTTP_PROXY\nRUN echo last\n"
    runs = []
    for arguments in ((), ("--build-arg=A=1",), ("--build-arg=A=1", "--build-arg=https_proxy=http://x")):
        found = cached(pybuild.build(dockerfile, tmp_path / "c", *arguments).stderr)
        runs.append([found[f"RUN echo {name}"] for name in ("before", "after", "last")])
    assert runs == [[False] * 3, [True, False, False], [True] * 3]


def test_all_can_be_freed_after_a_build(pybuild: Command, tmp_path: Path) -> None:
    for _ in range(2):
        pybuild.build("FROM busybox\nRUN echo x > /x\n", tmp_path / "c")
    used = [json.loads(line) for line in pybuild.run("du", "--format=json").stdout.splitlines()]
    assert used
    assert not [entry for entry in used if entry.get("inUse") or entry.get("InUse") is True]
    pybuild.run("prune", "--all", "--force")
    assert pybuild.run("du", "--format=json").stdout.strip() in ("", "[]")


def test_the_frontend_may_be_named(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "# syntax=docker/dockerfile-upstream:master\nFROM busybox AS build\nRUN echo -n ok > /out\nFROM scratch\nCOPY --from=build /out /out\n"
    for arguments in ((), ("--build-arg=BUILDKIT_SYNTAX=dockerfile.v0",)):
        assert (build_files(pybuild, dockerfile, tmp_path / "c", *arguments) / "out").read_text() == "ok"
    message = refused(pybuild, "# syntax=example.com/other/frontend\nFROM busybox\n", tmp_path / "c")
    assert "example.com/other/frontend" in message


def test_a_missing_file_is_named_even_if_nothing_is_exported(pybuild: Command, tmp_path: Path) -> None:
    message = refused(pybuild, "FROM scratch\nCOPY badfile /\n", tmp_path / "c", "--output=type=cacheonly")
    assert '"/badfile": not found' in message
    assert ">>> COPY badfile /" in message
