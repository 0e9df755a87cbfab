"""What servers send in headers and URLs: challenges, links, waiting times, and what of it may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.registry_client.challenges import Challenge, parse_challenges
from pybuild.registry_client.links import next_link
from pybuild.registry_client.redaction import redact_url
from pybuild.registry_client.retry import retry_after_seconds
from pybuild.registry_client.transport import error_detail, origin


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("Basic realm=x", [("basic", {"realm": "x"})]),
        ('BASIC Realm="a b"', [("basic", {"realm": "a b"})]),
        (
            'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.example/token",
                        "service": "registry.example",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            'Basic realm="one", Bearer realm="https://two/token", service=two',
            [("basic", {"realm": "one"}), ("bearer", {"realm": "https://two/token", "service": "two"})],
        ),
        (
            'Bearer realm="https://two/token" , service="two",Basic realm="one"',
            [("bearer", {"realm": "https://two/token", "service": "two"}), ("basic", {"realm": "one"})],
        ),
        ('Negotiate, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate a2V5PT0=, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        (r'Basic realm="a\"b\\c, Bearer realm=z"', [("basic", {"realm": r'a"b\c, Bearer realm=z'})]),
        (
            'Bearer realm = "x" , error = "insufficient_scope"',
            [("bearer", {"realm": "x", "error": "insufficient_scope"})],
        ),
        ('Bearer realm="first",realm="second"', [("bearer", {"realm": "first"})]),
        (',, ,Basic realm=""', [("basic", {"realm": ""})]),
        ('Bearer realm="never ends', [("bearer", {})]),
    ],
)
def test_challenges_are_told_apart(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert list(parse_challenges(header)) == [Challenge(scheme, parameters) for scheme, parameters in expected]
    assert [dict(challenge.parameters) for challenge in parse_challenges(header)] == [p for _, p in expected]


_value = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
_name = st.from_regex(r"[a-z]{1,10}", fullmatch=True)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z]{3,9}", fullmatch=True), st.dictionaries(_name, _value, min_size=1, max_size=4)),
        max_size=4,
    )
)
def test_written_challenges_read_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"')

    header = ", ".join(
        f"{scheme} " + ",".join(f'{name}="{quoted(value)}"' for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert [(c.scheme, dict(c.parameters)) for c in parse_challenges(header)] == challenges


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=200) | st.text(alphabet='Bearer Basic="\\,; realm/:', max_size=200))
def test_any_header_is_read_without_an_error(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()
    next_link(header)
    retry_after_seconds(header, now=0)
    redact_url(header)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ('</v2/a/tags/list?last=x&n=2>; rel="next"', "/v2/a/tags/list?last=x&n=2"),
        ("<https://r.example/v2/_catalog?last=a,b>; rel=next", "https://r.example/v2/_catalog?last=a,b"),
        ('<one>; rel="prev", <two>; rel="next"', "two"),
        ('<one>; title="a, <b>; rel=next"; rel="first", <two>;rel="last next"', "two"),
        ("<x>", None),
        ('<x>; rel="previous"', None),
        ('<>; rel="next"', None),
        ("x; rel=next", None),
    ],
)
def test_the_next_page_is_found_among_links(header: str, expected: str | None) -> None:
    assert next_link(header) == expected


def test_waiting_times_are_seconds_or_dates() -> None:
    assert retry_after_seconds("7", now=0) == 7
    assert retry_after_seconds(" 0 ", now=0) == 0
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT", now=1445412480 - 30) == 30
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT", now=1445412480 + 30) == 0
    assert retry_after_seconds("99999999999999999999", now=0) > 1e15  # type: ignore[operator]  # not None here
    for senseless in (None, "", "-5", "soon", "1.5", "٣"):
        assert retry_after_seconds(senseless, now=0) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@r.example/v2/", "https://r.example/v2/"),
        ("https://r.example/v2/a/tags/list?n=5&last=x", "https://r.example/v2/a/tags/list?n=5&last=x"),
        (
            "https://s3.example/blob?X-Amz-Signature=abc&X-Amz-Date=d",
            "https://s3.example/blob?X-Amz-Signature=…&X-Amz-Date=…",
        ),
        ("https://r.example/u?_state=secret&digest=sha256:ab", "https://r.example/u?_state=…&digest=sha256:ab"),
        ("https://r.example/u?opaque", "https://r.example/u?opaque=…"),
        ("https://r.example/a#token", "https://r.example/a"),
    ],
)
def test_shown_urls_hold_no_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_errors_of_registries_are_read_in_all_their_forms() -> None:
    assert error_detail(b'{"errors":[{"code":"DENIED","message":"no push here","detail":"quota"}]}') == (
        ("DENIED",),
        "no push here (quota)",
    )
    assert error_detail(b'{"errors":[{"code":"UNKNOWN","detail":{"a":1}}]}') == (("UNKNOWN",), "UNKNOWN")
    assert error_detail(b'{"message":"from a proxy"}') == ((), "from a proxy")
    assert error_detail(b'{"details":"incorrect password"}') == ((), "incorrect password")
    assert error_detail(b"<html>a page</html>") == ((), "")
    assert error_detail(b"plain\ntext\x1b[31m") == ((), "plain text [31m")
    assert error_detail(b'{"errors":"no list"}') == ((), "")
    assert error_detail(b"[" * 100_000)[0] == ()
    assert error_detail(b"") == ((), "")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_error_body_is_read_without_an_error(body: bytes) -> None:
    codes, detail = error_detail(body)
    assert detail.isprintable()
    assert all(code.isprintable() for code in codes)


def test_an_origin_is_scheme_host_and_port() -> None:
    assert origin("https://r.example/a") == origin("https://R.example:443/b")
    assert origin("https://r.example") != origin("http://r.example")
    assert origin("https://r.example") != origin("https://r.example:8443")
    assert origin("https://r.example") != origin("https://r.example.evil")
    assert origin("https://r.example@evil.example/") == ("https", "evil.example", 443)
