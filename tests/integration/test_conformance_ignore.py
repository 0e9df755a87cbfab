"""Ignore files and where Dockerfiles come from, seen from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, refused, write_files

pytestmark = pytest.mark.integration


def names(folder: Path) -> list[str]:
    """All files below ``folder``."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_ignored_files_are_not_copied_but_the_dockerfile_is_still_read(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c",
        {
            "foo": "foo-contents",
            "bar": "bar-contents",
            "baz": "baz-contents",
            "bay": "bay-contents",
            ".dockerignore": "\nba*\nDockerfile\n!bay\n.dockerignore\n",
        },
    )
    out = build_files(pybuild, "\nFROM scratch\nCOPY . .\n", context)
    assert names(out) == ["bay", "foo"]


def test_the_last_rule_that_matches_wins_also_below_ignored_folders(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c",
        {
            "dir/keep": "",
            "dir/drop": "",
            "dir/deep/keep": "",
            "logs/a.log": "",
            "logs/b.txt": "",
            "a/b/c.tmp": "",
            "c.tmp": "",
            "Rooted": "",
            "x/Rooted": "",
            "trailing/file": "",
            ".dockerignore": "# comment\n\ufeff\ndir\n!dir/keep\n!dir/deep/**\nlogs/*.log\n**/*.tmp\n/Rooted\n  trailing/  \nDockerfile\n.dockerignore\n",
        },
    )
    out = build_files(pybuild, "FROM scratch\nCOPY . .\n", context)
    assert names(out) == ["dir/deep/keep", "dir/keep", "logs/b.txt", "x/Rooted"]


def test_a_rule_of_nothing_but_the_negation_is_refused(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {".dockerignore": "!\n"})
    assert 'illegal exclusion pattern: "!"' in refused(pybuild, "\nFROM scratch\nCOPY . .\n", context)


def test_an_ignore_file_of_the_dockerfile_goes_before_the_context_s(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c",
        {
            "Dockerfile.dockerignore": "\nbar\n",
            "Dockerfile2": "\nFROM busybox\nCOPY . .\nRUN [ ! -f foo ] && [ -f bar ]\n",
            "Dockerfile2.dockerignore": "\nfoo\n",
            ".dockerignore": "foo\nbar\n",
            "foo": "contents0",
            "bar": "contents0",
        },
    )
    pybuild.build("\nFROM busybox\nCOPY . .\nRUN [ -f foo ] && [ ! -f bar ]\n", context)
    pybuild.run("build", "--progress=plain", "-f", str(context / "Dockerfile2"), str(context))
    pybuild.run("build", "--progress=plain", "-f", "Dockerfile2", ".", cwd=context)


def test_copying_an_ignored_file_names_the_rule(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"secret.txt": "", ".dockerignore": "other\n*.txt\n"})
    error = refused(pybuild, "FROM scratch\nCOPY secret.txt /\n", context)
    assert '"/secret.txt": not found' in error
    assert ".dockerignore excludes it by '*.txt' in line 2" in error


def test_context_and_dockerfile_may_be_named_relatively_and_lie_apart(pybuild: Command, tmp_path: Path):
    text = (
        "\nFROM busybox\nCOPY foo /foo2\nCOPY foo /\nRUN echo -n bar > foo3\n"
        "RUN test -f foo && cmp -s foo foo2 && cmp -s foo foo3\n"
    )
    context = write_files(tmp_path / "both", {"foo": "bar"})
    pybuild.build(text, context)
    pybuild.run("build", ".", cwd=context)
    alone = write_files(tmp_path / "dockerfiles", {"Dockerfile": text})
    other = write_files(tmp_path / "context", {"foo": "bar"})
    pybuild.run("build", "-f", str(alone / "Dockerfile"), str(other))
    pybuild.run("build", "-f", "../dockerfiles/Dockerfile", "../context", cwd=context)


def test_a_dockerfile_may_be_a_symlink_or_written_in_lower_case(pybuild: Command, tmp_path: Path):
    linked = write_files(tmp_path / "linked", {"Dockerfile.web": "\nFROM scratch\nENV foo bar\n"})
    (linked / "Dockerfile").symlink_to("Dockerfile.web")
    pybuild.run("build", str(linked))
    lower = write_files(tmp_path / "lower", {"dockerfile": "\nFROM scratch\n"})
    pybuild.run("build", str(lower))
