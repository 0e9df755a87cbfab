"""What is refused, in which words, with which part marked and which remedy; and the listing around a place."""

from __future__ import annotations

import pytest

from pybuild.parser import DockerfileError, DockerfileSyntaxError, Position, Span, excerpt, parse, parse_instruction


def failure(text: str | bytes) -> DockerfileSyntaxError:
    with pytest.raises(DockerfileSyntaxError) as caught:
        parse(text)
    return caught.value


def culprit(error: DockerfileSyntaxError) -> str:
    assert error.culprit is not None
    assert error.text is not None
    return error.text[error.culprit.start.offset : error.culprit.end.offset]


# (instruction, message without the line prefix, marked text)
REFUSED = [
    ("FORM x", "unknown instruction: FORM (did you mean FROM?)", "FORM"),
    ("form x", "unknown instruction: form (did you mean from?)", "form"),
    ("Form x", "unknown instruction: Form (did you mean from?)", "Form"),
    ("FNTRYPOINT x", "unknown instruction: FNTRYPOINT (did you mean ENTRYPOINT?)", "FNTRYPOINT"),
    ("FOOBAR", "unknown instruction: FOOBAR", "FOOBAR"),
    ("SHELL\u017f x", "unknown instruction: SHELL\u017f (did you mean shell?)", "SHELL\u017f"),
    ("FROM", "FROM requires either one or three arguments", "FROM"),
    ("FROM a b", "FROM requires either one or three arguments", "b"),
    ("FROM a b c", "FROM requires either one or three arguments", "b"),
    ("FROM a AS b c", "FROM requires either one or three arguments", "AS"),
    ("FROM a AS", "FROM requires either one or three arguments", "AS"),
    ("FROM a AS 1b", 'invalid name for build stage: "1b", name can\'t start with a number or contain symbols', "1b"),
    ("FROM a AS b$", 'invalid name for build stage: "b$", name can\'t start with a number or contain symbols', "b$"),
    ("FROM --platfrom=x a", "unknown flag: --platfrom (did you mean platform?)", "--platfrom=x"),
    ("FROM --platform a", "missing a value on flag: --platform", "--platform"),
    ("ARG", "ARG requires at least one argument", "ARG"),
    ("ARG =x", "ARG names can not be blank", "="),
    ("ARG a =x", "ARG names can not be blank", "="),
    ("ENV", "ENV requires at least one argument", "ENV"),
    ("ENV =x", "ENV names can not be blank", "="),
    ("LABEL a=b =x", "LABEL names can not be blank", "="),
    ("ENV --x a=b", "unknown flag: --x", "--x"),
    ("LABEL", "LABEL requires at least one argument", "LABEL"),
    ("SHELL", "SHELL requires at least one argument", "SHELL"),
    ("SHELL []", "SHELL requires at least one argument", "]"),
    ("SHELL sh -c", "SHELL requires the arguments to be in JSON form", "sh -c"),
    ('SHELL ["sh"', "SHELL requires the arguments to be in JSON form", '["sh"'),
    ("USER", "USER requires exactly one argument", "USER"),
    ("WORKDIR  ", "WORKDIR requires exactly one argument", "WORKDIR"),
    ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument", "STOPSIGNAL"),
    ("MAINTAINER", "MAINTAINER requires exactly one argument", "MAINTAINER"),
    ("MAINTAINER --boo joe@example.com", "unknown flag: --boo", "--boo"),
    ("EXPOSE", "EXPOSE requires at least one argument", "EXPOSE"),
    ("VOLUME", "VOLUME requires at least one argument", "VOLUME"),
    ("VOLUME []", "VOLUME requires at least one argument", "]"),
    ('VOLUME ["/a", " "]', "VOLUME specified can not be an empty string", '" "'),
    ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined", "COPY a"),
    ("ADD", "ADD requires at least two arguments, but only one was provided. Destination could not be determined", "ADD"),
    ('COPY ["a"]', "COPY requires at least two arguments, but only one was provided. Destination could not be determined", "]"),
    ("COPY --form=x a b", "unknown flag: --form (did you mean from?)", "--form=x"),
    ("ADD --from=x a b", "unknown flag: --from", "--from=x"),
    ("COPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe", "--link=maybe"),
    ("COPY --link= a b", "missing a value on flag: --link", "--link="),
    ("COPY --chown a b", "missing a value on flag: --chown", "--chown"),
    ("COPY --chown=1 --chown=2 a b", "duplicate flag specified: --chown", "--chown=2"),
    ("COPY --link --link a b", "duplicate flag specified: --link", "--link"),
    ("COPY --=x a b", "unknown flag: --", "--=x"),
    ("COPY --checksum=sha256:0 a b", "unknown flag: --checksum", "--checksum=sha256:0"),
    ("RUN --mont=x true", "unknown flag: --mont (did you mean mount?)", "--mont=x"),
    ("RUN --mount true", "missing a value on flag: --mount", "--mount"),
    ("RUN --mount= true", "failed to parse csv mounts: EOF", "--mount="),
    ("RUN --mount=from=$x,target=/y true", "'from' doesn't support variable expansion, define alias stage instead", "from=$x"),
    ('RUN --mount=type=cache,\\"x true', 'failed to parse csv mounts: parse error on line 1, column 13: extraneous or missing " in quoted-field', None),
    ('RUN --mount=a\\"b true', 'failed to parse csv mounts: parse error on line 1, column 2: bare " in non-quoted-field', None),
    ("RUN --network=bridge true", 'invalid network mode "bridge"', "--network=bridge"),
    ("RUN --network= true", 'invalid network mode ""', "--network="),
    ("RUN --security=none true", 'security "none" is not valid', "--security=none"),
    ("RUN --device=a,name=b true", "device name already set to a", "--device=a,name=b"),
    ("RUN --device=a,required=x true", "invalid value for required: x", "--device=a,required=x"),
    ("RUN --device=a,requird=1 true", "unexpected key 'requird' in 'requird=1' (did you mean required?)", "--device=a,requird=1"),
    ("CMD --x", "unknown flag: --x", "--x"),
    ("HEALTHCHECK", "HEALTHCHECK requires at least one argument", "HEALTHCHECK"),
    ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD", "HEALTHCHECK CMD"),
    ("HEALTHCHECK CMD []", "Missing command after HEALTHCHECK CMD", "]"),
    ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments", "x"),
    ("HEALTHCHECK curl x", 'Unknown type "CURL" in HEALTHCHECK (try CMD)', "curl"),
    ("HEALTHCHECK --intervall=1s CMD x", "unknown flag: --intervall (did you mean interval?)", "--intervall=1s"),
    ("HEALTHCHECK --interval=50ns CMD x", 'Interval "interval" cannot be less than 1ms', "--interval=50ns"),
    ("HEALTHCHECK --timeout=-1s CMD x", 'Interval "timeout" cannot be less than 1ms', "--timeout=-1s"),
    ("HEALTHCHECK --interval=5 CMD x", 'time: missing unit in duration "5"', "--interval=5"),
    ("HEALTHCHECK --interval=5x CMD x", 'time: unknown unit "x" in duration "5x"', "--interval=5x"),
    ("HEALTHCHECK --interval=x CMD x", 'time: invalid duration "x"', "--interval=x"),
    ("HEALTHCHECK --retries=x CMD x", 'strconv.ParseInt: parsing "x": invalid syntax', "--retries=x"),
    ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)", "--retries=-1"),
    ("HEALTHCHECK --retries=9999999999 CMD x", 'strconv.ParseInt: parsing "9999999999": value out of range', "--retries=9999999999"),
    ("ONBUILD", "ONBUILD requires at least one argument", "ONBUILD"),
    ("ONBUILD --x RUN y", "unknown flag: --x", "--x"),
    ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger", "FROM"),
    ("ONBUILD maintainer x", "MAINTAINER isn't allowed as an ONBUILD trigger", "maintainer"),
    ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", "ONBUILD"),
    ("ONBUILD FOOBAR x", "unknown instruction: FOOBAR", "FOOBAR"),
    ("ONBUILD COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined", "COPY a"),
    ("ONBUILD RUN --mont=x y", "unknown flag: --mont (did you mean mount?)", "--mont=x"),
    ("ONBUILD HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments", "x"),
    (
        "COPY --from=$X a b",
        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
        "--from=$X",
    ),
    ('COPY ["a", "<<E"]', "COPY cannot accept a heredoc as a destination", '"<<E"'),
    ("COPY it's <<E", "COPY cannot accept a heredoc as a destination", "<<E"),
    ("HEALTHCHECK --x", "HEALTHCHECK requires at least one argument", "HEALTHCHECK --x"),
    ("COPY a <<E\nE", "COPY cannot accept a heredoc as a destination", "<<E"),
]  # fmt: skip


