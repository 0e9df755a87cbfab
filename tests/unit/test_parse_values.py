"""Single values: durations, sizes, numbers, quoting, ports, modes, signals, names, suggestions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.parser.go_text import parse_bool, parse_duration, parse_signed, parse_size, parse_unsigned, quote
from pybuild.parser.suggest import closest, did_you_mean
from pybuild.parser.values import ValueProblem, check_signal, check_stage_name, parse_port


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0), ("5s", 5 * 10**9), ("1m30s", 90 * 10**9), ("1.5h", 5400 * 10**9), ("500ms", 5 * 10**8), ("1us", 1000),
        ("1µs", 1000), ("1μs", 1000), ("3ns", 3), (".5s", 5 * 10**8), ("1.s", 10**9), ("-2s", -2 * 10**9), ("+2s", 2 * 10**9),
        ("-0", 0), ("1h2m3s4ms", 3723004 * 10**6), ("0.000000001s", 1), ("1.0000000000001s", 10**9), ("2562047h", 2562047 * 3600 * 10**9),
    ],
)  # fmt: skip
def test_durations_are_gos(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("5", 'time: missing unit in duration "5"'),
        ("1.", 'time: missing unit in duration "1."'),
        ("x", 'time: invalid duration "x"'),
        (".", 'time: invalid duration "."'),
        ("-", 'time: invalid duration "-"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("1s 2s", 'time: unknown unit "s " in duration "1s 2s"'),
        ("2562048h", 'time: invalid duration "2562048h"'),
        ("9" * 5000 + "s", None),
    ],
)
def test_other_durations_are_refused_in_gos_words(text: str, message: str | None) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    if message is not None:
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("100", 100),
        ("64m", 64 << 20),
        ("1.5G", 3 << 29),
        ("1 KiB", 1024),
        ("2kb", 2048),
        ("7B", 7),
        ("1TiB", 1 << 40),
        (".5k", 512),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "1q", "1kk", "-1", "1mbb", "1 2", "1.2.3", "9" * 400 + "p", "1e", "k1"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


def test_numbers_have_limits() -> None:
    assert parse_unsigned("0644", base=8) == 0o644
    assert parse_unsigned("4294967295", base=10) == 2**32 - 1
    assert parse_signed("-2147483648", bits=32) == -(2**31)
    for bad in ("", "8", "-1", "+1", "0o7", "1_0", " 1", "٣", "7" * 5000):
        with pytest.raises(ValueError):
            parse_unsigned(bad, base=8)
    for bad in ("", "-", "1.0", "2147483648", "١", "9" * 5000):
        with pytest.raises(ValueError):
            parse_signed(bad, bits=32)


def test_booleans_are_gos() -> None:
    assert [parse_bool(text) for text in ("1", "t", "TRUE", "0", "F", "false")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    for bad in ("yes", "tRUE", "", "on"):
        with pytest.raises(ValueError):
            parse_bool(bad)


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("plain é ☃", '"plain é ☃"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("\n\t\r\a\x00\x7f", '"\\n\\t\\r\\a\\x00\\x7f"'),
        ("\u00a0\u200b", '"\\u00a0\\u200b"'),
        ("\udcff", '"\\xff"'),
        ("\U000e0001", '"\\U000e0001"'),
    ],
)
def test_text_is_quoted_as_go_quotes_it(text: str, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", ("80/tcp",)),
        ("80/UDP", ("80/udp",)),
        ("80/", ("80/tcp",)),
        ("8000-8002/sctp", ("8000/sctp", "8001/sctp", "8002/sctp")),
        ("80-80", ("80/tcp",)),
        ("1:2", ("2/tcp",)),
        ("127.0.0.1:1:2/udp", ("2/udp",)),
        ("[::1]:1:2", ("2/tcp",)),
        ("::1:1:2", ("2/tcp",)),
        ("1-2:80", ("80/tcp",)),
        ("0", ("0/tcp",)),
    ],
)
def test_ports_are_read_as_expose_has_them(text: str, ports: tuple[str, ...]) -> None:
    assert parse_port(text).ports == ports


def test_a_port_keeps_its_protocols_case() -> None:
    assert parse_port("80/TcP").protocol == "TcP"


def test_signals_have_names_and_numbers() -> None:
    for value in ("SIGTERM", "term", "9", "SIGRTMIN+15", "RTMAX-14", "-1", "100"):
        check_signal(value)
    for value in ("0", "", "SIG", "SIGSIGTERM", "SIGRTMIN+16", "1.5", "TERM "):
        with pytest.raises(ValueProblem):
            check_signal(value)


def test_stage_names_begin_with_a_letter() -> None:
    for name in ("a", "Build", "a-b_c.d0"):
        check_stage_name(name)
    for name in ("", "0a", "-a", "a b", "a/b", "é", "a\n"):
        with pytest.raises(ValueProblem):
            check_stage_name(name)


@pytest.mark.parametrize(
    ("value", "options", "answer"),
    [
        ("mont", ["mount", "network"], "mount"),
        ("tmp", ["bind", "tmpfs"], "tmpfs"),
        ("abc", ["abcde"], "abcde"),
        ("abc", ["abcdef"], None),
        ("abc", ["abd", "abe"], "abd"),
        ("abc", ["xbc", "abcx", "ab"], "xbc"),
        ("abc", ["axx", "abx"], "abx"),
        ("same", ["same", "sames"], None),
        ("", ["ab"], "ab"),
        ("", ["abc"], None),
        ("BULID", ["BUILD"], "BUILD"),
    ],
)
def test_the_nearest_option_within_two_edits_is_suggested(value: str, options: list[str], answer: str | None) -> None:
    assert closest(value, options) == answer


def test_a_suggestion_takes_the_case_of_the_word() -> None:
    assert closest("form", ["FROM"], case_sensitive=False) == "from"
    assert closest("FORM", ["from"], case_sensitive=False) == "FROM"
    assert closest("Form", ["FROM"], case_sensitive=False) == "from"
    assert closest("From", ["FROM"], case_sensitive=False) is None
    assert closest("form", ["FROM"]) is None
    assert did_you_mean("no x", "x", ["y"]) == "no x (did you mean y?)"
    assert did_you_mean("no x", "x", ["yyyy"]) == "no x"


@given(st.text(alphabet="abc", max_size=6), st.text(alphabet="abc", max_size=6))
@settings(deadline=None, max_examples=100)
def test_suggestions_need_fewer_than_three_edits(left: str, right: str) -> None:
    def edits(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))

    assert (closest(left, [right]) is not None) == (left != right and edits(left, right) < 3)
