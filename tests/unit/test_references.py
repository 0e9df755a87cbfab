"""References in all their forms, as docker reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.layers.digest import Digest
from pybuild.layers.references import InvalidReference, Reference

SHA256 = "sha256:" + "a" * 64
SHA512 = "sha512:" + "b" * 128


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "familiar", "canonical"),
    [
        ("alpine", "docker.io", "library/alpine", None, "alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io", "library/alpine", "3.20", "alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io", "team/app", None, "team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io", "library/alpine", None, "alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io", "library/alpine", None, "alpine", "docker.io/library/alpine:latest"),
        ("library/alpine", "docker.io", "library/alpine", None, "alpine", "docker.io/library/alpine:latest"),
        ("docker.io/library/a/b", "docker.io", "library/a/b", None, "library/a/b", "docker.io/library/a/b:latest"),
        ("localhost/app", "localhost", "app", None, "localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:x", "localhost:5000", "app", "x", "localhost:5000/app:x", "localhost:5000/app:x"),
        (
            "localhost:5000",
            "docker.io",
            "library/localhost",
            "5000",
            "localhost:5000",
            "docker.io/library/localhost:5000",
        ),
        (
            "registry.example/a/b/c:v1",
            "registry.example",
            "a/b/c",
            "v1",
            "registry.example/a/b/c:v1",
            "registry.example/a/b/c:v1",
        ),
        ("[::1]:5000/app", "[::1]:5000", "app", None, "[::1]:5000/app", "[::1]:5000/app:latest"),
        ("[fe80::1]/team/app:1", "[fe80::1]", "team/app", "1", "[fe80::1]/team/app:1", "[fe80::1]/team/app:1"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000", "app", None, "127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
        ("HOST/app", "HOST", "app", None, "HOST/app", "HOST/app:latest"),
        ("a__b/c.d-e---f:_x", "docker.io", "a__b/c.d-e---f", "_x", "a__b/c.d-e---f:_x", "docker.io/a__b/c.d-e---f:_x"),
        (f"app@{SHA256}", "docker.io", "library/app", None, f"app@{SHA256}", f"docker.io/library/app@{SHA256}"),
        (f"app:1@{SHA256}", "docker.io", "library/app", "1", f"app:1@{SHA256}", f"docker.io/library/app:1@{SHA256}"),
        (f"h.example/app@{SHA512}", "h.example", "app", None, f"h.example/app@{SHA512}", f"h.example/app@{SHA512}"),
    ],
)
def test_references_are_read_as_docker_reads_them(
    text: str, host: str, repository: str, tag: str | None, familiar: str, canonical: str
) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.tag) == (host, repository, tag)
    assert reference.familiar == familiar
    assert reference.canonical == canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the name is empty"),
        ("Alpine", r"repository name \(library/Alpine\) must be lowercase"),
        ("team/App:1", r"repository name \(team/App\) must be lowercase"),
        ("registry.example/App", r"repository name \(App\) must be lowercase"),
        ("a" * 64, "cannot specify 64-byte hexadecimal strings"),
        ("app:", "not a tag"),
        ("app:-x", "not a tag"),
        ("app:" + "x" * 129, "not a tag"),
        ("app@sha256:123", "not a digest"),
        ("app@md5:" + "a" * 32, "not a digest"),
        ("app@", "not a digest"),
        ("/app", "not a repository name"),
        ("app/", "not a repository name"),
        ("a//b", "not a repository name"),
        ("-app", "not a repository name"),
        ("app_", "not a repository name"),
        ("a..b", "not a repository name"),
        ("a___b", "not a repository name"),
        ("https://registry.example/app", "not a"),
        ("registry.example/", "the repository is missing"),
        ("-host.example/app", "not a host name"),
        ("host.example:port/app", "not a host name"),
        ("[::1/app", "not a host name"),
        ("app name", "not a repository name"),
        ("äpp", "not a repository name"),
        ("a/" + "b" * 255, "longer than 255"),
        ("x" * 2000, "longer than 1024"),
    ],
)
def test_what_is_no_reference_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidReference, match=f"^invalid reference format: .*{reason}"):
        Reference.parse(text)


def test_the_target_is_the_digest_before_the_tag_before_latest() -> None:
    assert Reference.parse("app").target == "latest"
    assert Reference.parse("app:1").target == "1"
    assert Reference.parse(f"app:1@{SHA256}").target == SHA256


def test_tags_and_digests_can_be_exchanged() -> None:
    reference = Reference.parse("app:1")
    assert reference.with_tag("2").familiar == "app:2"
    assert reference.pinned(Digest.parse(SHA256)).familiar == f"app:1@{SHA256}"
    assert reference.with_digest(Digest.parse(SHA256)).familiar == f"app@{SHA256}"
    assert Reference.parse("app").with_default_tag().familiar == "app:latest"
    assert Reference.parse(f"app@{SHA256}").with_default_tag().familiar == f"app@{SHA256}"
    with pytest.raises(InvalidReference):
        reference.with_tag("not a tag")


_component = st.from_regex(r"[a-z0-9]{1,8}(?:[._-][a-z0-9]{1,8})?", fullmatch=True)
_host = st.one_of(
    st.just("docker.io"),
    st.from_regex(r"[a-z0-9]{1,8}\.[a-z]{2,5}(?::[0-9]{1,5})?", fullmatch=True),
    st.from_regex(r"\[[0-9a-f:]{2,12}\](?::[0-9]{1,5})?", fullmatch=True),
)


@settings(deadline=None, max_examples=150)
@given(
    host=_host,
    parts=st.lists(_component, min_size=2, max_size=4),
    tag=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.none() | st.just(SHA256),
)
def test_both_written_forms_read_back_as_the_same(
    host: str, parts: list[str], tag: str | None, digest: str | None
) -> None:
    reference = Reference(host, "/".join(parts), tag, None if digest is None else Digest.parse(digest))
    first = parts[0]
    if host == "docker.io" and ("." in first or first == "localhost"):
        assert Reference.parse(reference.canonical).repository == reference.repository
        return
    assert Reference.parse(reference.familiar) == reference
    assert Reference.parse(reference.canonical) == reference.with_default_tag()


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(reference.canonical) == reference.with_default_tag()
