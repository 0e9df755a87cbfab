"""What a failed build prints: the position, the listing, the words of the reference, the last line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, refused

pytestmark = pytest.mark.integration


def marked_lines(error: str) -> list[int]:
    """The numbers of the lines that the listing marks."""
    return [int(line.split("|")[0]) for line in error.splitlines() if "| >>> " in line]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("from busybox\nenv", [2]),
        ("#syntax=foobar\nfrom busybox", [1]),
        ("from scratch\nenv foo=bar\nrun what", [3]),
        ("from scratch\nenv foo=bar\ncopy foo bar\nenv bar=baz", [3]),
        ("from scratch\nenv foo=bar\ncopy --foo=bar / /\nenv bar=baz", [3]),
        ("from scratch\nenv foo=bar\ncopy --from=invalid foo bar\nenv bar=baz", [3]),
        ("from scratch\nrun wh\\\nat\nenv bar=baz", [2, 3]),
    ],
)
def test_the_listing_marks_the_lines_of_the_instruction(
    empty_pybuild: Command, tmp_path: Path, text: str, lines: list[int]
):
    error = refused(empty_pybuild, text, tmp_path / "c")
    assert marked_lines(error) == lines
    assert f"Dockerfile:{lines[0]}\n--------------------\n" in error


def test_a_failed_command_shows_its_command_line_output_and_exit_code(pybuild: Command, tmp_path: Path):
    error = refused(pybuild, "\n\tFROM busybox\n\tRUN invalidcmd\n", tmp_path / "c")
    assert "/bin/sh -c invalidcmd" in error
    assert 'process "/bin/sh -c invalidcmd" did not complete successfully: exit code: 127' in error
    assert "invalidcmd: not found" in error
    assert ">>> \tRUN invalidcmd" in error
    assert "exit code: 3" in refused(pybuild, "FROM busybox\nRUN echo out; echo err >&2; exit 3\n", tmp_path / "c")


def test_an_unknown_instruction_gets_a_suggestion(empty_pybuild: Command, tmp_path: Path):
    text = '\nFROM scratch\nFNTRYPOINT ["/bin/sh", "-c", "echo invalidinstruction"]\n'
    error = refused(empty_pybuild, text, tmp_path / "c")
    assert "unknown instruction: FNTRYPOINT" in error
    assert "did you mean ENTRYPOINT?" in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the Dockerfile cannot be empty"),
        ("# nothing\n", "file with no instructions"),
        ("RUN x\n", "no build stage in current context"),
        ("FROM\n", "FROM requires either one or three arguments"),
        ("FROM scratch AS 1a\n", 'invalid name for build stage: "1a"'),
        ("FROM scratch\nCOPY a\n", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("FROM scratch\nENV\n", "ENV requires at least one argument"),
        ("FROM scratch\nLABEL a\n", "LABEL must have two arguments"),
        ("FROM scratch\nWORKDIR\n", "WORKDIR requires exactly one argument"),
        ("FROM scratch\nUSER\n", "USER requires exactly one argument"),
        ("FROM scratch\nSHELL x\n", "SHELL requires the arguments to be in JSON form"),
        ("FROM scratch\nHEALTHCHECK x\n", 'Unknown type "X" in HEALTHCHECK (try CMD)'),
        ("FROM scratch\nHEALTHCHECK --interval=1us CMD x\n", "cannot be less than 1ms"),
        ("FROM scratch\nEXPOSE 99999\n", "99999"),
        ("FROM scratch\nSTOPSIGNAL SIGNOTHING\n", "nvalid signal: SIGNOTHING"),
        ("FROM scratch\nVOLUME [\"\"]\n", "VOLUME specified can not be an empty string"),
        ("FROM scratch\nRUN --mount=type=bnid x\n", 'unsupported mount type "bnid"'),
        ("FROM ${x?}\n", "x"),
        ("FROM ''\n", "base name ('') should not be blank"),
        ("FROM UPPER/Case\n", "must be lowercase"),
    ],
)  # fmt: skip
def test_refusals_in_the_words_that_scripts_know(empty_pybuild: Command, tmp_path: Path, text: str, expected: str):
    assert expected in refused(empty_pybuild, text, tmp_path / "c")


def test_other_frontends_are_refused_unless_the_build_says_to_read_a_dockerfile(pybuild: Command, tmp_path: Path):
    text = "# syntax=example.com/other/language:1\nFROM busybox\n"
    error = refused(pybuild, text, tmp_path / "c")
    assert "example.com/other/language:1 is not built in" in error
    pybuild.build(text, tmp_path / "c", "--build-arg=BUILDKIT_SYNTAX=dockerfile.v0")
    pybuild.build("# syntax=mirror.example/docker/dockerfile:1.4\nFROM busybox\n", tmp_path / "c")
