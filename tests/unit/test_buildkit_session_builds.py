"""The query of docker 20.10's BuildKit builds as attributes of the Dockerfile frontend."""

from __future__ import annotations

import pytest

from pybuild.daemon.api_build_session import attributes_of, exporters_of
from pybuild.daemon.api_errors import ApiError
from pybuild.daemon.api_request import Parameters
from pybuild.daemon.api_versions import ApiVersion
from pybuild.errors import PybuildError

VERSION = ApiVersion.parse("v1.41")


def parameters(**query: str) -> Parameters:
    return Parameters(query.items(), version=VERSION)


def test_every_parameter_has_its_attribute() -> None:
    found = attributes_of(
        parameters(
            remote="client-session",
            dockerfile="sub.Dockerfile",
            target="t",
            buildargs='{"A":"1","B":null}',
            labels='{"k":"v"}',
            nocache="1",
            pull="1",
            platform="linux/arm64",
            networkmode="host",
            shmsize="65536",
            extrahosts="a:1.2.3.4",
            ulimits='[{"Name":"nofile","Soft":1,"Hard":2}]',
            cachefrom='["x/y","z"]',
            cgroupparent="/p",
        )
    )
    assert found == {
        "filename": "sub.Dockerfile",
        "target": "t",
        "build-arg:A": "1",
        "label:k": "v",
        "no-cache": "",
        "image-resolve-mode": "pull",
        "platform": "linux/arm64",
        "force-network-mode": "host",
        "shm-size": "65536",
        "add-hosts": "a=1.2.3.4",
        "ulimit": "nofile=1:2",
        "cache-from": "x/y,z",
        "cgroup-parent": "/p",
    }


def test_a_remote_context_is_passed_on_and_a_session_is_none() -> None:
    assert attributes_of(parameters(remote="https://h/r.git"))["context"] == "https://h/r.git"
    assert "context" not in attributes_of(parameters(remote="client-session"))
    assert "context" not in attributes_of(parameters(remote="upload-request"))


def test_the_result_is_an_image_under_the_tags_unless_outputs_say_otherwise() -> None:
    tagged = Parameters([("t", "a"), ("t", "b:1")], version=VERSION)
    assert exporters_of(tagged) == [("moby", {"name": "a,b:1"})]
    assert exporters_of(parameters()) == [("moby", {})]
    assert exporters_of(parameters(outputs='[{"Type":"local","Attrs":{}}]')) == [("local", {})]
    assert exporters_of(parameters(outputs='[{"Type":"cacheonly","Attrs":{}}]')) == []


@pytest.mark.parametrize(
    "query",
    [
        {"networkmode": "container:x"},
        {"ulimits": '[{"Name":"nofile"}]'},
        {"extrahosts": "nonsense"},
        {"buildargs": "{x"},
    ],
)
def test_what_cannot_be_understood_is_refused(query: dict[str, str]) -> None:
    with pytest.raises((ApiError, PybuildError)):
        attributes_of(parameters(**query))


def test_outputs_must_be_one_object() -> None:
    for text in ('[{"Type":"tar"},{"Type":"tar"}]', "{}x", '"tar"'):
        with pytest.raises((ApiError, PybuildError)):
            exporters_of(parameters(outputs=text))