# BuildKit finds these when it converts what it has parsed; their messages don't name the line.
FOUND_AFTER_PARSING = (
    "invalid chmod", "invalid syntax", "checksum ", "unexpected key 'typ'", "unexpected key 'required'", "unexpected key 'size'",
    "unsupported ", "invalid field", "invalid value for readonly", "invalid value for size", "invalid value 08",
    "invalid value -1", "invalid value 42", "invalid cache", "uid not allowed", "secret mount", "invalid secret mount",
    "both source and id", "ssh does not support", "invalid signal", "invalid port", "invalid containerPort",
    "invalid hostPort", "invalid ranges", "invalid IP", "variable expansion is not supported for --from",
)  # fmt: skip


@pytest.mark.parametrize(("instruction", "message", "marked"), REFUSED, ids=[case[0] for case in REFUSED])
def test_it_is_refused_with_its_part_marked(instruction: str, message: str, marked: str | None) -> None:
    error = failure(f"FROM base\n{instruction}\n")
    late = message.startswith(FOUND_AFTER_PARSING)
    assert error.message == ("" if late else "dockerfile parse error on line 2: ") + message
    if marked is not None:
        assert culprit(error) == marked
    assert error.lines is not None
    assert error.lines[0] == 2
    assert "^" in error.excerpt()


