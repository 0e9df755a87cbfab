"""Comments, blank lines, continuations, parser directives: what a line is before one looks at its instruction."""

from __future__ import annotations

import pytest

from pybuild.parser import Blank, Comment, Directive, DockerfileSyntaxError, From, Instruction, Run, ShellForm, parse


def only(text: str) -> Instruction:
    """The one instruction behind FROM."""
    dockerfile = parse("FROM base\n" + text)
    assert len(dockerfile.instructions) == 2
    return dockerfile.instructions[1]


def command(text: str) -> str:
    instruction = only(text)
    assert isinstance(instruction, Run)
    assert isinstance(instruction.command, ShellForm)
    return instruction.command.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN a \\\n b", "a  b"),
        ("RUN a\\\nb", "ab"),
        ("RUN a \\  \t\n b", "a  b"),
        ("RUN a \\\r\n b\r\n", "a  b"),
        ("RUN a \\\\\n", "a \\\\"),
        ("RUN a \\\\\\\n", "a \\\\\\"),
        ("RUN a \\\n# comment\n b", "a  b"),
        ("RUN a \\\n   # comment \\\n b", "a  b"),
        ("RUN a \\\n\n b", "a  b"),
        ("RUN a \\\n \t \n b", "a  b"),
        ("RUN a \\\n", "a"),
        ("RUN a \\", "a"),
        ("RUN a \\\n\n\n", "a"),
        ("RUN a # no comment", "a # no comment"),
        ("RUN a \\\n  b # no comment \\\n  c", "a   b # no comment   c"),
        ("RUN \\\n a", "a"),
        ("\\\nRUN a", "a"),
        ("  RUN\ta  ", "a"),
        ("RUN\va\fb", "a\fb"),
        ("RUN a\u00a0b\u00a0", "a\u00a0b"),
        ("RUN a\x1c", "a\x1c"),
        ("RUN a\\ \u00a0\n", "a\\"),
    ],
)
def test_a_command_is_joined_from_its_lines(text: str, expected: str) -> None:
    assert command(text) == expected


def test_leading_blanks_are_kept_on_continuation_lines_only() -> None:
    assert only("   LABEL a=b\\\n   c=d").text == "LABEL a=b   c=d"


def test_the_span_covers_all_lines_and_the_source_is_exact() -> None:
    text = "FROM base\n  RUN a \\\n # c\n b  \nCMD x\n"
    run = parse(text).instructions[1]
    assert run.source == "RUN a \\\n # c\n b  "
    assert (run.span.start.line, run.span.start.column, run.span.lines) == (2, 3, (2, 4))


def test_an_instruction_may_begin_with_an_empty_continuation() -> None:
    text = "FROM base\n \\\n\\\nRUN a\n"
    run = parse(text).instructions[1]
    assert run.source == "\\\n\\\nRUN a"
    assert (run.keyword, run.span.lines, parse(text).render()) == ("RUN", (2, 4), text)


def test_nodes_are_told_apart() -> None:
    dockerfile = parse("# escape=`\n\n# one\nFROM base\n   \n#two")
    kinds = [type(node) for node in dockerfile.nodes]
    assert kinds == [Directive, Blank, Comment, From, Blank, Comment]
    assert [node.text for node in dockerfile.nodes if isinstance(node, Comment)] == ["one", "two"]


def test_comments_belong_to_the_instruction_below_until_an_empty_one() -> None:
    dockerfile = parse("# a\n#b\n\n#   c  \nFROM base\n# d\n#\n# e\nRUN x\nRUN y\n")
    assert [instruction.comments for instruction in dockerfile.instructions] == [("a", "b", "c"), ("e",), ()]


def test_comments_inside_an_instruction_belong_to_no_other() -> None:
    dockerfile = parse("FROM base\nRUN a \\\n# inside\nb\nRUN c\n")
    assert dockerfile.instructions[2].comments == ()


@pytest.mark.parametrize(
    ("text", "escape"),
    [
        ("# escape=`\nFROM base", "`"),
        ("#escape=`\nFROM base", "`"),
        ("#  ESCAPE  =  `  \nFROM base", "`"),
        ("  # escape=`\nFROM base", "`"),
        ("# syntax=x\n# escape=`\nFROM base", "`"),
        ("# escape=\\\nFROM base", "\\"),
        ("\n# escape=`\nFROM base", "\\"),
        ("# comment\n# escape=`\nFROM base", "\\"),
        ("#\n# escape=`\nFROM base", "\\"),
        ("# unknown=x\n# escape=`\nFROM base", "\\"),
        ("FROM base\n# escape=`\n", "\\"),
        ("# escape=\n# syntax=x\nFROM base", "\\"),
        ("# 1escape=`\nFROM base", "\\"),
        ("\ufeff# escape=`\nFROM base", "`"),
        ("# escape=`\r\nFROM base", "`"),
    ],
)
def test_directives_stand_in_the_first_lines_only(text: str, escape: str) -> None:
    assert parse(text).escape == escape


