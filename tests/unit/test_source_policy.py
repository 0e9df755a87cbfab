"""Source policies: which rule is for what, and what becomes of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.source_policy import InvalidSourcePolicy, Source, SourceDenied, parse_source_policy


def policy(*rules: object) -> str:
    return json.dumps({"version": 1, "rules": rules})


def rule(action: str, identifier: str, kind: str = "WILDCARD", **more: object) -> dict[str, object]:
    return {"action": action, "selector": {"identifier": identifier, "matchType": kind}, **more}


def applied(text: str, identifier: str, **attributes: str) -> Source:
    return parse_source_policy(text).apply(Source(identifier, attributes))


def test_the_last_rule_that_is_for_a_source_decides() -> None:
    text = policy(rule("DENY", "docker-image://*"), rule("ALLOW", "docker-image://docker.io/library/*"))
    assert applied(text, "docker-image://docker.io/library/a:1").identifier == "docker-image://docker.io/library/a:1"
    with pytest.raises(SourceDenied, match="source denied by policy"):
        applied(text, "docker-image://example.com/a:1")


@pytest.mark.parametrize(
    ("kind", "identifier", "replacement", "expected"),
    [
        ("WILDCARD", "docker-image://docker.io/*", "docker-image://mirror.example/${1}", "docker-image://mirror.example/library/a:1"),
        ("EXACT", "docker-image://docker.io/library/a:1", "local://here", "local://here"),
        ("EXACT", "docker-image://docker.io/library/*", "local://here", "docker-image://docker.io/library/a:1"),
        ("REGEX", "^docker-image://docker.io/library/(.)", "docker-image://x/$1:2", "docker-image://x/a:2"),
    ],
)  # fmt: skip
def test_sources_are_replaced(kind: str, identifier: str, replacement: str, expected: str) -> None:
    text = policy(rule("CONVERT", identifier, kind, updates={"identifier": replacement}))
    assert applied(text, "docker-image://docker.io/library/a:1").identifier == expected


def test_a_replacement_is_looked_at_again() -> None:
    text = policy(rule("CONVERT", "a", updates={"identifier": "b"}), rule("DENY", "b", "EXACT"))
    with pytest.raises(SourceDenied):
        applied(text, "a")
    with pytest.raises(InvalidSourcePolicy, match="again and again"):
        applied(policy(rule("CONVERT", "x*", updates={"identifier": "x${1}y"})), "x")


def test_attributes_are_asked_for_and_given() -> None:
    text = policy(rule("CONVERT", "https://*", updates={"attrs": {"http.checksum": "sha256:1"}}))
    assert applied(text, "https://a/b").attributes == {"http.checksum": "sha256:1"}
    selector = {"identifier": "https://*", "constraints": [{"key": "http.checksum", "value": "", "condition": "EQUAL"}]}
    denied = policy({"action": 1, "selector": selector})
    assert applied(denied, "https://a", **{"http.checksum": "sha256:1"})
    with pytest.raises(SourceDenied):
        applied(denied, "https://a")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["rules", "action", "selector", "identifier", "updates", "matchType"]), v, max_size=4), max_leaves=12))  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_anything_else_is_refused(value: object) -> None:
    try:
        parse_source_policy(json.dumps(value))
    except InvalidSourcePolicy:
        pass


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidSourcePolicy, match="failed to parse source policy"):
        parse_source_policy("{")