# These BuildKit finds while it reads lines; its messages don't name the line then.
REFUSED_LINES = [
    ("ENV a", "ENV must have two arguments", "ENV a"),
    ("LABEL a", "LABEL must have two arguments", "LABEL a"),
    ("ENV a=b c", 'Syntax error - can\'t find = in "c". Must be of the form: name=value', "c"),
    ("ENV a=b c d=e", 'Syntax error - can\'t find = in "c". Must be of the form: name=value', "c"),
    ('LABEL a=b "c d"', 'Syntax error - can\'t find = in "\\"c d\\"". Must be of the form: name=value', '"c d"'),
    ("RUN [1]", "when using JSON array syntax, arrays must be comprised of strings only", "1]"),
    ('CMD ["a", ["b"]]', "when using JSON array syntax, arrays must be comprised of strings only", '["b"]]'),
    ('COPY ["a", null]', "when using JSON array syntax, arrays must be comprised of strings only", "null]"),
    ("VOLUME [{}]", "when using JSON array syntax, arrays must be comprised of strings only", "{}]"),
    ("ONBUILD CMD [true]", "when using JSON array syntax, arrays must be comprised of strings only", "true]"),
    ("RUN <<EOF\nx", "unterminated heredoc", "<<EOF"),
    ("RUN cat <<A <<B\na\nA\nb", "unterminated heredoc", "<<B"),
    ("ONBUILD RUN <<EOF\n", "unterminated heredoc", "<<EOF"),
]


@pytest.mark.parametrize(("instruction", "message", "marked"), REFUSED_LINES, ids=[case[0] for case in REFUSED_LINES])
def test_it_is_refused_without_naming_the_line(instruction: str, message: str, marked: str) -> None:
    error = failure(f"FROM base\n{instruction}\n")
    assert error.message == message
    assert culprit(error) == marked


def test_instructions_before_the_first_from_are_refused() -> None:
    error = failure("ARG X\nRUN true\nRUN again\n")
    assert error.message == "no build stage in current context"
    assert error.lines == (2, 2)
    assert error.others == ()


def test_a_file_without_instructions_is_refused() -> None:
    assert failure("").message == "the Dockerfile cannot be empty"
    for text in ("\n\n", "# comment\n", b"\xef\xbb\xbf\n# x"):
        assert failure(text).message == "file with no instructions"


def test_a_file_of_arguments_alone_has_nothing_to_build() -> None:
    assert failure("ARG a\n").message == "dockerfile contains no stages to build"


def test_what_lines_say_comes_before_what_instructions_say() -> None:
    error = failure("FROM base\nFOO\nRUN <<EOF\n")
    assert error.message == "unterminated heredoc"
    assert [other.lines for other in error.others] == [(2, 2)]


def test_all_wrong_instructions_are_told() -> None:
    error = failure("FROM base\nFOO\nRUN true\nBAR <<X\nFROM not an instruction\nX\nCOPY a\n")
    assert [one.lines for one in (error, *error.others)] == [(2, 2), (4, 4), (7, 7)]


def test_what_came_before_the_error_is_kept() -> None:
    error = failure("FROM base AS One\nRUN \\\n\n true\nFOO\nRUN later\n")
    assert error.partial is not None
    assert [instruction.name for instruction in error.partial.instructions] == ["FROM", "RUN"]
    assert [stage.name for stage in error.partial.stages] == ["one"]
    assert [warning.rule for warning in error.partial.warnings] == ["NoEmptyContinuation"]


