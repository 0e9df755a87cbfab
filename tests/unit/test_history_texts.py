"""The created_by texts of history entries."""

import pytest

from pybuild.builder.history import (
    arg_text,
    config_entry,
    context_entry,
    duration,
    healthcheck_text,
    layer_entry,
    list_text,
    matching_history,
    pairs_text,
    quote,
    quoted_text,
    run_text,
)
from pybuild.layers.image import HealthCheck, History


def test_a_run_without_arguments_shows_its_command():
    assert run_text(["/bin/sh", "-c", "make all"], arguments=[], env={}) == "RUN /bin/sh -c make all"


def test_a_run_lists_each_argument_once_with_its_present_value():
    arguments = [("foo", "bar"), ("bar", "123"), ("foo", "bar2"), ("unset", None)]
    text = run_text(["ls"], arguments=arguments, env={"foo": "bar2", "bar": "123"})
    assert text == "RUN |3 foo=bar2 bar=123 unset= ls"


def test_layers_of_instructions_carry_the_buildkit_mark():
    assert layer_entry("COPY a b") == History(created_by="COPY a b # buildkit", comment="buildkit.dockerfile.v0")
    assert layer_entry("WORKDIR /a", buildkit=False).created_by == "WORKDIR /a"
    assert config_entry("CMD []").empty_layer


def test_lists_are_written_as_go_prints_them():
    assert quoted_text("CMD", ["sh", "-c", 'echo "a"\n']) == 'CMD ["sh" "-c" "echo \\"a\\"\\n"]'
    assert list_text("EXPOSE", ["80/tcp", "53/udp"]) == "EXPOSE [80/tcp 53/udp]"
    assert list_text("VOLUME", ["/a"]) == "VOLUME [/a]"


def test_arguments_and_pairs():
    assert arg_text([("a", "1"), ("b", None), ("c", "")]) == "ARG a=1 b c="
    assert pairs_text("ENV", [("a", "x y"), ("b", "")]) == "ENV a=x y b="


def test_a_healthcheck_prints_all_fields():
    check = HealthCheck(
        test=("bin", "-c", "exit 0"),
        interval_ns=10**9,
        timeout_ns=10 * 10**9,
        start_period_ns=3 * 10**9,
        start_interval_ns=100 * 10**6,
        retries=5,
    )
    assert healthcheck_text(check) == (
        "HEALTHCHECK {Test:[bin -c exit 0] Interval:1s Timeout:10s StartPeriod:3s StartInterval:100ms Retries:5}"
    )


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (100_000_000, "100ms"),
        (1_500_000_000, "1.5s"),
        (90 * 10**9, "1m30s"),
        (300 * 10**9, "5m0s"),
        (3_600 * 10**9, "1h0m0s"),
        (3_661_000_000_001, "1h1m1.000000001s"),
        (-30 * 10**9, "-30s"),
    ],
)
def test_durations_print_as_in_go(nanoseconds, text):
    assert duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a b", '"a b"'),
        ("tab\there", '"tab\\there"'),
        ("\x01\x7f", '"\\x01\\x7f"'),
        ("é→", '"é→"'),
        ("\u200b", '"\\u200b"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("\udcff", '"\\xff"'),
        ("back\\slash", '"back\\\\slash"'),
    ],
)
def test_quoting_is_go_s(text, quoted):
    assert quote(text) == quoted


def test_history_is_made_to_match_the_number_of_layers():
    base = (History(created_by="a"), History(created_by="b", empty_layer=True), History(created_by="c"))
    assert matching_history(base, 2) == base
    fewer = matching_history(base, 1)
    assert [entry.empty_layer for entry in fewer] == [False, True, True]
    more = matching_history(base, 4)
    assert sum(not entry.empty_layer for entry in more) == 4
    assert more[-1] == context_entry("")
