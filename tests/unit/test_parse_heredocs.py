"""Here-documents: which words open one, what their bodies are, and where they are none."""

from __future__ import annotations

import pytest

from pybuild.parser import (
    Add,
    Copy,
    DockerfileSyntaxError,
    Heredoc,
    Onbuild,
    Run,
    ShellForm,
    Word,
    parse,
    parse_instruction,
)
from pybuild.parser.ast import Instruction


def heredocs(instruction: Instruction) -> list[Heredoc]:
    match instruction:
        case Run(command=ShellForm() as command):
            return list(command.heredocs)
        case Copy() | Add():
            return [source for source in instruction.sources if isinstance(source, Heredoc)]
        case Onbuild():
            return heredocs(instruction.trigger)
        case _:
            return []


def of(text: str) -> list[Heredoc]:
    return heredocs(parse("FROM base\n" + text).instructions[1])


@pytest.mark.parametrize(
    ("opening", "name", "expand"),
    [
        ("<<EOF", "EOF", True),
        ("<< EOF", "EOF", True),
        ("<<\t EOF", "EOF", True),
        ("<<'EOF'", "EOF", False),
        ('<<"EOF"', "EOF", False),
        ("<<E'O'F", "EOF", False),
        ("<<EO\\'F", "EO'F", True),
        ("<<'E'O\\'F", "EO'F", False),
        ("<<'two words'", "two words", False),
        ("<<$EOF", "$EOF", True),
        ("<<${EOF}", "${EOF}", True),
        ("<<file.txt", "file.txt", True),
        ("<<EOF;", "EOF;", True),
        ("<< -EOF", "-EOF", True),
        ("<<\\EOF", "EOF", True),
        ("<<1", "1", True),
        ("<<é", "é", True),
    ],
)
def test_a_word_opens_a_here_document(opening: str, name: str, expand: bool) -> None:
    (found,) = of(f"RUN {opening}\nbody $x\n{name}\n")
    assert (found.name, found.content, found.expand, found.file_descriptor) == (name, "body $x\n", expand, 0)


@pytest.mark.parametrize(
    "text",
    [
        'RUN "<<EOF"',
        "RUN '<<EOF'",
        'RUN echo "a <<EOF b"',
        "RUN \\<<EOF",
        "RUN a<<EOF",
        "RUN <<<EOF",
        "RUN cat <<< EOF",
        "RUN <<",
        "RUN <<-",
        "RUN <<- ",
        "RUN <EOF",
        "RUN $((1<<2))",
        "RUN '<<EOF",
        'RUN "<<EOF',
        "RUN it's <<EOF",
        "RUN ${x <<EOF",
        'RUN ["<<EOF"]',
        'RUN ["cat", "<<EOF", "<<\'EOF\'"]',
        "CMD <<EOF",
        "ENTRYPOINT cat <<EOF",
        "LABEL a=<<EOF",
        "USER <<EOF",
        "HEALTHCHECK CMD cat <<EOF",
        'COPY ["<<EOF", "/x"]',
        "RUN echo ${x:=y} $(( 1 << 2 ))",
    ],
)
def test_a_look_alike_opens_none(text: str) -> None:
    assert of(text) == []


def test_shell_forms_that_buildkit_does_not_know_dont_hide_a_here_document() -> None:
    (found,) = of("RUN : ${x:=y} ${list[@]} ${#x} <<EOF\nbody\nEOF\n")
    assert found.content == "body\n"


def test_several_follow_each_other_in_the_order_of_their_openings() -> None:
    found = of("RUN cat <<A 3<<B 12<<A\none\nA\ntwo\nA\nB\nthree\nA\n")
    assert [(one.name, one.file_descriptor, one.content) for one in found] == [
        ("A", 0, "one\n"), ("B", 3, "two\nA\n"), ("A", 12, "three\n"),
    ]  # fmt: skip


