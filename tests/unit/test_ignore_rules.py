"""Ignore files: which paths are excluded, why, and at what cost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.errors import PybuildError
from pybuild.parser.dockerignore import BadIgnorePattern, IgnoreMatcher, read_rules


def excluded(patterns: list[str], path: str) -> bool:
    return IgnoreMatcher(patterns).excluded(path)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**", "file", True),
        ("**", "dir/file", True),
        ("**/**", "dir/file", True),
        ("dir/**", "dir/file", True),
        ("dir/**", "dir/deep/file", True),
        ("dir/**", "dir", False),
        ("**/dir", "dir", True),
        ("**/dir", "dir/file", True),
        ("**/dir", "a/b/dir/c", True),
        ("**/two/*", "one/two/file", True),
        ("**/two/**", "one/two/three/file", True),
        ("**/two/**", "one/two", False),
        ("**file", "file", True),
        ("**file", "one/two/myfile", True),
        ("**/file", "one/two/myfile", False),
        ("**/file*.txt", "one/two/file1.txt", True),
        ("**/**/*.txt", "file.txt", True),
        ("**/**/*.text", "one/two/file.txt", False),
        ("a**/*.txt", "a/file.txt", True),
        ("a**/*.txt", "a/b/c/file.txt", True),
        ("a**/*.txt", "abc/file.txt", True),
        ("a**b", "ab", True),
        ("a**b", "a/x/b", True),
        ("a**", "abc/def", True),
        ("a/*.txt", "a/b/file.txt", False),
        ("a/*.txt", "a/file.txt", True),
        ("a/*.txt**", "a/file.txt.bak/x", True),
        ("a[b-d]e", "ace", True),
        ("a[b-d]e", "aae", False),
        ("a[^b-d]e", "aze", True),
        ("a[^b]e", "a/e", True),
        ("a?e", "a/e", False),
        (".*", ".hidden", True),
        (".*", "shown", False),
        ("abc.def", "abcXdef", False),
        ("abc?def", "abcXdef", True),
        ("a\\\\", "a\\", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "aXb", False),
        ("x\\d", "x7", True),
        ("x\\d", "xd", False),
        ("[[:digit:]]x", "5x", True),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", True),
        ("dist/*.whl", "dist/p-2.4.0rc3+g08-py3-none-any.whl", True),
        ("*.tar.gz", "x.tar.gz", True),
        ("*.tar.gz", "x.gz", False),
        ("*", "anything/below", True),
        (".", "file", False),
        ("../x", "x", False),
    ],
)
def test_a_single_pattern_excludes_what_the_reference_excludes(pattern: str, path: str, expected: bool) -> None:
    assert excluded([pattern], path) is expected


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["docs", "!docs/README.md"], "docs/README.md", False),
        (["docs", "!docs/README.md"], "docs/other.md", True),
        (["docs/*", "!docs/README.md"], "docs/README.md", False),
        (["!a.go", "*.go"], "a.go", True),
        (["*.go", "!a.go"], "a.go", False),
        (["**", "!util/docker/web"], "util/docker/web/foo", False),
        (["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", True),
        (["**", "!dist/*.whl"], "dist/p+1.whl", False),
        (["*", "!src", "src/*.o"], "src/a.o", True),
        (["*", "!src", "src/*.o"], "src/a.c", False),
        (["**/*.pyc", "!vendor"], "vendor/x.pyc", True),
        (["**/*.pyc", "!vendor/**"], "vendor/x.pyc", False),
        (["x", "!x/c", "x"], "x/c", False),
    ],
)
def test_the_last_pattern_that_matches_decides(patterns: list[str], path: str, expected: bool) -> None:
    assert excluded(patterns, path) is expected


def test_the_root_is_never_excluded() -> None:
    matcher = IgnoreMatcher(["**"])
    assert not matcher.excluded("")
    assert not matcher.excluded(".")
    assert matcher.state_of("").worth_entering


def test_comments_blanks_and_slashes_are_cleaned_as_the_reference_does() -> None:
    text = "\ufeff# comment\n\n  a/b/  \n/rooted\n! /kept//x\r\n #not a comment\nc/../d\n.\n"
    assert tuple(rule.pattern for rule in read_rules(text)) == ("a/b", "rooted", "!kept/x", "#not a comment", "d", ".")


def test_bytes_that_are_not_utf8_survive() -> None:
    assert IgnoreMatcher(read_rules(b"caf\xe9\n")).excluded("caf\udce9")


@pytest.mark.parametrize("text", ["!", "! ", "!/", "[", "a[]b", "x\\", "[b-a]"])
def test_a_malformed_pattern_names_its_line(text: str) -> None:
    with pytest.raises(PybuildError) as caught:
        IgnoreMatcher(read_rules("ok\n" + text + "\n"))
    assert isinstance(caught.value, BadIgnorePattern)
    assert caught.value.line == 2
    assert "line 2" in str(caught.value)


def test_a_line_beyond_the_limit_is_refused() -> None:
    with pytest.raises(PybuildError, match="line 2"):
        read_rules("a\n" + "x" * 70_000)


def test_explain_tells_the_deciding_line_as_written() -> None:
    matcher = IgnoreMatcher.from_text("# all\n*\n!src/\nsrc/*.o\n")
    assert matcher.explain("README") == ("*", 2)
    assert matcher.explain("src/a.c") == ("!src/", 3)
    assert matcher.explain("src/a.o") == ("src/*.o", 4)
    assert IgnoreMatcher.from_text("a").explain("b") is None


@pytest.mark.parametrize(
    ("patterns", "directory", "enter"),
    [
        (["node_modules"], "node_modules", False),
        (["node_modules", "!node_modules/keep"], "node_modules", True),
        (["node_modules", "!other"], "node_modules", False),
        (["node_modules", "!**/keep"], "node_modules", True),
        (["!a/keep", "a"], "a", False),
        (["*", "!a/*/keep"], "a/b", True),
        (["*", "!a/*/keep"], "a/b/c", False),
        (["*", "!a/*/keep"], "z", False),
        (["**/*.pyc"], "src", True),
    ],
)
def test_an_excluded_directory_is_entered_only_for_an_exception(
    patterns: list[str], directory: str, enter: bool
) -> None:
    assert IgnoreMatcher(patterns).state_of(directory).worth_entering is enter


# --- against a plain reading of the rules ----------------------------------------------------------------------------


def naive_expression(pattern: str) -> re.Pattern[str]:
    out, index = "", 0
    while index < len(pattern):
        rest = pattern[index:]
        if rest in ("**", "**/"):
            # Alone it takes everything; after other text, whatever follows that text.
            out, index = out + ".*", len(pattern)
        elif rest.startswith("**/"):
            out, index = out + ("(.*/)?"), index + 3
        elif rest.startswith("**"):
            out, index = out + (".*" if index == 0 and not set("*?[") & set(rest[2:]) else "(.*/)?"), index + 2
        elif rest[0] == "*":
            out, index = out + "[^/]*", index + 1
        elif rest[0] == "?":
            out, index = out + "[^/]", index + 1
        else:
            out, index = out + re.escape(rest[0]), index + 1
    return re.compile(out)


def naive_excluded(patterns: list[str], path: str) -> bool:
    """One path from the root down, every pattern at every level, in the order and with the skips of the reference."""
    compiled = [(p.startswith("!"), naive_expression(p.removeprefix("!"))) for p in patterns]
    names = path.split("/")
    parent: list[bool] = []
    verdict = False
    for depth in range(len(names)):
        here = "/".join(names[: depth + 1])
        verdict = False
        found = []
        for index, (negated, expression) in enumerate(compiled):
            hit = bool(parent) and parent[index]
            if not hit and negated == verdict:
                hit = expression.fullmatch(here) is not None
            found.append(hit)
            if hit:
                verdict = not negated
        parent = found
    return verdict


names = st.sampled_from(["a", "b", "ab", "a.x", "b.x", ".h", "c.tar.gz"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
pieces = st.sampled_from(["a", "b", "ab", "*", "**", "?", "a*", "*.x", "*b", "a.x", ".h", "a**", "**b", "c.*"])
patterns = st.tuples(st.sampled_from(["", "", "!"]), st.lists(pieces, min_size=1, max_size=3).map("/".join)).map(
    "".join
)


@given(st.lists(patterns, max_size=6), st.lists(paths, min_size=1, max_size=8))
@settings(deadline=None, max_examples=400)
def test_verdicts_equal_a_plain_reading_of_the_rules(rules: list[str], candidates: list[str]) -> None:
    matcher = IgnoreMatcher(rules)
    for path in candidates:
        expected = naive_excluded(rules, path)
        assert matcher.excluded(path) is expected, (rules, path)
        explained = matcher.explain(path)
        assert expected is (explained is not None and not explained[0].startswith("!"))


@given(st.lists(patterns, max_size=6), paths)
@settings(deadline=None, max_examples=300)
def test_a_kept_path_is_never_below_a_directory_that_is_not_entered(rules: list[str], path: str) -> None:
    matcher = IgnoreMatcher(rules)
    if not matcher.excluded(path):
        parts = path.split("/")
        assert all(matcher.state_of("/".join(parts[:depth])).worth_entering for depth in range(1, len(parts)))


@given(st.text(max_size=12), st.text(max_size=12))
@settings(deadline=None, max_examples=300)
def test_any_text_is_matched_or_refused(text: str, path: str) -> None:
    try:
        matcher = IgnoreMatcher.from_text(text)
    except PybuildError:
        return
    assert matcher.excluded(path) in (True, False)


def test_many_stars_cost_no_exponential_time() -> None:
    # With backtracking this would not end.
    matcher = IgnoreMatcher(["**/" + "a*" * 25 + "b/" + "*a" * 25 + "b", "a*" * 25 + "b"])
    assert not matcher.excluded("a" * 150)
    assert not matcher.excluded("a" * 150 + "/" + "a" * 150)
    assert matcher.excluded("a" * 30 + "b/" + "a" * 150)


def test_a_hundred_thousand_paths_against_fifty_patterns() -> None:
    rules = (
        [f"dir{n}/build" for n in range(15)] + [f"**/*.e{n}" for n in range(10)] + [f"**/cache{n}" for n in range(10)]
    )
    rules += [
        "docs/**/draft-*",
        "*.log",
        "**/__pycache__/**",
        "tmp*",
        "**/a?c",
        "x/[a-c]*/y",
        "!dir3/build/keep",
        "!**/*.keep",
    ]
    rules += [f"**/gen_{n}_*.c" for n in range(7)]
    assert len(rules) == 50
    candidates = [
        f"dir{a}/sub{b}/deep{c}/file{d}.e{d}"
        for a in range(20)
        for b in range(10)
        for c in range(10)
        for d in range(50)
    ]
    assert len(candidates) == 100_000
    matcher = IgnoreMatcher(rules)
    count = sum(map(matcher.excluded, candidates))
    assert count == 20_000


@pytest.mark.parametrize(
    ("pattern", "path", "excluded"),
    [
        # Beside a wildcard, bars and counts reach the regular expression that the reference makes of a pattern.
        ("x|*.md", "xyz", True),
        ("x|*.md", "d/foo.md", True),
        ("x|*.md", "foo", False),
        ("a|b", "a", False),
        ("a|b", "a|b", True),
        ("*.a|", "whatever", True),
        ("a{2}*", "aab", True),
        ("a{2}*", "a{2}", False),
        ("?{2,3}", "a", False),
        ("?{2,3}", "abc", True),
        ("*.{js,ts}", "a.{js,ts}", True),
        ("*.{js,ts}", "a.js", False),
        ("{0,2}*x", "anywhere/x", True),
        ("*(1)+$.txt", "a(1)+$.txt", True),
    ],
)
def test_bars_and_counts_mean_what_they_mean_to_the_reference(pattern: str, path: str, excluded: bool):
    assert IgnoreMatcher([pattern]).excluded(path) is excluded


@pytest.mark.parametrize("pattern", ["*{2}", "a{1001}?", "a{2}{2}?", "?{3,2}", "x|{2}*"])
def test_a_count_that_counts_nothing_is_refused(pattern: str):
    with pytest.raises(BadIgnorePattern):
        IgnoreMatcher([pattern])
