"""The compiled tables are those of grammar.lark, and the driver agrees with Lark on what they accept and on the trees."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Lark, Token, Tree, UnexpectedInput
from lark.lexer import Lexer

from pybuild.parser import lalr, tokens

REPOSITORY = Path(__file__).resolve().parents[2]
CORPUS = sorted(path.with_name("Dockerfile") for path in (REPOSITORY / "tests/corpus").glob("*/tree.txt"))


def compile_grammar() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_grammar", REPOSITORY / "tools/compile_grammar.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GRAMMAR = (REPOSITORY / "parser/grammar.lark").read_text(encoding="utf-8")


class TokensAsTheyAre(Lexer):
    """Hands Lark the tokens that it is asked to parse."""

    def __init__(self, lexer_conf: object) -> None:
        pass

    def lex(self, data: Any) -> Iterator[Token]:
        for token in data:
            yield Token(token.type, token.text)


LARK = Lark(GRAMMAR, parser="lalr", lexer=TokensAsTheyAre, maybe_placeholders=False)


def shape_of_lark(tree: Any) -> object:
    if isinstance(tree, Tree):
        return (str(tree.data), [shape_of_lark(child) for child in tree.children])
    return (tree.type, str(tree))


def shape_of_ours(node: lalr.Child) -> object:
    if isinstance(node, lalr.Node):
        return (node.rule, [shape_of_ours(child) for child in node.children])
    return (node.type, node.text)


def parse_with_lark(sequence: Sequence[tokens.Token]) -> object:
    try:
        tree = LARK.parse(sequence)  # type: ignore[arg-type]  # a lexer of our own takes what we give it
    except UnexpectedInput:
        return "refused"
    return shape_of_lark(tree.children[0])


def parse_with_tables(sequence: Sequence[tokens.Token]) -> object:
    try:
        return shape_of_ours(lalr.parse(sequence))
    except lalr.UnexpectedToken:
        return "refused"


def test_the_tables_are_compiled_from_the_grammar_as_it_is() -> None:
    assert (REPOSITORY / "parser/_tables.py").read_text(encoding="utf-8") == compile_grammar().compile_tables(GRAMMAR)


def test_the_tables_are_the_same_on_every_compilation() -> None:
    module = compile_grammar()
    assert module.compile_tables(GRAMMAR) == module.compile_tables(GRAMMAR)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.parent.name)
def test_lark_builds_the_same_trees_from_the_corpus(path: Path) -> None:
    from pybuild.parser.lines import LineReader
    from pybuild.parser.source import Source

    reader = LineReader(Source(path.read_bytes().decode("utf-8", "surrogateescape")), filename="Dockerfile")
    seen = 0
    while (line := reader.next_line()) is not None:
        try:
            sequence = tokens.tokenize(line.text, escape=reader.escape)
        except tokens.TokenError:
            continue
        for token in sequence:
            if token.heredoc is not None:
                reader.heredoc_body(token.heredoc.name, strip_tabs=token.heredoc.strip_tabs)
        assert parse_with_tables(sequence) == parse_with_lark(sequence), line.text
        seen += 1
    assert seen, f"{path} has no instruction"


KINDS = sorted({name for state in lalr._STATES for name in state if name.isupper() and name != "$END"})


@st.composite
def sequences(draw: st.DrawFn) -> list[tokens.Token]:
    """Sequences that the grammar accepts for a while, then perhaps not: each step takes one of the types allowed there."""
    chosen: list[tokens.Token] = []
    for index in range(draw(st.integers(1, 9))):
        try:
            lalr.parse(chosen)
            allowed = KINDS
        except lalr.UnexpectedToken as error:
            allowed = sorted(error.expected - {"$END"}) or KINDS
        kind = draw(st.sampled_from(allowed if draw(st.integers(0, 5)) else KINDS))
        chosen.append(tokens.Token(kind, kind.lower(), index, index + 1))
        if len(chosen) > error_index(chosen):
            break
    return chosen


def error_index(sequence: Sequence[tokens.Token]) -> int:
    try:
        lalr.parse(sequence)
    except lalr.UnexpectedToken as error:
        return error.index
    return len(sequence)


@given(sequences())
@settings(deadline=None, max_examples=133)
def test_lark_and_the_tables_accept_the_same_token_sequences(sequence: list[tokens.Token]) -> None:
    assert parse_with_tables(sequence) == parse_with_lark(sequence)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
@settings(deadline=None, max_examples=80)
def test_they_refuse_the_same_nonsense(kinds: list[str]) -> None:
    sequence = [tokens.Token(kind, kind.lower(), index, index + 1) for index, kind in enumerate(kinds)]
    assert parse_with_tables(sequence) == parse_with_lark(sequence)


def test_repetitions_are_parsed_in_linear_time() -> None:
    many = [tokens.Token("EXPOSE", "EXPOSE", 0, 6)] + [tokens.Token("WORD", "1", i, i + 1) for i in range(200_000)]
    assert len(lalr.parse(many).children) == 200_001