@pytest.mark.parametrize("text", ["# escape=``\nFROM base", "# escape=/\nFROM base", "# escape=\\ x\nFROM base"])
def test_only_two_characters_can_escape(text: str) -> None:
    with pytest.raises(DockerfileSyntaxError, match="invalid escape token"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "reference", "line"),
    [
        ("# syntax=docker/dockerfile:1\nFROM base", "docker/dockerfile:1", 1),
        ("# syntax = docker/dockerfile:1 some words\nFROM base", "docker/dockerfile:1", 1),
        ("# escape=\\\n# SYNTAX=a/b\nFROM base", "a/b", 2),
        ("#!/bin/x\n# syntax=a/b\nFROM base", "a/b", 2),
        ("\ufeff# syntax=a/b\nFROM base", "a/b", 1),
    ],
)
def test_the_syntax_line_is_found(text: str, reference: str, line: int) -> None:
    syntax = parse(text).syntax
    assert syntax is not None
    assert (syntax.reference, syntax.line) == (reference, line)


@pytest.mark.parametrize(
    "text",
    ["FROM base", "# comment\n# syntax=a/b\nFROM base", "\n# syntax=a/b\nFROM base", "# check=x\n\n# syntax=a\nFROM b"],
)
def test_no_syntax_line_is_invented(text: str) -> None:
    assert parse(text).syntax is None


@pytest.mark.parametrize("text", ["// syntax=a/b\nrule x", '{"syntax": "a/b"}', "#!/x\n//syntax=a/b"])
def test_other_languages_say_what_they_want_in_their_way(text: str) -> None:
    with pytest.raises(DockerfileSyntaxError) as caught:
        parse(text)
    assert caught.value.hint == "The file asks for the frontend a/b, whose language may be another one"


@pytest.mark.parametrize(
    "reference",
    [
        "docker/dockerfile",
        "docker/dockerfile:1",
        "docker/dockerfile:1.7",
        "docker/dockerfile:1.4.3-labs",
        "docker/dockerfile:1-labs",
        "docker/dockerfile:experimental",
        "docker/dockerfile:latest",
        "docker.io/docker/dockerfile:1",
        "docker/dockerfile-upstream:master",
        "mirror.example:5000/docker/dockerfile:1",
        "docker/dockerfile:1@sha256:" + "0" * 64,
        "dockerfile.v0",
    ],
)
def test_the_same_language_is_accepted_under_all_its_names(reference: str) -> None:
    assert parse(f"# syntax={reference}\nFROM base").warnings == ()


@pytest.mark.parametrize(
    ("reference", "rule"),
    [
        ("docker/dockerfile:2", "NewerFrontend"),
        ("docker/dockerfile:1.9999", "NewerFrontend"),
        ("example/frontend", "UnknownFrontend"),
        ("dockerfile", "UnknownFrontend"),
        ("evil/docker/dockerfiles", "UnknownFrontend"),
    ],
)
def test_another_frontend_is_warned_about_on_its_line(reference: str, rule: str) -> None:
    dockerfile = parse(f"#!/x\n# syntax={reference}\nFROM base")
    assert [(warning.rule, warning.span.lines) for warning in dockerfile.warnings] == [(rule, (2, 2))]


def test_the_check_directive_ends_at_a_blank() -> None:
    assert parse("# check=skip=A,B;error=true // because\nFROM base").check == "skip=A,B;error=true"
    assert parse("# syntax=a/b\n# check=error=true\nFROM base").check == "error=true"
    assert parse("FROM base\n# check=error=true").check is None


def test_empty_continuations_are_warned_about_at_the_instructions_last_line() -> None:
    dockerfile = parse("FROM base\nRUN a \\\n\n  b \\\n \n c\nRUN fine \\\n # comment\n d\nRUN e \\\n\nRUN f\n")
    assert [(warning.rule, warning.span.lines) for warning in dockerfile.warnings] == [
        ("NoEmptyContinuation", (6, 6)),
        ("NoEmptyContinuation", (12, 12)),
    ]
    assert dockerfile.warnings[0].message == "Empty continuation line found in: RUN a   b  c"
    assert dockerfile.instructions[-1].text == "RUN e RUN f"


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_a_line_may_have_65535_bytes(ending: str) -> None:
    long = "LABEL é=" + "a" * (65535 - 9 - ending.count("\r"))
    assert len(long.encode() + ending.replace("\n", "").encode()) == 65535
    parse("FROM base\n" + long + ending)
    with pytest.raises(DockerfileSyntaxError, match="greater than max allowed size of 65535") as caught:
        parse("FROM base\n" + long + "a" + ending)
    assert caught.value.lines == (2, 2)


def test_the_limit_holds_for_physical_lines() -> None:
    parse("FROM base\nRUN " + ("a" * 60000 + "\\\n") * 5 + "b")
    with pytest.raises(DockerfileSyntaxError, match="greater than max"):
        parse("FROM base\nRUN <<EOF\n" + "a" * 70000 + "\nEOF\n")


def test_bytes_that_are_not_utf8_stay_what_they_are() -> None:
    data = b"FROM base\nRUN echo \xff\xfe \xe9 \xc3\xa9\n"
    dockerfile = parse(data)
    assert dockerfile.render().encode("utf-8", "surrogateescape") == data
    assert dockerfile.instructions[1].text == "RUN echo \udcff\udcfe \udce9 é"


def test_a_nul_is_a_character_like_others() -> None:
    assert command("RUN a\0b") == "a\0b"
