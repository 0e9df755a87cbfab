"""Whatever the text, parsing gives a tree that renders back, or a DockerfileError; never anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pybuild.parser import Dockerfile, DockerfileError, Instruction, Span, Word, expand, expand_words, parse, parse_word
from pybuild.parser.ast import KeyValue, Mount
from pybuild.parser.serialize import to_json

T = TypeVar("T")
CORPUS = sorted((Path(__file__).resolve().parents[1] / "corpus").glob("*/Dockerfile"))
SEEDS = [path.read_bytes().decode("utf-8", "surrogateescape") for path in CORPUS if path.stat().st_size < 5000]

KEYWORDS = ["ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR", "from", "onbuild", "FORM"]  # fmt: skip
FRAGMENTS = [
    " ", "  ", "\t", "\n", "\r\n", " \\\n", "\\", "`", "\\\\", "'", '"', "$", "${", "}", "$x", "${x:-y}", "=", "a", "b=c", "a=b",
    "é", "\u00a0", "\x1c", "\udcff", "\ufeff", "[", "]", '["a", "b"]', "[]", "[1]", ",", "--", "--from=x", "--link", "--mount=",
    "--mount=type=cache,target=/x", "type=secret", "--chmod=644", "--interval=1s", "<<EOF", "<<-EOF", "<<'E F'", "3<<EOF", "\nEOF\n",
    "EOF", "\n\tEOF\n", "# comment\n", "#", "# escape=`\n", "# syntax=x\n", "# check=skip=all\n", "AS", "as name", "80", "CMD", "NONE",
    "/a/b", ".", "\0", "//", "{", '{"syntax": "x"}',
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(KEYWORDS), st.sampled_from(FRAGMENTS)), max_size=25).map("".join)
LINES = st.lists(
    st.tuples(st.sampled_from(KEYWORDS), st.lists(st.sampled_from(FRAGMENTS), max_size=7)).map(
        lambda line: line[0] + " " + " ".join(line[1]) + "\n"
    ),
    max_size=6,
).map(lambda lines: "FROM base\n" + "".join(lines))


def words(value: object) -> list[Word]:
    """All words anywhere in a part of the tree."""
    match value:
        case Word():
            return [value]
        case tuple():
            return [word for item in value for word in words(item)]
        case Instruction() | KeyValue() | Mount():
            return [word for name in value.__dataclass_fields__ for word in words(getattr(value, name))]
        case _:
            return []


def spans(value: object) -> list[Span]:
    match value:
        case Span():
            return [value]
        case tuple():
            return [span for item in value for span in spans(item)]
        case _ if hasattr(value, "__dataclass_fields__"):
            return [span for name in value.__dataclass_fields__ for span in spans(getattr(value, name))]
        case _:
            return []


def attempt(action: Callable[[], T]) -> T | DockerfileError:
    """What the action gives, or the one kind of error that it may raise."""
    try:
        return action()
    except DockerfileError as error:
        return error


def check(text: str) -> Dockerfile | None:
    """All that must hold of any text; None where it is no Dockerfile."""
    dockerfile = attempt(lambda: parse(text))
    if isinstance(dockerfile, DockerfileError):
        assert dockerfile.message
        assert dockerfile.excerpt()
        assert dockerfile.lines is not None
        assert 1 <= dockerfile.lines[0] <= dockerfile.lines[1]
        return None
    assert dockerfile.render() == text
    at = 0
    for node in dockerfile.nodes:
        assert at <= node.span.start.offset <= node.span.end.offset <= len(text)
        assert not text[at : node.span.start.offset].strip(" \t\r\n\v\f\ufeff\u00a0")
        at = node.span.end.offset
    for span in spans(dockerfile.nodes):
        assert span.start.offset <= span.end.offset
        before = text[: span.start.offset].removeprefix("\ufeff")
        assert span.start.line == before.count("\n") + 1
        assert span.start.column == len(before) - (before.rfind("\n") + 1) + 1
    json.dumps(to_json(dockerfile))
    return dockerfile


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=150)
@example("\\")
@example("\\\n")
@example("\ufeff\\\n")
@example("# x\\")
@example("FROM a\n\\\n#\n")
@example("FROM a\nRUN <<\\'\n'\n")
@example("FROM \ud800")
def test_any_text_parses_or_is_refused(text: str) -> None:
    check(text)


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=100)
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        assert parse(data).render().encode("utf-8", "surrogateescape") == data
    except DockerfileError:
        pass


@given(st.one_of(TEXTS, LINES))
@settings(deadline=None, max_examples=300)
def test_what_resembles_a_dockerfile_parses_or_is_refused(text: str) -> None:
    dockerfile = check(text)
    if dockerfile is None:
        return
    env = {"x": "1 2"}
    for word in words(dockerfile.instructions):
        for result in (
            attempt(lambda word=word: expand(word, env)),
            attempt(lambda word=word: expand_words(word, env)),
            attempt(lambda word=word: parse_word(word)),
        ):
            if isinstance(result, DockerfileError):
                assert result.at(filename="Dockerfile", text=text).excerpt()


@given(st.sampled_from(SEEDS), st.integers(0, 3000), st.integers(0, 12), st.sampled_from(FRAGMENTS))
@settings(deadline=None, max_examples=200)
def test_a_real_file_with_a_piece_replaced_parses_or_is_refused(seed: str, at: int, length: int, piece: str) -> None:
    at = min(at, len(seed))
    check(seed[:at] + piece + seed[at + length :])


@given(LINES)
@settings(deadline=None, max_examples=100)
def test_a_trees_rendering_parses_to_the_same_tree(text: str) -> None:
    dockerfile = check(text)
    if dockerfile is not None:
        assert parse(dockerfile.render()) == dockerfile


@given(LINES, st.integers(0, 20))
@settings(deadline=None, max_examples=80)
def test_replacing_a_node_by_itself_changes_nothing(text: str, index: int) -> None:
    dockerfile = check(text)
    if dockerfile is None:
        return
    instruction = dockerfile.instructions[index % len(dockerfile.instructions)]
    assert dockerfile.replace(instruction, instruction) == dockerfile
