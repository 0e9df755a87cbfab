"""Many builds of all kinds on one daemon: it holds no more objects, files, threads, mounts or processes afterwards than before.

What is counted doesn't depend on time or on the allocator; of the process's memory it only tells that no build's content stays.
tools/soak_daemon.py is the long run, which measures it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import Pybuild
from daemons import counted_pybuild
from daemons.running_daemon import DOCKER, RunningDaemon, UnixConnection, context_tar, running_daemon

pytestmark = pytest.mark.integration

ROUNDS = 10
PASSING = frozenset(
    {
        # Keep-alive timers of closed connections: asyncio forgets them by the hundred.
        "asyncio.events.TimerHandle",
        "_contextvars.Context",
        # urllib remembers 128.
        "urllib.parse.SplitResult",
        # Abstract base classes remember classes, anew whenever a class is registered. The classes themselves are counted.
        "weakref.ReferenceType",
        "builtins.builtin_function_or_method",
    }
)


@pytest.fixture
def daemon(pybuild: Pybuild, tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(
        tmp_path / "d",
        pybuild.root,
        program=(str(counted_pybuild.__file__),),
        variables={"COUNTS": str(tmp_path / "counts")},
    ) as running:
        yield running


def one_round(daemon: RunningDaemon, registry: str, directory: Path) -> None:
    """Six builds, each of another kind and none from the cache, and what goes with them."""
    dockerfile = "FROM busybox\nCOPY data /data\nRUN echo built > /n\nRUN cat /data /n\n"
    data = os.urandom(1000)
    name = f"{registry}/soak/app"
    built = daemon.build({"Dockerfile": dockerfile, "data": data}, nocache="1", t=name)
    assert "Successfully tagged" in built.text(), built.body
    failed = daemon.build({"Dockerfile": dockerfile + "RUN exit 3\n", "data": data}, nocache="1")
    assert "non-zero code: 3" in failed.body.decode()
    assert daemon.build({"Dockerfile": "FROM busybox\nNONSENSE\n"}).status == 400
    cancelled_build(daemon)
    (directory / "Dockerfile").write_text(dockerfile)
    (directory / "data").write_bytes(data)
    subprocess.run(
        [sys.executable, "-m", "pybuild", "-H", daemon.address, "build", "-q", "--no-cache", "-t", "own", directory],
        check=True,
        capture_output=True,
    )
    if DOCKER is not None:
        daemon.docker("build", "-q", "--no-cache", "-t", "cli", str(directory))
    assert "errorDetail" not in daemon.request("POST", f"/images/{name}/push", query={"tag": "latest"}).body.decode()
    pulled = daemon.request("POST", "/images/create", query={"fromImage": name, "tag": "latest"})
    assert "up to date" in pulled.body.decode()
    assert daemon.request("GET", f"/images/{name}/get").status == 200
    assert daemon.request("GET", "/system/df").status == 200
    assert daemon.request("POST", "/images/prune").status == 200


def cancelled_build(daemon: RunningDaemon) -> None:
    """A build whose client goes away in the middle of a step."""
    connection = UnixConnection(daemon.socket)
    connection.request("POST", "/build", context_tar({"Dockerfile": "FROM busybox\nRUN echo begun && sleep 600\n"}))
    response = connection.getresponse()
    while b"begun\\n" not in (line := response.readline()):
        assert line
    connection.close()
    response.close()
    wait_until(lambda: os.listdir(daemon.root / "active") == [])


def objects(daemon: RunningDaemon, file: Path) -> dict[str, int]:
    file.unlink(missing_ok=True)
    os.kill(daemon.pid, signal.SIGUSR2)
    wait_until(file.exists)
    counted: dict[str, int] = json.loads(file.read_bytes())
    return {name: count for name, count in counted.items() if name not in PASSING}


def figures(daemon: RunningDaemon) -> dict[str, int]:
    process = Path(f"/proc/{daemon.pid}")
    return {
        "mounts": sum(str(daemon.root) in line for line in (process / "mountinfo").read_text().splitlines()),
        "processes": descendants(daemon.pid),
        "sockets": sum(os.readlink(f"/proc/{daemon.pid}/fd/{fd}").startswith("socket:") for fd in open_files(daemon)),
        "active": len(os.listdir(daemon.root / "active")),
        "ingest": len(os.listdir(daemon.root / "ingest")),
        "locks": sum(name.startswith(("lease-", "step-")) for name in os.listdir(daemon.root / "locks")),
    }


def open_files(daemon: RunningDaemon) -> list[str]:
    return [fd for fd in os.listdir(f"/proc/{daemon.pid}/fd") if os.path.lexists(f"/proc/{daemon.pid}/fd/{fd}")]


def descendants(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return len(children) + sum(descendants(int(child)) for child in children)


def wait_until(condition: Callable[[], object], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_builds_of_all_kinds_leave_nothing_behind(daemon: RunningDaemon, registry: str, tmp_path: Path) -> None:
    directory = tmp_path / "context"
    directory.mkdir()
    for _ in range(ROUNDS // 2):
        one_round(daemon, registry, directory)
    before, files, threads = figures(daemon), len(open_files(daemon)), len(os.listdir(f"/proc/{daemon.pid}/task"))
    objects(daemon, tmp_path / "counts")  # counting brings objects itself, the first time
    held = objects(daemon, tmp_path / "counts")
    memory = daemon.resident_bytes()
    for _ in range(ROUNDS):
        one_round(daemon, registry, directory)
    after = objects(daemon, tmp_path / "counts")
    assert daemon.resident_bytes() - memory < 12 << 20  # of content, not of objects
    # Less than one for every round, of any type.
    grown = {name: (held.get(name, 0), count) for name, count in after.items() if count - held.get(name, 0) >= ROUNDS}
    assert grown == {}
    with suppress(AssertionError):
        wait_until(lambda: all(count <= before[name] for name, count in figures(daemon).items()), seconds=10)
    assert {name: (before[name], count) for name, count in figures(daemon).items() if count > before[name]} == {}
    # SQLite keeps descriptors of ended threads for the next ones, and the pool of quick work has up to eight threads.
    assert len(open_files(daemon)) < files + 16
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) <= threads + 8
