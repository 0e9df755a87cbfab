"""The attributes that BuildKit's clients send, as requests of ours."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.outputs import OutputType
from pybuild.daemon.buildkit_api.attributes import (
    LayoutSource,
    build_request,
    cache_imports,
    cache_text,
    missing_capabilities,
    output_of,
    require_frontend,
    sources_of,
    subrequest_of,
)
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform

MACHINE = Platform("amd64", "linux")
LAYOUT_DIGEST = "sha256:" + "1" * 64


def test_everything_that_a_build_can_be_told_arrives() -> None:
    request = build_request(
        {
            "build-arg:A": "1",
            "build-arg:HTTP_PROXY": "http://proxy",
            "build-arg:SOURCE_DATE_EPOCH": "5",
            "label:k": "v",
            "target": "t",
            "platform": "linux/arm64,linux/amd64",
            "no-cache": "one,two",
            "image-resolve-mode": "pull",
            "add-hosts": "a=1.2.3.4,b=::1",
            "shm-size": "33554432",
            "ulimit": "nofile=1:2,nproc=3",
            "cgroup-parent": "/p",
            "force-network-mode": "host",
            "hostname": "h",
            "memory": "6291456",
            "context:img": "docker-image://alpine",
            "context:dir": "local:dir",
            "vcs:revision": "abc",
            "something-new": "x",
        },
        machine=MACHINE,
        entitlements=("network.host",),
    )
    assert request.build_args["A"] == "1"
    assert request.build_args["BUILDKIT_SANDBOX_HOSTNAME"] == "h"
    assert request.proxies == {"HTTP_PROXY": "http://proxy"}
    assert request.source_date_epoch == "5"
    assert request.labels == {"k": "v"}
    assert request.target == "t"
    assert [platform.architecture for platform in request.platforms] == ["arm64", "amd64"]
    assert request.no_cache_filter == {"one", "two"}
    assert not request.no_cache
    assert request.pull
    assert request.extra_hosts == (("a", "1.2.3.4"), ("b", "::1"))
    assert request.shm_size == 32 << 20
    assert request.ulimits == (("nofile", 1, 2), ("nproc", 3, 3))
    assert request.cgroup_parent == "/p"
    assert request.network == "host"
    assert request.entitlements == {"network.host"}
    assert request.resources == (("memory", "6291456"),)
    assert request.named_contexts == {"img": "docker-image://alpine"}
    assert request.vcs == {"revision": "abc"}


def test_an_empty_no_cache_is_for_all_stages() -> None:
    assert build_request({"no-cache": ""}, machine=MACHINE).no_cache


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"image-resolve-mode": "never"}, "image-resolve-mode"),
        ({"add-hosts": "a=nowhere"}, "failed to parse IP nowhere"),
        ({"add-hosts": "a"}, "invalid key-value pair a"),
        ({"shm-size": "much"}, "shm size"),
        ({"ulimit": "nofile=x"}, "ulimit"),
        ({"force-network-mode": "bridge"}, "netmode"),
        ({"attest:nonsense": ""}, "attestation"),
        ({"platform": "a/b/c/d"}, "platform"),
    ],
)
def test_what_cannot_be_understood_is_refused(attributes: dict[str, str], words: str) -> None:
    with pytest.raises(PybuildError, match=words):
        build_request(attributes, machine=MACHINE)


def test_an_entitlement_that_there_is_not_is_refused() -> None:
    with pytest.raises(PybuildError, match="device"):
        build_request({}, machine=MACHINE, entitlements=("device",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mode=max,inline-only=true", {"mode": "max", "inline-only": "true"}),
        ("", {}),
        ("disabled=true", None),
        ("false", None),
    ],
)
def test_provenance_is_on_unless_it_is_disabled(text: str, expected: dict[str, str] | None) -> None:
    assert build_request({"attest:provenance": text}, machine=MACHINE).provenance == expected


def test_caches_of_the_frontend_come_in_both_forms() -> None:
    text = '[{"Type":"registry","Attrs":{"ref":"a/b:c"}}]'
    found = cache_imports({"cache-imports": text, "cache-from": "d/e,f/g"})
    assert found == [("registry", {"ref": name}) for name in ("a/b:c", "d/e", "f/g")]


def test_caches_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(PybuildError, match="cache-imports"):
        cache_imports({"cache-imports": "[{"})


def test_a_value_with_commas_stays_one_value() -> None:
    assert cache_text("registry", {"ref": "a", "x": "1,2"}) == 'type=registry,ref=a,"x=1,2"'


def test_the_clients_directories_are_told_apart_from_what_the_daemon_fetches() -> None:
    sources = sources_of(
        {
            "filename": "sub.Dockerfile",
            "context:dir": "local:there",
            "context:lay": f"oci-layout://store@{LAYOUT_DIGEST}",
            "context:other": "input:first",
            "context:img": "docker-image://alpine",
            "local-sessionid:there": "s2",
            "sharedkey:localdir:there": "key",
        },
        inputs=("first",),
    )
    assert sources.dockerfile == "dockerfile"
    assert sources.filename == "sub.Dockerfile"
    assert sources.directories == {"dir": "there"}
    assert sources.layouts == {"lay": LayoutSource("store", LAYOUT_DIGEST)}
    assert sources.inputs == {"other": "first"}
    assert sources.sessions == {"there": "s2"}
    assert sources.shared_keys == {"there": "key"}


def test_a_remote_context_has_its_own_dockerfile_unless_the_client_sends_one() -> None:
    remote = sources_of({"context": "https://h/r.git"})
    assert (remote.remote, remote.dockerfile) == ("https://h/r.git", "")
    assert sources_of({"context": "https://h/r.git", "dockerfilekey": "dockerfile"}).dockerfile == "dockerfile"


def test_an_archive_from_standard_input_is_no_address() -> None:
    sources = sources_of({"context": "http://buildkit-session/abc"})
    assert (sources.remote, sources.upload) == ("", "abc")


@pytest.mark.parametrize("place", ["/etc", ".", "../x", "file:///etc", "oci-layout:///var/lib"])
def test_no_context_names_a_directory_of_the_daemons_machine(place: str) -> None:
    with pytest.raises(PybuildError, match="neither"):
        sources_of({"context": place})
    if place.startswith("oci-layout:"):
        with pytest.raises(PybuildError, match="digest"):
            sources_of({"context:x": place})
        return
    with pytest.raises(PybuildError, match="unsupported"):
        build_request({"context:x": place}, machine=MACHINE)


def test_the_slashes_of_images_and_layouts_may_be_left_out() -> None:
    attributes = {"context:lay": f"oci-layout:store@{LAYOUT_DIGEST}", "context:base": "docker-image:alpine:3"}
    assert sources_of(attributes).layouts == {"lay": LayoutSource("store", LAYOUT_DIGEST)}
    assert build_request(attributes, machine=MACHINE).named_contexts == {"base": "docker-image://alpine:3"}


def test_a_layout_without_a_digest_is_refused() -> None:
    with pytest.raises(PybuildError, match="digest"):
        sources_of({"context:lay": "oci-layout://store"})


@pytest.mark.parametrize(
    ("kind", "attributes", "expected"),
    [
        ("moby", {"name": "a,b"}, OutputType.IMAGE),
        ("image", {"name": "a", "push": "true"}, OutputType.IMAGE),
        ("oci", {"tar": "true"}, OutputType.OCI),
        ("docker", {}, OutputType.DOCKER),
        ("tar", {}, OutputType.TAR),
        ("local", {"platform-split": "false"}, OutputType.LOCAL),
    ],
)
def test_exporters_are_outputs(kind: str, attributes: dict[str, str], expected: OutputType) -> None:
    output = output_of(kind, attributes, dest=None if kind in ("moby", "image") else "/somewhere")
    assert output.type is expected
    assert output.names == tuple(name for name in attributes.get("name", "").split(",") if name)
    assert output.push == (attributes.get("push") == "true")


def test_an_exporter_never_writes_where_its_client_says() -> None:
    assert output_of("tar", {"dest": "/etc/passwd"}, dest="/scratch").dest == "/scratch"
    assert output_of("image", {"dest": "/etc/passwd"}, dest=None).dest is None


def test_unknown_exporters_are_refused() -> None:
    with pytest.raises(PybuildError, match="could not be found"):
        output_of("floppy", {}, dest=None)


def test_only_the_dockerfile_frontend_is_there() -> None:
    require_frontend("dockerfile.v0", {})
    require_frontend("gateway.v0", {"source": "docker/dockerfile:1"})
    for frontend, attributes in (("gateway.v0", {"source": "x/y"}), ("", {}), ("other.v0", {})):
        with pytest.raises(PybuildError):
            require_frontend(frontend, attributes)


def test_capabilities_that_are_missing_are_named() -> None:
    caps = "moby.buildkit.frontend.subrequests+forward,moby.buildkit.frontend.nonsense"
    assert missing_capabilities({"frontend.caps": caps}) == ("moby.buildkit.frontend.nonsense",)
    assert subrequest_of({"requestid": "frontend.lint"}) is not None
    assert subrequest_of({}) is None


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "add-hosts",
                "ulimit",
                "platform",
                "cache-imports",
                "attest:sbom",
                "attest:provenance",
                "memory",
                "no-cache",
            ]
        ),
        st.text(max_size=20),
    )
)
def test_whatever_clients_send_is_read_or_refused(attributes: dict[str, str]) -> None:
    try:
        build_request(attributes, machine=MACHINE)
        sources_of(attributes)
        cache_imports(attributes)
    except PybuildError:
        pass