def test_tabs_are_stripped_where_asked_blanks_never() -> None:
    (found,) = of("RUN <<-EOF\n\t\tone\n\t two\n  \tthree\n\n\t\tEOF\n")
    assert found.content == "one\n two\n  \tthree\n\n"
    assert found.strip_tabs
    (found,) = of("RUN <<EOF\n\tone\n\tEOF\nEOF\n")
    assert found.content == "\tone\n\tEOF\n"


def test_a_body_is_text_whatever_it_looks_like() -> None:
    body = "# comment\n\nFROM x\n  RUN y \\\n# escape=`\nCOPY <<X\n"
    (found,) = of(f"RUN <<EOF\n{body}EOF\n")
    assert found.content == body


def test_a_body_may_be_empty_or_end_with_the_file() -> None:
    assert of("RUN <<EOF\nEOF")[0].content == ""
    assert of("RUN <<EOF\nx\nEOF")[0].content == "x\n"


def test_carriage_returns_dont_hide_the_end() -> None:
    (found,) = of("RUN <<EOF\r\nx\r\nEOF\r\n")
    assert found.content == "x\r\n"


def test_a_continued_line_opens_them_after_its_last_part() -> None:
    (found,) = of("RUN cat <<EOF \\\n  | sort\nb\na\nEOF\n")
    assert found.content == "b\na\n"


def test_the_command_keeps_the_openings_and_not_the_bodies() -> None:
    run = parse("FROM base\nRUN --network=none <<A cat && cat <<'B'\na\nA\nb\nB\n").instructions[1]
    assert isinstance(run, Run)
    assert isinstance(run.command, ShellForm)
    assert run.command.text == "<<A cat && cat <<'B'"
    assert run.text == "RUN --network=none <<A cat && cat <<'B'"
    assert run.source.endswith("\nb\nB")


def test_copy_takes_them_among_its_sources() -> None:
    copy = parse("FROM base\nCOPY --chown=1 <<a plain <<-'b' << c /dst\n$x\na\n\ty\n\tb\nc\n").instructions[1]
    assert isinstance(copy, Copy)
    assert [one.text if isinstance(one, Word) else one.name for one in copy.sources] == ["a", "plain", "b", "c"]
    assert [one.content for one in heredocs(copy)] == ["$x\n", "y\n", ""]
    assert copy.destination.text == "/dst"


def test_the_span_of_a_here_document_is_its_body_with_the_last_line() -> None:
    text = "FROM base\nRUN <<EOF\none\nEOF\nCMD x\n"
    (found,) = heredocs(parse(text).instructions[1])
    assert text[found.span.start.offset : found.span.end.offset] == "one\nEOF"


def test_a_trigger_keeps_the_text_that_makes_it_again() -> None:
    onbuild = parse("FROM base\nONBUILD  copy <<-A <<'B' /x/\n\ta\n\tA\nb\nB\n").instructions[1]
    assert isinstance(onbuild, Onbuild)
    assert onbuild.expression == "copy <<-A <<'B' /x/\n\ta\nA\nb\nB"
    again = parse_instruction(onbuild.expression)
    assert isinstance(again, Copy)
    assert heredocs(again) == [
        Heredoc("A", 0, "a\n", True, True, heredocs(again)[0].span, "\ta\n"),
        Heredoc("B", 0, "b\n", False, False, heredocs(again)[1].span, "b\n"),
    ]


@pytest.mark.parametrize(
    "text", ["RUN <<EOF\n", "RUN <<EOF\nEOF \n", "RUN <<EOF\n\tEOF\n", "RUN <<-EOF\n EOF\n", "COPY <<A <<B /x\nA\n"]
)
def test_an_end_that_never_comes_is_an_error(text: str) -> None:
    with pytest.raises(DockerfileSyntaxError, match="unterminated heredoc"):
        parse("FROM base\n" + text)


def test_many_that_never_end_take_no_time() -> None:
    text = "FROM base\n" + "RUN ${x:=} <<EOF\n" * 5_000
    assert len(parse(text).instructions) == 5_001
