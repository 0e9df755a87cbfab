"""Git references and ports as Dockerfiles write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.git_reference import GitReference, InvalidGitReference, parse_git_reference
from pybuild.builder.image_config import exposed_ports
from pybuild.builder.named_context import (
    ImageContextRef,
    LocalContextRef,
    context_key,
    find_named_context,
)
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.parser.values import ValueProblem

AMD64 = Platform("linux", "amd64")
SHA = "a" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/r.git", GitReference("https://h/r.git")),
        ("https://h/r.git#v1", GitReference("https://h/r.git", "v1")),
        ("https://h/r.git#v1:a/../b", GitReference("https://h/r.git", "v1", "b")),
        ("https://h/r.git#:sub", GitReference("https://h/r.git", "", "sub")),
        ("git://h/r#x", GitReference("git://h/r", "x")),
        ("ssh://git@h:22/r.git", GitReference("ssh://git@h:22/r.git")),
        ("git@h:o/r.git#main:d", GitReference("git@h:o/r.git", "main", "d")),
        ("https://u:p@h/r.git?branch=main", GitReference("https://u:p@h/r.git", "refs/heads/main")),
        ("https://h/r.git?tag=v1&subdir=d", GitReference("https://h/r.git", "refs/tags/v1", "d")),
        (f"https://h/r.git?ref=m&checksum={COMMIT}", GitReference("https://h/r.git", "m", "", COMMIT)),
        (
            "https://h/r.git?keep-git-dir&submodules=0",
            GitReference("https://h/r.git", keep_git_dir=True, submodules=False),
        ),
        ("https://h/r.git?mtime=commit", GitReference("https://h/r.git")),
    ],
)
def test_git_references_are_read_in_both_forms(text, expected):
    assert parse_git_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    ["app", "./a.git", "../x", "https://h/file.tar", "github.com/o/r", "ftp://h/r.git", "a:b", "", "https://[/r.git"],
)
def test_paths_and_plain_urls_are_no_git_references(text):
    assert parse_git_reference(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://h/r.git?foo=1", 'unexpected query "foo"'),
        ("https://h/r.git?ref=a&ref=b", "multiple values"),
        ("https://h/r.git?ref=", "has no value"),
        ("https://h/r.git?tag=a&branch=b", "branch conflicts with tag"),
        ("https://h/r.git?ref=a#b", "ref conflicts"),
        ("https://h/r.git?mtime=x", "invalid mtime value"),
        ("https://h/r.git?submodules=perhaps", "invalid submodules value"),
    ],
)
def test_wrong_parts_of_a_git_reference_are_named(text, message):
    with pytest.raises(InvalidGitReference) as caught:
        parse_git_reference(text)
    assert message in str(caught.value)


def test_github_shorthand_is_a_context_only():
    assert parse_git_reference("github.com/o/r#x", as_context=True) == GitReference("https://github.com/o/r", "x")


def test_a_commit_needs_no_look_up():
    assert parse_git_reference(f"https://h/r.git#{COMMIT}").fixed_commit == COMMIT
    assert parse_git_reference("https://h/r.git#main").fixed_commit == ""
    pinned = parse_git_reference(f"https://h/r.git?ref=main&checksum={COMMIT}&fetch-by-commit=1")
    assert pinned.fixed_commit == COMMIT


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_text_is_a_git_reference_or_not_without_a_crash(text):
    for candidate in (text, f"https://h/r.git?{text}", f"git@h:{text}"):
        try:
            parse_git_reference(candidate)
        except PybuildError:
            pass


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["80"], ("80/tcp",)),
        (["53/UDP"], ("53/udp",)),
        (["8000-8002/sctp"], ("8000/sctp", "8001/sctp", "8002/sctp")),
        (["80", "443/"], ("80/tcp", "443/tcp")),
        (["8080:80"], ("80/tcp",)),
        (["127.0.0.1:8080:80/tcp"], ("80/tcp",)),
        (["[::1]:8080:80"], ("80/tcp",)),
        (["9000-9001:80"], ("80/tcp",)),
        (["0", "65535"], ("0/tcp", "65535/tcp")),
    ],
)
def test_ports_become_keys(words, keys):
    assert exposed_ports(words) == keys


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "no port specified"),
        ("/tcp", "no port specified"),
        ("80/icmp", "invalid proto: icmp"),
        ("65536", "invalid containerPort: 65536"),
        ("-1", "invalid containerPort: -1"),
        ("90-80", "invalid containerPort: 90-80"),
        ("http", "invalid containerPort: http"),
        ("x:80", "invalid hostPort: x"),
        ("300.0.0.1:1:80", "invalid IP address: 300.0.0.1"),
        ("1-3:80-81", "invalid ranges specified"),
    ],
)
def test_wrong_ports_are_named(word, message):
    with pytest.raises(ValueProblem) as caught:
        exposed_ports([word])
    assert message in str(caught.value)


def test_a_context_with_the_platform_in_its_name_wins():
    here, other = LocalContextRef("x"), ImageContextRef("busybox")
    contexts = {"alpine": here, "alpine::linux/arm64": other}
    assert find_named_context(contexts, "alpine:latest", platform=AMD64) == ("alpine", here)
    assert find_named_context(contexts, "docker.io/library/alpine", platform=Platform("linux", "arm64", "v8")) == (
        "alpine::linux/arm64",
        other,
    )
    assert find_named_context(contexts, "alpine:3", platform=AMD64) is None
    assert find_named_context({"context": here, "scratch": here}, "scratch", platform=AMD64) is None


def test_context_keys_are_the_shortest_names():
    assert context_key("docker.io/library/Alpine:latest") == "alpine"
    assert context_key("alpine:3::linux/arm64") == "alpine:3::linux/arm64"


def test_where_an_image_context_is_found():
    assert ImageContextRef("busybox").location == "docker.io/library/busybox:latest"
    assert ImageContextRef("v1", layout="/layout").location == "oci-layout:///layout:v1"
    assert ImageContextRef(f"@sha256:{SHA}", layout="/l").location == f"oci-layout:///l@sha256:{SHA}"
