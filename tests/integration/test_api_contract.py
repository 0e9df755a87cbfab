"""Answers have every field that clients of the Engine API count on, and name what conflicts.

That their types fit the API's public description is tests/peer/test_engine_api_peer.py's; the description calls few fields required.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemons.running_daemon import RunningDaemon, running_daemon

pytestmark = pytest.mark.integration

IMAGE = "Id ParentId RepoTags RepoDigests Created Size SharedSize Labels Containers"
USAGE = "ActiveCount TotalCount Reclaimable TotalSize Items"


def missing(value: object, names: str) -> set[str]:
    """The ``names`` that an object hasn't, or that an object of a list hasn't; the list must hold one."""
    objects = value if isinstance(value, list) else [value]
    assert objects, "an empty list shows nothing"
    return {name for each in objects for name in names.split() if name not in each}


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root") as running:
        answer = running.build(
            {
                "Dockerfile": 'FROM busybox\nRUN echo x > /x\nENV A=b\nUSER 1:2\nEXPOSE 80\nVOLUME /v\nLABEL l=m\nENTRYPOINT ["sh"]\nCMD ["-c"]\n'
                'WORKDIR /w\nSTOPSIGNAL 9\nSHELL ["/bin/sh","-e"]\nHEALTHCHECK --interval=5s CMD true\nONBUILD RUN echo\nMAINTAINER m\n'
            },
            t="full:1",
        )
        assert answer.status == 200, answer.body
        yield running


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            "/version",
            "Platform Components Version ApiVersion MinAPIVersion GitCommit GoVersion Os Arch KernelVersion BuildTime",
        ),
        (
            "/info",
            "ID Driver DriverStatus DockerRootDir SystemTime LoggingDriver CgroupDriver CgroupVersion KernelVersion OperatingSystem OSVersion"
            " OSType Architecture IndexServerAddress HttpProxy HttpsProxy NoProxy Name ServerVersion DefaultRuntime Isolation InitBinary"
            " Containers ContainersRunning ContainersPaused ContainersStopped Images NFd NGoroutines NEventsListener NCPU MemTotal MemoryLimit"
            " SwapLimit CpuCfsPeriod CpuCfsQuota CPUShares CPUSet PidsLimit OomKillDisable IPv4Forwarding Debug ExperimentalBuild"
            " LiveRestoreEnabled Labels SecurityOptions CDISpecDirs Warnings ContainerdCommit RuncCommit InitCommit Plugins RegistryConfig"
            " GenericResources Runtimes Swarm",
        ),
        ("/images/json", IMAGE),
        ("/images/json?manifests=1&shared-size=1&all=1&digests=1", f"{IMAGE} Manifests Descriptor"),
        ("/images/full:1/json", "Id RepoTags RepoDigests Config Architecture Os Size RootFS Metadata Created"),
        ("/images/full:1/json?manifests=1", "Id Descriptor Manifests"),
        ("/images/full:1/history", "Id Created CreatedBy Tags Size Comment"),
        ("/system/df?verbose=1", "ImageUsage ContainerUsage VolumeUsage BuildCacheUsage"),
    ],
)  # fmt: skip
def test_an_answer_has_the_fields_that_clients_count_on(daemon: RunningDaemon, path: str, names: str) -> None:
    answer = daemon.request("GET", path)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert missing(answer.json(), names) == set()


def test_disk_usage_tells_of_each_kind(daemon: RunningDaemon) -> None:
    found = daemon.request("GET", "/system/df?verbose=1").json()
    assert missing(list(found.values()), USAGE) == set()
    assert missing(found["ImageUsage"]["Items"], IMAGE) == set()
    cache = found["BuildCacheUsage"]["Items"]
    assert missing(cache, "ID Type Description InUse Shared Size CreatedAt UsageCount") == set()


def test_pruning_tells_what_went(daemon: RunningDaemon) -> None:
    daemon.build({"Dockerfile": "FROM busybox\nRUN echo nameless > /n\n"})
    images = daemon.request("POST", "/images/prune").json()
    assert missing(images, "ImagesDeleted SpaceReclaimed") == set()
    assert images["ImagesDeleted"]
    cache = daemon.request("POST", "/build/prune", query={"all": "1"}).json()
    assert missing(cache, "CachesDeleted SpaceReclaimed") == set()


def test_what_was_pushed_is_told_and_found_in_the_registry(daemon: RunningDaemon, registry: str) -> None:
    daemon.request("POST", "/images/busybox/tag", query={"repo": f"{registry}/contract/app", "tag": "1"})
    pushed = daemon.request("POST", f"/images/{registry}/contract/app/push", query={"tag": "1"}).messages()
    aux = pushed[-1]["aux"]
    assert missing(aux, "Tag Digest Size") == set()
    found = daemon.request("GET", f"/distribution/{registry}/contract/app:1/json").json()
    assert missing(found["Platforms"], "os architecture") == set()
    assert found["Descriptor"]["digest"] == aux["Digest"]


def test_events_are_a_sequence_of_json_texts(daemon: RunningDaemon) -> None:
    daemon.request("POST", "/images/busybox/tag", query={"repo": "event", "tag": "1"})
    answer = daemon.request("GET", "/events?since=100&until=50", headers={"Accept": "application/json-seq"})
    assert answer.status == 400, "an end before the beginning"
    until = time.time() + 0.2
    answer = daemon.request("GET", f"/events?since=0&until={until}", headers={"Accept": "application/json-seq"})
    assert answer.headers["Content-Type"] == "application/json-seq"
    events = [json.loads(text) for text in answer.body.split(b"\x1e") if text]
    assert missing(events, "Type Action Actor scope time timeNano") == set()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/images/no-such/get", 404),
        ("/images/full:1/json?platform=%7B%22os%22%3A%22plan9%22%2C%22architecture%22%3A%22mips%22%7D", 404),
        ("/system/df?type=nonsense", 400),
    ],
)
def test_errors_that_the_description_of_older_versions_lacks(daemon: RunningDaemon, path: str, status: int) -> None:
    answer = daemon.request("GET", path)
    assert answer.status == status, answer.body
    assert answer.json()["message"]


def test_no_attestations_are_an_empty_list(daemon: RunningDaemon) -> None:
    assert daemon.request("GET", "/images/full:1/attestations").json() == []


def test_several_names_of_an_image_conflict_with_its_removal_by_id(daemon: RunningDaemon) -> None:
    identifier = daemon.request("GET", "/images/full:1/json").json()["Id"]
    daemon.request("POST", "/images/full:1/tag", query={"repo": "full", "tag": "2"})
    refused = daemon.request("DELETE", f"/images/{identifier}")
    assert (refused.status, refused.json()["message"].startswith("conflict: unable to delete")) == (409, True)
    removed = daemon.request("DELETE", f"/images/{identifier[7:19]}?force=1").json()
    assert removed == [{"Untagged": "full:1"}, {"Untagged": "full:2"}, {"Deleted": identifier}]


def test_an_image_that_was_pushed_and_built_again_is_one_image(daemon: RunningDaemon, registry: str) -> None:
    name = f"{registry}/again/app:1"
    files = {"Dockerfile": "FROM busybox\nRUN echo again > /a\n"}
    daemon.build(files, t=name)
    daemon.request("POST", f"/images/{name[:-2]}/push", query={"tag": "1"})
    daemon.build(files, t="again:2")
    identifier = daemon.request("GET", "/images/again:2/json").json()["Id"]
    listed = [row for row in daemon.request("GET", "/images/json").json() if row["Id"] == identifier]
    assert [sorted(row["RepoTags"]) for row in listed] == [sorted(["again:2", name])]
    assert sorted(daemon.request("GET", f"/images/{identifier}/json").json()["RepoTags"]) == sorted(["again:2", name])
    assert daemon.request("DELETE", f"/images/{identifier}").status == 409
    removed = daemon.request("DELETE", f"/images/{identifier}?force=1").json()
    assert {"Untagged": "again:2"} in removed
    assert {"Untagged": name} in removed
    assert removed.count({"Deleted": identifier}) == 1
    assert daemon.request("GET", f"/images/{identifier}/json").status == 404