def test_every_line_of_a_continued_instruction_is_marked() -> None:
    error = failure("FROM base\nRUN --mount=from=$bg \\\n  one \\\n  two\nCMD x\n")
    assert error.lines == (2, 4)
    assert error.excerpt() == (
        "Dockerfile:2\n"
        "--------------------\n"
        "   1 |     FROM base\n"
        "   2 | >>> RUN --mount=from=$bg \\\n"
        "     |                 ^^^^^^^^\n"
        "   3 | >>>   one \\\n"
        "   4 | >>>   two\n"
        "   5 |     CMD x\n"
        "--------------------\n"
    )


TEN = "\n".join(f"line {number}" for number in range(1, 11))


@pytest.mark.parametrize(
    ("lines", "shown"),
    [((1, 1), range(1, 4)), ((2, 2), range(1, 5)), ((5, 5), range(3, 8)), ((10, 10), range(8, 11)), ((9, 9), range(7, 11)),
     ((4, 6), range(3, 8)), ((1, 2), range(1, 4)), ((1, 10), range(1, 11)), ((9, 40), range(8, 11))],
)  # fmt: skip
def test_the_listing_has_the_extent_of_buildkits(lines: tuple[int, int], shown: range) -> None:
    listing = excerpt(TEN, lines, filename="sub/Dockerfile").splitlines()
    assert listing[0] == f"sub/Dockerfile:{lines[0]}"
    assert listing[1] == listing[-1] == "-" * 20
    assert listing[2:-1] == [
        f" {number:3d} | {'>>>' if lines[0] <= number <= lines[1] else '   '} line {number}" for number in shown
    ]


def test_a_place_outside_of_the_text_lists_nothing() -> None:
    assert excerpt("one\ntwo", (3, 3)) == ""
    assert excerpt("one", (0, 0)) == ""


def test_the_listing_can_show_less_or_more() -> None:
    assert len(excerpt(TEN, (5, 5), context=0).splitlines()) == 4
    assert len(excerpt(TEN, (5, 5), context=4).splitlines()) == 12


def test_carets_stand_below_tabs_and_wide_lines() -> None:
    error = failure("FROM base\n\tRUN\t--mont=x\ttrue\n")
    rows = error.excerpt().splitlines()
    assert rows[4] == "     |     \t   \t^^^^^^^^"


def test_an_error_can_be_given_its_place_later() -> None:
    bare = DockerfileError("wrong", hint="do it right")
    assert bare.excerpt() == ""
    span = Span(Position(2, 1, 2), Position(2, 2, 3))
    placed = bare.at(filename="D", text="a\nb\nc", span=span)
    assert (placed.message, placed.hint, placed.lines) == ("wrong", "do it right", (2, 2))
    assert placed.excerpt().startswith("D:2\n")
    assert bare.text is None
    assert placed.at(filename="E", text="x", span=Span(Position(1, 1, 0), Position(1, 1, 0))).lines == (2, 2)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("FROM base\nADD --from=x a b\n", "--from is a flag of COPY"),
        ("FROM base\nUSER --x a\n", "USER takes no flags"),
        ("FROM base\nRUN one\n  && two\n", "If this continues the line above, end that line with \\"),
        ("# escape=`\nFROM base\nRUN one\n  && two\n", "If this continues the line above, end that line with `"),
        ("FROM base\nRUN <<EOF\nx\n EOF\n", "Line 4 has blanks around EOF; only <<- allows them, as leading tabs"),
        ("\ufffeF", "The file looks like UTF-16; save it as UTF-8"),
        ("# syntax=other/frontend\nrule {\n", "The file asks for the frontend other/frontend, whose language may be another one"),
    ],
)  # fmt: skip
def test_remedies_fit_the_mistake(text: str, hint: str) -> None:
    assert failure(text).hint == hint


def test_the_file_is_named_as_the_caller_names_it() -> None:
    with pytest.raises(DockerfileSyntaxError) as caught:
        parse("FOO", filename="docker/web.Dockerfile")
    assert caught.value.excerpt().startswith("docker/web.Dockerfile:1\n")


def test_a_trigger_is_refused_without_a_line_that_no_file_has() -> None:
    with pytest.raises(DockerfileSyntaxError) as caught:
        parse_instruction("COPY --form=x a b")
    assert caught.value.message == "unknown flag: --form (did you mean from?)"
    for text in ("", "RUN a\nRUN b", "# comment"):
        with pytest.raises(DockerfileSyntaxError):
            parse_instruction(text)
