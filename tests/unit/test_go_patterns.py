"""Go's filepath.Match and path.Clean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.parser.patterns import BadPattern, clean_path, go_match, has_wildcards


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "a", True),
        ("a*", "ab/c", False),
        ("a*/b", "abc/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a]b", "a☺b", True),
        ("a???b", "a☺b", False),
        ("[a-ζ]*", "α", True),
        ("*[a-ζ]", "A", False),
        ("a?b", "a/b", False),
        ("a*b", "a/b", False),
        ("a[^x]b", "a/b", True),
        ("[\\]a]", "]", True),
        ("[\\-]", "-", True),
        ("[x\\-]", "-", True),
        ("[x\\-]", "z", False),
        ("[z-a]", "m", False),
        ("[^z-a]", "m", True),
        ("*x", "xxx", True),
        ("", "", True),
        ("", "a", False),
        ("*[^b]*/c", "x/y/c", False),
        ("a\nb", "a\nb", True),
        ("*", "a\nb", True),
    ],
)
def test_match_agrees_with_go(pattern: str, name: str, expected: bool) -> None:
    assert go_match(pattern, name) is expected


@pytest.mark.parametrize(
    "pattern", ["[", "[^", "[^bc", "a[", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "a\\", "[a\\", "ab[c"]
)
def test_malformed_patterns_are_refused_whatever_the_name(pattern: str) -> None:
    for name in ("", "x", "abc"):
        with pytest.raises(BadPattern):
            go_match(pattern, name)


def test_many_stars_cost_no_exponential_time() -> None:
    # With backtracking this would not end.
    assert not go_match("a*" * 30 + "b", "a" * 200)


def test_only_unescaped_specials_make_a_pattern() -> None:
    assert has_wildcards("a*b")
    assert has_wildcards("a[b")
    assert not has_wildcards("a\\*b")
    assert not has_wildcards("plain/path")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", "."), ("//a//b/", "/a/b"), ("a/../b", "b"), ("../a", "../a"), ("/../a", "/a"), ("./a/.", "a"), ("/", "/")],
)
def test_clean_gives_gos_shortest_form(path: str, expected: str) -> None:
    assert clean_path(path) == expected


@given(st.text(alphabet="ab/*?[]^-\\x", max_size=10), st.text(alphabet="ab/x", max_size=8))
@settings(deadline=None, max_examples=500)
def test_the_verdict_on_syntax_never_depends_on_the_name(pattern: str, name: str) -> None:
    def refused(candidate: str) -> bool:
        try:
            go_match(pattern, candidate)
        except BadPattern:
            return True
        return False

    assert refused(name) == refused("")


@given(st.text(max_size=20))
@settings(deadline=None, max_examples=200)
def test_an_escaped_name_matches_itself_only(name: str) -> None:
    escaped = "".join("\\" + character for character in name)
    assert go_match(escaped, name)
    assert not go_match(escaped, name + "x")
