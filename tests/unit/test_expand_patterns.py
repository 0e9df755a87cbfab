"""``#``, ``%`` and ``/`` patterns give what a backtracking regular expression gives, without its time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.parser.patterns_in_variables import replace, trim_prefix, trim_suffix
from pybuild.parser.word_scanner import SubstitutionProblem

PATTERNS = st.text(alphabet="ab*?\n.", max_size=7)
VALUES = st.text(alphabet="ab\n.", max_size=10)


def as_regular_expression(pattern: str, *, greedy: bool) -> re.Pattern[str]:
    """The rule as BuildKit states it: a star is any text, shortest or longest, and a dot doesn't match a line's end."""
    star = ".*" if greedy else ".*?"
    return re.compile("".join({"*": star, "?": "."}.get(char, re.escape(char)) for char in pattern))


@given(VALUES, PATTERNS, st.booleans())
@settings(deadline=None, max_examples=266)
def test_prefixes_are_those_of_a_regular_expression(value: str, pattern: str, greedy: bool) -> None:
    match = as_regular_expression(pattern, greedy=greedy).match(value)
    assert trim_prefix(value, pattern, greedy=greedy) == (value if match is None else value[match.end() :])


@given(VALUES, PATTERNS, st.booleans())
@settings(deadline=None, max_examples=266)
def test_suffixes_are_prefixes_of_the_mirrored_value(value: str, pattern: str, greedy: bool) -> None:
    expected = trim_prefix(value[::-1], pattern[::-1], greedy=greedy)[::-1]
    assert trim_suffix(value, pattern, greedy=greedy) == expected


@given(VALUES, PATTERNS)
@settings(deadline=None, max_examples=266)
def test_the_first_match_is_that_of_a_regular_expression(value: str, pattern: str) -> None:
    expression = as_regular_expression(pattern, greedy=True)
    assert replace(value, pattern, "<>", every=False) == expression.sub("<>", value, count=1)


@given(VALUES, PATTERNS.filter(lambda pattern: pattern.strip("*")))
@settings(deadline=None, max_examples=266)
def test_every_match_is_that_of_a_regular_expression(value: str, pattern: str) -> None:
    expression = as_regular_expression(pattern, greedy=True)
    assert replace(value, pattern, "<>", every=True) == expression.sub("<>", value)


@pytest.mark.parametrize(
    ("value", "pattern", "expected"),
    [("abc", "", "-a-b-c-"), ("abc", "*", "-"), ("", "*", "-"), ("", "", "-"), ("a\nb", "*", "-\n-")],
)
def test_empty_matches_are_replaced_as_go_replaces_them(value: str, pattern: str, expected: str) -> None:
    assert replace(value, pattern, "-", every=True) == expected


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [("a\\*c", "a*cx", "x"), ("\\?", "?x", "x"), ("\\\\", "\\x", "x"), ("\\}", "}x", "x"), ("\\/", "/x", "x")],
)
def test_escapes_make_characters_plain(pattern: str, value: str, expected: str) -> None:
    assert trim_prefix(value, pattern, greedy=False) == expected
    assert trim_suffix("x" + value[:-1], pattern, greedy=False) == "x"


def test_the_special_characters_of_regular_expressions_are_plain() -> None:
    every = "()[]{}^$.+|"
    assert trim_prefix(every + "x", every, greedy=True) == "x"
    assert replace("a" + every + "b", every, "-", every=True) == "a-b"


@pytest.mark.parametrize("pattern", ["\\", "\\x", "\\\\\\", "a\\"])
def test_other_escapes_are_refused(pattern: str) -> None:
    with pytest.raises(SubstitutionProblem, match="invalid escape"):
        trim_prefix("a", pattern, greedy=False)


@pytest.mark.parametrize("pattern", ["*a" * 40 + "b", "a*" * 40 + "b", "*" * 1000 + "b", "?*" * 40 + "b", "*a*b"])
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    # With backtracking this would not end.
    value = "a" * 20_000
    for greedy in (False, True):
        trim_prefix(value, pattern, greedy=greedy)
        trim_suffix(value, pattern, greedy=greedy)
    replace(value, pattern, "x", every=True)
