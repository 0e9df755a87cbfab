"""Answers have the fields and types that the Engine API's public description (version 1.56) gives.

The tables are of our own making: name → type, ``?`` for what may be missing, a table for an object, a list for an array.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemons.running_daemon import RunningDaemon, running_daemon

pytestmark = pytest.mark.integration

TEXT, NUMBER, FLAG = "text", "number", "flag"
TEXTS = [TEXT]
MAP = {"*": TEXT}
SETS: dict[str, Any] = {"*": {}}
PLATFORM = {"architecture": TEXT, "os": TEXT, "os.version?": TEXT, "os.features?": TEXTS, "variant?": TEXT}
DESCRIPTOR = {
    "mediaType": TEXT,
    "digest": TEXT,
    "size": NUMBER,
    "urls?": TEXTS,
    "annotations?": MAP,
    "data?": TEXT,
    "platform?": PLATFORM,
    "artifactType?": TEXT,
}
MANIFEST = {
    "ID": TEXT,
    "Descriptor": DESCRIPTOR,
    "Available": FLAG,
    "Size": {"Total": NUMBER, "Content": NUMBER},
    "Kind": TEXT,
    "ImageData?": {"Platform": PLATFORM, "Containers": TEXTS, "Size": {"Unpacked": NUMBER}, "UnpackedSize": NUMBER},
    "AttestationData?": {"For": TEXT},
}
SUMMARY = {
    "Id": TEXT,
    "ParentId": TEXT,
    "RepoTags": TEXTS,
    "RepoDigests": TEXTS,
    "Created": NUMBER,
    "Size": NUMBER,
    "SharedSize": NUMBER,
    "Labels": MAP,
    "Containers": NUMBER,
    "Manifests?": [MANIFEST],
    "Descriptor?": DESCRIPTOR,
}
CONFIG = {
    "User?": TEXT,
    "ExposedPorts?": SETS,
    "Env?": TEXTS,
    "Cmd?": TEXTS,
    "Healthcheck?": {
        "Test?": TEXTS,
        "Interval?": NUMBER,
        "Timeout?": NUMBER,
        "Retries?": NUMBER,
        "StartPeriod?": NUMBER,
        "StartInterval?": NUMBER,
    },
    "ArgsEscaped?": FLAG,
    "Volumes?": SETS,
    "WorkingDir?": TEXT,
    "Entrypoint?": TEXTS,
    "OnBuild?": TEXTS,
    "Labels?": MAP,
    "StopSignal?": TEXT,
    "Shell?": TEXTS,
}
INSPECT = {
    "Id": TEXT,
    "Descriptor?": DESCRIPTOR,
    "Manifests?": [MANIFEST],
    "RepoTags": TEXTS,
    "RepoDigests": TEXTS,
    "Comment?": TEXT,
    "Created?": TEXT,
    "Author?": TEXT,
    "Config": CONFIG,
    "Architecture": TEXT,
    "Variant?": TEXT,
    "Os": TEXT,
    "OsVersion?": TEXT,
    "Size": NUMBER,
    "RootFS": {"Type": TEXT, "Layers": TEXTS},
    "Metadata": {"LastTagTime": TEXT},
}
HISTORY = {"Id": TEXT, "Created": NUMBER, "CreatedBy": TEXT, "Tags": "texts or null", "Size": NUMBER, "Comment": TEXT}
CACHE = {
    "ID": TEXT,
    "Parents?": TEXTS,
    "Type": TEXT,
    "Description": TEXT,
    "InUse": FLAG,
    "Shared": FLAG,
    "Size": NUMBER,
    "CreatedAt": TEXT,
    "LastUsedAt?": TEXT,
    "UsageCount": NUMBER,
}


def usage(item: object) -> dict[str, Any]:
    return {"ActiveCount": NUMBER, "TotalCount": NUMBER, "Reclaimable": NUMBER, "TotalSize": NUMBER, "Items": [item]}


COMMIT = {"ID": TEXT}
INFO = {
    **dict.fromkeys(
        ("ID", "Driver", "DockerRootDir", "SystemTime", "LoggingDriver", "CgroupDriver", "CgroupVersion"), TEXT
    ),
    **dict.fromkeys(
        ("KernelVersion", "OperatingSystem", "OSVersion", "OSType", "Architecture", "IndexServerAddress"), TEXT
    ),
    **dict.fromkeys(
        ("HttpProxy", "HttpsProxy", "NoProxy", "Name", "ServerVersion", "DefaultRuntime", "Isolation", "InitBinary"),
        TEXT,
    ),
    **dict.fromkeys(
        ("Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Images", "NFd"), NUMBER
    ),
    **dict.fromkeys(("NGoroutines", "NEventsListener", "NCPU", "MemTotal"), NUMBER),
    **dict.fromkeys(
        ("MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet", "PidsLimit"), FLAG
    ),
    **dict.fromkeys(("OomKillDisable", "IPv4Forwarding", "Debug", "ExperimentalBuild", "LiveRestoreEnabled"), FLAG),
    **dict.fromkeys(("Labels", "SecurityOptions", "CDISpecDirs", "Warnings"), TEXTS),
    **dict.fromkeys(("ContainerdCommit", "RuncCommit", "InitCommit"), COMMIT),
    "DriverStatus": [TEXTS],
    "Plugins": {"Volume": TEXTS, "Network": TEXTS, "Authorization": TEXTS, "Log": TEXTS},
    "RegistryConfig": {
        "InsecureRegistryCIDRs": TEXTS,
        "IndexConfigs": {"*": {"Name": TEXT, "Mirrors": TEXTS, "Secure": FLAG, "Official": FLAG}},
        "Mirrors": TEXTS,
    },
    "GenericResources": [{}],
    "Runtimes": {"*": {"path": TEXT}},
    "Swarm": {
        "NodeID": TEXT,
        "NodeAddr": TEXT,
        "LocalNodeState": TEXT,
        "ControlAvailable": FLAG,
        "Error": TEXT,
        "RemoteManagers": "null",
    },
}
VERSION = {
    "Platform": {"Name": TEXT},
    "Components": [{"Name": TEXT, "Version": TEXT, "Details": MAP}],
    **dict.fromkeys(
        (
            "Version",
            "ApiVersion",
            "MinAPIVersion",
            "GitCommit",
            "GoVersion",
            "Os",
            "Arch",
            "KernelVersion",
            "BuildTime",
        ),
        TEXT,
    ),
}


def differences(value: object, wanted: Any, path: str = "") -> list[str]:
    """Where ``value`` has not the form of ``wanted``."""
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no array"]
        return [
            found
            for position, item in enumerate(value)
            for found in differences(item, wanted[0], f"{path}[{position}]")
        ]
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no object"]
        if "*" in wanted:
            return [found for key, item in value.items() for found in differences(item, wanted["*"], f"{path}.{key}")]
        names = {name.rstrip("?"): name for name in wanted}
        out = [f"{path}.{key}: not described" for key in value if key not in names]
        for key, name in names.items():
            if key in value:
                out += differences(value[key], wanted[name], f"{path}.{key}")
            elif not name.endswith("?"):
                out.append(f"{path}.{key}: missing")
        return out
    fits = {
        TEXT: isinstance(value, str),
        NUMBER: isinstance(value, (int, float)) and not isinstance(value, bool),
        FLAG: isinstance(value, bool),
        "null": value is None,
        "texts or null": value is None or isinstance(value, list),
    }[wanted]
    return [] if fits else [f"{path}: {value!r} is no {wanted}"]


def test_the_comparison_notices_what_is_wrong() -> None:
    wanted = {"a": TEXT, "b?": [NUMBER], "c": {"*": FLAG}}
    assert differences({"a": "", "c": {}}, wanted) == []
    assert differences({"a": "", "b": [1, 2.5], "c": {"x": True}}, wanted) == []
    assert differences({"a": None, "b": ["1"], "c": {"x": 1}, "d": 1}, wanted) == [
        ".d: not described",
        ".a: None is no text",
        ".b[0]: '1' is no number",
        ".c.x: 1 is no flag",
    ]
    assert differences({"b": {}, "c": []}, wanted) == [".a: missing", ".b: {} is no array", ".c: [] is no object"]


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
    ("path", "wanted"),
    [
        ("/version", VERSION),
        ("/info", INFO),
        ("/images/json", [SUMMARY]),
        ("/images/json?manifests=1&shared-size=1&all=1&digests=1", [SUMMARY]),
        ("/images/full:1/json", INSPECT),
        ("/images/full:1/json?manifests=1", INSPECT),
        ("/images/busybox/json", INSPECT),
        ("/images/full:1/history", [HISTORY]),
        ("/images/full:1/attestations", []),
        (
            "/system/df?verbose=1",
            {"ImageUsage": usage(SUMMARY), "ContainerUsage": usage({}), "VolumeUsage": usage({}), "BuildCacheUsage": usage(CACHE)},
        ),
    ],
)  # fmt: skip
def test_an_answer_has_the_form_that_is_described(daemon: RunningDaemon, path: str, wanted: Any) -> None:
    answer = daemon.request("GET", path)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert differences(answer.json(), wanted) == []
    if isinstance(wanted, list) and wanted:
        assert answer.json(), "an empty list shows nothing"


def test_pruning_answers_have_the_form_that_is_described(daemon: RunningDaemon) -> None:
    daemon.build({"Dockerfile": "FROM busybox\nRUN echo nameless > /n\n"})
    images = daemon.request("POST", "/images/prune").json()
    assert (
        differences(images, {"ImagesDeleted": [{"Untagged?": TEXT, "Deleted?": TEXT}], "SpaceReclaimed": NUMBER}) == []
    )
    assert images["ImagesDeleted"]
    cache = daemon.request("POST", "/build/prune", query={"all": "1"}).json()
    assert differences(cache, {"CachesDeleted": TEXTS, "SpaceReclaimed": NUMBER}) == []


def test_an_index_entry_of_a_registry_has_the_form_that_is_described(daemon: RunningDaemon, registry: str) -> None:
    daemon.request("POST", "/images/busybox/tag", query={"repo": f"{registry}/contract/app", "tag": "1"})
    pushed = daemon.request("POST", f"/images/{registry}/contract/app/push", query={"tag": "1"}).messages()
    aux = pushed[-1]["aux"]
    assert differences(aux, {"Tag": TEXT, "Digest": TEXT, "Size": NUMBER}) == []
    found = daemon.request("GET", f"/distribution/{registry}/contract/app:1/json").json()
    assert differences(found, {"Descriptor": DESCRIPTOR, "Platforms": [PLATFORM]}) == []
    assert found["Descriptor"]["digest"] == aux["Digest"]


def test_events_have_the_form_that_is_described(daemon: RunningDaemon) -> None:
    daemon.request("POST", "/images/busybox/tag", query={"repo": "event", "tag": "1"})
    answer = daemon.request("GET", "/events?since=100&until=50", headers={"Accept": "application/json-seq"})
    assert answer.status == 400, "an end before the beginning"
    until = time.time() + 0.2
    answer = daemon.request("GET", f"/events?since=0&until={until}", headers={"Accept": "application/json-seq"})
    assert answer.headers["Content-Type"] == "application/json-seq"
    events = [json.loads(text) for text in answer.body.split(b"\x1e") if text]
    form = {
        "Type": TEXT,
        "Action": TEXT,
        "Actor": {"ID": TEXT, "Attributes": MAP},
        "scope": TEXT,
        "time": NUMBER,
        "timeNano": NUMBER,
    }
    assert differences(events, [form]) == []
    assert events


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/images/no-such/json", 404),
        ("GET", "/images/no-such/history", 404),
        ("GET", "/images/no-such/get", 404),
        ("POST", "/images/no-such/tag?repo=x&tag=y", 404),
        ("DELETE", "/images/no-such", 404),
        ("GET", "/images/full:1/json?platform=%7B%22os%22%3A%22plan9%22%2C%22architecture%22%3A%22mips%22%7D", 404),
        ("GET", "/images/json?filters=%7B", 400),
        ("POST", "/images/busybox/tag?repo=UPPER&tag=y", 400),
        ("POST", "/images/busybox/tag", 400),
        ("POST", "/images/create", 400),
        ("GET", "/system/df?type=nonsense", 400),
        ("GET", "/events?since=nonsense", 400),
        ("POST", "/auth", 400),
        ("GET", "/images/search?term=x", 501),
    ],
)
def test_errors_have_the_status_that_is_described_and_a_message(
    daemon: RunningDaemon, method: str, path: str, status: int
) -> None:
    answer = daemon.request(method, path)
    assert answer.status == status, answer.body
    assert differences(answer.json(), {"message": TEXT}) == []


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
