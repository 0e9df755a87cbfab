"""The rules of ``RUN --mount`` on expanded values, and the CSV that holds them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.parser import Run, expand, parse
from pybuild.parser.mounts import MountError, MountOptions, csv_fields, csv_spans, validate


def test_defaults_are_those_of_the_type() -> None:
    assert validate("bind", [("target", "/x")]) == MountOptions(type="bind", target="/x", readonly=True)
    assert validate("cache", [("target", "/x")]) == MountOptions(type="cache", target="/x", readonly=False)
    assert validate("tmpfs", []).readonly is False
    assert validate("ssh", []).readonly is True
    assert validate("SECRET", [("id", "x")]).type == "secret"


def test_every_key_has_its_type() -> None:
    options = [
        ("source", "a"), ("target", "b"), ("from", "c"), ("id", "d"), ("sharing", "LOCKED"), ("mode", "0755"), ("uid", "1"),
        ("gid", "2"), ("readonly", None),
    ]  # fmt: skip
    assert validate("cache", options) == MountOptions(
        type="cache",
        source="a",
        target="b",
        from_="c",
        id="d",
        sharing="locked",
        mode=0o755,
        uid=1,
        gid=2,
        readonly=True,
    )
    assert validate("tmpfs", [("size", "1.5k")]).size == 1536
    assert validate("secret", [("id", "a"), ("env", ""), ("required", "t")]) == MountOptions(
        type="secret", id="a", env="", required=True, readonly=True
    )


def test_the_last_of_readonly_and_readwrite_counts() -> None:
    assert validate("bind", [("readwrite", None)]).readonly is False
    assert validate("bind", [("readwrite", "false")]).readonly is True
    assert validate("bind", [("readonly", "0")]).readonly is False
    assert validate("bind", [("readonly", None), ("readwrite", None)]).readonly is False


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("volume", [], 'unsupported mount type "volume"'),
        ("", [], 'unsupported mount type ""'),
        ("bind", [("mode", "0755")], 'mode not allowed for "bind" type mounts'),
        ("bind", [("sharing", "shared")], "invalid cache sharing set for bind mount"),
        ("secret", [], "invalid secret mount. one of source, target required"),
        ("secret", [("id", "")], "invalid secret mount. one of source, target required"),
        ("bind", [("target", None)], "invalid field 'target' must be a key=value pair"),
        ("bind", [("size", "1")], "unexpected key 'size' for mount type 'bind'"),
        ("bind", [("idd", "1")], "unexpected key 'idd' in 'idd=1' (did you mean id?)"),
    ],
)
def test_expanded_values_are_refused_in_the_same_words(
    kind: str, options: list[tuple[str, str | None]], message: str
) -> None:
    with pytest.raises(MountError) as caught:
        validate(kind, options)
    assert str(caught.value) == message


def test_what_a_variable_hides_is_checked_after_expansion() -> None:
    run = parse("FROM base\nRUN --mount=type=$T,target=$D,mode=$M,size=$S true\n").instructions[1]
    assert isinstance(run, Run)
    (mount,) = run.mounts
    env = {"T": "cache", "D": "/x", "M": "0700", "S": "1"}
    values = [(key, None if word is None else expand(word, env).text) for key, word in mount.options]
    with pytest.raises(MountError, match="unexpected key 'size' for mount type 'cache'"):
        validate(expand(mount.type, env).text, values)
    assert validate("cache", values[:-1]).mode == 0o700


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a,", ["a", ""]),
        (",", ["", ""]),
        ('"a,b",c', ["a,b", "c"]),
        ('"a""b"', ['a"b']),
        ('""', [""]),
        ('a, "', None),
        ('a"b', None),
        ('"a', None),
        ('"a"b', None),
        ("", None),
    ],
)
def test_fields_are_parted_as_csv(text: str, fields: list[str] | None) -> None:
    if fields is None:
        with pytest.raises(ValueError, match="failed to parse csv mounts"):
            csv_fields(text)
    else:
        assert csv_fields(text) == fields


@given(st.text(alphabet='a=,"\n ', max_size=20))
@settings(deadline=None, max_examples=80)
def test_fields_are_found_where_they_are(text: str) -> None:
    try:
        found = csv_spans(text)
    except ValueError:
        return
    assert ",".join(text[start:end] for _, start, end in found) == text
