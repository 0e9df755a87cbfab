"""Plain progress, seen from the command line: which internal steps are told, and in what order."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, write_files

pytestmark = pytest.mark.integration


def titles(output: str) -> list[str]:
    return re.findall(r"^#\d+ (\[.*)$", output, re.MULTILINE)


def test_bases_are_resolved_before_the_ignore_file_is_told(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"a": "x", "Dockerfile": "FROM busybox\nCOPY a /\n"})
    shown = titles(pybuild.run("build", "--progress=plain", str(context)).stderr)
    assert shown[:3] == [
        "[internal] load build definition from Dockerfile",
        "[internal] load metadata for docker.io/library/busybox:latest",
        "[internal] load .dockerignore",
    ]


def test_the_ignore_file_is_told_once_for_several_platforms_and_without_any_base(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"a": "x", "Dockerfile": "FROM scratch\nCOPY a /\n"})
    platforms = "--platform=linux/amd64,linux/arm64"
    shown = titles(pybuild.run("build", "--progress=plain", platforms, "--output=type=cacheonly", str(context)).stderr)
    assert shown[:2] == ["[internal] load build definition from Dockerfile", "[internal] load .dockerignore"]
    assert shown.count("[internal] load .dockerignore") == 1


def test_the_last_lines_of_a_failed_step_carry_their_times(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"Dockerfile": "FROM busybox\nRUN echo one; echo two; exit 3\n"})
    error = pybuild.run("build", "--progress=plain", str(context), check=False).stderr
    assert re.search(r"------\n > \[2/2\] RUN echo one.*:\n\d+\.\d{3} one\n\d+\.\d{3} two\n------\n", error)
