"""Variable substitution: every form of the language, quoting and escaping, what is reported as used and as unset."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.parser import (
    Expansion,
    ExpansionError,
    Literal,
    Position,
    Span,
    Variable,
    Word,
    expand,
    expand_heredoc,
    expand_text,
    parse_word,
)

SPAN = Span(Position(3, 5, 20), Position(3, 9, 24))
ENV = {"set": "value", "empty": "", "path": "/usr/local/lib", "name": "a.tar.gz", "uni": "é☃", "star": "*", "one": "1"}


def word(text: str, escape: str = "\\") -> Word:
    return Word(text, SPAN, escape)


def result(text: str, escape: str = "\\") -> str:
    return expand(word(text, escape), ENV).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$set", "value"),
        ("${set}", "value"),
        ("a${set}b", "avalueb"),
        ("$set-$set", "value-value"),
        ("$setting", ""),
        ("$unset", ""),
        ("$set.x", "value.x"),
        ("$é", ""),
        ("${uni}!", "é☃!"),
        ("$one$one", "11"),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$ set", "$ set"),
        ("$1abc", "abc"),
        ("$12abc", "abc"),
        ("${12}x", "x"),
        ("$$", ""),
        ("$$x", "x"),
        ("$@$*$#$?$-$!$0.", "."),
        ("${set:-w}${unset:-w}${empty:-w}", "valueww"),
        ("${set-w}${unset-w}|${empty-w}", "valuew|"),
        ("${set:+w}${unset:+w}${empty:+w}", "w"),
        ("${set+w}|${unset+w}|${empty+w}", "w||w"),
        ("${set:?m}${set?m}${empty?m}", "valuevalue"),
        ("${unset:-$set}", "value"),
        ("${unset:-${set}}", "value"),
        ("${unset:-a${empty:-b${set:+c}}d}", "abcd"),
        ("${unset:-}", ""),
        ("${unset:-a b  c}", "a b  c"),
        ("${unset:-'}'}", "}"),
        ('${unset:-"}"}', "}"),
        ("${unset:-\\}}", "}"),
        ("${unset:-{x}", "{x"),
        ("${unset:-a:b/c#d}", "a:b/c#d"),
    ],
)
def test_plain_and_default_forms(text: str, expected: str) -> None:
    assert result(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'$set'", "$set"),
        ('"$set"', "value"),
        ("'a'b\"c\"", "abc"),
        ("''", ""),
        ('""', ""),
        ("\\$set", "$set"),
        ('"\\$set"', "$set"),
        ("'\\$set'", "\\$set"),
        ("\\\\$set", "\\value"),
        ("a\\tb", "atb"),
        ('"a\\tb"', "a\\tb"),
        ('"a\\\\b"', "a\\b"),
        ('"a\\"b"', 'a"b'),
        ('"it\'s"', "it's"),
        ("'say \"hi\"'", 'say "hi"'),
        ("trailing\\", "trailing"),
        ("two\\\\", "two\\"),
        ('"${unset:-"x"}"', "x"),
        ("a  b", "a  b"),
        ("a << b", "a << b"),
    ],
)
def test_quotes_and_escapes(text: str, expected: str) -> None:
    assert result(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C:\\dir", "C:\\dir"),
        ("`$set", "$set"),
        ('"`$set`"q`""', '$set"q"'),
        ("``", "`"),
        ('"a`b"', "a`b"),
        ("\\$set", "\\value"),
    ],
)
def test_the_backtick_escapes_where_it_was_chosen(text: str, expected: str) -> None:
    assert result(text, "`") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${path#/}", "usr/local/lib"),
        ("${path#*/}", "usr/local/lib"),
        ("${path##*/}", "lib"),
        ("${path%/*}", "/usr/local"),
        ("${path%%/*}", ""),
        ("${name%.gz}", "a.tar"),
        ("${name%.*}", "a.tar"),
        ("${name%%.*}", "a"),
        ("${name#?}", ".tar.gz"),
        ("${name%??}", "a.tar."),
        ("${name#b}", "a.tar.gz"),
        ("${name#*}", "a.tar.gz"),
        ("${name##*}", ""),
        ("${name#}", "a.tar.gz"),
        ("${name##}", "a.tar.gz"),
        ("${star#\\*}", ""),
        ("${name#\\*}", "a.tar.gz"),
        ("${name#$one}", "a.tar.gz"),
        ("${name#${unset:-a}}", ".tar.gz"),
        ("${name#a.t*r}", ".gz"),
        ("${unset#x}", ""),
        ("${path/local/share}", "/usr/share/lib"),
        ("${path//l/L}", "/usr/LocaL/Lib"),
        ("${path/\\//}", "usr/local/lib"),
        ("${path//\\//-}", "-usr-local-lib"),
        ("${name/.*/}", "a"),
        ("${name/?/}", ".tar.gz"),
        ("${name//?/x}", "xxxxxxxx"),
        ("${name//[a]/x}", "a.tar.gz"),
        ("${name/none/x}", "a.tar.gz"),
        ("${path/local/\\}}", "/usr/\\}/lib"),
        ("${unset/x/y}", ""),
        ("${path//$empty/.}", "./.u.s.r./.l.o.c.a.l./.l.i.b."),
        ("${name//*/x}", "x"),
    ],
)
def test_patterns(text: str, expected: str) -> None:
    assert result(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${unset:?}", "unset: is not allowed to be unset"),
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${unset:?no $set here}", "unset: no value here"),
        ("${empty:?say so}", "empty: say so"),
        ("${set", "syntax error: missing '}'"),
        ("${", "syntax error: missing '}'"),
        ("${set:-", "syntax error: missing '}'"),
        ("${set:-${x}", "syntax error: missing '}'"),
        ("${set:-'}", "syntax error: missing '}'"),
        ("${set/a", "syntax error: missing '/' in ${}"),
        ("${set/a}", "syntax error: missing '/' in ${}"),
        ("${set/a/b", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${{set}", "syntax error: bad substitution"),
        ("${:-x}", "syntax error: bad substitution"),
        ("${set:=x}", "unsupported modifier (:=) in substitution"),
        ("${set=x}", "unsupported modifier (=) in substitution"),
        ("${set:x}", "unsupported modifier (:x) in substitution"),
        ("${set:#x}", "unsupported modifier (:#) in substitution"),
        ("${set:%x}", "unsupported modifier (:%) in substitution"),
        ("${set^}", "unsupported modifier (^) in substitution"),
        ("${.}", "unsupported modifier (.) in substitution"),
        ("${set#\\x}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
        ("'open", "unexpected end of statement while looking for matching single-quote"),
        ('"open', "unexpected end of statement while looking for matching double-quote"),
        ('"open\\"', "unexpected end of statement while looking for matching double-quote"),
    ],
)
def test_errors_say_what_is_wrong_and_where(text: str, reason: str) -> None:
    with pytest.raises(ExpansionError) as caught:
        expand(word(text), ENV)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("failed to process ")
    assert str(caught.value).endswith(": " + reason)
    assert caught.value.span == SPAN


def test_an_error_quotes_the_word_as_go_does() -> None:
    with pytest.raises(ExpansionError) as caught:
        expand(word('${x:?"tab\there"}'), {})
    assert str(caught.value) == 'failed to process "${x:?\\"tab\\there\\"}": x: tab\there'


def test_an_unused_default_is_substituted_all_the_same() -> None:
    with pytest.raises(ExpansionError, match="unset: needed"):
        expand(word("${set:-${unset:?needed}}"), ENV)


def test_used_and_unset_variables_are_reported() -> None:
    expansion = expand(word("$set ${unset:-$other} ${empty:+x} '$quoted' \\$escaped ${name%$one}"), ENV)
    assert expansion.used == {"set", "empty", "name", "one"}
    assert expansion.unset == {"unset", "other"}
    assert expand(word("nothing"), ENV) == Expansion("nothing")


def test_variables_without_value_can_stay_as_written() -> None:
    text = "$set $unset ${unset} ${unset:-d} ${unset#p} ${unset/a/b} \"$unset\" '$set'"
    assert expand_text(text, ENV, keep_unset=True, keep_quotes=True).text == (
        "value $unset ${unset} ${unset:-d} ${unset#p} ${unset/a/b} \"$unset\" '$set'"
    )


def test_quotes_and_escapes_can_be_kept() -> None:
    assert expand_text("'a' \"$set\" \\x", ENV, keep_quotes=True).text == "'a' \"value\" x"
    assert expand_text("\\$set \"\\$\" '\\'", ENV, keep_escapes=True).text == "\\$set \\$ \\"


def test_quotes_are_plain_text_in_here_documents() -> None:
    body = "it's \"$set\" '${set}' \\$set \\\\ a\\nb\n"
    assert expand_heredoc(body, ENV).text == "it's \"value\" 'value' $set \\ anb\n"
    assert expand_heredoc("no variables\n", ENV).text == "no variables\n"
    assert expand_heredoc("${missing}", ENV).unset == {"missing"}


def test_a_word_tells_its_parts() -> None:
    parts = parse_word(word("a'b c'$x\"${y:-d$z}\"${p//\\//-}"))
    assert parts == (
        Literal("a"),
        Literal("b c", quoted=True),
        Variable("x"),
        Variable("y", ":-", (Literal("d"), Variable("z")), braces=True, quoted=True),
        Variable(
            "p",
            "//",
            (Literal("\\/", quoted=True),),
            (Literal("-"),),
            braces=True,
        ),
    )


def test_a_byte_order_mark_at_the_beginning_is_dropped() -> None:
    assert result("\ufeffx") == "x"


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    deep = "${a:-" * 5000 + "}" * 5000
    with pytest.raises(ExpansionError, match="nested too deeply"):
        expand(word(deep), ENV)
    assert result("${a:-" * 90 + "x" + "}" * 90) == "x"


@given(st.text(alphabet="$ab{}:-+?#%/\\'\"*<! \t\n1_é", max_size=30), st.sampled_from(["\\", "`"]))
@settings(deadline=None, max_examples=200)
def test_any_text_expands_or_is_refused(text: str, escape: str) -> None:
    for keep in (False, True):
        try:
            expand_text(text, {"a": "x*y", "b": ""}, escape=escape, keep_quotes=keep, plain_quotes=keep)
        except ExpansionError:
            continue


@given(st.text(alphabet="ab$'\"\\ {}", max_size=25))
@settings(deadline=None, max_examples=100)
def test_escaping_every_special_character_gives_the_text_back(text: str) -> None:
    escaped = "".join("\\" + char if char in "$'\"\\" else char for char in text)
    assert expand(word(escaped), ENV).text == text


@pytest.mark.parametrize(
    "text",
    [
        "a" * 400_000,
        "$set" * 100_000,
        "\\a" * 200_000,
        '"a"' * 130_000,
        "${set:-x}" * 45_000,
        "'" + "a" * 400_000 + "'",
    ],
    ids=["plain", "variables", "escapes", "quotes", "defaults", "one-quote"],
)
def test_time_grows_with_the_length_only(text: str) -> None:
    # With work per character that grows with the length, these would take minutes.
    expand(word(text), ENV)
