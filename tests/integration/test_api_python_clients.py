"""docker-py and compose v1 as clients of the daemon, in their own API versions."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import require_program
from daemons.running_daemon import RunningDaemon, running_daemon

docker = pytest.importorskip("docker", reason="docker-py is not installed")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root") as running:
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Any]:
    made = docker.DockerClient(base_url=daemon.address, timeout=60)
    yield made
    made.close()


def test_an_image_is_built_from_a_directory(client: Any, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY data /data\nARG X\nRUN echo $X > /x\nLABEL l=m\n")
    (tmp_path / "data").write_text("data")
    image, log = client.images.build(path=str(tmp_path), tag="py:1", buildargs={"X": "1"}, labels={"n": "o"})
    assert image.tags == ["py:1"]
    assert image.labels == {"l": "m", "n": "o"}
    messages = list(log)
    assert {"aux": {"ID": image.id}} in messages
    assert {"stream": "Successfully tagged py:1\n"} in messages


def test_a_failed_build_is_an_error_with_its_log(client: Any) -> None:
    with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 4") as caught:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 4\n"))
    assert any("Step 2/2 : RUN exit 4" in message.get("stream", "") for message in caught.value.build_log)
    with pytest.raises(docker.errors.APIError, match="unknown instruction: FROMM") as refused:
        client.images.build(fileobj=io.BytesIO(b"FROMM busybox\n"))
    assert refused.value.status_code == 400


def test_images_are_listed_inspected_tagged_and_removed(client: Any) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nLABEL find=me\n"), tag="find:1")
    assert client.images.list(filters={"label": "find=me"}) == [image]
    assert client.images.get(image.short_id) == image
    assert image.tag("found", "2")
    image.reload()
    assert sorted(image.tags) == ["find:1", "found:2"]
    assert image.history()[0]["Id"] == image.id
    client.images.remove("found:2")
    client.images.remove("find:1")
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get("find:1")


def test_images_travel_through_a_registry(client: Any, registry: str) -> None:
    name = f"{registry}/py/app"
    image, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo py > /py\n"), tag=f"{name}:1")
    image.tag(name, "2")
    for tag in ("1", "2"):
        assert any(
            message.get("aux", {}).get("Tag") == tag
            for message in client.images.push(name, tag, stream=True, decode=True)
        )
    data = client.images.get_registry_data(f"{name}:1")
    assert data.attrs["Platforms"][0]["os"] == "linux"
    client.images.remove(image.id, force=True)
    assert client.images.pull(name, tag="1").id == image.id
    assert {tag for pulled in client.images.pull(name, all_tags=True) for tag in pulled.tags} >= {
        f"{name}:1",
        f"{name}:2",
    }
    with pytest.raises(docker.errors.NotFound):
        client.images.pull(f"{registry}/py/nothing")


def test_images_are_saved_and_loaded_as_streams(client: Any) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo s > /s\n"), tag="stream:1")
    data = b"".join(image.save(named=True))
    client.images.remove(image.id, force=True)
    assert [loaded.id for loaded in client.images.load(data)] == [image.id]


def test_the_daemon_tells_about_itself(client: Any) -> None:
    assert client.ping()
    assert client.version()["MinAPIVersion"] == "1.24"
    assert client.info()["OSType"] == "linux"
    assert client.df()["LayersSize"] > 0
    client.images.build(fileobj=io.BytesIO(b"FROM busybox\nLABEL e=1\n"), tag="e:1")
    seen = list(client.events(since=int(time.time()) - 60, until=int(time.time()) + 1, decode=True))
    assert {"Type", "Action", "Actor", "time", "timeNano"} <= set(seen[-1])


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.41", "1.44", "1.47", "1.52"])
def test_each_api_version_gets_the_answers_of_its_time(daemon: RunningDaemon, version: str) -> None:
    client = docker.APIClient(base_url=daemon.address, version=version)
    number = tuple(map(int, version.split(".")))
    shown = client.inspect_image("busybox")
    listed = next(row for row in client.images() if "busybox:latest" in row["RepoTags"])
    assert ("VirtualSize" in shown, "VirtualSize" in listed) == ((number < (1, 44),) * 2)
    assert ("ContainerConfig" in shown) == (number < (1, 45))
    assert ("Hostname" in shown["Config"]) == (number < (1, 50))
    assert ("Descriptor" in shown, "Descriptor" in listed) == ((number >= (1, 48),) * 2)
    assert ("Parent" in shown) == (number < (1, 52))


def test_compose_builds_with_its_old_client(daemon: RunningDaemon, tmp_path: Path) -> None:
    compose = require_program("docker-compose")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/Dockerfile").write_text(
        "FROM busybox AS one\nARG X\nRUN echo compose $X\nFROM one AS two\nRUN no-such\n"
    )
    (tmp_path / "docker-compose.yml").write_text(
        'version: "3.4"\nservices:\n  web:\n    image: composed:1\n    build: {context: app, target: one, args: {X: "5"}, labels: {c: d}}\n'
    )
    done = subprocess.run(
        [compose, "build", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **daemon.client_variables, "COMPOSE_DOCKER_CLI_BUILD": "0"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "compose 5" in done.stdout
    assert "Successfully tagged composed:1" in done.stdout
    assert daemon.request("GET", "/v1.41/images/composed:1/json").json()["Config"]["Labels"]["c"] == "d"
