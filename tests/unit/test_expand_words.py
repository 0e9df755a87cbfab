"""Splitting into words after substitution, as EXPOSE needs it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.parser import ExpansionError, Position, Span, Word, expand, expand_words

SPAN = Span(Position(1, 1, 0), Position(1, 1, 0))
ENV = {"two": "80 443", "wide": "a  b", "padded": " a b ", "empty": "", "tab": "a\tb\nc", "quote": "'a b'"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", ["80"]),
        ("80 443", ["80", "443"]),
        ("  80   443 ", ["80", "443"]),
        ("$two", ["80", "443"]),
        ("x$two", ["x80", "443"]),
        ("${two}y", ["80", "443y"]),
        ("x${two}y", ["x80", "443y"]),
        ('"$two"', ["80 443"]),
        ('x"$two"y z', ["x80 443y", "z"]),
        ("'$two'", ["$two"]),
        ("$wide", ["a", "b"]),
        ("x$padded", ["x", "a", "b"]),
        ("${padded}x", ["a", "b", "x"]),
        ('"$padded"', [" a b "]),
        ("$empty", []),
        ("", []),
        ("   ", []),
        ("''", []),
        ("a''b", ["ab"]),
        ("a '' b", ["a", "b"]),
        ("$tab", ["a", "b", "c"]),
        ("a\\ b c", ["a b", "c"]),
        ('a" b "c d', ["a b c", "d"]),
        ("$quote", ["'a", "b'"]),
        ("${unset:-1 2}", ["1", "2"]),
        ('"${unset:-1 2}"', ["1 2"]),
        ("\u00a0a\u2003b", ["a", "b"]),
        ("a\x1cb", ["a\x1cb"]),
        ("$", ["$"]),
    ],
)
def test_blanks_part_words_unless_protected(text: str, expected: list[str]) -> None:
    assert list(expand_words(Word(text, SPAN), ENV)) == expected


@pytest.mark.parametrize("text", ["'a", 'a" b', "${two", "${unset:?no}"])
def test_what_can_not_be_expanded_can_not_be_split(text: str) -> None:
    with pytest.raises(ExpansionError):
        expand_words(Word(text, SPAN), ENV)


@given(st.text(alphabet="ab $tw{}o'\"\\", max_size=20))
@settings(deadline=None, max_examples=133)
def test_the_words_hold_what_the_expansion_holds(text: str) -> None:
    word = Word(text, SPAN)
    try:
        whole = expand(word, ENV).text
    except ExpansionError:
        with pytest.raises(ExpansionError):
            expand_words(word, ENV)
        return
    assert "".join("".join(expand_words(word, ENV)).split()) == "".join(whole.split())
