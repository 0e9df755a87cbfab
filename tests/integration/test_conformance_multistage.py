"""Stages, targets and images that stages copy from, seen from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, refused, write_files

pytestmark = pytest.mark.integration


def test_files_come_from_an_image_that_no_stage_names_but_a_stage_goes_first(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox AS golang
RUN mkdir -p /usr/bin && echo -n foo > /usr/bin/go
FROM scratch
COPY --from=busybox /etc/passwd test
COPY --from=golang /usr/bin/go go
COPY --from=0 /usr/bin/go number
""",
        tmp_path / "c",
    )
    assert "root" in (out / "test").read_text()
    assert (out / "go").read_text() == (out / "number").read_text() == "foo"


def test_names_of_stages_ignore_case(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "foo-contents"})
    out = build_files(
        pybuild,
        """
FROM scratch AS STAge0
COPY foo bar
FROM scratch AS staGE1
COPY --from=staGE0 bar baz
FROM scratch
COPY --from=stage1 baz bax
""",
        context,
        "--target=Stage1",
    )
    assert [item.name for item in out.iterdir()] == ["baz"]
    assert (out / "baz").read_text() == "foo-contents"


@pytest.mark.parametrize("source", ["/", "/d2"])
def test_a_stage_must_come_before_what_copies_from_it(pybuild: Command, tmp_path: Path, source: str):
    error = refused(
        pybuild,
        f"""
FROM busybox AS target
COPY --from=build {source} /out
FROM busybox AS build
COPY /Dockerfile /d2
FROM target
""",
        tmp_path / "c",
    )
    assert "cannot copy from stage" in error
    assert "needs to be defined before current stage" in error


def test_a_file_without_stages_is_refused(pybuild: Command, tmp_path: Path):
    assert "dockerfile contains no stages to build" in refused(pybuild, "ARG foo=bar", tmp_path / "c")


def test_a_mistyped_target_gets_a_suggestion(pybuild: Command, tmp_path: Path):
    text = "\nFROM scratch AS build\nCOPY Dockerfile /out\nFROM scratch\nCOPY --from=build /out /\n"
    error = refused(pybuild, text, tmp_path / "c", "--target=bulid")
    assert 'target stage "bulid" could not be found (did you mean build?)' in error


def test_stages_that_nothing_needs_are_neither_resolved_nor_run(pybuild: Command, tmp_path: Path):
    result = pybuild.build(
        """
FROM registry.invalid/no/such:image AS broken
RUN false
FROM busybox AS failing
RUN false
COPY nothing /
FROM busybox AS used
RUN true
FROM failing
FROM used
""",
        tmp_path / "c",
    )
    assert "RUN false" not in result.stderr
    assert "registry.invalid" not in result.stderr


def test_steps_are_numbered_by_stage(pybuild: Command, tmp_path: Path):
    result = pybuild.build(
        """
FROM busybox AS base
WORKDIR /out
RUN echo "base" > base
FROM scratch
COPY --from=base --chmod=0644 /out /out
""",
        tmp_path / "c",
    )
    assert '[base 3/3] RUN echo "base" > base' in result.stderr
    assert "[stage-1 1/1] COPY --from=base --chmod=0644 /out /out" in result.stderr
    assert "[base 2/3] WORKDIR /out" in result.stderr


def test_building_again_takes_no_more_space(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "contents"})
    text = "\nFROM scratch\nCOPY foo /\n"
    pybuild.build(text, context)
    first = pybuild.run("du", "--format=json").stdout
    pybuild.build(text, context)
    assert len(pybuild.run("du", "--format=json").stdout.splitlines()) == len(first.splitlines())
